"""The command line, `naiad COMMAND`. Results go to stdout, everything else to stderr.

Exit codes are llama.cpp's: 0, 1 for an error, 130 for an interrupt. Only this package reads the environment.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import TextIO, cast

from .interrupt import leaving_at_once
from .options import UsageError, shortened
from .screen import Screen, open_standard_files

# Each command is a module with PARSER and `main(values) -> exit code`; imported when asked for; torch, which is slow to
# import, when a model is loaded (importing.py).
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
    open_standard_files()
    _use_utf8(sys.stdout, sys.stderr)
    warnings.showwarning = _print_warning
    out, err = Screen(sys.stdout), Screen(sys.stderr, messages=True)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        if out.is_closed:
            return _refuse("stdout is closed")
        code = _guarded(words, out)
        err.settle()
        err.flush()
        if arguments is not None:
            # Called from a program that goes on, whose objects must not be kept for good (importing.py).
            gc.unfreeze()
        return code


def _guarded(words: list[str], out: Screen) -> int:
    try:
        code = _run(words)
        out.settle()
        out.flush()
        return code
    except UsageError as error:
        return _refuse(f"{error}\nto show complete usage, run with -h")
    except BrokenPipeError:
        # The reader of our output has left; the interpreter must still be able to flush it.
        out.discard()
        return 0
    except (ValueError, OSError, MemoryError, ImportError, RuntimeError) as error:
        try:
            out.settle()
            out.flush()
        except OSError:
            out.discard()
        return _refuse(str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _refuse(message: str) -> int:
    print("error: " + message.replace("\r", "\\r"), file=sys.stderr)
    return 1


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if words else sys.stderr)
        return 0 if words else 1
    if words[0] == "--version":
        return print_version()
    if words[0] not in COMMANDS:
        return _refuse(f"invalid command: {shortened(words[0])}, expected one of {', '.join(COMMANDS)}")
    with leaving_at_once():
        module = importlib.import_module("." + words[0].replace("-", "_"), __name__)
    values = module.PARSER.parse(words[1:], os.environ, module.N_POSITIONAL)
    if values["help"]:
        print(module.PARSER.usage())
        return 0
    code: int = module.main(values)
    return code


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Without the place in the program, which is of no use on a command line."""
    print("warning: " + str(message).replace("\r", "\\r"), file=sys.stderr)


def print_version() -> int:
    from naiad import __version__

    print(f"naiad {__version__}", file=sys.stderr)
    return 0


def _use_utf8(*streams: TextIO) -> None:
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
