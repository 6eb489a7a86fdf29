"""Tokens as bytes, and the rules by which their concatenation becomes text."""

from __future__ import annotations

import re

from ..quote import quoted
from .byte_letters import BYTES
from .eog import BYTE, HIDDEN, NORMAL, SPECIAL
from .vocab import Vocab

MAX_REPEATED = 256
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """The bytes of each token, made when first asked for."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._known: dict[int, bytes] = {}
        self._byte_letters = vocab.rules.kind == "bpe" and not vocab.rules.escape_spaces
        for token, attr in enumerate(vocab.attrs):
            if attr & BYTE and not BYTE_TOKEN.fullmatch(vocab.tokens[token]):
                raise ValueError(
                    f"token {token} is a byte token, so its text should be <0x00> to <0xFF>, "
                    f"found {quoted(vocab.tokens[token])}"
                )

    def __call__(self, token: int, special: bool) -> bytes:
        """The bytes of one token; control and unknown tokens are empty unless `special`."""
        piece = self._known.get(token)
        if piece is None:
            self._vocab.check(token)
            piece = self._known[token] = self._make(token)
        return b"" if not special and self._vocab.attrs[token] & HIDDEN else piece

    def _make(self, token: int) -> bytes:
        text, attr = self._vocab.tokens[token], self._vocab.attrs[token]
        if attr & SPECIAL:
            return text.encode("utf-8", "surrogateescape")
        if attr & NORMAL:
            if self._byte_letters:
                return b"".join(BYTES.get(letter) or _foreign(letter, text) for letter in text)
            return text.replace("▁", " ").encode("utf-8", "surrogateescape")
        match = BYTE_TOKEN.fullmatch(text) if attr & BYTE else None
        return bytes([int(match[1], 16)]) if match else b""


def _foreign(letter: str, text: str) -> bytes:
    """llama.cpp's mark for a letter that stands for no byte; the token is in it unless it has many such letters."""
    code = letter.encode("utf-8", "surrogateescape").hex()
    text = text if len(text) <= MAX_REPEATED else ""
    return f"[UNK_BYTE_0x{code}{text}]".encode("utf-8", "surrogateescape")


def clean_spaces(text: bytes) -> bytes:
    """Takes out the spaces before punctuation, around a lone apostrophe and in 's 'm 're 've."""
    text = re.sub(rb" (?=[?!.,])", b"", text)
    text = text.replace(b" ' ", b"'")
    return re.sub(rb" (?='(?:[sm]|re|ve))", b"", text)


def settled(text: bytes) -> int:
    """How much of `text` can be cleaned now, whatever follows: all but what may begin one of clean_spaces' matches."""
    end = len(text) - 1 if re.search(rb"' ?[rv]\Z", text[-3:]) else len(text)
    return len(text[:end].rstrip(b" '"))
