"""y = x W^T on tensor cores: a tile of W is decoded in registers and multiplied with a tile of x^T.

W is operand A of `tl.dot` and x^T operand B, so that on sm_90 wgmma takes the decoded weights from registers and even
16 rows of x make a full instruction (N = 16). One step of the loop is a unit of 256 weights per row of W.

The exact route rounds decoded weights to the type of x and accumulates in float32. The int8 route multiplies the
integers of both sides and scales every group of 32 in float32.

SHARED tiles have it the other way round: x is operand A, and W^T, operand B, goes through shared memory, where wgmma
reads it. A lane that has several rows of W (BN of more rows than there are lanes) stores 16 bytes of one at a time,
while moving weights into the lanes that wgmma wants them in takes two instructions each. BM is 64 at least.

Where there are too few tiles to fill the card, K is divided among SPLITS programs, each of which stores its sums;
`reduce_kernel` adds them in order, so that the result does not depend on who finished first.
"""

import triton
import triton.language as tl

from .activations import INT8_SCALES, INT8_SUMS, INT8_VECTORS
from .epilogue import glu
from .words import weights, weights16


@triton.jit
def _side_by_side(low, high):
    """[n, 16] and [n, 16] -> [n, 32]"""
    return tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (low.shape[0], 32))


@triton.jit
def _integers(low, high):
    """Words of two halves, [n, 4] each -> [n, 32] int8."""
    words = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (low.shape[0], 8))
    bytes = (words[:, :, None] >> (8 * tl.arange(0, 4))[None, None, :]).to(tl.int8)
    return tl.reshape(bytes, (low.shape[0], 32))


@triton.jit
def _exact_group(
    acc, low, high, scales, offsets, x, column, s, j: tl.constexpr, M, K, stride, EVEN: tl.constexpr, ISA: tl.constexpr
):
    """acc [BN, BM] plus group j of unit s: 32 weights of each row of W times those values of BM rows of x."""
    w_low, w_high = _numbers(low, high, scales, offsets, x.dtype.element_ty, ISA)
    k = s * 256 + j * 32 + tl.arange(0, 32)
    at = x + tl.minimum(column, M - 1).to(tl.int64)[None, :] * stride + k[:, None]
    values = tl.load(at) if EVEN else tl.load(at, mask=(k < K)[:, None], other=0.0)
    return tl.dot(_side_by_side(w_low, w_high).to(values.dtype), values, acc, input_precision="ieee")


@triton.jit
def _shared_group(acc, low, high, scales, offsets, x, column, s, j: tl.constexpr, M, K, stride, ISA: tl.constexpr):
    """The same into acc [BM, BN]. The halves stay apart: joined, a lane's weights of a row would alternate between
    them, and shared memory is stored in a lane's order."""
    halves = _numbers(low, high, scales, offsets, x.dtype.element_ty, ISA)
    for half in tl.static_range(2):
        k = s * 256 + j * 32 + half * 16 + tl.arange(0, 16)
        at = x + column.to(tl.int64)[:, None] * stride + k[None, :]
        values = tl.load(at, mask=(column < M)[:, None] & (k < K)[None, :], other=0.0)
        acc = tl.dot(values, tl.trans(halves[half].to(values.dtype)), acc, input_precision="ieee")
    return acc


@triton.jit
def _numbers(low, high, scales, offsets, DTYPE: tl.constexpr, ISA: tl.constexpr):
    if tl.float32 == DTYPE:
        return weights(low, high, scales, offsets, ISA)
    else:
        return weights16(low, high, scales, offsets, ISA)


