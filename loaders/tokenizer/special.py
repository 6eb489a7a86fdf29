"""Cuts a text at its special tokens before anything else looks at it."""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterator, Sequence

from .eog import HIDDEN, SPECIAL, Attr
from .prefixes import Prefixes
from .vocab import Vocab

SPACE = " \t\n\v\f\r"
# More first letters than these are told apart by themselves; fewer together with the second.
MAX_PAIRED = 16


class SpecialTokens:
    """Finds the texts of control, unknown and user-defined tokens, the longest first.

    As in llama.cpp a long token that starts later wins over a short one that starts earlier and overlaps it, and
    equal ones are taken in the vocabulary's order, each from left to right. All are found in one pass: every place
    offers its longest token; what has no room any more offers the longest that has. Each time that happens, the room
    has at least halved, so a text of n letters takes O(n log n), however many tokens there are.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._tokens = [(token, vocab.tokens[token], attr) for token, attr in enumerate(vocab.attrs) if attr & SPECIAL]
        # Whether some of them swallow the spaces beside them.
        self.swallow = any(attr & (Attr.LSTRIP | Attr.RSTRIP) for _, _, attr in self._tokens)
        self._all = _Finder(self._tokens)
        # Made when it is first needed: prompts are nearly always read with their special tokens.
        self._user_defined: _Finder | None = None

    def split(self, text: str, parse_special: bool) -> list[str | int]:
        """Pieces of text (never empty) and ids, in order; without parse_special only user-defined tokens count."""
        if parse_special:
            return self._all.split(text)
        if self._user_defined is None:
            self._user_defined = _Finder([entry for entry in self._tokens if not entry[2] & HIDDEN])
        return self._user_defined.split(text)


class _Finder:
    """tokens: ids, texts and attributes."""

    def __init__(self, tokens: list[tuple[int, str, int]]) -> None:
        self._prefixes = Prefixes([text for _, text, _ in tokens])
        by_text = {text: (token, attr) for token, text, attr in tokens}
        entries = [by_text[text] for text in self._prefixes.texts]
        self._ids, self._attrs = [token for token, _ in entries], [attr for _, attr in entries]
        sizes = [len(text.encode("utf-8", "surrogateescape")) for text in self._prefixes.texts]
        order = sorted(range(len(entries)), key=lambda i: (-sizes[i], self._ids[i]))
        self._ranks = [0] * len(entries)
        for rank, i in enumerate(order):
            self._ranks[i] = rank
        self._start = _start_pattern(self._prefixes.texts)

    def split(self, text: str) -> list[str | int]:
        if not text or self._start is None:
            return [text] if text else []
        offers = [
            (self._ranks[found], start, found)
            for match in self._start.finditer(text)
            if (found := self._prefixes.longest(text, start := match.start())) >= 0
        ]
        return list(_joined(text, self._taken(text, offers))) if offers else [text]

    def _taken(self, text: str, offers: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Start, end and id of the tokens that get their place, and -1 for spaces that they swallow."""
        heapq.heapify(offers)
        is_taken = bytearray(len(text))
        taken: list[tuple[int, int, int]] = []
        # The latest of one rank, which swallow nothing before all of them are there.
        equal: list[tuple[int, int, int]] = []
        last, attr = -1, 0
        while offers:
            rank, start, found = heapq.heappop(offers)
            if rank != last:
                taken += equal + list(_swallowed(text, equal, attr, is_taken))
                last, attr, equal = rank, self._attrs[found], []
            end = start + len(self._prefixes.texts[found])
            blocked = is_taken.find(1, start, end)
            if blocked < 0:
                is_taken[start:end] = b"\1" * (end - start)
                equal.append((start, end, self._ids[found]))
            elif (shorter := self._prefixes.shorter(found, blocked - start)) >= 0:
                heapq.heappush(offers, (self._ranks[shorter], start, shorter))
        return taken + equal + list(_swallowed(text, equal, attr, is_taken))


def _swallowed(
    text: str, taken: Sequence[tuple[int, int, int]], attr: int, is_taken: bytearray
) -> Iterator[tuple[int, int, int]]:
    """The spaces beside tokens that swallow them, as far as nothing else has them."""
    for start, end, _ in taken if attr & (Attr.LSTRIP | Attr.RSTRIP) else ():
        first, stop = start, end
        while attr & Attr.RSTRIP and stop < len(text) and text[stop] in SPACE and not is_taken[stop]:
            is_taken[stop] = 1
            stop += 1
        while attr & Attr.LSTRIP and first > 0 and text[first - 1] in SPACE and not is_taken[first - 1]:
            first -= 1
            is_taken[first] = 1
        yield end, stop, -1
        yield first, start, -1


def _joined(text: str, taken: Sequence[tuple[int, int, int]]) -> Iterator[str | int]:
    """The ids, and what is left between them."""
    end = 0
    for start, stop, token in sorted(taken):
        if start > end:
            yield text[end:start]
        if token >= 0:
            yield token
        end = max(end, stop)
    if end < len(text):
        yield text[end:]


def _start_pattern(texts: Sequence[str]) -> re.Pattern[str] | None:
    """Matches where one of the texts can begin: by its first letter and, where these are few, its second."""
    seconds: dict[str, set[str]] = {}
    for text in texts:
        seconds.setdefault(text[0], set()).add(text[1:2])
    if len(seconds) > MAX_PAIRED:
        return re.compile(_one_of(seconds))
    parts = [re.escape(first) + ("" if "" in after else f"(?={_one_of(after)})") for first, after in seconds.items()]
    return re.compile("|".join(parts)) if parts else None


def _one_of(letters: Collection[str]) -> str:
    return f"[{''.join(map(re.escape, sorted(letters)))}]"
