"""What a child process gets that os.fork has made: all of this process's memory, and only the thread that forked.

Locks that other threads hold stay locked there for ever, and whoever counts on threads waits for them. So locks are
taken for the moment of a fork, and threads are started anew in the child when they are first needed.
"""

from __future__ import annotations

import ctypes
import os
import re
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

# omp_pause_hard of OpenMP 5.0.
PAUSE_HARD = 2


class Forked:
    """Something that is told of every fork of its process, in the thread that forks, from `watch_forks` on until nobody
    has it any more. Nothing happens on systems without fork."""

    def before_fork(self) -> None: ...
    def after_fork_in_parent(self) -> None: ...
    def after_fork_in_child(self) -> None: ...

    def watch_forks(self) -> None:
        if not hasattr(os, "register_at_fork"):
            return
        found = weakref.ref(self)

        def call(name: str) -> Callable[[], None]:
            def at_fork() -> None:
                if (owner := found()) is not None:
                    getattr(owner, name)()

            return at_fork

        os.register_at_fork(
            before=call("before_fork"),
            after_in_parent=call("after_fork_in_parent"),
            after_in_child=call("after_fork_in_child"),
        )


@cache
def prepare_torch() -> _TorchThreads:
    """Lets torch's operations run in child processes. Its threads are GNU OpenMP's, which does not know forks."""
    threads = _TorchThreads(_openmp())
    threads.watch_forks()
    return threads


class _TorchThreads(Forked):
    """Ends the threads that the thread which forks has in OpenMP's pools; both processes start others when they need
    them. Where that is not possible, the child does without."""

    def __init__(self, libraries: list[ctypes.CDLL]) -> None:
        self.libraries, self.gone = libraries, True

    def before_fork(self) -> None:
        self.gone = True
        for library in self.libraries:
            pause = getattr(library, "omp_pause_resource_all", None)
            self.gone = pause is not None and pause(PAUSE_HARD) == 0 and self.gone

    def after_fork_in_child(self) -> None:
        if not self.gone:
            torch.set_num_threads(1)


def _openmp() -> list[ctypes.CDLL]:
    """The copies of GNU OpenMP in this process. Other OpenMPs look after forks themselves."""
    found = []
    with suppress(OSError, UnicodeDecodeError):
        paths = re.findall(r"/\S*/libgomp[^/\s]*\.so\S*", Path("/proc/self/maps").read_text())
        for path in dict.fromkeys(paths):
            with suppress(OSError):
                found.append(ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY))
    return found
