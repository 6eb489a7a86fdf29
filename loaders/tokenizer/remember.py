"""Remembers how words were encoded: ordinary text has few different ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

N_WORDS = 1 << 16
# Longer words are rare, and their number would not bound the memory they take.
MAX_LENGTH = 64


def remembering(encode: Callable[[str], tuple[int, ...]]) -> Callable[[str], tuple[int, ...]]:
    """The same function, fast for short words that it has seen lately."""
    remembered = lru_cache(N_WORDS)(encode)
    return lambda word: remembered(word) if len(word) <= MAX_LENGTH else encode(word)
