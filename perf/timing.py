"""What the programs that time kernels share: the card, random weights, timing, worker processes.

A candidate is timed as a list of calls that do the same with copies of the weights. The copies together exceed every
cache, so that each call reads its weights from memory, as a model does that has other layers in between.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import stand_in
import torch
from random_weights import random_rows

from naiad.quant.formats import Format
from naiad.triton_kernels.tuning import arch_of
from naiad.triton_kernels.weights import PackedWeight

stand_in.install()

Call = Callable[[], object]
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

# More than the 256 MB of the largest last-level cache there is (MI300X).
ROTATION_BYTES = 512 * 2**20
REPEATS = 5
# How long a repeat of one candidate shall take.
REPEAT_US = 10_000.0
# Memory on the card that a worker process may need.
WORKER_BYTES = 6 * 2**30
# How long a call in a worker process may take.
CALL_SECONDS = 300

# ---- the card ---------------------------------------------------------------------------------------------------


def find_device(name: str) -> torch.device | None:
    """The device to run on, or None, with a message on stderr, where nothing can run the kernels there."""
    device = torch.device(name)
    if device.type == "cuda" and torch.cuda.is_available():
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
        return device
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return device
    if device.type == "cpu":
        print("on a CPU only Triton's interpreter runs the kernels: set TRITON_INTERPRET=1", file=sys.stderr)
    else:
        print(f"no {device.type} device here: this needs a GPU with CUDA or ROCm", file=sys.stderr)
    return None


def find_card_and(tool: str, origin: str) -> torch.device | None:
    """The card, or None, with a message on stderr, where there is none or no such program."""
    device = find_device("cuda")
    if device is not None and shutil.which(tool) is None:
        print(f"no {tool} here: it comes with {origin}", file=sys.stderr)
        return None
    return device


def describe(device: torch.device) -> dict[str, Any]:
    """Name and size of the card, versions of the software."""
    facts: dict[str, Any] = {
        "arch": arch_of(device),
        "torch": torch.__version__,
        "triton": getattr(sys.modules["triton"], "__version__", "unknown"),
        "python": sys.version.split()[0],
        **({"codebooks": "random: the gguf package is not installed"} if stand_in.needed() else {}),
    }
    if device.type != "cuda":
        return {"card": device.type, **facts}
    card = torch.cuda.get_device_properties(device)
    facts["cuda" if torch.version.cuda else "hip"] = torch.version.cuda or torch.version.hip
    return {
        "card": card.name,
        **facts,
        "memory_bytes": card.total_memory,
        "multiprocessors": card.multi_processor_count,
        "l2_bytes": card.L2_cache_size,
        **nvidia_smi(device, "driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit"),
    }


def clocks(device: torch.device) -> dict[str, str]:
    """MHz, watts and degrees at this moment; empty where nvidia-smi does not know."""
    return nvidia_smi(device, "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def nvidia_smi(device: torch.device, *fields: str) -> dict[str, str]:
    """Fields of `nvidia-smi --query-gpu`; empty where there is no such program or it does not know the card."""
    # By its id: nvidia-smi counts all cards, torch those that CUDA_VISIBLE_DEVICES lets it see.
    card = f"GPU-{getattr(torch.cuda.get_device_properties(device), 'uuid', '')}"
    command = ["nvidia-smi", "-i", card, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in output.split(",")), strict=False))


# ---- weights ----------------------------------------------------------------------------------------------------


def random_weight(fmt: Format, n_out: int, n_in: int, device: torch.device, seed: int = 0) -> PackedWeight:
    return PackedWeight.pack(random_rows(fmt, n_out, n_in, device, seed), fmt, (n_out, n_in))


def n_copies(n_bytes: int, device: torch.device) -> int:
    """Copies of weights of so many bytes that together exceed the caches. One on a CPU, where speed means nothing."""
    return -(-ROTATION_BYTES // n_bytes) if device.type == "cuda" else 1


def copies(weight: PackedWeight, n: int) -> list[PackedWeight]:
    """The weight and n - 1 more with the same content elsewhere in memory."""
    return [weight] + [PackedWeight(weight.format, weight.shape, weight.data.clone()) for _ in range(n - 1)]


# ---- timing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Times:
    """Microseconds per call: median, lowest and highest of the repeats. graph: without the cost of launching."""

    median: float
    low: float
    high: float
    graph: bool


class _Prepared:
    """Calls, captured in a CUDA graph where that is possible."""

    def __init__(self, calls: Sequence[Call], device: torch.device) -> None:
        self.calls, self.device = calls, device
        self.graph: torch.cuda.CUDAGraph | None = None
        self.loops = 1
        calls[0]()  # compiles, and fails where the candidate cannot run
        if device.type == "cuda":
            # Libraries that try several kernels may do so in the first few calls.
            calls[0]()
            calls[0]()
            torch.cuda.synchronize(device)
            self._capture()
            self.elapsed()
            self.loops = max(1, min(1000, math.ceil(REPEAT_US / (self.elapsed() * len(calls)))))

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._call_each()
        except RuntimeError:
            # A capture that fails does not leave its stream.
            torch.cuda.set_stream(torch.cuda.default_stream(self.device))
            torch.cuda.synchronize(self.device)
        else:
            self.graph = graph

    def _call_each(self) -> None:
        for call in self.calls:
            call()

    def elapsed(self) -> float:
        """Microseconds per call."""
        run = self.graph.replay if self.graph is not None else self._call_each
        n_calls = self.loops * len(self.calls)
        if self.device.type != "cuda":
            start_time = time.perf_counter()
            run()
            return (time.perf_counter() - start_time) * 1e6 / len(self.calls)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(self.loops):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / n_calls


def measure(
    candidates: Mapping[K, Sequence[Call]], device: torch.device, repeats: int = REPEATS
) -> tuple[dict[K, Times], dict[K, str]]:
    """Times of the candidates, which take turns; and what the others, which cannot run here, failed with."""
    prepared: dict[K, _Prepared] = {}
    failed: dict[K, str] = {}
    for key, calls in candidates.items():
        try:
            prepared[key] = _Prepared(calls, device)
        except Exception as error:  # whatever a compiler, a driver or another library raises
            failed[key] = first_line(error)
    values: dict[K, list[float]] = {key: [] for key in prepared}
    for _ in range(repeats):
        for key, candidate in prepared.items():
            values[key].append(candidate.elapsed())
    times = {
        key: Times(statistics.median(values[key]), min(values[key]), max(values[key]), prepared[key].graph is not None)
        for key in prepared
    }
    return times, failed


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


# ---- what the card can do ---------------------------------------------------------------------------------------


def card_limits(device: torch.device) -> dict[str, Any]:
    """Bandwidths in GB/s, bf16 products in TFLOP/s, clocks while they run."""
    free = torch.cuda.mem_get_info(device)[0]
    x = torch.ones(min(2**32, free // 4) // 2**20 * 2**18, device=device)
    matrix, vector, y = x.view(-1, 2**14), torch.ones(2**14, device=device), torch.empty_like(x)
    calls: dict[str, Callable[[], object]] = {"sum": x.sum, "max": x.amax, "mv": lambda: torch.mv(matrix, vector)}
    times, _ = measure({**{key: [call] for key, call in calls.items()}, "copy": [lambda: y.copy_(x)]}, device)
    copy = times.pop("copy")
    limits: dict[str, Any] = {
        "read_gb_s": round(max(x.nbytes / t.low for t in times.values()) / 1e3, 1),
        "copy_gb_s": round(2 * x.nbytes / copy.low / 1e3, 1),
    }
    for n in (4096, 8192):
        a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
        times, _ = measure({"mm": [partial(torch.mm, a, b.t())]}, device)
        limits[f"mm_{n}_tflops"] = round(2 * n**3 / times["mm"].median / 1e6, 1)
    for _ in range(int(1e6 / times["mm"].median)):  # busy for a second, meanwhile the clocks are read
        torch.mm(a, b.t())
    limits["clocks"] = clocks(device)
    torch.cuda.synchronize(device)
    return limits


# ---- worker processes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lost:
    """In place of a result that never came: why."""

    reason: str


class Map(Protocol):
    """Like the built-in map, as a list."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T]) -> list[R | Lost]: ...


