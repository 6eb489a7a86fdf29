"""Command-line options as a table, and the parser that follows llama.cpp's rules.

`--a_b` is `--a-b`; the environment (LLAMA_ARG_*) sets what the command line does not; the last of two wins, with a
warning. Values may begin with a dash. Unknown options and impossible values raise UsageError.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TRUE_WORDS, FALSE_WORDS = ("true", "1", "on", "enabled"), ("false", "0", "off", "disabled")
AUTO_WORDS = ("auto", "-1")


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
        value = int(_number(_INTEGER, "an integer", text))
        if not low <= value <= high:
            raise ValueError(f"expected an integer from {low} to {high}, found {value}")
        return value

    return convert


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = real(text)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}, found {shortened(text)}")
        return value

    return convert


# What std::stoi and std::stof read: the longest beginning that is a number, after white space.
_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]+)")
_REAL = re.compile(
    r"[ \t\n\v\f\r]*([+-]?(?:0x(?:[0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(?:p[+-]?[0-9]+)?|inf(?:inity)?|nan"
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?))",
    re.IGNORECASE,
)
# Python refuses to convert more digits than some thousands, and no number here needs them.
MAX_DIGITS = 400


def real(text: str) -> float:
    """A number as std::stof reads it, decimal or hexadecimal, infinite or none."""
    found = _number(_REAL, "a number", text)
    try:
        return float.fromhex(found) if "x" in found.lower() else float(found)
    except OverflowError:
        return math.inf


def _number(pattern: re.Pattern[str], expected: str, text: str) -> str:
    """The beginning of a text that is a number. What follows it is passed over, as in llama.cpp, but not in silence."""
    match = pattern.match(text)
    if match is None or len(match[1]) > MAX_DIGITS:
        raise ValueError(f"expected {expected}, found {shortened(text)!r}")
    if text[match.end() :].strip():
        print(f"warning: {shortened(text)!r} is read as {match[1]}", file=sys.stderr)
    return match[1]


def shortened(text: str, n: int = 60) -> str:
    return text if len(text) <= n else text[: n - 3] + "..."


def one_of(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"expected one of {', '.join(words)}, found {shortened(text)!r}")
        return text.lower()

    return convert


def switch(text: str) -> bool:
    """on or off, in any of llama.cpp's words, or as a number."""
    if text.lower() in TRUE_WORDS + FALSE_WORDS:
        return text.lower() in TRUE_WORDS
    match = _INTEGER.fullmatch(text)
    if match is None or len(match[1]) > MAX_DIGITS:
        raise ValueError(f"expected on or off, 1 or 0, found {shortened(text)!r}")
    return int(match[1]) != 0


def on_off_auto(text: str) -> str:
    """ "on", "off" or "auto", in any of llama.cpp's words for them."""
    word = text.lower()
    for meaning, words in (("on", TRUE_WORDS), ("off", FALSE_WORDS), ("auto", AUTO_WORDS)):
        if word in words:
            return meaning
    raise ValueError(f"expected one of on, off, auto, found {shortened(text)!r}")


def layer_count(text: str) -> int | None:
    """-ngl: a number, or None for "auto" and "all", which -1 and -2 are, too."""
    n = -1 if text.lower() in ("auto", "all") else integer(-(2**31))(text)
    return None if n < 0 else n


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
                    raise UsageError(f"invalid argument: {shortened(word)}")
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
                raise UsageError(f"{option.env} must be on or off, found {shortened(text)!r}")
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
