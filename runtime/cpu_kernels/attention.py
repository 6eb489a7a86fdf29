"""Attention over the paged cache: which kernels, and how partial results are put together."""

from __future__ import annotations

from typing import Any

import torch

from ...quant.cache_types import CacheType
from ..ops import AttentionParams
from .atomics import next_task
from .attention_few import UNSEEN, attention_few, inverse, merger
from .attention_many import attention_many
from .attention_tables import (
    LARGEST,
    N_SEQUENCES,
    PARTIAL,
    RECORD,
    TOTAL,
    StepTables,
    chunk_of,
    divide,
    oldest_key,
)
from .attention_tiles import VECTOR, fill_row, scale_row
from .cache import check_heads, plane_addresses
from .kernel import kernel_family
from .language import LANES
from .programs import Program
from .scalars import load_float, load_int, scratch, store_float


@kernel_family
def attention_join(head_dim, group):
    """What the chunks of a sequence's keys have left, put together in their order: a task for each new token and kv
    head."""
    row_bytes = 4 * head_dim
    record_bytes = 4 * RECORD + row_bytes
    merge, clear, scale_head = merger(head_dim), fill_row(head_dim // LANES), scale_row(head_dim // LANES)

    def attention_join(out, out_stride, tables, n_kv_heads, window, counter, thread, n_threads):
        sums, largest, total = scratch(row_bytes), scratch(VECTOR), scratch(VECTOR)
        n_sequences, record, base = load_int(tables + 8 * N_SEQUENCES), load_int(tables + 8 * PARTIAL), 0
        task = next_task(counter)
        for i in range(n_sequences):
            start, n_new, length, _, first, last, divided = divide(tables, i, group, n_kv_heads, window, n_threads)
            if not divided:
                continue
            n_tasks, n_chunks = n_new * n_kv_heads, last - first
            while task < base + n_tasks:
                token = (task - base) // n_kv_heads
                head, position = (task - base - token * n_kv_heads) * group, length - n_new + token
                begin, behind = chunk_of(oldest_key(position, window), window), chunk_of(position, window) + 1
                for h in range(head, head + group):
                    records = record + (token * n_kv_heads * group + h) * n_chunks * record_bytes
                    clear(sums, VECTOR, 0.0)
                    store_float(largest, UNSEEN)
                    store_float(total, 0.0)
                    for chunk in range(begin, behind):
                        at = records + (chunk - first) * record_bytes
                        merge(at + 4 * LARGEST, at + 4 * TOTAL, at + 4 * RECORD, largest, total, sums)
                    scale_head(sums, inverse(load_float(total)), out + (start + token) * out_stride + h * row_bytes)
                task = next_task(counter)
            base += n_tasks
            record += n_tasks * group * n_chunks * record_bytes

    return attention_join


class Attention:
    """softmax(q k^T) v for the new tokens of a batch.

    ValueError where heads are not a multiple of 16 values, do not fit the cache types, or cannot share kv heads evenly.
    """

    def __init__(self, params: AttentionParams, k_type: CacheType, v_type: CacheType, page_size: int) -> None:
        check_heads(params.head_dim, k_type, v_type)
        if params.n_kv_heads < 1 or params.n_heads % params.n_kv_heads:
            raise ValueError(f"{params.n_heads} heads cannot share {params.n_kv_heads} kv heads evenly")
        if page_size % LANES or 128 % page_size:
            raise ValueError(f"expected pages of {LANES}, 32, 64 or 128 tokens, found {page_size}")
        self.params, self.k_type, self.v_type, self.page_size = params, k_type, v_type, page_size
        self.group = params.n_heads // params.n_kv_heads

    def add(
        self,
        program: Program,
        q: int | str,
        q_stride: int,
        out: int | str,
        out_stride: int,
        tables: StepTables,
        k_planes: tuple[torch.Tensor, ...],
        v_planes: tuple[torch.Tensor, ...],
    ) -> None:
        """Adds the instructions. q, out: addresses, or the program's names for them, of float32 rows of heads; strides:
        bytes from row to row.

        k_planes, v_planes: the layer's cache, [n_pages, page_size, n_kv_heads, width] each. Between runs, only `tables`
        need be set.
        """
        p, isa = self.params, program.compiler.host.isa.name
        assert k_planes[0].shape[1:3] == (self.page_size, p.n_kv_heads), k_planes[0].shape
        program.keep += [tables, *k_planes, *v_planes]
        where: dict[str, Any] = {"out": out, "out_stride": out_stride, "tables": tables.address}
        where |= {"n_kv_heads": p.n_kv_heads, "window": p.window}
        constants = (p.head_dim, self.group, self.k_type.name, self.v_type.name, p.softcap > 0, self.page_size, isa)
        numbers: dict[str, Any] = {"scale": p.scale / (p.softcap or 1.0), "cap": float(p.softcap)}
        planes = plane_addresses("k", k_planes) | plane_addresses("v", v_planes)
        for kernel, barrier in ((attention_many, False), (attention_few, True)):
            program.add(kernel, *constants, barrier=barrier, q=q, q_stride=q_stride, **numbers, **planes, **where)
        program.add(attention_join, p.head_dim, self.group, **where)