class Worker:
    """A process for one call at a time. Where a call ends it, takes too long or leaves the device unusable, the next
    call gets a new one: what one kernel does wrong does not become the failure of others."""

    def __init__(self) -> None:
        self._process: Any = None

    def __call__(self, function: Callable[[T], R], item: T) -> R | Lost:
        if self._process is None:
            self._start()
        try:
            self._pipe.send((function, item))
            if not self._pipe.poll(CALL_SECONDS):
                self.stop()
                return Lost(f"no result within {CALL_SECONDS} s")
            result, usable = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.stop()
            return Lost(f"the process ended with exit code {code}")
        if not usable:
            self.stop()
        found: R | Lost = result
        return found

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there,), daemon=True)
        self._process.start()
        there.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any) -> None:
    usable = True
    while usable:
        try:
            function, item = pipe.recv()
        except EOFError:
            return
        result = _attempt(function, item)
        usable = _usable()
        pipe.send((result, usable))


def _attempt(function: Callable[[T], R], item: T) -> R | Lost:
    try:
        return function(item)
    except Exception as error:  # whatever a compiler or a driver raises
        return Lost(first_line(error))


def _usable() -> bool:
    """Whether the device still answers: after an illegal access it never does again in the same process."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception:
        return False
    return True


@contextmanager
def workers(jobs: int) -> Iterator[Map]:
    """A map over so many processes; 0: in this one. Compiling is what takes long, and what they compile lands in
    Triton's cache."""
    if jobs == 0:
        yield lambda function, items: [_attempt(function, item) for item in items]
        return
    idle: SimpleQueue[Worker] = SimpleQueue()
    made = [Worker() for _ in range(jobs)]
    for worker in made:
        idle.put(worker)

    def call(function: Callable[[T], R], item: T) -> R | Lost:
        worker = idle.get()
        try:
            return worker(function, item)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            yield lambda function, items: list(pool.map(partial(call, function), items))
    finally:
        for worker in made:
            worker.stop()


def default_jobs(device: torch.device) -> int:
    """Three quarters of the cores, as far as the card's memory goes; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    room = torch.cuda.get_device_properties(device).total_memory // WORKER_BYTES
    return int(max(1, min(12, (os.cpu_count() or 1) * 3 // 4, room)))
