"""What launching the kernels of a layer costs the host, where no graph replays them: in prompts.

python perf/host_launch.py [--rows 1,40] [--repeats 500] [--json FILE]

Kernels are compiled for sm_90 and launched by Triton on a driver that does nothing, so that what is timed is naiad's
Python and Triton's. The layer is Llama-3-8B's with smaller matrices. Times are of this machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import bench_layer
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from naiad.runtime.backends import triton as backend
from naiad.runtime.ops import Stream
from naiad.triton_kernels import attention, experts, linear, router, weights

ARCH = GPUTarget("cuda", 90, 32)
LAYER = bench_layer.Dense("llama", 1024, 8, 2, 128, 2048)
CACHED = 511


class NoLauncher:
    """Counts the launches of all kernels."""

    launches = 0

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        NoLauncher.launches += 1


class NoDriver:
    """A card that takes every kernel and runs none."""

    launcher_cls = NoLauncher

    class utils:  # as Triton calls it
        @staticmethod
        def load_binary(*arguments: Any) -> tuple[int, ...]:
            return 0, 0, 64, 0, 1024

        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

        @staticmethod
        def unload_module(*arguments: Any) -> None:
            pass

    def get_current_target(self) -> GPUTarget:
        return ARCH

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def measure(rows: int, repeats: int) -> dict[str, Any]:
    """Launches of a layer, and the microseconds that the host takes for them: median and lowest."""
    device = torch.device("cpu")
    step = bench_layer.make_step(bench_layer.Case(LAYER, CACHED, rows), 1, device)
    ops = backend.TritonOps(device, torch.bfloat16)
    (first, second), cache = step.layers[0], step.caches[0]

    def layer(stream: Stream) -> Stream:
        middle = ops.attention_block(first, stream, following=second, angles=step.angles, cache=cache, batch=step.batch)
        assert isinstance(middle, Stream)
        found = ops.mlp_block(second, middle, first)
        assert isinstance(found, Stream)
        return found

    stream = layer(layer(Stream(step.x)))
    before, times = NoLauncher.launches, []
    for _ in range(repeats):
        start = time.perf_counter()
        layer(stream)
        times.append((time.perf_counter() - start) * 1e6)
    launches = (NoLauncher.launches - before) / repeats
    return {"rows": rows, "launches": launches, "us": [round(statistics.median(times)), round(min(times))]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: tuple(map(int, text.split(",")))  # noqa: E731
    parser.add_argument("--rows", type=numbers, default=(1, 40), help="by default 1,40")
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    driver.set_active(NoDriver())
    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(bench_layer, "half", lambda device: torch.bfloat16))
        for module in (attention, experts, linear, router, weights, backend):
            patches.enter_context(mock.patch.object(module, "arch_of", lambda device: "sm_90"))
        found = [measure(rows, options.repeats) for rows in options.rows]
    for record in found:
        median, low = record["us"]
        each = median / record["launches"]
        print(f"{record['rows']} rows: {record['launches']:g} launches, {median} µs, at best {low}; {each:.0f} µs each")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
