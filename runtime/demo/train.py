"""Trains the demo model on the CPU and writes its GGUF file: python -m naiad.runtime.demo.train"""

from __future__ import annotations

import argparse
import itertools
import math
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
BATCH = 4
WARMUP_STEPS = 50
MATRIX_RATE = 0.02
OTHER_RATE = 3e-3
LOG_EVERY = 20
SAVE_EVERY = 200


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are made orthogonal (Jordan et al. 2024, "Muon").

    It needs about half the tokens of AdamW for the same loss here.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                velocity = self.state[p]["velocity"]
                velocity.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(velocity, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with all singular values near 1, by five Newton-Schulz steps."""
    x: Tensor = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def rate_at(step: int, steps: int) -> float:
    """The learning rate's factor: a linear rise, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS))


def batches(rows: Iterator[list[int]]) -> Iterator[Tensor]:
    """Token ids [BATCH, n_ctx + 1]."""
    while True:
        yield torch.tensor(list(itertools.islice(rows, BATCH)))


def train(seed: int, steps: int, out: Path, config: DemoConfig) -> None:
    """Trains for `steps` batches from `seed` alone and writes `out`; on the way snapshots lie beside it."""
    torch.manual_seed(seed)
    torch.set_flush_denormal(True)
    texts = (document.render() for document in generate(seed, TOKENIZER_DOCUMENTS))
    tokenizer = train_tokenizer(texts, config.n_vocab)
    data = batches(pack(generate(seed + 1, ENDLESS), tokenizer, config.n_ctx + 1))
    model = DemoModel(config)
    matrices = [p for p in model.blk.parameters() if p.ndim == 2]
    others = [model.token_embd.weight, *(p for p in model.parameters() if p.ndim == 1)]
    optimizers = (
        Muon(matrices, MATRIX_RATE),
        torch.optim.AdamW(others, OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    )
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: rate_at(step, steps)) for o in optimizers]
    n_parameters = sum(p.numel() for p in model.parameters())
    log(f"{n_parameters:,} parameters, {steps} steps of {BATCH * config.n_ctx} tokens, seed {seed}")
    snapshot = out.with_suffix(".partial.gguf")
    started, total = time.monotonic(), 0.0
    for step in range(steps):
        ids = next(data)
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        total += loss.item()
        if (step + 1) % LOG_EVERY == 0:
            speed = (step + 1) * BATCH * config.n_ctx / (time.monotonic() - started)
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
    parser.add_argument("--steps", type=int, default=1800, help="batches of 2048 tokens (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; other numbers round differently")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("naiad-demo.gguf"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.seed, arguments.steps, arguments.out, DemoConfig())


if __name__ == "__main__":
    main()
