"""Phi-3, 3.5 and 4: q, k and v in one matrix, gate and up in another, LongRoPE.

The files' sliding-window metadata is ignored, as llama.cpp does: converters wrote it wrongly for years.
"""

from collections.abc import Mapping
from typing import Any

from ..config import ModelConfig, RopePairing


def phi3(kv: Mapping[str, Any]) -> ModelConfig:
    config = ModelConfig.read(kv, "phi3", RopePairing.NEOX)
    if config.moe is not None:
        raise ValueError(f"phi3 has no experts, but the metadata lists {config.moe.n_experts}")
    return config
