"""Cuts a text at its special tokens before anything else looks at it."""

from __future__ import annotations

from collections.abc import Sequence

from .eog import HIDDEN, SPECIAL, Attr
from .vocab import Vocab

SPACE = " \t\n\v\f\r"


class SpecialTokens:
    """Finds the texts of control, unknown and user-defined tokens, the longest first.

    One token after another is searched in what the ones before left over, as llama.cpp does: a long token that
    starts later wins over a short one that starts earlier and overlaps it.
    """

    def __init__(self, vocab: Vocab) -> None:
        found = [(vocab.tokens[token], token) for token, attr in enumerate(vocab.attrs) if attr & SPECIAL]
        found.sort(key=lambda entry: -len(entry[0].encode("utf-8", "surrogateescape")))
        self._attrs = vocab.attrs
        # Some vocabularies have thousands: only those whose first letter the text has are looked for.
        self._by_letter: dict[str, list[tuple[int, str, int]]] = {}
        for rank, (text, token) in enumerate(found):
            self._by_letter.setdefault(text[0], []).append((rank, text, token))

    def split(self, text: str, parse_special: bool) -> list[str | int]:
        """Pieces of text (never empty) and ids, in order; without parse_special only user-defined tokens count."""
        fragments: list[str | int] = [text] if text else []
        candidates = (entry for letter in set(text) for entry in self._by_letter.get(letter, ()))
        for _, token_text, token in sorted(entry for entry in candidates if entry[1] in text):
            attr = self._attrs[token]
            if parse_special or not attr & HIDDEN:
                fragments = _split_at(fragments, token_text, token, attr)
        return fragments


def _split_at(fragments: Sequence[str | int], token_text: str, token: int, attr: int) -> list[str | int]:
    out: list[str | int] = []
    for fragment in fragments:
        if isinstance(fragment, int) or token_text not in fragment:
            out.append(fragment)
            continue
        parts = fragment.split(token_text)
        for i, part in enumerate(parts):
            if i > 0:
                out.append(token)
                part = part.lstrip(SPACE) if attr & Attr.RSTRIP else part
            if i < len(parts) - 1 and attr & Attr.LSTRIP:
                part = part.rstrip(SPACE)
            if part:
                out.append(part)
    return out
