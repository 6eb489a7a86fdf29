"""Typed look-ups in a model file's metadata, with errors that name the key, what was expected and what was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_REQUIRED = object()


class Metadata:
    """Metadata under one architecture's prefix: `integer("block_count")` reads `llama.block_count`."""

    def __init__(self, kv: Mapping[str, Any], architecture: str, n_layers: int | None = None) -> None:
        self.kv, self.architecture, self.n_layers = kv, architecture, n_layers

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.kv

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

    def per_layer_flags(self, key: str, n_layers: int) -> tuple[bool, ...] | None:
        """One flag per layer, or None where the key is absent."""
        if not self.has(key):
            return None
        value = self._value(key, None)
        if not isinstance(value, np.ndarray | Sequence) or isinstance(value, str) or len(value) != n_layers:
            raise self._wrong(key, f"an array of {n_layers} flags", value)
        return tuple(bool(v) for v in value)
