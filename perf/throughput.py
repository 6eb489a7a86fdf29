"""Tokens per second of requests that run together, by their number, beside llama.cpp's server on the same file.

python perf/throughput.py model.gguf ... [--server llama-server] [-c 1,2,4,8,16,32] [-p 64] [-n 64] [-r 3] [-t 2]
                          [--json FILE] [--svg FILE]

Without files: the demo model. Both get the same random prompts of -p/2 to -p tokens that share nothing, and generate -n
tokens each at temperature 0. naiad is called from Python; llama.cpp's server, where --server finds it, over HTTP, with
as many slots as requests. Runs alternate; the table gives the median of the ratios and, in brackets, the lowest and
the highest. The first number of -c is what the others are compared with.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from naiad import LLM, SamplingParams
from naiad.runtime.demo import demo_model

Prompts = Sequence[list[int]]
Record = dict[str, Any]

# So many requests are timed at least, however few run at a time.
MIN_REQUESTS = 8


class Naiad:
    def __init__(self, path: str, arguments: argparse.Namespace) -> None:
        n_ctx = arguments.prompt + arguments.generate + 8
        self.llm = LLM(path, device="cpu", n_threads=arguments.threads, n_ctx=n_ctx, max_seqs=max(arguments.concurrent))
        self.params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=arguments.generate)

    def run(self, prompts: Prompts) -> None:
        self.llm.engine.forget()
        for completion in self.llm.generate(prompts, self.params):
            assert len(completion.tokens) == self.params.max_tokens, completion.error

    def close(self) -> None:
        self.llm.close()


class LlamaServer:
    """A server process with as many slots as there are requests."""

    def __init__(self, path: str, arguments: argparse.Namespace) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.n_generate, self.n_slots = arguments.generate, max(arguments.concurrent)
        n_ctx = self.n_slots * (-(-(arguments.prompt + arguments.generate + 8) // 256) * 256)
        command = [arguments.server, "-m", path, "--port", str(self.port), "-np", str(self.n_slots), "-c", str(n_ctx)]
        threads = str(arguments.threads)
        self.process = subprocess.Popen(
            [*command, "-t", threads, "-tb", threads], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait()

    def _wait(self) -> None:
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health") as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise RuntimeError("the server does not become ready")

    def _complete(self, prompt: list[int]) -> None:
        body: dict[str, Any] = {"prompt": prompt, "n_predict": self.n_generate, "temperature": 0}
        body |= {"ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["tokens_predicted"] == self.n_generate

    def run(self, prompts: Prompts) -> None:
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(self._complete, prompts))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def timed(engine: Naiad | LlamaServer, prompts: Prompts, n: int, n_generate: int) -> float:
    """Generated tokens per second of n requests at a time, prompts included in the time."""
    start = time.perf_counter()
    n_rounds = max(1, MIN_REQUESTS // n)
    for i in range(n_rounds):
        first = i * n % len(prompts)
        engine.run(prompts[first : first + n])
    return n_rounds * n * n_generate / (time.perf_counter() - start)


def spread(values: Sequence[float]) -> list[float]:
    return [round(f(values), 3) for f in (statistics.median, min, max)]


def text(values: Sequence[float]) -> str:
    median, low, high = spread(values)
    return f"{median:8.2f} [{low:.2f} … {high:.2f}]"


def compare(path: str, arguments: argparse.Namespace) -> Record:
    engines: dict[str, Naiad | LlamaServer] = {"naiad": Naiad(path, arguments)}
    if shutil.which(arguments.server):
        engines["llama.cpp"] = LlamaServer(path, arguments)
    else:
        print(f"{arguments.server} is not here, so llama.cpp does not take part")
    try:
        rates = measure(engines, arguments)
    finally:
        for engine in engines.values():
            engine.close()
    print(f"\n{path}, tokens per second")
    base = arguments.concurrent[0]
    result: Record = {"file": path.rsplit("/", 1)[-1], "requests": arguments.concurrent, "growth": {}, "ratio": {}}
    for name in engines:
        for n in arguments.concurrent:
            growth = [x / y for x, y in zip(rates[name, n], rates[name, base], strict=True)]
            print(f"  {name:<10} {n:>4} requests {text(rates[name, n])}   / {base} {text(growth)}")
            result["growth"].setdefault(name, []).append(spread(growth))
    for n in arguments.concurrent if len(engines) == 2 else ():
        ratios = [x / y for x, y in zip(rates["naiad", n], rates["llama.cpp", n], strict=True)]
        print(f"  naiad / llama.cpp {n:>4} requests {text(ratios)}")
        result["ratio"][n] = spread(ratios)
    return result


def measure(
    engines: dict[str, Naiad | LlamaServer], arguments: argparse.Namespace
) -> dict[tuple[str, int], list[float]]:
    """Rates by engine and number of requests, one of every run."""
    naiad = engines["naiad"]
    assert isinstance(naiad, Naiad)
    generator = torch.Generator().manual_seed(0)
    n_prompts = max(MIN_REQUESTS, *arguments.concurrent)
    lengths = torch.randint(arguments.prompt // 2, arguments.prompt + 1, (n_prompts,), generator=generator)
    n_vocab = naiad.llm.decoder.n_vocab
    prompts = [torch.randint(0, n_vocab, (n,), generator=generator).tolist() for n in lengths.tolist()]
    rates: dict[tuple[str, int], list[float]] = {(name, n): [] for name in engines for n in arguments.concurrent}
    for repetition in range(arguments.repetitions + 1):
        for n in arguments.concurrent:
            for name, engine in engines.items():
                rate = timed(engine, prompts, n, arguments.generate)
                # The first time warms up.
                if repetition:
                    rates[name, n].append(rate)
    return rates


def plot(result: Record) -> str:
    """An SVG picture: how the rates grow with the number of requests."""
    requests, width, height = result["requests"], 560, 300
    top = max(value[0] for values in result["growth"].values() for value in values)

    def place(i: int, value: float) -> tuple[float, float]:
        return 60 + i * (width - 160) / max(1, len(requests) - 1), height - 40 - value / top * (height - 70)

    def label(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        label(60, 18, f"tokens per second, as multiples of one request ({result['file']})", "start"),
        label(width / 2 - 20, height - 8, "requests at a time"),
    ]
    for value in range(0, int(top) + 1):
        _, y = place(0, value)
        parts.append(f'<line x1="52" x2="{width - 92}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        parts.append(label(46, y + 4, str(value), "end"))
    parts += [label(place(i, 0)[0], height - 24, str(n)) for i, n in enumerate(requests)]
    for (name, values), colour in zip(result["growth"].items(), ("#0a6", "#888"), strict=False):
        places = [place(i, value[0]) for i, value in enumerate(values)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        parts.append(label(places[-1][0] + 10, places[-1][1] + 4, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def numbers(words: str) -> list[int]:
    return [int(word) for word in words.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=[str(demo_model())])
    parser.add_argument("--server", default="llama-server", help="llama.cpp's server")
    parser.add_argument("-c", "--concurrent", type=numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("-p", "--prompt", type=int, default=64)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the ratios there, too")
    parser.add_argument("--svg", help="write a picture of the first file's rates there")
    arguments = parser.parse_args()
    results = [compare(path, arguments) for path in arguments.files]
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    if arguments.svg:
        with open(arguments.svg, "w", encoding="utf-8") as file:
            file.write(plot(results[0]))
