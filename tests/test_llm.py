"""The Python API over the demo model: lists, streams, chats, threads, asyncio, cache files."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from naiad import LLM, AsyncLLM, SamplingParams
from naiad.runtime.engine.cache_file import checksum
from naiad.runtime.engine.request import QueueFull

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPTS = ["Once upon a time", "One day a great storm came", "The wind howled and", "Once upon a time there was"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(device="cpu", max_seqs=8) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[str]:
    """What each prompt gives by itself."""
    return [llm.generate(prompt, GREEDY).text for prompt in PROMPTS]


def test_a_list_of_prompts_gives_a_list(llm: LLM, alone: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    completions = llm.generate(PROMPTS, GREEDY, progress=True)
    assert [c.text for c in completions] == alone
    assert "4/4" in capsys.readouterr().err
    tokens = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    assert [c.text for c in llm.generate(tokens, GREEDY)] == alone


def test_each_prompt_may_have_params_of_its_own(llm: LLM, alone: list[str]) -> None:
    params = [GREEDY, SamplingParams(temperature=0, max_tokens=3)]
    long, short = llm.generate(PROMPTS[:2], params)
    assert long.text == alone[0]
    assert len(short.tokens) == 3
    with pytest.raises(ValueError, match="each of 2 prompts, found 1"):
        llm.generate(PROMPTS[:2], params[:1])


def test_nothing_runs_when_one_prompt_of_many_is_impossible(llm: LLM) -> None:
    n_steps = llm.engine.n_steps
    with pytest.raises(ValueError, match="prompt 1: the prompt has no tokens"):
        llm.generate([[1, 2], []], GREEDY)
    assert not llm.engine.has_work
    assert llm.engine.n_steps == n_steps


def test_no_prompt_is_an_error(llm: LLM) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        llm.generate([], GREEDY)


def test_a_prompt_longer_than_the_context(llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"513"):
        llm.generate([5] * 513, GREEDY)


def test_streams_advance_together(llm: LLM, alone: list[str]) -> None:
    """Whoever asks for a piece makes a step for all."""
    streams = [llm.start(prompt, GREEDY) for prompt in PROMPTS]
    n_steps = llm.engine.n_steps
    texts = ["".join(stream) for stream in streams]
    assert texts == alone
    assert llm.engine.n_steps - n_steps <= GREEDY.max_tokens + 2


def test_a_stream_that_is_left_ends_its_request(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], SamplingParams(temperature=0, max_tokens=400, ignore_eos=True))
    next(stream)
    assert llm.engine.has_work
    stream.close()  # type: ignore[attr-defined]
    assert not llm.engine.has_work


def test_a_stop_text_ends_the_request(llm: LLM, alone: list[str]) -> None:
    stop = alone[0].split()[3]
    completion = llm.generate(PROMPTS[0], GREEDY, stop=(stop,))
    assert completion.finish_reason == "stop"
    assert completion.text == alone[0][: alone[0].index(stop)]
    assert not llm.engine.has_work


def test_a_chat_finds_its_history_in_the_cache(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Tell me a story about a dog."}]
    first = llm.chat(messages, temperature=0, max_tokens=40)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Who are you?"}]
    second = llm.chat(messages, temperature=0, max_tokens=5)
    assert second.timings.n_cached >= first.timings.n_prompt
    assert llm.chat(messages, temperature=0, max_tokens=5).text == second.text


def test_an_error_while_running(llm: LLM, alone: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(*args: object) -> torch.Tensor:
        raise RuntimeError("the kernel failed")

    with monkeypatch.context() as patch:
        patch.setattr(type(llm.decoder), "hidden", hidden)
        with pytest.raises(RuntimeError, match="the kernel failed"):
            llm.generate(PROMPTS[0], GREEDY)
        completions = llm.generate(PROMPTS, GREEDY)
        assert {c.finish_reason for c in completions} == {"error"}
        assert all("the kernel failed" in str(c.error) for c in completions)
    assert llm.generate(PROMPTS[0], GREEDY).text == alone[0]


def fails_at(llm: LLM, n: int, patch: pytest.MonkeyPatch) -> None:
    """The n-th step from now on fails on the device."""
    launch, steps = llm.engine.runner.launch, iter(range(1, 10_000))

    def breaking(step: Any) -> Any:
        if next(steps) == n:
            raise MemoryError("out of device memory")
        return launch(step)

    patch.setattr(llm.engine.runner, "launch", breaking)


@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_stream_that_fails_says_so(llm: LLM, alone: list[str], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its prompt, at its first token, later: what came is given out, and then the error."""
    messages = [{"role": "user", "content": "Hello"}]
    streams: list[Callable[[], Iterator[str]]] = [
        lambda: llm.stream(PROMPTS[0], GREEDY),
        lambda: llm.chat_stream(messages, GREEDY),
        lambda: iter(llm.start(PROMPTS[0], GREEDY)),
    ]
    for stream in streams:
        pieces: list[str] = []
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="MemoryError: out of device memory"):
            fails_at(llm, n, patch)
            for piece in stream():
                pieces.append(piece)
        assert len("".join(pieces)) > 0 or n < 6
    generation = llm.start(PROMPTS[0], GREEDY)
    with monkeypatch.context() as patch:
        fails_at(llm, n, patch)
        text = "".join(generation.pieces())
    assert alone[0].startswith(text)
    assert generation.completion(text).finish_reason == "error"
    assert llm.generate(PROMPTS[0], GREEDY).text == alone[0]


