"""naiad bench and batched-bench: lists and ranges, what is timed, llama.cpp's tables, and all of it for real."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_engine import PROMPT_NS, STEP_NS, FakeModel

from naiad.runtime.cli import batched_bench, bench
from naiad.runtime.cli.lists import layer_list, number_list, pair
from naiad.runtime.cli.timing import Case, RandomTokens, measure
from naiad.runtime.demo import demo_model

LISTS: list[tuple[Callable[[str], list[Any]], str, list[Any]]] = [
    (number_list(0), "512", [512]),
    (number_list(0), "1,2,3", [1, 2, 3]),
    (number_list(0), "1-4", [1, 2, 3, 4]),
    (number_list(0), "16-64+16", [16, 32, 48, 64]),
    (number_list(0), "16-70+16", [16, 32, 48, 64]),
    (number_list(0), "16-128*2", [16, 32, 64, 128]),
    (number_list(0), "0-2,8,3-9*3", [0, 1, 2, 8, 3, 9]),
    (number_list(0), "7-7", [7]),
    (number_list(-1), "-1,0", [-1, 0]),
    (number_list(-1), "-1-1", [-1, 0, 1]),
    (layer_list, "-1,all,auto,10-30+10", [None, None, None, 10, 20, 30]),
    (pair, "512,128", [(512, 128)]),
    (pair, "0,1", [(0, 1)]),
]
BAD_LISTS: list[tuple[Callable[[str], list[Any]], str, str]] = [
    (number_list(0), "", "expected numbers or ranges"),
    (number_list(0), "1,,2", "expected numbers or ranges"),
    (number_list(0), "one", "expected numbers or ranges"),
    (number_list(0), "1-2-3", "expected numbers or ranges"),
    (number_list(0), "1-9/2", "expected numbers or ranges"),
    (number_list(0), "-1", "expected an integer from 0"),
    (number_list(1), "0-3", "expected an integer from 1"),
    (number_list(0), "99999999999", "expected an integer from 0"),
    (number_list(0), "3-1", "a range that goes up"),
    (number_list(0), "1-9+0", "at most 10000 values"),
    (number_list(0), "1-9*1", "at most 10000 values"),
    (number_list(0), "0-9*2", "at most 10000 values"),
    (number_list(0), "0-2000000000", "at most 10000 values"),
    (layer_list, "-2", "expected an integer from -1"),
    (layer_list, "most", "expected numbers or ranges"),
    (pair, "512", "two numbers like 512,128"),
    (pair, "1,2,3", "two numbers like 512,128"),
    (pair, "a,b", "expected an integer"),
]


@pytest.mark.parametrize(("convert", "text", "expected"), LISTS)
def test_lists(convert: Callable[[str], list[Any]], text: str, expected: list[Any]) -> None:
    assert convert(text) == expected


@pytest.mark.parametrize(("convert", "text", "message"), BAD_LISTS)
def test_bad_lists(convert: Callable[[str], list[Any]], text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(text)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """The model that the commands load, whose engine has the clock."""
    made = FakeModel()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: made.engine.now)
    monkeypatch.setattr(bench, "load", lambda setting, n_ctx: made)
    monkeypatch.setattr(batched_bench, "load", lambda values, loads: made)
    return made


Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture(autouse=True)
def same_number_of_threads() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


TIMES = [
    (Case(512, 0, 0), 512 * PROMPT_NS),
    (Case(2, 0, 0), 2 * PROMPT_NS),
    (Case(0, 128, 0), 128 * STEP_NS),
    (Case(0, 1, 0), STEP_NS),
    (Case(512, 128, 0), 512 * PROMPT_NS + 128 * STEP_NS),
    (Case(512, 0, 8192), 512 * PROMPT_NS),
    (Case(0, 128, 8192), 128 * STEP_NS),
    (Case(100, 3, 33), 100 * PROMPT_NS + 3 * STEP_NS),
]


@pytest.mark.parametrize(("case", "expected"), TIMES)
def test_what_is_timed(model: FakeModel, case: Case, expected: int) -> None:
    engine, tokens = model.engine, RandomTokens(model.tokenizer)
    assert [measure(engine, tokens, case) for _ in range(3)] == [expected] * 3
    assert engine.n_forgotten == 3
    *_, last = engine.submitted
    assert last.params.ignore_eos and last.params.temperature == 0
    assert last.prompt[0] == 1 and len(last.prompt) == case.n_depth + max(1, case.n_prompt)
    assert all(0 <= token < 1000 for token in last.prompt)


def test_random_tokens_are_the_same_every_time_and_differ_within() -> None:
    tokenizer = SimpleNamespace(n_vocab=1000, bos_id=None, add_bos=False)
    first, second = RandomTokens(tokenizer), RandomTokens(tokenizer)
    assert first.text(50) == second.text(50) != first.text(50)


def test_a_request_that_fails_ends_the_command(model: FakeModel, run: Run) -> None:
    model.engine.fails = True
    code, _, err = run("bench -p 8 -n 0")
    assert (code, err) == (1, "error: a request ended with 'error': the device is gone\n")
    assert run("batched-bench -npp 8 -ntg 2 -npl 2")[0] == 1


def test_an_engine_that_stands_still_is_a_mistake_of_ours(model: FakeModel) -> None:
    model.engine.idles = True
    with pytest.raises(AssertionError):
        measure(model.engine, RandomTokens(model.tokenizer), Case(8, 0, 0))


def test_columns_come_with_what_is_not_as_usual(model: FakeModel, run: Run) -> None:
    head = run("bench -p 8 -n 0 -b 64,128 -ctk q8_0 -fa on -t 1 -ngl 0 --route exact -dev cpu")[1].splitlines()[0]
    titles = [cell.strip() for cell in head.strip("|").split("|")]
    on_gpu = torch.cuda.is_available()
    assert titles[:4] == ["model", "size", "params", "backend"]
    assert titles[4:] == ["ngl", "threads", "n_batch", "type_k", "fa", "dev", "route", "test", "t/s"]
    usual = [cell.strip() for cell in run("bench -p 8 -n 0")[1].splitlines()[0].strip("|").split("|")]
    assert usual == ["model", "size", "params", "backend", "ngl" if on_gpu else "threads", "test", "t/s"]


def test_bench_runs_every_combination(model: FakeModel, run: Run) -> None:
    code, out, err = run("bench -o jsonl -p 16,32 -p 0 -n 4 -pg 8,2 -pg 0,0 -d 0,64 -b 128,256 -r 2 --progress")
    found = [json.loads(line) for line in out.splitlines()]
    cases = [(16, 0), (32, 0), (0, 4), (8, 2)]
    assert code == 0
    assert [(r["n_batch"], r["n_depth"], r["n_prompt"], r["n_gen"]) for r in found] == [
        (n_batch, depth, *case) for n_batch in (128, 256) for depth in (0, 64) for case in cases
    ]
    for one in found:
        ns = one["n_prompt"] * PROMPT_NS + one["n_gen"] * STEP_NS
        assert one["samples_ns"] == [ns, ns] and one["avg_ns"] == ns and one["stddev_ns"] == 0
        assert one["avg_ts"] == pytest.approx(1e9 * (one["n_prompt"] + one["n_gen"]) / ns, rel=1e-6)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", one["test_time"])
    assert "naiad bench: test 1/8: " in err


def test_warmup_comes_first_unless_it_is_switched_off(model: FakeModel, run: Run) -> None:
    run("bench -p 8 -n 4 -r 1 -d 5")
    with_warmup = [(len(h.prompt), h.params.max_tokens) for h in model.engine.submitted]
    assert with_warmup == [(5, 1), (13, 1), (5, 1), (13, 1), (5, 1), (6, 3), (5, 1), (6, 5)]
    model.engine.submitted.clear()
    run("bench -p 8 -n 4 -r 1 --no-warmup")
    assert [(len(h.prompt), h.params.max_tokens) for h in model.engine.submitted] == [(8, 1), (1, 5)]


ERRORS = [
    ("bench -p 3-1", "error: -p: expected a range that goes up, found 3-1\n"),
    ("bench -pg 3", "error: -pg: expected two numbers like 512,128, found '3'\n"),
    ("bench -p 0 -n 0", "error: there is nothing to time: -p, -n and -pg are all 0\n"),
    ("bench -r 0", "error: -r: expected an integer from 1 to "),
    ("bench -o xml", "error: -o: expected one of md, json, jsonl, csv, sql, found 'xml'\n"),
    ("bench -ctk q9", "error: -ctk: expected one of f32, f16, "),
    ("bench -fa maybe", "error: -fa: expected one of on, off, auto, found 'maybe'\n"),
    ("bench -t 0", "error: -t: expected an integer from 1 to 4096, found 0\n"),
    ("bench -m missing.gguf", "error: missing.gguf: no such file\n"),
    ("batched-bench -npl 0", "error: -npl: expected an integer from 1 to "),
    ("batched-bench -npp 8 -ntg 8 -npl 2 -c 31", "error: -c 31 is too small: 32 tokens are needed at least\n"),
    ("batched-bench --output-format csv", "error: --output-format: expected one of md, jsonl, found 'csv'\n"),
]


@pytest.mark.parametrize(("line", "message"), ERRORS, ids=[line for line, _ in ERRORS])
def test_errors_are_one_message_and_exit_code_1(run: Run, line: str, message: str) -> None:
    code, _, err = run(line)
    assert code == 1 and err.startswith(message) and "Traceback" not in err


def test_batched_bench_prints_llama_batched_benchs_table(model: FakeModel, run: Run) -> None:
    code, out, err = run("batched-bench -npp 128 -npp 512 -ntg 128 -npl 1,4 -c 2560")
    assert code == 0 and "n_kv_max = 2560" in err
    assert out.splitlines() == [
        "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |",
        "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|",
        "|   128 |    128 |    1 |    256 |    0.000 | 1000000.00 |    0.006 | 20000.00 |    0.007 | 39215.69 |",
        "|   128 |    128 |    4 |   1024 |    0.001 | 1000000.00 |    0.006 | 80000.00 |    0.007 | 148148.15 |",
        "|   512 |    128 |    1 |    640 |    0.001 | 1000000.00 |    0.006 | 20000.00 |    0.007 | 92592.59 |",
        "|   512 |    128 |    4 |   2560 |    0.002 | 1000000.00 |    0.006 | 80000.00 |    0.008 | 303030.30 |",
    ]


def test_batched_bench_with_a_shared_prompt(model: FakeModel, run: Run) -> None:
    out = run("batched-bench -npp 64 -ntg 32 -npl 8 -pps --output-format jsonl -t 3")[1]
    (found,) = (json.loads(line) for line in out.splitlines())
    assert found == {
        "n_kv_max": 64 + 8 * 32, "n_batch": 512, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 1,
        "n_gpu_layers": -1, "n_threads": 3, "n_threads_batch": 3, "pp": 64, "tg": 32, "pl": 8, "n_kv": 320,
        "t_pp": 64e-6, "speed_pp": 1e6, "t_tg": 0.0016, "speed_tg": 160000.0, "t": 0.001664,
        "speed": round(320 / 0.001664, 6),
    }  # fmt: skip
    generating = [handle.prompt for handle in model.engine.submitted[-8:]]
    assert len({tuple(prompt[:64]) for prompt in generating}) == 1 and len({prompt[64] for prompt in generating}) > 1


def test_batched_bench_leaves_out_what_the_cache_cannot_hold(model: FakeModel, run: Run) -> None:
    model.memory.pool_tokens = 100
    _, out, err = run("batched-bench -npp 32 -ntg 8 -npl 2,4 --output-format jsonl")
    assert [json.loads(line)["pl"] for line in out.splitlines()] == [2]
    assert "left out, the cache holds 100 tokens: " in err


def test_bench_for_real(run: Run) -> None:
    code, out, _ = run("bench -dev cpu -o json -p 40 -n 3 -pg 8,2 -d 0,33 -r 2 -t 1 -ctk q8_0 -ctv q8_0")
    found = json.loads(out)
    assert code == 0 and len(found) == 6
    for one in found:
        assert (one["type_k"], one["type_v"], one["n_threads"], one["backends"]) == ("q8_0", "q8_0", 1, "CPU")
        assert one["model_filename"] == str(demo_model()) and one["model_size"] < demo_model().stat().st_size
        assert len(one["samples_ns"]) == 2 and one["stddev_ns"] >= 0 and one["weights"] == "as stored"
        assert one["avg_ts"] == pytest.approx(sum(one["samples_ts"]) / 2, rel=1e-4)
        # A model of this size computes between these.
        assert 5 < one["avg_ts"] < 10**6


@pytest.mark.parametrize("shared", ["", "-pps"])
def test_batched_bench_for_real(run: Run, shared: str) -> None:
    code, out, _ = run(f"batched-bench -dev cpu -npp 40,64 -ntg 3 -npl 1,3 -t 1 --output-format jsonl {shared}")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(one["pp"], one["pl"]) for one in found] == [(40, 1), (40, 3), (64, 1), (64, 3)]
    for one in found:
        assert one["n_kv"] == (one["pp"] if shared else one["pl"] * one["pp"]) + 3 * one["pl"]
        assert 5 < one["speed_tg"] < 10**6 and one["t"] == pytest.approx(one["t_pp"] + one["t_tg"], abs=1e-5)
