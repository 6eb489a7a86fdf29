"""The prefix index: which pages' worth of tokens is known after which prefix, and where the content lies."""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

ROOT = bytes(16)
# How many continuations of a prefix are compared with a prompt: anyone may leave very many.
MAX_SCAN = 32


@dataclass(eq=False, slots=True)
class Node:
    """One known page's worth of tokens after a known prefix, and for each group where its content lies (or 0).

    Fewer tokens than a page holds: the content may be copied, never shared. step: the latest that writes into it.
    """

    digest: bytes
    parent: bytes
    tokens: tuple[int, ...]
    pages: list[int]
    host: list[int]
    step: int = 0

    def lies_in(self, groups: Sequence[int]) -> bool:
        """Is the content there in all these groups, on the device or the host?"""
        for i in groups:  # noqa: SIM110 (all() takes thrice the time, and this is called for every page of a prompt)
            if not (self.pages[i] or self.host[i]):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Match:
    """A prefix that the cache holds: `n_tokens` long, whole pages and then part of `source`.

    It is good until the pool changes. nodes: one per whole page; None where no group needs the page any more.
    """

    n_tokens: int
    nodes: Sequence[Node | None] = ()
    source: Node | None = None

    def whole(self, page_size: int) -> Match:
        """The same without the part that would have to be copied."""
        return Match(len(self.nodes) * page_size, self.nodes)


class PrefixIndex:
    """Nodes by digest and by what they continue, and which of them steps have written that may still fail."""

    def __init__(self, n_groups: int, page_size: int) -> None:
        self.n_groups, self.page_size = n_groups, page_size
        self.nodes: dict[bytes, Node] = {}
        self.children: dict[bytes, dict[bytes, Node]] = {}
        self._recent: deque[tuple[int, Node]] = deque()

    def chain(self, tokens: Sequence[int], digests: list[bytes], n_pages: int) -> None:
        """Completes `digests` to the first `n_pages` whole pages of tokens."""
        size = self.page_size
        for i in range(len(digests), n_pages):
            digests.append(page_digest(parent_of(digests, i), tokens[i * size : (i + 1) * size]))

    def node(self, digest: bytes, parent: bytes, tokens: Sequence[int]) -> Node:
        """The node of a digest: the known one, else a new one that is not in the index."""
        known = self.nodes.get(digest)
        return known or Node(digest, parent, tuple(tokens), [0] * self.n_groups, [0] * self.n_groups)

    def update(self, node: Node) -> None:
        """Puts a node into the index if its content lies anywhere, and takes it out if not."""
        if any(node.pages) or any(node.host):
            self.nodes[node.digest] = node
            self.children.setdefault(node.parent, {})[node.digest] = node
        elif self.nodes.get(node.digest) is node:
            del self.nodes[node.digest]
            siblings = self.children[node.parent]
            del siblings[node.digest]
            if not siblings:
                del self.children[node.parent]

    def continuation(
        self, parent: bytes, rest: Sequence[int], usable: Callable[[Node], bool]
    ) -> tuple[int, Node | None]:
        """The usable node after `parent` that has most tokens in common with `rest`, and how many: 0 and None if none.

        Only the MAX_SCAN that were indexed last are looked at.
        """
        best: tuple[int, Node | None] = 0, None
        for node in islice(reversed(self.children.get(parent, {}).values()), MAX_SCAN):
            n_alike = _n_alike(rest, node.tokens)
            if n_alike > best[0] and usable(node):
                best = n_alike, node
        return best

    def note(self, step: int, node: Node) -> None:
        """Remembers that a step writes or moves a node's content."""
        self._recent.append((step, node))

    def settle(self, step: int) -> None:
        """Forgets what steps up to number `step` wrote: they cannot fail any more."""
        while self._recent and self._recent[0][0] <= step:
            self._recent.popleft()

    def take_since(self, step: int) -> list[Node]:
        """The nodes that steps from number `step` on write or move, which are no longer remembered as such."""
        nodes = [node for number, node in self._recent if number >= step]
        self._recent = deque(entry for entry in self._recent if entry[0] < step)
        return nodes


def page_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """What identifies a page: its own tokens and, by their digest, all before it."""
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


def parent_of(digests: Sequence[bytes], page: int) -> bytes:
    """The digest of all that comes before a page."""
    return digests[page - 1] if page else ROOT


def _n_alike(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
