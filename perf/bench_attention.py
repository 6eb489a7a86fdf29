"""Attention over the paged cache beside torch's scaled_dot_product_attention (a part of kernels.py).

torch's has contiguous tensors, and of its backends the fastest counts. GB/s are those of the cached keys and values.
Pages of the cache lie in no order.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench import Record, compare, guarded, half, timed
from timing import Call, n_copies
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from naiad.quant.cache_types import CACHE_TYPES, CacheType, cache_type, plain_type
from naiad.triton_kernels.activations import Units
from naiad.triton_kernels.attention import Attention, AttentionShape, PageTables

PAGE_SIZE = 32
# Tokens whose keys and values are made at a time; longer caches repeat them.
CHUNK = 4096
K = 1024


@dataclass(frozen=True, slots=True)
class Heads:
    n_heads: int
    n_kv_heads: int
    head_dim: int

    @property
    def shape(self) -> AttentionShape:
        return AttentionShape(*(self.n_heads, self.n_kv_heads, self.head_dim, self.head_dim), self.head_dim**-0.5)

    def __str__(self) -> str:
        return f"{self.n_heads}/{self.n_kv_heads} x {self.head_dim}"


LLAMA, QWEN_MOE, SMALL = Heads(32, 8, 128), Heads(32, 4, 128), Heads(32, 32, 64)
HEADS = (LLAMA, QWEN_MOE, SMALL)


@dataclass(frozen=True, slots=True)
class Case:
    """(new tokens, tokens in the cache with the new ones) of every sequence. Types "": that of the activations."""

    heads: Heads
    sequences: tuple[tuple[int, int], ...]
    k_type: str = ""
    v_type: str = ""
    aim: str = ""

    def __str__(self) -> str:
        new, lengths = sum(n for n, _ in self.sequences), {length for _, length in self.sequences}
        many = len(self.sequences)
        if new > many > 1:
            text = f"{many} sequences, {new} new"
        elif new > many:
            text = f"{new} new on {max(lengths) - new}" if max(lengths) > new else f"prefill {new}"
        elif len(lengths) > 1:
            text = f"decode {many} x {min(lengths)} … {max(lengths)}"
        else:
            text = f"decode {many} x {max(lengths)}"
        types = f"  {self.k_type}/{self.v_type}" if self.k_type else ""
        return f"{text}{types}"

    def types(self, dtype: torch.dtype) -> tuple[CacheType, CacheType]:
        names = (self.k_type or plain_type(dtype), self.v_type or plain_type(dtype))
        return cache_type(names[0]), cache_type(names[1])

    @property
    def n_cached(self) -> int:
        return sum(length for _, length in self.sequences)

    @property
    def is_decode(self) -> bool:
        return all(n == 1 for n, _ in self.sequences)

    @property
    def flops(self) -> float:
        """Of scores and sums: a new token sees all before it and, of the new ones, half on average."""
        pairs = sum(n * (length - n) + n * n / 2 for n, length in self.sequences)
        return 4.0 * pairs * self.heads.n_heads * self.heads.head_dim


PREFILL_AIM = "400 (600) TFLOP/s"
DECODE_AIMS = {(32, 4 * K): "3400 (3900) GB/s", (1, 4 * K): "12 (7) µs"}
PREFILL = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 4, 16, 32, 64)
LENGTHS = (1, 4, 8, 32)
TYPES = (*((name, name) for name in CACHE_TYPES if name not in ("f32", "bf16")), ("q8_0", "q4_0"))
MIXED = ((1, 32 * K), *((1, K) for _ in range(31)))


def cases(options: argparse.Namespace) -> list[Case]:
    if options.quick:
        found = [_prefill(LLAMA, n) for n in (2, 8)]
        found += [_decode(LLAMA, *sizes) for sizes in ((1, 4), (32, 4))]
        return [*found, Case(LLAMA, MIXED), *_of_types(((32, 4),), (("q8_0", "q8_0"), ("q8_0", "q4_0")))]
    found = []
    for heads in HEADS:
        found += [_prefill(heads, n) for n in PREFILL]
        found.append(Case(heads, ((2 * K, 32 * K),)))
        found += [_decode(heads, n, length) for length in LENGTHS for n in BATCHES]
    return [*found, Case(LLAMA, MIXED), *_of_types(((1, 4), (32, 4)), TYPES)]


def _prefill(heads: Heads, n: int) -> Case:
    return Case(heads, ((n * K, n * K),), aim=PREFILL_AIM if heads.head_dim == 128 else "")


def _decode(heads: Heads, n: int, length: int) -> Case:
    aim = DECODE_AIMS.get((n, length * K), "") if heads == LLAMA else ""
    return Case(heads, ((1, length * K),) * n, aim=aim)


def _of_types(sizes: Sequence[tuple[int, int]], types: Sequence[tuple[str, str]]) -> list[Case]:
    plain = [(_decode(LLAMA, *size), *pair) for size in sizes for pair in types]
    return [replace(case, k_type=k, v_type=v, aim="") for case, k, v in plain]


# ---- the cache ---------------------------------------------------------------------------------------------------


def random_planes(kind: CacheType, n_pages: int, heads: Heads, dtype: torch.dtype, device: torch.device) -> Any:
    """Planes [n_pages, PAGE_SIZE, n_kv_heads, width] of random keys or values."""
    n = min(n_pages, CHUNK // PAGE_SIZE)
    values = torch.randn(n, PAGE_SIZE, heads.n_kv_heads, heads.head_dim, device=device)
    pieces = kind.encode(values.to(dtype))
    if n == n_pages:
        return pieces
    whole = tuple(torch.empty(n_pages, *piece.shape[1:], dtype=piece.dtype, device=device) for piece in pieces)
    for plane, piece in zip(whole, pieces, strict=True):
        for part in plane.split(n):
            part.copy_(piece[: len(part)])
    return whole


def page_tables(
    case: Case, copies: int, device: torch.device, spare: int = 0
) -> tuple[list[PageTables], list[list[list[int]]], int]:
    """For every copy of the batch its tables and its sequences' pages; and the number of pages in all."""
    counts = [-(-length // PAGE_SIZE) for _, length in case.sequences]
    n_pages = copies * sum(counts) + spare
    free = torch.randperm(n_pages, generator=torch.Generator().manual_seed(0)).tolist()
    tables, pages = [], []
    for _ in range(copies):
        mine = [[free.pop() for _ in range(count)] for count in counts]
        sequences, row = [], 0
        for (new, length), numbers in zip(case.sequences, mine, strict=True):
            sequences.append((row, row + new, length, numbers))
            row += new
        tables.append(PageTables.build(sequences, PAGE_SIZE, n_pages, device))
        pages.append(mine)
    return tables, pages, n_pages


def token_bytes(case: Case, dtype: torch.dtype) -> int:
    """Of the keys and values of a cached token."""
    planes = [plane for kind in case.types(dtype) for plane in kind.planes(case.heads.head_dim)]
    return case.heads.n_kv_heads * sum(width * plane.itemsize for width, plane in planes)


# ---- correctness -------------------------------------------------------------------------------------------------

SHORT = ((300, 300), (1, 90), (37, 200), (1, 1), (5, 1033), (0, 5))
LONG = ((1500, 1500),), ((200, 3000),), tuple((1, 1 + 997 * i % 4096) for i in range(32)), ((1, 4 * K),)
TINY = ((20, 20), (1, 70), (3, 33))


def checks(options: argparse.Namespace) -> list[Case]:
    if torch.device(options.device).type == "cpu":
        heads = Heads(4, 2, 64)
        return [Case(heads, TINY, kind, kind) for kind in ("", "q8_0")]
    long = [Case(heads, sequences) for heads in ((LLAMA,) if options.quick else HEADS) for sequences in LONG]
    types = (("q8_0", "q8_0"), ("q8_0", "q4_0")) if options.quick else TYPES
    return long + [Case(LLAMA, SHORT, *pair) for pair in (("", ""), *types)]


def check(item: Case, device: torch.device) -> Iterator[str]:
    heads, dtype = item.heads, half(device)
    kinds = item.types(dtype)
    (tables,), (pages,), n_pages = page_tables(item, 1, device, spare=3)
    planes = [random_planes(kind, n_pages, heads, dtype, device) for kind in kinds]
    q = torch.randn(tables.n_tokens, heads.n_heads, heads.head_dim, device=device).to(dtype)
    expected, row = [], 0
    for (new, length), numbers in zip(item.sequences, pages, strict=True):
        rows = [tuple(plane[numbers].flatten(0, 1)[:length] for plane in side) for side in planes]
        k, v = (kind.decode(side, torch.float32) for kind, side in zip(kinds, rows, strict=True))
        expected.append(reference(q[row : row + new], k, v, heads))
        row += new
    attention = Attention(heads.shape, *kinds, device)
    for form in attention.forms()[:2]:
        call = partial(attention, q, planes[0], planes[1], tables, form)
        what = f"{heads}, {form}"
        yield from guarded(what, check_call(what, call, torch.cat(expected)))


def check_call(what: str, call: Callable[[], Tensor | Units], expected: Tensor) -> Iterator[str]:
    found = call()
    yield from compare(what, found, expected, 2e-2 if isinstance(found, Units) else 1e-2)


def reference(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> Tensor:
    """q [n, n_heads, head_dim] of a sequence's last n tokens, k and v [length, n_kv_heads, head_dim] -> [n, n_heads *
    head_dim], in float64."""
    n, length, group = len(q), len(k), heads.n_heads // heads.n_kv_heads
    grouped = q.double().unflatten(1, (heads.n_kv_heads, group))
    scores = torch.einsum("nhgd,khd->hgnk", grouped, k.double()) / math.sqrt(heads.head_dim)
    places = torch.arange(length, device=q.device)
    scores.masked_fill_(places[None] > places[length - n :, None], -torch.inf)
    return torch.einsum("hgnk,khd->nhgd", scores.softmax(-1), v.double()).flatten(1)


# ---- speed -------------------------------------------------------------------------------------------------------


def programs(options: argparse.Namespace) -> list[Case]:
    """One case for all that are the same but for their lengths, which are no constants of a kernel."""
    found = {}
    for case in cases(options):
        short = Case(case.heads, ((1, K),) * len(case.sequences) if case.is_decode else ((K, K),))
        found[short.heads, short.sequences, case.k_type, case.v_type] = replace(
            short, k_type=case.k_type, v_type=case.v_type
        )
    return list(found.values())


def prepare(item: Case, device: torch.device) -> None:
    ours(item, 1, device)[0]()


def ours(case: Case, copies: int, device: torch.device) -> list[Call]:
    q, k, v, tables, kinds = inputs(case, copies, device)
    attention = Attention(case.heads.shape, *kinds, device)
    return [partial(attention, q, k, v, table) for table in tables]


def inputs(
    case: Case, copies: int, device: torch.device
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], list[PageTables], tuple[CacheType, CacheType]]:
    """Random queries, the planes of keys and values of all copies of the batch, each copy's tables, and their types."""
    heads, dtype = case.heads, half(device)
    kinds = case.types(dtype)
    tables, _, n_pages = page_tables(case, copies, device)
    k, v = (random_planes(kind, n_pages, heads, dtype, device) for kind in kinds)
    q = torch.randn(tables[0].n_tokens, heads.n_heads, heads.head_dim, device=device).to(dtype)
    return q, k, v, tables, kinds


BACKENDS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")


def peers(case: Case, copies: int, device: torch.device) -> dict[str, list[Call]]:
    """torch's attention, per backend, where all sequences are of one length and the cache holds plain numbers."""
    (new, length), heads, n = case.sequences[0], case.heads, len(case.sequences)
    if case.k_type or len({*case.sequences}) > 1:
        return {}
    make = partial(torch.randn, device=device, dtype=half(device))
    q = make(n, heads.n_heads, new, heads.head_dim)
    # Sequences of all copies share the memory of one tensor.
    k, v = (make(copies, n, heads.n_kv_heads, length, heads.head_dim) for _ in range(2))
    options: dict[str, Any] = {"is_causal": new == length and new > 1}
    if 1 < new < length:
        options = {"attn_mask": causal_lower_right(new, length)}

    def call(backend: SDPBackend, i: int) -> Tensor:
        with sdpa_kernel(backend):
            out: Tensor = F.scaled_dot_product_attention(q, k[i], v[i], enable_gqa=True, **options)
            return out

    return {
        f"sdpa {name.split('_')[0].lower()}": [partial(call, getattr(SDPBackend, name), i) for i in range(copies)]
        for name in BACKENDS
    }


def time(case: Case, device: torch.device, limits: Mapping[str, Any]) -> Iterator[Record]:
    dtype = half(device)
    n_bytes = case.n_cached * token_bytes(case, dtype)
    copies = n_copies(n_bytes, device) if case.is_decode else 1
    facts = {"heads": str(case.heads), "cache_bytes": n_bytes, "types": [kind.name for kind in case.types(dtype)]}
    # Keys and values twice, for torch as well, and what encoding takes.
    if device.type == "cuda" and 3 * copies * n_bytes > torch.cuda.mem_get_info(device)[0]:
        print(f"    {case.heads}  {case}: {copies * n_bytes / 1e9:.1f} GB of keys and values do not fit", flush=True)
        yield {"case": str(case), **facts, "skipped": "does not fit the card's memory"}
        return
    candidates = {"naiad": ours(case, copies, device), **peers(case, copies, device)}
    sizes = dict.fromkeys(candidates, n_bytes)
    record = timed(
        f"{case.heads!s:<12} {case!s:<24}",
        candidates,
        device,
        limits,
        mine=("naiad",),
        n_bytes=sizes if case.is_decode else None,
        flops=0.0 if case.is_decode else case.flops,
        note=case.aim,
    )
    yield {**record, "case": str(case), **facts}
