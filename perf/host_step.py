"""What a decode step costs the host, with the device's work left out: scheduling, page tables, inputs, results.

python perf/host_step.py [-n 1,8,64] [--steps 400] [--depth 1000] [--json FILE]

The model is a stand-in that computes nothing and the graph's replay does nothing; all else is what runs on a GPU, with
the copies to and from it made on the CPU. Times are of this machine, so an absolute number says little beyond the
order. The targets: under 200 microseconds for one sequence, under 1 ms for 64.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from naiad.runtime.config import ModelConfig, RopePairing
from naiad.runtime.engine.build import EngineOptions, make_engine
from naiad.runtime.engine.engine import Engine
from naiad.runtime.engine.pages import PAGE_SIZE, GroupSpec
from naiad.runtime.engine.vocabulary import Vocabulary
from naiad.runtime.sampling import Sampled, SamplingParams

N_VOCAB = 1000
TARGETS = {1: 200.0, 64: 1000.0}


def stand_in() -> Any:
    """A model of one small layer that gives the same logits for everything."""
    kv = {
        "llama.block_count": 1,
        "llama.embedding_length": 32,
        "llama.context_length": 131072,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.feed_forward_length": 32,
    }
    config = ModelConfig.read(kv, "llama", RopePairing.NORM)
    ops = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, backends=(), declined={})
    logits = torch.zeros(1, N_VOCAB)
    return SimpleNamespace(
        config=config,
        n_vocab=N_VOCAB,
        input_ops=ops,
        output_ops=ops,
        layers=[SimpleNamespace(ops=ops)],
        forward=lambda batch, cache: logits.expand(
            len(batch.tokens) if batch.output_rows is None else len(batch.output_rows), -1
        ).clone(),
    )


def never_replayed(function: Callable[[], Sampled]) -> tuple[Callable[[], object], Sampled]:
    result = function()
    return (lambda: None), result


def make(n_seqs: int, depth: int, steps: int) -> Engine:
    n_pages = 2 + n_seqs * (-(-(depth + steps + 64) // PAGE_SIZE))
    return make_engine(
        stand_in(),
        Vocabulary(N_VOCAB),
        n_ctx=depth + steps + 64,
        k_type="f16",
        v_type="f16",
        groups=[GroupSpec(n_pages, 0)],
        options=EngineOptions(n_batch=2048, max_seqs=n_seqs, overlap=True),
        capture=never_replayed,
    )


def measure(n_seqs: int, depth: int, steps: int, params: SamplingParams) -> list[float]:
    """Microseconds of each of the steps in which all sequences get a token."""
    engine = make(n_seqs, depth, steps)
    for i in range(n_seqs):
        engine.submit([(i + j) % N_VOCAB for j in range(depth)], params)
    while engine.scheduler.n_waiting or engine.scheduler.prompts:
        engine.step()
    for _ in range(8):
        engine.step()
    times = []
    for _ in range(steps):
        start = time.perf_counter_ns()
        engine.step()
        times.append((time.perf_counter_ns() - start) / 1000)
    assert len(engine.scheduler.streams) == n_seqs, "not all sequences took part"
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--json", help="write the numbers there, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = SamplingParams(ignore_eos=True)
    rows = []
    print("sequences   median us    lowest … 95 %      target us")
    for n in arguments.n:
        times = sorted(measure(n, arguments.depth, arguments.steps, params))
        median, low, high = statistics.median(times), times[0], times[int(len(times) * 0.95)]
        target = TARGETS.get(n)
        print(f"{n:>9}   {median:9.1f}    {low:6.1f} … {high:6.1f}   {target or '':>10}")
        rows.append({"sequences": n, "median_us": round(median, 1), "low_us": round(low, 1), "p95_us": round(high, 1)})
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"depth": arguments.depth, "steps": arguments.steps, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
