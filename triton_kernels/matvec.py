"""y = x W^T for few rows of x: every weight is read once and multiplied where it was decoded.

A lane decodes one unit of 256 weights of one row of W at a time. The R lanes beside each other have the same unit of R
neighbouring rows, so that they read one stretch of memory and the same activations; LANES / R lanes share a row. No
lane needs another's data before the sum at the end: there is neither shared memory nor a barrier in the loop.

Up to three matrices (Q, K and V) are served by one launch, their outputs side by side, each with its own decoder;
`matvec_glu_kernel` reads the same rows of two matrices and combines them; `matvec_norm_kernel` adds to the residual
stream, and the last of its programs norms the result for the next half of the layer.
"""

import triton
import triton.language as tl

from .activations import EXACT_SUMS, EXACT_VECTORS, INT8_SCALES, INT8_SUMS, INT8_VECTORS, store_form
from .arrival import last_to_arrive
from .epilogue import finish, glu
from .norms import norm_row
from .words import dot4, four_floats, four_of, pick, vector


@triton.jit
def _half_dot(weights, x, at, index: tl.constexpr, acc, INT8: tl.constexpr, SCALES: tl.constexpr, ISA: tl.constexpr):
    """acc [L, 4] plus 16 weights per lane times the 16 activations at vector `index`, four partial sums per lane."""
    if INT8:
        return dot4(weights, vector(x, 1, at, index), acc, ISA)
    else:
        for i in tl.static_range(4):
            four = four_of(weights, i) if SCALES == 0 else four_floats(weights, i, ISA)
            acc += four * vector(x, 1, at, 4 * index + i)
        return acc


