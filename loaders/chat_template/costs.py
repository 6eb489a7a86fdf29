"""What jinja's operators, filters, tests and methods cost, paid before they run.

Only what is listed here exists for templates: an operation whose worst case nobody has thought about (striptags and
encode are quadratic, urlize and pprint unbounded) is missing rather than trusted.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from jinja2.runtime import Undefined

from .budget import CONTAINERS, LOOSE_CHAR, MAX_INT_BITS, REFERENCE, Budget, LimitError, check_int

Cost = Callable[..., None]

MAX_WIDTH = 9999  # of a padded field, an indentation or a group
MAX_PRECISION = 100
# In % formats a width stands after the flags, those after % or (key); a star takes it from the arguments.
PERCENT_WIDTH = re.compile(r"[%)][-+ #0-9.*]*[0-9]{5}")
PERCENT_STAR = re.compile(r"%[-+ #0-9.]*\*")
FIELD_WIDTH = re.compile(r"\d{5}")  # \d: format takes the digits of every script

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda item, container: item in container,
    "notin": lambda item, container: item not in container,
}


def compare(budget: Budget, op: str, left: Any, right: Any) -> None:
    """CPython stops at the first difference, so the smaller side bounds the cost; we pay for the left one."""
    if isinstance(left, str) and isinstance(right, str):
        budget.spend(chars=len(right) if op in ("in", "notin") else min(len(left), len(right)))
    elif op in ("in", "notin"):
        search(budget, () if isinstance(right, dict) else right, left)
    elif isinstance(left, CONTAINERS) and isinstance(right, CONTAINERS):
        budget.read(left)


def binary(budget: Budget, op: str, left: Any, right: Any) -> None:
    """Operators exist for numbers and for sequences, as far as they mean something there."""
    if isinstance(left, Undefined) or isinstance(right, Undefined):
        return  # the operation itself raises, with the name of what is undefined
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        for value in (left, right):
            if isinstance(value, int):
                check_int(value)
        whole = isinstance(left, int) and isinstance(right, int)
        if op == "**" and whole and int(left).bit_length() * right > MAX_INT_BITS:
            raise LimitError(f"{left} ** {right} is too large")
    elif op == "+" and type(left) is type(right) and isinstance(left, (str, list, tuple)):
        budget.spend(chars=_copied(left) + _copied(right))
    elif op == "*" and isinstance(left, (str, list, tuple)) and isinstance(right, int):
        budget.spend(chars=_copied(left) * max(right, 0))
    elif op == "*" and isinstance(right, (str, list, tuple)) and isinstance(left, int):
        budget.spend(chars=_copied(right) * max(left, 0))
    elif op == "%" and isinstance(left, str):
        percent(budget, left, right)
    else:
        raise TypeError(f"{op} is not defined for {type(left).__name__} and {type(right).__name__}")


def _copied(value: str | list[Any] | tuple[Any, ...]) -> int:
    return len(value) if isinstance(value, str) else REFERENCE * len(value)


def percent(budget: Budget, template: Any, /, *values: Any, **named: Any) -> None:
    """printf-style formatting: every field may print every value, padded to the longest width in the text."""
    if not isinstance(template, str):
        raise TypeError(f"format expects a text, found {type(template).__name__}")
    budget.spend(chars=len(template))
    if PERCENT_WIDTH.search(template) or PERCENT_STAR.search(template):
        raise LimitError(f"a format with a field wider than {MAX_WIDTH} or as wide as an argument says")
    n_fields = template.count("%")
    budget.spend(chars=MAX_WIDTH * n_fields if re.search(r"[0-9]", template) else 0)
    budget.read((*values, *named.values()), times=n_fields + 1)


def check_field(spec: str) -> None:
    """The part after the colon of str.format's fields."""
    if FIELD_WIDTH.search(spec):
        raise LimitError(f"a format with a field wider than {MAX_WIDTH}")


def _width(value: Any) -> int:
    """A small number, as it must be; a text stands for its length."""
    n = len(value) if isinstance(value, str) else value
    if not isinstance(n, int) or not 0 <= n <= MAX_WIDTH:
        raise LimitError(f"a width or count of {n!r:.20}, it must be from 0 to {MAX_WIDTH}")
    return n


def constant(budget: Budget, *args: Any, **kwargs: Any) -> None:
    """Costs no more than the steps that every call pays."""


def text(budget: Budget, *args: Any, **kwargs: Any) -> None:
    """Goes once through its arguments."""
    budget.read(*args, *kwargs.values())


