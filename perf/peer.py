"""llama.cpp and naiad on the same card and the same files, in turns.

python perf/peer.py pack SOURCE ARCHIVE          the part of llama.cpp's source that its build needs: 7 MB
python perf/peer.py build ARCHIVE FOLDER         builds its benchmarks in the folder, for the card at hand
python perf/peer.py run FOLDER [--shapes llama-3-8b,qwen3-30b-a3b] [--quick] [--out FILE]
python perf/peer.py run FOLDER model.gguf …

SOURCE is a folder with llama.cpp's source, or the source distribution of llama-cpp-python, which holds it. `run` writes
models with random weights in Q4_K_M (random_model.py) into the folder, removes each when it is done with it, and runs
llama-bench and llama-batched-bench beside `naiad bench` and `naiad batched-bench` with the same options, each engine
with its own defaults for the rest. Ratios are naiad / llama.cpp, of neighbouring runs. --cpu needs no card.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import site
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from models import facts_of
from random_model import DEFAULT_MIX, SHAPES, write_random_model

Json = dict[str, Any]
# Tokens per second by test.
Rates = dict[str, float]

RESULTS = Path(__file__).with_name("results")
# What lies in the archive; of ggml's backends the others are left out.
PARTS = ("CMakeLists.txt", "LICENSE", "cmake", "common", "ggml", "include", "licenses", "src", "tools", "vendor")
BACKENDS = ("ggml-blas", "ggml-cpu", "ggml-cuda", "ggml-hip")
TARGETS = ("llama-bench", "llama-batched-bench")
MODELS = ("llama-3-8b", "qwen3-30b-a3b")
# Prompts, generated tokens and depths of one sequence; prompts, tokens and numbers of several.
SINGLE = {"-p": "512,2048", "-n": "128", "-d": "0,8192"}
# The last is there to be lost: llama-batched-bench may end before its last line is written.
BATCHED = {"-npp": "1024", "-ntg": "64", "-npl": "1,2,4,8,16,32,64,1"}
QUICK_SINGLE = {"-p": "512", "-n": "64", "-d": "0"}
QUICK_BATCHED = {"-npp": "128", "-ntg": "32", "-npl": "1,8,1"}
RUN_SECONDS = 300

# ---- building -------------------------------------------------------------------------------------------------------


def pack(source: Path, archive: Path) -> None:
    """ValueError where the source is not llama.cpp's."""
    with tempfile.TemporaryDirectory() as folder:
        if source.is_file():
            with tarfile.open(source) as given:
                given.extractall(folder, filter="data")
            found = [*Path(folder).glob("*/vendor/llama.cpp")]
            if not found:
                raise ValueError(f"expected a source distribution with vendor/llama.cpp, found none in {source}")
            source = found[0]
        if not (source / "ggml/src/ggml-cuda").is_dir():
            raise ValueError(f"expected llama.cpp's source with ggml/src/ggml-cuda, found none in {source}")
        with tarfile.open(archive, "w:xz", preset=3) as out:
            for part in PARTS:
                if (source / part).exists():
                    out.add(source / part, part, filter=wanted)


