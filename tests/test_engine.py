"""The engine: many requests give what each gives alone, whatever is switched on and whatever goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from engines import GREEDY, assert_no_leak, engine_of, finish, greedy, make_prompts, run

from naiad.loaders.open import open_model
from naiad.quant.cache_types import CACHE_TYPES
from naiad.runtime.decoder import Decoder
from naiad.runtime.demo import demo_model
from naiad.runtime.engine.graphs import CAPTURED_AFTER
from naiad.runtime.engine.request import QueueFull
from naiad.runtime.model import ModelOptions, load_model
from naiad.runtime.sampling import SamplingParams
from naiad.runtime.session import Session

Load = Callable[[str], Decoder]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A small random model of one of the cases, or the demo model, loaded once."""
    made: dict[str, Decoder] = {}

    def get(name: str) -> Decoder:
        if name not in made:
            path = demo_model() if name == "demo" else make_checkpoint(name, tmp_path_factory.mktemp(name))
            options = ModelOptions(device="cpu", weight_dtype=torch.float32)
            made[name] = load_model(open_model(path), options)[0]
        return made[name]

    return get


# Models with all kinds of windows: none, in every layer, in most.
MODELS = ("llama", "mistral-window", "gemma3_text", "qwen3_moe")
SWITCHES: list[dict[str, Any]] = [
    {},
    {"prefix_sharing": False},
    {"n_batch": 1},
    {"n_batch": 3},
    {"n_batch": 17, "overlap": True},
    {"n_batch": 64},
    {"max_seqs": 2},
    {"overlap": True},
    {"captured": True},
    {"captured": True, "overlap": True},
    {"captured": True, "overlap": True, "n_batch": 16, "prefix_sharing": False},
    # Six sequences need 15 pages: they are preempted, and found again or computed again.
    {"n_pages": 8},
    {"n_pages": 8, "overlap": True, "captured": True},
    {"n_pages": 8, "n_host_pages": 20},
    {"n_pages": 8, "prefix_sharing": False},
]
LENGTHS = (1, 5, 31, 32, 33, 50)
# Gemma 3's layers have windows or none, so it meets everything; the others differ from it in few switches.
EVERYTHING, ALL_MODELS = "gemma3_text", (SWITCHES[0], SWITCHES[3], SWITCHES[-3])


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        pytest.param(name, switches, marks=() if name == EVERYTHING or switches in ALL_MODELS else pytest.mark.slow)
        for name in MODELS
        for switches in SWITCHES
    ],
    ids=str,
)
def test_together_equals_alone(name: str, switches: dict[str, Any], load: Load) -> None:
    decoder = load(name)
    prompts = make_prompts(decoder.n_vocab, LENGTHS, shared=40 if "n_pages" not in switches else 20)
    engine = engine_of(decoder, **switches)
    for handle, prompt in zip(run(engine, prompts), prompts, strict=True):
        assert handle.finish_reason == "length", handle.error
        assert handle.tokens == greedy(decoder, prompt, GREEDY.max_tokens)
    assert_no_leak(engine)
    assert bool(engine.runner.graphs) == switches.get("captured", False)
    assert (engine.scheduler.n_preempted > 0) == ("n_pages" in switches)
    if switches.get("n_host_pages"):
        assert engine.scheduler.pool.n_loaded > 0
    # Once more: what is left in the cache changes nothing.
    again = run(engine, prompts)
    assert [h.tokens for h in again] == [greedy(decoder, prompt, GREEDY.max_tokens) for prompt in prompts]
    if switches.get("prefix_sharing", True) and "n_pages" not in switches:
        assert all(h.n_cached == h.n_prompt - 1 for h in again)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_every_cache_type_gives_what_it_gives_alone(kind: str, load: Load) -> None:
    decoder = load("demo")
    prompts = make_prompts(decoder.n_vocab, (3, 20, 40), shared=33)
    engine = engine_of(decoder, k_type=kind, v_type=kind, n_batch=512)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    found = [h.tokens for h in run(engine, prompts, params)]
    assert found == [greedy(decoder, prompt, 12, kind, kind) for prompt in prompts]
    assert [h.tokens for h in run(engine, prompts, params)] == found


def test_keys_and_values_of_different_types(load: Load) -> None:
    decoder = load("demo")
    (prompt,) = make_prompts(decoder.n_vocab, (40,))
    (handle,) = run(engine_of(decoder, k_type="q8_0", v_type="q5_1"), [prompt])
    assert handle.tokens == greedy(decoder, prompt, GREEDY.max_tokens, "q8_0", "q5_1")


