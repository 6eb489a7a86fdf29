"""Command-line options as a table, and the parser that follows llama.cpp's rules.

`--a_b` is `--a-b`; the environment (LLAMA_ARG_*) sets what the command line does not; the last of two wins, with a
warning. Values may begin with a dash. Unknown options and impossible values raise UsageError.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TRUE_WORDS, FALSE_WORDS = ("true", "1", "on", "enabled"), ("false", "0", "off", "disabled")


class UsageError(ValueError):
    """A command line that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `convert` turns its text into a value (None: a switch that takes none); ValueErrors name the option.

    names: all spellings, the last one long and the key of the parsed value. off: spellings that switch it off.
    many: may be given more than once; the value is a list then.
    """

    names: tuple[str, ...]
    help: str
    convert: Callable[[str], Any] | None = None
    metavar: str = ""
    default: Any = None
    off: tuple[str, ...] = ()
    env: str = ""
    many: bool = False

    @property
    def key(self) -> str:
        return self.names[-1].lstrip("-").replace("-", "_")


def integer(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"expected an integer, found {text!r}") from None
        if not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}, found {value}")
        return value

    return convert


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"expected a number, found {text!r}") from None
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}, found {text}")
        return value

    return convert


def one_of(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)}, found {text!r}")
        return text.lower()

    return convert


def layer_count(text: str) -> int | None:
    """-ngl: a number, or None for "auto" and "all"."""
    return None if text in ("auto", "all") else integer(0)(text)


HELP = Option(("-h", "--help"), "print this help and exit")


class Parser:
    """Parses a command's arguments into a dict of all its options' values, keys as Option.key has them."""

    def __init__(self, command: str, summary: str, options: Sequence[Option]) -> None:
        self.command, self.summary, self.options = command, summary, [*options, HELP]
        self.by_name = {name: (o, True) for o in self.options for name in o.names}
        self.by_name |= {name: (o, False) for o in self.options for name in o.off}

    def parse(self, arguments: Sequence[str], environment: Mapping[str, str], n_positional: int = 0) -> dict[str, Any]:
        """`positional` in the result lists the arguments that are no options, at most n_positional of them."""
        values: dict[str, Any] = {o.key: o.default for o in self.options}
        values |= self._from_environment(environment)
        values["positional"] = []
        seen: set[str] = set()
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            name = word.replace("_", "-") if word.startswith("--") else word
            if name not in self.by_name:
                if word.startswith("-") or len(values["positional"]) == n_positional:
                    raise UsageError(f"invalid argument: {word}")
                values["positional"].append(word)
                continue
            option, on = self.by_name[name]
            if option.key in seen and not option.many:
                print(f"warning: {word} is given more than once, the last one counts", file=sys.stderr)
            seen.add(option.key)
            if option.convert is None or not on:
                values[option.key] = on
            elif rest:
                value = _convert(option, word, rest.pop(0))
                values[option.key] = [*(values[option.key] or ()), value] if option.many else value
            else:
                raise UsageError(f"{word} needs a value: {option.metavar}")
        return values

    def _from_environment(self, environment: Mapping[str, str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for option in self.options:
            text = environment.get(option.env) if option.env else None
            if text is None:
                continue
            if option.convert is not None:
                values[option.key] = _convert(option, option.env, text)
            elif text.lower() in TRUE_WORDS + FALSE_WORDS:
                values[option.key] = text.lower() in TRUE_WORDS
            else:
                raise UsageError(f"{option.env} must be on or off, found {text!r}")
        return values

    def usage(self) -> str:
        lines = [f"usage: naiad {self.command} [options]", "", self.summary, ""]
        for option in self.options:
            names = ", ".join((*option.names, *option.off)) + (f" {option.metavar}" if option.metavar else "")
            default = f" (default: {option.default})" if option.default not in (None, False, "") else ""
            env = f" [{option.env}]" if option.env else ""
            lines.append(f"  {names}")
            lines.append(f"        {option.help}{default}{env}")
        return "\n".join(lines)


def _convert(option: Option, name: str, text: str) -> Any:
    assert option.convert is not None
    try:
        return option.convert(text)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def process_escapes(text: str) -> str:
    r"""\n, \r, \t, \', \", \\ and \xHH become what they stand for; other backslashes stay, as in llama.cpp."""
    out, i = [], 0
    while i < len(text):
        following = text[i + 1 : i + 2]
        if text[i] == "\\" and following in _ESCAPES and following:
            out.append(_ESCAPES[following])
            i += 2
        elif text[i : i + 2] == "\\x" and len(digits := text[i + 2 : i + 4]) == 2 and _is_hex(digits):
            out.append(chr(int(digits, 16)))
            i += 4
        else:
            out.append(text[i])
            i += 1
    return "".join(out)


def _is_hex(digits: str) -> bool:
    return all(d in "0123456789abcdefABCDEF" for d in digits)
