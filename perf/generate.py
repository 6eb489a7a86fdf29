"""Prompt and generation speed of naiad beside llama.cpp's, on the same file, in the same run, alternating.

python perf/generate.py model.gguf ... [-p 512] [-n 64] [-r 5] [-t 2] [--dequantize auto|on|off]

Without files: the demo model. llama.cpp takes part if the `llama-cpp` extra is installed. The table gives the median
and, in brackets, the lowest and highest of the runs; the ratios are of neighbouring runs, so that a machine whose
speed drifts does not matter. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from naiad import LLM
from naiad.runtime.demo import demo_model
from naiad.runtime.session import Session

Step = Callable[[list[int]], None]


class Naiad:
    name = "naiad"

    def __init__(self, path: str, arguments: argparse.Namespace) -> None:
        self.llm = LLM(path, device="cpu", n_threads=arguments.threads, dequantize=arguments.dequantize)
        self.n_vocab = self.llm.decoder.n_vocab
        self.session = Session(self.llm.decoder, arguments.prompt + arguments.generate + 8)

    def reset(self) -> None:
        self.session.reset()

    def prompt(self, tokens: list[int]) -> None:
        self.session.logits(tokens)

    def token(self, token: int) -> None:
        self.session.logits([token])


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, path: str, arguments: argparse.Namespace) -> None:
        import llama_cpp

        self.llama = llama_cpp.Llama(
            path,
            n_ctx=arguments.prompt + arguments.generate + 8,
            n_batch=512,
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            verbose=False,
        )

    def reset(self) -> None:
        self.llama.reset()

    def prompt(self, tokens: list[int]) -> None:
        self.llama.eval(tokens)

    def token(self, token: int) -> None:
        self.llama.eval([token])


def measure(engine: Naiad | LlamaCpp, prompt: list[int], n_generate: int) -> tuple[float, float]:
    """Tokens per second of the prompt, then of the generation after it (sampling left out on both sides)."""
    engine.reset()
    start = time.perf_counter()
    engine.prompt(prompt)
    middle = time.perf_counter()
    for i in range(n_generate):
        engine.token(prompt[i % len(prompt)])
    end = time.perf_counter()
    return len(prompt) / (middle - start), n_generate / (end - middle)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.2f} [{min(values):.2f} … {max(values):.2f}]"


def compare(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    naiad = Naiad(path, arguments)
    engines: list[Naiad | LlamaCpp] = [naiad]
    try:
        engines.append(LlamaCpp(path, arguments))
    except ImportError:
        print("llama.cpp is not here: pip install naiad-llm[llama-cpp]")
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, naiad.n_vocab, (arguments.prompt,), generator=generator).tolist()
    for engine in engines:
        measure(engine, prompt, 2)
    runs: dict[str, list[tuple[float, float]]] = {e.name: [] for e in engines}
    for _ in range(arguments.repetitions):
        for engine in engines:
            runs[engine.name].append(measure(engine, prompt, arguments.generate))
    print(f"\n{path}\n{naiad.llm.plan.describe(naiad.llm.decoder.config)[-1]}")
    result: dict[str, Any] = {
        "file": path.rsplit("/", 1)[-1],
        "prompt": arguments.prompt,
        "generate": arguments.generate,
    }
    for i, what in enumerate((f"prompt {arguments.prompt}", f"generation {arguments.generate}")):
        key = what.split()[0]
        for name, values in runs.items():
            rates = [v[i] for v in values]
            print(f"  {what:<16} {name:<10} {spread(rates)} t/s")
            result[f"{key} {name}"] = round(statistics.median(rates), 2)
        if len(engines) == 2:
            ratios = [a[i] / b[i] for a, b in zip(runs["naiad"], runs["llama.cpp"], strict=True)]
            print(f"  {what:<16} ratio      {spread(ratios)}")
            result[f"{key} ratio"] = round(statistics.median(ratios), 3)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=[str(demo_model())])
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dequantize", choices=("auto", "on", "off"), default="auto")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(json.dumps([compare(path, arguments) for path in arguments.files]))
