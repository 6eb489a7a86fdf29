"""Speed and memory of the CPU backend beside llama.cpp's, on the same files, in the same run, alternating.

python perf/cpu.py [--mixes q4_k_m,q8_0,q6_k,q4_0] [--shape 1b …] [--folder DIR] [-r 5] [-t N] [--quick] [--json FILE]
python perf/cpu.py model.gguf … [-p 512] [-n 64] [-d 2048] [-npl 8] [-npp 128] [-ntg 32]

Without files: models with random weights (random_model.py has the shapes and mixes), written into the folder where they
are missing. Tests are llama-bench's and llama-batched-bench's, with their defaults for everything else: a prompt of -p
tokens, -n tokens one by one, both also behind -d tokens, and -npl sequences at once. Sampling is left out for both.

Each engine has a process of its own, and runs alternate. The table gives the median in tokens per second and, in
brackets, the lowest and highest; ratios are naiad / llama.cpp of neighbouring runs, so that it does not matter whether
the machine's speed drifts. Memory is the peak of fresh processes that load, read a prompt and generate, in brackets
what is left of it without the file and the cache.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cpu_engines import EngineProcess
from random_model import SIZES, add_shape_options, chosen_shape, parse_mix, write_random_model

from naiad.loaders.gguf import GGUFFile
from naiad.runtime.threads import ThreadOptions, plan_threads

Json = dict[str, Any]
Rates = dict[str, list[float]]
MIXES = "q4_k_m,q8_0,q6_k,q4_0"
PACKAGES = ("naiad-llm", "torch", "numba", "llvmlite", "llama-cpp-python")
MIB = 2**20
# Tokens that a context has more than the tests need.
SPARE = 8


@dataclass(frozen=True)
class Sizes:
    """Tokens of a prompt, generated ones, how many lie before them in the tests at a depth; then the same for n_seqs
    sequences at once. 0 leaves a test out."""

    prompt: int = 512
    generate: int = 64
    depth: int = 2048
    n_seqs: int = 8
    batched_prompt: int = 128
    batched_generate: int = 32


QUICK = Sizes(128, 16, 512, 4, 32, 8)


def alternating(engines: Sequence[EngineProcess], repetitions: int, run: Callable[[EngineProcess], float]) -> Rates:
    """What `run` gives for each engine, time and again; who begins changes, so that a drift favours nobody."""
    results: Rates = {engine.name: [] for engine in engines}
    for i in range(repetitions):
        for engine in engines if i % 2 == 0 else reversed(engines):
            results[engine.name].append(run(engine))
    return results


def rate(engine: EngineProcess, command: str, n_seqs: int, n: int, depth: int = 0) -> float:
    """Tokens per second of all sequences, behind `depth` tokens that are in the cache already."""
    engine.call("cut", depth)
    seconds: float = engine.call(command, n_seqs, n)
    return n_seqs * n / seconds


def single(
    engines: Sequence[EngineProcess], sizes: Sizes, repetitions: int, report: Callable[[str, Rates], None]
) -> None:
    """The tests of one sequence."""
    for engine in engines:
        for command, n in (("prompt", sizes.prompt), ("generate", min(sizes.generate, 1))):
            if n:
                rate(engine, command, 1, n)
    for depth in dict.fromkeys((0, sizes.depth)):
        for engine in engines if depth else ():
            engine.call("cut", 0)
            engine.call("prompt", 1, depth)
        for command, short, n in (("prompt", "pp", sizes.prompt), ("generate", "tg", sizes.generate)):
            if n:
                label = f"{short}{n}" + (f" @ d{depth}" if depth else "")
                run = partial(rate, command=command, n_seqs=1, n=n, depth=depth)
                report(label, alternating(engines, repetitions, run))


def batched(
    engines: Sequence[EngineProcess], sizes: Sizes, repetitions: int, report: Callable[[str, Rates], None]
) -> None:
    """Prompts of many sequences, then a token of each at a time."""
    n = sizes.n_seqs
    for engine in engines:
        rate(engine, "prompt", n, sizes.batched_prompt)
        engine.call("generate", n, 1)
    prompts: Rates = {engine.name: [] for engine in engines}

    def run(engine: EngineProcess) -> float:
        prompts[engine.name].append(rate(engine, "prompt", n, sizes.batched_prompt))
        return rate(engine, "generate", n, sizes.batched_generate, sizes.batched_prompt)

    generation = alternating(engines, repetitions, run)
    report(f"pp{sizes.batched_prompt} x {n}", prompts)
    report(f"tg{sizes.batched_generate} x {n}", generation)


def summary(values: Sequence[float], digits: int = 2) -> list[float]:
    """Median, lowest, highest."""
    return [round(v, digits) for v in (statistics.median(values), min(values), max(values))]


def text(values: Sequence[float], digits: int = 2) -> str:
    middle, low, high = summary(values, digits)
    return f"{middle:.{digits}f} [{low:.{digits}f} … {high:.{digits}f}]"


def make_report(tests: list[Json]) -> Callable[[str, Rates], None]:
    """Prints a test's row and adds it to the results."""

    def report(label: str, rates: Rates) -> None:
        row: Json = {"test": label} | {name: summary(values) for name, values in rates.items()}
        cells = [text(values) for values in rates.values()]
        if len(rates) == 2:
            ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
            row["ratio"] = summary(ratios, 3)
            cells.append(text(ratios, 3))
        print_row(label, cells)
        tests.append(row)

    return report


def print_row(label: str, cells: Sequence[str]) -> None:
    print(f"  {label:<16}" + "".join(f"{cell:>32}" for cell in cells), flush=True)


