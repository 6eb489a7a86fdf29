"""Engines over small models, of any size and with any switches, for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch

from naiad.quant.cache_types import plain_type
from naiad.runtime.cache import cache_groups
from naiad.runtime.decoder import Decoder
from naiad.runtime.engine.build import EngineOptions, make_engine
from naiad.runtime.engine.engine import Engine, Handle
from naiad.runtime.engine.pages import GroupSpec
from naiad.runtime.engine.vocabulary import Vocabulary
from naiad.runtime.sampling import Sampled, SamplingParams
from naiad.runtime.session import Session

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def replayed_by_hand(function: Callable[[], Sampled]) -> tuple[Callable[[], object], Sampled]:
    """A graph's stand-in: runs the function again, and puts its results where those of the first run lie."""
    first = function()

    def replay() -> None:
        again = function()
        for field in fields(first):
            place, found = getattr(first, field.name), getattr(again, field.name)
            if place is not None:
                place.copy_(found)

    return replay, first


def engine_of(
    decoder: Decoder,
    *,
    n_pages: int = 40,
    n_host_pages: int = 0,
    n_ctx: int = 512,
    k_type: str | None = None,
    v_type: str | None = None,
    eog_ids: frozenset[int] = frozenset(),
    captured: bool = False,
    **options: Any,
) -> Engine:
    plain = plain_type(decoder.layers[0].ops.dtype)
    return make_engine(
        decoder,
        Vocabulary(decoder.n_vocab, eog_ids),
        n_ctx=n_ctx,
        k_type=k_type or plain,
        v_type=v_type or plain,
        groups=[GroupSpec(n_pages, group.window, n_host_pages) for group in cache_groups(decoder.config)],
        options=EngineOptions(**options),
        capture=replayed_by_hand if captured else None,
    )


def run(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams = GREEDY) -> list[Handle]:
    """All prompts together, to the end."""
    handles = [engine.submit(prompt, params) for prompt in prompts]
    finish(engine)
    return handles


def finish(engine: Engine, limit: int = 10_000) -> None:
    for _ in range(limit):
        if not engine.step():
            break
    assert not engine.has_work, "the engine has work and does nothing"


_FOUND: dict[tuple[object, ...], tuple[list[int], Decoder]] = {}


def greedy(
    decoder: Decoder, prompt: Sequence[int], n: int, k_type: str | None = None, v_type: str | None = None
) -> list[int]:
    """The likeliest tokens, one after another, without an engine; computed once."""
    key = id(decoder), tuple(prompt), n, k_type, v_type
    if key not in _FOUND:
        # The decoder is kept, so that nothing else can come to have its id.
        _FOUND[key] = _greedy(decoder, prompt, n, k_type, v_type), decoder
    return _FOUND[key][0]


def _greedy(decoder: Decoder, prompt: Sequence[int], n: int, k_type: str | None, v_type: str | None) -> list[int]:
    session = Session(decoder, len(prompt) + n, k_type=k_type, v_type=v_type)
    tokens = [int(session.logits(prompt)[-1].argmax())]
    while len(tokens) < n:
        tokens.append(int(session.logits([tokens[-1]])[-1].argmax()))
    return tokens


def assert_no_leak(engine: Engine) -> None:
    """Every page is free or idle, every slot closed, nothing is remembered of requests."""
    pool = engine.scheduler.pool
    for i, group in enumerate(pool.groups):
        assert pool.n_free(i) == len(group.refs) - 1
    assert not engine.has_work
    assert not engine.runner.sampler.requests


def make_prompts(n_vocab: int, lengths: Sequence[int], shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Random prompts that begin with the same `shared` tokens."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, n_vocab, (shared,), generator=generator).tolist()
    return [[*first, *torch.randint(0, n_vocab, (n,), generator=generator).tolist()] for n in lengths]
