"""Routers and experts beside a bf16 mixture in torch's grouped products (a part of kernels.py).

Experts are timed with what their last launch does beside: the residual, and the norm of the next half of the layer.
Routing is random. GB/s are those of the matrices of the experts that tokens go to. Calls take turns over copies of the
stacks, and every call has other experts, so that none finds its matrices in a cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench import Record, compare, empty_weight, guarded, half, rms, several, timed
from random_weights import random_rows
from timing import ROTATION_BYTES, Call, copies, first_line
from torch import Tensor

from naiad.quant.dequantize import dequantize
from naiad.quant.formats import format_by_name
from naiad.triton_kernels.activations import Form, Units
from naiad.triton_kernels.experts import Experts
from naiad.triton_kernels.norms import NextNorm
from naiad.triton_kernels.router import Router, Routing, route_reference
from naiad.triton_kernels.weights import PackedWeight

Stacks = tuple[PackedWeight, PackedWeight, PackedWeight]
Sent = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Mixture:
    """formats: of gate, up and down."""

    name: str
    n_experts: int
    n_used: int
    n_embd: int
    n_ff: int
    formats: tuple[str, str, str]

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        wide, narrow = (self.n_experts, self.n_ff, self.n_embd), (self.n_experts, self.n_embd, self.n_ff)
        return (wide, wide, narrow)

    @property
    def routing(self) -> Routing:
        return Routing(self.n_experts, self.n_used, "softmax", normalise=True, scale=1.0)


@dataclass(frozen=True, slots=True)
class Case:
    mixture: Mixture
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return self.mixture.name


QWEN = Mixture("qwen3-30b-a3b", 128, 8, 2048, 768, ("Q4_K", "Q4_K", "Q6_K"))
MIXTRAL = Mixture("mixtral-8x7b", 8, 2, 4096, 14336, ("Q4_K", "Q4_K", "Q4_K"))
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
QUICK_TOKENS = (1, 8, 128)
# From so many assignments per expert on, arithmetic is worth a figure.
MANY = 16
EPS = 1e-5


def cases(options: argparse.Namespace) -> list[Case]:
    return [Case(QWEN, QUICK_TOKENS)] if options.quick else [Case(QWEN, TOKENS), Case(MIXTRAL, TOKENS)]


def random_stacks(mixture: Mixture, device: torch.device) -> tuple[Stacks, list[Tensor]]:
    """The stacks, and the rows that they were packed from."""
    stacks, stored = [], []
    for seed, (name, (n, n_out, n_in)) in enumerate(zip(mixture.formats, mixture.shapes, strict=True)):
        fmt = format_by_name(name)
        rows = random_rows(fmt, n * n_out, n_in, device, seed).view(n, n_out, -1)
        stacks.append(PackedWeight.pack(rows, fmt, (n, n_out, n_in)))
        stored.append(rows)
    return (stacks[0], stacks[1], stacks[2]), stored


def random_routes(mixture: Mixture, n: int, device: torch.device, dtype: torch.dtype) -> Sent:
    """x, ids and shares of n tokens that choose at random."""
    x = torch.randn(n, mixture.n_embd, device=device).to(dtype)
    ids, shares = route_reference(torch.randn(n, mixture.n_experts, device=device), mixture.routing)
    return x, ids.contiguous(), shares.contiguous()


def next_norm(mixture: Mixture, device: torch.device) -> NextNorm:
    return NextNorm(torch.ones(mixture.n_embd, device=device), EPS)


def next_form(experts: Experts, n: int) -> Form:
    """What the products of n tokens that follow read (Linear.form)."""
    few = experts.table.matvec_rows if experts.int8 else experts.table.exact_rows
    return "plain" if n > few or experts.batch_invariant else "int8" if experts.int8 else "spread"


# ---- correctness -------------------------------------------------------------------------------------------------

# The models' widths with fewer or narrower experts, so that their twins in float32 fit beside other processes'.
CHECKED = (
    Mixture("qwen3-30b-a3b", 32, 8, 2048, 768, QWEN.formats),
    Mixture("mixtral-8x7b", 8, 2, 4096, 1792, MIXTRAL.formats),
)
CHECK_TOKENS = (1, 4, 19, 300)
# How they are computed, and the largest relative RMS difference from the twins.
WAYS: dict[str, tuple[dict[str, Any], float]] = {
    "int8": ({}, 3e-2),
    "exact": ({"route": "exact"}, 1e-2),
    "batch-invariant": ({"batch_invariant": True}, 3e-2),
}
# What rounding to 8 bits costs.
NORM_BOUND = 2e-2
TINY = Case(Mixture("tiny", 4, 2, 64, 32, ("Q8_0", "Q8_0", "Q4_0")), (1, 5))


def checks(options: argparse.Namespace) -> list[Case]:
    if torch.device(options.device).type == "cpu":
        return [TINY]
    chosen = CHECKED[:1] if options.quick else CHECKED
    return [Case(mixture, (n,)) for mixture in chosen for n in CHECK_TOKENS]


def check(item: Case, device: torch.device) -> Iterator[str]:
    mixture, dtype = item.mixture, half(device)
    stacks, stored = random_stacks(mixture, device)
    twins = [dequantize(rows, stack.format) for rows, stack in zip(stored, stacks, strict=True)]
    for n in item.tokens:
        what = f"{n} tokens"
        yield from guarded(what, check_router(f"{what}, router", mixture, n, device, dtype))
        sent = random_routes(mixture, n, device, dtype)
        expected = reference(*sent, twins)
        # Neither shall hide the other.
        residual = (torch.randn_like(expected) * rms(expected)).to(dtype)
        expected += residual
        for name, (options, bound) in WAYS.items():
            found = check_experts(f"{what}, {name}", mixture, stacks, options, (*sent, residual), expected, bound)
            yield from guarded(f"{what}, {name}", found)


def check_experts(
    what: str,
    mixture: Mixture,
    stacks: Stacks,
    options: dict[str, Any],
    arguments: tuple[Tensor, Tensor, Tensor, Tensor],
    expected: Tensor,
    bound: float,
) -> Iterator[str]:
    experts = Experts(*stacks, activation="silu", **options)
    by, form = next_norm(mixture, expected.device), next_form(experts, len(expected))
    stream, normed = experts.with_norm(*arguments, by, form)
    assert normed is not None
    yield from compare(what, stream, expected, bound)
    yield from compare(f"{what}, norm", normed, F.rms_norm(stream.float(), (mixture.n_embd,), eps=EPS), NORM_BOUND)
    # Counters are zero again, and nothing depends on who finishes first.
    if not torch.equal(experts.with_norm(*arguments, by, form)[0], stream):
        yield f"{what}: a second call gives another result"


def check_router(what: str, mixture: Mixture, n: int, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    weight = torch.randn(mixture.n_experts, mixture.n_embd, device=device) / 16
    x = torch.randn(n, mixture.n_embd, device=device).to(dtype)
    expected = route_reference(x.double() @ weight.double().t(), mixture.routing)
    router = Router(weight, mixture.routing)
    for ids, shares, units in (router.with_units(x), router.with_units(x)):
        yield from compare(what, by_expert(ids, shares, mixture), by_expert(*expected, mixture), 1e-3)
        if units is not None:
            yield from compare(f"{what}, units", Units(units, True, mixture.n_embd, dtype), x, 2e-2)


def by_expert(ids: Tensor, shares: Tensor, mixture: Mixture) -> Tensor:
    """The share of every expert, [n, n_experts]."""
    return torch.zeros(len(ids), mixture.n_experts, device=ids.device).scatter_(1, ids.long(), shares)


def reference(x: Tensor, ids: Tensor, shares: Tensor, twins: Sequence[Tensor]) -> Tensor:
    """In float32, from stacks of numbers."""
    gate, up, down = twins
    y = torch.zeros(len(x), gate.shape[2], device=x.device)
    for expert in range(len(gate)):
        token, place = (ids == expert).nonzero(as_tuple=True)
        chosen = x[token].float()
        hidden = F.silu(chosen @ gate[expert].t()) * (chosen @ up[expert].t())
        y.index_add_(0, token, hidden @ down[expert].t() * shares[token, place, None])
    return y


# ---- speed -------------------------------------------------------------------------------------------------------


def programs(options: argparse.Namespace) -> list[Case]:
    return [Case(case.mixture, (n,)) for case in cases(options) for n in case.tokens]


def prepare(item: Case, device: torch.device) -> None:
    mixture, dtype = item.mixture, half(device)
    pairs = zip(mixture.formats, mixture.shapes, strict=True)
    stacks = tuple(empty_weight(format_by_name(name), shape, device) for name, shape in pairs)
    router = Router(torch.zeros(mixture.n_experts, mixture.n_embd, device=device), mixture.routing)
    by = next_norm(mixture, device)
    for n in item.tokens:
        sent = random_routes(mixture, n, device, dtype)
        for options in OURS.values():
            with suppress(Exception):  # what fails here fails again where it is timed
                layer = Experts(*stacks, activation="silu", **options)
                units = router.with_units(sent[0], layer.int8)[2]
                layer.with_norm(*sent, torch.zeros_like(sent[0]), by, next_form(layer, n), units)


OURS: dict[str, dict[str, Any]] = {"int8": {}, "exact": {"route": "exact"}}


def time(case: Case, device: torch.device, limits: Mapping[str, Any]) -> Iterator[Record]:
    mixture, dtype = case.mixture, half(device)
    print(
        f"{mixture.name}: {mixture.n_used} of {mixture.n_experts} experts, {mixture.n_embd} x {mixture.n_ff}, "
        f"{' '.join(mixture.formats)}",
        flush=True,
    )
    stacks, _ = random_stacks(mixture, device)
    expert_bytes = sum(stack.n_bytes for stack in stacks) / mixture.n_experts
    # What lies between two calls with the same copy exceeds the caches.
    n = rotation(expert_bytes * mixture.n_used, device)
    groups = list(zip(*(copies(stack, n) for stack in stacks), strict=True))
    layers = {
        name: [Experts(*group, activation="silu", **options) for group in groups] for name, options in OURS.items()
    }
    routers, by = make_routers(mixture, device), next_norm(mixture, device)
    dense = grouped_stacks(mixture, device)
    for n_tokens in case.tokens:
        sent = [random_routes(mixture, n_tokens, device, dtype) for _ in range(2 * n if n > 1 else 1)]
        residual = torch.randn(n_tokens, mixture.n_embd, device=device).to(dtype)
        # As the runtime does it: where the router gives units of x without a launch, the experts take them.
        given = [routers[0].with_units(arguments[0])[2] for arguments in sent]
        calls: dict[str, list[Call]] = {
            name: [
                partial(
                    own[i % n].with_norm,
                    *(*arguments, residual, by, next_form(own[i % n], n_tokens)),
                    units=given[i] if own[i % n].int8 else None,
                )
                for i, arguments in enumerate(sent)
            ]
            for name, own in layers.items()
        }
        if dense:
            calls["torch bf16"] = [
                partial(grouped_mixture, *arguments, dense[i % len(dense)]) for i, arguments in enumerate(sent)
            ]
        used = sum(len(ids.unique()) for _, ids, _ in sent) / len(sent)
        dense_bytes = 2 * 3 * mixture.n_embd * mixture.n_ff
        facts = {"model": mixture.name, "tokens": n_tokens, "experts_used": used}
        record = timed(
            f"{n_tokens:>4} tokens, {used:5.1f} experts",
            calls,
            device,
            limits,
            mine=tuple(OURS),
            n_bytes={**dict.fromkeys(OURS, used * expert_bytes), "torch bf16": used * dense_bytes},
            flops=flops(mixture, n_tokens) if n_tokens * mixture.n_used >= MANY * mixture.n_experts else 0.0,
        )
        yield {**facts, **record}
        routed: dict[str, list[Call]] = {"naiad": [partial(router.with_units, sent[0][0]) for router in routers]}
        yield {**facts, **timed(f"{n_tokens:>4} tokens, router", routed, device, limits, mine=("naiad",))}


def flops(mixture: Mixture, n_tokens: int) -> float:
    return 2.0 * n_tokens * mixture.n_used * 3 * mixture.n_embd * mixture.n_ff


def rotation(used_bytes: float, device: torch.device) -> int:
    return 1 + int(ROTATION_BYTES / used_bytes) if device.type == "cuda" else 1


def make_routers(mixture: Mixture, device: torch.device) -> list[Router]:
    weight = torch.randn(mixture.n_experts, mixture.n_embd, device=device) / 16
    return [Router(weight.clone(), mixture.routing) for _ in range(several(weight.nbytes, device, 256))]


def grouped_stacks(mixture: Mixture, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Stacks of bf16 numbers for grouped_mixture; none where this torch has no grouped product here."""
    sizes = 2 * 3 * mixture.n_embd * mixture.n_ff
    try:
        made = []
        for _ in range(rotation(sizes * mixture.n_used, device)):
            gate, up, down = (
                torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02 for shape in mixture.shapes
            )
            made.append((gate, up, down))
        grouped_mixture(*random_routes(mixture, 2, device, torch.bfloat16), made[0])
    except Exception as error:  # not in this version, or not for this card
        print(f"  without torch._grouped_mm: {first_line(error)}", flush=True)
        return []
    return made


def grouped_mixture(x: Tensor, ids: Tensor, shares: Tensor, stacks: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The experts' sum without a loop: assignments sorted by expert, three grouped products."""
    gate, up, down = stacks
    (n, n_used), n_experts = ids.shape, len(gate)
    expert, order = ids.flatten().long().sort()
    ends = torch.searchsorted(expert, torch.arange(n_experts, device=x.device), right=True).int()
    multiply = torch._grouped_mm
    chosen = x.bfloat16()[order // n_used]
    hidden = F.silu(multiply(chosen, gate.transpose(1, 2), ends)) * multiply(chosen, up.transpose(1, 2), ends)
    products = multiply(hidden, down.transpose(1, 2), ends)
    back = torch.empty_like(products).index_copy_(0, order, products)
    return (back.view(n, n_used, -1) * shares.unsqueeze(-1).to(back.dtype)).sum(1)
