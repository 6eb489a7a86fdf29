"""Attention of sequences with few new tokens, as in decoding.

The heads that share a kv head are rows of one task, so that keys and values are loaded once. Softmax is computed online
over tiles of keys (Milakov and Gimelshein, arXiv 1805.02867); keys are divided among tasks as in Flash-Decoding (Dao
et al., 2023). Everything is added in the order of attention_many.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...quant.cache_types import cache_type
from .atomics import next_task
from .attention_tables import (
    FEW,
    LARGEST,
    N_SEQUENCES,
    PARTIAL,
    RECORD,
    TABLE,
    TABLE_WIDTH,
    TILE,
    TOTAL,
    chunk_begin,
    divide,
    oldest_key,
)
from .attention_tiles import (
    DIRECT,
    LINE,
    TILINGS,
    VECTOR,
    add_values,
    dot_rows,
    exp_negative,
    fill_row,
    scale_row,
    sum_halves,
    tanh,
)
from .cache import row_reader
from .kernel import kernel_family
from .language import LANES, inline
from .scalars import load_float, load_int, load_int32, number, prefetch, scratch, store_float
from .vectors import all_floats, all_ints, choose, constant, greater, load_floats, max_floats, store_floats

SCORE_BYTES = 4 * TILE
# Rows in memory: the last tile of rows may reach beyond those that count.
ROWS = FEW + 8
# A score of what is not seen. Finite, so that differences are numbers.
UNSEEN = -1e30

lanes = constant(lambda isa: list(range(LANES)))


def page_finder(head_dim: int, kind: str) -> Any:
    """find(data, high, scales, row, n_kv_heads, n, memory): n rows of the cache, n_kv_heads apart, as their address and
    the bytes from row to row; decoded to float32 in `memory` unless tiles read them as they are."""
    read, row_bytes, direct = row_reader(kind, head_dim), DIRECT.get(kind, 0) * head_dim, kind in DIRECT

    @inline
    def as_stored(data, high, scales, row, n_kv_heads, n, memory):
        return data + row * row_bytes, n_kv_heads * row_bytes

    @inline
    def decoded(data, high, scales, row, n_kv_heads, n, memory):
        for j in range(n):
            read(data, high, scales, row + j * n_kv_heads, memory + 4 * head_dim * j)
        return memory, 4 * head_dim

    return as_stored if direct else decoded


def asker(head_dim: int, kind: str, n: int) -> Any:
    """ask(data, row, n_kv_heads): asks for n rows of a page, n_kv_heads apart. They lie too far from each other for
    the processor to see what will be read next."""
    row_bytes = cache_type(kind).planes(head_dim)[0][0] * DIRECT.get(kind, 1)

    @inline
    def ask(data, row, n_kv_heads):
        at = data + row * row_bytes
        for _ in range(n):
            for line in range(0, row_bytes, LINE):
                prefetch(at + line)
            at += n_kv_heads * row_bytes

    return ask


@inline
def cap_scores(scores, n, cap):
    for j in range(0, 4 * n, VECTOR):
        store_floats(scores + j, tanh(load_floats(scores + j)) * cap)


@inline
def hide_scores(scores, n, key, low, position):
    """Of n keys from `key` on, those from `low` to `position` are seen."""
    for j in range(0, n, LANES):
        place = lanes() + (key + j)
        hidden = (all_ints(position) - place) | (place - low)
        store_floats(scores + 4 * j, choose(hidden, all_floats(UNSEEN), load_floats(scores + 4 * j)))


@inline
def soften(scores, n, largest, total):
    """Scores of a row become exponentials, relative to the largest so far; what older sums must be multiplied with."""
    top = load_floats(scores)
    for j in range(VECTOR, 4 * n, VECTOR):
        top = greater(load_floats(scores + j), top)
    before = load_float(largest)
    now = max(before, max_floats(top))
    acc = all_floats(0.0)
    for j in range(0, 4 * n, VECTOR):
        e = exp_negative(load_floats(scores + j) - now)
        store_floats(scores + j, e)
        acc = acc + e
    factor = max_floats(exp_negative(all_floats(before) - now))
    store_float(largest, now)
    store_float(total, load_float(total) * factor + sum_halves(acc))
    return factor


def merger(head_dim: int) -> Any:
    """merge(largest, total, sums, …): adds a chunk of keys to those before it: the largest score of both, their totals
    and sums [head_dim] relative to it."""

    @inline
    def merge(largest, total, sums, to_largest, to_total, to_sums):
        own, before = load_float(largest), load_float(to_largest)
        now = max(own, before)
        share, old = exp_negative(all_floats(own) - now), exp_negative(all_floats(before) - now)
        store_float(to_largest, now)
        store_float(to_total, max_floats(old * load_float(to_total) + share * load_float(total)))
        for d in range(0, 4 * head_dim, VECTOR):
            store_floats(to_sums + d, load_floats(to_sums + d) * old + load_floats(sums + d) * share)

    return merge


@inline
def inverse(total):
    return np.float32(1.0) / total


def row_functions(head_dim: int, group: int, capped: bool) -> tuple[Any, Any, Any]:
    """load, soften_rows and keep, for a task's rows; row r is head r % group of token r // group."""
    row_bytes = 4 * head_dim
    record_bytes = 4 * RECORD + row_bytes
    scale_head = scale_row(head_dim // LANES)

    @inline
    def load(q, q_stride, head, n_rows, scale, rows):
        for r in range(n_rows):
            scale_head(q + (r // group) * q_stride + (head + r % group) * row_bytes, scale, rows + r * row_bytes)

    @inline
    def soften_rows(scores, n, key, n_rows, position, window, cap, sums, largest, totals):
        for r in range(n_rows):
            at, own = scores + SCORE_BYTES * r, position + r // group
            low = oldest_key(own, window)
            if capped:
                cap_scores(at, n, cap)
            if key + n + LANES > own or key < low:
                hide_scores(at, n, key, low, own)
            factor = soften(at, n, largest + 4 * r, totals + 4 * r)
            scale_head(sums + r * row_bytes, factor, sums + r * row_bytes)

    @inline
    def keep(records, n_records, n_heads, head, n_rows, sums, largest, totals):
        for r in range(n_rows):
            record = records + ((r // group) * n_heads + head + r % group) * n_records * record_bytes
            store_float(record + 4 * LARGEST, load_float(largest + 4 * r))
            store_float(record + 4 * TOTAL, load_float(totals + 4 * r))
            scale_head(sums + r * row_bytes, 1.0, record + 4 * RECORD)

    return load, soften_rows, keep


def page_functions(head_dim: int, group: int, k_type: str, v_type: str, isa: str) -> tuple[Any, Any]:
    """score and add: a page's part of the scores and of the sums."""
    tiling, row_bytes = TILINGS[isa], 4 * head_dim
    (k_rows, n_quads), (v_rows, v_vectors) = tiling.dot_tile(group), tiling.value_tile(group, head_dim // LANES)
    dots = dot_rows(k_rows, n_quads, head_dim, k_type if k_type in DIRECT else "f32", SCORE_BYTES)
    add_tile = add_values(v_rows, v_vectors, v_type if v_type in DIRECT else "f32", SCORE_BYTES, row_bytes)
    find_keys, find_values = page_finder(head_dim, k_type), page_finder(head_dim, v_type)
    n_steps, sum_step = head_dim // (LANES * v_vectors), VECTOR * v_vectors
    value_step = LANES * v_vectors * DIRECT.get(v_type, 4)

    @inline
    def score(data, high, scales, row, n_kv_heads, n, memory, rows, n_rows, scores):
        keys, key_bytes = find_keys(data, high, scales, row, n_kv_heads, n, memory)
        for j in range(0, n, LANES):
            for r in range(0, n_rows, k_rows):
                dots(keys + j * key_bytes, key_bytes, rows + row_bytes * r, scores + SCORE_BYTES * r + 4 * j)

    @inline
    def add(data, high, scales, row, n_kv_heads, n, memory, scores, n_rows, sums):
        values, value_bytes = find_values(data, high, scales, row, n_kv_heads, n, memory)
        for r in range(0, n_rows, v_rows):
            for i in range(n_steps):
                at = sums + row_bytes * r + sum_step * i
                add_tile(values + value_step * i, value_bytes, n, scores + SCORE_BYTES * r, at)

    return score, add


@kernel_family
def attention_few(head_dim, group, k_type, v_type, capped, page_size, isa):
    """Sequences with at most FEW rows (new tokens times heads of a kv head), a task for each kv head and chunk of keys.

    scale: what products are multiplied with; where `capped`, divided by the cap. Strides are bytes from row to row.
    """
    # A page's keys in a tile.
    n_part = min(page_size, TILE)
    row_bytes, record_bytes, rows_size = 4 * head_dim, 4 * (RECORD + head_dim), 4 * head_dim * ROWS
    scores_size, memory_size, line_size = SCORE_BYTES * ROWS, 4 * head_dim * n_part, 4 * ROWS
    load, soften_rows, keep = row_functions(head_dim, group, capped)
    score, add = page_functions(head_dim, group, k_type, v_type, isa)
    ask_keys, ask_values = asker(head_dim, k_type, n_part), asker(head_dim, v_type, n_part)
    merge, clear_head, scale_head = merger(head_dim), fill_row(head_dim // LANES), scale_row(head_dim // LANES)

    @inline
    def row_at(pages, key, n_kv_heads, kv_head):
        return (load_int32(pages + 4 * (key // page_size)) * page_size + key % page_size) * n_kv_heads + kv_head

    @inline
    def clear(n_rows, sums, largest, totals):
        for r in range(n_rows):
            clear_head(sums + r * row_bytes, VECTOR, 0.0)
            store_float(largest + 4 * r, UNSEEN)
            store_float(totals + 4 * r, 0.0)

    def attention_few(
        q, q_stride, out, out_stride, k_data, k_high, k_scales, v_data, v_high, v_scales,
        tables, n_kv_heads, window, scale, cap, counter, thread, n_threads,
    ):  # fmt: skip
        rows, scores, memory = scratch(rows_size), scratch(scores_size), scratch(memory_size)
        sums, largest, totals = scratch(rows_size), scratch(line_size), scratch(line_size)
        all_sums, all_largest, all_totals = scratch(rows_size), scratch(line_size), scratch(line_size)
        n_sequences, record, base = load_int(tables + 8 * N_SEQUENCES), load_int(tables + 8 * PARTIAL), 0
        task = next_task(counter)
        for i in range(n_sequences):
            start, n_new, length, _, first, last, divided = divide(tables, i, group, n_kv_heads, window, n_threads)
            n_rows, old, n_chunks = n_new * group, length - n_new, last - first
            pages = load_int(tables + 8 * TABLE) + 4 * i * load_int(tables + 8 * TABLE_WIDTH)
            begin = oldest_key(old, window) // page_size * page_size
            n_tasks = (n_kv_heads * n_chunks if divided else n_kv_heads) if 0 < n_rows <= FEW else 0
            while task < base + n_tasks:
                # The latest chunks are the largest.
                at = last - 1 - (task - base) // n_kv_heads if divided else first
                behind = at + 1 if divided else last
                head = (task - base) % n_kv_heads
                end = min(length, chunk_begin(behind, window))
                load(q + start * q_stride, q_stride, head * group, n_rows, number(scale), rows)
                clear(n_rows, all_sums, all_largest, all_totals)
                for chunk in range(at, behind):
                    clear(n_rows, sums, largest, totals)
                    key = max(begin, chunk_begin(chunk, window))
                    chunk_end = min(end, chunk_begin(chunk + 1, window))
                    while key < chunk_end:
                        stop = min(chunk_end, (key // TILE + 1) * TILE)
                        for part in range(key, stop, n_part):
                            row, to = row_at(pages, part, n_kv_heads, head), scores + 4 * (part - key)
                            ask_values(v_data, row, n_kv_heads)
                            n = min(stop - part, n_part)
                            score(k_data, k_high, k_scales, row, n_kv_heads, n, memory, rows, n_rows, to)
                        soften_rows(scores, stop - key, key, n_rows, old, window, number(cap), sums, largest, totals)
                        for part in range(key, stop, n_part):
                            row, weights = row_at(pages, part, n_kv_heads, head), scores + 4 * (part - key)
                            if part + TILE < end:
                                ask_keys(k_data, row_at(pages, part + TILE, n_kv_heads, head), n_kv_heads)
                            n = min(stop - part, n_part)
                            add(v_data, v_high, v_scales, row, n_kv_heads, n, memory, weights, n_rows, sums)
                        key = stop
                    if divided:
                        records = record + (chunk - first) * record_bytes
                        keep(records, n_chunks, n_kv_heads * group, head * group, n_rows, sums, largest, totals)
                    else:
                        for r in range(n_rows):
                            row, line = r * row_bytes, 4 * r
                            merge(
                                largest + line, totals + line, sums + row,
                                all_largest + line, all_totals + line, all_sums + row,
                            )  # fmt: skip
                if not divided:
                    for r in range(n_rows):
                        to = out + (start + r // group) * out_stride + (head * group + r % group) * row_bytes
                        scale_head(all_sums + r * row_bytes, inverse(load_float(all_totals + 4 * r)), to)
                task = next_task(counter)
            base += n_tasks
            if divided:
                record += n_rows * n_kv_heads * n_chunks * record_bytes

    return attention_few
