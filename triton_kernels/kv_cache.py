"""Keys and values in a paged cache: writing and reading the planes of every type (quant/cache_types.py).

A row is one head's keys or values of one token: row (page * page size + place in the page) * n_kv_heads + head of every
plane. TYPE, a compile-time constant, is the cache type's name; planes that it does not have are None.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..quant import codebooks as values
from . import codebooks
from .attention_bytes import (
    bytes16,
    computed_here,
    e4m3_halves,
    fifth_halves,
    half_at,
    lookup_halves,
    nibble_halves,
    signed_halves,
)

IQ4_VALUES: tl.constexpr = tl.constexpr(values.IQ4_VALUES)


# ---- reading ----


@triton.jit
def load_rows(
    data,
    high,
    scales,
    lut,
    row,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    TYPE: tl.constexpr,
    DTYPE: tl.constexpr,
    ISA: tl.constexpr,
):
    """Columns FIRST … FIRST + WIDTH - 1 of rows `row` [R], each of D values: [R, WIDTH] of DTYPE. Past D are zeros.

    In f16 a value is rounded once; one beyond its range is infinite.
    """
    PLAIN: tl.constexpr = TYPE == "f32" or TYPE == "f16" or TYPE == "bf16"
    if PLAIN:
        column = FIRST + tl.arange(0, WIDTH)
        at = data + row[:, None] * D + column[None, :]
        found = tl.load(at, mask=(column < D)[None, :], other=0.0) if FIRST + WIDTH > D else tl.load(at)
        rows = found.to(DTYPE)
    elif TYPE == "fp8":
        # A lane decodes 16 values of a row.
        part = tl.minimum(FIRST // 16 + tl.arange(0, WIDTH // 16), D // 16 - 1)
        b = tl.reshape(row[:, None] * (D // 16) + part[None, :], (row.shape[0] * (WIDTH // 16),))
        v = e4m3_halves(bytes16(data, b * 16, ISA), ISA)
        rows = _cut(tl.reshape(v, (row.shape[0], WIDTH)), FIRST, D).to(DTYPE)
    else:
        # A lane decodes a block of 32 values of a row.
        R: tl.constexpr = row.shape[0]
        BLOCKS: tl.constexpr = WIDTH // 32
        block = FIRST // 32 + tl.arange(0, BLOCKS)
        b = tl.reshape(row[:, None] * (D // 32) + tl.minimum(block, D // 32 - 1)[None, :], (R * BLOCKS,))
        low, upper = _quants_of(data, high, lut, b, TYPE, ISA)
        found = _scales_of(scales, b, D, TYPE)
        d = found[0].to(DTYPE)[:, None]
        low, upper = low.to(DTYPE) * d, upper.to(DTYPE) * d
        if len(found) > 1:
            m = found[1].to(DTYPE)[:, None]
            low, upper = low + m, upper + m
        rows = _cut(tl.reshape(tl.permute(tl.join(low, upper), (0, 2, 1)), (R, WIDTH)), FIRST, D)
    # Where a layout would be derived from other widths than those of the operand (attention_bytes.py): on NVIDIA from
    # bytes, on AMD, whose instructions on bytes are not pure, from floats that are converted.
    if rows.dtype == tl.float32 or data.dtype.element_ty == rows.dtype or (ISA == "ptx") == PLAIN:
        return rows
    else:
        return computed_here(rows, ISA)


@triton.jit
def _cut(rows, FIRST: tl.constexpr, D: tl.constexpr):
    """rows [R, WIDTH] that begin with column FIRST, zero past column D."""
    if FIRST + rows.shape[1] > D:
        return tl.where((FIRST + tl.arange(0, rows.shape[1]) < D)[None, :], rows, 0.0)
    else:
        return rows


@triton.jit
def _scales_of(scales, b, D: tl.constexpr, TYPE: tl.constexpr):
    """Scales of blocks b [L] and, where the type has them, minima, f16 [L] each."""
    words = scales.to(tl.pointer_type(tl.int32))
    if TYPE == "q4_1" or TYPE == "q5_1":
        both = tl.load(words + b)
        return (half_at(both, False), half_at(both, True))
    elif D % 64 == 0:
        # Two scales at once: NVIDIA copies no less than a word in advance.
        return (half_at(tl.load(words + (b >> 1)) >> ((b & 1) * 16), False),)
    else:
        return (tl.load(scales + b),)


@triton.jit
def _quants_of(data, high, lut, b, TYPE: tl.constexpr, ISA: tl.constexpr):
    """Blocks b [L]: what the scale multiplies, of values 0 … 15 and 16 … 31, [L, 16] f16 each."""
    if TYPE == "q8_0":
        low, upper = bytes16(data, b * 32, ISA), bytes16(data, b * 32 + 16, ISA)
        return signed_halves(low, ISA) - 1152.0, signed_halves(upper, ISA) - 1152.0
    else:
        v = bytes16(data, b * 16, ISA)
        if TYPE == "q4_0" or TYPE == "q4_1":
            CENTER: tl.constexpr = 8 if TYPE == "q4_0" else 0
            low, upper = nibble_halves(v, ISA)
            return low - (1024.0 + CENTER), upper * 0.0625 - (64.0 + CENTER)
        elif TYPE == "iq4_nl":
            low, upper = lookup_halves(v, lut + codebooks.IQ4, b, ISA)
            return low - 1152.0, upper - 1152.0
        else:
            tl.static_assert(TYPE == "q5_0" or TYPE == "q5_1", "unknown cache type")
            OFFSET: tl.constexpr = 1040.0 if TYPE == "q5_0" else 1024.0
            low, upper = fifth_halves(v, tl.load(high + b), ISA)
            return low - OFFSET, upper - OFFSET


# ---- writing ----


@triton.jit
def store_rows(rows, data, high, scales, row, inside, TYPE: tl.constexpr, D: tl.constexpr):
    """Writes rows [R, at least D] float32 as rows `row` [R], where `inside` [R] says so.

    The quantisers are ggml's reference ones; the twin is CacheType.encode.
    """
    R: tl.constexpr = rows.shape[0]
    WIDTH: tl.constexpr = rows.shape[1]
    column = tl.arange(0, WIDTH)
    mask = inside[:, None] & (column < D)[None, :]
    at = row[:, None] * D + column[None, :]
    if TYPE == "fp8":
        tl.store(data + at, _e4m3(rows), mask=mask)
    elif TYPE == "f32" or TYPE == "f16" or TYPE == "bf16":
        tl.store(data + at, rows.to(data.dtype.element_ty), mask=mask)
    else:
        tl.static_assert(D % 32 == 0, "blocks need heads of a multiple of 32 values")
        BLOCKS: tl.constexpr = WIDTH // 32
        x = tl.reshape(rows, (R, BLOCKS, 32))
        block = tl.arange(0, BLOCKS)
        b = row[:, None] * (D // 32) + block[None, :]
        known = inside[:, None] & (block < D // 32)[None, :]
        q, d, m = _quants(x, TYPE)
        if TYPE == "q4_1" or TYPE == "q5_1":
            tl.store(scales + 2 * b, d.to(tl.float16), mask=known)
            tl.store(scales + 2 * b + 1, m.to(tl.float16), mask=known)
        else:
            tl.store(scales + b, d.to(tl.float16), mask=known)
        if TYPE == "q8_0":
            at_q = data + (b * 32)[:, :, None] + tl.arange(0, 32)[None, None, :]
            tl.store(at_q, (q & 255).to(tl.uint8), mask=known[:, :, None])
        else:
            halves = tl.reshape(q & 15, (R, BLOCKS, 2, 16)) << (4 * tl.arange(0, 2))[None, None, :, None]
            at_q = data + (b * 16)[:, :, None] + tl.arange(0, 16)[None, None, :]
            tl.store(at_q, tl.sum(halves, 2).to(tl.uint8), mask=known[:, :, None])
        if TYPE == "q5_0" or TYPE == "q5_1":
            fifth = tl.sum((q >> 4) << tl.arange(0, 32)[None, None, :], 2)
            tl.store(high + b, fifth, mask=known)


@triton.jit
def _quants(x, TYPE: tl.constexpr):
    """x [R, BLOCKS, 32] -> quants, scale and minimum of the blocks (the scale again where a type has none)."""
    if TYPE == "q4_1" or TYPE == "q5_1":
        LEVELS: tl.constexpr = 15 if TYPE == "q4_1" else 31
        low = tl.min(x, 2)
        d = tl.div_rn(tl.max(x, 2) - low, tl.full(low.shape, LEVELS, tl.float32))
        return _truncated((x - low[:, :, None]) * _inverse(d)[:, :, None] + 0.5, LEVELS), d, low
    elif TYPE == "q8_0":
        d = tl.div_rn(tl.max(tl.abs(x), 2), tl.full((x.shape[0], x.shape[1]), 127.0, tl.float32))
        scaled = x * _inverse(d)[:, :, None]
        return (scaled + tl.where(scaled < 0.0, -0.5, 0.5)).to(tl.int32), d, d
    elif TYPE == "iq4_nl":
        return _nearest(x)
    else:
        CENTER: tl.constexpr = 8 if TYPE == "q4_0" else 16
        d = _largest(x) * (-1.0 / CENTER)
        return _truncated(x * _inverse(d)[:, :, None] + (CENTER + 0.5), 2 * CENTER - 1), d, d


@triton.jit
def _nearest(x):
    """IQ4_NL: the nearest entries of the codebook, then the scale that fits them best, weighted with x squared."""
    first = tl.div_rn(_largest(x), tl.full((x.shape[0], x.shape[1]), -127.0, tl.float32))
    scaled = x * _inverse(first)[:, :, None]
    q = tl.zeros(x.shape, tl.int32)
    value = tl.full(x.shape, IQ4_VALUES[0], tl.float32)
    for i in tl.static_range(15):
        above = scaled >= (IQ4_VALUES[i] + IQ4_VALUES[i + 1]) * 0.5
        q += above.to(tl.int32)
        value = tl.where(above, IQ4_VALUES[i + 1], value)
    norm = tl.sum(x * x * value * value, 2)
    fitted = tl.div_rn(tl.sum(x * x * value * x, 2), tl.where(norm > 0.0, norm, 1.0))
    d = tl.where(norm > 0.0, fitted, first)
    return q, d, d


@triton.jit
def _largest(x):
    """The value of the largest magnitude in each block, the first of several."""
    size = tl.abs(x)
    place = tl.arange(0, 32)[None, None, :]
    first = tl.min(tl.where(size == tl.max(size, 2)[:, :, None], place, 32), 2)
    return tl.sum(tl.where(place == first[:, :, None], x, 0.0), 2)


@triton.jit
def _inverse(d):
    return tl.where(d == 0.0, 0.0, tl.div_rn(tl.full(d.shape, 1.0, tl.float32), tl.where(d == 0.0, 1.0, d)))


@triton.jit
def _truncated(x, LARGEST: tl.constexpr):
    # Comparisons are false for what is not a number, which then becomes 0.
    return tl.where(x > 0.0, tl.where(x < LARGEST, x, LARGEST * 1.0), 0.0).to(tl.int32)


@triton.jit
def _e4m3(x):
    """float32 -> the byte of float8_e4m3fn, rounded to nearest even, saturated."""
    bits = x.to(tl.int32, bitcast=True)
    size = tl.minimum(tl.abs(x), 448.0)
    magnitude = size.to(tl.int32, bitcast=True)
    # Twenty bits of the mantissa go; the exponent's bias changes from 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the step is 2^-9: adding 2^14 leaves just those bits, rounded.
    small = (size + 16384.0).to(tl.int32, bitcast=True) & 0xF
    byte = tl.where(size < 0.015625, small, normal)
    byte = tl.where(x == x, byte, 0x7F)
    return (byte | ((bits >> 24) & 0x80)).to(tl.uint8)


# ---- calls ----


def plane_pointers(planes: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """data, high and scales, as kernels take them, of the planes that a type has (CacheType.planes)."""
    return planes[0], planes[1] if len(planes) == 3 else None, planes[-1] if len(planes) > 1 else None
