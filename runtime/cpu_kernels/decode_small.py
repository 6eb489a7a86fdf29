"""Decoders of formats with few values for a weight: NVFP4 Q1_0 Q2_0 TQ1_0 TQ2_0; and of Q8_1 and Q8_K."""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils

from .language import I32, INTS, const, inline, ints, op, splat
from .records import FULL, RECORD
from .sinks import Sink
from .vectors import as_floats, load_floats, load_halves, load_words, to_floats
from .words import (
    CRUMBS,
    EIGHT,
    FOUR,
    W2,
    W4,
    W8,
    Decoder,
    W,
    e2m1_table,
    field_of_words,
    four_bits,
    full_words,
    loaded,
    looked_up,
    nibbles_by_half,
)

# The bytes 0 and 2 of a word, which leaves room for products; a base-3 digit on top of each, and of the bytes 1 and 3.
EVEN, DIGITS, ODD_DIGITS = 0x00FF00FF, 0x00030003, 0x03000300


def q8_1(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        return group(state, at, to, full_words(tile + 64), load_halves(tile), FULL)

    return decode


def q8_k(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d, q = load_floats(tile), tile + W
        for _ in range(8):
            state = group(state, at, to, full_words(q), d, FULL)
            q += W8
            at += RECORD
        return state

    return decode


@inline
def half_ue4m3(bits):
    """Half the number in the low 7 bits of each lane, UE4M3 with a bias of 7; 0x7F means 0."""
    bits = bits & 0x7F
    exponent = bits >> 3
    normal = (exponent + 15) >> 4
    mantissa = ((bits & 7) | (normal << 3)) & (((bits + 1) >> 7) - 1)
    # Mantissa * 2^(exponent - 11); that of a subnormal number is 1.
    return to_floats(mantissa) * as_floats((exponent + 117 - normal) << 23)


def nvfp4(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def decode(state, tile, at, to):
        d, q = load_words(tile), tile + W
        for _ in range(2):
            codes = looked_up(e2m1_table(), nibbles_by_half(q))
            state = halves(state, at, to, codes, (half_ue4m3(d), half_ue4m3(d >> 8)), FULL)
            d = d >> 16
            q += W4
            at += RECORD
        return state

    return decode


@op(EIGHT, ints)
def twice_the_bits(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """The 32 bits of each lane as 8 words of four bytes 0 or 2, in order."""
    return cgutils.pack_array(b, [b.shl(four_bits(b, bits, 4 * i), const(INTS, 1)) for i in range(8)])


def q1_0(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile)
        for i in range(4):
            state = group(state, at, to, twice_the_bits(load_words(tile + 32 + W * i)), d, 1)
            at += RECORD
        return state

    return decode


@op(EIGHT, types.intp)
def crumbs_in_order(b: ir.IRBuilder, q: ir.Value) -> ir.Value:
    """The 16 codes of 2 bits in each lane of two words, as bytes in the same order."""
    found = []
    for word in loaded(b, q, 2):
        for byte in range(4):
            bits = b.and_(b.lshr(word, const(INTS, 8 * byte)), const(INTS, 0xFF))
            bits = b.and_(b.or_(bits, b.shl(bits, const(INTS, 12))), const(INTS, 0x000F000F))
            found.append(b.and_(b.or_(bits, b.shl(bits, const(INTS, 6))), const(INTS, CRUMBS)))
    return cgutils.pack_array(b, found)


def q2_0(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile)
        state = group(state, at, to, crumbs_in_order(tile + 32), d, 1)
        return group(state, at + RECORD, to, crumbs_in_order(tile + 32 + W2), d, 1)

    return decode


def tq2_0(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile + 1024)
        for i in range(8):
            state = group(state, at, to, field_of_words(tile + W8 * (i >> 2), 2 * (i & 3), CRUMBS), d, 1)
            at += RECORD
        return state

    return decode


def digit(b: ir.IRBuilder, word: ir.Value, power: ir.Value) -> ir.Value:
    """Of each byte, a fraction in base 3, the digit on top after multiplication by a power of 3; products wrap."""
    triples = []
    for bytes_ in (word, b.lshr(word, const(INTS, 8))):
        rest = b.and_(b.mul(b.and_(bytes_, const(INTS, EVEN)), power), const(INTS, EVEN))
        triples.append(b.add(rest, b.shl(rest, const(INTS, 1))))
    even = b.and_(b.lshr(triples[0], const(INTS, 8)), const(INTS, DIGITS))
    return b.or_(even, b.and_(triples[1], const(INTS, ODD_DIGITS)))


@op(FOUR, types.intp, types.int64)
def four_digits(b: ir.IRBuilder, q: ir.Value, power: ir.Value) -> ir.Value:
    """A digit of each byte of four words."""
    power = splat(b, b.trunc(power, I32))
    return cgutils.pack_array(b, [digit(b, word, power) for word in loaded(b, q, 4)])


@op(FOUR, ints)
def first_digits(b: ir.IRBuilder, word: ir.Value) -> ir.Value:
    """The first four digits of each byte of a word."""
    return cgutils.pack_array(b, [digit(b, word, const(INTS, 3**n)) for n in range(4)])


def tq1_0(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d, power = load_halves(tile + 832), 1
        for _ in range(5):
            state = group(state, at, to, four_digits(tile, power) + four_digits(tile + W4, power), d, 1)
            power *= 3
            at += RECORD
        q, power = tile + W8, 1
        for _ in range(2):
            state = group(state, at, to, four_digits(q, power) + four_digits(q, 3 * power), d, 1)
            power *= 9
            at += RECORD
        return group(state, at, to, four_digits(q, power) + first_digits(load_words(q + W4)), d, 1)

    return decode
