"""perf/kernels.py and perf/tune.py with tiny matrices under Triton's interpreter, where times mean nothing."""

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import kernels
import pytest
import timing
import torch
import tune

from naiad.quant.dequantize import dequantize
from naiad.quant.formats import format_by_name
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.tuning import TABLE, Tile, Tuning, Vector, from_json, tuning
from naiad.triton_kernels.weights import PackedWeight

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs kernels on CPU tensors")
CPU = torch.device("cpu")
Q8_0 = format_by_name("Q8_0")
# The fastest way under the interpreter.
TABLE_OF_CHECK = replace(tuning("portable"), matvec_rows=0, workspace_rows=0)
CHECK = kernels.Check("workspace", "exact", torch.float32, 1e-5, TABLE_OF_CHECK, (3,))


@pytest.mark.parametrize("name", kernels.ALL_FORMATS)
def test_random_weights_are_ordinary_numbers(name: str) -> None:
    fmt = format_by_name(name)
    weights = dequantize(timing.random_rows(fmt, 8, 512, CPU), fmt)
    assert weights.isfinite().all()
    assert 1e-4 < weights.square().mean().sqrt() < 10
    assert fmt.id in DECODERS


@interpreted
def test_correct_kernels_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernels, "CHECK_ROWS", (1,))
    monkeypatch.setattr(kernels, "checks", lambda *arguments: (CHECK,))
    assert kernels.main(["--device", "cpu", "--check", "Q8_0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["checked"] == ["Q8_0"]


@interpreted
def test_wrong_products_are_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stored = [timing.random_rows(Q8_0, 16, 256, CPU, seed) for seed in range(3)]
    packed = [PackedWeight.pack(data, Q8_0, (16, 256)) for data in stored]
    dense = [dequantize(data, Q8_0) for data in stored]
    assert list(kernels.check_products(CHECK, packed, dense)) == []
    found = list(kernels.check_products(CHECK, packed, [dense[0] * 1.001, *dense[1:]]))
    assert [line.split(":")[0] for line in found] == [
        f"workspace, 3 rows{which}" for which in ("", ", three matrices", ", gated")
    ]
    assert list(kernels.compare("x", torch.tensor([float("nan")]), torch.ones(1).double(), 1.0))

    monkeypatch.setattr(kernels, "check_format", partial(lambda lines, name, **_: lines, found))
    assert kernels.main(["--device", "cpu", "--check", "Q8_0"]) == 1
    assert found[0] in capsys.readouterr().out


def test_all_ways_to_multiply_are_checked() -> None:
    table = tuning("portable")
    found = kernels.checks(table, torch.float16, (1, 17))
    assert {check.route for check in found} == {"int8", "exact"}
    assert {check.rows for check in found if "integer tiles" in check.name} == {(17,)}
    assert any(all(tile.int8 for tile in check.table.tiles) for check in found)
    assert any(check.batch_invariant for check in found)


@pytest.mark.parametrize("program", [kernels, tune])
def test_without_a_device(program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main([]) == 2
    assert "this needs a GPU" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert program.main(["--device", "cpu"]) == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kernels.main(["--models", "llama-9"])
    assert "llama-9; models: llama-3-8b" in capsys.readouterr().err


def test_layers_have_the_models_sizes() -> None:
    n_weights = {model: sum(layer.n_out * layer.n_in for layer in layers) for model, layers in kernels.MODELS.items()}
    assert n_weights["llama-3-8b"] == 4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336 + 128256)


@interpreted
def test_a_layer_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    layer = kernels.Layer("tiny", (16,), 256)
    (row,) = kernels.time_layer(layer, ["Q8_0"], [1], CPU, read_gb_s=1.0)
    assert row["us"].keys() >= {"int8", "exact", "invariant", "torch bf16"}
    assert row["weight_bytes"] == 16 * 256 // 32 * 34
    assert row["gb_s"].keys() == row["speed / torch bf16"].keys() == {"int8", "exact", "invariant"}
    assert row["cost_of_invariance"] > 0
    text = capsys.readouterr().out
    assert "without torch int4: " in text
    assert "int8 " in text and " GB/s " in text


def test_rates() -> None:
    layer = kernels.Layer("o", (1000,), 1000)
    us = {"int8": 10.0, "exact": 20.0, "invariant": 15.0, "torch bf16": 40.0}
    times = {key: timing.Times(value, value, value, True) for key, value in us.items()}
    few = kernels.rates(layer, 8, 500_000, times, 100.0)
    assert few["gb_s"] == {"int8": 50.0, "exact": 25.0, "invariant": 33.3}
    assert few["share_of_read"] == {"int8": 0.5, "exact": 0.25, "invariant": 0.333}
    many = kernels.rates(layer, 500, 500_000, times, 100.0)
    assert many["tflops"]["int8"] == 100.0
    assert many["speed / torch bf16"] == {"int8": 4.0, "exact": 2.0, "invariant": 2.667}
    assert many["cost_of_invariance"] == 1.5


def test_failing_candidates_are_named() -> None:
    def fails() -> None:
        raise RuntimeError("out of resources\nand more")

    times, failed = timing.measure({"works": [lambda: None, lambda: None], "fails": [fails]}, CPU, repeats=3)
    assert times.keys() == {"works"}
    assert times["works"].low <= times["works"].median <= times["works"].high
    assert failed == {"fails": "RuntimeError: out of resources"}


# ---- tune.py --------------------------------------------------------------------------------------------------------

FASTEST_TILE = {16: (64, 16), 32: (128, 32), 64: (64, 64), 0: (128, 128)}


def model_time(candidate: tune.Candidate, rows: int) -> float:
    """Times in which certain vectors and tiles are the best, and kernels cross at 11 and 237 rows."""
    table = candidate.table
    if candidate.invariant:
        return 10.0 + (table.invariant.bm != 32) + (table.invariant.bn != 64) + 0.1 * table.invariant.stages
    if candidate.route == "exact" and rows <= table.exact_rows:
        return 2.5 * rows
    if candidate.route == "int8" and rows <= table.matvec_rows:
        vector = table.vector
        return rows + 0.1 * (vector.rows != 64) + 0.1 * (vector.warps != 2) + (0.01 * (vector.batch != 2) * rows)
    if rows >= table.workspace_rows:
        return 100 + 0.1 * rows
    tile = table.tile(rows)
    bucket = next(most for most in FASTEST_TILE if not most or rows <= most)
    penalty = ((tile.bn, tile.bm) != FASTEST_TILE[bucket]) + tile.int8 + 0.1 * (tile.warps + tile.stages)
    return 4.5 + 0.5 * rows + penalty + 0.1 * (tile.split != (bucket in (16, 32)))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> tune.Bench:
    def measure(
        candidates: Mapping[tune.Candidate, Sequence[Any]], device: torch.device, repeats: int
    ) -> tuple[dict[tune.Candidate, timing.Times], dict[tune.Candidate, str]]:
        times = {}
        for candidate, calls in candidates.items():
            value = model_time(candidate, len(calls[0].args[0]))
            # The fastest of all, if it ran.
            if "bn 128 bm 16" not in candidate.label or candidate.invariant:
                times[candidate] = timing.Times(value, value, value, True)
        return times, {}

    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune, "SHAPES", ((16, 256), (32, 256)))
    return tune.Bench(CPU, lambda function, items: [])


def test_the_fastest_is_chosen(bench: tune.Bench, tmp_path: Path) -> None:
    entry = tune.tune(bench, replace(tuning("portable"), arch="sm_90"))
    assert entry.vector == Vector(64, 2, 2)
    assert [(tile.max_rows, tile.bn, tile.bm) for tile in entry.tiles] == [(m, *t) for m, t in FASTEST_TILE.items()]
    assert all((tile.warps, tile.stages, tile.int8) == (4, 1, False) for tile in entry.tiles[:3])
    assert [tile.split for tile in entry.tiles] == [True, True, False, False]
    assert entry.invariant == Tile(0, 64, 32, 4, 1, False, False)
    assert (entry.matvec_rows, entry.exact_rows, entry.workspace_rows) == (10, 2, 256)

    before = json.loads(TABLE.read_text())
    tune.write(tmp_path / "tuning.json", replace(entry, measured="a card"))
    tune.write(tmp_path / "tuning.json", replace(entry, arch="sm_99"))
    after = json.loads((tmp_path / "tuning.json").read_text())
    assert from_json("sm_90", after["sm_90"]) == replace(entry, measured="a card")
    assert after.keys() == before.keys() | {"sm_99"}
    assert all(after[arch] == before[arch] for arch in before if arch != "sm_90")


def test_ends_of_a_crossover(bench: tune.Bench) -> None:
    matvec = replace(tuning("portable"), matvec_rows=tune.NEVER)
    matmul = tune.only_matmul(matvec, matvec.tiles)
    assert tune.crossover(bench, matvec, matmul, (1, 2)) == 2
    assert tune.crossover(bench, matmul, matvec, (1, 2)) == 0


def test_slow_candidates_are_out_after_the_first_case() -> None:
    table = tuning("portable")
    found = {tune.Candidate(str(i), table): [1.0 + i / 100] for i in range(30)}
    assert [int(candidate.label) for candidate in tune.survivors(found)] == list(range(8))
    found = {tune.Candidate(str(i), table): [1.0 + i] for i in range(3)}
    assert [int(candidate.label) for candidate in tune.survivors(found)] == [0]


def test_no_candidate_runs(bench: tune.Bench) -> None:
    with pytest.raises(RuntimeError, match="tiles: none of 1 candidates runs"):
        tune.choose(bench, "tiles", [tune.Candidate("bn 128 bm 16", tuning("portable"))], (16,))


@interpreted
def test_candidates_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "FORMATS", ("Q8_0",))
    monkeypatch.setattr(tune, "SHAPES", ((16, 256),))
    run: Any = lambda function, items: [function(item) for item in items]  # noqa: E731
    bench = tune.Bench(CPU, run)
    table: Tuning = replace(tuning("portable"), workspace_rows=0, matvec_rows=0)
    good = tune.Candidate("decodes", table)
    bad = tune.Candidate("no power of two", replace(table, matvec_rows=9, vector=Vector(3, 1, 1)))
    assert pickle.loads(pickle.dumps([good, bad])) == [good, bad]
    assert [tune.compiles(candidate, bench.cases[0], 1, "cpu") for candidate in (good, bad)] == [True, False]
    assert bench.times([good, bad], bench.cases[0], 1).keys() == {good}
