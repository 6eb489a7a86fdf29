"""Activations as the matvec kernel reads them: in units of 256 values, with the sums of every 16.

The sums are what a format's offsets multiply: sum (q s + o) x = s sum q x + o sum x. A row that ends inside a unit is
filled up with zeros, so that kernels need no mask.

The integer route has 8 bits per value and a scale per 32, 88 words of four bytes per unit:

    0 … 63   the 256 signed bytes, in order
    64 … 71  float32 scale of each group of 32: its largest magnitude / 127
    72 … 87  float32 sum of each half group of 16: scale times the sum of its integers

The exact route has 272 words: 256 values in float32, then the sums.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .grid import cdiv, next_power_of_2
from .packing import UNIT, units

# Types of numbers that kernels take.
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# What activations are given as: numbers [m, k], or units of the integer or of the exact route.
Form = Literal["plain", "int8", "spread"]

# Where things are in a unit, in vectors of four words.
INT8_VECTORS: tl.constexpr = tl.constexpr(22)
INT8_SCALES: tl.constexpr = tl.constexpr(16)
INT8_SUMS: tl.constexpr = tl.constexpr(18)
EXACT_VECTORS: tl.constexpr = tl.constexpr(68)
EXACT_SUMS: tl.constexpr = tl.constexpr(64)


@triton.jit
def store_groups(out, row, group, S, values, INT8: tl.constexpr):
    """Stores values [GROUPS, 32], float32, as groups `group` [GROUPS] of a row's units; not those past the S units.

    out: int32 [M, S, 88], where INT8 quantises the values, or float32 [M, S, 272]. row: one for all, or [GROUPS].
    """
    inside = (group < S * 8) & (group >= 0)
    j = group % 8
    if INT8:
        unit = out + (row * S + group // 8) * (INT8_VECTORS * 4)
        GROUPS: tl.constexpr = values.shape[0]
        largest = tl.max(tl.abs(values), 1)
        inverse = 127.0 / tl.where(largest > 0.0, largest, float("inf"))
        scaled = values * inverse[:, None]
        q = (scaled + tl.where(scaled < 0.0, -0.5, 0.5)).to(tl.int32)  # half away from zero, as ggml rounds
        # 127 / (a denormal) is infinite, and its products are not numbers that convert.
        q = tl.where((inverse < float("inf"))[:, None], q, 0)
        scale = largest / 127.0
        bytes = (tl.reshape(q, (GROUPS, 8, 4)) & 255) << (8 * tl.arange(0, 4))[None, None, :]
        words = tl.sum(bytes, 2)  # [GROUPS, 8]
        sums = tl.sum(tl.reshape(q, (GROUPS, 2, 16)), 2).to(tl.float32) * scale[:, None]
        tl.store((unit + j * 8)[:, None] + tl.arange(0, 8)[None, :], words, mask=inside[:, None])
        tl.store(unit + INT8_SCALES * 4 + j, scale.to(tl.int32, bitcast=True), mask=inside)
        at_sums = (unit + INT8_SUMS * 4 + j * 2)[:, None] + tl.arange(0, 2)[None, :]
        tl.store(at_sums, sums.to(tl.int32, bitcast=True), mask=inside[:, None])
    else:
        unit = out + (row * S + group // 8) * (EXACT_VECTORS * 4)
        tl.store((unit + j * 32)[:, None] + tl.arange(0, 32)[None, :], values, mask=inside[:, None])
        sums = tl.sum(tl.reshape(values, (values.shape[0], 2, 16)), 2)
        at_sums = (unit + EXACT_SUMS * 4 + j * 2)[:, None] + tl.arange(0, 2)[None, :]
        tl.store(at_sums, sums, mask=inside[:, None])


@triton.jit
def store_form(out, row, group, K, S, values, FORM: tl.constexpr):
    """Stores values [GROUPS, 32], float32, as groups `group` [GROUPS] of a row of K values, in one of the forms.

    out: rows of numbers [M, K] of any float dtype, or units as store_groups has them. For units, values past K are
    zero. row: one for all groups, or [GROUPS]; a group below zero is not stored.
    """
    if FORM == "plain":
        k = group[:, None] * 32 + tl.arange(0, 32)[None, :]
        at = out + (row * K + group * 32)[:, None] + tl.arange(0, 32)[None, :]
        tl.store(at, values.to(out.dtype.element_ty), mask=(k >= 0) & (k < K))
    else:
        store_groups(out, row, group, S, values, FORM == "int8")


@triton.jit
def units_kernel(x, out, K, S, stride, INT8: tl.constexpr, GROUPS: tl.constexpr):
    """x [M, K] any float dtype, rows `stride` elements apart -> its units (store_groups); values past K count as zero.

    Grid (M, ceil(8 S / GROUPS)): a program takes GROUPS groups of 32 of one row.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    k = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(x + row * stride + k, mask=k < K, other=0.0).to(tl.float32)
    store_groups(out, row, group, S, values, INT8)


