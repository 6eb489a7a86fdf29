"""One decoder per quantised format: the only place that knows bit layouts (packing.py says how units are stored).

    decoder(w, base, u, lut, j, ISA) -> low, high, scales, offsets

decodes weights 32 j … 32 j + 31 of a unit per lane. low and high, [L, 4] int32, hold 16 weights each as signed bytes,
in order; a weight is byte * scale + offset. scales has one float32 [L] for the 32 weights or one for each half;
offsets has none, one, or one for each half. The decoders of F32, F16 and BF16 return no scales: low and high are the
weights themselves, [L, 16] float32, which only the exact route takes.

w: the packed matrix (int32 pointer, 16-byte aligned). base: its units. u [L]: the lanes' units. lut: the tables of
codebooks.py. j: 0..7, a compile-time constant, so that every shift below is one too.
"""

import triton
import triton.language as tl

from ..quant import formats
from . import codebooks
from .words import (
    float16_at,
    half_float,
    lookup16,
    pair,
    pick,
    shifted,
    signed_byte,
    vector,
    word,
)

# Masks with the top bit set, as the int32 that they are.
HIGH_NIBBLES: tl.constexpr = tl.constexpr(-0x0F0F0F10)  # 0xF0F0F0F0
TOP_CRUMBS: tl.constexpr = tl.constexpr(-0x3F3F3F40)  # 0xC0C0C0C0
TOP_BITS: tl.constexpr = tl.constexpr(-0x7F7F7F80)  # 0x80808080


