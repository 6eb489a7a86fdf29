"""One decoder per format: a tile of 16 rows' blocks (tiles.py) handed on to a sink (sinks.py).

A decoder is made for a sink: decoder(state, tile, at, to) -> state. The layout of the blocks is in quant/formats.py;
field f of a tile begins at 16 times its offset in the block.
"""

from __future__ import annotations

from collections.abc import Callable

from . import decode_codebooks as codebooks
from . import decode_small as small
from .language import LANES, inline
from .sinks import FULL, RECORD, Sink
from .vectors import as_floats, load_bytes, load_halves, load_shorts, load_signed_bytes, load_words, to_floats
from .words import (
    BITS,
    CRUMBS,
    NIBBLES,
    SIXES,
    W2,
    W4,
    W8,
    Decoder,
    W,
    byte_of,
    e2m1_table,
    field_of_words,
    full_words,
    iq4_table,
    looked_up,
    low_nibbles,
    spread_bits,
    with_high_bits,
)


def q4_0(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        return group(state, at, to, low_nibbles(tile + 32), load_halves(tile), 8)

    return decode


def q4_1(sink: Sink) -> Decoder:
    group, offset = sink.group, sink.offset

    @inline
    def decode(state, tile, at, to):
        state = group(state, at, to, low_nibbles(tile + 64), load_halves(tile), 0)
        return offset(state, at, to, load_halves(tile + 32) * -1.0)

    return decode


def q5_0(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        codes = with_high_bits(low_nibbles(tile + 96), spread_bits(load_words(tile + 32)), 4)
        return group(state, at, to, codes, load_halves(tile), 16)

    return decode


def q5_1(sink: Sink) -> Decoder:
    group, offset = sink.group, sink.offset

    @inline
    def decode(state, tile, at, to):
        codes = with_high_bits(low_nibbles(tile + 128), spread_bits(load_words(tile + 64)), 4)
        state = group(state, at, to, codes, load_halves(tile), 0)
        return offset(state, at, to, load_halves(tile + 32) * -1.0)

    return decode


def q8_0(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        return group(state, at, to, full_words(tile + 32), load_halves(tile), FULL)

    return decode


def iq4_nl(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        return group(state, at, to, looked_up(iq4_table(), low_nibbles(tile + 32)), load_halves(tile), FULL)

    return decode


def mxfp4(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        # 2^(e - 128) in two factors, neither of which is a denormal.
        e = load_bytes(tile)
        half = e >> 1
        scale = as_floats((half + 63) << 23) * as_floats((e - half + 63) << 23)
        return group(state, at, to, looked_up(e2m1_table(), low_nibbles(tile + 16)), scale, FULL)

    return decode


# Shifts by numbers that are known while compiling take half as long: groups that differ in them are written out.


def q2_k(sink: Sink) -> Decoder:
    halves, offsets = sink.halves, sink.offsets

    @inline
    def group(state, at, to, d, dmin, pair, q, shift):
        """Scales of 16 weights are bytes: two to a group of 32, four to a word."""
        scales = d * to_floats(pair & 15), d * to_floats((pair >> 8) & 15)
        state = halves(state, at, to, field_of_words(q, shift, CRUMBS), scales, 0)
        return offsets(state, at, to, (dmin * to_floats((pair >> 4) & 15), dmin * to_floats((pair >> 12) & 15)))

    @inline
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile + 1280), load_halves(tile + 1312)
        q = tile + 256
        for _ in range(2):
            first, second = load_words(tile), load_words(tile + W)
            state = group(state, at, to, d, dmin, first, q, 0)
            state = group(state, at + RECORD, to, d, dmin, first >> 16, q, 2)
            state = group(state, at + 2 * RECORD, to, d, dmin, second, q, 4)
            state = group(state, at + 3 * RECORD, to, d, dmin, second >> 16, q, 6)
            tile, q, at = tile + W2, q + W8, at + 4 * RECORD
        return state

    return decode


def q3_k(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def group(state, at, to, d, pair, q, shift, mask, bit):
        scales = d * to_floats((pair & 255) - 32), d * to_floats(((pair >> 8) & 255) - 32)
        codes = with_high_bits(field_of_words(q, shift, CRUMBS), field_of_words(mask, bit, BITS), 2)
        return halves(state, at, to, codes, scales, 4)

    @inline
    def half(state, at, to, d, tile, n):
        """Scale j: a nibble of byte j % 8, and on top two bits of byte 8 + j % 4."""
        tops, q = load_words(tile + 1536 + W2) >> (4 * n), tile + 512 + W8 * n
        first = ((load_words(tile + 1536) >> (4 * n)) & NIBBLES) | ((tops & CRUMBS) << 4)
        second = ((load_words(tile + 1536 + W) >> (4 * n)) & NIBBLES) | (((tops >> 2) & CRUMBS) << 4)
        state = group(state, at, to, d, first, q, 0, tile, 4 * n)
        state = group(state, at + RECORD, to, d, first >> 16, q, 2, tile, 4 * n + 1)
        state = group(state, at + 2 * RECORD, to, d, second, q, 4, tile, 4 * n + 2)
        return group(state, at + 3 * RECORD, to, d, second >> 16, q, 6, tile, 4 * n + 3)

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile + 1728)
        state = half(state, at, to, d, tile, 0)
        return half(state, at + 4 * RECORD, to, d, tile, 1)

    return decode


@inline
def six_bit_scales(tile):
    """Eight scales and eight minima of Q4_K and Q5_K: words of scales 0-3, 4-7, minima 0-3, 4-7."""
    a, b, c = load_words(tile), load_words(tile + W), load_words(tile + W2)
    return (
        a & SIXES,
        (c & NIBBLES) | ((a >> 2) & 0x30303030),
        b & SIXES,
        ((c >> 4) & NIBBLES) | ((b >> 2) & 0x30303030),
    )


def q4_k(sink: Sink) -> Decoder:
    group, offset = sink.group, sink.offset

    @inline
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile), load_halves(tile + 32)
        scales, more_scales, minima, more_minima = six_bit_scales(tile + 64)
        q = tile + 256
        for i in range(4):
            if i == 2:
                scales, minima = more_scales, more_minima
            state = group(state, at, to, field_of_words(q, 0, NIBBLES), d * byte_of(scales, 0), 0)
            state = offset(state, at, to, dmin * byte_of(minima, 0))
            state = group(state, at + RECORD, to, field_of_words(q, 4, NIBBLES), d * byte_of(scales, 1), 0)
            state = offset(state, at + RECORD, to, dmin * byte_of(minima, 1))
            scales, minima = scales >> 16, minima >> 16
            q += W8
            at += 2 * RECORD
        return state

    return decode


def q5_k(sink: Sink) -> Decoder:
    group, offset = sink.group, sink.offset

    @inline
    def pair(state, at, to, d, dmin, scales, minima, q, high, n):
        codes = with_high_bits(field_of_words(q, 0, NIBBLES), field_of_words(high, 2 * n, BITS), 4)
        state = group(state, at, to, codes, d * byte_of(scales, 0), 0)
        state = offset(state, at, to, dmin * byte_of(minima, 0))
        codes = with_high_bits(field_of_words(q, 4, NIBBLES), field_of_words(high, 2 * n + 1, BITS), 4)
        state = group(state, at + RECORD, to, codes, d * byte_of(scales, 1), 0)
        return offset(state, at + RECORD, to, dmin * byte_of(minima, 1))

    @inline
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile), load_halves(tile + 32)
        scales, more_scales, minima, more_minima = six_bit_scales(tile + 64)
        high, q = tile + 256, tile + 256 + W8
        state = pair(state, at, to, d, dmin, scales, minima, q, high, 0)
        state = pair(state, at + 2 * RECORD, to, d, dmin, scales >> 16, minima >> 16, q + W8, high, 1)
        state = pair(state, at + 4 * RECORD, to, d, dmin, more_scales, more_minima, q + 2 * W8, high, 2)
        return pair(state, at + 6 * RECORD, to, d, dmin, more_scales >> 16, more_minima >> 16, q + 3 * W8, high, 3)

    return decode


def q6_k(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def group(state, at, to, d, scales, low, low_shift, high, high_shift):
        pair = d * to_floats(load_signed_bytes(scales)), d * to_floats(load_signed_bytes(scales + LANES))
        codes = with_high_bits(field_of_words(low, low_shift, NIBBLES), field_of_words(high, high_shift, CRUMBS), 4)
        return halves(state, at, to, codes, pair, 32)

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile + 3328)
        low, high, scales = tile, tile + 2048, tile + 3072
        for _ in range(2):
            state = group(state, at, to, d, scales, low, 0, high, 0)
            state = group(state, at + RECORD, to, d, scales + 2 * LANES, low + W8, 0, high, 2)
            state = group(state, at + 2 * RECORD, to, d, scales + 4 * LANES, low, 4, high, 4)
            state = group(state, at + 3 * RECORD, to, d, scales + 6 * LANES, low + W8, 4, high, 6)
            low, high, scales, at = low + 2 * W8, high + W8, scales + 8 * LANES, at + 4 * RECORD
        return state

    return decode


def iq4_xs(sink: Sink) -> Decoder:
    group = sink.group

    @inline
    def decode(state, tile, at, to):
        d, tops, lows = load_halves(tile), load_shorts(tile + 32), load_words(tile + 64)
        q = tile + 128
        for _ in range(8):
            scale = d * to_floats(((lows & 15) | ((tops & 3) << 4)) - 32)
            state = group(state, at, to, looked_up(iq4_table(), low_nibbles(q)), scale, FULL)
            lows, tops = lows >> 4, tops >> 2
            q += W4
            at += RECORD
        return state

    return decode


DECODERS: dict[str, Callable[[Sink], Decoder]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "IQ4_NL": iq4_nl,
    "MXFP4": mxfp4,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_XS": iq4_xs,
    "IQ1_S": codebooks.iq1_s,
    "IQ1_M": codebooks.iq1_m,
    "IQ2_XXS": codebooks.iq2_xxs,
    "IQ2_XS": codebooks.iq2_xs,
    "IQ2_S": codebooks.iq2_s,
    "IQ3_XXS": codebooks.iq3_xxs,
    "IQ3_S": codebooks.iq3_s,
    "Q8_1": small.q8_1,
    "Q8_K": small.q8_k,
    "NVFP4": small.nvfp4,
    "Q1_0": small.q1_0,
    "Q2_0": small.q2_0,
    "TQ1_0": small.tq1_0,
    "TQ2_0": small.tq2_0,
}
