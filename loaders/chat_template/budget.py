"""What one rendering may use up. Every operation that costs more than a constant pays here before it runs.

Two currencies: steps (nodes of the template that run, a fraction of a microsecond each) bound the time in the
interpreter; characters (read, compared, copied or made) bound memory and the time inside single operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from jinja2.exceptions import TemplateRuntimeError
from jinja2.runtime import LoopContext

MAX_STEPS = 2_000_000
MAX_CHARS = 2**25
# Long conversations need more: some templates look through all messages at each or add each to one growing text,
# and every text is tested, cut, joined and printed a few times.
STEPS_PER_MESSAGE = 10_000
CHARS_PER_INPUT_CHAR = 64
MAX_CHARS_LONG = 2**30
MAX_OUTPUT = 2**24
MAX_CALL_DEPTH = 100
MAX_NESTING = 100
MAX_INT_BITS = 4096

# What things count as, in steps
CALL = 20  # of a function or method
FILTER = 5  # or test, or printed piece of a formatted or JSON text

# What things count as, in characters: about their bytes.
ITEM = 32  # a number or a container
REFERENCE = 8  # a place in a list
LOOSE_CHAR = 64  # a character cut out of its string

VIEWS: tuple[type[Sized], ...] = (type({}.keys()), type({}.values()), type({}.items()))
CONTAINERS: tuple[type[Sized], ...] = (list, tuple, dict, *VIEWS)


class LimitError(TemplateRuntimeError):
    """The template asked for more than a rendering may use."""


class Budget:
    """What is left for this rendering; `spend` raises LimitError when it is gone."""

    def __init__(self, n_messages: int, input_size: int) -> None:
        """input_size: size (see `tree_size`) of everything that the caller handed to the template."""
        self.steps = MAX_STEPS + STEPS_PER_MESSAGE * n_messages
        self.chars = min(MAX_CHARS + (CHARS_PER_INPUT_CHAR + n_messages) * input_size, MAX_CHARS_LONG)
        self.calls = 0

    def spend(self, steps: int = 0, chars: int = 0) -> None:
        self.steps -= steps
        self.chars -= chars
        if self.steps < 0:
            raise LimitError("it runs too long: loops and calls are limited")
        if self.chars < 0:
            raise LimitError("it handles too much text: the sizes of its values are limited")

    def read(self, *values: Any, times: int = 1) -> None:
        """Pays for going through whole values, as printing or sorting them does."""
        for value in values:
            size = len(value) if isinstance(value, str) else tree_size(value, self.chars)
            self.spend(chars=times * size)

    def drain(self, values: Iterable[Any]) -> list[Any]:
        """The items of a generator, paid for one by one."""
        out = []
        for item in values:
            self.spend(steps=1, chars=ITEM)
            out.append(item)
        return out

    def made(self, value: Any) -> Any:
        """Pays for a new value (its items, if any, were there before) and returns it."""
        if isinstance(value, str):
            self.spend(chars=len(value))
        elif isinstance(value, CONTAINERS):
            self.spend(chars=REFERENCE * len(value))
        elif isinstance(value, int):
            check_int(value)
        return value


def check_int(value: int) -> None:
    if value.bit_length() > MAX_INT_BITS:
        raise LimitError(f"a number has {value.bit_length()} bits, the limit is {MAX_INT_BITS}")


def is_lazy(value: Any) -> bool:
    """Whether the value is an iterator that can be used once, as jinja's map and select return."""
    return isinstance(value, Iterator) and not isinstance(value, LoopContext)


def tree_size(value: Any, limit: int) -> int:
    """Characters and items of a value as printing sees it: what it holds twice counts twice.

    Stops with LimitError above `limit` and at containers nested deeper than MAX_NESTING, because CPython's own
    recursion (hash, repr, ==) over a nest built by a template may be exponential or overflow the C stack.
    """
    total = 0
    stack: list[Iterator[Any]] = [iter((value,))]
    while stack:
        for item in stack[-1]:
            if isinstance(item, str):
                total += REFERENCE + len(item)
            else:
                total += ITEM
                if isinstance(item, CONTAINERS):
                    stack.append(_children(item))
                    break
            if total > limit:
                raise LimitError("it handles too much text: the sizes of its values are limited")
        else:
            stack.pop()
        if len(stack) > MAX_NESTING:
            raise LimitError(f"its values are nested deeper than {MAX_NESTING} levels")
    return total


def _children(container: Any) -> Iterator[Any]:
    if isinstance(container, dict):
        return (part for pair in container.items() for part in pair)
    return iter(container)
