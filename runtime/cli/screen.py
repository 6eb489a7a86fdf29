"""What goes out: nothing that a model's file or a model itself writes steers the terminal.

Of control sequences (ECMA-48) colours pass, all else is written as Python writes it, \\x1b[2J. Into a file or a pipe
the lone control characters pass, too, but not escape and its 8-bit relatives, as what reads a pipe often is a terminal.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO, cast

# ESC [ numbers m: colours, bold, reset. A sequence may be split over writes, and is never longer than this.
_COLOUR = r"\x1b\[[0-9;:]{0,62}m"
_BEGUN = re.compile(r"\x1b(?:\[[0-9;:]{0,62})?\Z")
_BEGUN_OR_RETURN = re.compile(_BEGUN.pattern + r"|\r\Z")
# Besides controls: what reorders the text around it (Unicode's embeddings and overrides).
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]"
_STEERING = re.compile(rf"(?P<colour>{_COLOUR})|\r(?!\n)|{_CONTROL}")
_NEVER = re.compile(r"(?!)")
_MESSAGE = re.compile(_CONTROL)
_ESCAPING = re.compile(rf"(?P<colour>{_COLOUR})|[\x1b\x80-\x9f]")


class Nowhere(io.StringIO):
    """What stands for a stream that is closed."""

    def write(self, text: str) -> int:
        return len(text)


class Screen:
    """A text stream without what steers a terminal. All else is that of the stream below it.

    messages: for what the program itself says, without colours, whose progress bar goes back in its line. What cannot
    be written is left out there, as nobody could be told; elsewhere it is an OSError.
    """

    def __init__(self, stream: TextIO | None, *, messages: bool = False) -> None:
        self.stream = stream if stream is not None else cast(TextIO, Nowhere())
        self.is_closed = stream is None
        self.messages = messages
        if messages:
            self._pattern, self._begun = _MESSAGE, _NEVER
        elif self.stream.isatty():
            self._pattern, self._begun = _STEERING, _BEGUN_OR_RETURN
        else:
            self._pattern, self._begun = _ESCAPING, _BEGUN
        self._give: Callable[[str], object] = self._give_what_can_be if messages else self.stream.write
        self._held, self._coloured = "", False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not self._held and (text.isprintable() or text == "\n"):
            self._give(text)
            return len(text)
        whole = self._held + text
        begun = self._begun.search(whole)
        end = begun.start() if begun else len(whole)
        self._held = whole[end:]
        self._give(self._pattern.sub(self._passed, whole[:end]))
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            if not self.messages:
                raise

    def settle(self) -> None:
        """Where a text ends: colours end, too, and what was held back as the beginning of one is written."""
        rest, self._held = self._held, ""
        self._give(written_out(rest) if rest != "\r" else "")
        if self._coloured:
            self._coloured = False
            self._give("\x1b[0m")

    def discard(self) -> None:
        """Lets what is still to be written go nowhere: nobody reads it, or there is no room."""
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def _passed(self, match: re.Match[str]) -> str:
        if match.lastgroup is None:
            return written_out(match[0])
        self._coloured = match[0] not in ("\x1b[m", "\x1b[0m")
        return match[0]

    def _give_what_can_be(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self.stream.write(text)


def written_out(text: str) -> str:
    """Control characters as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def end_text() -> None:
    """A text of the model has ended on stdout."""
    if isinstance(sys.stdout, Screen):
        sys.stdout.settle()


def open_standard_files() -> None:
    """Opens those of the files 0, 1 and 2 that are closed, or the next file to be opened would get their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
