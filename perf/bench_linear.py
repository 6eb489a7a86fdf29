"""The linear kernels beside torch's matmul and other int4 kernels (a part of kernels.py).

GB/s are those of weights in their packed form. torch's bf16 product leaves out the activation of gate and up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any

import torch
from bench import Record, compare, empty_weight, guarded, half, timed
from random_weights import random_rows
from timing import Call, copies, first_line, n_copies, random_weight
from torch import Tensor

from naiad.quant.dequantize import dequantize
from naiad.quant.formats import Format, format_by_id, format_by_name
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.linear import Activation, Linear, Route
from naiad.triton_kernels.tuning import Tuning, arch_of, tuning
from naiad.triton_kernels.weights import PackedWeight


@dataclass(frozen=True, slots=True)
class Layer:
    """Matrices [width, n_in] that one call multiplies."""

    name: str
    widths: tuple[int, ...]
    n_in: int
    activation: Activation | None = None

    @property
    def n_out(self) -> int:
        return sum(self.widths)


def layers(n_embd: int, n_kv: int, n_ff: int, n_vocab: int) -> tuple[Layer, ...]:
    return (
        Layer("q+k+v", (n_embd, n_kv, n_kv), n_embd),
        Layer("o", (n_embd,), n_embd),
        Layer("gate+up", (n_ff, n_ff), n_embd, "silu"),
        Layer("down", (n_embd,), n_ff),
        Layer("head", (n_vocab,), n_embd),
    )


MODELS = {
    "llama-3-8b": layers(4096, 1024, 14336, 128256),
    "qwen2.5-7b": layers(3584, 512, 18944, 152064),
    "qwen2.5-32b": layers(5120, 1024, 27648, 152064),
    "llama-3-70b": layers(8192, 1024, 28672, 128256),
}
FORMATS = ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
ROWS = (1, 2, 4, 8, 16, 64, 512, 2048)
QUICK_FORMATS = ("Q4_K", "Q6_K", "Q8_0")
QUICK_ROWS = (1, 4, 16, 512)
ALL_FORMATS = tuple(format_by_id(id).name for id in DECODERS)

# Up to so many rows the weights' bytes set the limit, beyond it the arithmetic.
MEMORY_BOUND_ROWS = 8
# Weights per scale and zero point of the other int4 kernels: 4.5 bits per weight in all, as in Q4_K.
INT4_GROUP = 64

# ---- correctness ------------------------------------------------------------------------------------------------

CHECK_ROWS = (1, 3, 8, 17, 70, 300)
FUSED_ROWS = (3, 17)
CHECK_N_OUT = 77


@dataclass(frozen=True, slots=True)
class Way:
    """How a product is computed, and the largest relative RMS difference from its value in float64."""

    name: str
    route: Route
    dtype: torch.dtype
    bound: float
    table: Tuning
    rows: tuple[int, ...]
    batch_invariant: bool = False


WAYS = ("int8", "int8, integer tiles", "int8, batch-invariant", "exact, float32", "exact, 16 bits", "exact, workspace")


def ways(table: Tuning, half: torch.dtype, rows: tuple[int, ...]) -> tuple[Way, ...]:
    integers = replace(table, tiles=tuple(replace(tile, int8=True) for tile in table.tiles), shared=None)
    workspace = replace(table, matvec_rows=0, workspace_rows=0)
    return (
        Way("int8", "int8", half, 2e-2, table, rows),
        Way("int8, integer tiles", "int8", half, 2e-2, integers, tuple(m for m in rows if m > table.matvec_rows)),
        Way("int8, batch-invariant", "int8", half, 2e-2, table, rows[-1:], batch_invariant=True),
        Way("exact, float32", "exact", torch.float32, 1e-5, table, rows),
        Way("exact, 16 bits", "exact", half, 1e-2, table, rows),
        Way("exact, workspace", "exact", torch.float32, 1e-5, workspace, rows[-1:]),
    )


@dataclass(frozen=True, slots=True)
class Checked:
    format: str
    way: str

    def __str__(self) -> str:
        return f"{self.format}, {self.way}"


def checks(options: argparse.Namespace) -> list[Checked]:
    return [Checked(name, way) for name in options.check for way in WAYS]


def check(item: Checked, device: torch.device) -> Iterator[str]:
    """What is wrong with the products of a format."""
    fmt, n_out = format_by_name(item.format), CHECK_N_OUT
    # A row that ends inside a unit of 256 weights, where the format has such rows.
    n_in = 256 + fmt.block_size
    stored = [random_rows(fmt, n_out, n_in, device, seed) for seed in range(3)]
    packed = [PackedWeight.pack(data, fmt, (n_out, n_in)) for data in stored]
    dense = [dequantize(data, fmt) for data in stored]
    yield from compare("rows", packed[0].dense(0, n_out, torch.float32), dense[0], 1e-6)
    (way,) = (way for way in ways(tuning(arch_of(device)), half(device), CHECK_ROWS) if way.name == item.way)
    for m in way.rows:
        what = f"{m} rows"
        yield from guarded(what, check_products(what, way, m, packed, dense))


def check_products(
    what: str, way: Way, m: int, packed: Sequence[PackedWeight], dense: Sequence[Tensor]
) -> Iterator[str]:
    """One matrix; at FUSED_ROWS also three side by side and a gated pair."""
    bias = torch.randn(sum(len(w) for w in dense), device=dense[0].device).to(way.dtype)
    options: dict[str, Any] = {"route": way.route, "table": way.table, "batch_invariant": way.batch_invariant}
    one = Linear(packed[:1], **options)
    x = torch.randn(m, one.n_in, device=one.device).to(way.dtype)
    products = [x.double() @ w.double().t() for w in dense]
    y = one(x)
    yield from compare(what, y, products[0], way.bound)
    if way.batch_invariant and not torch.equal(y[:1], one(x[:1])):
        yield f"{what}: the first row's result depends on the others"
    if m in FUSED_ROWS:
        three, gated = Linear(packed, bias=bias, **options), Linear(packed[:2], activation="silu", **options)
        residual = torch.randn(m, three.n_out, device=x.device).to(way.dtype)
        expected = torch.cat(products, 1) + bias.double() + residual.double()
        yield from compare(f"{what}, three matrices", three(x, residual), expected, way.bound)
        expected = torch.nn.functional.silu(products[0]) * products[1]
        yield from compare(f"{what}, gated", gated(x), expected, 2 * way.bound)


# ---- candidates -------------------------------------------------------------------------------------------------

# From x [M, n_in] to calls, one per copy of the weights.
Candidate = Callable[[Tensor], list[Call]]
VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {},
    "exact": {"route": "exact"},
    "invariant": {"batch_invariant": True},
}


def naiad(layer: Layer, fmt: Format, device: torch.device) -> tuple[dict[str, Candidate], int]:
    """The variants of our Linear over the same copies, and the bytes of one copy."""
    weights = [random_weight(fmt, width, layer.n_in, device, i) for i, width in enumerate(layer.widths)]
    n_bytes = sum(weight.n_bytes for weight in weights)
    rotation = list(zip(*(copies(weight, n_copies(n_bytes, device)) for weight in weights), strict=True))

    def candidate(options: dict[str, Any]) -> Candidate:
        linears = [Linear(group, activation=layer.activation, **options) for group in rotation]
        return lambda x: [partial(linear, x) for linear in linears]

    return {name: candidate(options) for name, options in VARIANTS.items()}, n_bytes


def torch_bf16(layer: Layer, device: torch.device) -> Candidate:
    weight = torch.randn(layer.n_out, layer.n_in, device=device).mul_(0.02).bfloat16()
    rotation = [weight] + [weight.clone() for _ in range(n_copies(weight.nbytes, device) - 1)]
    return lambda x: [partial(torch.mm, x, w.t()) for w in rotation]


def torch_int4(layer: Layer, device: torch.device) -> Candidate:
    q = torch.randint(0, 256, (layer.n_out, layer.n_in // 2), dtype=torch.uint8, device=device)
    packed = torch.ops.aten._convert_weight_to_int4pack(q, 8)
    scales = torch.rand(layer.n_in // INT4_GROUP, layer.n_out, 2, device=device).mul_(0.01).bfloat16()
    n = n_copies(packed.nbytes + scales.nbytes, device)
    rotation = [(packed, scales)] + [(packed.clone(), scales.clone()) for _ in range(n - 1)]
    multiply = torch.ops.aten._weight_int4pack_mm
    return lambda x: [partial(multiply, x, w, INT4_GROUP, s) for w, s in rotation]


def gemlite(layer: Layer, device: torch.device) -> Candidate:
    core = import_module("gemlite.core")
    q = torch.randint(0, 16, (layer.n_out, layer.n_in), dtype=torch.uint8, device=device)
    groups = (layer.n_out, layer.n_in // INT4_GROUP)
    scales, zeros = torch.full(groups, 0.01, device=device).half(), torch.full(groups, 8.0, device=device).half()
    rotation = []
    for _ in range(n_copies(q.nbytes // 2, device)):
        half = {"input_dtype": core.DType.FP16, "output_dtype": core.DType.FP16}
        linear = core.GemLiteLinear(4, INT4_GROUP, layer.n_in, layer.n_out, **half)
        linear.pack(q.clone(), scales, zeros, None)
        rotation.append(linear)

    def calls(x: Tensor) -> list[Call]:
        x = x.half()
        return [partial(linear, x) for linear in rotation]

    return calls


PEERS: dict[str, Callable[[Layer, torch.device], Candidate]] = {
    "torch bf16": torch_bf16,
    "torch int4": torch_int4,
    "gemlite": gemlite,
}


def peers(layer: Layer, device: torch.device) -> dict[str, Candidate]:
    """Those that can be made here."""
    made = {}
    for name, make in PEERS.items():
        try:
            made[name] = make(layer, device)
        except Exception as error:  # not installed, or not for this card
            print(f"  without {name}: {first_line(error)}")
    return made


# ---- speed ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A layer of a model, in formats and with numbers of rows."""

    model: str
    layer: Layer
    formats: tuple[str, ...]
    rows: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.model}, {self.layer.name}, {' '.join(self.formats)}"