def test_logprobs_come_with_the_completion(llm: LLM) -> None:
    completion = llm.generate(PROMPTS[0], GREEDY, n_probs=2)
    assert [p.token for p in completion.logprobs] == list(completion.tokens)
    assert all(p.top[0] == (p.token, p.logprob) for p in completion.logprobs)


def test_several_threads(llm: LLM, alone: list[str]) -> None:
    found: dict[int, str] = {}

    def work(i: int) -> None:
        found[i] = llm.generate(PROMPTS[i], GREEDY).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[i] for i in range(len(PROMPTS))] == alone


# ---- asyncio ----


@pytest.fixture
def asynchronous(llm: LLM) -> Iterator[AsyncLLM]:
    """An AsyncLLM over the same model, which stays open."""
    wrapped = AsyncLLM(llm)
    yield wrapped
    wrapped._thread.close()


def run(coroutine: Callable[[], object]) -> None:
    async def main() -> None:
        await asyncio.wait_for(coroutine(), 60)  # type: ignore[arg-type]

    asyncio.run(main())


def test_gathered_requests(asynchronous: AsyncLLM, alone: list[str]) -> None:
    async def work() -> None:
        completions = await asyncio.gather(*(asynchronous.generate(prompt, GREEDY) for prompt in PROMPTS))
        assert [c.text for c in completions] == alone
        pieces = [piece async for piece in asynchronous.stream(PROMPTS[0], GREEDY)]
        assert "".join(pieces) == alone[0]
        # Long enough for the loop to have its turn in between, however busy the machine is.
        endless = SamplingParams(temperature=0, ignore_eos=True, max_tokens=200)
        assert len([piece async for piece in asynchronous.stream(PROMPTS[0], endless)]) > 3
        with pytest.raises(ValueError, match="no tokens"):
            await asynchronous.generate([], GREEDY)

    run(work)


def test_a_task_that_is_cancelled_ends_its_request(asynchronous: AsyncLLM, alone: list[str]) -> None:
    endless = SamplingParams(temperature=0, ignore_eos=True)
    engine = asynchronous.llm.engine

    async def work() -> None:
        task = asyncio.create_task(asynchronous.generate(PROMPTS[0], endless))
        async for _ in asynchronous.stream(PROMPTS[1], endless):
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asynchronous.generate(PROMPTS[2], GREEDY)).text == alone[2]

    run(work)
    asynchronous._thread.close()
    assert not engine.has_work


