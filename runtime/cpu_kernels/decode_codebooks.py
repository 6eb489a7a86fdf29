"""Decoders of formats whose codes stand for 4 or 8 weights: IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import torch
from numba import types
from numba.core import cgutils

from ...quant.codebooks import grid
from .instructions import emit_entries
from .language import INTS, const, inline, ints, op
from .records import FULL, RECORD
from .sinks import Sink
from .vectors import load_halves, load_words, low_half, table, to_floats
from .words import BITS, EIGHT, FOUR, W2, Decoder, W, biased, four_bits

# Where the entries of IQ1's table have the first four of their weights.
FIRST_FOUR = 0x18181818
SIGN_BITS = 0x80808080


def _grid_bytes(name: str) -> bytes:
    return bytes(grid(name, torch.device("cpu")).view(torch.uint8).numpy())


def _ternary_bytes() -> bytes:
    """IQ1's codebook, 4 bytes an entry: weights k and 4 + k, plus 1 and times 8, in bits 3-4 and 5-6 of byte k."""
    weights = grid("IQ1_S", torch.device("cpu")).view(torch.int8).view(-1, 2, 4) + 1
    return bytes((weights[:, 0] << 3 | weights[:, 1] << 5).contiguous().view(torch.uint8).numpy())


ternary_table = table(_ternary_bytes)
iq2_xxs_table = table(lambda: _grid_bytes("IQ2_XXS"))
iq2_xs_table = table(lambda: _grid_bytes("IQ2_XS"))
iq2_s_table = table(lambda: _grid_bytes("IQ2_S"))
iq3_xxs_table = table(lambda: _grid_bytes("IQ3_XXS"))
iq3_s_table = table(lambda: _grid_bytes("IQ3_S"))


def signed(b: ir.IRBuilder, words: ir.Value, bits: ir.Value, first: int) -> ir.Value:
    """Bytes from 1 to 127 with a minus for each of four bits that is set, as the processor multiplies them."""
    ones = four_bits(b, bits, first)
    mask = b.sub(b.shl(ones, const(INTS, 8)), ones)
    return biased(b, b.add(b.xor(words, mask), ones))


@op(EIGHT, types.intp, FOUR, ints)
def signed_eights(b: ir.IRBuilder, entries: ir.Value, indices: ir.Value, signs: ir.Value) -> ir.Value:
    """32 weights: four entries of 8, with 32 bits for their signs."""
    found = []
    for i, index in enumerate(cgutils.unpack_tuple(b, indices, 4)):
        for half, words in enumerate(emit_entries(b, entries, index, 8)):
            found.append(signed(b, words, signs, 8 * i + 4 * half))
    return cgutils.pack_array(b, found)


@op(EIGHT, types.intp, EIGHT, ints)
def signed_fours(b: ir.IRBuilder, entries: ir.Value, indices: ir.Value, signs: ir.Value) -> ir.Value:
    """32 weights: eight entries of 4, with 32 bits for their signs."""
    found = []
    for i, index in enumerate(cgutils.unpack_tuple(b, indices, 8)):
        (words,) = emit_entries(b, entries, index, 4)
        found.append(signed(b, words, signs, 4 * i))
    return cgutils.pack_array(b, found)


