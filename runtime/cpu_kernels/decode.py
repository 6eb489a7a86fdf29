"""One decoder per format: a tile of 16 rows' blocks (tiles.py) handed on to a sink (sinks.py).

A decoder is made for a sink: decoder(state, tile, at, to) -> state. The layout of the blocks is in quant/formats.py;
field f of a tile begins at 16 times its offset in the block.
"""

from __future__ import annotations

from collections.abc import Callable

from . import decode_codebooks as codebooks
from . import decode_small as small
from .language import inline
from .sinks import FULL, RECORD, Sink
from .vectors import as_floats, load_bytes, load_halves, load_shorts, load_words, to_floats
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
    signed_byte_of,
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


def q2_k(sink: Sink) -> Decoder:
    halves, offsets = sink.halves, sink.offsets

    @inline
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile + 1280), load_halves(tile + 1312)
        for i in range(8):
            # Scales of 16 weights are bytes: two to a group of 32, four to a word.
            pair = load_words(tile + W * (i >> 1)) >> (16 * (i & 1))
            scales = d * to_floats(pair & 15), d * to_floats((pair >> 8) & 15)
            codes = field_of_words(tile + 256 + W8 * (i >> 2), 2 * (i & 3), CRUMBS)
            state = halves(state, at, to, codes, scales, 0)
            state = offsets(state, at, to, (dmin * to_floats((pair >> 4) & 15), dmin * to_floats((pair >> 12) & 15)))
            at += RECORD
        return state

    return decode


def q3_k(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile + 1728)
        tops = load_words(tile + 1536 + W2)
        for i in range(8):
            # Scale j: a nibble of byte j % 8, and on top two bits of byte 8 + j % 4.
            nibbles = load_words(tile + 1536 + W * ((i >> 1) & 1)) >> (4 * (i >> 2))
            words = (nibbles & NIBBLES) | (((tops >> (2 * (i >> 1))) & CRUMBS) << 4)
            pair = words >> (16 * (i & 1))
            scales = d * to_floats((pair & 255) - 32), d * to_floats(((pair >> 8) & 255) - 32)
            low = field_of_words(tile + 512 + W8 * (i >> 2), 2 * (i & 3), CRUMBS)
            codes = with_high_bits(low, field_of_words(tile, i, BITS), 2)
            state = halves(state, at, to, codes, scales, 4)
            at += RECORD
        return state

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
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile), load_halves(tile + 32)
        scales, more_scales, minima, more_minima = six_bit_scales(tile + 64)
        high, q = tile + 256, tile + 256 + W8
        for i in range(4):
            if i == 2:
                scales, minima = more_scales, more_minima
            codes = with_high_bits(field_of_words(q, 0, NIBBLES), field_of_words(high, 2 * i, BITS), 4)
            state = group(state, at, to, codes, d * byte_of(scales, 0), 0)
            state = offset(state, at, to, dmin * byte_of(minima, 0))
            codes = with_high_bits(field_of_words(q, 4, NIBBLES), field_of_words(high, 2 * i + 1, BITS), 4)
            state = group(state, at + RECORD, to, codes, d * byte_of(scales, 1), 0)
            state = offset(state, at + RECORD, to, dmin * byte_of(minima, 1))
            scales, minima = scales >> 16, minima >> 16
            q += W8
            at += 2 * RECORD
        return state

    return decode


def q6_k(sink: Sink) -> Decoder:
    halves = sink.halves

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile + 3328)
        low, high, scales = tile, tile + 2048, tile + 3072
        for _ in range(2):
            for j in range(4):
                words = load_words(scales + W * (j >> 1)) >> (16 * (j & 1))
                pair = d * signed_byte_of(words, 0), d * signed_byte_of(words, 1)
                codes = with_high_bits(
                    field_of_words(low + W8 * (j & 1), 4 * (j >> 1), NIBBLES), field_of_words(high, 2 * j, CRUMBS), 4
                )
                state = halves(state, at, to, codes, pair, 32)
                at += RECORD
            low, high, scales = low + 2 * W8, high + W8, scales + W2
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