@dataclass(frozen=True, slots=True)
class Units:
    """Activations [m, n_in] as the matvec kernel reads them.

    data: int32 [m, units(n_in), 88] where int8, else float32 [m, units(n_in), 272]. dtype: the type of the numbers
    that they stand for, and of what is computed from them.
    """

    data: Tensor
    int8: bool
    n_in: int
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.data)


def empty_form(m: int, k: int, form: Form, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Room for m rows of k values in one of the forms; dtype is that of numbers."""
    if form == "plain":
        return torch.empty(m, k, dtype=dtype, device=device)
    return empty_units(m, k, form == "int8", device)


def in_form(data: Tensor, k: int, form: Form, dtype: torch.dtype) -> Tensor | Units:
    """What a kernel stored into `empty_form(m, k, form, dtype, ...)`."""
    return data if form == "plain" else Units(data, form == "int8", k, dtype)


def converted(x: Tensor, form: Form) -> Tensor | Units:
    """Numbers x [m, k] with unit stride along k in another form."""
    if form == "plain":
        return x
    return in_form(_in_units(x, form == "int8"), x.shape[1], form, x.dtype)


def empty_units(m: int, k: int, int8: bool, device: torch.device) -> Tensor:
    """Room for the units of m rows of k values: int32 [m, units(k), 88] or float32 [m, units(k), 272]."""
    n_vectors = INT8_VECTORS.value if int8 else EXACT_VECTORS.value
    return torch.empty(m, units(k), 4 * n_vectors, dtype=torch.int32 if int8 else torch.float32, device=device)


def quantize(x: Tensor) -> Tensor:
    """x [M, K] with unit stride along K -> its units for the integer route, int32 [M, units(K), 88]."""
    return _in_units(x, int8=True)


def spread(x: Tensor) -> Tensor:
    """x [M, K] with unit stride along K -> its units for the exact route, float32 [M, units(K), 272]."""
    return _in_units(x, int8=False)


def _in_units(x: Tensor, int8: bool) -> Tensor:
    m, k = x.shape
    out = empty_units(m, k, int8, x.device)
    groups = min(64, next_power_of_2(units(k) * 8))
    grid = (m, cdiv(units(k) * 8, groups))
    options = {"INT8": int8, "GROUPS": groups, "num_warps": 4, "enable_fp_fusion": True}
    units_kernel[grid](x, out, k, units(k), x.stride(0), **options)
    return out


def quantize_reference(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The twin of `quantize`, taken apart: q int8 [M, S, 256], scale [M, S, 8], sums [M, S, 16] float32."""
    m, k = x.shape
    padded = torch.nn.functional.pad(x.float(), (0, units(k) * UNIT - k)).view(m, units(k), 8, 32)
    largest = padded.abs().amax(-1)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    scaled = padded * inverse.unsqueeze(-1)
    q = (scaled + torch.where(scaled < 0, -0.5, 0.5)).trunc()
    q = torch.where((inverse < torch.inf).unsqueeze(-1), q, 0)
    scale = largest / 127
    sums = q.unflatten(3, (2, 16)).sum(-1) * scale.unsqueeze(-1)
    return q.flatten(2).to(torch.int8), scale, sums.flatten(2)