@triton.jit
def _scale_of_block(w, base, u, index: tl.constexpr, j: tl.constexpr):
    """Of the eight f16 of a unit's blocks of 32, in vector `index`, number j."""
    return float16_at(pick(vector(w, base, u, index), j // 2), j % 2)


# ---- plain numbers ----


@triton.jit
def _in_order(first, second):
    """[L, n] and [L, n] -> [L, 2 n]"""
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (first.shape[0], 2 * first.shape[1]))


@triton.jit
def _pairs(v, BRAIN: tl.constexpr):
    """Vectors of eight 16-bit floats: [L, 4] -> [L, 8] float32."""
    if BRAIN:
        first, second = (v << 16).to(tl.float32, bitcast=True), (v & -65536).to(tl.float32, bitcast=True)
    else:
        first, second = float16_at(v, False), float16_at(v, True)
    return tl.reshape(tl.join(first, second), (v.shape[0], 8))


@triton.jit
def f16(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    v0, v1 = _pairs(vector(w, base, u, 4 * j), False), _pairs(vector(w, base, u, 4 * j + 1), False)
    v2, v3 = _pairs(vector(w, base, u, 4 * j + 2), False), _pairs(vector(w, base, u, 4 * j + 3), False)
    return _in_order(v0, v1), _in_order(v2, v3), (), ()


@triton.jit
def bf16(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    v0, v1 = _pairs(vector(w, base, u, 4 * j), True), _pairs(vector(w, base, u, 4 * j + 1), True)
    v2, v3 = _pairs(vector(w, base, u, 4 * j + 2), True), _pairs(vector(w, base, u, 4 * j + 3), True)
    return _in_order(v0, v1), _in_order(v2, v3), (), ()


@triton.jit
def f32(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    return _four_vectors(w, base, u, 8 * j), _four_vectors(w, base, u, 8 * j + 4), (), ()


@triton.jit
def _four_vectors(w, base, u, index: tl.constexpr):
    v0, v1 = vector(w, base, u, index), vector(w, base, u, index + 1)
    v2, v3 = vector(w, base, u, index + 2), vector(w, base, u, index + 3)
    return _in_order(_in_order(v0, v1), _in_order(v2, v3)).to(tl.float32, bitcast=True)


# ---- blocks of 32: vector j of the nibbles is block j ----


@triton.jit
def q4_0(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (q - 8), as d / 16 times the signed nibble in the upper half of a byte"""
    v = vector(w, base, u, 1 + j)
    return (v << 4) & HIGH_NIBBLES, v & HIGH_NIBBLES, (_scale_of_block(w, base, u, 0, j) * 0.0625,), ()


@triton.jit
def q4_1(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d q + m"""
    v = vector(w, base, u, 2 + j)
    d = _scale_of_block(w, base, u, 0, j)
    m = _scale_of_block(w, base, u, 1, j)
    return v & 0x0F0F0F0F, (v >> 4) & 0x0F0F0F0F, (d,), (m,)


@triton.jit
def q5_0(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (q - 16), as d / 8 times the signed five bits on top of a byte"""
    v = vector(w, base, u, 3 + j)
    low = ((v << 3) & 0x78787878) | (shifted(vector(w, base, u, 1), 7 - j) & TOP_BITS)
    high = ((v >> 1) & 0x78787878) | (shifted(vector(w, base, u, 2), 7 - j) & TOP_BITS)
    return low, high, (_scale_of_block(w, base, u, 0, j) * 0.125,), ()


@triton.jit
def q5_1(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d q + m"""
    v = vector(w, base, u, 4 + j)
    low = (v & 0x0F0F0F0F) | (shifted(vector(w, base, u, 2), 4 - j) & 0x10101010)
    high = ((v >> 4) & 0x0F0F0F0F) | (shifted(vector(w, base, u, 3), 4 - j) & 0x10101010)
    d = _scale_of_block(w, base, u, 0, j)
    m = _scale_of_block(w, base, u, 1, j)
    return low, high, (d,), (m,)


@triton.jit
def q8_0(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d q"""
    d = _scale_of_block(w, base, u, 0, j)
    return vector(w, base, u, 1 + 2 * j), vector(w, base, u, 2 + 2 * j), (d,), ()


@triton.jit
def iq4_nl(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d table[q]"""
    low, high = lookup16(vector(w, base, u, 1 + j), lut + codebooks.IQ4, u, ISA)
    return low, high, (_scale_of_block(w, base, u, 0, j),), ()


@triton.jit
def mxfp4(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """2^(e - 128) times the doubled E2M1 value; below e = 2 the scale is a denormal"""
    low, high = lookup16(vector(w, base, u, j), lut + codebooks.E2M1, u, ISA)
    exponents = pair(w, base, u, 128)
    e = (exponents[j // 4] >> (8 * (j % 4))) & 0xFF
    scale = tl.where(e < 2, (e + 1) << 21, (e - 1) << 23).to(tl.float32, bitcast=True)
    return low, high, (scale,), ()


@triton.jit
def nvfp4(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """half of UE4M3 times the doubled E2M1 value, a scale per 16, times the matrix's factor behind its units"""
    low, high = lookup16(vector(w, base, u, 1 + j), lut + codebooks.E2M1, u, ISA)
    codes = pick(vector(w, base, u, 0), j // 2)
    factor = tl.load(w + base * 36).to(tl.float32, bitcast=True)
    first, second = _half_ue4m3(codes >> (16 * (j % 2))), _half_ue4m3(codes >> (16 * (j % 2) + 8))
    return low, high, (first * factor, second * factor), ()


@triton.jit
def _half_ue4m3(code):
    """Half of the value of the UE4M3 code in the low byte (bias 7, bit 7 ignored); 0x7F alone means 0."""
    bits = code & 0x7F
    normal = ((bits << 20) + ((127 - 7 - 1) << 23)).to(tl.float32, bitcast=True)
    value = tl.where(bits < 8, bits.to(tl.float32) * 0.0009765625, normal)
    return tl.where((code & 0xFF) == 0x7F, 0.0, value)


@triton.jit
def q1_0(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d or -d: 2 d bit - d, two blocks of 128 in a unit"""
    d = float16_at(word(w, base, u, 32), j // 4)
    low = shifted(vector(w, base, u, 0), -j) & 0x01010101
    return low, shifted(vector(w, base, u, 1), -j) & 0x01010101, (2.0 * d,), (-d,)


@triton.jit
def q2_0(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (q - 1), four blocks of 64 in a unit"""
    low, high = _crumbs(w, base, u, 0, j)
    scales = pair(w, base, u, 64)
    d = float16_at(scales[j // 4], j // 2 % 2)
    return low, high, (d,), (-d,)


# ---- blocks of 256 with two-level scales ----


@triton.jit
def _crumbs(w, base, u, index: tl.constexpr, j: tl.constexpr):
    """Group j of 2-bit fields from the four vectors at `index`: unsigned bytes."""
    low = vector(w, base, u, index + j // 4 * 2) >> (2 * (j % 4))
    high = vector(w, base, u, index + j // 4 * 2 + 1) >> (2 * (j % 4))
    return low & 0x03030303, high & 0x03030303


@triton.jit
def q2_k(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d scale q - dmin min, per 16"""
    low, high = _crumbs(w, base, u, 1, j)
    scales = pick(vector(w, base, u, 0), j // 2) >> (16 * (j % 2))
    both = word(w, base, u, 80)
    d, dmin = float16_at(both, False), float16_at(both, True)
    scale0, scale1 = d * (scales & 15).to(tl.float32), d * ((scales >> 8) & 15).to(tl.float32)
    min0, min1 = dmin * ((scales >> 4) & 15).to(tl.float32), dmin * ((scales >> 12) & 15).to(tl.float32)
    return low, high, (scale0, scale1), (-min0, -min1)


@triton.jit
def q3_k(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d scale q of three signed bits, kept on top of a byte: 32 times their value; scales per 16"""
    v0, v1 = vector(w, base, u, 2 + j // 4 * 2), vector(w, base, u, 3 + j // 4 * 2)
    left: tl.constexpr = 5 - 2 * (j % 4)
    low = (shifted(v0, left) & 0x60606060) | (shifted(vector(w, base, u, 0), 7 - j) & TOP_BITS)
    high = (shifted(v1, left) & 0x60606060) | (shifted(vector(w, base, u, 1), 7 - j) & TOP_BITS)
    nibbles = pair(w, base, u, 96)
    tops = word(w, base, u, 104)
    # Scale t = 2 j + half: the low or high nibbles of one of two words, two more bits of a third.
    four = ((nibbles[j // 2 % 2] >> (j // 4 * 4)) & 0x0F0F0F0F) | (((tops >> (j // 2 * 2)) & 0x03030303) << 4)
    d = half_float(w, base, u, 108) * 0.03125
    scale0 = d * (((four >> (16 * (j % 2))) & 0x3F) - 32).to(tl.float32)
    scale1 = d * (((four >> (16 * (j % 2) + 8)) & 0x3F) - 32).to(tl.float32)
    return low, high, (scale0, scale1), ()


@triton.jit
def _scale_and_min(w, base, u, j: tl.constexpr):
    """Of Q4_K's and Q5_K's header, vector 0, the scale and the minimum of group j.

    Three words of four bytes each: four scales, four minima (6 bits), then the low nibbles of the other four scales
    and minima, whose top bits are the two spare bits of the first words.
    """
    header = vector(w, base, u, 0)
    d = pick(header, 0)
    scales, minima = pick(header, 1), pick(header, 2)
    byte: tl.constexpr = 8 * (j % 4)
    if j < 4:
        scale = (scales >> byte) & 63
        minimum = (minima >> byte) & 63
    else:
        nibbles = pick(header, 3)
        scale = ((nibbles >> byte) & 15) | ((scales >> (byte + 2)) & 0x30)
        minimum = ((nibbles >> (byte + 4)) & 15) | ((minima >> (byte + 2)) & 0x30)
    return float16_at(d, False) * scale.to(tl.float32), float16_at(d, True) * minimum.to(tl.float32)


@triton.jit
def q4_k(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d scale q - dmin min"""
    low = shifted(vector(w, base, u, 1 + j // 2 * 2), -4 * (j % 2)) & 0x0F0F0F0F
    high = shifted(vector(w, base, u, 2 + j // 2 * 2), -4 * (j % 2)) & 0x0F0F0F0F
    scale, minimum = _scale_and_min(w, base, u, j)
    return low, high, (scale,), (-minimum,)


@triton.jit
def q5_k(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d scale q - dmin min, bit 4 of q apart"""
    low = shifted(vector(w, base, u, 3 + j // 2 * 2), -4 * (j % 2)) & 0x0F0F0F0F
    high = shifted(vector(w, base, u, 4 + j // 2 * 2), -4 * (j % 2)) & 0x0F0F0F0F
    low |= shifted(vector(w, base, u, 1), 4 - j) & 0x10101010
    high |= shifted(vector(w, base, u, 2), 4 - j) & 0x10101010
    scale, minimum = _scale_and_min(w, base, u, j)
    return low, high, (scale,), (-minimum,)


@triton.jit
def q6_k(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d scale q of six signed bits, kept on top of a byte: 4 times their value; scales per 16"""
    k: tl.constexpr = j % 4
    nibbles: tl.constexpr = j // 4 * 4 + k % 2 * 2
    left: tl.constexpr = 2 - k // 2 * 4
    low = shifted(vector(w, base, u, nibbles), left) & 0x3C3C3C3C
    high = shifted(vector(w, base, u, nibbles + 1), left) & 0x3C3C3C3C
    low |= shifted(vector(w, base, u, 8 + j // 4 * 2), 6 - 2 * k) & TOP_CRUMBS
    high |= shifted(vector(w, base, u, 9 + j // 4 * 2), 6 - 2 * k) & TOP_CRUMBS
    scales = pick(vector(w, base, u, 12), j // 2)
    d = half_float(w, base, u, 208) * 0.25
    scale0 = d * signed_byte(scales, j % 2 * 2).to(tl.float32)
    scale1 = d * signed_byte(scales, j % 2 * 2 + 1).to(tl.float32)
    return low, high, (scale0, scale1), ()


@triton.jit
def tq2_0(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (q - 1)"""
    low, high = _crumbs(w, base, u, 0, j)
    d = half_float(w, base, u, 64)
    return low, high, (d,), (-d,)


@triton.jit
def tq1_0(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (q - 1): a byte is five base-3 digits as a fraction, q the digit on top after multiplying by 3^n"""
    # Halves 0..9 are digits 0..4 of vectors 0 and 1, halves 10..14 those of vector 2, half 15 is in the word at 48.
    if j < 5:
        low = _digits(vector(w, base, u, 0), 3**j)
        high = _digits(vector(w, base, u, 1), 3**j)
    else:
        low = _digits(vector(w, base, u, 2), 3 ** (2 * j - 10))
        if j < 7:
            high = _digits(vector(w, base, u, 2), 3 ** (2 * j - 9))
        else:
            n = tl.arange(0, 4)[None, :]
            power = tl.where(n == 0, 1, tl.where(n == 1, 3, tl.where(n == 2, 9, 27)))
            high = _digits(word(w, base, u, 48)[:, None] | (power & 0), power)
    d = half_float(w, base, u, 52)
    return low, high, (d,), (-d,)


@triton.jit
def _digits(v, power):
    """The top base-3 digits of the bytes of v times power, as bytes: 3 ((b power) mod 256) / 256."""
    even = ((v & 0x00FF00FF) * power) & 0x00FF00FF
    odd = (((v >> 8) & 0x00FF00FF) * power) & 0x00FF00FF
    return ((even * 3 >> 8) & 0x00030003) | ((odd * 3) & 0x03000300)


# ---- codebooks ----


@triton.jit
def iq4_xs(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (scale - 32) table[q]"""
    low, high = lookup16(vector(w, base, u, j), lut + codebooks.IQ4, u, ISA)
    header = pair(w, base, u, 128)
    scale = ((header[1] >> (4 * j)) & 15) | (((header[0] >> (16 + 2 * j)) & 3) << 4)
    return low, high, (float16_at(header[0], False) * (scale - 32).to(tl.float32),), ()


@triton.jit
def _octet(codes, lut, AT: tl.constexpr):
    """Entries of eight weights, two words each: codes [L, 4], every code in two lanes' words -> words [L, 4]."""
    return tl.load(lut + AT + codes * 2 + (tl.arange(0, 4) % 2)[None, :])


@triton.jit
def _of_two(first, second):
    """[L] and [L] -> [L, 4]: first, first, second, second."""
    return tl.where(tl.arange(0, 4)[None, :] < 2, first[:, None], second[:, None])


@triton.jit
def _signed(values, bits):
    """Words of positive bytes, negated where the four low bits of `bits` are set."""
    minus = ((bits & 15) * 0x00204081) & 0x01010101
    return (values ^ (minus * 255)) + minus


@triton.jit
def _even_signs(index):
    """Seven sign bits and an eighth that makes the number of minus signs even."""
    index &= 127
    parity = index ^ (index >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return index | ((parity & 1) << 7)


@triton.jit
def _signed_octets(values, first, second):
    """values [L, 4], two entries of eight weights, with the signs of the bytes first and second [L]."""
    return _signed(values, _of_two(first, second) >> (4 * (tl.arange(0, 4) % 2))[None, :])


@triton.jit
def iq2_xxs(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (1/2 + s) / 4 sign grid: a word of four codes, a word of four sign indices and the scale"""
    v = vector(w, base, u, j // 2)
    codes, signs = pick(v, j % 2 * 2), pick(v, j % 2 * 2 + 1)
    low = _octet(_of_two(codes & 255, (codes >> 8) & 255), lut, codebooks.IQ2_XXS)
    high = _octet(_of_two((codes >> 16) & 255, (codes >> 24) & 255), lut, codebooks.IQ2_XXS)
    low = _signed_octets(low, _even_signs(signs), _even_signs(signs >> 7))
    high = _signed_octets(high, _even_signs(signs >> 14), _even_signs(signs >> 21))
    scale = half_float(w, base, u, 64) * (0.125 + 0.25 * ((signs >> 28) & 15).to(tl.float32))
    return low, high, (scale,), ()


@triton.jit
def iq2_xs(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (1/2 + s) / 4 sign grid, scales per 16: a code of 9 bits and a sign index of 7 per 8 weights"""
    v = vector(w, base, u, j // 2)
    a, b = pick(v, j % 2 * 2), pick(v, j % 2 * 2 + 1)
    low = _octet(_of_two(a & 511, (a >> 16) & 511), lut, codebooks.IQ2_XS)
    high = _octet(_of_two(b & 511, (b >> 16) & 511), lut, codebooks.IQ2_XS)
    low = _signed_octets(low, _even_signs(a >> 9), _even_signs(a >> 25))
    high = _signed_octets(high, _even_signs(b >> 9), _even_signs(b >> 25))
    words = pair(w, base, u, 64)
    scales = words[j // 4] >> (8 * (j % 4))
    d = half_float(w, base, u, 72)
    return low, high, (_quarter_scale(d, scales), _quarter_scale(d, scales >> 4)), ()


@triton.jit
def _quarter_scale(d, nibble):
    """d (1/2 + s) / 4"""
    return d * (0.125 + 0.25 * (nibble & 15).to(tl.float32))


@triton.jit
def iq2_s(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (1/2 + s) / 4 sign grid, scales per 16: 8 + 2 bits of a code and 8 signs per 8 weights"""
    codes = pick(vector(w, base, u, j // 4), j % 4)
    signs = pick(vector(w, base, u, 2 + j // 4), j % 4)
    last = vector(w, base, u, 4)  # eight bytes of top bits, eight of scales
    tops = pick(last, j // 4) >> (8 * (j % 4))
    first = _of_two((codes & 255) | ((tops & 3) << 8), ((codes >> 8) & 255) | ((tops & 12) << 6))
    second = _of_two(((codes >> 16) & 255) | ((tops & 48) << 4), ((codes >> 24) & 255) | ((tops & 192) << 2))
    low = _signed_octets(_octet(first, lut, codebooks.IQ2_S), signs, signs >> 8)
    high = _signed_octets(_octet(second, lut, codebooks.IQ2_S), signs >> 16, signs >> 24)
    scales = pick(last, 2 + j // 4) >> (8 * (j % 4))
    d = half_float(w, base, u, 80)
    return low, high, (_quarter_scale(d, scales), _quarter_scale(d, scales >> 4)), ()


@triton.jit
def _bytes(v):
    """[L] words -> [L, 4] unsigned bytes."""
    return (v[:, None] >> (8 * tl.arange(0, 4))[None, :]) & 255


@triton.jit
def iq3_xxs(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (1/2 + s) / 2 sign grid: a code per 4 weights; a word of four sign indices and the scale"""
    codes = vector(w, base, u, j // 2)
    signs = pick(vector(w, base, u, 4 + j // 4), j % 4)
    low = tl.load(lut + codebooks.IQ3_XXS + _bytes(pick(codes, j % 2 * 2)))
    high = tl.load(lut + codebooks.IQ3_XXS + _bytes(pick(codes, j % 2 * 2 + 1)))
    low = _signed_octets(low, _even_signs(signs), _even_signs(signs >> 7))
    high = _signed_octets(high, _even_signs(signs >> 14), _even_signs(signs >> 21))
    scale = half_float(w, base, u, 96) * (0.25 + 0.5 * ((signs >> 28) & 15).to(tl.float32))
    return low, high, (scale,), ()


@triton.jit
def iq3_s(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (2 s + 1) sign grid: 8 + 1 bits of a code per 4 weights, 8 signs per 8 weights"""
    codes = vector(w, base, u, j // 2)
    signs = pick(vector(w, base, u, 4 + j // 4), j % 4)
    words = pair(w, base, u, 96)
    tops = (words[j // 4] >> (8 * (j % 4)))[:, None] >> tl.arange(0, 4)[None, :]
    low = tl.load(lut + codebooks.IQ3_S + (_bytes(pick(codes, j % 2 * 2)) | ((tops & 1) << 8)))
    high = tl.load(lut + codebooks.IQ3_S + (_bytes(pick(codes, j % 2 * 2 + 1)) | ((tops & 16) << 4)))
    low = _signed_octets(low, signs, signs >> 8)
    high = _signed_octets(high, signs >> 16, signs >> 24)
    scale = (word(w, base, u, 104) >> (4 * j)) & 15
    return low, high, (half_float(w, base, u, 108) * (2 * scale + 1).to(tl.float32),), ()


@triton.jit
def iq1_s(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (2 s + 1) (grid +- 1/8), from a table of eighths: 8 + 3 bits of a code per 8 weights"""
    codes = pick(vector(w, base, u, j // 4), j % 4)
    group = pick(vector(w, base, u, 2), j // 2) >> (16 * (j % 2))
    minus = ((group >> 15) & 1) << 11  # the table's second half, where 1/8 is subtracted
    first = _of_two((codes & 255) | ((group & 7) << 8), ((codes >> 8) & 255) | ((group & 56) << 5))
    second = _of_two(((codes >> 16) & 255) | ((group & 448) << 2), ((codes >> 24) & 255) | ((group & 3584) >> 1))
    low = _octet(first | minus[:, None], lut, codebooks.IQ1)
    high = _octet(second | minus[:, None], lut, codebooks.IQ1)
    scale = half_float(w, base, u, 48) * (0.125 + 0.25 * ((group >> 12) & 7).to(tl.float32))
    return low, high, (scale,), ()


@triton.jit
def iq1_m(w, base, u, lut, j: tl.constexpr, ISA: tl.constexpr):
    """d (2 s + 1) (grid +- 1/8), scales per 16: per 8 weights 8 bits of a code, then a nibble: 3 bits and a sign"""
    codes = pick(vector(w, base, u, j // 4), j % 4)
    nibbles = pick(vector(w, base, u, 2), j // 2) >> (16 * (j % 2))
    first = _of_two((codes & 255) | ((nibbles & 15) << 8), ((codes >> 8) & 255) | ((nibbles & 240) << 4))
    second = _of_two(((codes >> 16) & 255) | (nibbles & 3840), ((codes >> 24) & 255) | ((nibbles & 61440) >> 4))
    low = _octet(first, lut, codebooks.IQ1)
    high = _octet(second, lut, codebooks.IQ1)
    words = pair(w, base, u, 48)
    # Four words of 16 bits, four scales of 3 bits in each; their top nibbles are the f16 scale, lowest first.
    tops = ((words[0] >> 12) & 15) | ((words[0] >> 24) & 240) | ((words[1] >> 4) & 3840) | ((words[1] >> 16) & 61440)
    d = float16_at(tops, False)
    scales = words[j // 4] >> (16 * (j // 2 % 2) + 6 * (j % 2))
    return low, high, (_eighth_scale(d, scales), _eighth_scale(d, scales >> 3)), ()


@triton.jit
def _eighth_scale(d, scale):
    """d (2 s + 1) / 8"""
    return d * (0.125 + 0.25 * (scale & 7).to(tl.float32))


# ---- by format ----

DECODERS = {
    fmt.id: decoder
    for fmt, decoder in (
        *((formats.F32, f32), (formats.F16, f16), (formats.BF16, bf16)),
        *((formats.Q4_0, q4_0), (formats.Q4_1, q4_1), (formats.Q5_0, q5_0), (formats.Q5_1, q5_1)),
        *((formats.Q8_0, q8_0), (formats.MXFP4, mxfp4), (formats.NVFP4, nvfp4)),
        *((formats.Q1_0, q1_0), (formats.Q2_0, q2_0), (formats.TQ1_0, tq1_0), (formats.TQ2_0, tq2_0)),
        *((formats.Q2_K, q2_k), (formats.Q3_K, q3_k), (formats.Q4_K, q4_k), (formats.Q5_K, q5_k)),
        *((formats.Q6_K, q6_k), (formats.IQ1_S, iq1_s), (formats.IQ1_M, iq1_m)),
        *((formats.IQ2_XXS, iq2_xxs), (formats.IQ2_XS, iq2_xs), (formats.IQ2_S, iq2_s)),
        *((formats.IQ3_XXS, iq3_xxs), (formats.IQ3_S, iq3_s), (formats.IQ4_NL, iq4_nl), (formats.IQ4_XS, iq4_xs)),
    )
}
