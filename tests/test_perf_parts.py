"""The parts of perf/kernels.py with tiny shapes under Triton's interpreter, where times mean nothing."""

from __future__ import annotations

import json
import os
import pickle
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import bench
import bench_attention
import bench_experts
import bench_layer
import bench_linear
import bench_small
import kernels
import pytest
import timing
import torch

from naiad.runtime.backends import triton as backend
from naiad.runtime.backends.torch import TorchOps
from naiad.triton_kernels import attention, experts, linear, router
from naiad.triton_kernels.activations import converted
from naiad.triton_kernels.tuning import Tile, Vector, tuning
from naiad.triton_kernels.weights import PackedWeight

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs kernels on CPU tensors")
CPU = torch.device("cpu")
ALL = kernels.parse([])
QUICK = kernels.parse(["--quick"])
HEADS = bench_attention.Heads(4, 2, 64)
LIMITS = {"read_gb_s": 1.0}

# Whole matrices in one program: the interpreter's time goes by programs.
TILE = Tile(max_rows=0, bn=256, bm=16, warps=8, stages=1, split=False, int8=False)
FAT = replace(tuning("portable"), vector=Vector(256, 8, 4), tiles=(TILE,), invariant=TILE)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention, experts, linear, backend):
        monkeypatch.setattr(module, "tuning", lambda arch: FAT)
    monkeypatch.setattr(router, "MAX_PART", 16)
    known: dict[int, tuple[PackedWeight, torch.Tensor]] = {}
    decode = PackedWeight.dense

    def dense(weight: PackedWeight, *arguments: Any) -> torch.Tensor:
        # Twins decode a matrix every time that they use it.
        if id(weight) not in known:
            known[id(weight)] = weight, decode(weight, *arguments)
        return known[id(weight)][1]

    monkeypatch.setattr(PackedWeight, "dense", dense)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates run once and take a microsecond."""

    def measure(
        candidates: Mapping[str, Sequence[timing.Call]], device: torch.device
    ) -> tuple[dict[str, timing.Times], dict[str, str]]:
        for key, calls in candidates.items():
            if key not in ("naiad", "exact") or len(candidates) > 1:
                calls[0]()
        return {key: timing.Times(1.0, 0.5, 2.0, True) for key in candidates}, {}

    monkeypatch.setattr(bench, "measure", measure)


# ---- what the parts share -------------------------------------------------------------------------------------------


def test_rates() -> None:
    us = {"int8": 10.0, "exact": 20.0, "torch bf16": 40.0}
    times = {key: timing.Times(value, value - 1, value + 1, key != "exact") for key, value in us.items()}
    few = bench.rates(times, ("int8", "exact"), {"int8": 500_000, "exact": 500_000, "absent": 1}, 0.0, 100.0)
    assert few["us"]["int8"] == [10.0, 9.0, 11.0]
    assert few["launches_included"] == ["exact"]
    assert few["gb_s"] == {"int8": 50.0, "exact": 25.0}
    assert few["share_of_read"] == {"int8": 0.5, "exact": 0.25}
    assert few["speed / torch bf16"] == {"int8": 4.0, "exact": 2.0}
    assert "share_of_read" not in bench.rates(times, ("int8",), {"int8": 500_000}, 0.0, None)
    many = bench.rates(times, ("int8", "exact"), {}, 2e9, 100.0)
    assert many["tflops"] == {"int8": 200.0, "exact": 100.0, "torch bf16": 50.0} and "gb_s" not in many
    text = bench.line("here", few, times, {"exact": "gone", "gemlite": "not installed"}, ("int8", "exact"), "60 GB/s")
    assert "int8 10.0 [9.0 … 11.0] µs 50 GB/s 50% (4.00 x torch bf16)" in text
    assert "exact 20.0* " in text and "exact: gone | without gemlite  aim: 60 GB/s" in text


def test_of_torchs_backends_the_fastest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    us = {"naiad": 4.0, "sdpa flash": 3.0, "sdpa cudnn": 2.0}
    times = {key: timing.Times(value, value, value, True) for key, value in us.items()}
    monkeypatch.setattr(bench, "measure", lambda *_: (times, {"sdpa efficient": "no kernel"}))
    record = bench.timed("x", {}, CPU, LIMITS, mine=("naiad",), flops=4e6)
    assert record["us"].keys() == us.keys()
    assert record["tflops"] == {"naiad": 1.0, "sdpa cudnn": 2.0}
    assert record["speed / sdpa cudnn"] == {"naiad": 0.5} and "speed / sdpa flash" not in record
    assert record["failed"] == {"sdpa efficient": "no kernel"}


@interpreted
def test_comparison() -> None:
    x = torch.randn(3, 300)
    for form in ("plain", "int8", "spread"):
        assert list(bench.compare("x", converted(x, form), x, 1e-2)) == []
        assert len(list(bench.compare("x", converted(x, form), 1.05 * x, 1e-2))) == 1
    assert list(bench.compare("x", x[:2], x, 1e-2)) == ["x: shape [2, 300], expected [3, 300]"]
    assert list(bench.compare("x", torch.tensor([float("nan")]), torch.ones(1), 1.0))


def test_what_fails_is_a_line() -> None:
    def lines() -> Iterator[str]:
        yield "wrong"
        raise RuntimeError("out of resources\nand more")

    assert list(bench.guarded("x", lines())) == ["wrong", "x: RuntimeError: out of resources"]


# ---- every part -----------------------------------------------------------------------------------------------------

ON_CPU = Namespace(device="cpu", quick=False)


def tiny_experts(*tokens: int) -> bench_experts.Case:
    return replace(bench_experts.TINY, tokens=tokens)


TINY: dict[str, Any] = {
    "attention": bench_attention.Case(HEADS, bench_attention.TINY),
    "experts": tiny_experts(1),
}


@pytest.mark.parametrize("name", kernels.PARTS)
def test_items_go_to_other_processes(name: str) -> None:
    part = kernels.PARTS[name]
    for options in (ALL, QUICK):
        for items in (part.checks(options), part.programs(options), part.cases(options)):
            assert items and pickle.loads(pickle.dumps(items)) == items
    assert len(part.cases(QUICK)) < len(part.cases(ALL))
    assert len(part.checks(kernels.parse(["--device", "cpu"]))) > 0


@interpreted
@pytest.mark.parametrize("name", TINY)
def test_correct_results_pass(name: str, few_programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_experts, "WAYS", {"int8": bench_experts.WAYS["int8"]})
    assert list(kernels.PARTS[name].check(TINY[name], CPU)) == []


@interpreted
def test_correct_small_kernels_pass() -> None:
    for case in bench_small.checks(ON_CPU):
        assert list(bench_small.check(case, CPU)) == []


@interpreted
def test_wrong_results_are_found(few_programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_attention, bench_experts):
        right = module.reference
        monkeypatch.setattr(module, "reference", lambda *given, right=right: 1.1 * right(*given))
    lines = list(bench_attention.check(bench_attention.Case(HEADS, ((3, 3),)), CPU))
    assert lines[0].startswith("4/2 x 64, plain: relative RMS difference 0.09")
    monkeypatch.setattr(bench_experts, "WAYS", {"exact": bench_experts.WAYS["exact"]})
    lines = list(bench_experts.check(tiny_experts(1), CPU))
    assert {line.split(":")[0] for line in lines} == {"1 tokens, exact"}
    pair = bench_small.make(bench_small.Case("glu", 2, 64), CPU)
    wrong = replace(pair, torch=lambda: pair.torch() * 1.1)  # type: ignore[operator]
    assert len(list(bench_small.check_pair(wrong))) == 1


@interpreted
def test_of_two_halves_of_a_layer_the_wrong_one_is_found(few_programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = TorchOps.glu
    monkeypatch.setattr(TorchOps, "glu", lambda *arguments: 1.1 * right(*arguments))
    (line,) = bench_layer.check(bench_layer.Case(bench_layer.TINY, 40), CPU)
    assert line.startswith("MLP half: relative RMS difference 0.0")


TIMED: dict[str, tuple[Any, set[str]]] = {
    "attention": (bench_attention.Case(HEADS, ((1, 40),) * 2), {"naiad", "sdpa flash", "sdpa cudnn", "sdpa efficient"}),
    "experts": (tiny_experts(1), {"int8", "exact", "torch bf16"}),
    "small": (bench_small.Case("norm", 2, 288, "int8", residual=True), {"naiad", "torch"}),
    "layer": (bench_layer.Case(bench_layer.TINY, 40), {"naiad"}),
}


@interpreted
@pytest.mark.parametrize("name", TIMED)
def test_a_case_is_timed(
    name: str, few_programs: None, once: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case, candidates = TIMED[name]
    # Not all of torch's backends run on a CPU.
    monkeypatch.setattr(bench_attention, "sdpa_kernel", lambda backend: torch.enable_grad())
    records = list(kernels.PARTS[name].time(case, CPU, LIMITS))
    assert records[0]["us"].keys() == candidates
    assert all(row["gb_s"].keys() == row["share_of_read"].keys() for row in records if "gb_s" in row)
    assert any("gb_s" in row for row in records)
    text = capsys.readouterr().out
    assert all(row["case"].strip() in text for row in records)
    json.dumps(records)


# ---- attention ------------------------------------------------------------------------------------------------------


def test_every_case_of_attention_is_compiled() -> None:
    def kind(case: bench_attention.Case) -> tuple[Any, ...]:
        return case.heads, len(case.sequences), case.is_decode, case.k_type, case.v_type

    for options in (ALL, QUICK):
        compiled = bench_attention.programs(options)
        assert {kind(case) for case in bench_attention.cases(options)} == {kind(case) for case in compiled}
        assert len(compiled) == len({*compiled})


def test_what_is_counted() -> None:
    llama = bench_attention.LLAMA
    prefill = bench_attention.Case(llama, ((1024, 1024),))
    assert prefill.flops == 4 * 1024**2 / 2 * 32 * 128
    continued = bench_attention.Case(llama, ((2048, 32768),))
    assert continued.flops == 4 * (2048 * 30720 + 2048**2 / 2) * 32 * 128
    assert str(prefill) == "prefill 1024" and str(continued) == "2048 new on 30720"
    mixed = bench_attention.Case(llama, bench_attention.MIXED, "q8_0", "q4_0")
    assert str(mixed) == "decode 32 x 1024 … 32768  q8_0/q4_0"
    assert mixed.n_cached == 32768 + 31 * 1024
    assert bench_attention.token_bytes(mixed, torch.bfloat16) == 8 * (128 + 4 * 2 + 64 + 4 * 2)
    assert bench_attention.token_bytes(prefill, torch.bfloat16) == 8 * 128 * 2 * 2
    aims = [case.aim for case in bench_attention.cases(ALL) if case.aim and case.is_decode]
    assert len(aims) == 2


def test_copies_of_a_batch_have_pages_of_their_own() -> None:
    case = bench_attention.Case(HEADS, ((1, 40), (1, 5)))
    tables, pages, n_pages = bench_attention.page_tables(case, 3, CPU, spare=2)
    taken = [page for copy in pages for sequence in copy for page in sequence]
    assert n_pages == 11 and len(taken) == 9 == len({*taken})
    assert [table.lengths.tolist() for table in tables] == [[40, 5]] * 3


def test_long_planes_repeat_what_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_attention, "CHUNK", 2 * bench_attention.PAGE_SIZE)
    kind, _ = bench_attention.Case(HEADS, (), "q8_0", "q8_0").types(torch.float32)
    planes = bench_attention.random_planes(kind, 5, HEADS, torch.float32, CPU)
    expected = [(5, bench_attention.PAGE_SIZE, 2, width) for width, _ in kind.planes(64)]
    assert [tuple(plane.shape) for plane in planes] == expected
    assert torch.equal(planes[0][2:4], planes[0][:2]) and torch.equal(planes[0][4], planes[0][0])


def test_a_cache_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**6, 10**6))
    (record,) = bench_attention.time(bench_attention._decode(HEADS, 4, 8), torch.device("cuda"), LIMITS)
    assert record["skipped"] == "does not fit the card's memory" and record["case"] == "decode 4 x 8192"


# ---- experts, layers ------------------------------------------------------------------------------------------------


def test_the_mixture_in_grouped_products_is_right() -> None:
    mixture = bench_experts.Mixture("tiny", 4, 2, 64, 32, ("F16",) * 3)
    stacks = bench_experts.grouped_stacks(mixture, CPU)
    if not stacks:
        pytest.skip("this torch has no grouped product on a CPU")
    sent = bench_experts.random_routes(mixture, 9, CPU, torch.bfloat16)
    expected = bench_experts.reference(*sent, [stack.float() for stack in stacks[0]])
    assert list(bench.compare("", bench_experts.grouped_mixture(*sent, stacks[0]), expected, 2e-2)) == []


def test_layers_have_the_models_sizes() -> None:
    layers = bench_linear.MODELS["llama-3-8b"]
    n_weights = sum(layer.n_out * layer.n_in for layer in layers)
    assert n_weights == 4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336 + 128256)
    tiny = bench_layer.weights(bench_layer.make_layer(bench_layer.TINY, CPU, 0))
    assert [weight.shape for weight in tiny] == [
        *((256, 64), (128, 64), (128, 64), (64, 256)),
        *((64, 64), (64, 64), (64, 64)),
    ]
    assert [weight.format.name for weight in tiny] == ["Q8_0", "Q8_0", "Q4_0", "Q8_0", "Q8_0", "Q8_0", "Q4_0"]
