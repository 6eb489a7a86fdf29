"""perf/kernels.py and perf/tune.py with tiny matrices under Triton's interpreter, where times mean nothing."""

import json
import math
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import bench_linear
import candidates
import kernels
import pytest
import stand_in
import timing
import torch
import tune
from candidates import Candidate
from random_weights import random_rows

from naiad.quant import codebooks
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import format_by_name
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.tuning import TABLE, SharedTile, Tile, Tuning, Vector, from_json, tuning
from naiad.triton_kernels.weights import PackedWeight

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs kernels on CPU tensors")
CPU = torch.device("cpu")
Q8_0 = format_by_name("Q8_0")
# The fastest way under the interpreter.
TABLE_OF_CHECK = replace(tuning("portable"), matvec_rows=0, workspace_rows=0)
WAY = bench_linear.Way("workspace", "exact", torch.float32, 1e-5, TABLE_OF_CHECK, (3,))


# ---- the linear part ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bench_linear.ALL_FORMATS)
def test_random_weights_are_ordinary_numbers(name: str) -> None:
    fmt = format_by_name(name)
    weights = dequantize(random_rows(fmt, 8, 512, CPU), fmt)
    assert weights.isfinite().all()
    assert 1e-4 < weights.square().mean().sqrt() < 10
    assert fmt.id in DECODERS


@interpreted
def test_correct_kernels_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_linear, "WAYS", (WAY.name,))
    monkeypatch.setattr(bench_linear, "ways", lambda *arguments: (WAY,))
    assert kernels.main(["--device", "cpu", "--only", "linear", "--check", "Q8_0"]) == 0
    assert "linear: correct results" in capsys.readouterr().out


@interpreted
def test_wrong_products_are_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stored = [random_rows(Q8_0, 16, 256, CPU, seed) for seed in range(3)]
    packed = [PackedWeight.pack(data, Q8_0, (16, 256)) for data in stored]
    dense = [dequantize(data, Q8_0) for data in stored]
    wrong = [dense[0] * 1.001, *dense[1:]]
    found = list(bench_linear.check_products("3 rows", WAY, 3, packed, wrong))
    assert [line.split(":")[0] for line in found] == ["3 rows", "3 rows, three matrices", "3 rows, gated"]

    monkeypatch.setattr(bench_linear, "check", lambda item, device: iter(found))
    assert kernels.main(["--device", "cpu", "--only", "linear", "--check", "Q8_0"]) == 1
    assert f"Q8_0, int8: {found[0]}" in capsys.readouterr().out


def test_all_ways_to_multiply_are_checked() -> None:
    table = tuning("portable")
    found = bench_linear.ways(table, torch.float16, (1, 17))
    assert tuple(way.name for way in found) == bench_linear.WAYS
    assert {way.route for way in found} == {"int8", "exact"}
    assert {way.rows for way in found if "integer tiles" in way.name} == {(17,)}
    assert any(all(tile.int8 for tile in way.table.tiles) for way in found)
    assert any(way.batch_invariant for way in found)


@interpreted
def test_a_layer_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    case = bench_linear.Case("tiny", bench_linear.Layer("o", (16,), 256), ("Q8_0",), (1,))
    (row,) = bench_linear.time(case, CPU, {"read_gb_s": 1.0})
    assert row["us"].keys() >= {"int8", "exact", "invariant", "torch bf16"}
    assert row["weight_bytes"] == 16 * 256 // 32 * 34
    assert row["gb_s"].keys() == row["speed / torch bf16"].keys() == {"int8", "exact", "invariant"}
    assert row["cost_of_invariance"] > 0
    text = capsys.readouterr().out
    assert "without torch int4: " in text
    assert "int8 " in text and " GB/s " in text


