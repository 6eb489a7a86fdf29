"""perf/models.py: tiny models on the CPU, where times mean nothing; the sizes of the real ones, by arithmetic."""

from __future__ import annotations

import json
import os
import pickle
import time
from argparse import Namespace
from ast import literal_eval
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import model_cases
import models
import pytest
import random_model
import random_weights
import torch

from naiad.runtime import model as loading
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.engine.runner import Results, Runner
from naiad.runtime.engine.scheduler import Step
from naiad.runtime.model import read_model_config
from naiad.runtime.ops import Dispatch

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs kernels on CPU tensors")
CPU = torch.device("cpu")
LIMITS = {"read_gb_s": 10.0, "spec_gb_s": 20.0, "mm_8192_tflops": 1.0}

# ---- the models -----------------------------------------------------------------------------------------------------

# GB of llama.cpp's files in Q4_K_M, of their embedding, of what a token reads; its share in Q6_K; KiB per cached token.
SIZES = {
    "llama-3-8b": (4.913, 0.296, 4.617, 0.272, 128),
    "qwen2.5-7b": (4.677, 0.307, 4.371, 0.286, 56),
    "qwen2.5-32b": (19.845, 0.438, 19.407, 0.231, 256),
    "llama-3-70b": (42.513, 0.591, 41.922, 0.211, 320),
    "qwen3-30b-a3b": (18.551, 0.175, 1.920, 0.273, 96),
    # The embedding is the output, too.
    "llama-3.2-1b": (0.800, 0.215, 0.800, 0.416, 32),
}


@pytest.mark.parametrize("name", random_model.MODELS)
def test_models_have_the_sizes_of_llama_cpps_files(name: str) -> None:
    shape = random_model.SHAPES[name]
    source = random_model.RandomSource(name, shape, CPU)
    file, embedding, read, q6_k, kv = SIZES[name]
    tensors = source.tensors
    # Files have a header beside their tensors: the vocabulary.
    assert sum(t.n_bytes for t in tensors.values()) / 1e9 == pytest.approx(file, rel=2e-3)
    assert tensors["token_embd.weight"].n_bytes / 1e9 == pytest.approx(embedding, abs=1e-3)
    w = random_model.read_bytes(source, shape)
    assert w / 1e9 == pytest.approx(read, abs=1e-3)
    more = {n: t for n, t in tensors.items() if t.format.name == "Q6_K"}
    used = sum(t.n_bytes * (shape.n_used / shape.n_experts if "_exps" in n else 1) for n, t in more.items())
    assert used / w == pytest.approx(q6_k, abs=1e-3)
    config = read_model_config(source)
    assert model_cases.token_bytes(config, "f16", "f16") == kv * 1024
    assert (config.n_layers, config.qk_norm, config.moe is not None) == (
        shape.n_layers,
        *(("a3b" in name,) * 2),
    )


def test_which_tensors_get_more_bits(shared_data: Path) -> None:
    """As llama.cpp itself decided for a model of 16 layers."""
    text = (shared_data / "quant_mix_llama1b.txt").read_text().partition("\nQ4_K_M 0\n")[2].partition("\nQ5_K_S")[0]
    shape = random_model.SHAPES["llama-3.2-1b"]
    lines = [line.split(" ", 1) for line in map(str.strip, text.splitlines())]
    assert len(lines) == 8
    for name, found in lines:
        for kind, layers in literal_eval(found).items():
            for i in range(16) if layers == "all" else layers:
                fmt = random_model.mix_format("q4_k_m", shape, name, i)
                assert fmt.name.lower() == kind.strip("()").lower(), (name, i)


def test_formats_of_a_70b() -> None:
    formats = partial(random_model.mix_format, "q4_k_m", random_model.SHAPES["llama-3-70b"])
    assert Counter(formats("attn_v", i).name for i in range(80)) == {"Q6_K": 40, "Q5_K": 40}
    assert formats("token_embd").name == "Q4_K"


