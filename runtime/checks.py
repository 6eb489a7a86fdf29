"""Values that callers give, checked where they come in: errors name the value, what was expected and what was found."""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Integral, Real
from typing import Any

import numpy as np

MAX_INT = 2**31 - 1
MAX_FLOAT = 3.4028234e38
# Characters of a value that a message quotes.
MAX_QUOTED = 60

_shortener = reprlib.Repr()
_shortener.maxstring = _shortener.maxother = _shortener.maxlong = MAX_QUOTED


def quoted(value: object) -> str:
    """A value for a message: short, however large it is."""
    try:
        text = _shortener.repr(value)
    except Exception:
        # An integer of more digits than Python converts, or an object that cannot say what it is.
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 2 * MAX_QUOTED else text[: 2 * MAX_QUOTED] + " …"


def integer(name: str, value: Any, low: int, high: int = MAX_INT) -> int:
    """An integer of any library in [low, high] as Python's; ValueError for others, true and false among them."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer, found {quoted(value)}")
    found: int = _within(name, int(value), low, high)
    return found


def number(name: str, value: Any, low: float = -MAX_FLOAT, high: float = MAX_FLOAT) -> float:
    """A number of any library in [low, high] as Python's float; ValueError for others, nan and true among them."""
    if isinstance(value, bool) or not isinstance(value, Real) or value != value:
        raise ValueError(f"{name} must be a number, found {quoted(value)}")
    # Before it becomes a float: an integer may be too large for one.
    return float(_within(name, value, low, high))


def _within(name: str, value: Any, low: float, high: float) -> Any:
    for limit, is_beyond, which in ((low, value < low, "least"), (high, value > high, "most")):
        if is_beyond:
            # 2^31 - 1 has ten digits.
            raise ValueError(f"{name} must be at {which} {limit:.10g}, found {quoted(value)}")
    return value


def switch(name: str, value: Any) -> bool:
    """True or false, numpy's included."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be true or false, found {quoted(value)}")
    return bool(value)


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, found {quoted(value)}")
    return value


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, found {quoted(value)}")
    return value


def path(name: str, value: Any) -> str | os.PathLike[str]:
    """TypeError for what is no path; bytes are none."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, found {quoted(value)}")
    return value


def texts(name: str, value: Any, max_texts: int, max_characters: int) -> tuple[str, ...]:
    """A list of texts, bounded in number and in what they have together; no more of it than that is looked at."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of texts, found {quoted(value)}")
    found = tuple(islice(value, max_texts + 1))
    if len(found) > max_texts:
        raise ValueError(f"{name} must be at most {max_texts} texts, found more")
    for each in found:
        if not isinstance(each, str):
            raise ValueError(f"{name} must be a list of texts, found {quoted(each)} in it")
    n = sum(map(len, found))
    if n > max_characters:
        raise ValueError(f"{name} must have at most {max_characters} characters together, found {n}")
    return found


def token(value: Any) -> int:
    """A token id as Python's integer, whatever library's integer it is. TypeError for anything else."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"expected token ids as integers, found {quoted(value)}") from None


def messages(value: Any) -> Sequence[Mapping[str, Any]]:
    """A conversation: a list of mappings with a role, and with a content that is a text, a list of parts or none."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise TypeError(f"expected a list of messages, found {quoted(value)}")
    if not value:
        raise ValueError("expected a list of messages, found an empty one")
    for i, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {i}: expected {{'role': …, 'content': …}}, found {quoted(message)}")
        if not isinstance(message.get("role"), str):
            raise ValueError(f"message {i}: expected a role as a text, found {quoted(message.get('role'))}")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list | tuple):
            raise ValueError(f"message {i}: expected a content as a text or a list of parts, found {quoted(content)}")
    return value
