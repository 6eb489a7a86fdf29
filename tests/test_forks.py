"""Models in child processes that os.fork has made: used before or not, with threads, with requests under way."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from naiad import LLM, AsyncLLM
from naiad.runtime.backends import cpu_programs
from naiad.runtime.forks import Forked, _TorchThreads, prepare_torch

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SECONDS = 60
PROMPT = "Once upon a time, there was a cat"


def start(work: Callable[[], object]) -> tuple[int, int]:
    """A child that does some work: its id, and where what comes of it can be read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = str(work())
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        os.write(writing, found.encode())
        os._exit(0)
    os.close(writing)
    return child, reading


def finish(child: int, reading: int) -> str:
    """What came of it; a child that hangs is ended."""
    end = time.monotonic() + SECONDS
    while not (status := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return "it hangs"
        time.sleep(0.005)
    with open(reading) as pipe:
        return pipe.read() if status[1] == 0 else f"status {status[1]}"


def in_child(work: Callable[[], object]) -> str:
    return finish(*start(work))


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """torch's threads have had something to do before the fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.randn(300_000).sin_()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models use all the threads that they are given, too."""
    monkeypatch.setattr(cpu_programs, "BYTES_PER_THREAD", 1)


@pytest.fixture(scope="module")
def other() -> Iterator[LLM]:
    """A model that others are compared with."""
    with LLM(device="cpu") as llm:
        yield llm


WAYS: dict[str, dict[str, Any]] = {
    "one thread": {"n_threads": 1},
    "three threads": {"n_threads": 3},
    "torch": {"route": "exact", "dequantize": "off"},
    "decoded": {"dequantize": "on"},
}


def text_of(llm: LLM, prompt: str = PROMPT) -> str:
    return llm.generate(prompt, max_tokens=8, temperature=0).text


def after(call: Callable[[], None], llm: LLM) -> str:
    """A text that is made after a call."""
    call()
    return text_of(llm)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_works_in_a_child(way: str, other: LLM, torch_threads: None, many_threads: None) -> None:
    """Used before or not; and in a child of a child, in several at once, and in the parent afterwards."""
    expected = text_of(other)
    with LLM(device="cpu", **WAYS[way]) as llm:
        children = [start(lambda: text_of(llm)) for _ in range(2)]
        assert [finish(*child) for child in children] == [expected] * 2
        assert text_of(llm) == expected
        torch.randn(300_000).sin_()
        assert in_child(lambda: text_of(llm) + in_child(lambda: text_of(llm))) == 2 * expected
        assert in_child(lambda: after(llm.close, other)) == expected
        assert text_of(llm) == expected


def test_children_of_other_threads_work(torch_threads: None, many_threads: None) -> None:
    """The one thread that a child has is the one that forked, whichever that was."""
    with LLM(n_threads=3) as llm:
        expected, found = text_of(llm), []

        def fork() -> None:
            torch.randn(300_000).cos_()
            found.append(in_child(lambda: (torch.randn(300_000).cos_(), text_of(llm))[1]))

        forking = threading.Thread(target=fork)
        forking.start()
        forking.join()
        assert found == [expected]


def test_a_child_loads_and_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from naiad.runtime.cpu_kernels.kernel import Compiler, this_host
    from naiad.runtime.cpu_kernels.team import post, take_part

    compiler = Compiler(this_host(), None)
    assert compiler.address(post)
    assert in_child(lambda: compiler.address(take_part) > 0 and compiler.n_compiled) == "2"
    with LLM() as llm:
        expected = text_of(llm)
    assert in_child(lambda: text_of(LLM(route="exact"))) == expected


def test_a_fork_while_another_thread_compiles() -> None:
    """The child has all of LLVM, not half of it."""
    from naiad.runtime.cpu_kernels.kernel import Compiler, this_host
    from naiad.runtime.cpu_kernels.team import post, take_part

    begun = threading.Event()
    compiler = Compiler(this_host(), None, on_compile=lambda *_: begun.set())
    compiling = threading.Thread(target=compiler.address, args=(post,))
    compiling.start()
    begun.wait()
    found = in_child(lambda: compiler.address(take_part) > 0 and compiler.n_compiled)
    compiling.join()
    assert found == "2"


# ---- requests under way ----


def test_requests_stay_in_the_parent() -> None:
    """Those that were under way end in the child, and give their pages back; new ones run."""
    with LLM() as llm:
        expected = llm.generate(PROMPT, max_tokens=30, temperature=0).text
        stream = llm.stream(PROMPT, max_tokens=30, temperature=0)
        first = next(stream)

        def go_on() -> str:
            try:
                return "".join(stream)
            except RuntimeError as error:
                assert not llm.engine.has_work
                return f"{error}; {text_of(llm)}"

        assert in_child(go_on) == f"this process was forked: the request goes on in its parent; {text_of(llm)}"
        assert first + "".join(stream) == expected


@pytest.fixture
def within_a_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LLM, threading.Event]]:
    """A model in the middle of another thread's step, which ends when the event is set."""
    inside, go_on = threading.Event(), threading.Event()
    with LLM() as llm:
        launch = llm.engine.runner.launch

        def slow(*arguments: Any) -> Any:
            inside.set()
            go_on.wait()
            return launch(*arguments)

        monkeypatch.setattr(llm.engine.runner, "launch", slow)
        generating = threading.Thread(target=text_of, args=(llm,))
        generating.start()
        inside.wait()
        yield llm, go_on
        go_on.set()
        generating.join()