def test_bytes_of_a_batch() -> None:
    shape = random_model.SHAPES["qwen3-30b-a3b"]
    source = random_model.RandomSource("x", shape, CPU)
    dense = sum(t.n_bytes for n, t in source.tensors.items() if "_exps" not in n and n != "token_embd.weight")
    stacks = sum(t.n_bytes for n, t in source.tensors.items() if "_exps" in n)
    row = 2048 // 256 * 144
    for batch, used in ((1, 1 / 16), (2, 31 / 256), (10**6, 1.0)):
        assert random_model.read_bytes(source, shape, batch) == pytest.approx(dense + stacks * used + batch * row)
    body = 48 * (2048 * (4096 + 2 * 512) + 4096 * 2048 + 2048 * 128 + 8 * 3 * 768 * 2048)
    assert random_model.prompt_flops(source, shape) == 2 * body


# ---- all of it ------------------------------------------------------------------------------------------------------


def run(tmp_path: Path, *words: str, name: str = "tiny") -> tuple[int, dict[str, Any]]:
    """Exit code and results of a short run."""
    out = tmp_path / "models.json"
    usual = ["--device", "cpu", "--models", name, "--batches", "1,2", "--depths", "0,64", "--prompts", "40"]
    code = models.main([*usual, "--steps", "2", "--repeats", "3", "--served", "0", "--out", str(out), *words])
    return code, json.loads(out.read_text())


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.Run, "measure_limits", lambda self: self.result["limits"].update(LIMITS))
    monkeypatch.setitem(model_cases.GATES, "tiny", (1e-9, 1e9))


def test_a_model_is_timed(tmp_path: Path, limits: None, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(tmp_path)
    assert code == 0
    assert result["device"]["card"] == "cpu" and result["limits"] == LIMITS
    tiny = result["models"]["tiny"]
    source = random_model.RandomSource("tiny", random_model.SHAPES["tiny"], CPU)
    row = 210
    w = sum(t.n_bytes for t in source.tensors.values()) + row
    kv = 2 * 2 * 2 * 64 * 2
    assert (tiny["weight_bytes"], tiny["kv_bytes"], tiny["cache_types"]) == (w, kv, ["f16", "f16"])
    assert 0.5 < tiny["logits_rms"] < 2
    records = {(r["kind"], r["batch"], r["depth"], r["sampling"]): r for r in tiny["records"]}
    every = [("tg", 1, 0), ("tg", 1, 64), ("pp", 1, 0), ("pp", 1, 64), ("tg", 2, 0), ("tg", 2, 64)]
    assert [*records] == [(*case, "greedy") for case in every] + [("tg", 1, 0, "default"), ("kernels", 1, 0, "greedy")]
    for key, record in records.items():
        if key[0] == "kernels":
            assert "GPU" in record["skipped"]
            continue
        median, low, high = record["ms"]
        assert 0 < low <= median <= high
        rate, slowest, fastest = record["tokens_per_s"]
        assert slowest <= rate <= fastest
        assert rate == pytest.approx((40 if key[0] == "pp" else key[1]) * 1e3 / median, rel=1e-2)
    two = records["tg", 2, 64, "greedy"]
    assert two["bytes"] == w + row + 2 * (64 + 1 + model_cases.WARM_STEPS + 3) * kv
    assert two["gb_s"] == pytest.approx(two["bytes"] / two["ms"][0] / 1e6, abs=0.06)
    assert two["share_of_read"] == pytest.approx(2 * two["share_of_spec"], abs=2e-4)
    assert 1 <= two["distinct"] <= 2 and "gate" not in two
    text = capsys.readouterr().out
    assert "tiny: tg x 2 on 64, greedy: " in text and "gate 0.00, aim 1000000000.00: gate reached" in text
    assert records["tg", 1, 64, "greedy"]["reached"] == "gate" and "gate" not in records["tg", 1, 0, "default"]


def test_experts_run_too(tmp_path: Path) -> None:
    code, result = run(tmp_path, "--batches", "1,8", "--depths", "0", name="tiny-experts")
    records = result["models"]["tiny-experts"]["records"]
    assert code == 0 and not any("problem" in record for record in records)
    eight = next(record for record in records if record["batch"] == 8)
    assert eight["distinct"] > 1 and eight["share_of_read"] is None
    assert eight["bytes"] > records[0]["bytes"]


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Runner.launch

    def out_of_memory(runner: Runner, step: Step) -> Results:
        if len(step.rows) == 2:
            raise torch.OutOfMemoryError("tried to allocate 9 GiB")
        return launch(runner, step)

    monkeypatch.setattr(Runner, "launch", out_of_memory)
    code, result = run(tmp_path, "--batches", "1,2,4", "--depths", "0", "--models", "tiny,tiny-experts")
    assert code == 1
    for model in result["models"].values():
        problems = {record["batch"]: record.get("problem") for record in model["records"] if record["kind"] == "tg"}
        assert problems.keys() == {1, 2, 4}
        assert "OutOfMemoryError: tried to allocate 9 GiB" in str(problems[2])
        assert problems[1] is None and problems[4] is None


def test_a_model_that_does_not_load_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: Any, **options: Any) -> Any:
        raise ValueError("a context of 8192 tokens does not fit")

    monkeypatch.setattr(model_cases, "engine_memory", no_memory)
    code, result = run(tmp_path)
    assert code == 1
    assert result["models"]["tiny"]["problem"] == "ValueError: a context of 8192 tokens does not fit"


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fmt: Any, sizes: tuple[int, ...], std: float, *rest: Any) -> torch.Tensor:
        return right(fmt, sizes, std * 1e6 if fmt.name == "Q6_K" else std, *rest)

    right = random_weights.random_bytes
    monkeypatch.setattr(random_model, "random_bytes", broken)
    code, result = run(tmp_path)
    assert code == 1 and "expected logits of ordinary size" in result["models"]["tiny"]["problem"]


