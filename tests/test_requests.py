"""What a program gives to LLM and its methods: the impossible is refused with one short message that names it, where it
comes in, and disturbs nobody."""

from __future__ import annotations

import asyncio
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from naiad import LLM, AsyncLLM, SamplingParams
from naiad.runtime.checks import quoted
from naiad.runtime.engine.build import EngineOptions
from naiad.runtime.model import ModelOptions

GREEDY = SamplingParams(temperature=0, max_tokens=8)
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="cpu", max_seqs=2, n_ctx=256) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm: LLM) -> str:
    return llm.generate("Once", GREEDY).text


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("says nothing")


IMPOSSIBLE = [NAN, -NAN, INF, -INF, 2**31, -(2**31), 10**400, np.float64(NAN), np.float32(INF)]
NO_NUMBERS: list[Any] = [True, np.bool_(False), "1", b"1", [1], {}, 1j, Silent()]


@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_numbers_of_a_request_that_cannot_be(name: str, llm: LLM, alone: str) -> None:
    """It is refused, those before and behind it go on."""
    for value in IMPOSSIBLE:
        options: Any = {name: value}
        generations = [llm.start("Once", GREEDY), llm.start("Once", GREEDY, **options), llm.start("Once", GREEDY)]
        assert ["".join(generations[i]) for i in (0, 2)] == [alone] * 2
        with pytest.raises(ValueError, match=f"{name} must be"):
            "".join(generations[1])
        assert generations[1].completion("").finish_reason == "error"
        for call in (llm.generate, lambda *a, **k: next(llm.stream(*a, **k)), lambda *a, **k: llm.generate([*a], **k)):
            with pytest.raises(ValueError, match=f"{name} must be") as caught:
                call("Once", **options)
            assert len(str(caught.value)) < 300
        left = llm.start("Once", GREEDY, **options)
        left.close()
        del left
    for value in [*NO_NUMBERS, *([None] if name == "priority" else [])]:
        options = {name: value}
        with pytest.raises(ValueError, match=f"{name} must be a number"):
            llm.start("Once", GREEDY, **options)
    assert llm.generate("Once", GREEDY).text == alone
    assert not llm.engine.has_work


@pytest.mark.parametrize("value", [-0.0, 0.5, -7, 2**31 - 1, np.int8(3), np.float32(1.5), np.uint64(9)], ids=repr)
def test_numbers_of_a_request_that_can_be(value: Any, llm: LLM, alone: str) -> None:
    assert llm.generate("Once", GREEDY, priority=value).text == alone
    timed = llm.generate("Once", GREEDY, timeout=abs(value))
    assert timed.finish_reason == ("timeout" if value == 0 else "length")


def test_many_priorities_beside_impossible_ones(llm: LLM, alone: str) -> None:
    """Ordered queues stay so, whoever is cancelled."""
    values = [0, NAN, 3, NAN, -1.5, INF, 0, NAN, 2, -INF, 10**6, 7]
    generations = [llm.start("Once", GREEDY, priority=value) for value in values]
    for generation in generations[::5]:
        generation.close()
    for generation, value in list(zip(generations, values, strict=True))[::-1]:
        if math.isfinite(value):
            assert "".join(generation) in (alone, "")
    assert not llm.engine.has_work


PROMPTS: list[Any] = [
    *(3, None, 1.5, {"role": "user"}, {1, 2}, b"Once", bytearray(b"Once"), object(), Silent()),
    *([1.0, 2.0], [1, "a"], [1, None], [True, 2], [1, [2]], [[[1]]], np.array([1.5]), torch.tensor([1.5])),
    *(np.array([True]), deque([1.5]), [Silent()]),
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: type(prompt).__name__)
def test_what_is_no_prompt(prompt: Any, llm: LLM) -> None:
    for call in (llm.start, llm.generate, llm.stream, llm.tokenize, lambda p: llm.save_cache("nowhere", p)):
        with pytest.raises(TypeError, match="expected") as caught:
            call(prompt)
        assert len(str(caught.value)) < 300
    assert not llm.engine.has_work


@pytest.mark.parametrize(
    "prompt", [np.array([5, 6]), torch.tensor([5, 6]), deque([5, 6]), (5, np.int32(6)), range(5, 7)], ids=repr
)
def test_what_is_a_prompt(prompt: Any, llm: LLM) -> None:
    expected = llm.generate([5, 6], GREEDY).tokens
    assert llm.generate(prompt, GREEDY).tokens == expected
    assert llm.generate([prompt, prompt], GREEDY)[1].tokens == expected
    assert "".join(llm.stream(iter(prompt), GREEDY)) == llm.generate([5, 6], GREEDY).text


class Long(list[int]):
    """A list of which nobody may look at more than its length."""

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("looked at")


def test_lengths_are_looked_at_first(llm: LLM) -> None:
    for prompt, found in ((Long(), "1000000000"), (range(10**12), "1000000000000"), (count(), "more")):
        for call in (llm.start, llm.stream):
            with pytest.raises(ValueError, match=f"the prompt has {found} tokens, but the context holds 256"):
                call(prompt)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the prompt has 1000000000 tokens"):
        llm.engine.submit(Long())
    wrong: list[Any] = [[-1], [2**70], [1, 10**9], np.array([-5]), np.array([1.5])]
    for tokens in wrong:
        with pytest.raises((ValueError, TypeError), match="token ids"):
            llm.start(tokens)
        with pytest.raises((ValueError, TypeError), match="token ids"):
            llm.save_cache("nowhere", tokens)