def test_a_fork_within_a_step_is_refused_at_once(within_a_step: tuple[LLM, threading.Event], tmp_path: Path) -> None:
    llm, go_on = within_a_step
    message = (
        "RuntimeError: this process was forked while its model was at work in another thread; "
        "load it in the process that is to use it"
    )
    begun = time.monotonic()
    for use in (
        lambda: text_of(llm),
        lambda: next(llm.stream(PROMPT)),
        lambda: llm.save_cache(tmp_path / "x", PROMPT),
        lambda: llm.engine.forget(),
        lambda: asyncio.run(AsyncLLM(llm).generate(PROMPT)),
    ):
        assert in_child(use) == message
    assert time.monotonic() - begun < SECONDS / 2
    # Closing it, dropping it, and loading another work.
    assert in_child(lambda: after(llm.close, LLM()))
    assert in_child(lambda: in_child(lambda: text_of(llm))) == message
    go_on.set()
    assert text_of(llm) == in_child(lambda: text_of(llm))


def test_forks_between_the_steps_of_another_thread(torch_threads: None, many_threads: None) -> None:
    """Whenever they come: a child works or refuses, and does not hang; the parent goes on."""
    with LLM(n_threads=2, max_seqs=2) as llm:
        expected, done, texts = text_of(llm), threading.Event(), []

        def generate() -> None:
            while not done.is_set():
                texts.append(text_of(llm))

        generating = threading.Thread(target=generate)
        generating.start()
        found = {in_child(lambda: text_of(llm)) for _ in range(8)}
        done.set()
        generating.join()
        assert set(texts) == {expected}
        assert all(text == expected or "was at work in another thread" in text for text in found), found


def test_a_model_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLM() as llm:
        monkeypatch.setattr(llm.engine.runner, "output_device", torch.device("cuda", 0))
        assert in_child(lambda: text_of(llm)) == (
            "RuntimeError: a model on a GPU cannot be used in a forked process; "
            "load it in the process that is to use it"
        )


# ---- engines with a thread ----


async def gathered(llm: AsyncLLM) -> list[str]:
    """Two requests together, and a stream."""
    found = await asyncio.gather(*(llm.generate(PROMPT, max_tokens=8, temperature=0) for _ in range(2)))
    pieces = [piece async for piece in llm.stream(PROMPT, max_tokens=8, temperature=0)]
    return [*(completion.text for completion in found), "".join(pieces)]