def test_a_batch_that_does_not_fit_is_left_out() -> None:
    options = models.parse(
        ["--device", "cpu", "--models", "tiny", "--batches", "1,2", "--depths", "64", "--served", "0"]
    )
    model = model_cases.Model("tiny", options, {})
    case = model_cases.Case("tg", 1000, 64)
    assert model.run(case)["skipped"].startswith("it needs 256000 tokens of cache, ")


def test_depth_that_is_not_in_the_cache_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cases, "fill", lambda engine, prefixes: None)
    code, result = run(tmp_path)
    found = [(record["kind"], record["depth"]) for record in result["models"]["tiny"]["records"] if "problem" in record]
    assert code == 1 and found == [("tg", 64), ("pp", 64), ("tg", 64)]


# ---- kernels --------------------------------------------------------------------------------------------------------


def test_kernels_are_counted_per_step_and_layer() -> None:
    # Three launches in each of 30 layers, but for one; and a norm before them, another kernel behind.
    step = [("matvec", 5.0)] * 61 + [("rope", 1.0)] * 30 + [("norm", 1.0), ("last", 9.0), ("Memcpy HtoD", 1.0)]
    record = model_cases.by_kernel(step * 4, 4, 30)
    assert (record["per_step"], record["per_layer"], record["copies"]) == (93, 3, 1)
    assert model_cases.by_kernel(step[2:] * 4, 4, 30)["per_layer"] == 3
    assert record["device_us"] == 61 * 5 + 30 + 1 + 9
    assert list(record["kernels"].items())[:2] == [("matvec", [61.0, 305.0]), ("rope", [30.0, 30.0])]
    case = model_cases.Case("kernels", 64)
    assert models.line(case, record).endswith("93 kernels per step, 3 per layer, 1 copies, 345 µs")


