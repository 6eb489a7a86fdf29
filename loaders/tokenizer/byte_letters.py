"""GPT-2's byte alphabet: each of the 256 bytes as a letter that can be seen, so that BPE works on text."""

from __future__ import annotations


def _byte_letters() -> list[str]:
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = (b for b in range(256) if b not in visible)
    stand_in = {b: chr(256 + i) for i, b in enumerate(hidden)}
    return [stand_in.get(b, chr(b)) for b in range(256)]


LETTERS = _byte_letters()
BYTES = {letter: bytes([b]) for b, letter in enumerate(LETTERS)}
