"""A whole dense layer at one row: the launches of the Triton backend in a CUDA graph (a part of kernels.py).

Beside the whole layer stand its halves and its launches by themselves. GB/s are those of the weights in their packed
form, so the share of the read bandwidth is how near a layer comes to what its weights allow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bench import Record, compare, guarded, half, rms, timed
from timing import Call, n_copies, random_weight
from torch import Tensor

from naiad.quant.cache_types import cache_type, plain_type
from naiad.quant.formats import format_by_name
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.backends.triton import TritonOps
from naiad.runtime.batch import Batch, NewTokens
from naiad.runtime.cache import CachePages, LayerCache
from naiad.runtime.config import Activation, RopePairing
from naiad.runtime.engine.pages import PAGE_SIZE
from naiad.runtime.layers import Attention, Linear, Mlp, Norm
from naiad.runtime.ops import Angles, AttentionParams, Declined, Dispatch, Stream
from naiad.triton_kernels import attention, linear, norms, rope
from naiad.triton_kernels.weights import PackedWeight

EPS = 1e-8
# Makes queries and keys of random weights so small that scores do not decide for a single key.
ATTENTION_NORM = 0.1


@dataclass(frozen=True, slots=True)
class Dense:
    """Sizes of a layer; formats of most matrices, and of v and down."""

    name: str
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    formats: tuple[str, str] = ("Q4_K", "Q6_K")

    @property
    def params(self) -> AttentionParams:
        return AttentionParams(self.n_heads, self.n_kv_heads, self.head_dim, self.head_dim**-0.5)


@dataclass(frozen=True, slots=True)
class Case:
    dense: Dense
    n_cached: int
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.dense.name}, {self.rows} rows on {self.n_cached}"


LLAMA = Dense("llama-3-8b", 4096, 32, 8, 128, 14336)
TINY = Dense("tiny", 64, 8, 4, 32, 64, ("Q8_0", "Q4_0"))


def cases(options: argparse.Namespace) -> list[Case]:
    return [Case(LLAMA, n) for n in ((511,) if options.quick else (511, 4095, 32767))]


# ---- layers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """Layers, their caches, and a step of tokens through any of them. Slots and angles are the same in all."""

    layers: list[tuple[Attention, Mlp]]
    caches: list[LayerCache]
    batch: Batch
    angles: Angles
    x: Tensor


def make_step(case: Case, n_layers: int, device: torch.device) -> Step:
    torch.manual_seed(0)
    dense, n, length = case.dense, case.rows, case.n_cached + case.rows
    pages = list(range(-(-length // PAGE_SIZE)))
    batch = Batch.build([NewTokens([0] * n, case.n_cached, [pages])], PAGE_SIZE, device)
    theta = torch.rand(n, dense.head_dim // 2, device=device) * 100
    return Step(
        [make_layer(dense, device, seed) for seed in range(n_layers)],
        [make_cache(dense, len(pages), device) for _ in range(n_layers)],
        batch,
        (theta.cos(), theta.sin()),
        torch.randn(n, dense.n_embd, device=device).to(half(device)),
    )


def make_layer(dense: Dense, device: torch.device, seed: int) -> tuple[Attention, Mlp]:
    def matrix(n_out: int, n_in: int, which: int = 0) -> Linear:
        return Linear(random_weight(format_by_name(dense.formats[which]), n_out, n_in, device, seed))

    def norm(weight: float) -> Norm:
        return Norm(torch.full((dense.n_embd,), weight, device=device), EPS)

    width, kv_width = dense.n_heads * dense.head_dim, dense.n_kv_heads * dense.head_dim
    first = Attention(
        params=dense.params,
        pairing=RopePairing.NORM,
        attn_norm=norm(ATTENTION_NORM),
        attn_output=matrix(dense.n_embd, width),
        attn_q=matrix(width, dense.n_embd),
        attn_k=matrix(kv_width, dense.n_embd),
        attn_v=matrix(kv_width, dense.n_embd, 1),
    )
    second = Mlp(
        activation=Activation.SILU,
        ffn_norm=norm(1.0),
        ffn_up=matrix(dense.n_ff, dense.n_embd),
        ffn_down=matrix(dense.n_embd, dense.n_ff, 1),
        ffn_gate=matrix(dense.n_ff, dense.n_embd),
    )
    return first, second


def make_cache(dense: Dense, n_pages: int, device: torch.device) -> LayerCache:
    kind = cache_type(plain_type(half(device)))
    sides = [CachePages.zeros(kind, n_pages, dense.n_kv_heads, dense.head_dim, device) for _ in range(2)]
    for side in sides:
        side.planes[0].normal_()
    return LayerCache(sides[0], sides[1])


def weights(layer: tuple[Attention, Mlp]) -> list[PackedWeight]:
    """q, k, v, output, gate, up, down."""
    first, second = layer
    assert first.attn_q and first.attn_k and first.attn_v and second.ffn_gate
    parts = (first.attn_q, first.attn_k, first.attn_v, first.attn_output)
    found = [part.weight for part in (*parts, second.ffn_gate, second.ffn_up, second.ffn_down)]
    return [weight for weight in found if isinstance(weight, PackedWeight)]


# ---- correctness ------------------------------------------------------------------------------------------------


def checks(options: argparse.Namespace) -> list[Case]:
    if torch.device(options.device).type == "cpu":
        return [Case(TINY, 40)]
    return [Case(LLAMA, 511), Case(LLAMA, 60, rows=5)]


def check(item: Case, device: torch.device) -> Iterator[str]:
    yield from guarded("layer", check_step(make_step(item, 1, device), device))


def check_step(step: Step, device: torch.device) -> Iterator[str]:
    """A layer's halves against those that torch composes of single operations."""
    ours = TritonOps(device, half(device))
    twins = Dispatch([TorchOps(device, half(device), None)])
    (first, second), cache = step.layers[0], step.caches[0]
    angles, batch = step.angles, step.batch
    halves: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Stream], Stream | Declined], Norm]] = {
        "attention half": (
            lambda x: first.compose(twins, x, angles, cache, batch),
            partial(ours.attention_block, first, following=second, angles=angles, cache=cache, batch=batch),
            second.ffn_norm,
        ),
        "MLP half": (
            lambda x: second.compose(twins, x),
            partial(ours.mlp_block, second, following=first),
            first.attn_norm,
        ),
    }
    for name, (twin, half_layer, following) in halves.items():
        x = step.x
        # As large as what is added to it: neither shall hide the other.
        for _ in range(2):
            x = (step.x * rms(twin(x) - x)).to(x.dtype)
        expected = twin(x)
        found = half_layer(Stream(x))
        if isinstance(found, Declined):
            yield f"{name}: declined: {found.reason}"
            continue
        yield from compare(name, found.x, expected, 3e-2)
        yield from compare(f"{name}, norm", found.normed, following(twins, found.x), 3e-2)


