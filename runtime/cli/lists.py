"""Options that take several values: lists, ranges, and the option given again, as llama-bench reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .options import Option, integer

# A range of more values than this is a slip.
MAX_VALUES = 10000


def number_list(low: int, high: int = 2**31 - 1) -> Callable[[str], list[int]]:
    """A converter for "1,2,3" and ranges: "first-last", "first-last+step", "first-last*factor"."""
    check = integer(low, high)

    def convert(text: str) -> list[int]:
        values: list[int] = []
        for part in text.split(","):
            match = re.fullmatch(r"(-?\d+)(?:-(\d+)(?:([+*])(\d+))?)?", part)
            if match is None:
                raise ValueError(f"expected numbers or ranges like 1-8, 1-8+2 or 1-8*2, found {part!r}")
            first, last = check(match[1]), check(match[2] or match[1])
            values += _range(first, last, match[3] or "+", int(match[4] or 1))
        return values

    return convert


def _range(first: int, last: int, sign: str, by: int) -> Iterator[int]:
    value, n = first, 0
    if first > last:
        raise ValueError(f"expected a range that goes up, found {first}-{last}")
    while value <= last:
        yield value
        following = value + by if sign == "+" else value * by
        n += 1
        if following <= value or n > MAX_VALUES:
            raise ValueError(f"expected a range of at most {MAX_VALUES} values, found {first}-{last}{sign}{by}")
        value = following


def word_list(check: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [check(word) for word in text.split(",")]


def layer_list(text: str) -> list[int | None]:
    """-ngl: numbers and ranges; -1, "auto" and "all" are all layers, None."""
    numbers = number_list(-1)
    found: list[int | None] = []
    for word in text.split(","):
        found += [None] if word in ("auto", "all") else [None if n < 0 else n for n in numbers(word)]
    return found


def pair(text: str) -> list[tuple[int, int]]:
    """-pg: "pp,tg"."""
    numbers = [integer(0)(word) for word in text.split(",")]
    if len(numbers) != 2:
        raise ValueError(f"expected two numbers like 512,128, found {text!r}")
    return [(numbers[0], numbers[1])]


def listed(option: Option, values: Mapping[str, Any]) -> list[Any]:
    """All the values of an option whose texts are lists, wherever they were given; without any, an empty list."""
    return [value for part in values[option.key] or () for value in part]
