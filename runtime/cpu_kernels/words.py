"""What decoders are made of: bits of packed words as codes, eight vectors for 32 weights of 16 rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils

from ...quant.codebooks import E2M1_VALUES
from .instructions import emit_lookup
from .isa import Isa
from .language import I32, I64, INTS, LANES, const, current_isa, inline, ints, load, op, splat
from .vectors import constant, to_floats

Decoder = Callable[..., Any]
FOUR, EIGHT = types.UniTuple(ints, 4), types.UniTuple(ints, 8)

NIBBLES, CRUMBS, BITS, SIXES = 0x0F0F0F0F, 0x03030303, 0x01010101, 0x3F3F3F3F
# A vector of words; two and four of them; the words of 32 weights at 8 bits.
W = 64
W2, W4, W8 = 2 * W, 4 * W, 8 * W


def _biased(isa: Isa) -> int:
    """What codes of 8 bits are to be xor-ed with, to be what the processor multiplies."""
    return -0x7F7F7F80 if isa.unsigned else 0


def _table(values: tuple[int, ...]) -> Callable[[Isa], list[int]]:
    """16 bytes, four to a lane, as `lookup` and the processor want them."""

    def lanes(isa: Isa) -> list[int]:
        words = []
        for i in range(0, 16, 4):
            codes = bytes((value + (128 if isa.unsigned else 0)) & 255 for value in values[i : i + 4])
            words.append(int.from_bytes(codes, "little", signed=True))
        return words * (LANES // 4)

    return lanes


e2m1_table = constant(_table(tuple(E2M1_VALUES)))


# ---- said to LLVM: numba would take a second for them ----


def biased(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    """Signed bytes as the processor multiplies them: see FULL in records.py."""
    return b.xor(words, const(words.type, _biased(current_isa())))


def loaded(b: ir.IRBuilder, address: ir.Value, n: int) -> list[ir.Value]:
    """n vectors of words, one behind the other."""
    return [load(b, b.add(address, I64(W * i)), INTS) for i in range(n)]


def _nibbles(b: ir.IRBuilder, words: Sequence[ir.Value]) -> list[ir.Value]:
    low = [b.and_(word, const(INTS, NIBBLES)) for word in words]
    return low + [b.and_(b.lshr(word, const(INTS, 4)), const(INTS, NIBBLES)) for word in words]


def four_bits(b: ir.IRBuilder, bits: ir.Value, first: int = 0) -> ir.Value:
    """Four bits of each lane, from `first` on, as bytes 0 or 1."""
    # Times 1 + 2^7 + 2^14 + 2^21, bit i comes to lie at 8 i.
    kind = bits.type
    bits = b.and_(b.lshr(bits, const(kind, first)), const(kind, 15))
    return b.and_(b.mul(bits, const(kind, 0x00204081)), const(kind, BITS))


@op(EIGHT, types.intp)
def nibbles_by_half(b: ir.IRBuilder, q: ir.Value) -> ir.Value:
    """Codes of 32 weights in 4 words, of which two hold the first 16 weights: 8 in low nibbles, 8 in high ones."""
    words = loaded(b, q, 4)
    return cgutils.pack_array(b, _nibbles(b, words[:2]) + _nibbles(b, words[2:]))


@op(EIGHT, types.intp, types.int64, types.int64)
def field_of_words(b: ir.IRBuilder, q: ir.Value, shift: ir.Value, mask: ir.Value) -> ir.Value:
    """The bits `mask` << shift of each byte of 8 words."""
    shift, mask = (splat(b, b.trunc(value, I32)) for value in (shift, mask))
    return cgutils.pack_array(b, [b.and_(b.lshr(word, shift), mask) for word in loaded(b, q, 8)])


@op(EIGHT, types.intp)
def full_words(b: ir.IRBuilder, q: ir.Value) -> ir.Value:
    """32 codes of 8 signed bits."""
    return cgutils.pack_array(b, [biased(b, word) for word in loaded(b, q, 8)])


@op(EIGHT, ints, EIGHT)
def looked_up(b: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
    return cgutils.pack_array(b, [emit_lookup(b, table, code) for code in cgutils.unpack_tuple(b, codes, 8)])


# ---- numbers ----


@inline
def byte_of(words, i):
    """Byte i of each lane, as a number."""
    return to_floats((words >> (8 * i)) & 255)
