"""The architectures. A file here says only what differs from the shared decoder (decoder.py); this table finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..config import ModelConfig
from .gemma import gemma2, gemma3
from .llama import llama
from .phi import phi3
from .qwen import qwen2, qwen3, qwen3moe

ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], ModelConfig]] = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3moe": qwen3moe,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "phi3": phi3,
}


def read_config(kv: Mapping[str, Any]) -> ModelConfig:
    """The configuration of the model that the metadata describes. ValueError for an unknown architecture."""
    architecture = kv.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is not supported, expected one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](kv)
