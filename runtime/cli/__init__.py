"""The command line, `naiad COMMAND`. Results go to stdout, everything else to stderr.

Exit codes are llama.cpp's: 0, 1 for an error, 130 for an interrupt. Only this package reads the environment.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from .options import UsageError

# Each command is a module with PARSER and `main(values) -> exit code`; imported when asked for, as torch is slow to.
COMMANDS = {
    "run": "generate text or chat with a model",
    "tokenize": "show how a model splits text into tokens",
    "info": "show what a model file holds",
    "fit": "say which options make a model fit into memory",
    "bench": "time prompts and generation",
    "batched-bench": "time many sequences at once",
}

USAGE = "usage: naiad COMMAND [options]\n\n" + "\n".join(f"  {name:<14} {text}" for name, text in COMMANDS.items())
USAGE += "\n\n`naiad COMMAND --help` lists a command's options; `naiad --version` prints the version."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the process's arguments unless others are given. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _use_utf8(sys.stdout, sys.stderr)
    warnings.showwarning = _print_warning
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if words else sys.stderr)
        return 0 if words else 1
    if words[0] == "--version":
        return print_version()
    if words[0] not in COMMANDS:
        print(f"error: invalid command: {words[0]}, expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 1
    module = importlib.import_module("." + words[0].replace("-", "_"), __name__)
    try:
        values = module.PARSER.parse(words[1:], os.environ, module.N_POSITIONAL)
        if values["help"]:
            print(module.PARSER.usage())
            return 0
        return _guarded(module, values)
    except UsageError as error:
        print(f"error: {error}\nto show complete usage, run with -h", file=sys.stderr)
        return 1


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Without the place in the program, which is of no use on a command line."""
    print(f"warning: {message}", file=sys.stderr)


def print_version() -> int:
    from naiad import __version__

    print(f"naiad {__version__}", file=sys.stderr)
    return 0


def _guarded(module: Any, values: dict[str, Any]) -> int:
    try:
        code: int = module.main(values)
        sys.stdout.flush()
        return code
    except UsageError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output has left; give the interpreter a stdout that it can still flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"error: {error or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _use_utf8(*streams: TextIO) -> None:
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