def cases(options: argparse.Namespace) -> list[Case]:
    return [Case(model, layer, options.formats, options.rows) for model in options.models for layer in MODELS[model]]


def programs(options: argparse.Namespace) -> list[Case]:
    """A format at a time: compiling takes longest here."""
    found = {(case.layer, name): replace(case, formats=(name,)) for case in cases(options) for name in case.formats}
    return list(found.values())


def prepare(item: Case, device: torch.device) -> None:
    fmt = format_by_name(item.formats[0])
    weights = [empty_weight(fmt, (width, item.layer.n_in), device) for width in item.layer.widths]
    for options, m in product(VARIANTS.values(), item.rows):
        linear = Linear(weights, activation=item.layer.activation, **options)
        with suppress(Exception):  # what fails here fails again where it is timed
            linear(torch.zeros(m, item.layer.n_in, dtype=torch.bfloat16, device=device))


def time(case: Case, device: torch.device, limits: Mapping[str, Any]) -> Iterator[Record]:
    layer = case.layer
    print(f"{case.model}, {layer.name}: {' + '.join(map(str, layer.widths))} x {layer.n_in}", flush=True)
    others = peers(layer, device)
    for name in case.formats:
        ours, n_bytes = naiad(layer, format_by_name(name), device)
        for m in case.rows:
            x = torch.randn(m, layer.n_in, device=device).bfloat16()
            few = m <= MEMORY_BOUND_ROWS
            record = timed(
                f"{name:<7} {m:>5}",
                {key: candidate(x) for key, candidate in (ours | others).items()},
                device,
                limits,
                mine=tuple(ours),
                n_bytes=dict.fromkeys(ours, n_bytes) if few else None,
                flops=0.0 if few else 2.0 * m * layer.n_out * layer.n_in,
            )
            us = record["us"]
            if {"invariant", "int8"} <= us.keys():
                record["cost_of_invariance"] = round(us["invariant"][0] / us["int8"][0], 3)
            yield {
                "model": case.model,
                "layer": layer.name,
                "format": name,
                "rows": m,
                "weight_bytes": n_bytes,
                **record,
            }
