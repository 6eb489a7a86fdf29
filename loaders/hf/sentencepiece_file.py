"""Reads SentencePiece's tokenizer.model, a protocol buffer, without the library.

Fields of sentencepiece_model.proto: ModelProto has the pieces (1) and the normalizer (3); a piece has its text (1),
score (2) and type (3); the normalizer says whether a space is put before the text (3). Wire format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

MAX_BYTES = 64 * 2**20
# Of all messages together, each a few microseconds and at most 200 bytes: four times what the largest models have.
MAX_FIELDS = 2**22
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class TokenType(IntEnum):
    """What a token is; SentencePiece and GGUF files have the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    type: TokenType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """pieces: in order of their ids. add_dummy_prefix: whether a space is put before the text."""

    pieces: list[Piece]
    add_dummy_prefix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """OSError when the file cannot be read, ValueError when it is something else."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_BYTES}")
    pieces, add_dummy_prefix = [], True
    try:
        reader = _Reader()
        for number, value in reader.fields(memoryview(path.read_bytes())):
            if number == 1:
                pieces.append(reader.piece(_bytes(value)))
            elif number == 3:
                add_dummy_prefix = all(v != 0 for n, v in reader.fields(_bytes(value)) if n == 3)
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path}: not a SentencePiece model: {error}") from None
    if not pieces:
        raise ValueError(f"{path}: not a SentencePiece model: it has no pieces")
    return SentencePieceModel(pieces, add_dummy_prefix)


class _Reader:
    """Counts the fields that it reads."""

    def __init__(self) -> None:
        self.n_fields = 0

    def piece(self, raw: memoryview) -> Piece:
        text, score, kind = "", 0.0, TokenType.NORMAL
        for number, value in self.fields(raw):
            if number == 1:
                text = str(_bytes(value), "utf-8")
            elif number == 2:
                (score,) = struct.unpack("<f", _bytes(value))
            elif number == 3 and isinstance(value, int):
                kind = TokenType(value)
        return Piece(text, score, kind)

    def fields(self, raw: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """The (number, value) pairs of a message: varints as int, everything else as its bytes."""
        pos = 0
        while pos < len(raw):
            self.n_fields += 1
            if self.n_fields > MAX_FIELDS:
                raise ValueError(f"more than {MAX_FIELDS} fields")
            tag, pos = _varint(raw, pos)
            kind = tag & 7
            if kind == VARINT:
                value, pos = _varint(raw, pos)
                yield tag >> 3, value
                continue
            if kind == BYTES:
                n, pos = _varint(raw, pos)
            elif kind in (FIXED32, FIXED64):
                n = 4 if kind == FIXED32 else 8
            else:
                raise ValueError(f"wire type {kind} at byte {pos}")
            if n > len(raw) - pos:
                raise ValueError(f"a field of {n} bytes at byte {pos}, but {len(raw) - pos} are left")
            yield tag >> 3, raw[pos : pos + n]
            pos += n


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes should be")
    return value


def _varint(raw: memoryview, pos: int) -> tuple[int, int]:
    """A number in groups of 7 bits, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if pos >= len(raw):
            raise ValueError("it ends inside a number")
        byte = raw[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
    raise ValueError(f"a number of more than 10 bytes at byte {pos}")
