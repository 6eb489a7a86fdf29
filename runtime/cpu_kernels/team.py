"""The threads that run programs: those of this file and the thread that asks for it.

A thread without work looks for some for a while (llama.cpp's --poll says how long), then sleeps until it is woken.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

import numpy as np

from ..forks import Forked
from .atomics import add_atomic, call_kernel, call_plain, exchange_atomic, load_atomic, pause
from .kernel import Compiler, kernel
from .language import inline
from .programs import ARGUMENTS, BARRIER, COUNTER, KERNEL, WIDTH, Program
from .scalars import load_int, store_int

# A team's state, in int64. The first is the state's own address, so that it can be the arguments of what runs here.
# What threads write to while others read has cache lines of its own.
PROGRAM, LENGTH, THREADS, YIELD, POLLS, SLEEPERS = 1, 2, 3, 4, 5, 6
ARRIVED, PHASE, LINES = 8, 16, 24
# A worker's line: how many programs it was given, whether it sleeps, how many it has run, whether it is to be woken.
TICKET, ASLEEP, DONE, WAKE, LINE = 0, 1, 2, 3, 8
# How often a thread looks before it lets others have its core.
SPINS = 1000
SPINS_PER_POLL = 200


@inline
def arrive(state, n_threads):
    """A barrier: returns when all threads have come."""
    phase = load_atomic(state + 8 * PHASE)
    if add_atomic(state + 8 * ARRIVED, 1) == n_threads - 1:
        exchange_atomic(state + 8 * ARRIVED, 0)
        add_atomic(state + 8 * PHASE, 1)
        return
    n = 0
    while load_atomic(state + 8 * PHASE) == phase:
        n += 1
        if n < SPINS:
            pause()
        else:
            call_plain(load_int(state + 8 * YIELD))


@inline
def walk(state, thread):
    """A thread's part of the program."""
    n, n_threads = load_int(state + 8 * LENGTH), load_int(state + 8 * THREADS)
    at = load_int(state + 8 * PROGRAM)
    for _ in range(n):
        call_kernel(load_int(at + 8 * KERNEL), at + 8 * ARGUMENTS, at + 8 * COUNTER, thread, n_threads)
        if n_threads > 1 and load_int(at + 8 * BARRIER) != 0:
            arrive(state, n_threads)
        at += 8 * WIDTH


@kernel
def post(state, counter, thread, n_threads):
    """Gives the program to the other threads; SLEEPERS becomes how many of them have to be woken: those with WAKE."""
    n_sleepers = 0
    for other in range(1, load_int(state + 8 * THREADS)):
        line = state + 8 * (LINES + LINE * other)
        add_atomic(line + 8 * TICKET, 1)
        if exchange_atomic(line + 8 * ASLEEP, 0) == 1:
            store_int(line + 8 * WAKE, 1)
            n_sleepers += 1
    store_int(state + 8 * SLEEPERS, n_sleepers)


@kernel
def take_part(state, counter, thread, n_threads):
    walk(state, thread)


@kernel
def work(state, counter, thread, n_threads):
    """A worker: runs what it is given, returns when there has been nothing for a while."""
    line = state + 8 * (LINES + LINE * thread)
    n = 0
    while True:
        if load_atomic(line + 8 * TICKET) != load_int(line + 8 * DONE):
            store_int(line + 8 * DONE, load_int(line + 8 * DONE) + 1)
            walk(state, thread)
            n = 0
        elif n < load_int(state + 8 * POLLS):
            n += 1
            pause()
        else:
            exchange_atomic(line + 8 * ASLEEP, 1)
            # Who posts has either seen this, takes it away and will wake, or is seen here.
            posted = load_atomic(line + 8 * TICKET) != load_int(line + 8 * DONE)
            if not posted or exchange_atomic(line + 8 * ASLEEP, 0) != 1:
                return
            n = 0


class Team(Forked):
    """Threads for programs, started when one is first to be run by several.

    begin: called with a thread's number in each thread before it first runs something, the calling one's included.
    poll: 0 (sleep at once) to 100.
    """

    def __init__(
        self, compiler: Compiler, n_threads: int, *, begin: Callable[[int], None] | None = None, poll: int = 50
    ) -> None:
        self.n_threads, self.begin = n_threads, begin
        self._state = np.zeros(LINES + LINE * n_threads + 8, np.int64)
        # To the beginning of a cache line.
        skip = -(self._state.ctypes.data // 8) % 8
        self.state = self._state[skip:]
        address = self.state.ctypes.data
        self.state[[0, YIELD, POLLS]] = address, _yield_address(), poll * SPINS_PER_POLL
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
        self._post, self._take_part, self._work = (function(compiler.address(k)) for k in (post, take_part, work))
        self._address = address
        self._stopped = False
        self._prepare()
        self.watch_forks()

    def _prepare(self) -> None:
        """A state in which nothing runs, without threads."""
        self._begun, self._lock = threading.local(), threading.Lock()
        self._wake = [threading.Semaphore(0) for _ in range(self.n_threads)]
        self.state[ARRIVED:] = 0
        self._workers: list[threading.Thread] = []

    def _start(self) -> None:
        """The threads. RuntimeError where the system gives none."""
        try:
            for i in range(1, self.n_threads):
                worker = threading.Thread(target=self._run_worker, args=(i,), daemon=True)
                worker.start()
                self._workers.append(worker)
        except RuntimeError:
            self.close()
            raise

    def after_fork_in_child(self) -> None:
        """The child gets none of the threads; it starts others when it has something for them."""
        self._prepare()

    def run(self, program: Program, n_threads: int | None = None) -> None:
        """Runs a program from beginning to end, on all threads or some; the caller works, too."""
        code, n_threads = program.code, n_threads or self.n_threads
        with self._lock:
            self._begin(0)
            code[:, COUNTER] = 0
            code[-1, BARRIER] = 1
            self.state[PROGRAM : THREADS + 1] = code.ctypes.data, len(code), n_threads
            if n_threads == 1:
                self._take_part(self._address, 0, 0, 0)
                return
            if not self._workers:
                self._start()
            self.state[SLEEPERS] = -1
            try:
                self._post(self._address, 0, 0, 0)
            finally:
                # Once the others have begun they need this thread at their barriers, interrupted or not.
                if self.state[SLEEPERS] >= 0:
                    self._wake_sleepers(n_threads)
                    self._take_part(self._address, 0, 0, 0)

    def close(self) -> None:
        """Ends the threads."""
        self._stopped = True
        for wake in self._wake:
            wake.release()
        for worker in self._workers:
            worker.join()
        self._stopped = False
        self._prepare()

    def _wake_sleepers(self, n_threads: int) -> None:
        for i in range(1, n_threads if self.state[SLEEPERS] else 0):
            wake = LINES + LINE * i + WAKE
            if self.state[wake]:
                self._wake[i].release()
                self.state[wake] = 0

    def _run_worker(self, thread: int) -> None:
        self._begin(thread)
        while True:
            self._work(self._address, 0, thread, 0)
            self._wake[thread].acquire()
            if self._stopped:
                return

    def _begin(self, thread: int) -> None:
        if self.begin is not None and not hasattr(self._begun, "done"):
            self._begun.done = True
            self.begin(thread)


def _yield_address() -> int:
    """Of a system function without arguments that lets other threads run."""
    if sys.platform == "win32":
        function = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