# ---- speed ------------------------------------------------------------------------------------------------------


def programs(options: argparse.Namespace) -> list[Case]:
    return cases(options)[:1]


def prepare(item: Case, device: torch.device) -> None:
    step = make_step(item, 1, device)
    for calls in (*whole(step, device).values(), *launches(item, step, device).values()):
        calls[0]()


def whole(step: Step, device: torch.device) -> dict[str, list[Call]]:
    """A layer, and its halves, per copy. What they begin with was normed by the layer before."""
    ops = TritonOps(device, half(device))
    found: dict[str, list[Call]] = {"layer": [], "attention half": [], "MLP half": []}
    for i, ((first, second), cache) in enumerate(zip(step.layers, step.caches, strict=True)):
        following = step.layers[(i + 1) % len(step.layers)][0]
        attend = partial(
            ops.attention_block, first, following=second, angles=step.angles, cache=cache, batch=step.batch
        )
        feed = partial(ops.mlp_block, second, following=following)
        # Plans are made, and norms of what comes before, in calls that nobody times.
        begun = ops.mlp_block(second, Stream(step.x), first)
        assert not isinstance(begun, Declined), begun
        middle = attend(begun)
        assert not isinstance(middle, Declined), middle
        feed(middle)
        found["attention half"].append(partial(attend, begun))
        found["MLP half"].append(partial(feed, middle))
        found["layer"].append(partial(_both, attend, feed, begun))
    return found


