"""Gemma 2 and 3: scaled embeddings, norms before and after each half, tanh-GELU, sliding windows.

The files store norm weights with 1 added, so the norms are the ordinary ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import Activation, ModelConfig, RopePairing
from ..metadata import Metadata


def _gemma(kv: Mapping[str, Any], architecture: str, layers_of_27b: int, final_softcap: float) -> ModelConfig:
    config = ModelConfig.read(kv, architecture, RopePairing.NEOX)
    meta = Metadata(kv, architecture)
    # The 27B models scale by the width of a head's share of the embedding; llama.cpp tells them by their depth.
    share = config.n_embd // config.n_heads if config.n_layers == layers_of_27b else config.head_dim
    return replace(
        config,
        attn_scale=meta.number("attention.scale", max(share, 1) ** -0.5),
        embedding_scale=config.n_embd**0.5,
        activation=Activation.GELU_TANH,
        post_norms=True,
        final_softcap=meta.number("final_logit_softcapping", final_softcap),
    )


def gemma2(kv: Mapping[str, Any]) -> ModelConfig:
    meta = Metadata(kv, "gemma2")
    config = _gemma(kv, "gemma2", layers_of_27b=46, final_softcap=30.0).with_window(meta, default=4096, pattern=2)
    return replace(config, attn_softcap=meta.number("attn_logit_softcapping", 50.0))


def gemma3(kv: Mapping[str, Any]) -> ModelConfig:
    """Five layers with a window to one without; the former rotate with a base of their own, unscaled."""
    meta = Metadata(kv, "gemma3")
    config = _gemma(kv, "gemma3", layers_of_27b=62, final_softcap=0.0).with_window(meta, default=0, pattern=6)
    local = replace(config.rope, base=meta.number("rope.freq_base_swa", 10000.0, low=1.01), scaling="none", factor=1.0)
    return replace(config, qk_norm=True, rope_sliding=local)
