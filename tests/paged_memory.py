"""A simulated device for tests of the page pool and the scheduler: it executes moves and knows what places hold."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from naiad.runtime.engine.pages import NULL_PAGE, GroupSpec, Move, PagePool

GARBAGE = -1
SIZE = 4  # tokens per page of a `Device`


def contents_of(tokens: Sequence[int], known: Sequence[int] = ()) -> list[int]:
    """What a model's cache holds at each position: a value that depends on all tokens up to there."""
    values = list(known)
    for token in tokens[len(values) :]:
        values.append(hash((values[-1] if values else 0, token)))
    return values


class Memory:
    """Pages of all groups, on device and host, and the checks that a test makes after each operation."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        size = pool.page_size
        self.device = [[[GARBAGE] * size for _ in group.refs] for group in pool.groups]
        self.n_host = [len(group.host_free) for group in pool.groups]
        self.host = [[[GARBAGE] * size for _ in range(n + 1)] for n in self.n_host]

    def execute(self, moves: Sequence[Move], *, fails: bool = False) -> None:
        for move in moves:
            device, host = self.device[move.group], self.host[move.group]
            source, target = {"copy": (device, device), "offload": (device, host), "load": (host, device)}[move.kind]
            assert NULL_PAGE not in (move.source, move.target)
            target[move.target] = [GARBAGE] * self.pool.page_size if fails else source[move.source].copy()

    def write(self, pages: Sequence[Sequence[int]], start: int, values: Sequence[int]) -> None:
        size = self.pool.page_size
        for device, numbers in zip(self.device, pages, strict=True):
            for position, value in enumerate(values, start):
                page = numbers[position // size]
                assert page != NULL_PAGE, position
                device[page][position % size] = value

    def holds(self, pages: Sequence[Sequence[int]], values: Sequence[int], queries: int) -> bool:
        """Do the pages hold `values` at all positions that tokens from position `queries` on see?"""
        size = self.pool.page_size
        for group, device, numbers in zip(self.pool.groups, self.device, pages, strict=True):
            first = max(0, queries - group.window + 1) if group.window else 0
            for k in range(first // size, -(-len(values) // size)):
                low, high = max(first, k * size), min(len(values), (k + 1) * size)
                if numbers[k] == NULL_PAGE or device[numbers[k]][low - k * size : high - k * size] != values[low:high]:
                    return False
        return True

    def check(self, sequences: Sequence[Sequence[Sequence[int]]]) -> None:
        """The pool's books are right when exactly these sequences (page lists per group) hold pages."""
        for i, group in enumerate(self.pool.groups):
            refs = [0] * len(group.refs)
            for sequence in sequences:
                for page in sequence[i]:
                    refs[page] += page != NULL_PAGE
            assert refs == group.refs
            held = [page for page, n in enumerate(refs) if n]
            assert sorted([*group.free, *group.idle, *held]) == list(range(1, len(refs)))
            assert set(group.idle) <= group.owner.keys()
            assert not set(group.free) & group.owner.keys()
            assert all(node.pages[i] == page for page, node in group.owner.items())
            assert sorted([*group.host_free, *group.host_lru]) == list(range(1, self.n_host[i] + 1))
            assert all(node.host[i] == host for host, node in group.host_lru.items())
        self._check_index()

    def _check_index(self) -> None:
        nodes = self.pool.prefixes.nodes
        children = self.pool.prefixes.children
        assert {d: n for siblings in children.values() for d, n in siblings.items()} == nodes
        assert all(children.values())
        for node in nodes.values():
            assert any(node.pages) or any(node.host)
            for i, group in enumerate(self.pool.groups):
                assert not node.pages[i] or group.owner[node.pages[i]] is node
                assert not node.host[i] or group.host_lru[node.host[i]] is node


@dataclass
class Sequenced:
    """A sequence that holds pages, and what they must contain."""

    tokens: list[int]
    pages: list[list[int]]
    digests: list[bytes] = field(default_factory=list)
    n_indexed: int = 0
    seen_from: int = 0


class Device:
    """A pool with its simulated memory; every operation is a step of its own."""

    def __init__(self, *groups: GroupSpec, share: bool = True) -> None:
        self.pool = PagePool(groups, SIZE, share)
        self.memory = Memory(self.pool)

    def start(self, tokens: Sequence[int]) -> Sequenced | None:
        """Takes what the cache has of tokens[:-1] and computes the rest; None: no memory."""
        self.pool.step += 1
        digests: list[bytes] = []
        match = self.pool.match(tokens, digests, len(tokens) - 1)
        pages = self.pool.take(match)
        if pages is None:
            return None
        sequence = Sequenced(list(tokens[: match.n_tokens]), pages, digests, len(match.nodes), match.n_tokens)
        self.memory.execute(self.pool.take_moves())
        assert self.memory.holds(pages, contents_of(sequence.tokens), match.n_tokens)
        if not self.grow(sequence, tokens[match.n_tokens :]):
            self.pool.release(sequence.pages, sequence.tokens)
            return None
        return sequence

    def grow(self, sequence: Sequenced, tokens: Sequence[int]) -> bool:
        """Computes further tokens; False: no memory."""
        self.pool.step += 1
        start = len(sequence.tokens)
        self.pool.slide(sequence.pages, start)
        sequence.seen_from = start
        if not self.pool.extend(sequence.pages, start + len(tokens)):
            return False
        sequence.tokens += tokens
        n_whole = len(sequence.tokens) // SIZE
        self.pool.register(sequence.pages, sequence.tokens, sequence.digests, sequence.n_indexed, n_whole)
        sequence.n_indexed = n_whole
        self.memory.execute(self.pool.take_moves())
        self.memory.write(sequence.pages, start, contents_of(sequence.tokens)[start:])
        return True

    def run(self, tokens: Sequence[int]) -> None:
        """A sequence that comes, is computed and goes."""
        sequence = self.start(tokens)
        assert sequence is not None
        self.pool.release(sequence.pages, sequence.tokens, sequence.digests)

    def n_matched(self, tokens: Sequence[int]) -> int:
        self.pool.step += 1
        return self.pool.match(tokens).n_tokens


def tokens_of(n: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(n)]
