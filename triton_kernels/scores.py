"""What the attention kernels share: which rows of queries a program has, which keys they see, one step over a tile.

Rows: the heads that share a kv head are packed beside each other, so row r of a sequence's new tokens is token
r // GROUP, head r % GROUP of the group; keys and values are read once for all of them.

Heads need not be a power of two wide: columns come as one or two pieces, each a power of two (D0, D1; D1 = 0 for none).

The softmax is computed online (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135), with
powers of two: scores are multiplied with log2(e).
"""

import triton
import triton.language as tl

from .activations import store_groups
from .kv_cache import load_rows

# Numbers that change while a text grows: a kernel for each kind of them would be compiled in its midst.
CHANGING = ("pages_stride", "n_sequences")
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
# By so many powers of two weights may exceed 1: f16 goes up to nearly 2^16.
HEADROOM: tl.constexpr = tl.constexpr(15.0)


@triton.jit
def first_key(position, window, chunk, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The first key that a query at a position sees."""
    first = position * 0
    if WINDOW:
        first = tl.maximum(position - window + 1 if CAUSAL else position - window // 2, 0)
    if CHUNK:
        first = tl.maximum(first, position // chunk * chunk)
    return first


@triton.jit
def end_key(position, length, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """One past the last key that a query at a position sees."""
    if CAUSAL:
        return tl.minimum(position + 1, length)
    elif WINDOW:
        return tl.minimum(position + window // 2 + 1, length)
    else:
        return position * 0 + length


@triton.jit
def load_queries(q, row, known, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Columns FIRST … FIRST + WIDTH - 1 of rows `row` [BM] of q [rows, D]; zeros past D and for rows not known."""
    column = FIRST + tl.arange(0, WIDTH)
    mask = known[:, None] & (column < D)[None, :]
    return tl.load(q + row[:, None] * D + column[None, :], mask=mask, other=0.0)


@triton.constexpr_function
def operand_type(kind, dtype):
    """What tensor cores multiply where queries are of `dtype` and a cache is of type `kind`.

    16-bit queries meet quants in f16, to which these are decoded two at a time, with more of their bits than bf16 has.
    """
    return dtype if dtype == tl.float32 or kind in ("f32", "bf16") else tl.float16


@triton.jit
def fitted_queries(q0, q1, scale, D1: tl.constexpr, TYPE: tl.constexpr):
    """q0, q1 in the type of their product with keys, and what their scores are multiplied with: a number or [BM, 1].

    bf16 has a wider range than f16: there each row is multiplied with a power of two that puts its largest value at
    2^14 … 2^15, so that none overflows and only what is 2^-38 of the largest is lost.
    """
    KEYS: tl.constexpr = operand_type(TYPE, q0.dtype)
    if q0.dtype == KEYS:
        return q0, q1, scale
    else:
        size = tl.max(tl.abs(q0.to(tl.float32)), 1)
        if D1 > 0:
            size = tl.maximum(size, tl.max(tl.abs(q1.to(tl.float32)), 1))
        # 2^e as a float is (e + 127) << 23; a row of zeros has no exponent.
        exponent = tl.maximum(size.to(tl.int32, bitcast=True) >> 23, 15)[:, None]
        up = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
        down = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
        return (q0.to(tl.float32) * up).to(KEYS), (q1.to(tl.float32) * up).to(KEYS), scale * down


@triton.jit
def _capped(s, softcap):
    """softcap tanh(s / softcap) of scores in units of log2(e)."""
    # tanh(t) = 1 - 2 / (exp(2 t) + 1)
    return softcap * LOG2_E * (1.0 - 2.0 / (tl.exp2(s * (2.0 / softcap)) + 1.0))


@triton.jit
def attend_tile(
    acc0,
    acc1,
    largest,
    total,
    q0,
    q1,
    key,
    end,
    first_of_row,
    end_of_row,
    pages,
    kv_head,
    k_data,
    k_high,
    k_scales,
    v_data,
    v_high,
    v_scales,
    lut,
    factor,
    softcap,
    N_KV: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    DV: tl.constexpr,
    DV0: tl.constexpr,
    DV1: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    K_TYPE: tl.constexpr,
    V_TYPE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DTYPE: tl.constexpr,
    MASKED: tl.constexpr,
    ISA: tl.constexpr,
):
    """Takes keys `key` [BN] of a sequence into account: the new acc0, acc1, largest and total.

    q0, q1, factor: from fitted_queries; DTYPE: the type that they had. acc0 [BM, DV0], acc1 [BM, DV1]: sums of values;
    largest, total [BM]: the running maximum of the scores less HEADROOM, and the sum of their powers relative to that:
    weights reach up to 2^15, so that f16 has small ones, too. pages: the sequence's row of the page table. Keys from
    `end` on are not loaded.
    MASKED: rows see only keys first_of_row … end_of_row - 1; otherwise they see all of the tile.
    """
    # What lies beyond the end is some other token's or nobody's: the last key stands for it and is masked.
    place = tl.minimum(key, end - 1) if MASKED else key
    page = tl.load(pages + place // PAGE_SIZE)
    row = (page * PAGE_SIZE + place % PAGE_SIZE) * N_KV + kv_head
    k0 = load_rows(k_data, k_high, k_scales, lut, row, 0, D0, D, K_TYPE, q0.dtype, ISA)
    s = tl.dot(q0, tl.trans(k0), input_precision="ieee")
    if D1 > 0:
        k1 = load_rows(k_data, k_high, k_scales, lut, row, D0, D1, D, K_TYPE, q0.dtype, ISA)
        s = tl.dot(q1, tl.trans(k1), s, input_precision="ieee")
    s *= factor
    if SOFTCAP:
        s = _capped(s, softcap)
    if MASKED:
        seen = (key[None, :] >= first_of_row[:, None]) & (key[None, :] < end_of_row[:, None])
        s = tl.where(seen, s, float("-inf"))
    new = tl.maximum(largest, tl.max(s, 1) - HEADROOM)
    # A row that has not seen any key yet has no maximum to subtract.
    shift = tl.where(new == float("-inf"), 0.0, new) if MASKED else new
    p = tl.exp2(s - shift[:, None])
    faded = tl.exp2(largest - shift)
    total = total * faded + tl.sum(p, 1)
    VALUES: tl.constexpr = operand_type(V_TYPE, DTYPE)
    weight = p.to(VALUES)
    v0 = load_rows(v_data, v_high, v_scales, lut, row, 0, DV0, DV, V_TYPE, VALUES, ISA)
    acc0 = tl.dot(weight, v0, acc0 * faded[:, None], input_precision="ieee")
    if DV1 > 0:
        v1 = load_rows(v_data, v_high, v_scales, lut, row, DV0, DV1, DV, V_TYPE, VALUES, ISA)
        acc1 = tl.dot(weight, v1, acc1 * faded[:, None], input_precision="ieee")
    return acc0, acc1, new, total


@triton.jit
def store_output(
    out,
    value,
    token,
    head,
    known,
    FIRST: tl.constexpr,
    DV: tl.constexpr,
    N_HEADS: tl.constexpr,
    FORM: tl.constexpr,
):
    """value [BM, WIDTH] -> columns FIRST … of rows (token, head), each of DV values, as numbers or as units.

    FORM: "plain", out [n_tokens, N_HEADS, DV]; "int8" or "spread", a token's heads as units (activations.py).
    """
    BM: tl.constexpr = value.shape[0]
    WIDTH: tl.constexpr = value.shape[1]
    if FORM == "plain":
        column = FIRST + tl.arange(0, WIDTH)
        at = out + (token.to(tl.int64) * N_HEADS + head)[:, None] * DV + column[None, :]
        tl.store(at, value.to(out.dtype.element_ty), mask=known[:, None] & (column < DV)[None, :])
    else:
        GROUPS: tl.constexpr = WIDTH // 32
        part = FIRST // 32 + tl.arange(0, GROUPS)[None, :]
        inside = known[:, None] & (part < DV // 32)
        group = tl.where(inside, head[:, None] * (DV // 32) + part, -1)
        row = tl.broadcast_to(token[:, None], (BM, GROUPS))
        n_units = (N_HEADS * DV + 255) // 256
        store_groups(
            out,
            tl.reshape(row, (BM * GROUPS,)).to(tl.int64),
            tl.reshape(group, (BM * GROUPS,)),
            n_units,
            tl.reshape(value, (BM * GROUPS, 32)),
            FORM == "int8",
        )
