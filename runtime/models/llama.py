"""Llama 1 to 3, Mistral and what copies them; with experts, Mixtral.

The first Mistral had a sliding window in every layer; only its checkpoint says so, GGUF files do not.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import ModelConfig, RopePairing
from ..metadata import Metadata


def llama(kv: Mapping[str, Any]) -> ModelConfig:
    config = ModelConfig.read(kv, "llama", RopePairing.NORM)
    if config.rope.dim != config.head_dim:
        raise ValueError(
            f"llama rotates whole heads of {config.head_dim}, found rope.dimension_count {config.rope.dim}"
        )
    window = Metadata(kv, "llama").integer("attention.sliding_window", 0)
    return replace(config, window=window, sliding=(window > 0,) * config.n_layers)
