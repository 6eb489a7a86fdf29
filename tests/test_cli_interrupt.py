"""Ctrl-C: while a prompt is read, while tokens without text come, once and again."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable

import pytest

from naiad.runtime.cli import interrupt
from naiad.runtime.cli.interrupt import Interrupt, leaving_at_once
from naiad.runtime.engine.engine import Engine

Run = Callable[[str], tuple[int, str, str]]
LONG = "word " * 200


@pytest.fixture
def pressed_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Presses Ctrl-C in the n-th step from now on; the steps that were done are appended to what it returns."""

    def press(n: int) -> list[int]:
        done: list[int] = []

        def step(engine: Engine) -> bool:
            done.append(len(done) + 1)
            if len(done) == n:
                os.kill(os.getpid(), signal.SIGINT)
            return stock(engine)

        monkeypatch.setattr(Engine, "step", step)
        return done

    stock = Engine.step
    return press


COMMANDS = [
    f"run -p '{LONG}' -b 4 -n 30 -no-cnv",
    f"run -p '{LONG}' -b 4 -n 30",
    # A control token again and again, which has no text.
    "run -p Hello -n 100 --ignore-eos -l 1+1000 -no-cnv",
    "run -p Hello -n 100 --ignore-eos -l 1+1000",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupt_ends_it_within_a_step_or_two(
    command: str, run: Run, pressed_in: Callable[[int], list[int]]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    steps = pressed_in(7)
    code, out, err = run(f"{command} -c 300 --temp 0")
    assert code == 130
    assert 7 <= len(steps) <= 9
    assert "rror" not in err
    assert ("(stopped)" in err) == ("-no-cnv" not in command)
    assert out.endswith("\n") or "-no-cnv" not in command
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_chat_goes_on_after_a_prompt_that_was_stopped(
    run: Run, pressed_in: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{LONG}\n/clear\nWhat sound does a cow make?\n".encode()
    for extra, code, n_answers in (("", 0, 1), ("-st", 130, 0)):
        pressed_in(3)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text)))
        found, out, err = run(f"run --temp 0 -c 300 -b 8 -n 30 {extra}")
        assert (found, out.count("moos"), "(stopped)" in err) == (code, n_answers, True)


def test_an_interrupt_before_the_first_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(engine: Engine, *arguments: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return stock(engine, *arguments, **options)  # type: ignore[arg-type]

    def step(engine: Engine) -> bool:
        raise AssertionError("a step after Ctrl-C")

    stock = Engine.submit
    monkeypatch.setattr(Engine, "submit", submit)
    monkeypatch.setattr(Engine, "step", step)
    for mode in ("", "-no-cnv"):
        assert run(f"run -p Hello -n 3 -c 64 {mode}")[0] == 130


def test_a_second_one_ends_the_process_in_the_middle_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[bool] = []
    monkeypatch.setattr(interrupt, "leave", lambda: left.append(True))
    with Interrupt() as pressed:
        for n in (1, 2):
            # Other signals are none of it.
            os.write(pressed._write, bytes([signal.SIGCHLD]))
            os.kill(os.getpid(), signal.SIGINT)
            end = time.monotonic() + 20
            while time.monotonic() < end and len(left) < n - 1:
                time.sleep(0.001)
            assert pressed.pressed
            assert len(left) == n - 1


def test_it_leaves_files_and_handlers_as_they_were() -> None:
    files, handler = set(os.listdir("/proc/self/fd")), signal.getsignal(signal.SIGINT)
    for _ in range(3):
        with Interrupt():
            pass
    assert set(os.listdir("/proc/self/fd")) == files
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1


def test_what_ignores_ctrl_c_goes_on_doing_so() -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as pressed, leaving_at_once():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert not pressed.pressed
    finally:
        signal.signal(signal.SIGINT, handler)
