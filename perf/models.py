"""Whole models with random weights, made on the card and run by the engine: prompts, and generation in batches.

python perf/models.py [--models llama-3-8b,qwen2.5-7b] [--batches 1,8,64] [--depths 0,8192] [--quick] [--out FILE]

The shapes are those of real models, the formats those that llama.cpp gives their tensors in Q4_K_M. What is cached
before a case is random numbers, which take no time to compute. Times are by the host's clock, so that scheduling,
sampling and launching are in them: medians of stretches of steps, with the lowest and the highest. The limit of a step
is (W + C KV) / bandwidth: the bytes of the weights that its tokens need and of the keys and values that they see, at
the read bandwidth measured at the start and, beside it, at the specified one. On CUDA a model runs in a process of its
own; one that a case ends is replaced for the next case. The results file is written anew after every case.
Exit code 1: a case failed; 2: no device.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from kernels import limits_of
from model_cases import Case, Model, Options, Record, cases
from random_model import MODELS, SHAPES
from timing import Lost, clocks, describe, find_device, first_line, workers

RESULTS = Path(__file__).with_name("results")
# How long loading or a case may take, with all that is compiled for it.
CASE_SECONDS = 300
# Specified read bandwidths, by a part of the card's name.
SPEC_GB_S = {
    **{"H200": 4800, "H100 80GB HBM3": 3350, "H100 NVL": 3900, "H100 PCIe": 2000, "A100-SXM4-80GB": 2039},
    **{"B200": 8000, "MI300X": 5300, "RTX 4090": 1008, "RTX 5090": 1792},
}


def run_model(name: str, left: Sequence[Case], options: Options, limits: Mapping[str, Any]) -> Iterator[Record]:
    """The facts of a model, then the record of each case; fewer, where the device is of no use any more."""
    try:
        model = Model(name, options, limits)
    except Exception as error:  # whatever a compiler or a driver raises
        yield {"problem": first_line(error)}
        return
    yield model.facts
    for case in left:
        try:
            record = model.run(case)
        except Exception as error:
            record = {"problem": first_line(error)}
        yield asdict(case) | record
        if "problem" in record and not usable(model.device):
            return


def usable(device: torch.device) -> bool:
    """Whether the device still answers, on its usual stream, which a capture that fails does not go back to."""
    try:
        if device.type == "cuda":
            torch.cuda.set_stream(torch.cuda.default_stream(device))
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    except Exception:
        return False
    return True


def send_all(pipe: Any, records: Callable[..., Iterator[Record]], *arguments: Any) -> None:
    for record in records(*arguments):
        pipe.send(record)


def isolated(
    records: Callable[..., Iterator[Record]], name: str, left: Sequence[Case], options: Options, limits: Record
) -> Iterator[Record]:
    """As `records`, which is run_model, in another process; where that ends before its time, the rest in a new one."""
    context = get_context("spawn")
    while left:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=send_all, args=(there, records, name, left, options, limits), daemon=True)
        process.start()
        there.close()
        n, reason = -1, f"no result within {CASE_SECONDS} s"  # the facts come before the cases
        try:
            while here.poll(CASE_SECONDS):
                yield here.recv()
                n += 1
        except (EOFError, OSError):
            process.join()
            reason = f"the process ended with exit code {process.exitcode}" if process.exitcode else ""
        finally:
            process.kill()
            process.join()
            here.close()
        if n < 0:
            yield {"problem": reason}
        if n < 0 or (n == 0 and not reason):
            return  # the model cannot be loaded
        if reason and n < len(left):
            yield asdict(left[n]) | {"problem": reason}
            n += 1
        left = left[n:]


# ---- all of it ------------------------------------------------------------------------------------------------------


def facts_of(device: torch.device) -> Record:
    if device.type == "cuda":
        return describe(device)
    return {"card": device.type, "arch": device.type, "torch": torch.__version__}


class Run:
    """What was asked for, and the results so far."""

    def __init__(self, options: Options, device: torch.device) -> None:
        self.options, self.device = options, device
        self.start = time.monotonic()
        self.result: Record = {"device": facts_of(device), "limits": {}, "models": {}}
        self.failed = False

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)

    def measure_limits(self) -> None:
        if self.device.type == "cuda":
            # In another process: this one shall take no memory on the card.
            with workers(1) as run:
                (found,) = run(limits_of, [str(self.device)])
            self.result["limits"] = {"failed": found.reason} if isinstance(found, Lost) else found
        card = self.result["device"]["card"]
        spec = [gb_s for part, gb_s in SPEC_GB_S.items() if part in card]
        self.result["limits"] |= {"spec_gb_s": spec[0]} if spec else {}
        self.say(json.dumps(self.result["limits"]))

    def model(self, name: str) -> None:
        self.say(name)
        mine: Record = {"records": []}
        self.result["models"][name] = mine
        arguments = name, self.options.cases, self.options, self.result["limits"]
        found = isolated(run_model, *arguments) if self.device.type == "cuda" else run_model(*arguments)
        for record in found:
            if "kind" in record:
                mine["records"].append(record)
                case = Case(**{key: record[key] for key in Case.__slots__})
                self.say(f"{name}: {line(case, record)}")
            else:
                mine |= record
                self.say(f"{name}: {json.dumps(record)}")
            self.failed |= "problem" in record
            self.save()
        mine["clocks_after"] = clocks(self.device) if self.device.type == "cuda" else {}
        self.save()

    def save(self) -> None:
        out = Path(self.options.out) if self.options.out else self.path()
        self.result["seconds"] = round(time.monotonic() - self.start)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(self.result, indent=1) + "\n")

    def path(self) -> Path:
        parts = "" if self.options.models == MODELS else "-" + "-".join(self.options.models)
        return RESULTS / f"models-{self.result['device']['arch']}{parts}{'-quick' if self.options.quick else ''}.json"


def line(case: Case, record: Record) -> str:
    """A record as it is printed."""
    for key in ("problem", "skipped"):
        if key in record:
            return f"{case}: {key}: {record[key]}"
    if case.kind == "kernels":
        counts = "{per_step:g} kernels per step, {per_layer} per layer, {copies:g} copies, {device_us:.0f} µs"
        return f"{case}: {counts.format(**record)}"
    if case.kind == "served":
        return f"{case}: {record['ms'][0] / 1e3:.1f} s, {record['tokens_per_s'][0]:.1f} generated tokens/s"
    median, low, high = record["ms"]
    text = f"{case}: {median:.3f} ms [{low:.3f} … {high:.3f}], {record['tokens_per_s'][0]:.1f} tokens/s"
    if case.kind == "pp":
        return f"{text}, {record['tflops']:.1f} TFLOP/s" + percent(record["share_of_mm"], "mm")
    text += f", {record['gb_s']:.0f} GB/s" + percent(record["share_of_read"], "read")
    text += percent(record["share_of_spec"], "spec")
    if "host_us" in record:
        text += f", host {record['host_us']:.0f} µs"
    if "gate" in record:
        text += f"; gate {record['gate']:.2f}, aim {record['aim']:.2f}: {record['reached']} reached"
    return text


def percent(value: float | None, of: str) -> str:
    return "" if value is None else f", {value:.1%} of {of}"


def parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: tuple(text.split(","))  # noqa: E731
    numbers = lambda text: tuple(sorted({*map(int, text.split(","))}))  # noqa: E731
    parser.add_argument("--models", type=names, default=MODELS, help=f"of {', '.join(SHAPES)}; by default six")
    parser.add_argument("--batches", type=numbers, help="sequences at a time; by default 1,2,4 … 256")
    parser.add_argument("--depths", type=numbers, default=(0, 8192), help="tokens cached before; by default 0,8192")
    parser.add_argument("--prompts", type=numbers, default=(512, 2048), help="tokens of prompts; by default 512,2048")
    parser.add_argument("--served", type=int, help="requests that arrive at once; 0: none; by default 256")
    parser.add_argument("--n-batch", type=int, default=2048, help="tokens of a step; by default 2048")
    parser.add_argument("--steps", type=int, help="steps of a stretch; by default 32")
    parser.add_argument("--repeats", type=int, help="stretches, and prompts; by default 5")
    parser.add_argument("--quick", action="store_true", help="batches 1, 8, 64 and short stretches")
    parser.add_argument("--device", default="cuda", help="cpu runs torch's twins, which says nothing about speed")
    parser.add_argument("--out", type=Path, help="by default results/models-<architecture>[-models][-quick].json")
    options = parser.parse_args(argv)
    quick = options.quick
    options.batches = options.batches or ((1, 8, 64) if quick else tuple(2**i for i in range(9)))
    options.served = options.served if options.served is not None else 0 if quick else 256
    options.steps = options.steps or (16 if quick else 32)
    options.repeats = options.repeats or (3 if quick else 5)
    unknown = [name for name in options.models if name not in SHAPES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; models: {', '.join(SHAPES)}")
    if min(*options.batches, *options.prompts, options.n_batch) < 1 or min(*options.depths, options.served) < 0:
        parser.error("batches, prompts and --n-batch must be at least 1, depths and --served at least 0")
    options.cases = cases(options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    device = torch.device("cpu") if options.device == "cpu" else find_device(options.device)
    if device is None:
        return 2
    options.device = str(device)
    run = Run(options, device)
    print("\n".join(f"{key}: {value}" for key, value in run.result["device"].items()), flush=True)
    run.measure_limits()
    for name in options.models:
        run.model(name)
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main())
