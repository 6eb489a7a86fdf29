"""Messages from a terminal: line editing, and a history that outlives the program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import create_output

from ...loaders.private import private_folder
from .texts import argument_text


class PatientHistory(FileHistory):
    """A history that a chat does not need: what cannot be read or written is left out."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(argument_text(string, escape=False))


def edited_lines() -> Callable[[], str]:
    """A function that reads a message; a line that ends in \\ goes on in the next one."""
    session: PromptSession[str] = PromptSession(history=_history(), output=create_output(stdout=sys.stderr))

    def read() -> str:
        line = session.prompt("> ")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + session.prompt("  ")
        # The terminal may have sent bytes that are no text.
        return argument_text(line, escape=False)

    return read


def _history() -> History:
    try:
        # Conversations are appended to no file that somebody else has put there.
        folder = private_folder(Path.home() / ".local" / "state" / "naiad")
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return PatientHistory(str(folder.path / "history"))
