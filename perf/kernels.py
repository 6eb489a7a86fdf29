"""Correctness, then speed, of the linear kernels on the GPU at hand, beside torch's matmul and other int4 kernels.

python perf/kernels.py [--quick] [--formats Q4_K,Q6_K] [--models llama-3-8b] [--rows 1,16,512] [--out results.json]

Weights are random. Wrong results end it before anything is timed. Times are medians of repeats in which the candidates
take turns, in CUDA graphs, over copies of the weights that exceed the caches. GB/s are those of weights in their packed
form, beside the card's read bandwidth as measured here. torch's bf16 product leaves out the activation of gate and up.
--device cpu, under TRITON_INTERPRET=1, checks correctness only. Exit code 1: wrong results; 2: no device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from timing import (
    Call,
    Times,
    card_limits,
    clocks,
    copies,
    default_jobs,
    describe,
    find_device,
    first_line,
    measure,
    n_copies,
    random_rows,
    random_weight,
    workers,
)
from torch import Tensor

from naiad.quant.dequantize import dequantize
from naiad.quant.formats import Format, format_by_id, format_by_name
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.linear import Activation, Linear, Route
from naiad.triton_kernels.tuning import Tuning, arch_of, tuning
from naiad.triton_kernels.weights import PackedWeight

RESULTS = Path(__file__).with_name("results")


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
class Check:
    """How a product is computed, and the largest relative RMS difference from its value in float64."""

    name: str
    route: Route
    dtype: torch.dtype
    bound: float
    table: Tuning
    rows: tuple[int, ...]
    batch_invariant: bool = False


def checks(table: Tuning, half: torch.dtype, rows: tuple[int, ...]) -> tuple[Check, ...]:
    integers = replace(table, tiles=tuple(replace(tile, int8=True) for tile in table.tiles))
    workspace = replace(table, matvec_rows=0, workspace_rows=0)
    return (
        Check("int8", "int8", half, 2e-2, table, rows),
        Check("int8, integer tiles", "int8", half, 2e-2, integers, tuple(m for m in rows if m > table.matvec_rows)),
        Check("int8, batch-invariant", "int8", half, 2e-2, table, rows[-1:], batch_invariant=True),
        Check("exact, float32", "exact", torch.float32, 1e-5, table, rows),
        Check("exact, 16 bits", "exact", half, 1e-2, table, rows),
        Check("exact, workspace", "exact", torch.float32, 1e-5, workspace, rows[-1:]),
    )


def check_format(name: str, device: str, rows: tuple[int, ...], n_out: int = CHECK_N_OUT) -> list[str]:
    """What is wrong with the products of a format, one line each."""
    fmt, on = format_by_name(name), torch.device(device)
    # A row that ends inside a unit of 256 weights, where the format has such rows.
    n_in = 256 + fmt.block_size
    # The interpreter's bfloat16 arithmetic is wrong.
    half = torch.float16 if on.type == "cpu" else torch.bfloat16
    try:
        stored = [random_rows(fmt, n_out, n_in, on, seed) for seed in range(3)]
        packed = [PackedWeight.pack(data, fmt, (n_out, n_in)) for data in stored]
        dense = [dequantize(data, fmt) for data in stored]
        found = list(compare("rows", packed[0].dense(0, n_out, torch.float32), dense[0].double(), 1e-6))
        for check in checks(tuning(arch_of(on)), half, rows):
            found += check_products(check, packed, dense)
    except Exception as error:  # whatever a compiler or a driver raises
        found = [first_line(error)]
    return [f"{name}: {line}" for line in found]


def check_products(check: Check, packed: Sequence[PackedWeight], dense: Sequence[Tensor]) -> Iterator[str]:
    """One matrix at every number of rows; three side by side and a gated pair at FUSED_ROWS."""
    bias = torch.randn(sum(len(w) for w in dense), device=dense[0].device).to(check.dtype)
    options: dict[str, Any] = {"route": check.route, "table": check.table, "batch_invariant": check.batch_invariant}
    one = Linear(packed[:1], **options)
    three = Linear(packed, bias=bias, **options)
    gated = Linear(packed[:2], activation="silu", **options)
    for m in check.rows:
        what = f"{check.name}, {m} rows"
        x = torch.randn(m, one.n_in, device=one.device).to(check.dtype)
        products = [x.double() @ w.double().t() for w in dense]
        y = one(x)
        yield from compare(what, y, products[0], check.bound)
        if check.batch_invariant and not torch.equal(y[:1], one(x[:1])):
            yield f"{what}: the first row's result depends on the others"
        if m in FUSED_ROWS:
            residual = torch.randn(m, three.n_out, device=x.device).to(check.dtype)
            expected = torch.cat(products, 1) + bias.double() + residual.double()
            yield from compare(f"{what}, three matrices", three(x, residual), expected, check.bound)
            expected = torch.nn.functional.silu(products[0]) * products[1]
            yield from compare(f"{what}, gated", gated(x), expected, 2 * check.bound)


def compare(what: str, found: Tensor, expected: Tensor, bound: float) -> Iterator[str]:
    """A line where the relative RMS difference exceeds the bound or is not a number."""
    error = float((found.double() - expected).norm() / expected.norm())
    if not error <= bound:
        yield f"{what}: relative RMS difference {error:.2g}, at most {bound:g} expected"


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


def compile_layer(item: tuple[Layer, str], device: str, rows: tuple[int, ...]) -> None:
    """Runs every variant once, in a process of its own; what fails here fails again where it is timed."""
    (layer, name), on = item, torch.device(device)
    try:
        weights = [random_weight(format_by_name(name), width, layer.n_in, on) for width in layer.widths]
        for options, m in product(VARIANTS.values(), rows):
            linear = Linear(weights, activation=layer.activation, **options)
            linear(torch.zeros(m, layer.n_in, dtype=torch.bfloat16, device=on))
        del weights, linear
        torch.cuda.empty_cache()
    except Exception:
        return


def time_layer(
    layer: Layer, formats: Iterable[str], rows: Iterable[int], device: torch.device, read_gb_s: float
) -> Iterator[dict[str, Any]]:
    """A record per format and number of rows, printed as a line of the table."""
    others = peers(layer, device)
    for name in formats:
        ours, n_bytes = naiad(layer, format_by_name(name), device)
        for m in rows:
            x = torch.randn(m, layer.n_in, device=device).bfloat16()
            calls = {key: candidate(x) for key, candidate in (ours | others).items()}
            times, failed = measure(calls, device)
            row = rates(layer, m, n_bytes, times, read_gb_s)
            row = {"layer": layer.name, "format": name, "rows": m, "weight_bytes": n_bytes, **row, "failed": failed}
            print(line(row, times))
            yield row


def rates(layer: Layer, m: int, n_bytes: int, times: dict[str, Times], read_gb_s: float) -> dict[str, Any]:
    """Times (median, lowest, highest), and what follows from them."""
    rounded = {key: [round(value, 2) for value in (t.median, t.low, t.high)] for key, t in times.items()}
    result: dict[str, Any] = {"us": rounded, "launches_included": [key for key, t in times.items() if not t.graph]}
    us = {key: value.median for key, value in times.items()}
    mine = [key for key in VARIANTS if key in us]
    if m <= MEMORY_BOUND_ROWS:
        result["gb_s"] = {key: round(n_bytes / us[key] / 1e3, 1) for key in mine}
        result["share_of_read"] = {key: round(n_bytes / us[key] / 1e3 / read_gb_s, 3) for key in mine}
    else:
        flops = 2 * m * layer.n_out * layer.n_in
        result["tflops"] = {key: round(flops / value / 1e6, 1) for key, value in us.items()}
    for peer in us.keys() - VARIANTS.keys():
        result[f"speed / {peer}"] = {key: round(us[peer] / us[key], 3) for key in mine}
    if {"invariant", "int8"} <= us.keys():
        result["cost_of_invariance"] = round(us["invariant"] / us["int8"], 3)
    return result


def line(row: dict[str, Any], times: dict[str, Times]) -> str:
    """One line of the table; an asterisk marks a time that includes launching."""
    cells = []
    for key, t in times.items():
        cell = f"{key} {t.median:.1f}{'' if t.graph else '*'} [{t.low:.1f} … {t.high:.1f}] µs"
        if key in row.get("gb_s", {}):
            cell += f" {row['gb_s'][key]:.0f} GB/s {row['share_of_read'][key]:.0%}"
        elif key in row.get("tflops", {}):
            cell += f" {row['tflops'][key]:.0f} TFLOP/s"
            ratio = row.get("speed / torch bf16", {}).get(key)
            cell += "" if ratio is None else f" {ratio:.2f} of bf16"
        cells.append(cell)
    cells += [f"{key}: {why}" for key, why in row["failed"].items()]
    return f"    {row['format']:<7} {row['rows']:>5}  " + " | ".join(cells)


def time_models(arguments: argparse.Namespace, device: torch.device, jobs: int) -> dict[str, Any]:
    limits = card_limits(device)
    print(json.dumps(limits))
    chosen = [(model, layer) for model in arguments.models for layer in MODELS[model]]
    with workers(jobs) as run:
        items = [(layer, name) for layer in dict.fromkeys(layer for _, layer in chosen) for name in arguments.formats]
        run(partial(compile_layer, device=str(device), rows=arguments.rows), items)
    records = []
    for model, layer in chosen:
        print(f"{model}, {layer.name}: {' + '.join(map(str, layer.widths))} x {layer.n_in}")
        for row in time_layer(layer, arguments.formats, arguments.rows, device, limits["read_gb_s"]):
            records.append({"model": model, **row})
        torch.cuda.empty_cache()
    return {"limits": limits, "layers": records, "clocks_after": clocks(device)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: tuple(text.split(","))  # noqa: E731
    numbers = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser.add_argument("--formats", type=names, help=f"formats to time, by default {','.join(FORMATS)}")
    parser.add_argument("--check", type=names, help="formats to check, by default all (with --quick those to time)")
    parser.add_argument("--models", type=names, help=f"of {', '.join(MODELS)}; by default all")
    parser.add_argument("--rows", type=numbers, help=f"by default {','.join(map(str, ROWS))}")
    parser.add_argument("--quick", action="store_true", help="few formats and rows, Llama-3-8B")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="by default results/kernels-<architecture>.json")
    parser.add_argument("-j", "--jobs", type=int, help="processes that check and compile")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    arguments.formats = arguments.formats or (QUICK_FORMATS if quick else FORMATS)
    arguments.check = arguments.check or (arguments.formats if quick else ALL_FORMATS)
    arguments.rows = arguments.rows or (QUICK_ROWS if quick else ROWS)
    arguments.models = arguments.models or (("llama-3-8b",) if quick else tuple(MODELS))
    unknown = [*({*arguments.models} - MODELS.keys()), *({*arguments.formats, *arguments.check} - {*ALL_FORMATS})]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; models: {', '.join(MODELS)}; formats: {', '.join(ALL_FORMATS)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    device = find_device(arguments.device)
    if device is None:
        return 2
    facts = describe(device)
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    jobs = arguments.jobs or default_jobs(device)
    with workers(jobs) as run:
        lines = run(partial(check_format, device=str(device), rows=CHECK_ROWS), arguments.check)
    wrong = [line for of_format in lines for line in of_format]
    print("\n".join(wrong) or f"{len(arguments.check)} formats give correct results")
    if wrong:
        return 1
    result = {"device": facts, "checked": arguments.check}
    if device.type == "cuda":
        result |= time_models(arguments, device, jobs)
        out = arguments.out or RESULTS / f"kernels-{facts['arch']}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
