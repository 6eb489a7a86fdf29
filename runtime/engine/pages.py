"""The pages of the key/value cache: who holds which, what they contain, and what is shared.

A page is known by a digest of all tokens up to its end, so equal prefixes are found by looking up page after page
(as in vLLM's automatic prefix caching). Pages that nobody holds any more keep their content until memory is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappush
from typing import Literal

from .page_group import NULL_PAGE as NULL_PAGE
from .page_group import PageGroup
from .prefixes import Match, Node, PrefixIndex, page_digest, parent_of

PAGE_SIZE = 32


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """The memory of one cache group: device pages (with the null page), host pages, and the window in tokens, or 0."""

    n_pages: int
    window: int
    n_host_pages: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """Content that goes from page to page: within the device, from device to host, or from host to device."""

    kind: Literal["copy", "offload", "load"]
    group: int
    source: int
    target: int


class PagePool:
    """Hands out pages, per cache group; a sequence has one list of page numbers per group, all equally long.

    groups: at least one; ValueError for sizes that make no sense. share: false keeps every sequence to itself.

    moves: what has to be done on the device, in order, before the next step. step: the number of the step that is being
    put together, or the last one; the scheduler sets it. Content written by a step can be shared by its own
    rows, as they write before they read, but not moved before it.
    """

    def __init__(self, groups: Sequence[GroupSpec], page_size: int = PAGE_SIZE, share: bool = True) -> None:
        if not groups or page_size < 1:
            raise ValueError(f"expected at least one cache group and pages of tokens, found {len(groups)}, {page_size}")
        for spec in groups:
            if spec.n_pages < 2 or spec.window < 0 or spec.n_host_pages < 0:
                raise ValueError(f"expected at least 2 pages and no negative numbers, found {spec}")
        self.groups = [PageGroup(s.n_pages, s.n_host_pages, s.window, page_size) for s in groups]
        self.page_size, self.share = page_size, share
        self.step = 0
        self.moves: list[Move] = []
        self.n_evicted = self.n_offloaded = self.n_loaded = 0
        self.prefixes = PrefixIndex(len(groups), page_size)
        # Groups by number; each one with a window in a list of its own.
        self._unlimited = [i for i, group in enumerate(self.groups) if not group.window]
        self._windowed = [[i] for i, group in enumerate(self.groups) if group.window]
        limits = [group.capacity for group in self.groups]
        self.capacity = min((n for n in limits if n is not None), default=sys.maxsize)

    def n_free(self, group: int = 0) -> int:
        """Pages that can be had: free ones and idle ones."""
        return self.groups[group].n_free

    def n_idle(self, group: int = 0) -> int:
        """Pages that nobody holds and whose content is kept."""
        return len(self.groups[group].idle)

    def room(self, pages: Sequence[Sequence[int]]) -> int:
        """How many tokens a sequence with these pages could have if it took all that is left."""
        return self.page_size * min(len(p) + g.n_free for p, g in zip(pages, self.groups, strict=True))

    def demand(self, n_tokens: int, n_batch: int) -> list[int]:
        """Pages per group that a sequence of `n_tokens` tokens holds at once, computed `n_batch` at a time."""
        return [group.demand(n_tokens, n_batch) for group in self.groups]

    def n_kept_pages(self, n_tokens: int) -> list[int]:
        """Pages per group that hold what is seen after `n_tokens` tokens."""
        n_pages = -(-n_tokens // self.page_size)
        return [n_pages - min(group.first_seen(n_tokens), n_pages) for group in self.groups]

    def n_in_use(self, match: Match) -> list[int]:
        """Pages per group that a match would share with present holders, so that they cost nothing."""
        counts = []
        for i, group in enumerate(self.groups):
            visible = match.nodes[group.first_seen(match.n_tokens) :]
            counts.append(sum(1 for node in visible if node and node.pages[i] and group.refs[node.pages[i]]))
        return counts

    def match(self, tokens: Sequence[int], digests: list[bytes] | None = None, limit: int | None = None) -> Match:
        """The longest prefix of tokens[:limit] that all groups hold, on the device or the host; takes nothing.

        A group with a window needs only the pages that the next token sees. digests: the pages' digests as far as they
        are known, completed here.
        """
        if not self.share:
            return Match(0)
        n_tokens = len(tokens) if limit is None else min(limit, len(tokens))
        n_pages = n_tokens // self.page_size
        digests = [] if digests is None else digests
        self.prefixes.chain(tokens, digests, n_pages)
        nodes: list[Node | None] = []
        for i in range(n_pages):
            node = self.prefixes.nodes.get(digests[i])
            if self._unlimited and (node is None or not node.lies_in(self._unlimited)):
                break
            nodes.append(node)
        return self._with_source(tokens, digests, nodes[: self._n_whole_windows(nodes)], n_tokens)

    def take(self, match: Match) -> list[list[int]] | None:
        """A match's pages, held for one more sequence; None, and nothing changes, when memory does not suffice.

        Pages that lie on the host are loaded, the page that is matched in part is copied: see `moves`.
        """
        plans = [self._plan(i, match) for i in range(len(self.groups))]
        if any(plan is None for plan in plans):
            return None
        pages = []
        for i, plan in enumerate(plans):
            assert plan is not None
            pages.append(self._take_group(i, match, *plan))
        return pages

    def extend(self, pages: Sequence[list[int]], n_tokens: int) -> bool:
        """Gives a sequence room for `n_tokens` tokens in all groups; False, and nothing changes, when memory is out."""
        n_new = -(-n_tokens // self.page_size) - len(pages[0])
        if n_new <= 0:
            return True
        if any(n_new > group.n_free for group in self.groups):
            return False
        for i, numbers in enumerate(pages):
            numbers.extend([self._allocate(i) for _ in range(n_new)])
        return True

    def slide(self, pages: Sequence[list[int]], next_position: int) -> None:
        """Lets go of what no token at `next_position` or later sees, in groups with a window."""
        for i, group in enumerate(self.groups):
            if group.window:
                numbers = pages[i]
                for k in range(min(group.first_seen(next_position), len(numbers)) - 1, -1, -1):
                    if numbers[k] == NULL_PAGE:
                        break
                    group.let_go(numbers[k])
                    numbers[k] = NULL_PAGE

    def register(
        self, pages: Sequence[Sequence[int]], tokens: Sequence[int], digests: list[bytes], first: int, last: int
    ) -> None:
        """Lets others share the whole pages [first, last) of a sequence; a page whose content is known already is not.

        The content must have been computed, or be so in the step that is being put together.
        """
        if not self.share:
            return
        self.prefixes.chain(tokens, digests, last)
        size = self.page_size
        for i in range(first, last):
            self._index(digests[i], parent_of(digests, i), tokens[i * size : (i + 1) * size], [p[i] for p in pages])

    def unregister(self, step: int) -> None:
        """Forgets all content that steps from number `step` on may have written or moved; holders keep their pages."""
        for node in self.prefixes.take_since(step):
            self._drop(node)

    def disown(self, pages: Sequence[Sequence[int]]) -> None:
        """Forgets what a sequence's pages contain: nobody finds it any more. Holders keep their pages."""
        for group, numbers in zip(self.groups, pages, strict=True):
            for page in numbers:
                node = group.owner.get(page)
                if node is not None:
                    self._drop(node)

    def settle(self, step: int) -> None:
        """Steps up to number `step` have run and cannot fail any more."""
        self.prefixes.settle(step)

    def release(
        self,
        pages: Sequence[list[int]],
        tokens: Sequence[int] | None = None,
        digests: list[bytes] | None = None,
        n_tokens: int | None = None,
    ) -> None:
        """Gives a sequence's pages back and empties its lists; registered ones stay idle until memory is needed.

        tokens: what the pages hold, up to `n_tokens`; with them a last page that is filled in part can be copied from.
        """
        if tokens is not None and self.share:
            n_tokens = len(tokens) if n_tokens is None else n_tokens
            n_whole = n_tokens // self.page_size
            rest = tokens[n_whole * self.page_size : n_tokens]
            if rest:
                digests = [] if digests is None else digests
                self.prefixes.chain(tokens, digests, n_whole)
                parent = parent_of(digests, n_whole)
                self._index(page_digest(parent, rest), parent, rest, [p[n_whole] for p in pages])
        for i, numbers in enumerate(pages):
            # The end goes first, so it is older than the beginning, which more prompts share, and is evicted first.
            for page in reversed(numbers):
                if page != NULL_PAGE:
                    self.groups[i].let_go(page)
            numbers.clear()

    def forget(self) -> None:
        """Forgets all that nobody holds, on the device and on the host."""
        for i, group in enumerate(self.groups):
            for page in group.idle:
                self._detach(i, page)
                heappush(group.free, page)
            group.idle.clear()
            for host, node in group.host_lru.items():
                node.host[i] = 0
                self.prefixes.update(node)
                group.host_free.append(host)
            group.host_lru.clear()

    def take_moves(self) -> list[Move]:
        """The moves since the last call; the caller executes them in order."""
        moves, self.moves = self.moves, []
        return moves

    def find(self, tokens: Sequence[int]) -> tuple[int, list[list[int]]] | None:
        """The longest prefix of tokens that the cache holds, for reading: its length and pages; None: no memory.

        For use between steps. The caller executes `take_moves` first and calls `release` in the end.
        """
        # All steps are under way, so what the last one writes can be copied.
        self.step += 1
        match = self.match(tokens)
        pages = self.take(match)
        if pages is None:
            match = match.whole(self.page_size)
            pages = self.take(match)
        self.step -= 1
        return None if pages is None else (match.n_tokens, pages)

    def adopt(self, tokens: Sequence[int]) -> list[list[int]] | None:
        """Pages for content that the caller has, registered; None: no memory. NULL_PAGE where a window has gone past.

        Before anything else happens the caller executes `take_moves`, fills the pages and releases them with tokens.
        """
        n_pages = -(-len(tokens) // self.page_size)
        kept = self.n_kept_pages(len(tokens))
        if any(n > group.n_free for n, group in zip(kept, self.groups, strict=True)):
            return None
        pages = [[NULL_PAGE] * (n_pages - n) + [self._allocate(i) for _ in range(n)] for i, n in enumerate(kept)]
        self.register(pages, tokens, [], 0, len(tokens) // self.page_size)
        return pages

    def _n_whole_windows(self, nodes: Sequence[Node | None]) -> int:
        """The most of these pages after which all groups have what the next token sees."""
        if not self._windowed:
            return len(nodes)
        n_best = 0
        runs = [0] * len(self._windowed)  # per group: how many pages in a row end here
        for i, node in enumerate(nodes):
            end, whole = (i + 1) * self.page_size, True
            for j, group in enumerate(self._windowed):
                runs[j] = runs[j] + 1 if node is not None and node.lies_in(group) else 0
                whole = whole and runs[j] > i - self.groups[group[0]].first_seen(end)
            if whole:
                n_best = i + 1
        return n_best

    def _with_source(
        self, tokens: Sequence[int], digests: list[bytes], nodes: Sequence[Node | None], n_tokens: int
    ) -> Match:
        """A match of whole pages, and of what comes next as much as any one page has in common with it."""
        n_whole = len(nodes) * self.page_size
        rest = tokens[n_whole : min(n_tokens, n_whole + self.page_size - 1)]
        n_alike, source = self.prefixes.continuation(parent_of(digests, len(nodes)), rest, self._copyable)
        return Match(n_whole + n_alike, nodes, source)

    def _copyable(self, node: Node) -> bool:
        """Can the content be copied, in all groups, before the step that is being put together?"""
        written = node.step < self.step
        return all(host or (page and written) for page, host in zip(node.pages, node.host, strict=True))

    def _plan(self, i: int, match: Match) -> tuple[int, list[Node]] | None:
        """The first page of a match that group i needs, and the nodes that must be loaded; None: no memory."""
        group, source = self.groups[i], match.source
        first = min(group.first_seen(match.n_tokens), len(match.nodes))
        needed = [node for node in match.nodes[first:] if node is not None]
        loads = [node for node in needed if not node.pages[i]]
        n_kept = sum(1 for node in needed if node.pages[i] in group.idle)
        if source is not None:
            n_kept += source.pages[i] in group.idle
        if len(loads) + (source is not None) > group.n_free - n_kept:
            return None
        return first, loads

    def _take_group(self, i: int, match: Match, first: int, loads: list[Node]) -> list[int]:
        group, source = self.groups[i], match.source
        needed = [node for node in match.nodes[first:] if node is not None]
        # All that is read is held before anything is allocated, which evicts: on the device, and then on the host.
        for node in needed:
            if node.pages[i]:
                group.hold(node.pages[i])
        if source is not None and source.pages[i]:
            group.hold(source.pages[i])
        pinned = [*loads, source] if source is not None and source.host[i] else loads
        for node in pinned:
            del group.host_lru[node.host[i]]
        for node in loads:
            page = node.pages[i] = self._allocate(i)
            group.owner[page] = node
            self._move("load", i, node.host[i], page, node)
        pages = [NULL_PAGE] * first + [node.pages[i] for node in needed]
        if source is not None:
            pages.append(self._copy(i, source))
        for node in pinned:
            group.host_lru[node.host[i]] = node
        return pages

    def _copy(self, i: int, source: Node) -> int:
        """A page of its own with the content of a node, whose page is let go."""
        target = self._allocate(i)
        if source.pages[i] and source.step < self.step:
            self.moves.append(Move("copy", i, source.pages[i], target))
        else:
            self.moves.append(Move("load", i, source.host[i], target))
            self.n_loaded += 1
        if source.pages[i]:
            self.groups[i].let_go(source.pages[i])
        return target

    def _allocate(self, i: int) -> int:
        """A page of group i, held once: a free one, else the one that has been idle longest."""
        group = self.groups[i]
        page, evict = group.pop()
        if evict:
            self._evict(i, page)
        group.refs[page] = 1
        return page

    def _evict(self, i: int, page: int) -> None:
        """Takes an idle page's content out of the device, to the host if it is not there and can be moved."""
        group = self.groups[i]
        node = group.owner[page]
        self.n_evicted += 1
        if not node.host[i] and node.step < self.step and (group.host_free or group.host_lru):
            if not group.host_free:
                host, oldest = group.host_lru.popitem(last=False)
                oldest.host[i] = 0
                self.prefixes.update(oldest)
                group.host_free.append(host)
            host = node.host[i] = group.host_free.pop()
            group.host_lru[host] = node
            self._move("offload", i, page, host, node)
        self._detach(i, page)

    def _move(self, kind: Literal["offload", "load"], i: int, source: int, target: int, node: Node) -> None:
        self.moves.append(Move(kind, i, source, target))
        self.prefixes.note(self.step, node)
        if kind == "load":
            self.n_loaded += 1
        else:
            self.n_offloaded += 1

    def _index(self, digest: bytes, parent: bytes, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Makes pages (one per group) known as the place of `tokens`, in groups where none is yet."""
        node = self.prefixes.node(digest, parent, tokens)
        for i, page in enumerate(pages):
            owner = self.groups[i].owner
            if page != NULL_PAGE and not node.pages[i] and page not in owner:
                node.pages[i] = page
                owner[page] = node
                node.step = self.step
        if node.step == self.step:
            self.prefixes.note(self.step, node)
        self.prefixes.update(node)

    def _drop(self, node: Node) -> None:
        """Forgets a node's content wherever it lies."""
        for i, group in enumerate(self.groups):
            page, host = node.pages[i], node.host[i]
            if page:
                del group.owner[page]
                if group.refs[page] == 0:
                    del group.idle[page]
                    heappush(group.free, page)
            if host:
                del group.host_lru[host]
                group.host_free.append(host)
            node.pages[i] = node.host[i] = 0
        self.prefixes.update(node)

    def _detach(self, i: int, page: int) -> None:
        node = self.groups[i].owner.pop(page)
        node.pages[i] = 0
        self.prefixes.update(node)