def test_waiting_is_not_the_hosts_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5])
    monkeypatch.setattr("model_cases.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    arrived = SimpleNamespace(synchronize=lambda: None)
    engine: Any = SimpleNamespace(runner=SimpleNamespace(launch=lambda step: SimpleNamespace(arrived=arrived)))
    host = model_cases.HostClock(engine)
    engine.runner.launch(None).arrived.synchronize()
    assert host.waited == 2.5


@interpreted
def test_layers_on_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model on the Triton backend, in Triton's interpreter: six launches in a layer and four around them."""
    from test_backend_triton import Launches
    from test_perf_parts import FAT

    from naiad.runtime.backends.triton import TritonOps

    def make_ops(*arguments: Any) -> Dispatch:
        return Dispatch([TritonOps(CPU, torch.float32, table=FAT), TorchOps(CPU, torch.float32, None)])

    small = replace(random_model.SHAPES["tiny"], n_layers=1, n_ff=256, n_vocab=256)
    monkeypatch.setattr(loading, "make_ops", make_ops)
    monkeypatch.setitem(random_model.SHAPES, "tiny", small)
    monkeypatch.setattr(model_cases, "CHECKED_TOKENS", 1)
    monkeypatch.setattr(model_cases, "WARM_STEPS", 0)
    model = model_cases.Model("tiny", models.parse(["--device", "cpu", "--batches", "1", "--depths", "0"]), {})
    assert 0.5 < model.facts["logits_rms"] < 2
    with model._running(model_cases.Case("tg")) as (handles, _), Launches() as launches:
        model.engine.step()
    assert len(handles[0].tokens) == 2
    assert sum(n for name, n in launches.counts.items() if name.endswith("_kernel")) == 6 + 4


# ---- processes ------------------------------------------------------------------------------------------------------

CASES = [model_cases.Case("tg", batch) for batch in (1, 2, 4, 8)]


def dying(
    name: str, left: Sequence[model_cases.Case], options: Any, limits: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Ends its process at batch 2, gives up after batch 4, hangs at batch 16."""
    if name == "never loads":
        yield {"problem": "too large"}
        return
    yield {"weight_bytes": 7}
    for case in left:
        if case.batch == 2:
            os._exit(3)
        if case.batch == 16:
            time.sleep(60)
        yield asdict(case) | ({"problem": "illegal access"} if case.batch == 4 else {"ms": 1})
        if case.batch == 4:
            return


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is forked need not import torch."""
    monkeypatch.setattr(models, "get_context", lambda method: get_context("fork"))


def test_a_process_that_ends_is_replaced(forked: None) -> None:
    records = [r for r in models.isolated(dying, "tiny", CASES, Namespace(), {}) if "kind" in r]
    assert [(r["batch"], r.get("problem")) for r in records] == [
        (1, None),
        (2, "the process ended with exit code 3"),
        (4, "illegal access"),
        (8, None),
    ]


def test_a_model_that_does_not_load_is_tried_once(forked: None) -> None:
    assert list(models.isolated(dying, "never loads", CASES, Namespace(), {})) == [{"problem": "too large"}]


def test_a_case_that_takes_too_long_is_ended(forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "CASE_SECONDS", 0.2)
    *_, last = models.isolated(dying, "tiny", [model_cases.Case("tg", 16)], Namespace(), {})
    assert last["batch"] == 16 and last["problem"] == "no result within 0.2 s"


def test_what_goes_to_other_processes() -> None:
    options = models.parse([])
    assert pickle.loads(pickle.dumps((models.run_model, options))) == (models.run_model, options)


# ---- the command line -----------------------------------------------------------------------------------------------


def test_requests_are_served(
    tmp_path: Path, limits: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More of them than sequences that run at a time, and than the cache holds."""
    monkeypatch.setattr(model_cases, "SERVED_TOKENS", 20)
    monkeypatch.setattr(model_cases, "SERVED_WARM", (5, 2))
    code, result = run(tmp_path, "--depths", "0", "--served", "6")
    assert code == 0
    (record,) = (r for r in result["models"]["tiny"]["records"] if r["kind"] == "served")
    assert record["tokens_per_s"][0] == pytest.approx(6 * 20 * 1e3 / record["ms"][0], rel=1e-2)
    assert "served 6 x (20 + 20): " in capsys.readouterr().out


def test_the_usual_cases() -> None:
    usual, quick = models.parse([]), models.parse(["--quick"])
    assert usual.models == random_model.MODELS and len(random_model.MODELS) == 6
    assert len({*usual.cases}) == len(usual.cases) > len(quick.cases)
    assert usual.cases[:2] == [model_cases.Case("tg"), model_cases.Case("tg", 1, 8192)]
    assert {c.batch for c in usual.cases if c.kind == "tg"} == {1, 2, 4, 8, 16, 32, 64, 128, 256}
    prompts = {(c.n_prompt, c.depth) for c in usual.cases if c.kind == "pp"}
    assert prompts == {(512, 0), (512, 8192), (2048, 0), (2048, 8192)}
    assert {c.batch for c in usual.cases if c.sampling == "default"} == {1, 64}
    assert [c.batch for c in usual.cases if c.kind == "served"] == [256] and "served" not in {
        c.kind for c in quick.cases
    }
    assert {c.kind for c in usual.cases[-2:]} == {"kernels"}
    assert max(c.n_tokens(usual) for c in usual.cases) == 8192 + 2048 + 1


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["--models", "gpt-9"], "unknown: gpt-9; models: "), (["--batches", "0,1"], "at least 1")):
        with pytest.raises(SystemExit):
            models.main(words)
        assert message in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.main([]) == 2
    assert "needs a GPU" in capsys.readouterr().err
