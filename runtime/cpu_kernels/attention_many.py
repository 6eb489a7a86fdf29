"""Attention of sequences with many new tokens, as in prompts: tiles of queries and keys as in FlashAttention (Dao et
al., arXiv 2205.14135), in float32.

Lanes are rows (a token's head each) everywhere: queries lie transposed, keys and values are numbers that are multiplied
with whole vectors. So keys need no transposing, and nothing of the softmax goes across lanes. Everything is added in
the order of attention_few.py, where keys lie side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .atomics import next_task
from .attention_few import UNSEEN, inverse
from .attention_tables import (
    BLOCK_ROWS,
    FEW,
    LARGEST,
    N_SEQUENCES,
    PARTIAL,
    RECORD,
    TABLE,
    TABLE_WIDTH,
    TILE,
    TOTAL,
    ceil_div,
    chunk_begin,
    chunk_of,
    divide,
    oldest_key,
)
from .attention_tiles import (
    PARTIAL_SUMS,
    TILINGS,
    VECTOR,
    Strides,
    exp_negative,
    fill_row,
    product_tile,
    scale_row,
    sum_columns,
    tanh,
    transpose,
)
from .cache import row_reader
from .kernel import kernel_family
from .language import LANES, inline
from .scalars import load_float, load_int, load_int32, number, scratch, store_float, store_int32
from .vectors import all_floats, all_ints, choose, greater, load_floats, load_words, store_floats

# Bytes from one number of all rows to the next.
COLUMN = 4 * BLOCK_ROWS


def query_loader(head_dim: int, group: int) -> Any:
    """load(q, q_stride, head, row, n_rows, n_lanes, scale, position, copies, columns, positions): rows `row`, … of a
    sequence, transposed to `columns` [head_dim, BLOCK_ROWS] and times `scale`; the positions of their tokens, the first
    token's being `position`. Lanes behind the last row repeat it."""
    row_bytes = 4 * head_dim
    turn, scale_head = transpose(row_bytes, COLUMN), scale_row(head_dim // LANES)

    @inline
    def load(q, q_stride, head, row, n_rows, n_lanes, scale, position, copies, columns, positions):
        for lane in range(0, n_lanes, LANES):
            for i in range(LANES):
                r = row + min(lane + i, n_rows - 1)
                store_int32(positions + 4 * (lane + i), position + r // group)
                at = q + (r // group) * q_stride + (head + r % group) * row_bytes
                scale_head(at, scale, copies + row_bytes * i)
            for d in range(0, head_dim, LANES):
                turn(copies + 4 * d, columns + COLUMN * d + 4 * lane)

    return load


def tile_reader(head_dim: int, kind: str, page_size: int) -> Any:
    """read(data, high, scales, pages, key, n, n_kv_heads, head, tile): n keys or values from `key` on, as rows."""
    read_row = row_reader(kind, head_dim)

    @inline
    def read(data, high, scales, pages, key, n, n_kv_heads, head, tile):
        for j in range(n):
            place = load_int32(pages + 4 * ((key + j) // page_size)) * page_size + (key + j) % page_size
            read_row(data, high, scales, place * n_kv_heads + head, tile + 4 * head_dim * j)

    return read


@inline
def hide_columns(scores, n, key, window, position):
    """Scores of 16 rows [n, 16] with keys from `key` on: what is after a row's position or before its window."""
    low = position - (window - 1) if window > 0 else all_ints(0)
    for j in range(n):
        place = all_ints(key + j)
        hidden = (position - place) | (place - low)
        store_floats(scores + COLUMN * j, choose(hidden, all_floats(UNSEEN), load_floats(scores + COLUMN * j)))


add_columns = sum_columns(COLUMN)


@inline
def soften_columns(scores, n, largest, totals, factors):
    """Scores of 16 rows [n, 16] become exponentials; `factors`: what older sums must be multiplied with. Those of keys
    up to TILE become 0."""
    before = load_floats(largest)
    top, other = before, before
    for j in range(0, n, 2):
        top = greater(load_floats(scores + COLUMN * j), top)
        other = greater(load_floats(scores + COLUMN * (j + 1)), other)
    now = greater(top, other)
    factor = exp_negative(before - now)
    for j in range(n):
        store_floats(scores + COLUMN * j, exp_negative(load_floats(scores + COLUMN * j) - now))
    for j in range(n, TILE):
        store_floats(scores + COLUMN * j, all_floats(0.0))
    store_floats(largest, now)
    store_floats(totals, load_floats(totals) * factor + add_columns(scores))
    store_floats(factors, factor)


def products(head_dim: int, isa: str) -> tuple[Any, Any]:
    """scores(keys, columns, n, n_lanes, out): keys [n, head_dim] times columns [head_dim, lanes], in whole tiles.
    sums(values, weights, n, n_lanes, out, factors): out [head_dim, lanes] times factors + the values [n, head_dim],
    transposed, times weights [n, lanes]."""
    rows, vectors = TILINGS[isa].product
    step = vectors * LANES
    score = product_tile(rows, vectors, Strides(4 * head_dim, 4, COLUMN, COLUMN), scaled=False, n_sums=PARTIAL_SUMS)
    add = product_tile(rows, vectors, Strides(4, 4 * head_dim, COLUMN, COLUMN), scaled=True)

    @inline
    def scores(keys, columns, n, n_lanes, out):
        for j in range(0, n, rows):
            for lane in range(0, 4 * n_lanes, 4 * step):
                score(keys + 4 * head_dim * j, columns + lane, head_dim, out + COLUMN * j + lane, 0)

    @inline
    def sums(values, weights, n, n_lanes, out, factors):
        for d in range(0, head_dim, rows):
            for lane in range(0, 4 * n_lanes, 4 * step):
                add(values + 4 * d, weights + lane, n, out + COLUMN * d + lane, factors + lane)

    return scores, sums


def row_storer(head_dim: int, group: int) -> Any:
    """store(…): the sums of a block of rows, divided by the totals, as rows of the output, or as they are as partial
    results where a row has several."""
    row_bytes = 4 * head_dim
    record_bytes = 4 * RECORD + row_bytes
    turn, scale_head = transpose(COLUMN, row_bytes), scale_row(head_dim // LANES)

    @inline
    def store(out, out_stride, records, n_records, n_heads, head, row, n_rows, copies, sums, largest, totals):
        for lane in range(0, n_rows, LANES):
            for d in range(0, head_dim, LANES):
                turn(sums + COLUMN * d + 4 * lane, copies + 4 * d)
            for i in range(min(LANES, n_rows - lane)):
                token, h = (row + lane + i) // group, head + (row + lane + i) % group
                to = out + token * out_stride + h * row_bytes
                total = load_float(totals + 4 * (lane + i))
                factor = inverse(total)
                if records != 0:
                    record = records + (token * n_heads + h) * n_records * record_bytes
                    store_float(record + 4 * LARGEST, load_float(largest + 4 * (lane + i)))
                    store_float(record + 4 * TOTAL, total)
                    to = record + 4 * RECORD
                    factor = np.float32(1.0)
                scale_head(copies + row_bytes * i, factor, to)

    return store


@kernel_family
def attention_many(head_dim, group, k_type, v_type, capped, page_size, isa):
    """Sequences with more than FEW rows (new tokens times heads of a kv head), a task for each kv head, block of rows
    and chunk of keys.

    scale: what products are multiplied with; where `capped`, divided by the cap. Strides are bytes from row to row.
    """
    row_bytes, step = 4 * head_dim, TILINGS[isa].product[1] * LANES
    record_bytes = 4 * RECORD + row_bytes
    read_keys, read_values = tile_reader(head_dim, k_type, page_size), tile_reader(head_dim, v_type, page_size)
    load, store, (score, add) = query_loader(head_dim, group), row_storer(head_dim, group), products(head_dim, isa)
    columns_size, tile_size, copies_size = COLUMN * head_dim, TILE * row_bytes, LANES * row_bytes
    scores_size, line_size, clear_sums, sums_bytes = COLUMN * TILE, COLUMN, fill_row(head_dim), COLUMN * head_dim

    @inline
    def soften_tile(scores, n, n_lanes, edge, key, window, cap, largest, totals, factors, positions):
        for lane in range(0, 4 * n_lanes, VECTOR):
            at = scores + lane
            if capped:
                for j in range(0, COLUMN * n, COLUMN):
                    store_floats(at + j, tanh(load_floats(at + j)) * cap)
            if edge:
                hide_columns(at, n, key, window, load_words(positions + lane))
            soften_columns(at, n, largest + lane, totals + lane, factors + lane)

    @inline
    def clear(n_lanes, sums, largest, totals):
        for lane in range(0, 4 * n_lanes, VECTOR):
            store_floats(largest + lane, all_floats(UNSEEN))
            store_floats(totals + lane, all_floats(0.0))
            clear_sums(sums + lane, COLUMN, 0.0)

    @inline
    def merge(n_lanes, sums, largest, totals, all_sums, all_largest, all_totals):
        """As `attention_few.merger`."""
        for lane in range(0, 4 * n_lanes, VECTOR):
            own, before = load_floats(largest + lane), load_floats(all_largest + lane)
            now = greater(own, before)
            share, old = exp_negative(own - now), exp_negative(before - now)
            store_floats(all_largest + lane, now)
            total = old * load_floats(all_totals + lane) + share * load_floats(totals + lane)
            store_floats(all_totals + lane, total)
            for at in range(lane, lane + sums_bytes, COLUMN):
                store_floats(all_sums + at, load_floats(all_sums + at) * old + load_floats(sums + at) * share)

    def attention_many(
        q, q_stride, out, out_stride, k_data, k_high, k_scales, v_data, v_high, v_scales,
        tables, n_kv_heads, window, scale, cap, counter, thread, n_threads,
    ):  # fmt: skip
        columns, scores, positions = scratch(columns_size), scratch(scores_size), scratch(line_size)
        tile, copies, factors = scratch(tile_size), scratch(copies_size), scratch(line_size)
        sums, largest, totals = scratch(columns_size), scratch(line_size), scratch(line_size)
        all_sums, all_largest, all_totals = scratch(columns_size), scratch(line_size), scratch(line_size)
        n_sequences, record, base = load_int(tables + 8 * N_SEQUENCES), load_int(tables + 8 * PARTIAL), 0
        task = next_task(counter)
        for i in range(n_sequences):
            start, n_new, length, n_blocks, first, last, divided = divide(
                tables, i, group, n_kv_heads, window, n_threads
            )
            n_all, n_chunks = n_new * group, last - first
            pages = load_int(tables + 8 * TABLE) + 4 * i * load_int(tables + 8 * TABLE_WIDTH)
            n_tasks = (n_kv_heads * n_blocks * n_chunks if divided else n_kv_heads * n_blocks) if n_all > FEW else 0
            while task < base + n_tasks:
                # The blocks of a kv head one after another, since they read the same keys, the longest first.
                chunk = first + (task - base) % n_chunks if divided else first
                block = (task - base) // n_chunks if divided else task - base
                head = block // n_blocks
                row = (n_blocks - 1 - (block - head * n_blocks)) * BLOCK_ROWS
                n_rows = min(BLOCK_ROWS, n_all - row)
                n_lanes = ceil_div(n_rows, step) * step
                load(
                    q + start * q_stride, q_stride, head * group, row, n_rows, n_lanes, number(scale),
                    length - n_new, copies, columns, positions,
                )  # fmt: skip
                clear(n_lanes, all_sums, all_largest, all_totals)
                lowest, highest = length - n_new + row // group, length - n_new + (row + n_rows - 1) // group
                oldest = oldest_key(lowest, window)
                begin = oldest // page_size * page_size
                at, behind = max(chunk, chunk_of(oldest, window)), chunk_of(highest, window) + 1
                if divided:
                    behind = min(behind, chunk + 1)
                    if chunk < at:
                        behind = at
                for own in range(at, behind):
                    clear(n_lanes, sums, largest, totals)
                    key = max(begin, chunk_begin(own, window))
                    end = min(highest + 1, chunk_begin(own + 1, window))
                    while key < end:
                        stop = min(end, (key // TILE + 1) * TILE)
                        n = stop - key
                        n_scores = ceil_div(n, LANES) * LANES
                        read_keys(k_data, k_high, k_scales, pages, key, n, n_kv_heads, head, tile)
                        score(tile, columns, n_scores, n_lanes, scores)
                        edge = key + n_scores - 1 > lowest or (window > 0 and key < highest - window + 1)
                        soften_tile(
                            scores, n_scores, n_lanes, edge, key, window, number(cap), largest, totals, factors,
                            positions,
                        )  # fmt: skip
                        read_values(v_data, v_high, v_scales, pages, key, n, n_kv_heads, head, tile)
                        add(tile, scores, n, n_lanes, sums, factors)
                        key = stop
                    if divided:
                        store(
                            out, out_stride, record + (own - first) * record_bytes, n_chunks, n_kv_heads * group,
                            head * group, row, n_rows, copies, sums, largest, totals,
                        )  # fmt: skip
                    else:
                        merge(n_lanes, sums, largest, totals, all_sums, all_largest, all_totals)
                if not divided:
                    store(
                        out + start * out_stride, out_stride, 0, n_chunks, n_kv_heads * group,
                        head * group, row, n_rows, copies, all_sums, all_largest, all_totals,
                    )  # fmt: skip
                task = next_task(counter)
            base += n_tasks
            if divided:
                record += n_all * n_kv_heads * n_chunks * record_bytes

    return attention_many
