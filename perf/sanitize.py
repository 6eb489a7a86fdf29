"""The checks of kernels.py under compute-sanitizer: out-of-bounds and misaligned accesses, races, uninitialised reads.

python perf/sanitize.py [--tools memcheck,racecheck] [--only layer,attention,experts,small,linear] [--out FILE]

One run for each tool and part. Every tensor is an allocation of its own, so that what lies behind one is nobody's.
racecheck sees shared memory only. Results go to results/sanitize-<architecture>.json. Exit code 1: something was found
or a run broke off; 2: no device or no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels import PARTS, RESULTS
from timing import describe, find_card_and

TOOLS = ("memcheck", "racecheck")
KERNELS = Path(__file__).with_name("kernels.py")
RUN_SECONDS = 280
# Lines of a report that are kept.
KEPT = 40


def command(tool: str, part: str) -> list[str]:
    checks = [sys.executable, str(KERNELS), "--quick", "--checks", "-j", "0", "--only", part]
    return ["compute-sanitizer", "--tool", tool, "--target-processes", "all", *checks]


def run(tool: str, part: str) -> dict[str, Any]:
    """What was found (None where the run did not come to its end), the exit code, and the report's first lines."""
    start = time.monotonic()
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command(tool, part), capture_output=True, text=True, env=environment, timeout=RUN_SECONDS)
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output, code = (late.stdout or b"").decode(errors="replace"), None
    return {
        "found": n_found(output),
        "exit_code": code,
        "seconds": round(time.monotonic() - start),
        "report": [line for line in output.splitlines() if line.startswith("=========")][:KEPT],
        "end": output.splitlines()[-3:],
    }


def n_found(output: str) -> int | None:
    """The number in the report's summary. A tool sums up every process that it has seen."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", output)
    return sum(map(int, summaries)) if summaries else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = lambda text: tuple(text.split(","))  # noqa: E731
    parser.add_argument("--tools", type=names, default=TOOLS, help=f"by default {','.join(TOOLS)}; also initcheck")
    parser.add_argument("--only", type=names, default=tuple(PARTS), help=f"of {','.join(PARTS)}; by default all")
    parser.add_argument("--out", type=Path, help="by default results/sanitize-<architecture>.json")
    options = parser.parse_args(argv)
    device = find_card_and("compute-sanitizer", "CUDA's toolkit")
    if device is None:
        return 2
    facts = describe(device)
    out = options.out or RESULTS / f"sanitize-{facts['arch']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"device": facts, "runs": {}}
    clean = True
    for tool in options.tools:
        for part in options.only:
            found = run(tool, part)
            clean &= found["found"] == 0 and found["exit_code"] == 0
            what = "broke off" if found["found"] is None else f"{found['found']} found"
            print(f"{tool} {part}: {what}, exit code {found['exit_code']}, {found['seconds']} s", flush=True)
            print("".join(f"    {line}\n" for line in found["report"][:8] if found["found"]), end="", flush=True)
            result["runs"][f"{tool} {part}"] = found
            out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
