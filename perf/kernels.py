"""Correctness, then speed, of the kernels on the GPU at hand, beside torch and others.

python perf/kernels.py [--quick] [--only linear,attention,experts,small,layer] [--out results.json]
python perf/kernels.py --only linear [--formats Q4_K,Q6_K] [--models llama-3-8b] [--rows 1,16,512] [--check Q4_K]

Everything is random. A part with wrong results is not timed. Times are medians of repeats in which the candidates take
turns, in CUDA graphs, over copies of the data that exceed the caches; GB/s stand beside the card's read bandwidth as
measured here. The results file is written anew after every case, so that a run cut off leaves what it measured.
--checks, and --device cpu under TRITON_INTERPRET=1: results are compared, nothing is timed. Exit code 1: wrong results,
or what could not be timed; 2: no device.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import bench_attention
import bench_experts
import bench_layer
import bench_linear
import bench_small
import torch
from bench import Part, Record
from bench_linear import ALL_FORMATS, FORMATS, MODELS, QUICK_FORMATS, QUICK_ROWS, ROWS
from timing import Lost, card_limits, clocks, default_jobs, describe, find_device, first_line, workers

RESULTS = Path(__file__).with_name("results")
# In the order in which they are timed.
PARTS = {
    name: cast(Part, module)
    for name, module in (
        ("layer", bench_layer),
        ("attention", bench_attention),
        ("experts", bench_experts),
        ("small", bench_small),
        ("linear", bench_linear),
    )
}
# A part and one of its items.
Item = tuple[str, Any]
Options = argparse.Namespace

# ---- what runs in other processes -------------------------------------------------------------------------------


def check_item(item: Item, device: str) -> list[str]:
    """What is wrong."""
    name, case = item
    found: list[str] = []
    try:
        for line in PARTS[name].check(case, use(device)):
            found.append(line)
        synchronize()
    except Exception as error:  # whatever a compiler or a driver raises
        found.append(first_line(error))
    return found


def prepare_item(item: Item, device: str) -> None:
    name, case = item
    PARTS[name].prepare(case, use(device))


def time_item(item: Item, device: str, limits: dict[str, Any]) -> tuple[list[Record], str]:
    """The records, and what went wrong after them."""
    name, case = item
    found: list[Record] = []
    try:
        for record in PARTS[name].time(case, use(device), limits):
            found.append(record)
        synchronize()
    except Exception as error:
        return found, first_line(error)
    return found, ""


def limits_of(device: str) -> dict[str, Any]:
    return card_limits(use(device))


def clocks_of(device: str) -> dict[str, str]:
    return clocks(use(device))


def use(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


# ---- the order of work ------------------------------------------------------------------------------------------


class Run:
    """What was asked for, and the results so far."""

    def __init__(self, options: Options, device: torch.device, facts: dict[str, Any]) -> None:
        self.options, self.device = options, device
        self.timed = device.type == "cuda" and not options.checks
        self.start = time.monotonic()
        self.wrong: dict[str, list[str]] = {name: [] for name in options.only}
        self.result: dict[str, Any] = {"device": facts, "limits": {}, "wrong": self.wrong, "records": {}}
        self.jobs = options.jobs if options.jobs is not None else default_jobs(device)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)

    def items(self, kind: str, names: Sequence[str]) -> list[Item]:
        # What takes longest first: the linear kernels.
        return [(name, item) for name in reversed(names) for item in getattr(PARTS[name], kind)(self.options)]

    def check_and_compile(self) -> None:
        with workers(self.jobs) as run:
            items = self.items("checks", self.options.only)
            self.say(f"checking {len(items)} cases in {self.jobs or 'no other'} processes")
            for (name, case), found in zip(
                items, run(partial(check_item, device=str(self.device)), items), strict=True
            ):
                lines = [found.reason] if isinstance(found, Lost) else found
                self.wrong[name] += [f"{case}: {line}" for line in lines]
            for name, lines in self.wrong.items():
                self.say(f"{name}: {len(lines)} wrong results" if lines else f"{name}: correct results")
                print("".join(f"    {line}\n" for line in lines), end="", flush=True)
            self.save()
            if self.timed:
                programs = self.items("programs", self.right())
                self.say(f"compiling for {len(programs)} cases")
                made = run(partial(prepare_item, device=str(self.device)), programs)
                for (name, case), lost in zip(programs, made, strict=True):
                    if isinstance(lost, Lost):
                        print(f"    {name}, {case}: {lost.reason}", flush=True)

    def right(self) -> list[str]:
        return [name for name, lines in self.wrong.items() if not lines]

    def time(self) -> bool:
        """Whether all could be timed. In a process of its own: what one kernel breaks ends one case only."""
        complete = True
        with workers(1) as run:
            (limits,) = run(limits_of, [str(self.device)])
            known = {} if isinstance(limits, Lost) else limits
            self.result["limits"] = {"failed": limits.reason} if isinstance(limits, Lost) else limits
            self.say(json.dumps(self.result["limits"]))
            for name in self.right():
                self.say(name)
                records = self.result["records"].setdefault(name, [])
                for item in self.items("cases", [name]):
                    (found,) = run(partial(time_item, device=str(self.device), limits=known), [item])
                    rows, problem = ([], found.reason) if isinstance(found, Lost) else found
                    records += rows
                    if problem:
                        complete = False
                        records.append({"case": str(item[1]), "problem": problem})
                        print(f"    {item[1]}: {problem}", flush=True)
                    self.save()
            (after,) = run(clocks_of, [str(self.device)])
            self.result["clocks_after"] = None if isinstance(after, Lost) else after
        self.save()
        return complete

    def save(self) -> None:
        if not self.timed:
            return
        self.result["seconds"] = round(time.monotonic() - self.start)
        out = self.path()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(self.result, indent=1) + "\n")

    def path(self) -> Path:
        """Of a run over some parts the name says which: it does not replace a run over all."""
        if self.options.out:
            return Path(self.options.out)
        parts = "" if len(self.options.only) == len(PARTS) else "-" + "-".join(self.options.only)
        quick = "-quick" if self.options.quick else ""
        return RESULTS / f"kernels-{self.result['device']['arch']}{parts}{quick}.json"


def parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: tuple(text.split(","))  # noqa: E731
    numbers = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser.add_argument("--only", type=names, help=f"of {','.join(PARTS)}; by default all")
    parser.add_argument("--formats", type=names, help=f"linear: formats to time, by default {','.join(FORMATS)}")
    parser.add_argument("--check", type=names, help="linear: formats to check, by default all (--quick: those to time)")
    parser.add_argument("--models", type=names, help=f"linear: of {', '.join(MODELS)}; by default all")
    parser.add_argument("--rows", type=numbers, help=f"linear: by default {','.join(map(str, ROWS))}")
    parser.add_argument("--quick", action="store_true", help="a small part of each")
    parser.add_argument("--checks", action="store_true", help="compare results, time nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="by default results/kernels-<architecture>[-parts][-quick].json")
    parser.add_argument("-j", "--jobs", type=int, help="processes that check and compile; 0: none but this one")
    options = parser.parse_args(argv)
    quick = options.quick
    options.only = options.only or tuple(PARTS)
    options.formats = options.formats or (QUICK_FORMATS if quick else FORMATS)
    options.check = options.check or (options.formats if quick else ALL_FORMATS)
    options.rows = options.rows or (QUICK_ROWS if quick else ROWS)
    options.models = options.models or (("llama-3-8b",) if quick else tuple(MODELS))
    for what, given, known in (
        ("models", options.models, MODELS),
        ("formats", (*options.formats, *options.check), ALL_FORMATS),
        ("parts", options.only, PARTS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"unknown: {', '.join(unknown)}; {what}: {', '.join(known)}")
    options.only = tuple(name for name in PARTS if name in options.only)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    device = find_device(options.device)
    if device is None:
        return 2
    facts = describe(device)
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    run = Run(options, device, facts)
    run.check_and_compile()
    complete = True
    if run.timed:
        complete = run.time()
        run.say(f"wrote {run.path()}")
    return 0 if complete and len(run.right()) == len(options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
