"""Threads that walk through programs together, and giving memory back."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("numba")

from cpu_kernels import cpu_team

from naiad.runtime.cpu_kernels.atomics import next_task
from naiad.runtime.cpu_kernels.kernel import Compiler, kernel
from naiad.runtime.cpu_kernels.programs import Program
from naiad.runtime.cpu_kernels.scalars import load_int, store_int
from naiad.runtime.cpu_kernels.team import Team
from naiad.runtime.trim import trim_memory

N = 64


@kernel
def rotate(source: int, target: int, n: int, counter: int, thread: int, n_threads: int) -> None:
    """Target i is source i + 1 plus 1: wrong as soon as a thread begins before all have finished the last one."""
    while True:
        i = next_task(counter)
        if i >= n:
            return
        store_int(target + 8 * i, load_int(source + 8 * ((i + 1) % n)) + 1)


@kernel
def note_thread(seen: int, counter: int, thread: int, n_threads: int) -> None:
    store_int(seen + 8 * thread, n_threads)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return cpu_team()[0]


@pytest.fixture(params=[0, 1, 50])
def team(request: pytest.FixtureRequest, compiler: Compiler) -> Iterator[Team]:
    """More threads than there may be cores; those with poll 0 sleep between any two programs."""
    made = Team(compiler, 5, poll=request.param)
    yield made
    made.close()


def rotations(compiler: Compiler, steps: int) -> tuple[Program, np.ndarray]:
    values = np.arange(2 * N, dtype=np.int64).reshape(2, N)
    program = Program(compiler)
    program.keep.append(values)
    for step in range(steps):
        source, target = values[step % 2].ctypes.data, values[(step + 1) % 2].ctypes.data
        program.add(rotate, source=source, target=target, n="n")
    program.set(n=N)
    return program, values


def test_nobody_passes_a_barrier_before_all_have_come(team: Team, compiler: Compiler) -> None:
    program, values = rotations(compiler, 10)
    expected = values[0].copy()
    for run in range(40):
        team.run(program, 1 + run % 5)
        expected = np.roll(expected, -10) + 10
        assert (values[0] == expected).all(), run
        if run % 10 == 0:
            time.sleep(0.02)  # long enough for all to sleep


def test_threads_that_fall_asleep_are_woken(compiler: Compiler) -> None:
    """Programs that come just when workers give up looking for them."""
    team = Team(compiler, 2, poll=1)
    program, values = rotations(compiler, 1)
    for i in range(3000):
        for _ in range(i % 50 * 20):
            pass
        team.run(program)
    assert values[1].sum() == values[0].sum() + N
    team.close()


def test_a_program_runs_on_as_many_threads_as_asked_for(team: Team, compiler: Compiler) -> None:
    seen = np.zeros(8, np.int64)
    program = Program(compiler)
    program.add(note_thread, seen=seen.ctypes.data)
    for n in (5, 1, 3, 2, 5):
        seen[:] = 0
        team.run(program, n)
        assert seen.tolist() == [n] * n + [0] * (8 - n)
    seen[:] = 0
    team.run(program)
    assert seen[4] == 5


def test_callers_take_turns(team: Team, compiler: Compiler) -> None:
    made = [rotations(compiler, 4) for _ in range(3)]

    def run(program: Program) -> None:
        for _ in range(20):
            team.run(program, 3)

    callers = [threading.Thread(target=run, args=(program,)) for program, _ in made]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    for _, values in made:
        assert (values[0] == np.roll(np.arange(N), -80) + 80).all()


def test_an_interrupt_leaves_nobody_at_a_barrier(
    team: Team, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, values = rotations(compiler, 2)
    post = team._post

    def interrupted(*args: int) -> None:
        post(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(team, "_post", interrupted)
        team.run(program)
    team.run(program)
    assert (values[0] == np.roll(np.arange(N), -4) + 4).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_has_threads_of_its_own(team: Team, compiler: Compiler) -> None:
    program, values = rotations(compiler, 2)
    team.run(program)
    child = os.fork()
    if child == 0:
        team.run(program)
        os._exit(0 if (values[0] == np.roll(np.arange(N), -4) + 4).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    team.run(program)


def test_every_thread_begins_once(compiler: Compiler) -> None:
    begun: list[int] = []
    team = Team(compiler, 3, begin=begun.append, poll=0)
    program, _ = rotations(compiler, 2)
    for _ in range(3):
        team.run(program)
    team.close()
    assert sorted(begun) == [0, 1, 2]


def test_a_variable_that_no_instruction_has_is_ignored(compiler: Compiler) -> None:
    program, _ = rotations(compiler, 1)
    before = program.code.copy()
    program.set(other=5)
    assert (program.code == before).all()
    program.set(n=3)
    assert (program.code != before).sum() == 1


def test_everything_works_after_trimming(team: Team, compiler: Compiler) -> None:
    trim_memory()
    program, values = rotations(compiler, 2)
    team.run(program)
    assert (values[0] == np.roll(np.arange(N), -2) + 2).all()
