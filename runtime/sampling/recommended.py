"""What a model's file recommends for sampling in place of the defaults: its keys general.sampling.*."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .params import SamplingParams, sampler_names

PREFIX = "general.sampling."
FIELDS = {
    "sequence": "samplers",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temp": "temperature",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}


def recommended_params(kv: Mapping[str, Any]) -> SamplingParams:
    """The defaults with what the metadata recommend; what is impossible is passed over with a warning."""
    params = SamplingParams()
    for key, field in FIELDS.items():
        value = kv.get(PREFIX + key)
        if value is None:
            continue
        try:
            changes: dict[str, Any] = {field: sampler_names(str(value), False) if field == "samplers" else value}
            params = replace(params, **changes)
        except ValueError as error:
            warnings.warn(f"metadata {PREFIX}{key} is passed over: {error}", stacklevel=2)
    return params
