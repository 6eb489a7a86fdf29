"""Typed look-ups in a model file's metadata, with errors that name the key, what was expected and what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_REQUIRED = object()


class Metadata:
    """Metadata under one architecture's prefix: `integer("block_count")` reads `llama.block_count`."""

    def __init__(self, kv: Mapping[str, Any], architecture: str) -> None:
        self.kv, self.architecture = kv, architecture

    def _value(self, key: str, default: Any) -> Any:
        name = f"{self.architecture}.{key}"
        if name in self.kv:
            return self.kv[name]
        if default is _REQUIRED:
            raise ValueError(f"the model's metadata lacks {name}")
        return default

    def _wrong(self, key: str, expected: str, value: Any) -> ValueError:
        return ValueError(f"metadata {self.architecture}.{key} must be {expected}, found {str(value)[:80]}")

    def integer(self, key: str, default: Any = _REQUIRED, *, low: int = 0, high: int = 2**31 - 1) -> int:
        """An integer in [low, high]; an array with one value for every layer is taken where all are equal."""
        value = self._value(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            if value.size == 0 or (value != value[0]).any():
                raise self._wrong(key, "the same for every layer", value)
            value = int(value[0])
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"an integer from {low} to {high}", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, low: float = 0.0) -> float:
        """A finite float >= low."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
            raise self._wrong(key, f"a finite number >= {low}", value)
        return float(value)

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "a string", value)
        return value

    def layer_pattern(self, key: str, n_layers: int, period: int) -> tuple[bool, ...]:
        """A flag for each layer: the file's, or true for all but every `period`-th; the file may give the period."""
        value = self._value(key, period)
        if isinstance(value, np.ndarray | list):
            flags = list(value)
            if len(flags) != n_layers or not all(isinstance(flag, int | np.integer | np.bool_) for flag in flags):
                raise self._wrong(key, f"an array of {n_layers} flags", value)
            return tuple(map(bool, flags))
        period = self.integer(key, period, low=1)
        return tuple(i % period < period - 1 for i in range(n_layers))