def test_the_loop_is_never_blocked(asynchronous: AsyncLLM) -> None:
    """While requests run, a timer of 5 ms fires again and again."""

    async def work() -> None:
        tasks = [asyncio.create_task(asynchronous.generate(p, GREEDY, max_tokens=40)) for p in PROMPTS * 2]
        n_ticks = 0
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.005)
            n_ticks += 1
        assert n_ticks > 5

    run(work)


def test_an_engine_that_stops_tells_everybody(
    llm: LLM, asynchronous: AsyncLLM, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def schedule() -> None:
        raise AssertionError("a mistake of ours")

    async def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.scheduler, "schedule", schedule)
            with pytest.raises(RuntimeError, match="the engine has stopped: AssertionError: a mistake of ours"):
                await asynchronous.generate(PROMPTS[0], GREEDY)
        assert (await asynchronous.generate(PROMPTS[0], GREEDY)).text == alone[0]

    run(work)


def test_a_stream_of_asyncio_that_fails_says_so(
    asynchronous: AsyncLLM, alone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": "user", "content": "Hello"}]

    async def read(stream: AsyncIterator[str]) -> None:
        async for _ in stream:
            pass

    makes: list[Callable[[], AsyncIterator[str]]] = [
        lambda: asynchronous.stream(PROMPTS[0], GREEDY),
        lambda: asynchronous.chat_stream(messages),
    ]

    async def work() -> None:
        for make in makes:
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of device memory"):
                fails_at(asynchronous.llm, 4, patch)
                await read(make())
        assert (await asynchronous.generate(PROMPTS[0], GREEDY)).text == alone[0]

    run(work)


def test_streams_of_an_engine_that_is_closed_say_so() -> None:
    """Those that run, and those that still wait for their turn."""

    async def work() -> None:
        llm = AsyncLLM(device="cpu", max_seqs=1)
        endless = SamplingParams(temperature=0, ignore_eos=True)
        seen: list[str] = []

        async def read(prompt: str) -> None:
            async for piece in llm.stream(prompt, endless):
                seen.append(piece)

        tasks = [asyncio.create_task(read(prompt)) for prompt in PROMPTS[:3]]
        while not seen:
            await asyncio.sleep(0.001)
        await llm.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [RuntimeError] * 3
        with pytest.raises(RuntimeError, match="the model was closed"):
            await read(PROMPTS[3])

    run(work)


def test_an_interpreter_that_ends_waits_for_the_step_under_way(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[Callable[[], None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(atexit, "register", registered.append)
        asynchronous = AsyncLLM(llm)
    generation = llm.start(PROMPTS[0], SamplingParams(temperature=0, ignore_eos=True))
    while not generation.pending:
        time.sleep(0.001)
    (at_exit,) = registered
    at_exit()
    assert not asynchronous._thread._thread.is_alive()
    n_steps = llm.engine.n_steps
    asynchronous._thread.close()
    assert llm.engine.n_steps == n_steps
    with pytest.raises(RuntimeError, match="the engine was closed"):
        "".join(generation)


def test_a_request_that_comes_while_an_engine_closes_is_refused() -> None:
    with LLM(device="cpu", max_seqs=1) as closing:
        engine = closing.engine
    with pytest.raises(RuntimeError, match="the model was closed"):
        engine.submit([1, 2], GREEDY)


def test_a_bounded_queue() -> None:
    async def work() -> None:
        async with AsyncLLM(device="cpu", max_seqs=1, max_queue=1) as llm:
            tasks = [asyncio.create_task(llm.generate(PROMPTS[0], GREEDY)) for _ in range(12)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [r for r in results if isinstance(r, QueueFull)]
        served = [r for r in results if not isinstance(r, BaseException)]
        assert len(refused) + len(served) == 12
        assert refused
        assert served

    run(work)


# ---- files ----


@pytest.mark.parametrize(
    "types", [("f32", "f32"), ("q8_0", "q4_1"), pytest.param(("fp8", "bf16"), marks=pytest.mark.slow)], ids=str
)
def test_a_cache_goes_to_a_file_and_back(types: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "cache"
    prompt = list(range(3, 103))
    with LLM(device="cpu", cache_type_k=types[0], cache_type_v=types[1], max_seqs=2) as one:
        expected = one.generate(prompt, GREEDY)
        assert one.save_cache(path, prompt) == 100
    with LLM(device="cpu", cache_type_k=types[0], cache_type_v=types[1], max_seqs=2) as other:
        assert other.restore_cache(path) == 100
        found = other.generate(prompt, GREEDY)
        assert found.timings.n_cached == 99
        assert found.tokens == expected.tokens


def test_only_what_fits_is_restored(llm: LLM, tmp_path: Path) -> None:
    prompt = list(range(3, 73))
    llm.generate(prompt, GREEDY)
    path = tmp_path / "cache"
    assert llm.save_cache(path, [*prompt, 7, 7, 7]) == 70
    with pytest.raises(ValueError, match="holds nothing"):
        llm.save_cache(path, [9] * 40)
    others: list[tuple[dict[str, Any], str]] = [
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, "expected a cache file with k_type q8_0, found f16"),
        ({"cache_tokens": 64, "n_ctx": 64}, r"at most 64 tokens, found \[70\]"),
    ]
    for options, message in others:
        with LLM(device="cpu", max_seqs=1, **options) as other, pytest.raises(ValueError, match=message):
            other.restore_cache(path)
    contents = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    data = path.read_bytes()
    damaged = tmp_path / "damaged"
    cases = [
        ({"model": "x"}, contents, "with model .*, found x"),
        ({}, {**contents, "other": contents["tokens"].clone()}, r"expected \d+ tensors, found \d+"),
        ({"version": "1"}, contents, "with version 2, found 1"),
        ({"format": ""}, contents, "with format naiad.cache, found"),
        ({}, {**contents, "tokens": contents["tokens"][:5]}, r"expected blk.0.k.0 as torch.float16 \[1, 32"),
        ({}, {**contents, "tokens": contents["tokens"] - 9}, "token ids outside"),
        ({}, {**contents, "tokens": contents["tokens"][:0]}, "expected tokens as int32"),
        ({}, {**contents, "blk.0.k.0": contents["blk.0.k.0"].float()}, "expected blk.0.k.0 as torch.float16"),
        ({}, {k: v for k, v in contents.items() if k != "blk.1.v.0"}, "not a whole file"),
    ]
    for changes, tensors, message in cases:
        about = {key: value for key, value in (metadata | changes).items() if key != "checksum"}
        save_file(tensors, damaged, {**about, "checksum": checksum(about, tensors)})
        with pytest.raises(ValueError, match=message):
            llm.restore_cache(damaged)
    for cut in (0, 4, 100, len(data) - 1):
        damaged.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="not a whole file"):
            llm.restore_cache(damaged)
    with pytest.raises(FileNotFoundError):
        llm.restore_cache(tmp_path / "nowhere")


def test_a_closed_model_is_gone() -> None:
    llm = LLM(device="cpu", max_seqs=1)
    generation = llm.start(PROMPTS[0], GREEDY)
    llm.close()
    with pytest.raises(RuntimeError, match="the model was closed"):
        "".join(generation)
    assert generation.finish_reason == "error"
    llm.close()


def test_a_restore_that_fails_leaves_nothing_behind(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = list(range(3, 103))
    expected = llm.generate(prompt, GREEDY)
    llm.save_cache(tmp_path / "cache", prompt)
    llm.engine.forget()
    pool = llm.engine.scheduler.pool
    n_free = pool.n_free()

    def move(moves: object) -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner.cache, "move", move)
        with pytest.raises(MemoryError):
            llm.restore_cache(tmp_path / "cache")
    assert pool.n_free() == n_free
    again = llm.generate(prompt, GREEDY)
    assert (again.tokens, again.timings.n_cached) == (expected.tokens, 0)


def test_a_folder_that_is_not_there(llm: LLM, tmp_path: Path) -> None:
    llm.generate(PROMPTS[0], GREEDY)
    with pytest.raises(OSError, match="nowhere"):
        llm.save_cache(tmp_path / "nowhere" / "cache", PROMPTS[0])


def test_a_stream_that_nobody_reads_ends_its_request(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], SamplingParams(temperature=0, ignore_eos=True))
    assert llm.engine.has_work
    del stream
    gc.collect()
    assert not llm.engine.has_work


def test_a_task_that_leaves_before_its_request_has_begun(asynchronous: AsyncLLM) -> None:
    async def work() -> None:
        for delay in (0.0, 0.0005, 0.002):
            task = asyncio.create_task(
                asynchronous.generate(PROMPTS[0], SamplingParams(temperature=0, ignore_eos=True))
            )
            await asyncio.sleep(delay)
            task.cancel()
        await asyncio.sleep(0.2)
        assert not asynchronous.llm.engine.has_work

    run(work)


def test_a_closed_model_says_so() -> None:
    with LLM(device="cpu", max_seqs=1) as llm:
        pass
    with pytest.raises(RuntimeError, match="the model was closed"):
        llm.generate("Once")


def test_a_list_longer_than_the_queue(alone: list[str]) -> None:
    with LLM(device="cpu", max_seqs=1, max_queue=1) as llm:
        assert [c.text for c in llm.generate(PROMPTS, GREEDY)] == alone


WRONG: list[tuple[Any, Any, str]] = [
    (3, None, "expected a text or a list of token ids, found int"),
    ({"role": "user"}, None, "found dict"),
    ([1.0, 2.0], None, "expected token ids as integers, found 1.0"),
    ([1, "a"], None, "expected token ids as integers, found 'a'"),
    ("Once", {"max_tokens": 3}, "expected SamplingParams for a prompt, found dict"),
]


@pytest.mark.parametrize(("prompt", "params", "message"), WRONG, ids=[row[2] for row in WRONG])
def test_what_is_no_prompt(prompt: Any, params: Any, message: str, llm: LLM) -> None:
    with pytest.raises(TypeError, match=message):
        llm.start(prompt, params)
    assert not llm.engine.has_work


def test_numbers_of_numpy(llm: LLM, alone: list[str]) -> None:
    tokens: Any = np.array(llm.tokenize(PROMPTS[0]))
    params = SamplingParams(temperature=np.float32(0), max_tokens=np.int64(12), top_k=np.int64(5), n_probs=np.int32(2))
    assert llm.generate(tokens, params).text == alone[0]


def test_a_cache_goes_to_files_only(llm: LLM, tmp_path: Path) -> None:
    llm.generate(PROMPTS[0], GREEDY)
    with pytest.raises(ValueError, match="not a file"):
        llm.save_cache(tmp_path, PROMPTS[0])
    with pytest.raises(ValueError, match="not a file"):
        llm.restore_cache(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for method in (llm.restore_cache, lambda path: llm.save_cache(path, PROMPTS[0])):
        with pytest.raises(ValueError, match="not a file"):
            method(tmp_path / "pipe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipe"]
    with LLM(device="cpu", max_seqs=1, prefix_sharing=False) as alone, pytest.raises(ValueError, match="not shared"):
        alone.restore_cache(tmp_path / "cache")


def test_one_engine_has_one_thread(llm: LLM, asynchronous: AsyncLLM) -> None:
    for options in ({}, {"max_seqs": 3}):
        with pytest.raises(ValueError, match="takes no options, and has one AsyncLLM"):
            AsyncLLM(llm, **options)
