"""Thousands of requests that come, are cancelled, run out of time and fail, at random: nothing is left over, and who
stays gets what it gets alone."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator

import pytest
import torch
from checkpoints import make_checkpoint
from engines import assert_no_leak, engine_of, finish, make_prompts

from naiad.loaders.open import open_model
from naiad.runtime.decoder import Decoder
from naiad.runtime.engine.engine import Engine, Handle
from naiad.runtime.engine.thread import EngineThread
from naiad.runtime.model import ModelOptions, load_model
from naiad.runtime.sampling import SamplingParams

PARAMS = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
LENGTHS = (1, 3, 17, 31, 32, 33, 64, 70)
ENDS = {"length", "cancelled", "timeout", "error"}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    path = make_checkpoint("llama", tmp_path_factory.mktemp("llama"))
    yield load_model(open_model(path), ModelOptions(device="cpu", weight_dtype=torch.float32))[0]


@pytest.fixture(scope="module")
def answers(decoder: Decoder) -> list[tuple[list[int], list[int]]]:
    """Prompts, which share beginnings, and what each gives alone."""
    prompts = [prompt for seed in range(3) for prompt in make_prompts(97, LENGTHS, shared=seed * 20, seed=seed)]
    found = []
    for prompt in prompts:
        engine = engine_of(decoder, prefix_sharing=False)
        handle = engine.submit(prompt, PARAMS)
        finish(engine)
        found.append((prompt, handle.tokens))
    return found


def failing(engine: Engine, generator: random.Random, patch: pytest.MonkeyPatch, share: float) -> None:
    """Some steps fail on the device."""
    launch = engine.runner.launch

    def perhaps(step: object) -> object:
        if generator.random() < share:
            raise MemoryError("out of device memory")
        return launch(step)  # type: ignore[arg-type]

    patch.setattr(engine.runner, "launch", perhaps)


def breaks() -> None:
    raise RuntimeError("gone")


@pytest.mark.parametrize(
    ("n_requests", "overlap", "threaded"),
    [
        (200, False, False),
        (200, True, True),
        *(
            pytest.param(2000, overlap, threaded, marks=pytest.mark.slow)
            for overlap, threaded in ((False, True), (True, False))
        ),
    ],
)
def test_nothing_is_left_over(
    n_requests: int,
    overlap: bool,
    threaded: bool,
    decoder: Decoder,
    answers: list[tuple[list[int], list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled in the queue, in the prompt and later; deadlines in all of these; listeners that raise; impossible
    numbers; steps that fail; too few pages for all."""
    generator = random.Random(n_requests + overlap)
    engine = engine_of(decoder, n_pages=14, n_host_pages=6, n_batch=24, max_seqs=4, overlap=overlap)
    failing(engine, generator, monkeypatch, 0.01)
    thread = EngineThread(engine) if threaded else None
    live: list[Handle] = []
    all_of_them: list[tuple[Handle, list[int]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(n_requests):
            prompt, tokens = generator.choice(answers)
            handle = engine.submit(
                prompt,
                PARAMS,
                priority=generator.choice([0, 0, 1, -1, 2.5, math.nan]),
                timeout=generator.choice([None, None, None, None, 0.0, 0.002, 60.0]),
                cache_prompt=generator.random() < 0.8,
                listener=breaks if generator.random() < 0.05 else None,
            )
            live.append(handle)
            all_of_them.append((handle, tokens))
            for _ in range(generator.choice([0, 0, 1, 2]) if thread is None else 0):
                engine.step()
            if generator.random() < 0.5:
                engine.cancel(live.pop(generator.randrange(len(live))))
            # So that some wait, and not for ever.
            while thread is None and len(engine._handles) > 30:
                engine.step()
        if thread is not None:
            while any(handle.finish_reason is None for handle, _ in all_of_them):
                engine.between_steps(lambda: None)
            thread.close()
        finish(engine)
    reasons = [handle.finish_reason for handle, _ in all_of_them]
    assert set(reasons) == ENDS
    for handle, tokens in all_of_them:
        assert handle.tokens == tokens[: len(handle.tokens)]
        assert handle.finish_reason != "length" or len(handle.tokens) == 5
    assert reasons.count("length") > n_requests // 20
    assert_no_leak(engine)
    assert not engine._handles and not engine._open and not engine.scheduler._claims.owners
    assert sorted(engine.scheduler._slots) == [0, 1, 2, 3]
    assert engine.scheduler._n_parked == 0
    monkeypatch.undo()
    prompt, tokens = answers[-1]
    handle = engine.submit(prompt, PARAMS)
    finish(engine)
    assert handle.tokens == tokens
    engine.forget()
    assert engine.scheduler.pool.n_idle() == 0
    assert not engine.scheduler.pool.prefixes.nodes