OPTIONS: list[tuple[str, Any]] = [
    *(("n_batch", value) for value in (0, -1, 2**25, 1.5, True, "8", None, NAN)),
    *(("max_seqs", value) for value in (0, 2**16 + 1, 10**400, False, [1])),
    *(("max_queue", value) for value in (0, 2**31, "1")),
    *(("cache_tokens", value) for value in (0, -5, 1.0)),
    *(("cache_ram", value) for value in (-1, 1.5, None)),
    *((name, value) for name in ("prefix_sharing", "graphs") for value in (1, None, "yes")),
    *(("overlap", value) for value in (0, "no")),
]


@pytest.mark.parametrize(("name", "value"), OPTIONS, ids=repr)
def test_engine_options(name: str, value: Any) -> None:
    for make in (EngineOptions, lambda **options: LLM("nowhere.gguf", **options)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            make(**{name: value})


NO_TEXTS: list[Any] = [5, ["f16"], b"f16"]
MODEL_OPTIONS: list[tuple[str, Any]] = [
    *(("n_ctx", value) for value in (-1, 1.5, True, "512", None, 2**31)),
    *(("n_gpu_layers", value) for value in (-1, 0.5, "all")),
    *((name, value) for name in ("dequantize", "flash_attn", "route") for value in [*NO_TEXTS, None, "maybe"]),
    *((name, value) for name in ("cache_type_k", "cache_type_v", "device") for value in NO_TEXTS),
    ("weight_dtype", "f32"),
    ("weight_dtype", torch.int8),
    ("weight_dtype", 32),
    ("weight_dtype", []),
    ("batch_invariant", 1),
    ("batch_invariant", None),
    ("threads", 2),
    ("threads", {"n_threads": 2}),
]


@pytest.mark.parametrize(("name", "value"), MODEL_OPTIONS, ids=repr)
def test_model_options(name: str, value: Any) -> None:
    makes: list[Callable[..., object]] = [ModelOptions, lambda **options: LLM("nowhere.gguf", **options)]
    for make in makes:
        with pytest.raises(ValueError, match=f"{name} must be"):
            make(**{name: value})


OTHERS: list[tuple[str, Any]] = [
    *(("n_threads", value) for value in (0, -3, 1.5, "2", True, 10**9)),
    *((name, value) for name in ("use_mmap", "progress") for value in (1, None, "no")),
    ("chat_template", 5),
    ("chat_template", b"chatml"),
]


@pytest.mark.parametrize(("name", "value"), OTHERS, ids=repr)
def test_other_options(name: str, value: Any) -> None:
    for make in (LLM, AsyncLLM):
        with pytest.raises(ValueError, match=f"{name} must be"):
            make("nowhere.gguf", **{name: value})


@pytest.mark.parametrize("path", [5, b"model.gguf", ["model.gguf"], 1.5])
def test_paths(path: Any, llm: LLM) -> None:
    for call in (LLM, AsyncLLM, lambda path: llm.save_cache(path, "Once"), llm.restore_cache):
        with pytest.raises(TypeError, match="must be a path, found"):
            call(path)


MESSAGES: list[Any] = [
    *("Hello", b"Hello", None, 5, {"role": "user", "content": "Hello"}, [], ["Hello"], [None], [[]]),
    *([{"content": "Hello"}], [{"role": None, "content": "x"}], [{"role": 5, "content": "x"}]),
    *([{"role": "user", "content": 5}], [{"role": "user", "content": b"x"}], [{"role": "user", "content": {}}]),
    [{"role": "user", "content": "Hello"}, {"role": "assistant" * 10**5, "content": 1.5}],
]


@pytest.mark.parametrize("messages", MESSAGES, ids=lambda messages: str(messages)[:50])
def test_messages(messages: Any, llm: LLM) -> None:
    for call in (llm.chat, llm.chat_stream, llm.chat_prompt):
        with pytest.raises((TypeError, ValueError), match="expected") as caught:
            call(messages)
        assert len(str(caught.value)) < 300


def test_of_asyncio(llm: LLM, alone: str) -> None:
    """The same, and the others go on."""

    async def work() -> None:
        asynchronous = AsyncLLM(llm)
        calls = [asynchronous.generate("Once", GREEDY, priority=i % 3) for i in range(6)]
        calls += [asynchronous.generate("Once", GREEDY, priority=NAN), asynchronous.generate("Once", timeout=-1)]
        calls += [asynchronous.generate(5), asynchronous.chat("Hello")]  # type: ignore[arg-type]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(completion) for completion in found[:6]] == [alone] * 6
        assert [type(error) for error in found[6:]] == [ValueError, ValueError, TypeError, TypeError]
        with pytest.raises(ValueError, match="priority must be a number, found nan"):
            async for _ in asynchronous.stream("Once", priority=NAN):
                pass
        asynchronous._thread.close()

    asyncio.run(work())
    assert not llm.engine.has_work


def test_a_closed_model_refuses_everything() -> None:
    with LLM(device="cpu", max_seqs=1) as llm:
        pass
    for call in (llm.generate, llm.stream, llm.start, lambda p: llm.save_cache("x", p), llm.restore_cache):
        with pytest.raises(RuntimeError, match="the model was closed"):
            call("Once")


def test_messages_quote_a_short_piece() -> None:
    for value in (
        "x" * 10**6,
        [1] * 10**6,
        {i: i for i in range(10**5)},
        10**5000,
        Silent(),
        [Silent()] * 9,
        b"y" * 999,
    ):
        assert 0 < len(quoted(value)) < 150
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quoted(NAN) == "nan"
