"""The jinja environment that chat templates run in: transformers' dialect, with every cost paid from a budget.

A template comes with a model file and is untrusted. jinja's sandbox keeps it from Python's internals; here it is also
kept from using up time and memory: see `costs` for what operations pay and `rewrite` for how statements do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template, nodes
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import SandboxedEnvironment, safe_range
from jinja2.tests import TESTS
from jinja2.utils import Cycler, Joiner, Namespace

from . import costs, functions
from .budget import CALL, MAX_CALL_DEPTH, Budget, LimitError, check_int, is_lazy
from .functions import BoundFormat, MeteredContext, budget_of
from .rewrite import rewrite

# jinja adds these to the arguments of calls inside loops and blocks, for functions that want the context.
ADDED = ("_loop_vars", "_block_vars")


class Generation(Extension):
    """{% generation %} marks the assistant's words for training; for a prompt it is a plain scope."""

    tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class Environment(SandboxedEnvironment):
    """Compiles chat templates; they render in a MeteredContext.

    Unlike transformers' sandbox it lets templates append to and pop from lists (some do, and llama.cpp runs them):
    all that they can reach are copies.
    """

    context_class = MeteredContext
    intercepted_binops = frozenset(SandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer runs parts of the template while compiling
            finalize=functions.finalize,
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        plain: dict[str, Any] = FILTERS | functions.UNESCAPED
        paid, comparing = functions.paid, functions.comparing
        self.filters = {name: paid(plain[name], cost) for name, cost in costs.FILTERS.items()} | functions.FILTERS
        checks: dict[str, Any] = TESTS
        self.tests = {name: paid(checks[name], cost) for name, cost in costs.TESTS.items()}
        self.tests |= {name: comparing(op) for name, op in costs.COMPARING_TESTS.items()}
        self.globals = {"range": safe_range, **functions.GLOBALS}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(rewrite(source), *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, (Namespace, LoopContext, Macro, Cycler, Joiner, Undefined)):
            return True
        # The fields are those of groupby's result.
        return attr in costs.METHODS.get(type(obj), getattr(type(obj), "_fields", ()))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            # Hashing one that nests is unbounded, and no value of ours has tuples for keys.
            return self.undefined(f"{type(obj).__name__} has no items under tuples")
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if not isinstance(value, BuiltinMethodType) or not isinstance(value.__self__, str):
            return None
        if value.__name__ not in ("format", "format_map"):
            return None
        return BoundFormat(value.__self__, takes_mapping=value.__name__ == "format_map")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        costs.binary(budget_of(context), operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int):
            check_int(result)
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.spend(steps=CALL + len(args) + len(kwargs))
        if isinstance(obj, (Macro, LoopContext)):
            return self._call_nested(context, budget, obj, args, kwargs)
        args = tuple(budget.drain(arg) if is_lazy(arg) else arg for arg in args)
        named = {name: arg for name, arg in kwargs.items() if name not in ADDED}
        if isinstance(obj, BoundFormat):
            return obj(self, budget, args, named)
        if isinstance(obj, BuiltinMethodType):
            costs.METHODS[type(obj.__self__)][obj.__name__](budget, obj.__self__, *args, **named)
        else:
            budget.read(*args, *named.values())
        return budget.made(super().call(context, obj, *args, **kwargs))

    def _call_nested(
        self, context: Context, budget: Budget, obj: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """A macro or recursive loop: its body pays for itself."""
        if budget.calls >= MAX_CALL_DEPTH:
            raise LimitError(f"its macros call each other deeper than {MAX_CALL_DEPTH} levels")
        budget.calls += 1
        try:
            return super().call(context, obj, *args, **kwargs)
        finally:
            budget.calls -= 1


@functools.cache
def environment() -> Environment:
    """The one environment: it holds no state of templates or renderings."""
    return Environment()


def compile_template(source: str) -> Template:
    """Raises whatever an odd template sets off in jinja's or Python's compiler."""
    return environment().from_string(source)
