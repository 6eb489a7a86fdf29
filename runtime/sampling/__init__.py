"""Sampling: llama.cpp's chain of samplers for many requests at once, and its random draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .params import RANDOM_SEED, SamplingParams, sampler_names
from .recommended import recommended_params

if TYPE_CHECKING:
    from .batched import BatchSampler, Sampled
    from .breakers import BreakerFinder, BreakerTable
    from .signature import Signature

__all__ = [
    "RANDOM_SEED",
    "BatchSampler",
    "BreakerFinder",
    "BreakerTable",
    "Sampled",
    "SamplingParams",
    "Signature",
    "recommended_params",
    "sampler_names",
]
_MODULES = {
    "BatchSampler": "batched",
    "Sampled": "batched",
    "BreakerFinder": "breakers",
    "BreakerTable": "breakers",
    "Signature": "signature",
}


def __getattr__(name: str) -> object:
    """Imports on first use: options are read and refused without torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("." + _MODULES[name], __name__), name)
