"""Norms, rotation with the writing of the cache, and gates, beside the same in torch (a part of kernels.py).

GB/s are those of everything read and written. Copies of the tensors exceed the caches where rows are many; what few
rows have lies in the second cache, as in a model, where it has just been written. Microseconds count there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench import Record, compare, guarded, half, several, timed
from timing import Call
from torch import Tensor

from naiad.quant.cache_types import cache_type, plain_type
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.cache import CachePages
from naiad.runtime.config import RopePairing
from naiad.runtime.engine.pages import PAGE_SIZE
from naiad.triton_kernels.activations import INT8_VECTORS, Form, Units
from naiad.triton_kernels.gates import glu, glu_reference
from naiad.triton_kernels.norms import NextNorm, norm
from naiad.triton_kernels.packing import units
from naiad.triton_kernels.rope import RopeAndWrite

EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Case:
    """kind: norm, glu or rope; width: of the rows (rope: n_heads, n_kv_heads and head_dim say it)."""

    kind: str
    rows: int
    width: int = 0
    form: Form = "plain"
    residual: bool = False
    cache: str = ""
    heads: tuple[int, int, int] = (32, 8, 128)

    def __str__(self) -> str:
        more = f" {self.form}" * (self.form != "plain") + " + residual" * self.residual
        what = f"rope + write {self.cache or 'plain'}" if self.kind == "rope" else f"{self.kind} {self.width}{more}"
        return f"{what:<28} {self.rows:>5} rows"


ROWS = (1, 16, 512, 4096)
WIDTHS = (2048, 4096, 8192)
N_FF = 14336


def cases(options: argparse.Namespace) -> list[Case]:
    return [
        case
        for rows in ((1, 512) if options.quick else ROWS)
        for case in variants(rows, (4096,) if options.quick else WIDTHS)
    ]


def variants(rows: int, widths: Sequence[int]) -> Iterator[Case]:
    for width in widths:
        yield Case("norm", rows, width)
        yield Case("norm", rows, width, residual=True)
        yield Case("norm", rows, width, "int8", residual=True)
    for form in ("plain", "int8"):
        yield Case("glu", rows, N_FF, form)
    for cache in ("", "q8_0"):
        yield Case("rope", rows, cache=cache)


@dataclass(frozen=True, slots=True)
class Pair:
    """A kernel and its twin in torch, with the bytes that the kernel reads and writes."""

    naiad: Call
    torch: Call
    n_bytes: float


def make(case: Case, device: torch.device, seed: int = 0) -> Pair:
    torch.manual_seed(seed)
    return MAKERS[case.kind](case, device)


def form_bytes(case: Case, item: int) -> float:
    """Of the output."""
    if case.form == "plain":
        return case.rows * case.width * item
    return 16.0 * case.rows * units(case.width) * int(INT8_VECTORS.value)


def _norm(case: Case, device: torch.device) -> Pair:
    x, residual = (torch.randn(case.rows, case.width, device=device).to(half(device)) for _ in range(2))
    weight = torch.rand(case.width, device=device) + 0.5
    by = NextNorm(weight, EPS)
    low = weight.to(x.dtype)

    def twin() -> tuple[Tensor, Tensor]:
        stream = x + residual if case.residual else x
        return stream, F.rms_norm(stream, (case.width,), low, EPS)

    read = x.nbytes * (3 if case.residual else 1)  # the stream is written
    ours = partial(norm, x, by, residual if case.residual else None, case.form)
    return Pair(ours, twin, read + weight.nbytes + form_bytes(case, x.itemsize))


def _glu(case: Case, device: torch.device) -> Pair:
    gate, up = (torch.randn(case.rows, case.width, device=device).to(half(device)) for _ in range(2))
    n_bytes = gate.nbytes + up.nbytes + form_bytes(case, gate.itemsize)
    return Pair(partial(glu, gate, up, "silu", case.form), partial(glu_reference, gate, up, "silu"), n_bytes)


def _rope(case: Case, device: torch.device) -> Pair:
    n, (n_heads, n_kv, dim), dtype = case.rows, case.heads, half(device)
    kind = cache_type(case.cache or plain_type(dtype))
    n_pages = -(-n // PAGE_SIZE)
    ours, theirs = ([CachePages.zeros(kind, n_pages, n_kv, dim, device) for _ in range(2)] for _ in range(2))
    layer = RopeAndWrite(*(n_heads, n_kv, dim, dim), rope_dim=dim, pairing="norm", k_type=kind.name, v_type=kind.name)
    qkv = torch.randn(n, (n_heads + 2 * n_kv) * dim, device=device).to(dtype)
    slots = torch.randperm(n_pages * PAGE_SIZE, device=device)[:n].contiguous()
    theta = torch.rand(n, dim // 2, device=device) * 100
    angles = theta.cos(), theta.sin()
    ops = TorchOps(device, dtype, None)
    q, k, v = layer.split(qkv)

    def rotated() -> tuple[Tensor, tuple[CachePages, ...]]:
        return layer(q, k, v, angles, slots, ours[0].planes, ours[1].planes), tuple(ours)

    def twin() -> tuple[Tensor, tuple[CachePages, ...]]:
        turned = [ops.rope(part.unflatten(1, (-1, dim)), angles, RopePairing.NORM) for part in (q, k)]
        theirs[0].write(slots, turned[1])
        theirs[1].write(slots, v.unflatten(1, (-1, dim)))
        return turned[0], tuple(theirs)

    written = sum(plane.nbytes for side in ours for plane in side.planes) * n / (n_pages * PAGE_SIZE)
    return Pair(rotated, twin, qkv.nbytes + q.nbytes + theta.nbytes * 2 + slots.nbytes + written)


MAKERS: dict[str, Callable[[Case, torch.device], Pair]] = {"norm": _norm, "glu": _glu, "rope": _rope}

# ---- correctness -------------------------------------------------------------------------------------------------


def checks(options: argparse.Namespace) -> list[Case]:
    if torch.device(options.device).type == "cpu":
        small = [Case("norm", 3, 288, form, residual=True) for form in ("plain", "int8")]
        heads = (4, 2, 64)
        return [
            *small,
            Case("norm", 2, 288),
            Case("glu", 3, 288),
            *(Case("rope", 3, cache=c, heads=heads) for c in ("", "q8_0")),
        ]
    return [case for rows in (1, 77) for case in variants(rows, WIDTHS[1:2] if options.quick else WIDTHS)]


def check(item: Case, device: torch.device) -> Iterator[str]:
    yield from guarded("call", check_pair(make(item, device)))


def check_pair(pair: Pair) -> Iterator[str]:
    for i, (found, expected) in enumerate(zip(flat(pair.naiad()), flat(pair.torch()), strict=True)):
        yield from compare(f"result {i}", found, expected, 2e-2 if isinstance(found, Units) else 1e-2)


def flat(result: Any) -> Iterator[Any]:
    """The tensors and units of a result; of a cache its numbers."""
    if isinstance(result, tuple):
        for part in result:
            yield from flat(part)
    else:
        yield result.type.decode(result.planes, torch.float32) if isinstance(result, CachePages) else result


# ---- speed -------------------------------------------------------------------------------------------------------


def programs(options: argparse.Namespace) -> list[Case]:
    return cases(options)


def prepare(item: Case, device: torch.device) -> None:
    make(item, device).naiad()


def time(case: Case, device: torch.device, limits: Mapping[str, Any]) -> Iterator[Record]:
    first = make(case, device)
    pairs = [first, *(make(case, device, seed) for seed in range(1, several(int(first.n_bytes), device)))]
    candidates = {"naiad": [pair.naiad for pair in pairs], "torch": [pair.torch for pair in pairs]}
    sizes = {"naiad": first.n_bytes}
    yield {
        "rows": case.rows,
        "working_set_bytes": first.n_bytes * len(pairs),
        **timed(str(case), candidates, device, limits, mine=("naiad",), n_bytes=sizes),
    }
