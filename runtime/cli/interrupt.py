"""Ctrl-C while text is generated."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Within it, Ctrl-C sets `pressed` and no more; a second one raises KeyboardInterrupt.

    An exception that a signal raises inside a call into torch can get lost there; a flag cannot.
    """

    def __init__(self) -> None:
        self.pressed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __enter__(self) -> Interrupt:
        self._previous: Any = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)
