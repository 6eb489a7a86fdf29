"""Keys and values in the paged cache: reading and writing rows of every type (quant/cache_types.py).

A row is one head's keys or values of one token: row (page * page size + place in the page) * n_kv_heads + head of every
plane. Readers and writers are made for a type and a width, the values of a row; addresses of planes that a type does
not have are not looked at. They all have the signature f(data, high, scales, row, numbers), where `numbers` is the
address of the row as float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import llvmlite.ir as ir
import numpy as np
import torch
from numba import types

from ...quant.cache_types import BLOCK, FP8_MAX, CacheType
from ...quant.codebooks import IQ4_VALUES
from .isa import Isa
from .language import BITS, FLOATS, INTS, LANES, floats, inline, load, op, splat
from .scalars import load_int32, store_half, store_int32
from .vectors import (
    absolute,
    all_floats,
    all_ints,
    as_floats,
    as_ints,
    below,
    choose,
    constant,
    load_bytes,
    load_floats,
    load_halves,
    load_shorts,
    lookup,
    low_half,
    max_floats,
    maximum,
    minimum,
    not_numbers,
    shift_signed,
    sign_bits,
    store_bytes,
    store_floats,
    store_halves,
    store_shorts,
    sum_floats,
    to_floats,
    to_ints,
)

# Bytes of a value of plain types.
SIZES = {"f32": 4, "f16": 2, "bf16": 2, "fp8": 1}
NAN = 0x7FC0
ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
LARGEST_BYTE = np.float32(127.0)


def check_heads(head_dim: int, *kinds: CacheType) -> None:
    """ValueError for heads that kernels cannot read whole vectors of, or that blocks do not fit."""
    if head_dim % LANES or not 0 < head_dim <= 512:
        raise ValueError(f"expected heads of a multiple of {LANES} values, at most 512, found {head_dim}")
    for kind in kinds:
        kind.planes(head_dim)


def plane_addresses(prefix: str, planes: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The arguments {prefix}_data, {prefix}_high and {prefix}_scales of kernels, 0 for planes that a type lacks."""
    assert all(plane.is_contiguous() and plane.device.type == "cpu" for plane in planes)
    return {
        f"{prefix}_data": planes[0].data_ptr(),
        f"{prefix}_high": planes[1].data_ptr() if len(planes) == 3 else 0,
        f"{prefix}_scales": planes[-1].data_ptr() if len(planes) > 1 else 0,
    }


# ---- plain numbers ----


@inline
def load_bfloats(at):
    return as_floats(load_shorts(at) << 16)


@inline
def _load_fp8(at):
    # Its bits in the place of f16's stand for the number / 256.
    code = load_bytes(at)
    return low_half(((code & 0x7F) << 7) | ((code & 0x80) << 8)) * 256.0


