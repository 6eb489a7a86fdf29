"""How long opening a model takes, and the most memory that running it does. Each measurement is a process of its own.

python perf/load.py model.gguf ... [--dequantize auto|on|off] [-r 5]

A file without tensors (a vocabulary) is only opened. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

OPEN = """
import sys, time
from naiad.loaders.gguf import GGUFFile
from naiad.loaders.tokenizer import Tokenizer
start = time.process_time()
file = GGUFFile(sys.argv[1])
middle = time.process_time()
tokenizer = Tokenizer.from_kv(file.kv)
tokenizer.encode("Hello world")
print(middle - start, time.process_time() - middle, len(file.tensors))
"""

# VmHWM counts mapped pages of the file too, so with stored weights they are in it as well.
RUN = """
import json, pathlib, sys
from naiad import LLM
llm = LLM(sys.argv[1], device="cpu", dequantize=sys.argv[2])
llm.generate([1] * 256, max_tokens=16, temperature=0, ignore_eos=True)
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "peak": int(status["VmHWM"].split()[0]) * 1024,
    "weights": llm.plan.file_bytes if llm.plan.weight_dtype is None else llm.plan.decoded_bytes,
    "cache": llm.engine.runner.cache.n_bytes,
}))
"""


def run(program: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True
    ).stdout


def opening(path: str, repetitions: int) -> tuple[list[float], list[float], int]:
    """Seconds of the processor to read the metadata, to build the tokenizer (and use it once); number of tensors."""
    rows = [run(OPEN, path).split() for _ in range(repetitions)]
    return [float(r[0]) for r in rows], [float(r[1]) for r in rows], int(rows[0][2])


def peak_memory(path: str, dequantize: str) -> dict[str, int]:
    """Bytes: the process's peak, the weights in the form they were loaded, the cache. Linux only."""
    result: dict[str, int] = json.loads(run(RUN, path, dequantize))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--dequantize", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    results = []
    for path in arguments.files:
        read, build, n_tensors = opening(path, arguments.repetitions)
        result: dict[str, object] = {"file": path.rsplit("/", 1)[-1]}
        for name, seconds in (("metadata", read), ("tokenizer", build)):
            print(f"{path}: {name} {statistics.median(seconds):.3f} s [{min(seconds):.3f} … {max(seconds):.3f}]")
            result[name] = round(statistics.median(seconds), 3)
        if n_tensors:
            memory = peak_memory(path, arguments.dequantize)
            other = memory["peak"] - memory["weights"] - memory["cache"]
            text = ", ".join(f"{key} {value / 2**20:.0f} MiB" for key, value in memory.items())
            print(f"{path}: {text}, the rest {other / 2**20:.0f} MiB")
            result |= memory
        results.append(result)
    print(json.dumps(results))
