"""Stop texts: cuts a stream of bytes at the first of them, and holds back what may become one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import compress
from operator import itemgetter

# What a held byte belongs to: text, or a hidden token, as its first byte or a later one.
TEXT, FIRST, LATER = 0, 1, 2


class StopFilter:
    """Put pieces in, get out what is certainly before any stop text. `found` says that one came.

    A hidden piece, a control token, is matched but not given out, and counts as a whole: a stop text may be it, contain
    it or end with it, but not begin or end within it.
    Where one piece completes several stop texts, the text is cut at the one that begins first.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._automaton = Automaton({stop.encode("utf-8", "replace") for stop in stops if stop})
        self._node = self._automaton.root
        self._held, self._kinds = bytearray(), bytearray()
        self.found = False

    def put(self, piece: bytes, *, hidden: bool = False) -> bytes:
        if self.found:
            return b""
        if not self._automaton.stops:
            return b"" if hidden else piece
        n_before = len(self._held)
        self._held += piece
        self._kinds += (
            (bytes([FIRST]) + bytes([LATER]) * (len(piece) - 1))[: len(piece)] if hidden else bytes(len(piece))
        )
        node, cut = self._node, len(self._held)
        for end, byte in enumerate(piece, n_before + 1):
            node = node.following.get(byte) or self._automaton.follow(node, byte)
            if node.match is not None and (not hidden or end == len(self._held)):
                begins = (end - length for length in node.lengths())
                cut = min(cut, next((begin for begin in begins if self._kinds[begin] != LATER), cut))
        self._node, self.found = node, cut < len(self._held)
        return self._give(cut if self.found else len(self._held) - node.depth)

    def _give(self, n: int) -> bytes:
        """Takes out the first bytes that are held; those of hidden tokens are nobody's."""
        out = bytes(compress(self._held[:n], map(TEXT.__eq__, self._kinds[:n])))
        del self._held[:n], self._kinds[:n]
        return out

    def finish(self) -> bytes:
        """What was held back when the stream ends."""
        return b"" if self.found else self._give(len(self._held))


class Node:
    """A text that some stop texts begin with, those from `low` to `high` in their order; it has `depth` bytes.

    fail: the node of its longest end that is one, too. match: of its ends that are stop texts, itself included, the
    longest. following: where the next byte leads, as far as it is known.
    """

    __slots__ = ("depth", "fail", "following", "high", "low", "match")

    def __init__(self, low: int, high: int, depth: int, fail: Node | None = None) -> None:
        self.low, self.high, self.depth, self.fail = low, high, depth, fail
        self.match: Node | None = None
        self.following: dict[int, Node] = {}

    def lengths(self) -> Iterator[int]:
        """Of the stop texts that end here, the longest first."""
        node = self.match
        while node is not None:
            yield node.depth
            node = node.fail.match if node.fail is not None else None


class Automaton:
    """All stop texts in one automaton (Aho and Corasick, 1975): a byte costs the same, however many there are.

    The texts are kept sorted, which is their trie already; nodes are made when they are first reached.
    """

    def __init__(self, stops: Iterable[bytes]) -> None:
        self.stops = sorted(stops)
        self.root = Node(0, len(self.stops), 0)

    def follow(self, node: Node, byte: int) -> Node:
        """The node after another one and a byte. Kept, so that it is asked for once."""
        unknown: list[Node] = []
        place: Node | None = node
        found: Node | None = None
        while place is not None and (found := place.following.get(byte)) is None:
            unknown.append(place)
            place = place.fail
        known = found or self.root
        # From the shortest text to the longest: what follows the one before is where a longer one's child fails to.
        for place in reversed(unknown):
            known = place.following[byte] = self._child(place, byte, known) or known
        return known

    def _child(self, node: Node, byte: int, fail: Node) -> Node | None:
        # All texts of a node agree up to its depth; one that ends there comes first.
        first, nth = node.low + (len(self.stops[node.low]) == node.depth), itemgetter(node.depth)
        low = bisect_left(self.stops, byte, first, node.high, key=nth)
        high = bisect_right(self.stops, byte, low, node.high, key=nth)
        if low == high:
            return None
        child = Node(low, high, node.depth + 1, fail)
        child.match = child if len(self.stops[low]) == child.depth else fail.match
        return child