@pytest.mark.parametrize("used", [False, True], ids=["not used before", "used before"])
def test_an_engine_with_a_thread_gets_another_in_the_child(
    used: bool, tmp_path: Path, torch_threads: None, many_threads: None
) -> None:
    async def use_and_close(llm: AsyncLLM) -> list[str]:
        async with llm:
            return await gathered(llm)

    with LLM() as plain:
        expected = str([text_of(plain)] * 3)
    llm = AsyncLLM(n_threads=2)
    if used:
        assert str(asyncio.run(gathered(llm))) == expected
    assert in_child(lambda: asyncio.run(use_and_close(llm))) == expected
    assert in_child(lambda: in_child(lambda: asyncio.run(gathered(llm)))) == expected
    assert in_child(lambda: asyncio.run(llm.close())) == "None"
    assert in_child(lambda: [after(llm.llm.engine.forget, llm.llm)] * 3) == expected
    assert in_child(lambda: text_of(llm.llm) and llm.llm.save_cache(tmp_path / "x", PROMPT) > 0) == "True"
    assert str(asyncio.run(use_and_close(llm))) == expected


def test_requests_of_an_engine_with_a_thread_stay_in_the_parent() -> None:
    async def fork_within_a_stream(llm: AsyncLLM) -> tuple[str, str]:
        stream = llm.stream(PROMPT, max_tokens=60, temperature=0)
        first = await anext(stream)
        child = start(lambda: (llm.llm.engine.has_work, llm.llm.engine.unusable is None and text_of(llm.llm)))
        pieces = [first, *[piece async for piece in stream]]
        return "".join(pieces), await asyncio.to_thread(finish, *child)

    llm = AsyncLLM()
    expected = llm.llm.generate(PROMPT, max_tokens=60, temperature=0).text
    text, found = asyncio.run(fork_within_a_stream(llm))
    assert text == expected
    assert found in (str((False, False)), str((False, text_of(llm.llm)))), found
    asyncio.run(llm.close())


# ---- ends of processes ----

PRELOAD = """
import multiprocessing, os, sys, threading
from naiad import LLM
llm = LLM()

def answer(seed):
    return llm.generate("Once upon a time", max_tokens=6, temperature=1.5, seed=seed).text

expected = [answer(i) for i in range(4)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(answer, range(4), chunksize=1) == expected
worker = multiprocessing.get_context("fork").Process(target=answer, args=(1,))
worker.start()
worker.join(60)
assert worker.exitcode == 0, worker.exitcode
child = os.fork()
if child == 0:
    assert answer(1) == expected[1]
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(answer(-1) == answer(-1), answer(2) == expected[2])
"""


def test_workers_of_a_server_and_of_pools_end_by_themselves() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PRELOAD], capture_output=True, text=True, timeout=SECONDS
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "False True\n", "")


def test_children_draw_numbers_of_their_own() -> None:
    with LLM() as llm:
        texts = [in_child(lambda: llm.generate("Once", max_tokens=12, temperature=5.0).tokens) for _ in range(3)]
    assert len(set(texts)) == 3


# ---- what is told of forks ----


def test_who_is_gone_is_told_nothing() -> None:
    class Told(Forked):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def before_fork(self) -> None:
            self.calls.append("before")

        def after_fork_in_parent(self) -> None:
            self.calls.append("parent")

        def after_fork_in_child(self) -> None:
            self.calls.append("child")

    told = Told()
    told.watch_forks()
    calls, gone = told.calls, weakref.ref(told)
    assert in_child(lambda: calls) == "['before', 'child']"
    assert calls == ["before", "parent"]
    del told
    gc.collect()
    assert gone() is None
    assert in_child(lambda: "fine") == "fine"


def test_without_a_way_to_end_openmps_threads_a_child_has_one(torch_threads: None) -> None:
    class Old:
        """A library from before OpenMP 5."""

    prepare_torch()
    threads = _TorchThreads([Old()])  # type: ignore[list-item]
    threads.watch_forks()
    x = torch.arange(300_000.0)
    expected = str(float(x.sin().sum().double()))
    assert in_child(lambda: torch.get_num_threads()) == "1"
    assert torch.get_num_threads() == 3
    assert in_child(lambda: f"{float(x.sin().sum().double()):.0f}") == f"{float(expected):.0f}"
