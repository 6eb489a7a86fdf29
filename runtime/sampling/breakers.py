"""DRY's sequence breakers: the token sequences in which a text can appear, found once per tokenizer and text.

A text may lie in one token, or begin in the end of a token and go on in the next ones. For every token that ends with
a beginning of the text, the rest of the text as tokens is that token's tail. llama.cpp's
get_overlapping_token_sequences (by way of koboldcpp) does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .params import SamplingParams
from .signature import bucket

MAX_BYTES = 40
MAX_TAIL = 20
MAX_KEPT = 64


@dataclass(frozen=True, slots=True)
class BreakerTable:
    """tails: distinct tails; the empty one means that the head alone is a breaker. pairs: (place of the tail, head)."""

    tails: tuple[tuple[int, ...], ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def widths(self) -> tuple[int, int, int]:
        """Numbers of pairs and tails and the longest tail, as powers of two or 0."""
        longest = max(map(len, self.tails), default=0)
        return bucket(len(self.pairs)), bucket(len(self.tails)), bucket(longest)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> BreakerTable:
        """From whole sequences, each a head and its tail."""
        # The empty tail stands first: single tokens are looked up as (0, token).
        tails = sorted({tuple(s[1:]) for s in sequences}, key=lambda tail: (len(tail), tail))
        if sequences and tails[0]:
            tails.insert(0, ())
        places = {tail: i for i, tail in enumerate(tails)}
        return cls(tuple(tails), tuple(sorted({(places[tuple(s[1:])], s[0]) for s in sequences})))


class BreakerFinder:
    """Breakers of one vocabulary.

    token_text: a token's text; bytes where a token is no whole number of characters. encode: the tokens of a text,
    without special tokens; without it, only tokens that contain a whole breaker count.
    """

    def __init__(
        self,
        n_vocab: int,
        token_text: Callable[[int], str | bytes],
        encode: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        self.n_vocab, self.token_text, self.encode = n_vocab, token_text, encode
        # Made when first needed: a large vocabulary takes a second.
        self.words: list[bytes] | None = None
        self.found: dict[bytes, list[tuple[int, ...]]] = {}
        self.tables: dict[tuple[str, ...], BreakerTable] = {}

    def table_of(self, params: SamplingParams) -> BreakerTable:
        """A request's breakers; none where it does not use DRY."""
        if params.mirostat or "dry" not in params.samplers or params.dry_multiplier == 0:
            return BreakerTable()
        return self.table(params.dry_sequence_breakers)

    def table(self, texts: Sequence[str]) -> BreakerTable:
        """All breakers of these texts; empty ones are passed over."""
        key = tuple(texts)
        if key not in self.tables:
            pieces = [_bytes(text)[:MAX_BYTES] for text in texts if text]
            _make_room(self.tables)
            self.tables[key] = BreakerTable.of([s for piece in pieces for s in self._sequences(piece)])
        return self.tables[key]

    def _sequences(self, text: bytes) -> list[tuple[int, ...]]:
        if text not in self.found:
            _make_room(self.found)
            self.found[text] = self._find(text)
        return self.found[text]

    def _find(self, text: bytes) -> list[tuple[int, ...]]:
        if self.words is None:
            self.words = [_bytes(self.token_text(token)) for token in range(self.n_vocab)]
        tails = {n: self._tail(text[n:]) for n in range(1, len(text))}
        sequences: list[tuple[int, ...]] = []
        for token, word in enumerate(self.words):
            if text in word:
                sequences.append((token,))
            elif text[0] in word:
                found = {tail for n, tail in tails.items() if tail and word.endswith(text[:n])}
                sequences += [(token, *tail) for tail in sorted(found)]
        return sequences

    def _tail(self, rest: bytes) -> tuple[int, ...]:
        if self.encode is None:
            return ()
        return tuple(self.encode(rest.decode("utf-8", "replace"))[:MAX_TAIL])


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def _make_room(kept: dict[Any, Any]) -> None:
    """Forgets what was asked for first; requests can bring any number of texts."""
    if len(kept) >= MAX_KEPT:
        del kept[next(iter(kept))]