def peak_memory(names: Sequence[str], path: str, sizes: Sizes, options: Json) -> Json:
    """Bytes of each engine's process: its peak, the cache, the rest."""
    result: Json = {}
    n_prompt, n_generate = max(1, sizes.prompt), max(1, sizes.generate)
    for name in names:
        with EngineProcess(name, path=path, n_ctx=n_prompt + n_generate + SPARE, n_seqs=1, **options) as engine:
            engine.call("prompt", 1, n_prompt)
            engine.call("generate", 1, n_generate)
            peak, cache = engine.call("peak"), engine.cache_bytes
        result[name] = {"peak": peak, "cache": cache, "rest": peak - cache - Path(path).stat().st_size}
    print_row("peak MiB", [f"{m['peak'] / MIB:.0f} ({m['rest'] / MIB:+.0f})" for m in result.values()])
    return result


def compare(path: str, sizes: Sizes, names: Sequence[str], repetitions: int, options: Json) -> Json:
    """All tests of a file."""
    n_bytes = Path(path).stat().st_size
    kv = GGUFFile(path).kv
    n_trained = kv.get(f"{kv['general.architecture']}.context_length", 0)
    longest = max(sizes.prompt, sizes.generate) + SPARE
    depth = sizes.depth if sizes.depth + longest <= n_trained else 0
    if depth < sizes.depth:
        print(f"{path} has a context of {n_trained} tokens: no tests behind {sizes.depth}")
    tests: list[Json] = []
    report = make_report(tests)
    result: Json = {"file": Path(path).name, "bytes": n_bytes, "tests": tests}
    print(f"\n{Path(path).name}, {n_bytes / MIB:.0f} MiB")
    print_row("", [*names, "ratio"] if len(names) == 2 else names)
    if sizes.prompt or sizes.generate:
        with ExitStack() as stack:
            engines = [
                stack.enter_context(EngineProcess(name, path=path, n_ctx=depth + longest, n_seqs=1, **options))
                for name in names
            ]
            single(engines, Sizes(sizes.prompt, sizes.generate, depth), repetitions, report)
            result["about"] = {engine.name: engine.about for engine in engines}
    if sizes.n_seqs and sizes.batched_prompt and sizes.batched_generate:
        n_ctx = sizes.batched_prompt + sizes.batched_generate + SPARE
        with ExitStack() as stack:
            engines = [
                stack.enter_context(EngineProcess(name, path=path, n_ctx=n_ctx, n_seqs=sizes.n_seqs, **options))
                for name in names
            ]
            batched(engines, sizes, repetitions, report)
    result["memory"] = peak_memory(names, path, sizes, options)
    return result


def model_files(arguments: argparse.Namespace) -> list[str]:
    """The files that were asked for, written where they are missing."""
    if arguments.files:
        return list(arguments.files)
    shape = chosen_shape(arguments)
    given = {option: getattr(arguments, field) for option, field in SIZES.items()}
    name = "-".join(filter(None, (arguments.shape, arguments.architecture)))
    name += "".join(f"-{option}{n}" for option, n in given.items() if n is not None)
    name += {None: "", True: "-tied", False: "-untied"}[arguments.tied]
    paths = []
    for mix in arguments.mixes.split(";" if "=" in arguments.mixes else ","):
        parse_mix(mix)
        path = arguments.folder / f"{name}-{mix.replace('=', '_').replace(',', '-')}.gguf"
        if not path.exists():
            arguments.folder.mkdir(parents=True, exist_ok=True)
            print(f"writing {path}", flush=True)
            write_random_model(str(path), shape, mix)
        paths.append(str(path))
    return paths


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--mixes", default=MIXES, help=f"{MIXES}; those with formats of single matrices apart by ;")
    add_shape_options(parser)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "naiad-models")
    names = ("-p --prompt", "-n --generate", "-d --depth", "-npl --n-seqs", "-npp --batched-prompt")
    for name in (*names, "-ntg --batched-generate"):
        parser.add_argument(*name.split(), type=int, metavar="N")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, help="one per physical core without it")
    parser.add_argument("--dequantize", choices=("auto", "on", "off"), default="auto", help="naiad's option")
    parser.add_argument("--cpu-isa", help="naiad's option; llama.cpp's instructions are those that it was built with")
    parser.add_argument("--only-naiad", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--quick", action="store_true", help="small tests, once or twice")
    parser.add_argument("--json", type=Path, help="write the results there, too; anew after every file")
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    usual = QUICK if arguments.quick else Sizes()
    given = {field: getattr(arguments, field) for field in asdict(usual)}
    sizes = Sizes(**{field: asdict(usual)[field] if n is None else n for field, n in given.items()})
    repetitions = min(2, arguments.repetitions) if arguments.quick else arguments.repetitions
    names = ["naiad", "llama.cpp"]
    if arguments.only_naiad or importlib.util.find_spec("llama_cpp") is None:
        names.remove("llama.cpp")
    try:
        n_threads = plan_threads(ThreadOptions(n_threads=arguments.threads)).decode.n_threads
        files = model_files(arguments)
    except ValueError as error:
        parser.error(str(error))
    options = {"n_threads": n_threads, "dequantize": arguments.dequantize, "cpu_isa": arguments.cpu_isa}
    results: Json = {"cpu": cpu_name(), "threads": n_threads, "versions": versions(), "repetitions": repetitions}
    print(f"{results['cpu']}, {n_threads} threads, " + ", ".join(" ".join(v) for v in results["versions"].items()))
    results |= {"sizes": asdict(sizes), "models": []}
    for path in files:
        results["models"].append(compare(path, sizes, names, repetitions, options))
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
