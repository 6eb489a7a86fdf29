"""A thread that does an engine's steps, so that whoever submits requests need not."""

from __future__ import annotations

import atexit
import threading

from .engine import Engine


class EngineThread:
    """Steps while there is work, sleeps while there is none. If stepping itself fails, the requests that are there end
    with that error (Engine.step sees to it), and later ones are tried again.

    The interpreter ends after the step under way: a thread that it ends within native code would abort the process.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work, self._closing = threading.Event(), False
        engine.threaded, engine.wake = True, self._work.set
        self._thread = threading.Thread(target=self._run, name="naiad engine", daemon=True)
        self._thread.start()
        atexit.register(self._stop)

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
        while self.engine.step():
            pass