# ---- the order of work ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [kernels, tune])
def test_without_a_device(program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert program.main([]) == 2
    assert "this needs a GPU" in capsys.readouterr().err
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert program.main(["--device", "cpu"]) == 2
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option, found, known in (
        ("--models", "llama-9", "models: llama-3-8b"),
        ("--only", "linear,speed", "parts: layer"),
        ("--formats", "Q9", "formats: "),
    ):
        with pytest.raises(SystemExit):
            kernels.main([option, found])
        assert f"{found.split(',')[-1]}; {known}" in capsys.readouterr().err


class StubPart:
    """Items are what happens to them."""

    def __init__(self, *items: str) -> None:
        self.items, self.done = items, []  # type: tuple[str, ...], list[tuple[str, str]]

    def checks(self, options: Any) -> tuple[str, ...]:
        return self.items

    programs = cases = checks

    def check(self, item: str, device: torch.device) -> Iterator[str]:
        self.done.append(("check", item))
        if item == "wrong":
            yield "a difference"
        if item == "raises":
            raise RuntimeError("no such kernel")

    def prepare(self, item: str, device: torch.device) -> None:
        self.done.append(("prepare", item))
        raise RuntimeError("out of resources")

    def time(self, item: str, device: torch.device, limits: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        assert limits == {"read_gb_s": 1.0}
        self.done.append(("time", item))
        yield {"case": item, "us": {}}
        if item == "breaks":
            raise RuntimeError("illegal memory access")


def test_a_wrong_part_does_not_keep_the_others_from_being_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"a": StubPart("right", "wrong", "raises"), "b": StubPart("breaks", "right"), "c": StubPart("unasked")}
    monkeypatch.setattr(kernels, "PARTS", parts)
    monkeypatch.setattr(kernels, "workers", lambda jobs: timing.workers(0))
    monkeypatch.setattr(kernels, "find_device", torch.device)
    monkeypatch.setattr(kernels, "describe", lambda device: {"arch": "sm_90"})
    monkeypatch.setattr(kernels, "use", torch.device)
    monkeypatch.setattr(kernels, "card_limits", lambda device: {"read_gb_s": 1.0})
    monkeypatch.setattr(kernels, "clocks", lambda device: {"clocks.sm": "1980"})
    save, written = kernels.Run.save, []

    def counted(run: kernels.Run) -> None:
        written.append(len(run.result["records"]))
        save(run)

    monkeypatch.setattr(kernels.Run, "save", counted)
    assert kernels.main(["--only", "b,a", "--out", str(tmp_path / "new" / "out.json"), "--jobs", "2"]) == 1
    result = json.loads((tmp_path / "new" / "out.json").read_text())
    assert result["wrong"] == {"a": ["wrong: a difference", "raises: RuntimeError: no such kernel"], "b": []}
    assert result["records"] == {
        "b": [
            {"case": "breaks", "us": {}},
            {"case": "breaks", "problem": "RuntimeError: illegal memory access"},
            {"case": "right", "us": {}},
        ]
    }
    assert result["limits"] == {"read_gb_s": 1.0} and result["clocks_after"] == {"clocks.sm": "1980"}
    assert len(written) == 4  # after the checks, after each case, and at the end
    assert {what for what, _ in parts["a"].done} == {"check"} and parts["c"].done == []
    assert "a: 2 wrong results" in capsys.readouterr().out


def test_where_results_go() -> None:
    def path(*arguments: str) -> str:
        return kernels.Run(kernels.parse([*arguments, "-j", "0"]), CPU, {"arch": "sm_90"}).path().name

    assert path() == "kernels-sm_90.json"
    assert path("--quick", "--only", "small,layer") == "kernels-sm_90-layer-small-quick.json"
    assert path("--out", "here.json") == "here.json"


# ---- timing and other processes -------------------------------------------------------------------------------------


def test_what_ends_a_process_ends_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = timing.Worker()
    assert worker(math.sqrt, 4.0) == 2.0
    assert worker(math.sqrt, -1.0) == timing.Lost("ValueError: math domain error")
    assert worker(os._exit, 3) == timing.Lost("the process ended with exit code 3")
    assert worker(math.sqrt, 9.0) == 3.0
    monkeypatch.setattr(timing, "CALL_SECONDS", 0.1)
    assert worker(sleep, 60.0) == timing.Lost("no result within 0.1 s")
    worker.stop()


def test_a_process_that_lost_its_device_takes_no_more_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        def __init__(self) -> None:
            self.calls, self.results = [(math.sqrt, 4.0), (math.sqrt, 9.0)], []  # type: list[Any], list[Any]

        def recv(self) -> Any:
            return self.calls.pop(0)

        def send(self, result: Any) -> None:
            self.results.append(result)

    def fails() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    pipe = Pipe()
    timing._serve(pipe)
    assert pipe.results == [(2.0, False)] and len(pipe.calls) == 1


def test_a_map_over_no_processes() -> None:
    with timing.workers(0) as run:
        assert run(math.sqrt, [4.0, -1.0]) == [2.0, timing.Lost("ValueError: math domain error")]


def test_failing_candidates_are_named() -> None:
    def fails() -> None:
        raise RuntimeError("out of resources\nand more")

    times, failed = timing.measure({"works": [lambda: None, lambda: None], "fails": [fails]}, CPU, repeats=3)
    assert times.keys() == {"works"}
    assert times["works"].low <= times["works"].median <= times["works"].high
    assert failed == {"fails": "RuntimeError: out of resources"}


def test_codebooks_without_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in stand_in.GRIDS:
        real, other = codebooks._grid_values(name), stand_in.random_grid(name)
        assert (other.shape, other.dtype) == (real.shape, real.dtype)
        assert {*other.unique().tolist()} == {*real.unique().tolist()}
        assert torch.equal(other, stand_in.random_grid(name))
    monkeypatch.setattr(codebooks, "_grid_values", codebooks._grid_values)
    stand_in.install()
    assert codebooks._grid_values is not stand_in.random_grid
    monkeypatch.setattr(stand_in, "find_spec", lambda name: None)
    stand_in.install()
    assert codebooks._grid_values is stand_in.random_grid
    assert "codebooks" in timing.describe(CPU)


# ---- tune.py --------------------------------------------------------------------------------------------------------

FASTEST_TILE = {16: (64, 16), 32: (128, 32), 64: (64, 64), 0: (128, 128)}


def model_time(candidate: Candidate, rows: int) -> float:
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
    if table.shared is not None and table.shared.min_rows <= rows <= table.shared.bm:
        return 10 + 0.2 * rows + abs(table.shared.stages - 2)
    tile = table.tile(rows)
    bucket = next(most for most in FASTEST_TILE if not most or rows <= most)
    penalty = ((tile.bn, tile.bm) != FASTEST_TILE[bucket]) + tile.int8 + 0.1 * (tile.warps + tile.stages)
    return 4.5 + 0.5 * rows + penalty + 0.1 * (tile.split != (bucket in (16, 32)))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> tune.LinearBench:
    def measure(
        given: Mapping[Candidate, Sequence[Any]], device: torch.device, repeats: int
    ) -> tuple[dict[Candidate, timing.Times], dict[Candidate, str]]:
        times = {}
        for candidate, calls in given.items():
            value = model_time(candidate, len(calls[0].args[0]))
            # The fastest of all, if it ran.
            if "bn 128 bm 16" not in candidate.label or candidate.invariant:
                times[candidate] = timing.Times(value, value, value, True)
        return times, {}

    monkeypatch.setattr(tune, "measure", measure)
    monkeypatch.setattr(tune, "SHAPES", ((16, 256), (32, 256)))
    return tune.LinearBench(CPU, lambda function, items: [])


def test_the_fastest_is_chosen(bench: tune.LinearBench, tmp_path: Path) -> None:
    entry = tune.tune_linear(bench, replace(tuning("portable"), arch="sm_90"))
    assert entry.vector == Vector(64, 2, 2)
    assert [(tile.max_rows, tile.bn, tile.bm) for tile in entry.tiles] == [(m, *t) for m, t in FASTEST_TILE.items()]
    assert all((tile.warps, tile.stages, tile.int8) == (4, 1, False) for tile in entry.tiles[:3])
    assert [tile.split for tile in entry.tiles] == [True, True, False, False]
    assert entry.shared == SharedTile(24, 256, 64, 4, 2)
    assert entry.invariant == Tile(0, 64, 32, 4, 1, False, False)
    assert (entry.matvec_rows, entry.exact_rows, entry.workspace_rows) == (10, 2, 256)

    before = json.loads(TABLE.read_text())
    tune.write(tmp_path / "tuning.json", replace(entry, measured="a card"))
    tune.write(tmp_path / "tuning.json", replace(entry, arch="sm_99"))
    after = json.loads((tmp_path / "tuning.json").read_text())
    assert from_json("sm_90", after["sm_90"]) == replace(entry, measured="a card")
    assert after.keys() == before.keys() | {"sm_99"}
    assert all(after[arch] == before[arch] for arch in before if arch != "sm_90")


def test_ends_of_a_crossover(bench: tune.LinearBench) -> None:
    matvec = replace(tuning("portable"), matvec_rows=tune.NEVER)
    matmul = tune.only_matmul(matvec, matvec.tiles)
    assert tune.crossover(bench, matvec, matmul, (1, 2)) == 2
    assert tune.crossover(bench, matmul, matvec, (1, 2)) == 0


def test_slow_candidates_are_out_after_the_first_case() -> None:
    table = tuning("portable")
    found = {Candidate(str(i), table): [1.0 + i / 100] for i in range(30)}
    assert [int(candidate.label) for candidate in candidates.survivors(found)] == list(range(8))
    found = {Candidate(str(i), table): [1.0 + i] for i in range(3)}
    assert [int(candidate.label) for candidate in candidates.survivors(found)] == [0]


def test_no_candidate_runs(bench: tune.LinearBench) -> None:
    with pytest.raises(RuntimeError, match="tiles: none of 1 candidates runs"):
        candidates.choose(bench, "tiles", [Candidate("bn 128 bm 16", tuning("portable"))], (16,))


@interpreted
def test_candidates_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "FORMATS", ("Q8_0",))
    monkeypatch.setattr(tune, "SHAPES", ((16, 256),))
    run: Any = lambda function, items: [function(item) for item in items]  # noqa: E731
    bench = tune.LinearBench(CPU, run)
    table: Tuning = replace(tuning("portable"), workspace_rows=0, matvec_rows=0)
    good = Candidate("decodes", table)
    bad = Candidate("no power of two", replace(table, matvec_rows=9, vector=Vector(3, 1, 1)))
    assert pickle.loads(pickle.dumps([good, bad])) == [good, bad]
    assert [tune.compiles(candidate, bench.cases[0], 1, "cpu") for candidate in (good, bad)] == [True, False]
    assert bench.times([good, bad], bench.cases[0], 1).keys() == {good}
