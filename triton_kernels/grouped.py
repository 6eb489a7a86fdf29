"""Products with the experts that tokens were sent to, over stacks of packed matrices.

An assignment is a token and one of its n_used experts; a = token * n_used + k counts them. Few assignments are
multiplied one by one, as matvec.py does it. Many are sorted by expert, so that a tile of matmul.py takes those of one
expert; an expert's assignments are filled up to whole tiles. How many tiles that makes only the device knows: programs
are launched for as many as there can be, and those past the end do nothing.

Nothing depends on who finished first: the products of a token are added in the order of its experts. The norm that the
next half of the layer begins with is computed by the last of a token's programs.

ids and shares: [n, n_used], int32 and float32. An id that names no expert counts as the nearest that does. A stack: its
packed words, an expert's `vectors` vectors of four words after those of the one before. Biases: a row per expert.
"""

import triton
import triton.language as tl

from .activations import store_groups
from .arrival import last_to_arrive
from .epilogue import glu
from .matmul import _tile
from .matvec import _rows_dot
from .norms import norm_held, norm_row


@triton.jit
def _expert(id, E):
    """An id of any kind -> one of an expert, int64."""
    return tl.minimum(tl.maximum(id, 0), E - 1).to(tl.int64)


@triton.jit
def _matrix(w, vectors, expert):
    """An expert's words. The multiple of four tells the compiler that they are 16-byte aligned."""
    return w + expert * vectors * 4


# ---- an assignment at a time ----


