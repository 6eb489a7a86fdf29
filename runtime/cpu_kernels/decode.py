"""One decoder per format: a tile of 16 rows' blocks (tiles.py) handed on to a sink (sinks.py).

A decoder is made for a sink: decoder(state, tile, at, to) -> state. The layout of the blocks is in quant/formats.py;
field f of a tile begins at 16 times its offset in the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir

from ...quant.codebooks import E2M1_VALUES, IQ4_VALUES
from . import decode_codebooks as codebooks
from . import decode_small as small
from .language import LANES, inline
from .records import FULL, RECORD
from .sinks import Sink
from .spans import Codes, Words
from .vectors import as_floats, load_bytes, load_halves, load_shorts, load_signed_bytes, load_words, to_floats
from .words import BITS, CRUMBS, NIBBLES, SIXES, W2, W4, W8, Decoder, W, byte_of, four_bits

# ---- blocks of 32 weights ----


def nibble(words: Words, word: int, group: int) -> ir.Value:
    """Of the first 16 of 32 weights in 4 words, their low nibbles; of the others, the high ones."""
    return words.field(words.load(0, word & 3), word & 4, 15 * BITS)


def five_bits(words: Words, word: int, group: int) -> ir.Value:
    """The same with a fifth bit: bit i of another word for weight i."""
    high = words.b.shl(four_bits(words.b, words.load(1, 0), 4 * word), words.value(4))
    return words.b.or_(nibble(words, word, group), high)


# The words of nibbles are loaded once for two words of weights.
BY_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def full_codes(n: int) -> Codes:
    """n groups of 8 signed bits."""
    return Codes(lambda words, word, group: words.full(words.load(0, 8 * group + word)), n, FULL, 128)


def iq4_codes(values: Sequence[int]) -> Codes:
    def emit(words: Words, word: int, group: int) -> ir.Value:
        return words.looked_up(values, nibble(words, word, group))

    return Codes(emit, 1, FULL, max(map(abs, values)), BY_NIBBLES)


def q4_0(sink: Sink) -> Decoder:
    span = sink.span(Codes(nibble, 1, 8, 15, BY_NIBBLES))

    @inline
    def decode(state, tile, at, to):
        return span(state, at, to, (tile + 32,), (load_halves(tile),))

    return decode


def q4_1(sink: Sink) -> Decoder:
    span, offset = sink.span(Codes(nibble, 1, 0, 15, BY_NIBBLES)), sink.offset

    @inline
    def decode(state, tile, at, to):
        state = span(state, at, to, (tile + 64,), (load_halves(tile),))
        return offset(state, at, to, load_halves(tile + 32) * -1.0)

    return decode


def q5_0(sink: Sink) -> Decoder:
    span = sink.span(Codes(five_bits, 1, 16, 31, BY_NIBBLES))

    @inline
    def decode(state, tile, at, to):
        return span(state, at, to, (tile + 96, tile + 32), (load_halves(tile),))

    return decode


def q5_1(sink: Sink) -> Decoder:
    span, offset = sink.span(Codes(five_bits, 1, 0, 31, BY_NIBBLES)), sink.offset

    @inline
    def decode(state, tile, at, to):
        state = span(state, at, to, (tile + 128, tile + 64), (load_halves(tile),))
        return offset(state, at, to, load_halves(tile + 32) * -1.0)

    return decode


def q8_0(sink: Sink) -> Decoder:
    span = sink.span(full_codes(1))

    @inline
    def decode(state, tile, at, to):
        return span(state, at, to, (tile + 32,), (load_halves(tile),))

    return decode


def iq4_nl(sink: Sink) -> Decoder:
    span = sink.span(iq4_codes(IQ4_VALUES))

    @inline
    def decode(state, tile, at, to):
        return span(state, at, to, (tile + 32,), (load_halves(tile),))

    return decode


def mxfp4(sink: Sink) -> Decoder:
    span = sink.span(iq4_codes(E2M1_VALUES))

    @inline
    def decode(state, tile, at, to):
        # 2^(e - 128) in two factors, neither of which is a denormal.
        e = load_bytes(tile)
        half = e >> 1
        scale = as_floats((half + 63) << 23) * as_floats((e - half + 63) << 23)
        return span(state, at, to, (tile + 16,), (scale,))

    return decode


# ---- blocks of 256 weights, whose groups share words ----


def crumb(words: Words, word: int, group: int) -> ir.Value:
    return words.field(words.load(0, word), 2 * group, 3 * BITS)


def q2_k(sink: Sink) -> Decoder:
    span, offsets = sink.span(Codes(crumb, 4, 0, 3)), sink.offsets

    @inline
    def scales(d, pair):
        """Of two times 16 weights: bytes, whose high nibbles are for the minima."""
        return d * to_floats(pair & 15), d * to_floats((pair >> 8) & 15)

    @inline
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile + 1280), load_halves(tile + 1312)
        q = tile + 256
        for _ in range(2):
            a, b = load_words(tile), load_words(tile + W)
            found = scales(d, a) + scales(d, a >> 16) + scales(d, b) + scales(d, b >> 16)
            state = span(state, at, to, (q,), found)
            a, b = a >> 4, b >> 4
            state = offsets(state, at, to, scales(dmin, a))
            state = offsets(state, at + RECORD, to, scales(dmin, a >> 16))
            state = offsets(state, at + 2 * RECORD, to, scales(dmin, b))
            state = offsets(state, at + 3 * RECORD, to, scales(dmin, b >> 16))
            tile, q, at = tile + W2, q + W8, at + 4 * RECORD
        return state

    return decode


def q3_k(sink: Sink) -> Decoder:
    def codes(first: int) -> Codes:
        def emit(words: Words, word: int, group: int) -> ir.Value:
            high = words.field(words.load(1, word), first + group, BITS, up=2)
            return words.b.or_(crumb(words, word, group), high)

        # Half of a tile's 27 lines.
        return Codes(emit, 4, 4, 7, n_lines=14)

    spans = sink.span(codes(0)), sink.span(codes(4))
    first_span, second_span = spans

    @inline
    def scales(d, pair):
        return d * to_floats((pair & 255) - 32), d * to_floats(((pair >> 8) & 255) - 32)

    @inline
    def all_scales(d, tile, n):
        """Scale j: a nibble of byte j % 8, and on top two bits of byte 8 + j % 4."""
        tops = load_words(tile + 1536 + W2) >> (4 * n)
        a = ((load_words(tile + 1536) >> (4 * n)) & NIBBLES) | ((tops & CRUMBS) << 4)
        b = ((load_words(tile + 1536 + W) >> (4 * n)) & NIBBLES) | (((tops >> 2) & CRUMBS) << 4)
        return scales(d, a) + scales(d, a >> 16) + scales(d, b) + scales(d, b >> 16)

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile + 1728)
        state = first_span(state, at, to, (tile + 512, tile, tile), all_scales(d, tile, 0))
        return second_span(state, at + 4 * RECORD, to, (tile + 512 + W8, tile, tile + 896), all_scales(d, tile, 1))

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


def nibble_of_two(words: Words, word: int, group: int) -> ir.Value:
    return words.field(words.load(0, word), 4 * group, 15 * BITS)


def q4_k(sink: Sink) -> Decoder:
    span, offset = sink.span(Codes(nibble_of_two, 2, 0, 15)), sink.offset

    @inline
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile), load_halves(tile + 32)
        scales, more_scales, minima, more_minima = six_bit_scales(tile + 64)
        q = tile + 256
        for i in range(4):
            if i == 2:
                scales, minima = more_scales, more_minima
            state = span(state, at, to, (q,), (d * byte_of(scales, 0), d * byte_of(scales, 1)))
            state = offset(state, at, to, dmin * byte_of(minima, 0))
            state = offset(state, at + RECORD, to, dmin * byte_of(minima, 1))
            scales, minima = scales >> 16, minima >> 16
            q += W8
            at += 2 * RECORD
        return state

    return decode


def q5_k(sink: Sink) -> Decoder:
    offset = sink.offset

    def span_of(pair: int) -> Any:
        def emit(words: Words, word: int, group: int) -> ir.Value:
            high = words.field(words.load(1, word), 2 * pair + group, BITS, up=4)
            return words.b.or_(nibble_of_two(words, word, group), high)

        # A quarter of a tile's 44 lines.
        return sink.span(Codes(emit, 2, 0, 31, n_lines=11))

    first, second, third, fourth = (span_of(pair) for pair in range(4))

    @inline
    def offset_pair(state, at, to, dmin, minima):
        state = offset(state, at, to, dmin * byte_of(minima, 0))
        return offset(state, at + RECORD, to, dmin * byte_of(minima, 1))

    @inline
    def decode(state, tile, at, to):
        d, dmin = load_halves(tile), load_halves(tile + 32)
        a, b, c, e = six_bit_scales(tile + 64)
        high, q = tile + 256, tile + 256 + W8
        state = first(state, at, to, (q, high, tile), (d * byte_of(a, 0), d * byte_of(a, 1)))
        state = offset_pair(state, at, to, dmin, c)
        at, q = at + 2 * RECORD, q + W8
        state = second(state, at, to, (q, high, tile + 704), (d * byte_of(a, 2), d * byte_of(a, 3)))
        state = offset_pair(state, at, to, dmin, c >> 16)
        at, q = at + 2 * RECORD, q + W8
        state = third(state, at, to, (q, high, tile + 1408), (d * byte_of(b, 0), d * byte_of(b, 1)))
        state = offset_pair(state, at, to, dmin, e)
        at, q = at + 2 * RECORD, q + W8
        state = fourth(state, at, to, (q, high, tile + 2112), (d * byte_of(b, 2), d * byte_of(b, 3)))
        return offset_pair(state, at, to, dmin, e >> 16)

    return decode


def q6_k(sink: Sink) -> Decoder:
    def emit(words: Words, word: int, group: int) -> ir.Value:
        low = words.field(words.load(0, 8 * (group & 1) + word), 4 * (group >> 1), 15 * BITS)
        return words.b.or_(low, words.field(words.load(1, word), 2 * group, 3 * BITS, up=4))

    span = sink.span(Codes(emit, 4, 32, 63, apart=2, n_lines=24))

    @inline
    def two(d, scales):
        return d * to_floats(load_signed_bytes(scales)), d * to_floats(load_signed_bytes(scales + LANES))

    @inline
    def decode(state, tile, at, to):
        d = load_halves(tile + 3328)
        low, high, scales, lines = tile, tile + 2048, tile + 3072, tile
        for _ in range(2):
            first = two(d, scales) + two(d, scales + 2 * LANES)
            last = two(d, scales + 4 * LANES) + two(d, scales + 6 * LANES)
            state = span(state, at, to, (low, high, lines), first + last)
            low, high, scales, at = low + 2 * W8, high + W8, scales + 8 * LANES, at + 4 * RECORD
            lines += 3 * W8
        return state

    return decode


def iq4_xs(sink: Sink) -> Decoder:
    span = sink.span(iq4_codes(IQ4_VALUES))

    @inline
    def decode(state, tile, at, to):
        d, tops, lows = load_halves(tile), load_shorts(tile + 32), load_words(tile + 64)
        q = tile + 128
        for _ in range(8):
            scale = d * to_floats(((lows & 15) | ((tops & 3) << 4)) - 32)
            state = span(state, at, to, (q,), (scale,))
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

# Formats that are multiplied while they are decoded, and the fields of them that are words of codes.
SPANNED = frozenset(name for name, make in DECODERS.items() if make.__module__ == __name__)
WORD_FIELDS = ("qs", "ql", "qh", "hmask")
