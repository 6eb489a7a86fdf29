"""Sampling: llama.cpp's chain of samplers for many requests at once, and its random draws."""

from .batched import BatchSampler, Sampled
from .breakers import BreakerFinder, BreakerTable
from .params import RANDOM_SEED, SamplingParams, sampler_names
from .recommended import recommended_params
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
