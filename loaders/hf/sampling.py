"""What generation_config.json recommends for sampling, under the keys that llama.cpp's converter writes it to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..quote import quoted

PREFIX = "general.sampling."
# GGUF's key: those of generation_config.json, the first that is there counts.
KEYS: dict[str, tuple[str, ...]] = {
    "sequence": ("sequence",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc_probability": ("xtc_probability",),
    "xtc_threshold": ("xtc_threshold",),
    "temp": ("temperature",),
    "penalty_last_n": ("penalty_last_n",),
    "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "mirostat": ("mirostat",),
    "mirostat_tau": ("mirostat_tau",),
    "mirostat_eta": ("mirostat_eta",),
}
INTEGERS = {"top_k", "penalty_last_n", "mirostat"}
TEXTS = {"sequence"}


def sampling_kv(generation: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The metadata; null counts as absent, a value of the wrong kind is passed over with a warning."""
    kv: dict[str, Any] = {}
    for key, names in KEYS.items():
        try:
            name, value = next(((name, generation.get(name)) for name in names if name in generation), ("", None))
            if value is not None:
                kv[PREFIX + key] = _stored(key, value, f"{where}: {name}")
        except ValueError as error:
            warnings.warn(f"{error}; it is passed over", stacklevel=2)
    return kv


def _stored(key: str, value: Any, where: str) -> Any:
    """The value as GGUF has it: a text, int32 or float32."""
    if key in TEXTS:
        expected, fits = "a string", isinstance(value, str)
    elif key in INTEGERS:
        expected, fits = "an integer", type(value) is int and abs(value) < 2**31
    else:
        expected, fits = "a finite number", type(value) in (int, float) and abs(value) < 3e38
    if not fits:
        raise ValueError(f"{where} must be {expected}, found {quoted(value)}")
    return value if key in TEXTS | INTEGERS else float(np.float32(value))