def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The entries that the build needs: of ggml/src/ggml-… the backends of cards and of the CPU."""
    parts = Path(entry.name).parts
    backend = parts[2] if parts[:2] == ("ggml", "src") and len(parts) > 2 else ""
    other = backend.startswith("ggml-") and "." not in backend and backend not in BACKENDS
    return None if other or ".git" in parts else entry


def build(archive: Path, folder: Path, cpu: bool) -> None:
    """CalledProcessError where a step fails; what the compiler says goes to stdout."""
    source, made = folder / "source", folder / "build"
    with tarfile.open(archive) as given:
        given.extractall(source, filter="data")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        **dict.fromkeys(("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP"), "OFF"),
        **dict.fromkeys(("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_UI"), "OFF"),
    }
    if not cpu:
        major, minor = torch.cuda.get_device_capability()
        # Without VMM it does without the driver's library, of which a toolkit may have no stub.
        options |= {"GGML_CUDA": "ON", "GGML_CUDA_NO_VMM": "ON", "CMAKE_CUDA_ARCHITECTURES": f"{major}{minor}"}
        options |= cublas(map(Path, site.getsitepackages()))
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    subprocess.run(
        ["cmake", "-S", source, "-B", made, *generator, *(f"-D{key}={value}" for key, value in options.items())],
        check=True,
    )
    jobs = str(os.cpu_count() or 1)
    subprocess.run(["cmake", "--build", made, "-j", jobs, "--target", *TARGETS], check=True)


def cublas(folders: Iterable[Path]) -> dict[str, str]:
    """CMake's options for the cuBLAS that came with torch, for toolkits without one; none where there is none."""
    for header in (found for folder in folders for found in sorted(folder.glob("nvidia/*/include/cublas_v2.h"))):
        libraries = {
            name: sorted((header.parents[1] / "lib").glob(f"lib{name}.so*")) for name in ("cublas", "cublasLt")
        }
        if all(libraries.values()):
            include = dict.fromkeys(("CMAKE_CUDA_FLAGS", "CMAKE_CXX_FLAGS"), f"-I{header.parent}")
            return {f"CUDA_{name}_LIBRARY": str(found[0]) for name, found in libraries.items()} | include
    return {}


# ---- running --------------------------------------------------------------------------------------------------------


