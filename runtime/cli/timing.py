"""Times an engine: prompts, generation, at any depth of the cache. What is timed are random tokens of a fixed seed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..sampling import SamplingParams

SEED = 1
# Tokens that a context has beside those of a test: what is sampled, and a page that is copied to be continued.
SPARE_TOKENS = 64


class Handle(Protocol):
    """A request under way: its tokens so far, and why it ended."""

    @property
    def tokens(self) -> Sequence[int]: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...


class Engine(Protocol):
    """What is timed. step: does one step, false if there was nothing to do. forget: drops all idle prefixes."""

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> Handle: ...
    def step(self) -> bool: ...
    def forget(self) -> None: ...
    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Case:
    """What is timed: tokens of a prompt, steps of one token after it, and tokens that are in the cache before."""

    n_prompt: int
    n_gen: int
    n_depth: int

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_gen + self.n_depth


class RandomTokens:
    """Token ids from a fixed seed; a text begins with the token that texts of this model begin with."""

    def __init__(self, tokenizer: Any) -> None:
        self.n_vocab = tokenizer.n_vocab
        self.first = tokenizer.bos_id if tokenizer.add_bos else None
        self.random = random.Random(SEED)

    def text(self, n: int) -> list[int]:
        ids = self.more(n)
        return ids if self.first is None or not ids else [self.first, *ids[1:]]

    def more(self, n: int) -> list[int]:
        return [self.random.randrange(self.n_vocab) for _ in range(n)]


def measure(engine: Engine, tokens: RandomTokens, case: Case) -> int:
    """Nanoseconds of a case, from an empty cache.

    A prompt is timed with the token that is sampled after it, as many steps of one token follow as there are to
    generate. Without a prompt, the clock starts with the first token.
    """
    engine.forget()
    before = tokens.text(case.n_depth)
    if before:
        finish(engine, [engine.submit(before, greedy(1))])
    n_new = case.n_prompt or 1
    prompt = [*before, *tokens.more(n_new)] if before else tokens.text(n_new)
    engine.synchronize()
    start = time.perf_counter_ns()
    handle = engine.submit(prompt, greedy(case.n_gen + 1))
    if not case.n_prompt:
        advance(engine, [handle], lambda: bool(handle.tokens))
        start = time.perf_counter_ns()
    finish(engine, [handle])
    return max(1, time.perf_counter_ns() - start)


def greedy(n: int) -> SamplingParams:
    """The likeliest tokens, n of them whatever they are."""
    return SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True)


def finish(engine: Engine, handles: Sequence[Handle]) -> None:
    """Steps until all have ended. ValueError for a request that failed or did not get its tokens."""
    advance(engine, handles, lambda: all(handle.finish_reason is not None for handle in handles))
    for handle in handles:
        if handle.finish_reason != "length":
            raise ValueError(f"a request ended with {handle.finish_reason!r}: {handle.error}")


def advance(engine: Engine, handles: Sequence[Handle], done: Callable[[], bool]) -> None:
    """Steps until it is done or all have ended."""
    while not done() and any(handle.finish_reason is None for handle in handles):
        if not engine.step() and not done():
            raise AssertionError("the engine has nothing to do, but requests are waiting")
