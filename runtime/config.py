"""What a model is: every number of its metadata, read once and checked, in one frozen record.

`ModelConfig.read` covers what all decoders share; an architecture (models/) passes what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from .metadata import Metadata

MAX_LAYERS = 1024
MAX_EXPERTS = 1024
MAX_HEADS = 4096
MAX_WIDTH = 2**20
# Tables of pages grow with it. The longest that a model was trained for is 10 million.
MAX_CONTEXT = 2**24
# Numbers that the rotation's frequencies are divided by; smaller ones make them infinite.
MIN_ROPE_FACTOR = 1e-3


class RopePairing(Enum):
    """Which elements of a head rotate together."""

    NORM = "norm"  # (2i, 2i + 1)
    NEOX = "neox"  # (i, i + dim / 2)


class Activation(Enum):
    """The gate's function in a gated MLP."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding; see rope.py for what the scalings do.

    dim: how many elements of a head rotate (the first ones). factor: how much longer the context is than
    `original_context` tokens. attn_factor multiplies cos and sin.
    """

    dim: int
    pairing: RopePairing
    base: float = 10000.0
    scaling: str = "none"
    factor: float = 1.0
    original_context: int = 0
    attn_factor: float = 1.0
    yarn_ext_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_log_multiplier: float = 0.0


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """A mixture of experts: `n_used` of `n_experts` per token, softmax over all, weights normalised to sum 1."""

    n_experts: int
    n_used: int
    n_ff: int
    weights_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder's shape and constants. Sizes in elements, windows in tokens.

    sliding: for each layer whether its attention sees only the last `window` tokens; such layers use `rope_sliding`.
    A soft cap c maps a score s to c * tanh(s / c); 0 means none.
    """

    architecture: str
    name: str
    n_ctx_train: int
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeConfig
    rope_sliding: RopeConfig
    attn_scale: float
    window: int
    sliding: tuple[bool, ...]
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    embedding_scale: float = 1.0
    activation: Activation = Activation.SILU
    qk_norm: bool = False
    post_norms: bool = False
    moe: MoeConfig | None = None

    @classmethod
    def read(cls, kv: Mapping[str, Any], architecture: str, pairing: RopePairing) -> ModelConfig:
        """The part that all decoders share. Raises ValueError for what is missing, impossible or unknown."""
        meta = Metadata(kv, architecture)
        n_layers = meta.integer("block_count", low=1, high=MAX_LAYERS)
        n_embd = meta.integer("embedding_length", low=1, high=MAX_WIDTH)
        n_heads = meta.integer("attention.head_count", low=1, high=MAX_HEADS)
        n_kv_heads = meta.integer("attention.head_count_kv", n_heads, low=1, high=n_heads)
        if n_heads % n_kv_heads:
            raise ValueError(f"{architecture}: {n_heads} heads cannot share {n_kv_heads} kv heads evenly")
        head_dim = meta.integer("attention.key_length", n_embd // n_heads, low=2, high=MAX_WIDTH)
        value_dim = meta.integer("attention.value_length", head_dim)
        if value_dim != head_dim:
            raise ValueError(
                f"{architecture}: value heads of {value_dim} beside key heads of {head_dim}, expected equal"
            )
        n_ctx_train = min(meta.integer("context_length", low=1, high=2**64 - 1), MAX_CONTEXT)
        rope = _read_rope(meta, head_dim, n_ctx_train, pairing)
        return cls(
            architecture=architecture,
            name=_name(kv),
            n_ctx_train=n_ctx_train,
            n_layers=n_layers,
            n_embd=n_embd,
            n_ff=meta.integer("feed_forward_length", 0, high=MAX_WIDTH),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            norm_eps=meta.number("attention.layer_norm_rms_epsilon"),
            rope=rope,
            rope_sliding=rope,
            attn_scale=head_dim**-0.5,
            window=0,
            sliding=(False,) * n_layers,
            moe=_read_moe(meta),
        )

    def with_window(self, meta: Metadata, *, default: int, pattern: int) -> ModelConfig:
        """Sliding windows on all but every `pattern`-th layer, unless the file has a pattern of its own."""
        window = meta.integer("attention.sliding_window", default)
        sliding = meta.layer_pattern("attention.sliding_window_pattern", self.n_layers, pattern)
        return replace(self, window=window, sliding=sliding if window else (False,) * self.n_layers)


def _name(kv: Mapping[str, Any]) -> str:
    name = kv.get("general.name", "")
    return name if isinstance(name, str) else ""


def _read_rope(meta: Metadata, head_dim: int, n_ctx_train: int, pairing: RopePairing) -> RopeConfig:
    dim = meta.integer("rope.dimension_count", head_dim, low=2, high=head_dim)
    if dim % 2:
        raise ValueError(f"metadata {meta.architecture}.rope.dimension_count must be even, found {dim}")
    # 0 stands for "not scaled"; the second key is the one of old files.
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 0.0)) or 1.0
    if factor < MIN_ROPE_FACTOR:
        raise ValueError(f"metadata {meta.architecture}.rope.scaling.factor must not be tiny, found {factor:g}")
    scaling = meta.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise ValueError(
            f"metadata {meta.architecture}.rope.scaling.type must be none, linear, yarn or longrope, found {scaling!r}"
        )
    return RopeConfig(
        dim=dim,
        pairing=pairing,
        base=meta.number("rope.freq_base", 10000.0, low=1.01),
        scaling=scaling,
        factor=1.0 if scaling == "none" else factor,
        original_context=meta.integer("rope.scaling.original_context_length", 0) or n_ctx_train,
        attn_factor=meta.number("rope.scaling.attn_factor", 1.0),
        yarn_ext_factor=meta.number("rope.scaling.yarn_ext_factor", 1.0),
        yarn_beta_fast=meta.number("rope.scaling.yarn_beta_fast", 32.0, low=MIN_ROPE_FACTOR),
        yarn_beta_slow=meta.number("rope.scaling.yarn_beta_slow", 1.0, low=MIN_ROPE_FACTOR),
        yarn_log_multiplier=meta.number("rope.scaling.yarn_log_multiplier", 0.0),
    )


def _read_moe(meta: Metadata) -> MoeConfig | None:
    n_experts = meta.integer("expert_count", 0, high=MAX_EXPERTS)
    if n_experts == 0:
        return None
    n_used = meta.integer("expert_used_count", low=1, high=n_experts)
    n_ff = meta.integer("expert_feed_forward_length", 0, high=MAX_WIDTH)
    if not n_ff:
        n_ff = meta.integer("feed_forward_length", low=1, high=MAX_WIDTH)
    gating = meta.integer("expert_gating_func", 1)
    if gating != 1:
        raise ValueError(f"{meta.architecture}: only softmax expert gating (1) is implemented, found {gating}")
    return MoeConfig(n_experts, n_used, n_ff, weights_scale=meta.number("expert_weights_scale", 0.0) or 1.0)
