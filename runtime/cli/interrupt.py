"""Ctrl-C while text is generated."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Within it, Ctrl-C sets `pressed` and no more; a second one ends the process, whatever it is doing.

    An exception that a signal raises inside a call into torch can get lost there; a flag cannot. And Python's handlers
    wait for such a call to return, so a thread of its own hears of the signals.
    """

    def __init__(self) -> None:
        self.pressed = False
        # Handlers are the main thread's; and a program that was started to ignore Ctrl-C goes on doing so.
        in_main = threading.current_thread() is threading.main_thread()
        self._wakes = in_main and signal.getsignal(signal.SIGINT) != signal.SIG_IGN

    def __enter__(self) -> Interrupt:
        if self._wakes:
            self._read, self._write = os.pipe()
            if sys.platform != "win32":
                os.set_blocking(self._write, False)
            self._thread = threading.Thread(target=self._listen, name="naiad interrupt", daemon=True)
            self._thread.start()
            self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._previous: Any = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True

    def _listen(self) -> None:
        """Reads the numbers of signals as they come, until a 0."""
        n_pressed = 0
        while (number := os.read(self._read, 1)) > b"\0":
            if number[0] == signal.SIGINT:
                self.pressed = True
                n_pressed += 1
            if n_pressed > 1:
                leave()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wakes:
            signal.signal(signal.SIGINT, self._previous)
            signal.set_wakeup_fd(self._previous_fd)
            os.write(self._write, b"\0")
            self._thread.join()
            os.close(self._read)
            os.close(self._write)


def leave() -> None:
    """Ends the process at once, as an interrupt ends it. What is still in buffers is not waited for."""
    with suppress(OSError):
        os.write(2, b"\n")
    if os.isatty(1):
        os.write(1, b"\x1b[0m")
    os._exit(130)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within it, Ctrl-C ends the process. For imports, in which an exception may turn into another one or get lost."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: leave())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
