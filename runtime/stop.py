"""Stop texts: cuts a stream of text at the first of them, and holds back what may become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Put text in, get out what is certainly before any stop text. `found` says that one came."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = [s for s in stops if s]
        self.held = ""
        self.found = False

    def put(self, text: str) -> str:
        if self.found:
            return ""
        if not self.stops:
            return text
        self.held += text
        places = [i for i in (self.held.find(s) for s in self.stops) if i >= 0]
        if places:
            self.found = True
            out, self.held = self.held[: min(places)], ""
            return out
        n_out = len(self.held) - self._n_open()
        out, self.held = self.held[:n_out], self.held[n_out:]
        return out

    def _n_open(self) -> int:
        """The length of the longest end of the held text that begins a stop text."""
        longest = min(len(self.held), max(map(len, self.stops)) - 1)
        for n in range(longest, 0, -1):
            if any(s.startswith(self.held[-n:]) for s in self.stops):
                return n
        return 0

    def finish(self) -> str:
        """What was held back when the stream ends."""
        out, self.held = self.held, ""
        return out
