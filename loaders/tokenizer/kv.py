"""Typed reads from GGUF metadata: one clear ValueError for a value of the wrong kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..quote import quoted

KV = Mapping[str, Any]


def read_str(kv: KV, key: str, default: str = "") -> str:
    value = kv.get(key, default)
    if not isinstance(value, str):
        raise _wrong_kind(key, "a string", value)
    return value


def read_bool(kv: KV, key: str, default: bool) -> bool:
    value = kv.get(key, default)
    if not isinstance(value, (bool, np.bool_)):
        raise _wrong_kind(key, "a boolean", value)
    return bool(value)


def read_int(kv: KV, key: str) -> int | None:
    value = kv.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise _wrong_kind(key, "an integer", value)
    return int(value)


def read_strings(kv: KV, key: str) -> list[str] | None:
    value = kv.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or not set(map(type, value)) <= {str}:
        raise _wrong_kind(key, "an array of strings", value)
    return value


def read_numbers(kv: KV, key: str, kinds: str, length: int | None = None) -> np.ndarray | None:
    """An array of numbers whose numpy dtype.kind is one of `kinds` ("i", "u", "f"), of the given length."""
    value = kv.get(key)
    if value is None:
        return None
    array = np.asarray(value) if isinstance(value, (list, np.ndarray)) else None
    if array is None or array.ndim != 1 or array.dtype.kind not in kinds:
        raise _wrong_kind(key, "an array of numbers" if "f" in kinds else "an array of integers", value)
    if length is not None and len(array) != length:
        raise ValueError(f"{key} has {len(array)} entries, expected {length}: one per token")
    return array


def _wrong_kind(key: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{key} should be {expected}, found {type(value).__name__} {quoted(value)}")
