"""Attention of sequences with few new tokens over a long paged cache: keys are divided among programs.

A sequence's keys are cut into chunks by its own length alone, so a result does not depend on what else is in the batch.
A unit of work is one chunk for one kv head and one block of rows. A fixed number of programs takes the units in turn,
and every program works out from the lengths which units there are: a captured graph replays at any length.

Chunks of one row are put together by the program that finishes last (a counter says which), in order: the result does
not depend on who that was. Split-KV as in Flash-Decoding (Dao et al., 2023).
"""

import triton
import triton.language as tl

from .arrival import last_to_arrive
from .scores import CHANGING, LOG2_E, attend_tile, end_key, first_key, fitted_queries, load_queries, store_output

# Numbers of the workspace that a program reads at once.
COMBINED_VALUES: tl.constexpr = tl.constexpr(8192)


@triton.jit
def _division(
    start,
    stop,
    length,
    few,
    window,
    chunk,
    min_keys,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    """How a sequence's work is divided: the first key, keys per chunk, chunks, and blocks of rows (0: not ours).

    At least min_keys keys to a chunk, at most PARTS chunks.
    """
    n_new = stop - start
    begin = first_key(length - n_new, window, chunk, CAUSAL, WINDOW, CHUNK)
    n_keys = length - begin
    keys = tl.cdiv(tl.maximum(min_keys, tl.cdiv(n_keys, PARTS)), BN) * BN
    blocks = tl.where((n_new <= few) & (length > 0), tl.cdiv(n_new * GROUP, BM), 0)
    return begin, keys, tl.maximum(tl.cdiv(n_keys, keys), 1), blocks


@triton.jit(do_not_specialize=CHANGING)
def attention_decode_kernel(
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
    partial,
    counters,
    pages_stride,
    n_sequences,
    few,
    min_keys,
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
    PARTS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
    ISA: tl.constexpr,
):
    """As attention_prefill_kernel, for sequences of at most `few` new tokens. Grid (any number of programs,).

    partial: float32 [new tokens of these sequences, N_HEADS, PARTS, DV + 2], for unfinished sums with their maximum and
    total.
    counters: int32, zeros, one per block of rows and kv head (block numbers as in attention_prefill_kernel); the kernel
    leaves them zero. min_keys: the least keys to a chunk.
    """
    GROUP: tl.constexpr = N_HEADS // N_KV
    i = tl.arange(0, SEQUENCES)
    ours = i < n_sequences
    all_starts = tl.load(starts + i, mask=ours, other=0)
    all_stops = tl.load(starts + i + 1, mask=ours, other=0)
    all_lengths = tl.load(lengths + i, mask=ours, other=0)
    _begins, _keys_of, n_chunks_of, blocks_of = _division(
        *(all_starts, all_stops, all_lengths, few, window, chunk, min_keys),
        *(GROUP, CAUSAL, WINDOW, CHUNK, PARTS, BM, BN),
    )
    units_of = n_chunks_of * blocks_of * N_KV
    new_of = tl.where(blocks_of > 0, all_stops - all_starts, 0)
    ends = tl.cumsum(units_of, 0)
    n_units = tl.sum(units_of, 0)
    # What all units compute alike would fill registers during the loops over keys: it is cheap to compute again.
    for unit in tl.range(tl.program_id(0), n_units, tl.num_programs(0), num_stages=1, disable_licm=True):
        sequence = tl.sum((ends <= unit).to(tl.int32), 0)
        local = unit - tl.sum(tl.where(i < sequence, units_of, 0), 0)
        start, stop = tl.load(starts + sequence), tl.load(starts + sequence + 1)
        length = tl.load(lengths + sequence)
        begin, keys, n_chunks, _n_blocks = _division(
            *(start, stop, length, few, window, chunk, min_keys),
            *(GROUP, CAUSAL, WINDOW, CHUNK, PARTS, BM, BN),
        )
        # Heads run fastest: programs beside each other read neighbouring rows of the cache.
        kv_head = local % N_KV
        part = local // N_KV % n_chunks
        block = local // N_KV // n_chunks

        row = block * BM + tl.arange(0, BM)
        known = row < (stop - start) * GROUP
        token, head = row // GROUP, kv_head * GROUP + row % GROUP
        position = length - (stop - start) + token
        q_row = (start + token).to(tl.int64) * N_HEADS + head
        q0 = load_queries(q, q_row, known, 0, D0, D)
        q1 = load_queries(q, q_row, known, D0, D1, D) if D1 > 0 else q0
        q0, q1, factor = fitted_queries(q0, q1, scale, D1, K_TYPE)
        first_of_row = first_key(position, window, chunk, CAUSAL, WINDOW, CHUNK)
        end_of_row = end_key(position, length, window, CAUSAL, WINDOW)

        largest = tl.full((BM,), float("-inf"), tl.float32)
        total = tl.zeros((BM,), tl.float32)
        acc0 = tl.zeros((BM, DV0), tl.float32)
        acc1 = tl.zeros((BM, DV1 if DV1 > 0 else 1), tl.float32)
        table = pages + sequence.to(tl.int64) * pages_stride
        stop_key = tl.minimum(begin + (part + 1) * keys, length)
        for at in tl.range(begin + part * keys, stop_key, BN, num_stages=STAGES):
            acc0, acc1, largest, total = attend_tile(
                *(acc0, acc1, largest, total, q0, q1, at + tl.arange(0, BN), length, first_of_row, end_of_row),
                *(table, kv_head, k_data, k_high, k_scales, v_data, v_high, v_scales, lut, factor, softcap),
                *(N_KV, D, D0, D1, DV, DV0, DV1, PAGE_SIZE, K_TYPE, V_TYPE, SOFTCAP, q.dtype.element_ty, True, ISA),
            )
        if n_chunks == 1:
            _finish(
                *(out, acc0, acc1, largest, total, sinks, start + token, head, known),
                *(DV, DV0, DV1, N_HEADS, FORM),
            )
        else:
            first_token = tl.sum(tl.where(i < sequence, new_of, 0), 0)
            at_row = partial + ((first_token + token).to(tl.int64) * N_HEADS + head) * (PARTS * (DV + 2))
            _store_part(at_row, acc0, acc1, largest, total, part, known, DV, DV0, DV1, PARTS)
            counter = counters + (start * GROUP // BM + sequence + block) * N_KV + kv_head
            if last_to_arrive(counter, n_chunks, ISA):
                acc0, acc1, largest, total = _combined(at_row, n_chunks, known, DV, DV0, DV1, PARTS, BM)
                _finish(
                    *(out, acc0, acc1, largest, total, sinks, start + token, head, known),
                    *(DV, DV0, DV1, N_HEADS, FORM),
                )


@triton.jit
def _store_part(
    at_row,
    acc0,
    acc1,
    largest,
    total,
    part,
    known,
    DV: tl.constexpr,
    DV0: tl.constexpr,
    DV1: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A row's partial results lie as [PARTS, DV] sums, [PARTS] maxima, [PARTS] totals."""
    column0 = tl.arange(0, DV0)
    tl.store((at_row + part * DV)[:, None] + column0[None, :], acc0, mask=known[:, None] & (column0 < DV)[None, :])
    if DV1 > 0:
        column1 = DV0 + tl.arange(0, DV1)
        tl.store((at_row + part * DV)[:, None] + column1[None, :], acc1, mask=known[:, None] & (column1 < DV)[None, :])
    tl.store(at_row + PARTS * DV + part, largest, mask=known)
    tl.store(at_row + PARTS * (DV + 1) + part, total, mask=known)


@triton.jit
def _combined(
    at_row,
    n_chunks,
    known,
    DV: tl.constexpr,
    DV0: tl.constexpr,
    DV1: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
):
    """The sums of all chunks, in order. Other programs wrote them, so they are not read through a cache of our own."""
    part = tl.arange(0, PARTS)
    inside = known[:, None] & (part < n_chunks)[None, :]
    at = (at_row + PARTS * DV)[:, None] + part[None, :]
    maxima = tl.load(at, mask=inside, other=float("-inf"), cache_modifier=".cg")
    totals = tl.load(at + PARTS, mask=inside, other=0.0, cache_modifier=".cg")
    largest = tl.max(maxima, 1)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(totals * tl.exp2(maxima - shift[:, None]), 1)
    acc0 = tl.zeros((BM, DV0), tl.float32)
    acc1 = tl.zeros((BM, DV1 if DV1 > 0 else 1), tl.float32)
    # So many that their registers are about those of a step over keys.
    AT_ONCE: tl.constexpr = max(1, COMBINED_VALUES // (BM * (DV0 + DV1)))
    for first in tl.range(0, n_chunks, AT_ONCE, num_stages=1):
        # All loads before their first use: the memory's latency is paid once for all of them.
        loaded = ()
        for i in tl.static_range(AT_ONCE):
            loaded += (_part(at_row, first + i, n_chunks, known, DV, DV0, DV1, PARTS),)
        for i in tl.static_range(AT_ONCE):
            share = tl.exp2(loaded[i][0] - shift)[:, None]
            acc0 += share * loaded[i][1]
            if DV1 > 0:
                acc1 += share * loaded[i][2]
    return acc0, acc1, largest, total


@triton.jit
def _part(at_row, c, n_chunks, known, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, PARTS: tl.constexpr):
    """The maximum and the sums of chunk c, which is empty from n_chunks on."""
    there = known & (tl.full(known.shape, c, tl.int32) < n_chunks)
    maximum = tl.load(at_row + PARTS * DV + c, mask=there, other=float("-inf"), cache_modifier=".cg")
    at = (at_row + c * DV)[:, None]
    column = tl.arange(0, DV0)[None, :]
    values0 = tl.load(at + column, mask=there[:, None] & (column < DV), other=0.0, cache_modifier=".cg")
    values1 = values0
    if DV1 > 0:
        column = DV0 + tl.arange(0, DV1)[None, :]
        values1 = tl.load(at + column, mask=there[:, None] & (column < DV), other=0.0, cache_modifier=".cg")
    return maximum, values0, values1


@triton.jit
def _finish(
    out,
    acc0,
    acc1,
    largest,
    total,
    sinks,
    token,
    head,
    known,
    DV: tl.constexpr,
    DV0: tl.constexpr,
    DV1: tl.constexpr,
    N_HEADS: tl.constexpr,
    FORM: tl.constexpr,
):
    """Divides by the total, in which the sink has its part, and stores."""
    if sinks is not None:
        total += tl.exp2(tl.load(sinks + head, mask=known, other=0.0).to(tl.float32) * LOG2_E - largest)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)
    store_output(out, acc0 * share[:, None], token, head, known, 0, DV, N_HEADS, FORM)
    if DV1 > 0:
        store_output(out, acc1 * share[:, None], token, head, known, DV0, DV, N_HEADS, FORM)