@triton.jit
def _int8_group(acc, low, high, scales, offsets, x, column, s, j: tl.constexpr, M, S):
    """The same with quantised units of x (activations.py)."""
    unit = x + (tl.minimum(column, M - 1) * S + s) * (INT8_VECTORS * 4)
    k = tl.arange(0, 32)
    values = tl.load((unit.to(tl.pointer_type(tl.int8)) + j * 32)[None, :] + k[:, None])
    scale = tl.load(unit + INT8_SCALES * 4 + j).to(tl.float32, bitcast=True)[None, :]
    if len(scales) == 1:
        dot = tl.dot(_integers(low, high), values, out_dtype=tl.int32).to(tl.float32)
        acc += dot * scale * scales[0][:, None]
    else:
        # A dot product of integers takes 32 of them: the other half is multiplied with zeros.
        none = tl.zeros_like(low)
        dot_low = tl.dot(_integers(low, none), values, out_dtype=tl.int32).to(tl.float32)
        dot_high = tl.dot(_integers(none, high), values, out_dtype=tl.int32).to(tl.float32)
        acc += (dot_low * scales[0][:, None] + dot_high * scales[1][:, None]) * scale
    if len(offsets) > 0:
        sum_low = tl.load(unit + INT8_SUMS * 4 + 2 * j).to(tl.float32, bitcast=True)[None, :]
        sum_high = tl.load(unit + INT8_SUMS * 4 + 2 * j + 1).to(tl.float32, bitcast=True)[None, :]
        if len(offsets) == 1:
            acc += (sum_low + sum_high) * offsets[0][:, None]
        else:
            acc += sum_low * offsets[0][:, None] + sum_high * offsets[1][:, None]
    return acc


