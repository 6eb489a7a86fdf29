"""campaign.py, peer.py, sanitize.py, counters.py and targets.py without a card, on what other programs print."""

import json
import sys
import tarfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import campaign
import counters
import kernels
import models
import peer
import pytest
import sanitize
import targets
import tune
from campaign import BUILD, STAGES, Campaign, Stage

from naiad.runtime.demo import demo_model

# ---- campaign.py ----------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of .campaign."""
    for name, path in (("WORK", ""), ("RESULTS", "results"), ("LOGS", "logs"), ("STATE", "state.json")):
        monkeypatch.setattr(campaign, name, tmp_path / path)
    (tmp_path / "results").mkdir()
    (tmp_path / "logs").mkdir()
    return tmp_path


def stage(name: str, code: str, seconds: int = 30, **more: Any) -> Stage:
    return Stage(name, ("-c", code), seconds, **more)


WRITES = 'import sys; open(sys.argv[2], \'w\').write(\'{"device": {"arch": "sm_90"}}\')'


def test_stages_run_once_and_results_come_back(
    work: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = [stage("good", WRITES, results="x-ARCH.json"), stage("bad", "print('why'); raise SystemExit(3)")]
    monkeypatch.setattr(campaign, "STAGES", stages)
    run = Campaign(1, {})
    run.run(stages)
    assert run.failed and "exit code 3" in (out := capsys.readouterr().out) and "    why" in out
    state = json.loads((work / "state.json").read_text())
    assert {name: found["exit_code"] for name, found in state.items()} == {"good": 0, "bad": 3}
    assert campaign.chosen(None, Campaign(1, {}).state) == []
    assert campaign.chosen("bad", state) == [stages[1]]
    with pytest.raises(ValueError, match="expected stages among good, bad, found 'fast'"):
        campaign.chosen("bad,fast", state)

    archive = campaign.collect(work / "out")
    there = tmp_path_factory.mktemp("there")
    monkeypatch.setattr(campaign, "ROOT", there)
    (there / "perf/results").mkdir(parents=True)
    campaign.unpack(archive)
    assert (there / "perf/results/x-sm_90.json").exists()


def test_what_does_not_fit_waits_for_another_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [stage("first", "", 600), stage("long", "", 600), stage("short", "", 5)]
    monkeypatch.setattr(campaign, "STAGES", stages)
    run = Campaign(0.5, {})
    run.run(stages)
    assert run.state.keys() == {"first", "short"} and not run.failed
    assert campaign.chosen(None, run.state) == [stages[1]]


def test_a_stage_that_takes_too_long_is_killed_with_its_children(work: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    run = Campaign(1, {})
    run.run([stage("slow", code, 1)])
    assert run.failed and run.state["slow"]["exit_code"] is None and run.state["slow"]["seconds"] < 10


def test_nothing_is_timed_while_something_is_built(work: Path) -> None:
    mark = work / "built"
    build = stage(BUILD, f"import time; time.sleep(1); open({str(mark)!r}, 'w')", timed=False)
    before = stage("before", f"import os; assert not os.path.exists({str(mark)!r})", timed=False)
    after = stage("after", f"import os; assert os.path.exists({str(mark)!r})")
    run = Campaign(1, {})
    run.run([build, before, after])
    assert not run.failed and list(run.state) == ["before", BUILD, "after"]


def test_a_build_goes_on_in_another_run(work: Path) -> None:
    run = Campaign(0.02, {})
    run.run([stage(BUILD, "import time; time.sleep(60)", timed=False)])
    assert run.failed and BUILD not in run.state


def test_the_tree_is_importable_without_an_installation(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "PACK", work / "nothing")
    run = Campaign(1, campaign.prepare())
    run.run([stage("imports", f"import naiad.quant; assert naiad.__file__.startswith({str(work)!r}), naiad.__file__")])
    assert not run.failed


PARSERS = {"models.py": models.parse, "kernels.py": kernels.parse, "peer.py": peer.parse}


def test_stages_name_what_there_is() -> None:
    assert (
        len({stage.name for stage in STAGES}) == len({stage.results or stage.name for stage in STAGES}) == len(STAGES)
    )
    for each in STAGES:
        program = Path(each.program[0])
        assert each.program[0] == "-m" or (campaign.ROOT / program).is_file()
        if program.name in PARSERS:
            PARSERS[program.name]([*each.program[1:], *(["--out", "x"] if each.results else [])])


@pytest.mark.parametrize("program", [counters, sanitize, tune])
def test_without_a_card(program: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert program.main([]) == 2
    assert "no cuda device here" in capsys.readouterr().err


# ---- peer.py --------------------------------------------------------------------------------------------------------

BENCH = [
    {"n_prompt": 512, "n_gen": 0, "n_depth": 0, "samples_ts": [3.0, 1.0, 2.0]},
    {"n_prompt": 0, "n_gen": 128, "n_depth": 8192, "samples_ts": [5.0]},
]
BATCHED = 'main: n_kv_max = 2048\n{"pp": 128, "tg": 32, "pl": 8, "speed_pp": 7.5, "speed_tg": 2.5}\n\n'


def test_both_benchmarks_are_read() -> None:
    assert peer.rates(json.dumps(BENCH)) == {"pp512": 2.0, "tg128 @ d8192": 5.0}
    assert peer.rates(BATCHED) == {"pp128 x 8": 7.5, "tg32 x 8 @ d128": 2.5}
    assert peer.rates("") == {}


def test_naiads_benchmarks_are_read() -> None:
    """What `naiad bench` and `naiad batched-bench` print has the same tests."""
    options = Namespace(quick=True, repetitions=1, cpu=True)
    first, second = peer.commands(Path(), str(demo_model()), options)["naiad"]
    small = [line.replace("512", "20").replace("128", "20") for line in first]
    assert peer.run_once(small).keys() == {"pp20", "tg64"}
    small = [line.replace("32", "4").replace("128", "20") for line in second]
    assert peer.run_once(small).keys() == {"pp20 x 1", "tg4 x 1 @ d20", "pp20 x 8", "tg4 x 8 @ d20"}


def test_engines_take_turns_and_ratios_are_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a program fails in one of the rounds."""
    calls: list[str] = []
    speeds = {"naiad": iter([10.0, 30.0, 70.0]), "theirs": iter([5.0, 0.0, 7.0])}

    def run_once(line: list[str]) -> dict[str, float]:
        calls.append("naiad" if line[0] == sys.executable else "theirs")
        if any("batched-bench" in word for word in line):
            if calls[-1] == "theirs":
                raise RuntimeError("no room")
            return {"tg x 8": 1.0}
        speed = next(speeds[calls[-1]])
        if not speed:
            raise RuntimeError("lost")
        return {"tg": speed}

    monkeypatch.setattr(peer, "run_once", run_once)
    found = peer.compare(Path(), "x", Namespace(quick=False, repetitions=1, cpu=False, rounds=3))
    assert calls[:6] == ["naiad", "theirs", "theirs", "naiad", "naiad", "theirs"]
    assert found["ratios"] == {"tg": [2.0, 10.0], "tg x 8": []}
    assert found["tokens_per_s"]["naiad"] == {"tg": [10.0, 30.0, 70.0], "tg x 8": [1.0] * 3}
    assert found["tokens_per_s"]["llama.cpp"] == {"tg": [5.0, 7.0], "tg x 8": []}
    assert found["failed"] == {"llama.cpp": "no room"}


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="ended with code 4: last words"):
        peer.run_once([sys.executable, "-c", "import sys; sys.stderr.write('last words'); sys.exit(4)"])
    with pytest.raises(RuntimeError, match="ended with code 0"):
        peer.run_once([sys.executable, "-c", "print('[no JSON')"])


def test_the_source_is_packed_without_other_backends(tmp_path: Path) -> None:
    source = tmp_path / "llama-cpp-python-1/vendor/llama.cpp"
    for file in ("ggml/src/ggml-cuda/a.cu", "ggml/src/ggml-vulkan/a.cpp", "ggml/src/ggml.c", "docs/x", "src/llama.cpp"):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text(file)
    given, archive = tmp_path / "sdist.tar.gz", tmp_path / "archive.tar.xz"
    with tarfile.open(given, "w:gz") as tar:
        tar.add(tmp_path / "llama-cpp-python-1", "llama-cpp-python-1")
    for origin in (source, given):
        peer.pack(origin, archive)
        with tarfile.open(archive) as tar:
            files = {entry.name for entry in tar if entry.isfile()}
        assert files == {"ggml/src/ggml-cuda/a.cu", "ggml/src/ggml.c", "src/llama.cpp"}
    with pytest.raises(ValueError, match=r"expected llama\.cpp's source"):
        peer.pack(tmp_path, archive)


def test_cublas_of_torch_is_found(tmp_path: Path) -> None:
    assert peer.cublas([tmp_path]) == {}
    base = tmp_path / "nvidia/cu13"
    (base / "include").mkdir(parents=True)
    (base / "lib").mkdir()
    for file in ("include/cublas_v2.h", "lib/libcublas.so.13", "lib/libcublasLt.so.13"):
        (base / file).touch()
    assert peer.cublas([tmp_path]) == {
        "CUDA_cublas_LIBRARY": str(base / "lib/libcublas.so.13"),
        "CUDA_cublasLt_LIBRARY": str(base / "lib/libcublasLt.so.13"),
        "CMAKE_CUDA_FLAGS": f"-I{base / 'include'}",
        "CMAKE_CXX_FLAGS": f"-I{base / 'include'}",
    }


# ---- sanitize.py and counters.py ------------------------------------------------------------------------------------


def test_reports_of_compute_sanitizer() -> None:
    assert sanitize.n_found("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n") == 0
    assert sanitize.n_found("========= ERROR SUMMARY: 2 errors\n========= ERROR SUMMARY: 1 error\n") == 3
    assert sanitize.n_found("========= RACECHECK SUMMARY: 4 hazards displayed (4 errors, 0 warnings)\n") == 4
    assert sanitize.n_found("killed") is None
    line = sanitize.command("memcheck", "layer")
    options = kernels.parse(line[line.index(str(sanitize.KERNELS)) + 1 :])
    assert options.checks and options.jobs == 0 and options.only == ("layer",)


NCU = f"""==PROF== Connected to process 1
"ID","Kernel Name","{counters.METRICS["us"]}","{counters.METRICS["dram_percent"]}","smsp__x"
"","","ns","%",""
"0","q+k+v","1,500","42.5","7"
"1","down+norm","20000","n/a","7"
"""


def test_tables_of_ncu() -> None:
    found = counters.read(NCU)
    assert found == [{"launch": "q+k+v", "us": 1.5, "dram_percent": 42.5}, {"launch": "down+norm", "us": 20.0}]
    assert [line.split()[0] for line in counters.lines(found)] == ["down+norm", "q+k+v"]
    assert counters.read("==ERROR== no permission") == []


# ---- targets.py -----------------------------------------------------------------------------------------------------


def test_the_table_holds_what_was_measured(tmp_path: Path) -> None:
    step = {"kind": "tg", "batch": 1, "depth": 0, "n_prompt": 0, "sampling": "greedy"}
    found = step | {"ms": [2.0, 1, 3], "tokens_per_s": [500.0, 1, 1], "share_of_read": 0.54, "host_us": 90.4}
    records = [
        step | {"problem": "lost"},
        found,
        *(found | {"batch": b, "ms": [2.0 + b / 10, 1, 3]} for b in (2, 4, 8)),
        found | {"batch": 32, "depth": 1024, "tokens_per_s": [7777.0, 1, 1]},
        step | {"kind": "pp", "n_prompt": 512, "ms": [1.0] * 3, "tokens_per_s": [19000.0, 1, 1]},
    ]
    case = {"heads": targets.HEADS, "us": {"naiad": [9.6, 9, 10], "sdpa": [5.0, 5, 5]}}
    attention = [
        case | {"case": "decode 1 x 4096", "gb_s": {"naiad": 1000.0}},
        case | {"case": "decode 1 x 4096", "heads": "32/32 x 64", "us": {"naiad": [1.0, 1, 1]}},
        case | {"case": "prefill 2048", "tflops": {"naiad": 390.0, "sdpa": 500.0}},
        case | {"case": "prefill 8192", "tflops": {"naiad": 410.0}},
    ]
    for name, content in (
        ("models-sm_90-llama-3-8b", {"models": {"llama-3-8b": {"records": records}}}),
        ("models-sm_80", {"models": {"llama-3-70b": {"records": [found]}}}),
        ("kernels-sm_90-quick", {"records": {"attention": attention}}),
        ("peer-sm_90", {"models": {"llama-3-8b": {"tokens_per_s": {"llama.cpp": {"tg128": [210.0, 190.0, 230.0]}}}}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    rows = targets.table(targets.load(tmp_path, "sm_90")).splitlines()
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in rows}
    assert cells["Llama-3-8B, one sequence, tokens/s"][3:] == ["500 (54%)", "210"]
    assert cells["Llama-3-70B, one sequence, tokens/s"][3:] == ["not yet", ""]
    assert cells["Llama-3-8B, prompt of 512, tokens/s"][3] == "19,000"
    assert cells["Llama-3-8B, 32 sequences of 1k, tokens/s"][3] == "7,777"
    assert cells["Llama-3-8B, a step's speed with 2 to 8 sequences / one"][3] == "0.71"
    assert cells["the host's work per token, µs"][3] == "90 of 2000"
    assert cells["attention of a prompt, TFLOP/s"][3] == "410"
    assert cells["attention, one sequence of 4k, µs"][3] == "10"


def test_the_readme_has_the_table_of_the_results() -> None:
    text = targets.README.read_text()
    assert targets.written(text, targets.table(targets.load(targets.RESULTS, "sm_90"))) == text
    with pytest.raises(ValueError, match="expected"):
        targets.written("no marks", "")
