"""Activations as the matvec kernel reads them: in units of 256 values, with the sums of every 16.

The sums are what a format's offsets multiply: sum (q s + o) x = s sum q x + o sum x. A row that ends inside a unit is
filled up with zeros, so that kernels need no mask.

The integer route has 8 bits per value and a scale per 32, 88 words of four bytes per unit:

    0 … 63   the 256 signed bytes, in order
    64 … 71  float32 scale of each group of 32: its largest magnitude / 127
    72 … 87  float32 sum of each half group of 16: scale times the sum of its integers

The exact route has 272 words: 256 values in float32, then the sums.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packing import UNIT, units

# Where things are in a unit, in vectors of four words.
INT8_VECTORS: tl.constexpr = tl.constexpr(22)
INT8_SCALES: tl.constexpr = tl.constexpr(16)
INT8_SUMS: tl.constexpr = tl.constexpr(18)
EXACT_VECTORS: tl.constexpr = tl.constexpr(68)
EXACT_SUMS: tl.constexpr = tl.constexpr(64)


@triton.jit
def quantize_kernel(x, out, K, S, stride, GROUPS: tl.constexpr):
    """x [M, K] any float dtype, rows `stride` elements apart -> out int32 [M, S, 88]; values past K count as zero.

    Grid (M, ceil(8 S / GROUPS)): a program quantises GROUPS groups of 32 of one row.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    k = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(x + row * stride + k, mask=k < K, other=0.0).to(tl.float32)  # [GROUPS, 32]
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

    inside = group < S * 8
    unit = out + (row * S + group // 8) * (INT8_VECTORS * 4)
    j = group % 8
    tl.store((unit + j * 8)[:, None] + tl.arange(0, 8)[None, :], words, mask=inside[:, None])
    tl.store(unit + INT8_SCALES * 4 + j, scale.to(tl.int32, bitcast=True), mask=inside)
    at_sums = (unit + INT8_SUMS * 4 + j * 2)[:, None] + tl.arange(0, 2)[None, :]
    tl.store(at_sums, sums.to(tl.int32, bitcast=True), mask=inside[:, None])


@triton.jit
def spread_kernel(x, out, K, S, stride, GROUPS: tl.constexpr):
    """x [M, K] any float dtype, rows `stride` elements apart -> out float32 [M, S, 272]; grid as quantize_kernel's."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    k = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(x + row * stride + k, mask=k < K, other=0.0).to(tl.float32)
    inside = (group < S * 8)[:, None]
    unit = out + (row * S + group // 8) * (EXACT_VECTORS * 4)
    j = group % 8
    tl.store((unit + j * 32)[:, None] + tl.arange(0, 32)[None, :], values, mask=inside)
    sums = tl.sum(tl.reshape(values, (GROUPS, 2, 16)), 2)
    tl.store((unit + EXACT_SUMS * 4 + j * 2)[:, None] + tl.arange(0, 2)[None, :], sums, mask=inside)


def quantize(x: Tensor) -> Tensor:
    """x [M, K] with unit stride along K -> its units for the integer route, int32 [M, units(K), 88]."""
    return _in_units(quantize_kernel, x, INT8_VECTORS.value, torch.int32)


def spread(x: Tensor) -> Tensor:
    """x [M, K] with unit stride along K -> its units for the exact route, float32 [M, units(K), 272]."""
    return _in_units(spread_kernel, x, EXACT_VECTORS.value, torch.float32)


def _in_units(kernel: Any, x: Tensor, n_vectors: int, dtype: torch.dtype) -> Tensor:
    m, k = x.shape
    out = torch.empty(m, units(k), 4 * n_vectors, dtype=dtype, device=x.device)
    groups = min(64, triton.next_power_of_2(units(k) * 8))
    grid = (m, triton.cdiv(units(k) * 8, groups))
    kernel[grid](x, out, k, units(k), x.stride(0), GROUPS=groups, num_warps=4, enable_fp_fusion=True)
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
