"""Rows of a packed matrix as numbers: the embedding, and the workspace of large matrix products."""

import triton
import triton.language as tl

from .words import weights


@triton.jit
def rows_kernel(
    out,
    w,
    lut,
    ids,
    first,
    n,
    N,
    K,
    S,
    DECODE: tl.constexpr,
    R: tl.constexpr,
    ISA: tl.constexpr,
):
    """out [n, K] = rows ids [n] of W, or rows first … first + n - 1 where ids is None. An id outside W gives zeros.

    w: a packed matrix of N rows and S units per row. Grid (ceil(n / R), S): R rows of one unit each.
    """
    i = tl.program_id(0) * R + tl.arange(0, R)
    s = tl.program_id(1)
    row = first + i if ids is None else tl.load(ids + i, mask=i < n, other=0)
    known = (row >= 0) & (row < N)
    u = s * N + tl.where(known, row, 0).to(tl.int32)
    k = s * 256 + tl.arange(0, 16)
    for j in tl.static_range(8):
        low, high, scales, offsets = DECODE(w, N * S, u, lut, j, ISA)
        w_low, w_high = weights(low, high, scales, offsets, ISA)
        to = out + i.to(tl.int64)[:, None] * K + (k + j * 32)[None, :]
        inside = (i < n)[:, None] & (k + j * 32 < K)[None, :]
        w_low = tl.where(known[:, None], w_low, 0.0)
        w_high = tl.where(known[:, None], w_high, 0.0)
        tl.store(to, w_low.to(out.dtype.element_ty), mask=inside)
        tl.store(to + 16, w_high.to(out.dtype.element_ty), mask=(i < n)[:, None] & (k + j * 32 + 16 < K)[None, :])
