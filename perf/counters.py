"""Hardware counters of the launches of a layer, read by Nsight Compute (ncu): what each of them waits for.

python perf/counters.py [--rows 1,8,32] [--cached 511] [--out FILE]

Every launch of Llama-3-8B's layer runs once under ncu, with cold caches and the clocks as they are. A line per launch,
the longest first: its time, the share of the memory's peak, how often a scheduler issues an instruction, and what its
warps wait for. Results go to results/counters-<architecture>.json. Exit code 1: ncu failed; 2: no device or no ncu.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_layer import LLAMA, Case, launches, make_step
from kernels import RESULTS
from timing import describe, find_card_and

Counters = dict[str, Any]

STALLS = (
    *("long_scoreboard", "short_scoreboard", "wait", "not_selected", "math_pipe_throttle", "lg_throttle"),
    *("mio_throttle", "barrier", "dispatch_stall", "no_instruction", "membar"),
)
# Our names and ncu's.
METRICS = {
    "us": "gpu__time_duration.sum",
    "dram_read_bytes": "dram__bytes_read.sum",
    "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "issue_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
    "warps_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "alu_percent": "sm__inst_executed_pipe_alu.avg.pct_of_peak_sustained_active",
    "fma_percent": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "xu_percent": "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active",
    "tensor_percent": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "shared_conflicts": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
    "registers": "launch__registers_per_thread",
    "programs": "launch__grid_size",
    "threads": "launch__block_size",
    "waves": "launch__waves_per_multiprocessor",
    **{f"stall_{name}": f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in STALLS},
}
RUN_SECONDS = 280


def inner(rows: int, n_cached: int) -> None:
    """The launches, each once; they were compiled before ncu looks."""
    device = torch.device("cuda")
    case = Case(LLAMA, n_cached, rows)
    calls = launches(case, make_step(case, 1, device), device)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for name, (call,) in calls.items():
        torch.cuda.nvtx.range_push(name)
        call()
        torch.cuda.nvtx.range_pop()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def command(rows: int, n_cached: int) -> list[str]:
    program = [sys.executable, __file__, "--inner", str(rows), "--cached", str(n_cached)]
    ncu = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    # A launch is called by its range: several are of the same kernel.
    names = ["--nvtx", "--print-nvtx-rename", "kernel"]
    return [*ncu, *names, "--profile-from-start", "off", "--metrics", ",".join(METRICS.values()), *program]


def read(output: str) -> list[Counters]:
    """A record per launch, in order, of what ncu wrote. Counters that it does not know are left out."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    found = []
    for row in csv.DictReader(lines):
        if not row["ID"]:
            continue  # the line of units
        record: Counters = {"launch": row["Kernel Name"]}
        for name, metric in METRICS.items():
            try:
                record[name] = float(row[metric].replace(",", ""))
            except (KeyError, ValueError):
                continue
        record["us"] = record["us"] / 1e3
        found.append(record)
    return found


def lines(records: Sequence[Counters]) -> Iterator[str]:
    """The launches as they are printed, the longest first."""
    for record in sorted(records, key=lambda record: -record["us"]):
        stalls = sorted(STALLS, key=lambda name: -record.get(f"stall_{name}", 0.0))[:3]
        waits = ", ".join(f"{name} {record.get(f'stall_{name}', 0.0):.1f}" for name in stalls)
        percent = {name: record.get(f"{name}_percent", 0.0) for name in ("dram", "issue", "warps")}
        yield (
            f"    {record['launch']:<28} {record['us']:7.1f} µs, memory {percent['dram']:.0f} %, "
            f"issuing {percent['issue']:.0f} %, warps {percent['warps']:.0f} %; waits: {waits}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser.add_argument("--rows", type=numbers, default=(1, 8, 32), help="rows of the layer; by default 1,8,32")
    parser.add_argument("--cached", type=int, default=511, help="tokens in the cache before; by default 511")
    parser.add_argument("--inner", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="by default results/counters-<architecture>.json")
    options = parser.parse_args(argv)
    if options.inner is not None:
        inner(options.inner, options.cached)
        return 0
    device = find_card_and("ncu", "Nsight Compute")
    if device is None:
        return 2
    facts = describe(device)
    out = options.out or RESULTS / f"counters-{facts['arch']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"device": facts, "cached": options.cached, "rows": {}}
    complete = True
    for rows in options.rows:
        print(f"Llama-3-8B's layer, {rows} rows on {options.cached} tokens", flush=True)
        try:
            done = subprocess.run(command(rows, options.cached), capture_output=True, text=True, timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            found, why = [], f"no end within {RUN_SECONDS} s"
        else:
            found, why = read(done.stdout), (done.stderr or done.stdout)[-500:]
        result["rows"][rows] = found or {"problem": why}
        complete &= bool(found)
        print("\n".join(lines(found)) if found else f"    {why}", flush=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
