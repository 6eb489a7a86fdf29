"""Attention of sequences with many new tokens over a paged cache: a program per block of queries and kv head."""

import triton
import triton.language as tl

from .scores import (
    CHANGING,
    HEADROOM,
    LOG2_E,
    attend_tile,
    end_key,
    first_key,
    fitted_queries,
    load_queries,
    store_output,
)


@triton.jit(do_not_specialize=CHANGING)
def attention_prefill_kernel(
    out,
    q,
    k_data,
    k_high,
    k_scales,
    v_data,
    v_high,
    v_scales,
    lut,
    sinks,
    starts,
    lengths,
    pages,
    pages_stride,
    n_sequences,
    few,
    scale,
    softcap,
    window,
    chunk,
    N_HEADS: tl.constexpr,
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
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FORM: tl.constexpr,
    SEQUENCES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    ISA: tl.constexpr,
):
    """q [n_tokens, N_HEADS, D] -> out [n_tokens, N_HEADS, DV] or its units (FORM).

    It takes the sequences with more than `few` new tokens.

    Sequence i has rows starts[i] … starts[i + 1] - 1 of q, the last of its lengths[i] tokens, and row i of pages.
    scale: that of the scores, times log2(e). sinks: None or [N_HEADS], a score per head that has no value.
    Grid (blocks, N_KV): with GROUP = N_HEADS / N_KV, ceil(new tokens * GROUP / BM) blocks for every sequence;
    n_tokens * GROUP // BM + n_sequences is always enough.
    """
    GROUP: tl.constexpr = N_HEADS // N_KV
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    # Block numbers are given out so that a sequence's first one follows from where its rows start.
    i = tl.arange(0, SEQUENCES)
    first_block = tl.load(starts + i, mask=i < n_sequences, other=0) * GROUP // BM + i
    sequence = tl.sum(((first_block <= block) & (i < n_sequences)).to(tl.int32), 0) - 1
    start = tl.load(starts + sequence)
    n_new = tl.load(starts + sequence + 1) - start
    length = tl.load(lengths + sequence)
    local = block - (start * GROUP // BM + sequence)
    n_blocks = tl.cdiv(n_new * GROUP, BM)
    if (n_new <= few) | (local >= n_blocks):
        return
    first_row, token, head, known = _rows(block, sequence, kv_head, start, n_new, GROUP, BM)
    position = length - n_new + token
    q_row = (start + token).to(tl.int64) * N_HEADS + head
    q0 = load_queries(q, q_row, known, 0, D0, D)
    q1 = load_queries(q, q_row, known, D0, D1, D) if D1 > 0 else q0
    q0, q1, factor = fitted_queries(q0, q1, scale, D1, K_TYPE)

    low = length - n_new + first_row // GROUP
    high = tl.minimum(length - n_new + (first_row + BM - 1) // GROUP, length - 1)
    first_of_row = first_key(position, window, chunk, CAUSAL, WINDOW, CHUNK)
    end_of_row = end_key(position, length, window, CAUSAL, WINDOW)
    begin = first_key(low, window, chunk, CAUSAL, WINDOW, CHUNK) // BN * BN
    end = end_key(high, length, window, CAUSAL, WINDOW)
    # Between these, all rows see all keys.
    full_begin = tl.cdiv(first_key(high, window, chunk, CAUSAL, WINDOW, CHUNK), BN) * BN
    full_end = end_key(low, length, window, CAUSAL, WINDOW) // BN * BN
    none = full_end <= full_begin
    full_begin = tl.where(none, begin, full_begin)
    full_end = tl.where(none, begin, full_end)

    if sinks is None:
        largest = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
    else:
        largest = tl.load(sinks + head, mask=known, other=0.0).to(tl.float32) * LOG2_E - HEADROOM
        total = tl.exp2(tl.full((BM,), HEADROOM, tl.float32))
    acc0 = tl.zeros((BM, DV0), tl.float32)
    acc1 = tl.zeros((BM, DV1 if DV1 > 0 else 1), tl.float32)
    table = pages + sequence.to(tl.int64) * pages_stride
    if ISA == "gfx11":
        # Its tensor cores hold queries in so many registers that a second loop would not find room.
        full_begin, full_end = begin, begin
    else:
        for at in tl.range(full_begin, full_end, BN, num_stages=STAGES):
            acc0, acc1, largest, total = attend_tile(
                *(acc0, acc1, largest, total, q0, q1, at + tl.arange(0, BN), end, first_of_row, end_of_row),
                *(table, kv_head, k_data, k_high, k_scales, v_data, v_high, v_scales, lut, factor, softcap),
                *(N_KV, D, D0, D1, DV, DV0, DV1, PAGE_SIZE, K_TYPE, V_TYPE, SOFTCAP, q.dtype.element_ty, False, ISA),
            )
    # The rest lies before and after: one loop for both keeps the code small.
    n_before = (full_begin - begin) // BN
    n_after = tl.cdiv(end - full_end, BN)
    for j in tl.range(0, n_before + n_after, num_stages=STAGES):
        at = tl.where(j < n_before, begin + j * BN, full_end + (j - n_before) * BN)
        acc0, acc1, largest, total = attend_tile(
            *(acc0, acc1, largest, total, q0, q1, at + tl.arange(0, BN), end, first_of_row, end_of_row),
            *(table, kv_head, k_data, k_high, k_scales, v_data, v_high, v_scales, lut, factor, softcap),
            *(N_KV, D, D0, D1, DV, DV0, DV1, PAGE_SIZE, K_TYPE, V_TYPE, SOFTCAP, q.dtype.element_ty, True, ISA),
        )
    # Read again, so that the compiler does not keep the rows' numbers in registers all the time.
    start = tl.load(starts + sequence, volatile=True)
    n_new = tl.load(starts + sequence + 1, volatile=True) - start
    _first_row, token, head, known = _rows(block, sequence, kv_head, start, n_new, GROUP, BM)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)
    store_output(out, acc0 * share[:, None], start + token, head, known, 0, DV, N_HEADS, FORM)
    if DV1 > 0:
        store_output(out, acc1 * share[:, None], start + token, head, known, DV0, DV, N_HEADS, FORM)


@triton.jit
def _rows(block, sequence, kv_head, start, n_new, GROUP: tl.constexpr, BM: tl.constexpr):
    """A block's first row among those of its sequence; the token and the head of each row, and whether there is one."""
    # The last blocks see most: they begin first.
    local = block - (start * GROUP // BM + sequence)
    first_row = (tl.cdiv(n_new * GROUP, BM) - 1 - local) * BM
    row = first_row + tl.arange(0, BM)
    return first_row, row // GROUP, kv_head * GROUP + row % GROUP, row < n_new * GROUP