def words(budget: Budget, *args: Any, **kwargs: Any) -> None:
    """Cuts a text to pieces, or makes several characters of each."""
    budget.read(*args, *kwargs.values(), times=LOOSE_CHAR // 2)


def iterate(budget: Budget, value: Any, /, *args: Any, **kwargs: Any) -> None:
    """Goes through the items of a value; each may be asked for an attribute path."""
    n = len(value) if hasattr(value, "__len__") else 1
    budget.read(*args, *kwargs.values(), times=max(n, 1))
    budget.spend(steps=n, chars=n * (LOOSE_CHAR if isinstance(value, str) else REFERENCE))


def order(budget: Budget, value: Any, /, *args: Any, **kwargs: Any) -> None:
    """Compares items with each other, n log n times."""
    iterate(budget, value, *args, **kwargs)
    budget.read(value, times=len(value).bit_length() if hasattr(value, "__len__") else 1)


def center(budget: Budget, value: Any, width: int = 80) -> None:
    budget.spend(chars=_width(width))
    budget.read(value)


def indent(budget: Budget, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> None:
    budget.read(value, times=2)
    n_lines = len(str(value).splitlines()) + 1
    budget.spend(chars=n_lines * (LOOSE_CHAR + _width(width)))


def join(budget: Budget, value: Any, d: Any = "", attribute: Any = None) -> None:
    iterate(budget, value, d, attribute)
    budget.read(value)


def replace(budget: Budget, value: Any, old: Any, new: Any, count: int | None = None) -> None:
    budget.read(value, old, new)
    budget.spend(chars=str(value).count(str(old)) * len(str(new)))


def trim(budget: Budget, value: Any, chars: str | None = None) -> None:
    """Looks each character up in the others."""
    budget.read(value, times=max(len(chars or ""), 1))


def batch(budget: Budget, value: Any, linecount: int, fill_with: Any = None) -> None:
    iterate(budget, value)
    budget.spend(chars=LOOSE_CHAR * _width(linecount))


def group(budget: Budget, value: Any, slices: int, fill_with: Any = None) -> None:
    batch(budget, value, slices)


def numbers(budget: Budget, value: Any, /, *args: Any, **kwargs: Any) -> None:
    """For what would format or repeat if it met a text."""
    for number in (value, *args):
        if not isinstance(number, (int, float, Undefined)):
            raise TypeError(f"expected a number, found {type(number).__name__}")


def rounding(budget: Budget, value: Any, precision: int = 0, method: str = "common") -> None:
    numbers(budget, value)
    if not isinstance(precision, int) or abs(precision) > MAX_PRECISION:
        raise LimitError(f"a precision of {precision!r:.20}, the limit is {MAX_PRECISION}")


def total(budget: Budget, value: Any, attribute: Any = None, start: Any = 0) -> None:
    # Adding lists to each other is quadratic.
    numbers(budget, start)
    iterate(budget, value, attribute)


FILTERS: dict[str, Cost] = {
    name: cost
    for cost, names in (
        (constant, "abs count d default first last length random"),
        (text, "capitalize e escape filesizeformat float forceescape int lower safe string upper"),
        (words, "title truncate urlencode wordcount"),
        (iterate, "items list map reject rejectattr reverse select selectattr"),
        (order, "dictsort groupby max min sort unique"),
        (batch, "batch"),
        (center, "center"),
        (indent, "indent"),
        (join, "join"),
        (lambda budget, value, name: budget.read(name), "attr"),
        (percent, "format"),
        (replace, "replace"),
        (rounding, "round"),
        (group, "slice"),
        (total, "sum"),
        (trim, "trim"),
    )
    for name in names.split()
}

TESTS: dict[str, Cost] = {
    name: cost
    for cost, names in (
        (constant, "boolean callable defined escaped false float integer iterable mapping none number"),
        (constant, "sameas sequence string true undefined"),
        (text, "filter lower test upper"),
        (numbers, "divisibleby even odd"),
    )
    for name in names.split()
}
# The tests that compare, by jinja's many names for them.
COMPARING_TESTS: dict[str, str] = {
    name: op
    for op, names in (
        ("eq", "== eq equalto"),
        ("ne", "!= ne"),
        ("lt", "< lt lessthan"),
        ("lteq", "<= le"),
        ("gt", "> gt greaterthan"),
        ("gteq", ">= ge"),
        ("in", "in"),
    )
    for name in names.split()
}


def pad(budget: Budget, value: str, width: int, fill: str = " ") -> None:
    budget.spend(chars=len(value) + _width(width))


def split(budget: Budget, value: str, sep: str | None = None, maxsplit: int = -1) -> None:
    budget.spend(chars=len(value) + len(sep or ""))
    pieces = value.count(sep) if sep else len(value) // 2
    budget.spend(chars=LOOSE_CHAR * (min(pieces, maxsplit) if maxsplit >= 0 else pieces))


def lines(budget: Budget, value: str, keepends: bool = False) -> None:
    budget.spend(chars=LOOSE_CHAR // 2 * len(value))


def backwards(budget: Budget, value: str, /, sep: str | None = None, *args: Any, **kwargs: Any) -> None:
    """CPython searches backwards in up to len(value) * len(sep) time."""
    budget.spend(chars=len(value) * max(len(sep or ""), 1))


def rsplit(budget: Budget, value: str, sep: str | None = None, maxsplit: int = -1) -> None:
    backwards(budget, value, sep)
    split(budget, value, sep, maxsplit)


def look_up(budget: Budget, value: Any, key: Any, *args: Any) -> None:
    budget.read(key)


def search(budget: Budget, value: Any, item: Any, *args: Any) -> None:
    """Compares an item with those of a value."""
    n = len(value) if hasattr(value, "__len__") else 1
    budget.read(item, times=n + 1)
    budget.spend(chars=REFERENCE * n)


def copy(budget: Budget, value: Any, *args: Any) -> None:
    budget.spend(chars=REFERENCE * len(value))


# The methods that templates may call, by the exact type of their object; called with the object first.
METHODS: dict[type, dict[str, Cost]] = {
    str: {
        name: cost
        for cost, names in (
            (text, "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit"),
            (text, "isidentifier islower isnumeric isprintable isspace istitle isupper lower partition"),
            (text, "removeprefix removesuffix startswith swapcase title upper"),
            (backwards, "rfind rindex rpartition"),
            (trim, "lstrip rstrip strip"),
            (pad, "center ljust rjust zfill"),
            (constant, "format format_map"),  # these two pay field by field: see functions.BoundFormat
            (lambda budget, value, items: join(budget, items, value), "join"),
            (lines, "splitlines"),
            (replace, "replace"),
            (rsplit, "rsplit"),
            (split, "split"),
        )
        for name in names.split()
    },
    list: {"append": constant, "copy": copy, "count": search, "index": search, "pop": copy},
    tuple: {"count": search, "index": search},
    dict: {"copy": copy, "get": look_up, "items": constant, "keys": constant, "values": constant},
    range: {"count": search, "index": search},
}
