"""JSON files of a checkpoint: bounded reading, and look-ups whose errors name the file and the key.

As Python objects "[]," takes 26 times its bytes. What a large file holds is counted before it is parsed, so reading
one takes at most 8 times its size (a text that one wide letter makes four bytes each) and 900 MB, and 70 ns a byte.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..quote import quoted

# A few times what the largest tokenizer.json has: 35 MB, half a million merges, as pairs, and 260,000 tokens.
MAX_BYTES = 128 * 2**20
MAX_CONTAINERS = 2**21
MAX_VALUES = 3 * 2**20
# Smaller files need no counting.
FEW_BYTES = 2**22
MAX_NUMBER = 1e30


def parse_json(raw: bytes, what: str, *, strict: bool = False) -> dict[str, Any]:
    """A JSON object; ValueError, beginning with `what`, for anything else.

    NaN and Infinity, which JSON does not have, become floats that no number of a model may be. A key that is there
    twice with different values is an error when it is looked up. strict: both are errors wherever they are.
    """

    def paired(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) == len(pairs):
            return values
        found = _Doubled(pairs, what)
        if strict:
            raise ValueError(f"key {quoted(next(iter(found.twice or values)))} appears twice")
        return found if found.twice else values

    constant = _no_constant if strict else None
    if len(raw) > FEW_BYTES:
        _check_counts(raw, what)
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=constant, object_pairs_hook=paired)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be a JSON object, found {type(value).__name__}")
    return value


def _check_counts(raw: bytes, what: str) -> None:
    """ValueError for more values than any checkpoint has. Brackets and commas inside texts count, too."""
    n_containers = raw.count(b"[") + raw.count(b"{")
    n_values = n_containers + raw.count(b",")
    for n, limit, kind in ((n_containers, MAX_CONTAINERS, "arrays and objects"), (n_values, MAX_VALUES, "values")):
        if n > limit:
            raise ValueError(f"{what} has {n} {kind}, expected at most {limit}")


def read_json(path: Path) -> dict[str, Any]:
    """A file with a JSON object. OSError when it cannot be read, ValueError when it is something else."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_BYTES}")
    return parse_json(path.read_bytes(), str(path))


def passed_over(path: Path, error: Exception) -> None:
    """Says that a file that a model can do without is not used."""
    shown = str(error)
    warnings.warn(f"{shown if str(path) in shown else f'{path}: {shown}'}; the file is passed over", stacklevel=3)


def read_side_json(path: Path) -> dict[str, Any]:
    """A file that a model can do without: empty where it is absent or, with a warning, no JSON object."""
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        passed_over(path, error)
        return {}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


class _Doubled(dict[str, Any]):
    """An object with keys that have several values: ValueError where one of them is asked for."""

    def __init__(self, pairs: list[tuple[str, Any]], what: str) -> None:
        super().__init__(pairs)
        self.what = what
        first: dict[str, Any] = {}
        self.twice = {k: v for k, v in pairs if first.setdefault(k, v) != v}
        self.first = {key: first[key] for key in self.twice}

    def _check(self, keys: Iterable[Any]) -> None:
        for key in keys:
            if key in self.twice:
                values = " and ".join(quoted(v, 40) for v in (self.first[key], self.twice[key]))
                raise ValueError(f"{self.what}: key {quoted(key)} appears twice, with the values {values}")

    def __getitem__(self, key: str) -> Any:
        self._check((key,))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._check((key,))
        return super().get(key, default)

    def items(self) -> Any:
        self._check(self.twice)
        return super().items()

    def values(self) -> Any:
        self._check(self.twice)
        return super().values()


def _is_number(value: Any) -> bool:
    """A number, not true or false, and not so large that float32 cannot hold it."""
    return type(value) in (int, float) and abs(value) < MAX_NUMBER


class Fields:
    """Typed look-ups in a JSON object. An absent key has its value in `defaults`, if anywhere; null means none."""

    def __init__(self, where: str, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
        self.where, self.values, self.defaults = where, values, defaults or {}

    def __contains__(self, key: str) -> bool:
        """Whether the key has a value other than null."""
        return self.get(key) is not None

    def get(self, key: str) -> Any:
        return self.values.get(key, self.defaults.get(key))

    def error(self, key: str, expected: str) -> ValueError:
        value = self.get(key)
        found = "nothing" if value is None else quoted(value)
        return ValueError(f"{self.where}: {key} must be {expected}, found {found}")

    def integer(self, key: str, low: int = 0, high: int = 2**31 - 1) -> int:
        value = self.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, above: float = -MAX_NUMBER) -> float:
        value = self.get(key)
        if not _is_number(value) or value <= above:
            raise self.error(key, "a finite number" + (f" above {above:g}" if above > -MAX_NUMBER else ""))
        return float(value)

    def numbers(self, key: str, n: int) -> list[float]:
        values = self.get(key)
        if not isinstance(values, list) or len(values) != n or not all(map(_is_number, values)):
            raise self.error(key, f"a list of {n} finite numbers")
        return [float(v) for v in values]

    def flag(self, key: str) -> bool:
        """Absent means false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(key, "true or false")
        return bool(value)

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def section(self, key: str) -> Fields:
        """An object inside; absent means empty."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "an object")
        return Fields(f"{self.where}: {key}", value or {})
