"""Trains the demo model on the CPU and writes its GGUF file: python -m naiad.runtime.demo.train"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import generate
from .export import write_gguf
from .model import DemoConfig, DemoModel
from .tokens import pack, train_tokenizer

TOKENIZER_DOCUMENTS = 20_000
ENDLESS = 1_000_000_000
BATCH = 8
ROW = 256
WARMUP_STEPS = 30
RATE = 4e-3
LOG_EVERY = 20
SAVE_EVERY = 200


def rate_at(step: int, steps: int) -> float:
    """The learning rate's factor: a linear rise, then level, then a linear fall over the last 40 %."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (0.4 * steps))


def batches(rows: Iterator[list[int]]) -> Iterator[Tensor]:
    """Token ids [BATCH, ROW + 1]."""
    while True:
        yield torch.tensor(list(itertools.islice(rows, BATCH)))


def train(seed: int, steps: int, out: Path, config: DemoConfig) -> None:
    """Trains for `steps` batches from `seed` alone and writes `out`; on the way snapshots lie beside it."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    texts = (document.render() for document in generate(seed, TOKENIZER_DOCUMENTS))
    tokenizer = train_tokenizer(texts, config.n_vocab)
    data = batches(pack(generate(seed + 1, ENDLESS), tokenizer, ROW + 1))
    model = DemoModel(config)
    matrices = [p for p in model.blk.parameters() if p.ndim == 2]
    others = [model.token_embd.weight, *(p for p in model.parameters() if p.ndim == 1)]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    n_parameters = sum(p.numel() for p in model.parameters())
    log(f"{n_parameters:,} parameters, {steps} steps of {BATCH * ROW} tokens, seed {seed}")
    snapshot = out.with_suffix(".partial.gguf")
    started, total = time.monotonic(), 0.0
    for step in range(steps):
        ids = next(data)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.item()
        if (step + 1) % LOG_EVERY == 0:
            speed = (step + 1) * BATCH * ROW / (time.monotonic() - started)
            log(f"step {step + 1}: loss {total / LOG_EVERY:.4f}, {speed:.0f} tokens/s")
            total = 0.0
        if (step + 1) % SAVE_EVERY == 0:
            write_gguf(snapshot, model, tokenizer)
    write_gguf(out, model, tokenizer)
    snapshot.unlink(missing_ok=True)
    log(f"{out}: {out.stat().st_size:,} bytes after {time.monotonic() - started:.0f} s")


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2200, help="batches of 2048 tokens (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; other numbers round differently")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("naiad-demo.gguf"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.seed, arguments.steps, arguments.out, DemoConfig())


if __name__ == "__main__":
    main()