def commands(folder: Path, model: str, options: argparse.Namespace) -> dict[str, list[list[str]]]:
    """By engine: of the benchmark of one sequence, and of that of several."""
    single, batched = (QUICK_SINGLE, QUICK_BATCHED) if options.quick else (SINGLE, BATCHED)
    several = max(map(int, batched["-npl"].split(",")))
    # llama.cpp gives each sequence a multiple of 256 tokens.
    n_ctx = several * -(-(int(batched["-npp"]) + int(batched["-ntg"])) // 256) * 256
    first = [*flat(single), "-m", model, "-r", str(options.repetitions), "-o", "json"]
    second = [*flat(batched), "-m", model, "-c", str(n_ctx), "--output-format", "jsonl"]
    naiad, theirs = [sys.executable, "-m", "naiad"], folder / "build/bin"
    if options.cpu:
        first += ["-t", str(os.cpu_count())]
    return {
        "naiad": [[*naiad, "bench", *first], [*naiad, "batched-bench", *second]],
        "llama.cpp": [[str(theirs / "llama-bench"), *first], [str(theirs / "llama-batched-bench"), *second]],
    }


def flat(values: Mapping[str, str]) -> Iterator[str]:
    for key, value in values.items():
        yield from (key, value)


def rates(output: str) -> Rates:
    """Tokens per second by test of what a benchmark wrote: llama-bench's JSON, or the lines of llama-batched-bench."""
    if output.lstrip().startswith("["):
        found: Rates = {}
        for test in json.loads(output):
            name = f"pp{test['n_prompt']}" if test["n_prompt"] else f"tg{test['n_gen']}"
            depth = f" @ d{test['n_depth']}" if test["n_depth"] else ""
            found[name + depth] = statistics.median(test["samples_ts"])
        return found
    found = {}
    for line in output.splitlines():
        if line.startswith("{"):
            test = json.loads(line)
            found.setdefault(f"pp{test['pp']} x {test['pl']}", test["speed_pp"])
            found.setdefault(f"tg{test['tg']} x {test['pl']} @ d{test['pp']}", test["speed_tg"])
    return found


def run_once(line: Sequence[str]) -> Rates:
    """RuntimeError where the program fails or gives no numbers."""
    done = subprocess.run(line, capture_output=True, text=True, timeout=RUN_SECONDS)
    try:
        found = rates(done.stdout)
    except (ValueError, KeyError) as error:
        found = {}
        done.stderr += f"\n{error!r}"
    if done.returncode or not found:
        last = " | ".join(done.stderr.strip().splitlines()[-4:])
        raise RuntimeError(f"{Path(line[0]).name} ended with code {done.returncode}: {last[-500:]}")
    return found


def compare(folder: Path, model: str, options: argparse.Namespace) -> Json:
    """Rates of every round by engine and test, their ratios, and what failed."""
    programs = commands(folder, model, options)
    # Of every round, empty where a program failed.
    runs: dict[str, list[Rates]] = {engine: [{} for _ in range(options.rounds)] for engine in programs}
    failed: dict[str, str] = {}
    for which in range(2):
        for i in range(options.rounds):
            for engine in list(programs) if i % 2 == 0 else [*reversed(list(programs))]:
                try:
                    runs[engine][i] |= run_once(programs[engine][which])
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    failed[engine] = str(error)[:1000]
    tests = dict.fromkeys(test for rounds in runs.values() for found in rounds for test in found)
    rates_of = {e: {t: [r[t] for r in rounds if t in r] for t in tests} for e, rounds in runs.items()}
    neighbours = list(zip(runs["naiad"], runs["llama.cpp"], strict=True))
    ratios = {t: [round(a[t] / b[t], 3) for a, b in neighbours if t in a and t in b] for t in tests}
    for test in tests:
        cells = [f"{e} {statistics.median(values[test]):.1f}" for e, values in rates_of.items() if values[test]]
        if ratios[test]:
            low, high = min(ratios[test]), max(ratios[test])
            cells.append(f"ratio {statistics.median(ratios[test]):.2f} [{low:.2f} … {high:.2f}]")
        print(f"    {test:<20} " + " | ".join(cells), flush=True)
    for engine, why in failed.items():
        print(f"    {engine}: {why}", flush=True)
    return {"tokens_per_s": rates_of, "ratios": ratios, "failed": failed}


def run(folder: Path, options: argparse.Namespace) -> int:
    device = torch.device("cpu" if options.cpu else "cuda")
    result: Json = {"device": facts_of(device), "models": {}}
    out = options.out or RESULTS / f"peer-{result['device']['arch']}{'-quick' if options.quick else ''}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    given = [path for path in options.models if path]
    for name in given or options.shapes:
        print(name, flush=True)
        path = Path(name) if given else folder / f"{name}.gguf"
        if not given:
            write_random_model(str(path), SHAPES[name], DEFAULT_MIX, device)
        try:
            result["models"][name] = compare(folder, str(path), options)
        finally:
            if not given:
                path.unlink()
        out.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(found["failed"] for found in result["models"].values()))


# ---- the program ----------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    action = actions.add_parser("pack", help="llama.cpp's source into an archive")
    action.add_argument("source", type=Path)
    action.add_argument("archive", type=Path)
    action = actions.add_parser("build", help="its benchmarks, for this machine")
    action.add_argument("archive", type=Path)
    action.add_argument("folder", type=Path)
    action.add_argument("--cpu", action="store_true", help="without a card")
    action = actions.add_parser("run", help="both engines, in turns")
    action.add_argument("folder", type=Path, help="where build has built, and room for a model")
    action.add_argument("models", nargs="*", help="files; without them, random models are made")
    action.add_argument(
        "--shapes", type=lambda text: text.split(","), default=MODELS, help=f"by default {','.join(MODELS)}"
    )
    action.add_argument("--quick", action="store_true", help="fewer tests")
    action.add_argument("--rounds", type=int, default=2, help="runs of each program; by default 2")
    action.add_argument("-r", "--repetitions", type=int, default=3, help="of a test in a run; by default 3")
    action.add_argument("--cpu", action="store_true", help="without a card")
    action.add_argument("--out", type=Path, help="by default results/peer-<architecture>[-quick].json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    try:
        if options.action == "pack":
            pack(options.source, options.archive)
        elif options.action == "build":
            build(options.archive, options.folder, options.cpu)
        else:
            return run(options.folder, options)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"peer.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