@inline
def _store_bfloats(at, x):
    bits = as_ints(x)
    nearest = (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
    store_shorts(at, as_ints(choose(not_numbers(x), as_floats(all_ints(NAN)), as_floats(nearest))))


@inline
def _store_fp8(at, x):
    """float8_e4m3fn, rounded to nearest even, saturated."""
    bits, size = as_ints(x), minimum(absolute(x), all_floats(FP8_MAX))
    magnitude = as_ints(size)
    # Twenty bits of the mantissa go; the exponent's bias changes from 127 to 7.
    normal = ((magnitude + ((magnitude >> 20) & 1) + 0x7FFFF) >> 20) - (120 << 3)
    # Below 2^-6 the step is 2^-9: adding 2^14 leaves just those bits, rounded.
    small = as_ints(size + 16384.0) & 0xF
    code = choose(below(size, all_floats(0.015625)), as_floats(small), as_floats(normal))
    code = choose(not_numbers(x), as_floats(all_ints(0x7F)), code)
    store_bytes(at, as_ints(code) | ((bits >> 24) & 0x80))


LOADS = {"f32": load_floats, "f16": load_halves, "bf16": load_bfloats, "fp8": _load_fp8}
STORES = {"f32": store_floats, "f16": store_halves, "bf16": _store_bfloats, "fp8": _store_fp8}


# ---- blocks of 32: reading ----


def _iq4_lanes(isa: Isa) -> list[int]:
    codes = np.array(IQ4_VALUES, np.int8).view(np.int32)
    return [int(word) for word in codes] * (LANES // 4)


iq4_values = constant(_iq4_lanes)


@inline
def _signed_bytes(words):
    return to_floats(shift_signed(words << 24, 24))


@inline
def _store_both(numbers, low, upper):
    store_floats(numbers, low)
    store_floats(numbers + 4 * LANES, upper)


@op(floats, types.intp)
def load_scale(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """A float16 in all lanes. As a single number its register would wait for what it held before."""
    halves = splat(b, load(b, address, BITS[16]))
    return b.fpext(b.bitcast(halves, ir.VectorType(ir.HalfType(), LANES)), FLOATS)


@op(floats, types.intp)
def _load_signed(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 int8 as numbers."""
    return b.sitofp(b.sext(load(b, address, ir.VectorType(BITS[8], LANES)), INTS), FLOATS)


@inline
def _read_q8_0(data, high, scales, block, numbers):
    at, d = data + 32 * block, load_scale(scales + 2 * block)
    _store_both(numbers, _load_signed(at) * d, _load_signed(at + 16) * d)


@inline
def _read_q4_0(data, high, scales, block, numbers):
    codes, d = load_bytes(data + 16 * block), load_scale(scales + 2 * block)
    _store_both(numbers, to_floats((codes & 15) - 8) * d, to_floats((codes >> 4) - 8) * d)


@inline
def _read_q4_1(data, high, scales, block, numbers):
    codes, d, m = load_bytes(data + 16 * block), load_scale(scales + 4 * block), load_scale(scales + 4 * block + 2)
    _store_both(numbers, to_floats(codes & 15) * d + m, to_floats(codes >> 4) * d + m)


places = constant(lambda isa: [1 << i for i in range(LANES)])


@inline
def _fifth(bits):
    """16, in each lane i where bit i is set."""
    return ((all_ints(0) - (all_ints(bits) & places())) >> 31) << 4


@inline
def _five_bits(data, high, block):
    codes, bits = load_bytes(data + 16 * block), load_int32(high + 4 * block)
    return (codes & 15) | _fifth(bits & 0xFFFF), (codes >> 4) | _fifth((bits >> 16) & 0xFFFF)


@inline
def _read_q5_0(data, high, scales, block, numbers):
    low, upper = _five_bits(data, high, block)
    d = load_scale(scales + 2 * block)
    _store_both(numbers, to_floats(low - 16) * d, to_floats(upper - 16) * d)


@inline
def _read_q5_1(data, high, scales, block, numbers):
    low, upper = _five_bits(data, high, block)
    d, m = load_scale(scales + 4 * block), load_scale(scales + 4 * block + 2)
    _store_both(numbers, to_floats(low) * d + m, to_floats(upper) * d + m)


@inline
def _read_iq4_nl(data, high, scales, block, numbers):
    codes, d = load_bytes(data + 16 * block), load_scale(scales + 2 * block)
    low, upper = lookup(iq4_values(), codes & 15), lookup(iq4_values(), codes >> 4)
    _store_both(numbers, _signed_bytes(low) * d, _signed_bytes(upper) * d)


_READ_BLOCK = {
    "q8_0": _read_q8_0,
    "q4_0": _read_q4_0,
    "q4_1": _read_q4_1,
    "q5_0": _read_q5_0,
    "q5_1": _read_q5_1,
    "iq4_nl": _read_iq4_nl,
}


def row_reader(kind: str, width: int) -> Any:
    """Decodes a row to `numbers`."""
    if kind not in SIZES:
        return _blocks(_READ_BLOCK[kind], width)
    load, size, row_bytes = LOADS[kind], SIZES[kind], SIZES[kind] * width

    @inline
    def read(data, high, scales, row, numbers):
        at = data + row * row_bytes
        for i in range(0, width, LANES):
            store_floats(numbers + 4 * i, load(at + size * i))

    return read


def _blocks(block_function: Any, width: int) -> Any:
    n_blocks = width // BLOCK

    @inline
    def rows(data, high, scales, row, numbers):
        for i in range(n_blocks):
            block_function(data, high, scales, row * n_blocks + i, numbers + 4 * BLOCK * i)

    return rows


# ---- blocks of 32: writing, with ggml's reference quantisers ----


@inline
def _largest(low, upper):
    """The value of the largest magnitude, the first of several."""
    size = max_floats(maximum(absolute(low), absolute(upper)))
    top = all_floats(size)
    smaller = sign_bits(below(absolute(low), top)) | sign_bits(below(absolute(upper), top)) << 16
    first = ~smaller & (smaller + 1)
    negative = sign_bits(as_ints(low)) | sign_bits(as_ints(upper)) << 16
    return -size if first & negative != 0 else size


@inline
def _inverse(d):
    return ZERO if d == ZERO else ONE / d


@inline
def _truncated(x, largest):
    """Rounded towards zero, within 0 … largest; what is not a number becomes 0."""
    return to_ints(minimum(maximum(x, all_floats(ZERO)), all_floats(largest)))


@inline
def _round_byte(x):
    """Halves away from zero, within -127 … 127; what is not a number becomes 0."""
    away = x + as_floats((as_ints(x) & -0x80000000) | as_ints(all_floats(HALF)))
    away = choose(not_numbers(away), all_floats(ZERO), away)
    return to_ints(minimum(maximum(away, all_floats(-LARGEST_BYTE)), all_floats(LARGEST_BYTE)))


@inline
def _write_q8_0(data, high, scales, block, numbers):
    low, upper = load_floats(numbers), load_floats(numbers + 4 * LANES)
    d = max_floats(maximum(absolute(low), absolute(upper))) / LARGEST_BYTE
    store_half(scales + 2 * block, d)
    store_bytes(data + 32 * block, _round_byte(low * _inverse(d)))
    store_bytes(data + 32 * block + 16, _round_byte(upper * _inverse(d)))


@inline
def _store_fifth(high, block, low, upper):
    bits = sign_bits(low << 27) | sign_bits(upper << 27) << 16
    store_int32(high + 4 * block, bits)


def _centered(bits: int) -> Any:
    """A value is about (q - center) d, where q = 0 stands for the value of the largest magnitude."""
    center, top, to_q = np.float32(-(2 ** (bits - 1))), np.float32(2**bits - 1), np.float32(2 ** (bits - 1) + 0.5)

    @inline
    def write(data, high, scales, block, numbers):
        low, upper = load_floats(numbers), load_floats(numbers + 4 * LANES)
        d = _largest(low, upper) / center
        inverse = _inverse(d)
        low, upper = _truncated(low * inverse + to_q, top), _truncated(upper * inverse + to_q, top)
        store_half(scales + 2 * block, d)
        store_bytes(data + 16 * block, (low & 15) | ((upper & 15) << 4))
        if bits == 5:
            _store_fifth(high, block, low, upper)

    return write


def _asymmetric(bits: int) -> Any:
    """A value is about q d + m, from the smallest to the largest."""
    top = np.float32(2**bits - 1)

    @inline
    def write(data, high, scales, block, numbers):
        low, upper = load_floats(numbers), load_floats(numbers + 4 * LANES)
        m = -max_floats(maximum(low * -ONE, upper * -ONE))
        d = (max_floats(maximum(low, upper)) - m) / top
        inverse = _inverse(d)
        low, upper = _truncated((low - m) * inverse + HALF, top), _truncated((upper - m) * inverse + HALF, top)
        store_half(scales + 4 * block, d)
        store_half(scales + 4 * block + 2, m)
        store_bytes(data + 16 * block, (low & 15) | ((upper & 15) << 4))
        if bits == 5:
            _store_fifth(high, block, low, upper)

    return write


# Halfway between two entries the upper one is taken.
_BETWEEN = tuple(np.float32((a + b) / 2) for a, b in pairwise(IQ4_VALUES))
_FIRST_ENTRY = np.float32(IQ4_VALUES[0])


@inline
def _nearest(scaled):
    """The nearest entries of the codebook."""
    q = all_ints(15)
    for border in _BETWEEN:
        q = q + below(scaled, all_floats(border))
    return q


@inline
def _write_iq4_nl(data, high, scales, block, numbers):
    """The nearest entries of the codebook, then the scale that fits them best, larger values counting for more."""
    low, upper = load_floats(numbers), load_floats(numbers + 4 * LANES)
    d = _largest(low, upper) / _FIRST_ENTRY
    inverse = _inverse(d)
    q_low, q_upper = _nearest(low * inverse), _nearest(upper * inverse)
    v_low = _signed_bytes(lookup(iq4_values(), q_low))
    v_upper = _signed_bytes(lookup(iq4_values(), q_upper))
    w_low, w_upper = low * low * v_low, upper * upper * v_upper
    norm = sum_floats(w_low * v_low + w_upper * v_upper)
    fitted = sum_floats(w_low * low + w_upper * upper)
    store_half(scales + 2 * block, fitted / norm if norm > ZERO else d)
    store_bytes(data + 16 * block, q_low | (q_upper << 4))


_WRITE_BLOCK = {
    "q8_0": _write_q8_0,
    "q4_0": _centered(4),
    "q4_1": _asymmetric(4),
    "q5_0": _centered(5),
    "q5_1": _asymmetric(5),
    "iq4_nl": _write_iq4_nl,
}


def row_writer(kind: str, width: int) -> Any:
    """Encodes `numbers` as a row; the bits are those of CacheType.encode."""
    if kind not in SIZES:
        return _blocks(_WRITE_BLOCK[kind], width)
    store, size, row_bytes = STORES[kind], SIZES[kind], SIZES[kind] * width

    @inline
    def write(data, high, scales, row, numbers):
        at = data + row * row_bytes
        for i in range(0, width, LANES):
            store(at + size * i, load_floats(numbers + 4 * i))

    return write