@op(FOUR, ints)
def bytes_of(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    """The four bytes of each lane."""
    return cgutils.pack_array(b, [b.and_(b.lshr(words, const(INTS, 8 * i)), const(INTS, 255)) for i in range(4)])


def more_bits(n: int, stride: int) -> Callable[..., Any]:
    """bytes_of with n bits of `tops` on top of each, from bit 0, stride, 2 stride, … on."""

    @op(FOUR, ints, ints)
    def codes(b: ir.IRBuilder, words: ir.Value, tops: ir.Value) -> ir.Value:
        found = []
        for i in range(4):
            low = b.and_(b.lshr(words, const(INTS, 8 * i)), const(INTS, 255))
            top = b.and_(b.lshr(tops, const(INTS, stride * i)), const(INTS, (1 << n) - 1))
            found.append(b.or_(low, b.shl(top, const(INTS, 8))))
        return cgutils.pack_array(b, found)

    return codes


one_more_bit, two_more_bits, three_more_bits = more_bits(1, 1), more_bits(2, 2), more_bits(3, 3)
three_bits_of_nibbles = more_bits(3, 4)


@inline
def even_signs(bits):
    """Four sign indices of 7 bits, a byte each: an eighth bit makes the number of signs even."""
    parity = bits ^ (bits >> 4)
    parity = parity ^ (parity >> 2)
    parity = parity ^ (parity >> 1)
    return bits | ((parity & BITS) << 7)


@inline
def spread_sevens(bits):
    """The low 28 bits of each lane as four bytes of 7 bits."""
    return (bits & 0x7F) | ((bits << 1) & 0x7F00) | ((bits << 2) & 0x7F0000) | ((bits << 3) & 0x7F000000)


@inline
def odd_scale(bits, mask):
    """2 s + 1 for the number s in the low bits."""
    return to_floats(((bits & mask) << 1) + 1)


def iq2_xxs(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d, q, entries = load_halves(tile) * 0.125, tile + 32, iq2_xxs_table()
        for _ in range(8):
            codes, rest = load_words(q), load_words(q + W)
            signs = even_signs(spread_sevens(rest))
            words = signed_eights(entries, bytes_of(codes), signs)
            state = group(state, at, to, words, d * odd_scale(rest >> 28, 15), FULL)
            q += W2
            at += RECORD
        return state

    return decode


def iq2_xs(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def decode(state, tile, at, to):
        d, q, entries = load_halves(tile) * 0.125, tile + 32, iq2_xs_table()
        for i in range(8):
            a, b = load_words(q), load_words(q + W)
            signs = ((a >> 9) & 0x7F) | ((a >> 17) & 0x7F00) | ((b << 7) & 0x7F0000) | ((b >> 1) & 0x7F000000)
            signs = even_signs(signs)
            codes = a & 511, (a >> 16) & 511, b & 511, (b >> 16) & 511
            words = signed_eights(entries, codes, signs)
            pair = load_words(tile + 1056 + W * (i >> 2)) >> (8 * (i & 3))
            scales = d * odd_scale(pair, 15), d * odd_scale(pair >> 4, 15)
            state = halves(state, at, to, words, scales, FULL)
            q += W2
            at += RECORD
        return state

    return decode


def iq2_s(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def decode(state, tile, at, to):
        d, q, entries = load_halves(tile) * 0.125, tile + 32, iq2_s_table()
        for i in range(8):
            place, shift = W * (i >> 2), 8 * (i & 3)
            # Of every code, 8 bits in q and 2 in `tops`.
            codes, tops, signs = load_words(q), load_words(tile + 1056 + place) >> shift, load_words(tile + 544 + W * i)
            words = signed_eights(entries, two_more_bits(codes, tops), signs)
            pair = load_words(tile + 1184 + place) >> shift
            scales = d * odd_scale(pair, 15), d * odd_scale(pair >> 4, 15)
            state = halves(state, at, to, words, scales, FULL)
            q += W
            at += RECORD
        return state

    return decode


def iq3_xxs(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d, q, entries = load_halves(tile) * 0.25, tile + 32, iq3_xxs_table()
        for i in range(8):
            a, b, rest = load_words(q), load_words(q + W), load_words(tile + 1056 + W * i)
            signs = even_signs(spread_sevens(rest))
            words = signed_fours(entries, bytes_of(a) + bytes_of(b), signs)
            state = group(state, at, to, words, d * odd_scale(rest >> 28, 15), FULL)
            q += W2
            at += RECORD
        return state

    return decode


def iq3_s(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d, q, scales, entries = load_halves(tile), tile + 32, load_words(tile + 1696), iq3_s_table()
        for i in range(8):
            a, b, signs = load_words(q), load_words(q + W), load_words(tile + 1184 + W * i)
            tops = load_words(tile + 1056 + W * (i >> 2)) >> (8 * (i & 3))
            codes = one_more_bit(a, tops) + one_more_bit(b, tops >> 4)
            words = signed_fours(entries, codes, signs)
            state = group(state, at, to, words, d * odd_scale(scales, 15), FULL)
            scales = scales >> 4
            q += W2
            at += RECORD
        return state

    return decode


@op(EIGHT, types.intp, FOUR, FOUR)
def eighths(b: ir.IRBuilder, entries: ir.Value, indices: ir.Value, minus: ir.Value) -> ir.Value:
    """32 weights of IQ1 in eighths; delta is one, added, or subtracted where bit 0 of `minus` is set."""
    found = []
    for index, bit in zip(cgutils.unpack_tuple(b, indices, 4), cgutils.unpack_tuple(b, minus, 4), strict=True):
        (both,) = emit_entries(b, entries, index, 4)
        # The table's weights are one too high, which is 8; 128 keeps bytes from borrowing.
        twice = b.shl(b.and_(bit, const(INTS, 1)), const(INTS, 1))
        change = b.sub(const(INTS, (128 - 8 + 1) * BITS), b.mul(twice, const(INTS, BITS)))
        for shift in (0, 2):
            words = b.add(b.and_(b.lshr(both, const(INTS, shift)), const(INTS, FIRST_FOUR)), change)
            found.append(biased(b, b.xor(words, const(INTS, SIGN_BITS))))
    return cgutils.pack_array(b, found)


def iq1_s(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d, entries = load_halves(tile) * 0.125, ternary_table()
        for i in range(8):
            codes, rest = load_words(tile + 32 + W * i), load_words(tile + 544 + W * (i >> 1)) >> (16 * (i & 1))
            minus = rest >> 15
            words = eighths(entries, three_more_bits(codes, rest), (minus, minus, minus, minus))
            state = group(state, at, to, words, d * odd_scale(rest >> 12, 7), FULL)
            at += RECORD
        return state

    return decode


def iq1_m(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def decode(state, tile, at, to):
        # d is in the top nibbles of the four shorts of scales.
        a, b, entries = load_words(tile + 768), load_words(tile + 768 + W), ternary_table()
        d = ((a >> 12) & 0xF) | ((a >> 24) & 0xF0) | ((b >> 4) & 0xF00) | ((b >> 16) & 0xF000)
        d = low_half(d) * 0.125
        for i in range(8):
            codes, rest = load_words(tile + W * i), load_words(tile + 512 + W * (i >> 1)) >> (16 * (i & 1))
            minus = rest >> 3, rest >> 7, rest >> 11, rest >> 15
            words = eighths(entries, three_bits_of_nibbles(codes, rest), minus)
            pair = load_words(tile + 768 + W * (i >> 2)) >> (8 * (i & 2) + 6 * (i & 1))
            scales = d * odd_scale(pair, 7), d * odd_scale(pair >> 3, 7)
            state = halves(state, at, to, words, scales, FULL)
            at += RECORD
        return state

    return decode
