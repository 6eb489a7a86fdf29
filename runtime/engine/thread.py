"""A thread that does an engine's steps, so that whoever submits requests need not."""

from __future__ import annotations

import atexit
import threading

from ..forks import Forked
from .engine import Engine


class EngineThread(Forked):
    """Steps while there is work, sleeps while there is none. If stepping itself fails, the requests that are there end
    with that error (Engine.step sees to it), and later ones are tried again.

    The interpreter ends after the step under way: a thread that it ends within native code would abort the process.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work, self._closing = threading.Event(), False
        engine.threaded, engine.wake = True, self._work.set
        self._start()
        atexit.register(self._stop)
        self.watch_forks()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="naiad engine", daemon=True)
        self._thread.start()

    def after_fork_in_child(self) -> None:
        """There is no thread; one begins with the first request."""
        self._work, begun = threading.Event(), threading.Lock()

        def wake() -> None:
            if self.engine.unusable is None and begun.acquire(blocking=False):
                self.engine.wake = self._work.set
                self._start()
            self._work.set()

        if self.engine.threaded:
            self.engine.wake = wake

    def _run(self) -> None:
        while not self._closing:
            self._work.clear()
            try:
                busy = self.engine.step()
            except Exception:
                busy = False
            if not busy and not self._closing:
                self._work.wait()

    def _stop(self) -> None:
        """No step begins any more; waits for the one under way."""
        self._closing = True
        self._work.set()
        self._thread.join()

    def close(self) -> None:
        """Ends what is running and waits for the thread."""
        self._stop()
        atexit.unregister(self._stop)
        self.engine.threaded = False
        self.engine.abort_all("the engine was closed")
        # Whoever still waits for something to be done between steps gets it.
        while self.engine.unusable is None and self.engine.step():
            pass
