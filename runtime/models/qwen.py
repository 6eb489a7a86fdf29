"""Qwen2 and 2.5 (biases on q, k and v, found by their tensors), Qwen3 (q and k normalised per head), with experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import ModelConfig, RopePairing


def qwen2(kv: Mapping[str, Any]) -> ModelConfig:
    return _dense(kv, "qwen2")


def qwen3(kv: Mapping[str, Any]) -> ModelConfig:
    return replace(_dense(kv, "qwen3"), qk_norm=True)


def qwen3moe(kv: Mapping[str, Any]) -> ModelConfig:
    config = ModelConfig.read(kv, "qwen3moe", RopePairing.NEOX)
    if config.moe is None:
        raise ValueError("qwen3moe needs experts, but qwen3moe.expert_count is missing or 0")
    return replace(config, qk_norm=True)


def _dense(kv: Mapping[str, Any], architecture: str) -> ModelConfig:
    config = ModelConfig.read(kv, architecture, RopePairing.NEOX)
    if config.moe is not None:
        raise ValueError(f"{architecture} has no experts, but the metadata lists {config.moe.n_experts}")
    return config
