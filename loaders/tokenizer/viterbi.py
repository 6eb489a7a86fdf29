"""The unigram model's search for vocabularies whose tokens are too long for the tokenizers library's tree.

The library keeps a node of 280 bytes for every byte of a token that no other token shares, and walks along the longest
from every letter. Here a text costs 15 us per letter, and 10 ns more for each token that begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .prefixes import Prefixes

# What the unknown token's score is below the lowest of the vocabulary.
PENALTY = 10.0
N_REMEMBERED = 256

Chain = tuple[np.ndarray, np.ndarray, np.ndarray]


class Viterbi:
    """Finds the tokens of the highest sum of scores, as the library does; of equal sums the first found counts."""

    def __init__(self, pieces: Sequence[tuple[str, float]], unknown: int) -> None:
        self._prefixes = Prefixes([text for text, _ in pieces])
        ids = {text: token for token, (text, _) in enumerate(pieces)}
        self._ids = np.array([ids[text] for text in self._prefixes.texts], np.int64)
        self._scores = np.array([pieces[token][1] for token in self._ids], np.float64)
        self._unknown = unknown
        self._unknown_score = float(min(score for _, score in pieces)) - PENALTY
        self._chain = lru_cache(N_REMEMBERED)(self._make_chain)

    def encode(self, text: str) -> list[int]:
        """Token ids; letters beside each other that no token has are one unknown token."""
        n = len(text)
        best, came_from, ids = np.zeros(n + 1), np.full(n + 1, -1, np.int64), np.zeros(n + 1, np.int64)
        with np.errstate(invalid="ignore"):  # scores may be infinite
            for start in range(n):
                found = self._prefixes.longest(text, start)
                if found >= 0:
                    lengths, scores, tokens = self._chain(found)
                    ends = lengths + start
                    sums = scores + best[start]
                    better = (came_from[ends] < 0) | (sums > best[ends])
                    ends = ends[better]
                    best[ends], came_from[ends], ids[ends] = sums[better], start, tokens[better]
                if found < 0 or lengths[-1] != 1:
                    guess = best[start] + self._unknown_score
                    if came_from[start + 1] < 0 or guess > best[start + 1]:
                        best[start + 1], came_from[start + 1], ids[start + 1] = guess, start, self._unknown
        return self._path(came_from.tolist(), ids.tolist())

    def _path(self, came_from: list[int], ids: list[int]) -> list[int]:
        path: list[int] = []
        end = len(ids) - 1
        while end > 0:
            if ids[end] != self._unknown or path[-1:] != [self._unknown]:
                path.append(ids[end])
            end = came_from[end]
        return path[::-1]

    def _make_chain(self, found: int) -> Chain:
        """Lengths, scores and ids of a text and of those that it begins with, the longest first."""
        chain = []
        while found >= 0:
            chain.append(found)
            found = self._prefixes.parent[found]
        return np.array([len(self._prefixes.texts[i]) for i in chain]), self._scores[chain], self._ids[chain]
