"""Tokens per second of many requests at once, beside one at a time, and beside llama.cpp's server on the same file.

python perf/throughput.py model.gguf ... [--server llama-server] [-c 32] [-p 64] [-n 64] [-r 3] [-t 2] [--json FILE]

Without files: the demo model. Both get the same random prompts of -p/2 to -p tokens that share nothing, and generate -n
tokens each at temperature 0. naiad is called from Python; llama.cpp's server, where --server finds it, over HTTP, with
as many slots as requests. Runs alternate; the table gives the median of the ratios and, in brackets, the lowest and
the highest.
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


class Naiad:
    def __init__(self, path: str, arguments: argparse.Namespace) -> None:
        n_ctx = arguments.prompt + arguments.generate + 8
        self.llm = LLM(path, device="cpu", n_threads=arguments.threads, n_ctx=n_ctx, max_seqs=arguments.concurrent)
        self.params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=arguments.generate)

    def together(self, prompts: Prompts) -> None:
        self.llm.engine.forget()
        for completion in self.llm.generate(prompts, self.params):
            assert len(completion.tokens) == self.params.max_tokens, completion.error

    def one_by_one(self, prompts: Prompts) -> None:
        self.llm.engine.forget()
        for prompt in prompts:
            self.llm.generate(prompt, self.params)

    def close(self) -> None:
        self.llm.close()


class LlamaServer:
    """A server process with as many slots as there are requests."""

    def __init__(self, path: str, arguments: argparse.Namespace) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.n_generate, self.n_slots = arguments.generate, arguments.concurrent
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

    def together(self, prompts: Prompts) -> None:
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(self._complete, prompts))

    def one_by_one(self, prompts: Prompts) -> None:
        for prompt in prompts:
            self._complete(prompt)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def timed(run: Any, prompts: Prompts, n_generate: int) -> float:
    """Generated tokens per second, prompts included in the time."""
    start = time.perf_counter()
    run(prompts)
    return len(prompts) * n_generate / (time.perf_counter() - start)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):8.2f} [{min(values):.2f} … {max(values):.2f}]"


def compare(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    engines: dict[str, Naiad | LlamaServer] = {"naiad": Naiad(path, arguments)}
    if shutil.which(arguments.server):
        engines["llama.cpp"] = LlamaServer(path, arguments)
    else:
        print(f"{arguments.server} is not here, so llama.cpp does not take part")
    try:
        return _compare(path, engines, arguments)
    finally:
        for engine in engines.values():
            engine.close()


def _compare(path: str, engines: dict[str, Naiad | LlamaServer], arguments: argparse.Namespace) -> dict[str, Any]:
    first = engines["naiad"]
    assert isinstance(first, Naiad)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(arguments.prompt // 2, arguments.prompt + 1, (arguments.concurrent,), generator=generator)
    n_vocab = first.llm.decoder.n_vocab
    prompts = [torch.randint(0, n_vocab, (n,), generator=generator).tolist() for n in lengths.tolist()]
    for engine in engines.values():
        engine.together(prompts[:2])
    rates: dict[str, list[float]] = {f"{name} {how}": [] for how in ("together", "one by one") for name in engines}
    for _ in range(arguments.repetitions):
        for how, method in (("together", "together"), ("one by one", "one_by_one")):
            for name, engine in engines.items():
                rate = timed(getattr(engine, method), prompts, arguments.generate)
                rates[f"{name} {how}"].append(rate)
    print(f"\n{path}: {arguments.concurrent} requests")
    for what, values in rates.items():
        print(f"  {what:<32} {spread(values)} t/s")
    pairs = [(f"{name} together", f"{name} one by one") for name in engines]
    if len(engines) == 2:
        pairs += [(f"naiad {how}", f"llama.cpp {how}") for how in ("together", "one by one")]
    result: dict[str, Any] = {"file": path.rsplit("/", 1)[-1], "requests": arguments.concurrent}
    for a, b in pairs:
        ratios = [x / y for x, y in zip(rates[a], rates[b], strict=True)]
        print(f"  {a + ' / ' + b:<48} {spread(ratios)}")
        result[f"{a} / {b}"] = [round(f(ratios), 3) for f in (statistics.median, min, max)]
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=[str(demo_model())])
    parser.add_argument("--server", default="llama-server", help="llama.cpp's server")
    parser.add_argument("-c", "--concurrent", type=int, default=32)
    parser.add_argument("-p", "--prompt", type=int, default=64)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the ratios there, too")
    arguments = parser.parse_args()
    results = [compare(path, arguments) for path in arguments.files]
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