@triton.jit
def expert_glu_kernel(
    hidden,
    x,
    lut,
    ids,
    gate,
    up,
    gate_bias,
    up_bias,
    gate_vectors,
    up_vectors,
    E,
    N,
    M,
    S,
    hidden_S,
    n_used,
    D_GATE: tl.constexpr,
    D_UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INT8: tl.constexpr,
    HIDDEN_INT8: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    ISA: tl.constexpr,
):
    """hidden [assignments, hidden_S units] = glu(x gate_e^T (+ bias), x up_e^T (+ bias)), in units (activations.py).

    x: M tokens of S units, quantised (INT8) or not. gate, up: stacks of matrices of N rows. Grid (assignments,
    hidden_S * 256 / R): R rows, a multiple of 32, of one assignment; the units are filled up with zeros.
    """
    a = tl.program_id(0)
    block = tl.program_id(1)
    o = block * R + tl.arange(0, R)
    value = tl.zeros((R,), tl.float32)
    if block * R < N:
        e = _expert(tl.load(ids + a), E)
        token = a // n_used
        g = _rows_dot(_matrix(gate, gate_vectors, e), lut, x, N, S, M, block, token, D_GATE, INT8, R, LANES, 1, ISA)[0]
        u = _rows_dot(_matrix(up, up_vectors, e), lut, x, N, S, M, block, token, D_UP, INT8, R, LANES, 1, ISA)[0]
        if gate_bias is not None:
            g += tl.load(gate_bias + e * N + o, mask=o < N, other=0.0).to(tl.float32)
        if up_bias is not None:
            u += tl.load(up_bias + e * N + o, mask=o < N, other=0.0).to(tl.float32)
        value = tl.where(o < N, glu(g, u, ACTIVATION), 0.0)
    group = block * (R // 32) + tl.arange(0, R // 32)
    store_groups(hidden, a.to(tl.int64), group, hidden_S, tl.reshape(value, (R // 32, 32)), HIDDEN_INT8)


@triton.jit
def _weighted(acc, product, bias, share, e, o, N):
    """acc plus a product [R], with its expert's bias, times its share."""
    if bias is not None:
        product += tl.load(bias + e * N + o, mask=o < N, other=0.0).to(tl.float32)
    return acc + share * product


@triton.jit
def _store_token(acc, y, residual, token, o, N):
    at = token.to(tl.int64) * N + o
    if residual is not None:
        acc += tl.load(residual + at, mask=o < N, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=o < N)


@triton.jit
def _sum_of_experts(products, ids, shares, bias, token, o, E, N, n_used):
    """Outputs o of a token, of any shape, from the products of its assignments [assignments, N] float32, in order."""
    acc = tl.zeros(o.shape, tl.float32)
    for k in range(n_used):
        a = token * n_used + k
        e = _expert(tl.load(ids + a), E)
        product = tl.load(products + a.to(tl.int64) * N + o, mask=o < N, other=0.0, cache_modifier=".cg")
        acc = _weighted(acc, product, bias, tl.load(shares + a), e, o, N)
    return acc


@triton.jit
def _finish(
    t, y, residual, token, o, N, norm, LAYER: tl.constexpr, FORM: tl.constexpr, GROUPS: tl.constexpr, ISA: tl.constexpr
):
    """Stores outputs o of a token; where its other blocks are stored, too, norms the row as expert_down_kernel says."""
    arrived, stream, out, weight, norm_bias, eps, post_weight, post_eps = norm
    row = token.to(tl.int64)
    _store_token(t, y, residual if post_weight is None else None, token, o, N)
    if weight is not None:
        last = last_to_arrive(arrived + token, tl.num_programs(1), ISA)
        if last:
            to_y, added, to_stream = y + row * N, None, None
            if post_weight is not None:
                to_stream = stream + row * N
                if residual is not None:
                    added = residual + row * N
            norm_row(
                *(to_y, added, to_stream, out, row, weight, norm_bias, eps, post_weight, post_eps),
                *(N, tl.cdiv(N, 256), LAYER, FORM, GROUPS, ".cg"),
            )


@triton.jit
def expert_down_kernel(
    y,
    products,
    counters,
    hidden,
    lut,
    ids,
    shares,
    residual,
    down,
    bias,
    vectors,
    E,
    N,
    M,
    S,
    n_used,
    arrived,
    stream,
    out,
    weight,
    norm_bias,
    eps,
    post_weight,
    post_eps,
    DECODE: tl.constexpr,
    INT8: tl.constexpr,
    SPLIT: tl.constexpr,
    LAYER: tl.constexpr,
    FORM: tl.constexpr,
    GROUPS: tl.constexpr,
    R: tl.constexpr,
    LANES: tl.constexpr,
    ISA: tl.constexpr,
):
    """y [n, N] = sum over a token's experts of share * (hidden down_e^T (+ bias)) (+ residual [n, N]), and its norm.

    hidden: M assignments of S units, quantised (INT8) or not. Grid (n, ceil(N / R), SPLIT ? n_used : 1). SPLIT: a
    program has one expert, stores what it finds to products [M, N], and the last of a token's programs adds them up;
    counters [n * ceil(N / R)] are zero before and after. Otherwise a program takes the experts one after the other.

    weight: None, or the last of a token's programs norms y as matvec.matvec_norm_kernel does: out, stream, post_weight
    as there, N <= 32 GROUPS; arrived [n] is zero before and after.
    """
    token = tl.program_id(0)
    block = tl.program_id(1)
    o = block * R + tl.arange(0, R)
    norm = (arrived, stream, out, weight, norm_bias, eps, post_weight, post_eps)
    if SPLIT:
        a = token * n_used + tl.program_id(2)
        w = _matrix(down, vectors, _expert(tl.load(ids + a), E))
        product = _rows_dot(w, lut, hidden, N, S, M, block, a, DECODE, INT8, R, LANES, 1, ISA)[0]
        tl.store(products + a.to(tl.int64) * N + o, product, mask=o < N)
        if last_to_arrive(counters + token * tl.num_programs(1) + block, n_used, ISA):
            acc = _sum_of_experts(products, ids, shares, bias, token, o, E, N, n_used)
            _finish(acc, y, residual, token, o, N, norm, LAYER, FORM, GROUPS, ISA)
    else:
        acc = tl.zeros((R,), tl.float32)
        for k in range(n_used):
            a = token * n_used + k
            e = _expert(tl.load(ids + a), E)
            w = _matrix(down, vectors, e)
            product = _rows_dot(w, lut, hidden, N, S, M, block, a, DECODE, INT8, R, LANES, 1, ISA)[0]
            acc = _weighted(acc, product, bias, tl.load(shares + a), e, o, N)
        _finish(acc, y, residual, token, o, N, norm, LAYER, FORM, GROUPS, ISA)


# ---- assignments sorted by expert ----


@triton.jit
def sort_kernel(ids, order, starts, A, E, BLOCK: tl.constexpr):
    """ids [A] -> order [A], the assignments by expert, an expert's in ascending order; starts [E + 1], where an
    expert's begin. Grid (E)."""
    e = tl.program_id(0)
    smaller = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, A, BLOCK):
        a = begin + tl.arange(0, BLOCK)
        found = _expert(tl.load(ids + a, mask=a < A, other=0), E)
        smaller += ((found < e) & (a < A)).to(tl.int32)
    start = tl.sum(smaller)
    tl.store(starts + e, start)
    tl.store(starts + E, A, mask=e == E - 1)
    for begin in range(0, A, BLOCK):
        a = begin + tl.arange(0, BLOCK)
        found = _expert(tl.load(ids + a, mask=a < A, other=0), E)
        mine = (found == e) & (a < A)
        tl.store(order + start + tl.cumsum(mine.to(tl.int32), 0) - 1, a, mask=mine)
        start += tl.sum(mine.to(tl.int32))


@triton.jit
def _columns(starts, block, E, BM: tl.constexpr, E2: tl.constexpr):
    """Of a block of BM sorted assignments: their expert, past the end E or more; the first of them; and the end of the
    expert's. E2: the power of two from E on."""
    e = tl.arange(0, E2)
    begin = tl.load(starts + e, mask=e < E, other=0)
    end = tl.load(starts + e + 1, mask=e < E, other=0)
    n_blocks = tl.cdiv(end - begin, BM)
    after = tl.cumsum(n_blocks, 0)
    expert = tl.sum((after <= block).to(tl.int32), 0)
    first = tl.sum(tl.where(e == expert, begin + (block - after + n_blocks) * BM, 0), 0)
    return expert, first, tl.sum(tl.where(e == expert, end, 0), 0)


@triton.jit
def grouped_glu_kernel(
    hidden,
    x,
    lut,
    order,
    starts,
    gate,
    up,
    gate_bias,
    up_bias,
    gate_vectors,
    up_vectors,
    E,
    N,
    M,
    K,
    S,
    stride,
    n_used,
    D_GATE: tl.constexpr,
    D_UP: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INT8: tl.constexpr,
    EVEN: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    E2: tl.constexpr,
    ISA: tl.constexpr,
    STAGES: tl.constexpr,
):
    """hidden [assignments in order, N] = glu(x gate_e^T (+ bias), x up_e^T (+ bias)).

    x: M tokens, as matmul.matmul_kernel takes them. Grid (ceil(N / BN), as many blocks of BM as there can be).
    """
    block = tl.program_id(0)
    expert, first, end = _columns(starts, tl.program_id(1), E, BM, E2)
    if expert < E:
        e = expert.to(tl.int64)
        column = first + tl.arange(0, BM)
        token = tl.load(order + column, mask=column < end, other=0) // n_used
        w = _matrix(gate, gate_vectors, e)
        g = _tile(w, lut, x, N, K, S, M, stride, block, token, 0, S, D_GATE, INT8, EVEN, False, BN, BM, ISA, STAGES)
        w = _matrix(up, up_vectors, e)
        u = _tile(w, lut, x, N, K, S, M, stride, block, token, 0, S, D_UP, INT8, EVEN, False, BN, BM, ISA, STAGES)
        o = block * BN + tl.arange(0, BN)
        if gate_bias is not None:
            g += tl.load(gate_bias + e * N + o, mask=o < N, other=0.0).to(tl.float32)[:, None]
        if up_bias is not None:
            u += tl.load(up_bias + e * N + o, mask=o < N, other=0.0).to(tl.float32)[:, None]
        at = column.to(tl.int64)[None, :] * N + o[:, None]
        value = glu(g, u, ACTIVATION).to(hidden.dtype.element_ty)
        tl.store(hidden + at, value, mask=(o < N)[:, None] & (column < end)[None, :])


@triton.jit
def grouped_down_kernel(
    products,
    hidden,
    lut,
    order,
    starts,
    down,
    vectors,
    E,
    N,
    M,
    K,
    S,
    stride,
    DECODE: tl.constexpr,
    INT8: tl.constexpr,
    EVEN: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
    E2: tl.constexpr,
    ISA: tl.constexpr,
    STAGES: tl.constexpr,
):
    """products [M assignments, N] float32 = hidden [M in order, K] down_e^T. Grid as grouped_glu_kernel's."""
    block = tl.program_id(0)
    expert, first, end = _columns(starts, tl.program_id(1), E, BM, E2)
    if expert < E:
        column = first + tl.arange(0, BM)
        w = _matrix(down, vectors, expert.to(tl.int64))
        acc = _tile(
            *(w, lut, hidden, N, K, S, M, stride, block, column, 0, S),
            *(DECODE, INT8, EVEN, False, BN, BM, ISA, STAGES),
        )
        o = block * BN + tl.arange(0, BN)
        a = tl.load(order + column, mask=column < end, other=0)
        at = a.to(tl.int64)[None, :] * N + o[:, None]
        tl.store(products + at, acc, mask=(o < N)[:, None] & (column < end)[None, :])


@triton.jit
def combine_kernel(y, products, ids, shares, residual, bias, E, N, n_used, BLOCK: tl.constexpr):
    """products [n * n_used, N] float32 -> y [n, N], as expert_down_kernel adds them. Grid (n, ceil(N / BLOCK))."""
    token = tl.program_id(0)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = _sum_of_experts(products, ids, shares, bias, token, o, E, N, n_used)
    _store_token(acc, y, residual, token, o, N)


@triton.jit
def combine_norm_kernel(
    stream,
    products,
    ids,
    shares,
    residual,
    bias,
    E,
    N,
    n_used,
    out,
    weight,
    norm_bias,
    eps,
    post_weight,
    post_eps,
    LAYER: tl.constexpr,
    FORM: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """combine_kernel, and norms.norm_kernel of what it stores, to `stream` and `out`. N <= 32 GROUPS. Grid (n)."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    o = tl.arange(0, GROUPS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    t = _sum_of_experts(products, ids, shares, bias, token, o, E, N, n_used)
    added = None
    if residual is not None:
        added = residual + row * N
    if post_weight is not None or residual is None:
        t = t.to(stream.dtype.element_ty).to(tl.float32)
    by = (weight, norm_bias, eps, post_weight, post_eps)
    norm_held(t, stream, added, stream + row * N, out, row, *by, N, tl.cdiv(N, 256), LAYER, FORM, GROUPS)