def test_sampled_text_depends_on_the_seed_alone(load: Load) -> None:
    """Whatever runs beside it, in whatever slot, with other samplers."""
    decoder = load("demo")
    (prompt,) = make_prompts(decoder.n_vocab, (9,))
    params = SamplingParams(seed=7, max_tokens=20, repeat_penalty=1.3, ignore_eos=True)
    (alone,) = run(engine_of(decoder), [prompt], params)
    for switches in ({}, {"captured": True, "overlap": True}, {"n_pages": 6}):
        engine = engine_of(decoder, **switches)
        others = [
            engine.submit(p, other)
            for p in make_prompts(decoder.n_vocab, (40, 3), seed=1)
            for other in (params, SamplingParams(seed=1, max_tokens=9), SamplingParams(mirostat=2, max_tokens=9))
        ]
        handle = engine.submit(prompt, params)
        finish(engine)
        assert handle.tokens == alone.tokens
        assert {h.finish_reason for h in others} <= {"length", "stop"}


def test_without_graphs_where_they_cannot_be_had(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(function: object) -> None:
        raise RuntimeError("no memory for a graph")

    decoder = load("llama")
    monkeypatch.setattr("engines.replayed_by_hand", capture)
    engine = engine_of(decoder, captured=True)
    prompts = make_prompts(decoder.n_vocab, (4, 7))
    with pytest.warns(UserWarning, match=r"without graphs from now on.*no memory for a graph") as caught:
        found = [handle.tokens for handle in run(engine, prompts)]
    assert len(caught) == 1
    assert found == [greedy(decoder, prompt, GREEDY.max_tokens) for prompt in prompts]


def test_graphs_are_for_what_is_used_and_few(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.runtime.engine.graphs.MAX_GRAPHS", 2)
    decoder = load("llama")
    engine = engine_of(decoder, captured=True)
    assert engine.runner.graphs is not None
    run(engine, [[1]], SamplingParams(temperature=0, ignore_eos=True, max_tokens=CAPTURED_AFTER - 1))
    assert len(engine.runner.graphs) == 0
    chains: list[dict[str, Any]] = [{}, {"top_k": 7}, {"top_k": 90}, {"min_p": 0.0}]
    for fields in chains:
        run(engine, [[1, 2]], SamplingParams(**fields, ignore_eos=True, max_tokens=12))
        assert 1 <= len(engine.runner.graphs) <= 2
    (handle,) = run(engine, [[5, 6, 7]])
    assert handle.tokens == greedy(decoder, [5, 6, 7], GREEDY.max_tokens)


def test_end_tokens_end_a_request(load: Load) -> None:
    decoder = load("llama")
    (prompt,) = make_prompts(decoder.n_vocab, (9,))
    tokens = greedy(decoder, prompt, 20)
    eog = tokens[6]
    n = tokens.index(eog) + 1
    for overlap in (False, True):
        engine = engine_of(decoder, eog_ids=frozenset([eog]), overlap=overlap)
        stopped = engine.submit(prompt, SamplingParams(temperature=0, max_tokens=20))
        ignoring = engine.submit(prompt, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
        finish(engine)
        assert (stopped.tokens, stopped.finish_reason) == (tokens[:n], "stop")
        assert eog not in ignoring.tokens
        assert len(ignoring.tokens) == 20
        assert_no_leak(engine)


def test_the_context_ends_a_request(load: Load) -> None:
    decoder = load("llama")
    (prompt,) = make_prompts(decoder.n_vocab, (60,))
    engine = engine_of(decoder, n_ctx=64)
    handle = engine.submit(prompt, SamplingParams(temperature=0, ignore_eos=True))
    finish(engine)
    # The last token that is sampled needs no place in the context.
    assert handle.tokens == greedy(decoder, prompt, 5)
    assert handle.finish_reason == "length"


def test_what_a_request_keeps_is_bounded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.runtime.engine.logprobs.MAX_KEPT", 400)
    engine = engine_of(load("llama"), n_ctx=64)
    cases: list[tuple[dict[str, Any], int]] = [({}, 400 // 63), ({"max_tokens": 20}, 20), ({"max_tokens": 4}, 97)]
    for fields, most in cases:
        engine.submit([1, 2], SamplingParams(**fields, n_probs=most))
        if most < 97:
            with pytest.raises(ValueError, match=f"n_probs must be at most {most} for up to .* found {most + 1}"):
                engine.submit([1, 2], SamplingParams(**fields, n_probs=most + 1))
    finish(engine)


BAD: list[tuple[list[int], dict[str, Any], str]] = [
    ([], {}, "no tokens"),
    ([1] * 65, {}, "65"),
    ([97], {}, "0 … 96"),
    ([-1], {}, "0 … 96"),
    ([1], {"n_probs": 98}, "n_probs"),
]


@pytest.mark.parametrize(("prompt", "fields", "message"), BAD, ids=[row[2] for row in BAD])
def test_what_cannot_run_is_refused_and_disturbs_nobody(
    prompt: list[int], fields: dict[str, Any], message: str, load: Load
) -> None:
    engine = engine_of(load("llama"), n_ctx=64)
    other = engine.submit([1, 2, 3], GREEDY)
    engine.step()
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt, SamplingParams(**fields))
    finish(engine)
    assert other.tokens == greedy(load("llama"), [1, 2, 3], GREEDY.max_tokens)


def test_a_prompt_larger_than_the_cache_is_refused(load: Load) -> None:
    engine = engine_of(load("llama"), n_pages=3, n_ctx=512)
    with pytest.raises(ValueError, match="64"):
        engine.submit([1] * 65, GREEDY)


def test_a_full_queue_refuses(load: Load) -> None:
    engine = engine_of(load("llama"), max_queue=2, max_seqs=1)
    handles = [engine.submit([1], GREEDY) for _ in range(2)]
    with pytest.raises(QueueFull, match="2"):
        engine.submit([1], GREEDY)
    engine.step()
    handles.append(engine.submit([1], GREEDY))
    finish(engine)
    assert all(len(h.tokens) == GREEDY.max_tokens for h in handles)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("error", [RuntimeError("kernel"), torch.OutOfMemoryError("out of memory"), MemoryError()])
def test_an_error_on_the_device_ends_that_steps_requests_only(
    error: Exception, overlap: bool, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load("llama")
    prompts = make_prompts(decoder.n_vocab, (40, 50), shared=33)
    engine = engine_of(decoder, overlap=overlap, max_seqs=2)
    running = [engine.submit(prompt, GREEDY) for prompt in prompts]
    waiting = engine.submit(prompts[0], GREEDY)
    for _ in range(3):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(type(decoder), "hidden", _raising(error))
        engine.step()
    finish(engine)
    for handle in running:
        assert handle.finish_reason == "error"
        assert type(error).__name__ in str(handle.error)
    # What the failed step would have left in the cache is not used.
    assert waiting.tokens == greedy(decoder, prompts[0], GREEDY.max_tokens)
    assert run(engine, prompts)[1].tokens == greedy(decoder, prompts[1], GREEDY.max_tokens)
    assert_no_leak(engine)


def test_a_failed_prompt_leaves_nothing_behind(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are shared from the moment they are planned; those of a step that failed must be forgotten."""
    decoder = load("llama")
    (prompt,) = make_prompts(decoder.n_vocab, (70,))
    engine = engine_of(decoder, n_batch=48)
    first = engine.submit(prompt, GREEDY)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(type(decoder), "hidden", _raising(RuntimeError("kernel")))
        engine.step()
    assert first.finish_reason == "error"
    (second,) = run(engine, [prompt])
    assert second.n_cached <= 48
    assert second.tokens == greedy(decoder, prompt, GREEDY.max_tokens)


def test_an_interrupt_leaves_an_engine_that_goes_on(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load("llama")
    engine = engine_of(decoder)
    handle = engine.submit([1, 2, 3], GREEDY)
    engine.step()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(decoder), "hidden", _raising(KeyboardInterrupt()))
        engine.step()
    finish(engine)
    assert handle.finish_reason == "error"
    assert run(engine, [[1, 2, 3]])[0].tokens == greedy(decoder, [1, 2, 3], GREEDY.max_tokens)
    assert_no_leak(engine)


def _raising(error: BaseException) -> Callable[..., torch.Tensor]:
    def hidden(*args: object) -> torch.Tensor:
        raise error

    return hidden


@pytest.mark.parametrize("overlap", [False, True])
def test_cancelled_within_a_step(overlap: bool, load: Load) -> None:
    decoder = load("llama")
    prompts = make_prompts(decoder.n_vocab, (40, 50))
    engine = engine_of(decoder, overlap=overlap, max_seqs=2)
    leaving, staying = (engine.submit(prompt, GREEDY) for prompt in prompts)
    for _ in range(4):
        engine.step()
    engine.cancel(leaving)
    n = len(leaving.tokens)
    next_one = engine.submit(prompts[0], GREEDY)
    finish(engine)
    assert leaving.finish_reason == "cancelled"
    assert len(leaving.tokens) == n
    assert staying.tokens == greedy(decoder, prompts[1], GREEDY.max_tokens)
    assert next_one.tokens == greedy(decoder, prompts[0], GREEDY.max_tokens)
    assert_no_leak(engine)


def test_a_deadline_ends_a_request(load: Load) -> None:
    engine = engine_of(load("llama"))
    late = engine.submit([1, 2], GREEDY, timeout=0.0)
    other = engine.submit([1, 2], GREEDY, timeout=60.0)
    finish(engine)
    assert (late.finish_reason, late.tokens) == ("timeout", [])
    assert other.finish_reason == "length"


def test_logprobs(load: Load) -> None:
    """Those of the raw logits, of the right rows, beside requests that want none."""
    decoder = load("llama")
    prompts = make_prompts(decoder.n_vocab, (4, 7))
    engine = engine_of(decoder)
    plain = engine.submit(prompts[0], GREEDY)
    asked = engine.submit(prompts[1], SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, n_probs=3))
    finish(engine)
    logits = Session(decoder, 20).logits([*prompts[1], *asked.tokens[:-1]])[-5:].log_softmax(-1)
    assert plain.logprobs == []
    assert asked.logprobs.n_bytes == 5 * (4 + 4 + 3 * 8)
    assert asked.logprobs[-1] == asked.logprobs[4] == asked.logprobs[3:][1]
    assert asked.logprobs[1:3] == list(asked.logprobs)[1:3]
    with pytest.raises(IndexError):
        asked.logprobs[5]
    for row, token, found in zip(logits, asked.tokens, asked.logprobs, strict=True):
        values, ids = row.topk(3)
        assert found.token == token
        assert math.isclose(found.logprob, float(row[token]), abs_tol=1e-4)
        assert [i for i, _ in found.top] == ids.tolist()
        torch.testing.assert_close(torch.tensor([p for _, p in found.top]), values, atol=1e-4, rtol=0)


def test_a_window_frees_what_it_has_passed(load: Load) -> None:
    """A sequence of 15 pages runs in a cache of five where all layers have a window of 19 tokens."""
    decoder = load("mistral-window")
    (prompt,) = make_prompts(decoder.n_vocab, (400,))
    engine = engine_of(decoder, n_pages=5, n_batch=32)
    (handle,) = run(engine, [prompt])
    assert handle.tokens == greedy(decoder, prompt, GREEDY.max_tokens)
    # Where it ended it can go on, though most of it is gone.
    (longer,) = run(engine, [[*prompt, *handle.tokens]])
    assert longer.n_cached == len(prompt) + len(handle.tokens) - 1
    assert longer.tokens == greedy(decoder, [*prompt, *handle.tokens], GREEDY.max_tokens)


def test_options_that_make_no_sense_are_refused(load: Load) -> None:
    wrong: list[dict[str, Any]] = [{"n_batch": 0}, {"max_seqs": 0}, {"max_queue": 0}]
    for options in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, found 0"):
            engine_of(load("llama"), **options)


def test_nothing_that_others_left_in_a_slot_is_read(load: Load) -> None:
    """A slot's table goes on naming the pages of the request before; what overflowed there must not count."""
    decoder = load("llama")
    long, short, other = make_prompts(decoder.n_vocab, (90, 5, 80))
    engine = engine_of(decoder, max_seqs=2, prefix_sharing=False)
    engine.submit(long, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    first = engine.submit(other, SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    while first.finish_reason is None:
        engine.step()
    left = engine.runner.slots.host[0][first.request.slot][1:3].tolist()
    for _, plane in engine.runner.cache.planes(0):
        plane[left] = math.inf
    second = engine.submit(short, GREEDY)
    finish(engine)
    assert second.tokens == greedy(decoder, short, GREEDY.max_tokens)


def test_tokens_that_are_no_integers_are_refused(load: Load) -> None:
    engine = engine_of(load("llama"))
    with pytest.raises(ValueError, match="token ids outside"):
        engine.submit([1.5, 2], GREEDY)  # type: ignore[list-item]
    assert run(engine, [[1, 2]])[0].finish_reason == "length"


def test_a_listener_that_fails_disturbs_nobody(load: Load) -> None:
    def listener() -> None:
        raise RuntimeError("gone")

    decoder = load("llama")
    engine = engine_of(decoder)
    handle = engine.submit([1, 2], GREEDY, listener=listener)
    other = engine.submit([1, 3], GREEDY)
    with pytest.warns(UserWarning, match="a listener of the engine failed: RuntimeError: gone") as caught:
        finish(engine)
    assert len(caught) == 1
    assert [handle.tokens, other.tokens] == [greedy(decoder, [1, n], GREEDY.max_tokens) for n in (2, 3)]


@pytest.mark.parametrize("overlap", [False, True])
def test_an_interrupt_while_results_are_awaited(overlap: bool, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that was launched just before must not be forgotten half."""
    decoder = load("llama")
    engine = engine_of(decoder, overlap=overlap)
    handles = [engine.submit([1, 2, n], GREEDY) for n in (3, 4)]
    engine.step()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("naiad.runtime.engine.runner.Results.wait", _raising(KeyboardInterrupt()))
        for _ in range(2):
            engine.step()
    finish(engine)
    assert {handle.finish_reason for handle in handles} == {"error"}
    assert run(engine, [[1, 2, 3]])[0].tokens == greedy(decoder, [1, 2, 3], GREEDY.max_tokens)
    assert_no_leak(engine)