@triton.jit
def _unit_dot(
    acc,
    w,
    base,
    u,
    lut,
    x,
    S,
    s,
    first,
    M,
    DECODE: tl.constexpr,
    INT8: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
):
    """acc plus the lanes' units of weights times unit s of rows [first, first + BM) of the activations."""
    VECTORS: tl.constexpr = INT8_VECTORS if INT8 else EXACT_VECTORS
    SUMS: tl.constexpr = INT8_SUMS if INT8 else EXACT_SUMS
    none = tl.zeros((u.shape[0], 4), tl.int32 if INT8 else tl.float32)
    for j in tl.static_range(8):
        low, high, scales, offsets = DECODE(w, base, u, lut, j, ISA)
        total = ()
        for m in tl.static_range(BM):
            at = (tl.minimum(first + m, M - 1) * S + s) * VECTORS
            dot_low = _half_dot(low, x, at, 2 * j, none, INT8, len(scales), ISA)
            if len(scales) == 2:
                dot_high = tl.sum(_half_dot(high, x, at, 2 * j + 1, none, INT8, len(scales), ISA), 1).to(tl.float32)
                value = tl.sum(dot_low, 1).to(tl.float32) * scales[0] + dot_high * scales[1]
            else:
                value = tl.sum(_half_dot(high, x, at, 2 * j + 1, dot_low, INT8, len(scales), ISA), 1).to(tl.float32)
                if len(scales) == 1:
                    value *= scales[0]
            if INT8:
                value *= pick(vector(x, 1, at, INT8_SCALES + j // 4), j % 4).to(tl.float32, bitcast=True)
            if len(offsets) > 0:
                sums = vector(x, 1, at, SUMS + j // 2).to(tl.int32, bitcast=True)
                sum_low = pick(sums, j % 2 * 2).to(tl.float32, bitcast=True)
                sum_high = pick(sums, j % 2 * 2 + 1).to(tl.float32, bitcast=True)
                if len(offsets) == 1:
                    value += (sum_low + sum_high) * offsets[0]
                else:
                    value += sum_low * offsets[0] + sum_high * offsets[1]
            total += (acc[m] + value,)
        acc = total
    return acc


@triton.jit
def _rows_dot(
    w,
    lut,
    x,
    N,
    S,
    M,
    block,
    first,
    DECODE: tl.constexpr,
    INT8: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
):
    """Rows [block * R, block * R + R) of W times rows [first, first + BM) of x: a tuple of BM tensors [R]."""
    lane = tl.arange(0, LANES)
    row = tl.minimum(block * R + lane % R, N - 1)
    ACROSS: tl.constexpr = LANES // R
    acc = ()
    for _ in tl.static_range(BM):
        acc += (tl.zeros((LANES,), tl.float32),)
    for start in range(0, S, ACROSS):
        # A lane past the end decodes the last unit and multiplies with nothing.
        s = start + lane // R
        inside = s < S
        s = tl.minimum(s, S - 1)
        new = _unit_dot(acc, w, N * S, s * N + row, lut, x, S, s, first, M, DECODE, INT8, BM, ISA)
        kept = ()
        for m in tl.static_range(BM):
            kept += (tl.where(inside, new[m], acc[m]),)
        acc = kept
    total = ()
    for m in tl.static_range(BM):
        total += (tl.sum(tl.reshape(acc[m], (ACROSS, R)), 0),)
    return total


@triton.jit
def matvec_kernel(
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
    S,
    D0: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    INT8: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
):
    """y [M, n0 + n1 + n2] = x [W0; W1; W2]^T (+ bias [n0 + n1 + n2]) (+ residual [M, n0 + n1 + n2]).

    x: M rows of S units of activations, quantised (INT8) or not (activations.py). w: packed matrices of n rows and S
    units per row; D: their decoders, None where there is none. bias, residual: None or pointers.
    Grid (ceil(M / BM), ceil(n0 / R) + ceil(n1 / R) + ceil(n2 / R)): programs that share weights run beside each other.
    """
    first = tl.program_id(0) * BM
    block = tl.program_id(1)
    total_n = n0 + n1 + n2
    blocks0 = tl.cdiv(n0, R)
    blocks1 = tl.cdiv(n1, R)
    if D1 is None or block < blocks0:
        acc = _rows_dot(w0, lut, x, n0, S, M, block, first, D0, INT8, R, LANES, BM, ISA)
        finish(acc, y, bias, residual, block * R, n0, 0, total_n, first, M, R, BM)
    elif block < blocks0 + blocks1:
        block1 = block - blocks0
        acc = _rows_dot(w1, lut, x, n1, S, M, block1, first, D1, INT8, R, LANES, BM, ISA)
        finish(acc, y, bias, residual, block1 * R, n1, n0, total_n, first, M, R, BM)
    elif D2 is not None:
        block2 = block - blocks0 - blocks1
        acc = _rows_dot(w2, lut, x, n2, S, M, block2, first, D2, INT8, R, LANES, BM, ISA)
        finish(acc, y, bias, residual, block2 * R, n2, n0 + n1, total_n, first, M, R, BM)


@triton.jit
def matvec_norm_kernel(
    y,
    x,
    lut,
    bias,
    residual,
    w,
    N,
    M,
    S,
    arrived,
    stream,
    out,
    weight,
    norm_bias,
    eps,
    post_weight,
    post_eps,
    DECODE: tl.constexpr,
    LAYER: tl.constexpr,
    FORM: tl.constexpr,
    GROUPS: tl.constexpr,
    INT8: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
):
    """matvec_kernel of one matrix, and norms.norm_kernel of what it stores, by the last program that arrives.

    Without post_weight y is the stream, residual added, and `stream` is None; with it y is the product alone, and the
    residual is added by the norm. arrived: int32 [ceil(M / BM)], zero before and after every launch. out: the norm's
    result; N <= 32 GROUPS. Grid (ceil(M / BM), ceil(N / R)).
    """
    first = tl.program_id(0) * BM
    block = tl.program_id(1)
    acc = _rows_dot(w, lut, x, N, S, M, block, first, DECODE, INT8, R, LANES, BM, ISA)
    finish(acc, y, bias, residual if post_weight is None else None, block * R, N, 0, N, first, M, R, BM)
    if last_to_arrive(arrived + tl.program_id(0), tl.num_programs(1), ISA):
        for m in range(BM):
            if first + m < M:
                row = (first + m).to(tl.int64)
                to_y, added, to_stream = y + row * N, None, None
                if post_weight is not None:
                    to_stream = stream + row * N
                    if residual is not None:
                        added = residual + row * N
                norm_row(
                    to_y,
                    added,
                    to_stream,
                    out,
                    row,
                    weight,
                    norm_bias,
                    eps,
                    post_weight,
                    post_eps,
                    N,
                    tl.cdiv(N, 256),
                    LAYER,
                    FORM,
                    GROUPS,
                    ".cg",
                )


@triton.jit
def _gated(
    gate,
    up,
    lut,
    x,
    bias,
    N,
    S,
    M,
    block,
    first,
    D_GATE: tl.constexpr,
    D_UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INT8: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
):
    """Columns [block * R, block * R + R) of ACTIVATION(x gate^T) * (x up^T): a tuple of BM tensors [R]."""
    g = _rows_dot(gate, lut, x, N, S, M, block, first, D_GATE, INT8, R, LANES, BM, ISA)
    v = _rows_dot(up, lut, x, N, S, M, block, first, D_UP, INT8, R, LANES, BM, ISA)
    o = block * R + tl.arange(0, R)
    product = ()
    for m in tl.static_range(BM):
        opened, raised = g[m], v[m]
        if bias is not None:
            opened += tl.load(bias + o, mask=o < N, other=0.0).to(tl.float32)
            raised += tl.load(bias + N + o, mask=o < N, other=0.0).to(tl.float32)
        product += (glu(opened, raised, ACTIVATION),)
    return product


@triton.jit
def matvec_glu_kernel(
    y,
    x,
    lut,
    bias,
    gate,
    up,
    N,
    M,
    S,
    D_GATE: tl.constexpr,
    D_UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INT8: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
):
    """y [M, N] = ACTIVATION(x gate^T) * (x up^T). Grid (ceil(M / BM), ceil(N / R)); arguments as in matvec_kernel.

    bias: None or that of gate and then of up, [2 N].
    """
    first = tl.program_id(0) * BM
    block = tl.program_id(1)
    product = _gated(gate, up, lut, x, bias, N, S, M, block, first, D_GATE, D_UP, ACTIVATION, INT8, R, LANES, BM, ISA)
    finish(product, y, None, None, block * R, N, 0, N, first, M, R, BM)


@triton.jit
def matvec_glu_units_kernel(
    out,
    x,
    lut,
    bias,
    gate,
    up,
    N,
    M,
    S,
    D_GATE: tl.constexpr,
    D_UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    FORM: tl.constexpr,
    INT8: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    BM: tl.constexpr,
    ISA: tl.constexpr,
):
    """matvec_glu_kernel whose result is stored as units. R is a multiple of 32, so that a group's values lie in one
    program. Grid (ceil(M / BM), 256 ceil(N / 256) / R)."""
    first = tl.program_id(0) * BM
    block = tl.program_id(1)
    product = _gated(gate, up, lut, x, bias, N, S, M, block, first, D_GATE, D_UP, ACTIVATION, INT8, R, LANES, BM, ISA)
    inside = block * R + tl.arange(0, R) < N
    group = block * (R // 32) + tl.arange(0, R // 32)
    for m in tl.static_range(BM):
        values = tl.reshape(tl.where(inside, product[m], 0.0), (R // 32, 32))
        store_form(out, first + m, tl.where(first + m < M, group, -1), N, tl.cdiv(N, 256), values, FORM)
