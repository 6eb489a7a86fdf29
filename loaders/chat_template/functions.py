"""The functions that running templates call: jinja's globals in transformers' dialect, and what `rewrite` puts in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import markupsafe
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from . import costs, rewrite
from .budget import FILTER, LOOSE_CHAR, REFERENCE, Budget, LimitError, is_lazy

MAX_INDENT = 100
MAX_DATE_FORMAT = 1000


class MeteredContext(Context):
    """jinja's context, with what is left for this rendering."""

    budget: Budget


def budget_of(context: Context) -> Budget:
    assert isinstance(context, MeteredContext)
    return context.budget


def printed(budget: Budget, value: Any) -> str:
    if isinstance(value, str):
        budget.spend(chars=len(value))
        return value
    budget.read(value)
    text = str(value)
    budget.spend(chars=len(text))
    return text


@pass_context
def finalize(context: Context, value: Any) -> str:
    """jinja passes everything that a template prints through this."""
    return printed(budget_of(context), value)


@pass_context
def step(context: Context, steps: int, chars: int) -> bool:
    # abs: a template may reach this by map(' step', -9), where it must not earn.
    budget_of(context).spend(abs(steps), abs(chars))
    return True


@pass_context
def compare(context: Context, left: Any, *operands: Any) -> Any:
    """left op right [op right …], Python's chained comparison."""
    budget, result = budget_of(context), True
    for op, right in zip(operands[::2], operands[1::2], strict=True):
        right = budget.drain(right) if is_lazy(right) else right
        costs.compare(budget, op, left, right)
        result = costs.COMPARE[op](left, right)
        if not result:
            break
        left = right
    return result


@pass_context
def concat(context: Context, *values: Any) -> str:
    budget = budget_of(context)
    return "".join([printed(budget, value) for value in values])


@pass_context
def cut(context: Context, value: Any, start: Any, stop: Any, stride: Any) -> Any:
    """value[start:stop:stride]"""
    part = slice(start, stop, stride)
    if isinstance(value, (str, list, tuple)):
        n = len(range(*part.indices(len(value))))
        budget_of(context).spend(chars=n if isinstance(value, str) else REFERENCE * n)
    return value[part]


@pass_context
def key(context: Context, value: Any) -> Any:
    if value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"a key of a dict must be a text or number, found {type(value).__name__}")
    return value


@pass_context
def tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps with transformers' parameters, in their order, and without jinja's HTML escapes."""
    budget = budget_of(context)
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > MAX_INDENT:
        raise LimitError(f"tojson with an indent of more than {MAX_INDENT}")
    value = budget.drain(value) if is_lazy(value) else value
    budget.read(value)
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    chunks = []
    for chunk in encoder.iterencode(value):
        budget.spend(steps=FILTER, chars=len(chunk))
        chunks.append(chunk)
    return "".join(chunks)


def escape(value: object) -> str:
    # jinja's own returns Markup, which escapes whatever is added to it.
    return str(markupsafe.escape(value))


def raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def strftime_now(format: str) -> str:
    if len(format) > MAX_DATE_FORMAT:
        raise LimitError(f"a date format of {len(format)} characters, the limit is {MAX_DATE_FORMAT}")
    return datetime.now().strftime(format)


def make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


class ChatNamespace(Namespace):
    """jinja's namespace without the names that CPython and jinja look up by themselves."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_attribute(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        # jinja's prints the values, however often they nest in each other.
        return "<Namespace>"


def _check_attribute(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot have an attribute called {name!r}")


class BoundFormat:
    """str.format or str.format_map, looked up on a text; the environment calls it."""

    def __init__(self, template: str, takes_mapping: bool) -> None:
        self.template, self.takes_mapping = template, takes_mapping

    def __call__(
        self,
        environment: SandboxedEnvironment,
        budget: Budget,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> str:
        if self.takes_mapping:
            if len(args) != 1 or kwargs or not isinstance(args[0], Mapping):
                raise TypeError("format_map takes one dict")
            kwargs, args = args[0], ()
        # Every pair of braces becomes a text of its own before they are joined.
        budget.read(self.template, times=LOOSE_CHAR // 2)
        return _Formatter(environment, budget).vformat(self.template, args, kwargs)


class _Formatter(SandboxedFormatter):
    """Pays field by field."""

    def __init__(self, environment: SandboxedEnvironment, budget: Budget) -> None:
        super().__init__(environment)
        self.budget = budget

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self.budget.read(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        costs.check_field(format_spec)
        self.budget.spend(steps=FILTER)
        return self.budget.made(super().format_field(value, format_spec))


def paid(function: Callable[..., Any], cost: costs.Cost) -> Callable[..., Any]:
    """jinja's filter or test, after paying."""
    passed = getattr(function, "jinja_pass_arg", None)
    wanted = passed.name if passed else None

    @pass_context
    def call(context: Context, value: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.spend(steps=FILTER)
        value = budget.drain(value) if is_lazy(value) else value
        cost(budget, value, *args, **kwargs)
        hidden = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        first = (value,) if wanted is None else (hidden[wanted], value)
        return budget.made(function(*first, *args, **kwargs))

    return call


def comparing(op: str) -> Callable[..., Any]:
    """The test that compares by this operator."""

    @pass_context
    def test(context: Context, left: Any, right: Any) -> Any:
        return compare(context, left, op, right)

    return test


GLOBALS: dict[str, Any] = {
    "cycler": Cycler,
    "dict": make_dict,
    "joiner": Joiner,
    "namespace": ChatNamespace,
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
}
# Instead of jinja's, where there is one; these pay by themselves.
FILTERS: dict[str, Any] = {
    "tojson": tojson,
    rewrite.STEP: step,
    rewrite.COMPARE: compare,
    rewrite.CONCAT: concat,
    rewrite.SLICE: cut,
    rewrite.KEY: key,
}
# Nothing is escaped unasked, so what is safe is plain text.
UNESCAPED: dict[str, Any] = {"safe": str, "e": escape, "escape": escape, "forceescape": escape}