@triton.jit
def _tile(
    w,
    lut,
    x,
    N,
    K,
    S,
    M,
    stride,
    block,
    column,
    begin,
    end,
    DECODE: tl.constexpr,
    INT8: tl.constexpr,
    EVEN: tl.constexpr,
    SHARED: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows [block * BN, block * BN + BN) of W times rows `column` [BM] of x, over units [begin, end): [BN, BM]."""
    row = tl.minimum(block * BN + tl.arange(0, BN), N - 1)
    acc = tl.zeros((BM, BN) if SHARED else (BN, BM), tl.float32)
    for s in tl.range(begin, end, num_stages=STAGES):
        for j in tl.static_range(8):
            low, high, scales, offsets = DECODE(w, N * S, s * N + row, lut, j, ISA)
            if SHARED:
                acc = _shared_group(acc, low, high, scales, offsets, x, column, s, j, M, K, stride, ISA)
            elif INT8:
                acc = _int8_group(acc, low, high, scales, offsets, x, column, s, j, M, S)
            else:
                acc = _exact_group(acc, low, high, scales, offsets, x, column, s, j, M, K, stride, EVEN, ISA)
    return tl.trans(acc) if SHARED else acc


@triton.jit
def _store(acc, y, bias, residual, block, n, start, total_n, column, M, split, SPLITS: tl.constexpr, BN: tl.constexpr):
    """acc [BN, BM] -> its place in y [M, total_n], or, of several splits, in the sums [SPLITS, M, total_n] float32."""
    o = block * BN + tl.arange(0, BN)
    inside = (o < n)[:, None] & (column < M)[None, :]
    at = column.to(tl.int64)[None, :] * total_n + (start + o)[:, None]
    if SPLITS > 1:
        tl.store(y + split.to(tl.int64) * M * total_n + at, acc, mask=inside)
    else:
        if bias is not None:
            acc += tl.load(bias + start + o, mask=o < n, other=0.0).to(tl.float32)[:, None]
        if residual is not None:
            acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + at, acc.to(y.dtype.element_ty), mask=inside)


@triton.jit
def matmul_kernel(
    y,
    x,
    lut,
    bias,
    residual,
    w0,
    w1,
    w2,
    n0,
    n1,
    n2,
    M,
    K,
    S,
    stride,
    D0: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    INT8: tl.constexpr,
    EVEN: tl.constexpr,
    SHARED: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    SPLITS: tl.constexpr,
    ISA: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y [M, n0 + n1 + n2] = x [W0; W1; W2]^T (+ bias) (+ residual); arguments as in matvec.matvec_kernel.

    With SPLITS > 1, y is float32 [SPLITS, M, n0 + n1 + n2], and bias and residual are left to reduce_kernel.
    SHARED: see above; not with INT8.
    Grid (ceil(n0 / BN) + ceil(n1 / BN) + ceil(n2 / BN), ceil(M / BM), SPLITS).
    """
    block = tl.program_id(0)
    column = tl.program_id(1) * BM + tl.arange(0, BM)
    split = tl.program_id(2)
    begin, end = split * S // SPLITS, (split + 1) * S // SPLITS
    total_n = n0 + n1 + n2
    blocks0 = tl.cdiv(n0, BN)
    blocks1 = tl.cdiv(n1, BN)
    if D1 is None or block < blocks0:
        acc = _tile(
            *(w0, lut, x, n0, K, S, M, stride, block, column, begin, end),
            *(D0, INT8, EVEN, SHARED, BN, BM, ISA, STAGES),
        )
        _store(acc, y, bias, residual, block, n0, 0, total_n, column, M, split, SPLITS, BN)
    elif block < blocks0 + blocks1:
        block1 = block - blocks0
        acc = _tile(
            *(w1, lut, x, n1, K, S, M, stride, block1, column, begin, end),
            *(D1, INT8, EVEN, SHARED, BN, BM, ISA, STAGES),
        )
        _store(acc, y, bias, residual, block1, n1, n0, total_n, column, M, split, SPLITS, BN)
    elif D2 is not None:
        block2 = block - blocks0 - blocks1
        acc = _tile(
            *(w2, lut, x, n2, K, S, M, stride, block2, column, begin, end),
            *(D2, INT8, EVEN, SHARED, BN, BM, ISA, STAGES),
        )
        _store(acc, y, bias, residual, block2, n2, n0 + n1, total_n, column, M, split, SPLITS, BN)


@triton.jit
def matmul_glu_kernel(
    y,
    x,
    lut,
    bias,
    gate,
    up,
    N,
    M,
    K,
    S,
    stride,
    D_GATE: tl.constexpr,
    D_UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INT8: tl.constexpr,
    EVEN: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y [M, N] = ACTIVATION(x gate^T) * (x up^T). bias: None or that of gate and then of up, [2 N].

    Grid (ceil(N / BN), ceil(M / BM)).
    """
    block = tl.program_id(0)
    column = tl.program_id(1) * BM + tl.arange(0, BM)
    g = _tile(gate, lut, x, N, K, S, M, stride, block, column, 0, S, D_GATE, INT8, EVEN, False, BN, BM, ISA, STAGES)
    v = _tile(up, lut, x, N, K, S, M, stride, block, column, 0, S, D_UP, INT8, EVEN, False, BN, BM, ISA, STAGES)
    if bias is not None:
        o = block * BN + tl.arange(0, BN)
        g += tl.load(bias + o, mask=o < N, other=0.0).to(tl.float32)[:, None]
        v += tl.load(bias + N + o, mask=o < N, other=0.0).to(tl.float32)[:, None]
    _store(glu(g, v, ACTIVATION), y, None, None, block, N, 0, N, column, M, 0, 1, BN)


@triton.jit
def reduce_kernel(
    y, sums, bias, residual, N, step, ACTIVATION: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds the splits in order: sums [SPLITS, M, N] float32 -> y [M, N] (+ bias [N]) (+ residual [M, N]).

    With an ACTIVATION the sums are those of a gate and an up matrix side by side, [SPLITS, M, 2 N], and so is the
    bias, [2 N]. step: elements from one split to the next. Grid (M, ceil(N / BLOCK)).
    """
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o < N
    if ACTIVATION is None:
        value = _ordered_sum(sums + row * N + o, step, inside, SPLITS, BLOCK)
        if bias is not None:
            value += tl.load(bias + o, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            value += tl.load(residual + row * N + o, mask=inside, other=0.0).to(tl.float32)
    else:
        gate = _ordered_sum(sums + row * N * 2 + o, step, inside, SPLITS, BLOCK)
        up = _ordered_sum(sums + row * N * 2 + N + o, step, inside, SPLITS, BLOCK)
        if bias is not None:
            gate += tl.load(bias + o, mask=inside, other=0.0).to(tl.float32)
            up += tl.load(bias + N + o, mask=inside, other=0.0).to(tl.float32)
        value = glu(gate, up, ACTIVATION)
    tl.store(y + row * N + o, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _ordered_sum(at, step, inside, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    value = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        value += tl.load(at + split * step, mask=inside, other=0.0)
    return value
