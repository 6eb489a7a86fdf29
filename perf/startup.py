"""Seconds that commands take as whole processes, and until the first token, beside `import torch` and its like.

Beside them stand the seconds of CPU that each process took, which hardly depend on what else the machine does: where
it has nothing else to do, the two are alike.

python perf/startup.py [--vocabulary vocab.gguf] [-r 7] [--json FILE]

Commands run in turns, so that a drift of the machine's speed favours none; the table gives the median, the lowest and
the highest. --vocabulary: a file for `info` and `tokenize`, the demo model without it. Kernels and bytecode are there
from a run before that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

Command = tuple[str, ...]
FIRST_TOKEN = "run, to the first token"
ONE_TOKEN = "run, one token"


def commands(vocabulary: str | None) -> dict[str, Command]:
    """By the names that they have in the table."""
    python, model = sys.executable, ("-m", vocabulary) if vocabulary else ()
    naiad = (python, str(Path(python).with_name("naiad")))
    return {
        "python": (python, "-c", ""),
        "import numpy": (python, "-c", "import numpy"),
        "import torch": (python, "-c", "import torch"),
        "naiad --version": (*naiad, "--version"),
        "naiad --help": (*naiad, "--help"),
        "naiad info": (*naiad, "info", *model),
        "naiad tokenize": (*naiad, "tokenize", *model, "-p", "Hello world"),
        ONE_TOKEN: (*naiad, "run", "-p", "Tell me a story about a cat.", "-n", "1", "--temp", "0"),
        FIRST_TOKEN: (*naiad, "run", "-p", "Tell me a story about a cat.", "-n", "50", "--temp", "0"),
    }


def seconds(name: str, command: Command) -> tuple[float, float]:
    """Until the process has ended, or has written its first byte where that is a token; those of CPU, to its end."""
    # As users have it: Python keeps what it has compiled.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = _cpu_seconds()
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
        code = process.wait()
        whole = time.perf_counter() - start
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    return first if name == FIRST_TOKEN else whole, _cpu_seconds() - before


def _cpu_seconds() -> float:
    """Of all processes that were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def measured(chosen: dict[str, Command], repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every run but the first."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for i in range(repetitions + 1):
        for name, command in chosen.items():
            taken = seconds(name, command)
            if i:
                found[name].append(taken)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary")
    parser.add_argument("-r", "--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name, pairs in measured(commands(arguments.vocabulary), arguments.repetitions).items():
        times, cpu = zip(*pairs, strict=True)
        row = (statistics.median(times), min(times), max(times), statistics.median(cpu))
        names = ("median", "lowest", "highest", "cpu")
        results[name] = {key: round(value, 3) for key, value in zip(names, row, strict=True)}
        print("{:26} {:.3f} s [{:.3f} … {:.3f}]   CPU {:.3f} s".format(name, *row))
    if arguments.json:
        record = {"vocabulary": Path(arguments.vocabulary).name if arguments.vocabulary else None, "seconds": results}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