def _both(attend: Any, feed: Any, begun: Stream) -> object:
    return feed(attend(begun))


def launches(case: Case, step: Step, device: torch.device) -> dict[str, list[Call]]:
    """The six launches of every layer by themselves, made of the kernels' own objects."""
    dense, m = case.dense, case.rows
    kind = cache_type(plain_type(half(device)))
    heads = (dense.n_heads, dense.n_kv_heads, dense.head_dim, dense.head_dim)
    turn = rope.RopeAndWrite(*heads, rope_dim=dense.head_dim, pairing="norm", k_type=kind.name, v_type=kind.name)
    attend = attention.Attention(attention.AttentionShape(*heads, dense.params.scale), kind, kind, device)
    (sequence,) = step.batch.sequences
    (pages,) = sequence.pages
    tables = attention.PageTables.build([(0, m, sequence.length, pages)], PAGE_SIZE, len(pages), device)
    by = norms.NextNorm(torch.full((dense.n_embd,), ATTENTION_NORM, device=device), EPS)
    names = ("q+k+v", "rope+write", "attention", "o+norm", "gate+up", "down+norm")
    found: dict[str, list[Call]] = {name: [] for name in names}
    for layer, cache in zip(step.layers, step.caches, strict=True):
        q, k, v, o, gate, up, down = weights(layer)
        first, second = linear.Linear([q, k, v]), linear.Linear([o])
        third, fourth = linear.Linear([gate, up], activation="silu"), linear.Linear([down])
        planes = cache.k.planes, cache.v.planes
        _, h = norms.norm(step.x, by, form=first.form(m))
        assert h is not None
        qkv = turn.split(first(h))
        turned = turn(*qkv, step.angles, step.batch.slots[0], *planes)
        form = second.form(m)
        attended = attend(turned, *planes, tables, form)
        stream, h2 = second.with_norm(attended, step.x, by, third.form(m))
        assert h2 is not None
        hidden = third.gated(h2, fourth.form(m))
        calls: tuple[Call, ...] = (
            partial(first, h),
            partial(turn, *qkv, step.angles, step.batch.slots[0], *planes),
            partial(attend, turned, *planes, tables, form),
            partial(second.with_norm, attended, step.x, by, third.form(m)),
            partial(third.gated, h2, fourth.form(m)),
            partial(fourth.with_norm, hidden, stream, by, first.form(m)),
        )
        for name, call in zip(names, calls, strict=True):
            call()
            found[name].append(call)
    return found


def time(case: Case, device: torch.device, limits: Mapping[str, Any]) -> Iterator[Record]:
    dense = case.dense
    n_bytes_of = [weight.n_bytes for weight in weights(make_layer(dense, device, 0))]
    total = sum(n_bytes_of)
    step = make_step(case, n_copies(total, device), device)
    own = {
        "q+k+v": sum(n_bytes_of[:3]),
        "o+norm": n_bytes_of[3],
        "gate+up": sum(n_bytes_of[4:6]),
        "down+norm": n_bytes_of[6],
    }
    bound = f"{total / limits['read_gb_s'] / 1e3:.1f} µs at the read bandwidth" if "read_gb_s" in limits else ""
    print(
        f"{dense.name}, {case.rows} row on {case.n_cached} tokens: {total / 1e6:.1f} MB of weights, {bound}", flush=True
    )
    facts = {"model": dense.name, "n_cached": case.n_cached, "rows": case.rows, "weight_bytes": total}
    halves = {"layer": total, "attention half": sum(n_bytes_of[:4]), "MLP half": sum(n_bytes_of[4:])}
    for label, calls, n_bytes in (
        *((name, calls, halves[name]) for name, calls in whole(step, device).items()),
        *((name, calls, own.get(name, 0)) for name, calls in launches(case, step, device).items()),
    ):
        sizes = {"naiad": n_bytes} if n_bytes else None
        record = timed(f"{label:<15}", {"naiad": calls}, device, limits, mine=("naiad",), n_bytes=sizes)
        yield {**facts, **record}
