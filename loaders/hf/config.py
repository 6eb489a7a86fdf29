"""A Hugging Face checkpoint's config.json as GGUF metadata.

The keys are those that llama.cpp's converter writes; sizes that it leaves to their defaults are written out. What a
GGUF file cannot say, or the models here do not do, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..quote import quoted
from .json_file import Fields

MAX_LAYERS = 1024
MAX_EXPERTS = 1024
MAX_HEADS = 4096
MAX_WIDTH = 2**20
MAX_VOCABULARY = 2**21
MAX_FLOAT = 3e38

# What transformers takes for keys that a config.json leaves out.
_COMMON = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu"}
_LLAMA = {**_COMMON, "max_position_embeddings": 2048}
_MISTRAL = {**_COMMON, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096}
_MIXTRAL = {
    **_MISTRAL,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_QWEN = {**_COMMON, "num_key_value_heads": 32}
_QWEN3 = {**_QWEN, "head_dim": 128}
_QWEN3_MOE = {
    **_COMMON,
    "num_key_value_heads": 4,
    "num_local_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_GEMMA2 = {
    **_COMMON,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}
_GEMMA3 = {
    **_GEMMA2,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
}
_PHI3 = {
    **_COMMON,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}


@dataclass(frozen=True, slots=True)
class HFConfig:
    """What config.json says of a model.

    kv: metadata under GGUF's keys. rope_factors: the tensors of divisors of the rotation's frequencies, by their
    names in GGUF files.
    """

    architecture: str
    kv: dict[str, Any]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int
    n_vocab: int
    tied: bool
    rope_factors: dict[str, list[float]]


@dataclass(slots=True)
class _Draft:
    """Metadata in the making. kv lacks the architecture's prefix; head_dim is in elements."""

    fields: Fields
    head_dim: int
    kv: dict[str, Any] = field(default_factory=dict)
    rope_factors: dict[str, list[float]] = field(default_factory=dict)


def read_config(config: Mapping[str, Any], where: str) -> HFConfig:
    """Translates config.json; ValueError, beginning with `where`, for what is missing, impossible or unsupported."""
    name = config.get("model_type")
    if name == "gemma3":
        # With vision: the language model's part is an object of its own.
        name = "gemma3_text"
        config = {**config, **Fields(where, config).section("text_config").values}
    if not isinstance(name, str) or name not in MODEL_TYPES:
        raise ValueError(
            f"{where}: model_type {quoted(name)} is not supported, expected one of {', '.join(MODEL_TYPES)}"
        )
    kind = MODEL_TYPES[name]
    f = Fields(where, config, kind.defaults)
    if "quantization_config" in f:
        method = f.section("quantization_config").get("quant_method")
        raise ValueError(
            f"{where}: checkpoints quantised by {quoted(method)} are not supported, expected F32, F16 or BF16"
        )
    draft = _sizes(f)
    _rope(draft)
    for add in kind.parts:
        add(draft)
    kv = draft.kv
    return HFConfig(
        architecture=kind.architecture,
        kv={f"{kind.architecture}.{key}": _as_stored(where, key, value) for key, value in kv.items()},
        n_layers=kv["block_count"],
        n_heads=kv["attention.head_count"],
        n_kv_heads=kv["attention.head_count_kv"],
        n_experts=kv.get("expert_count", 0),
        n_vocab=kv["vocab_size"],
        tied=f.flag("tie_word_embeddings"),
        rope_factors=draft.rope_factors,
    )


def _as_stored(where: str, key: str, value: Any) -> Any:
    """Rounded as in a GGUF file, which has float32: a model computes the same from both."""
    if isinstance(value, float) and abs(value) > MAX_FLOAT:
        raise ValueError(f"{where}: {key} comes out as {value:g}, expected at most {MAX_FLOAT:g}")
    return float(np.float32(value)) if isinstance(value, float) else value


def _sizes(f: Fields) -> _Draft:
    """What every decoder has."""
    width = f.integer("hidden_size", 1, MAX_WIDTH)
    n_heads = f.integer("num_attention_heads", 1, MAX_HEADS)
    head_dim = f.integer("head_dim", 1, MAX_WIDTH) if "head_dim" in f else width // n_heads
    kv = {
        "block_count": f.integer("num_hidden_layers", 1, MAX_LAYERS),
        "context_length": f.integer("max_position_embeddings", 1),
        "embedding_length": width,
        "feed_forward_length": f.integer("intermediate_size", 1, MAX_WIDTH),
        "vocab_size": f.integer("vocab_size", 1, MAX_VOCABULARY),
        "attention.head_count": n_heads,
        "attention.head_count_kv": (
            f.integer("num_key_value_heads", 1, n_heads) if "num_key_value_heads" in f else n_heads
        ),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": f.number("rms_norm_eps"),
    }
    return _Draft(f, head_dim, kv)


def _rope(draft: _Draft) -> None:
    """The rotation. Newer files have one object with everything, older ones have keys beside `rope_scaling`."""
    f = draft.fields
    found = f.section("rope_parameters" if "rope_parameters" in f else "rope_scaling")
    if "full_attention" in found:
        sliding, found = found.section("sliding_attention"), found.section("full_attention")
        if sliding.get("rope_type") not in (None, "default"):
            raise sliding.error("rope_type", "default")
        draft.kv["rope.freq_base_swa"] = sliding.number("rope_theta")
    elif "rope_local_base_freq" in f:
        draft.kv["rope.freq_base_swa"] = f.number("rope_local_base_freq")
    outside = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "max_position_embeddings")
    rope = Fields(found.where, found.values, {key: f.get(key) for key in outside})
    share = rope.number("partial_rotary_factor", above=0) if "partial_rotary_factor" in rope else 1.0
    draft.kv["rope.freq_base"] = rope.number("rope_theta", above=1)
    draft.kv["rope.dimension_count"] = int(draft.head_dim * share)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        raise ValueError(
            f"{rope.where}: rope_type {quoted(kind)} is not supported, expected one of {', '.join(ROPE_TYPES)}"
        )
    ROPE_TYPES[kind](draft, rope)


def _original_context(rope: Fields) -> int:
    key = "original_max_position_embeddings"
    return rope.integer(key if key in rope else "max_position_embeddings", 2)


def _no_scaling(draft: _Draft, rope: Fields) -> None:
    if "original_max_position_embeddings" in rope:
        draft.kv["rope.scaling.original_context_length"] = _original_context(rope)


def _linear(draft: _Draft, rope: Fields) -> None:
    draft.kv |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope.number("factor", above=0)}


def _yarn(draft: _Draft, rope: Fields) -> None:
    if rope.get("truncate") is False:
        raise rope.error("truncate", "true: the range of YaRN's ramp is always rounded")
    factor = rope.number("factor", above=0)
    draft.kv |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": _original_context(rope),
    }
    for key in ("beta_fast", "beta_slow"):
        if key in rope:
            draft.kv[f"rope.scaling.yarn_{key}"] = rope.number(key)

    def temperature(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0

    if "attention_factor" in rope:
        wanted = rope.number("attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        wanted = temperature(rope.number("mscale", above=0)) / temperature(rope.number("mscale_all_dim", above=0))
    else:
        return
    # transformers takes this factor in place of the usual one, GGUF's is multiplied with it.
    draft.kv["rope.scaling.attn_factor"] = wanted / temperature(1.0)


def _llama3(draft: _Draft, rope: Fields) -> None:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated, as Llama 3.1 does."""
    factor, low = rope.number("factor", above=0), rope.number("low_freq_factor", above=0)
    high = rope.number("high_freq_factor", above=low)
    context, dim = _original_context(rope), draft.kv["rope.dimension_count"]
    divisors = []
    for i in range(0, dim, 2):
        turns = context / (2 * math.pi * draft.kv["rope.freq_base"] ** (i / dim))
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - keep) / factor + keep))
    draft.rope_factors["rope_freqs.weight"] = divisors


def _longrope(draft: _Draft, rope: Fields) -> None:
    context, n = _original_context(rope), draft.kv["rope.dimension_count"] // 2
    factor = rope.number("factor", above=0) if "factor" in rope else rope.number("max_position_embeddings") / context
    if "attention_factor" in rope:
        scale = rope.number("attention_factor")
    else:
        scale = math.sqrt(1 + math.log(factor) / math.log(context)) if factor > 1 else 1.0
    draft.kv |= {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": context,
        "rope.scaling.attn_factor": scale,
    }
    draft.rope_factors["rope_factors_long.weight"] = rope.numbers("long_factor", n)
    draft.rope_factors["rope_factors_short.weight"] = rope.numbers("short_factor", n)


ROPE_TYPES: dict[str, Callable[[_Draft, Fields], None]] = {
    "default": _no_scaling,
    "linear": _linear,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
}


def _silu(draft: _Draft) -> None:
    if draft.fields.get("hidden_act") not in ("silu", "swish"):
        raise draft.fields.error("hidden_act", "silu")


def _window_everywhere(draft: _Draft) -> None:
    if "sliding_window" in draft.fields:
        draft.kv["attention.sliding_window"] = draft.fields.integer("sliding_window", 1)


def _phi_window(draft: _Draft) -> None:
    draft.kv["attention.sliding_window"] = (
        draft.fields.integer("sliding_window", 1) if "sliding_window" in draft.fields else 0
    )


def _no_window(draft: _Draft) -> None:
    if draft.fields.flag("use_sliding_window"):
        raise draft.fields.error("use_sliding_window", "false: sliding windows of Qwen models are not supported")


def _experts(draft: _Draft) -> None:
    f = draft.fields
    # The key was renamed; the old name wins because the new one has a default.
    n_experts = f.integer("num_experts" if "num_experts" in f else "num_local_experts", 1, MAX_EXPERTS)
    draft.kv["expert_count"] = n_experts
    draft.kv["expert_used_count"] = f.integer("num_experts_per_tok", 1, n_experts)


def _qwen_experts(draft: _Draft) -> None:
    f = draft.fields
    _experts(draft)
    draft.kv["expert_feed_forward_length"] = f.integer("moe_intermediate_size", 1, MAX_WIDTH)
    for key, expected in (("norm_topk_prob", True), ("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if f.get(key) != expected:
            raise f.error(key, str(expected))


def _gemma(draft: _Draft) -> None:
    f = draft.fields
    if f.get("hidden_activation") not in (None, "gelu_pytorch_tanh"):
        raise f.error("hidden_activation", "gelu_pytorch_tanh")
    if f.flag("use_bidirectional_attention"):
        raise f.error("use_bidirectional_attention", "false")
    draft.kv["attention.scale"] = f.number("query_pre_attn_scalar", above=0) ** -0.5
    draft.kv["attention.sliding_window"] = f.integer("sliding_window", 1)
    if "final_logit_softcapping" in f:
        draft.kv["final_logit_softcapping"] = f.number("final_logit_softcapping")


def _gemma2(draft: _Draft) -> None:
    f = draft.fields
    draft.kv["attn_logit_softcapping"] = f.number("attn_logit_softcapping") if "attn_logit_softcapping" in f else 0.0
    _window_pattern(draft, 2, 2)


def _gemma3(draft: _Draft) -> None:
    f = draft.fields
    if f.get("attn_logit_softcapping") is not None:
        raise f.error("attn_logit_softcapping", "null")
    key = "_sliding_window_pattern" if "_sliding_window_pattern" in f else "sliding_window_pattern"
    _window_pattern(draft, f.integer(key, 1), 6)


def _window_pattern(draft: _Draft, pattern: int, usual: int) -> None:
    """Which layers have the window; written only where it is not the architecture's usual pattern."""
    f, n_layers = draft.fields, draft.kv["block_count"]
    kinds = {"sliding_attention": True, "full_attention": False}
    flags = [i % pattern < pattern - 1 for i in range(n_layers)]
    if "layer_types" in f:
        types = f.get("layer_types")
        if not isinstance(types, list) or len(types) != n_layers or not all(str(t) in kinds for t in types):
            raise f.error("layer_types", f"a list of {n_layers} names out of {', '.join(kinds)}")
        flags = [kinds[t] for t in types]
    if flags != [i % usual < usual - 1 for i in range(n_layers)]:
        draft.kv["attention.sliding_window_pattern"] = flags


@dataclass(frozen=True, slots=True)
class ModelType:
    """What a model_type stands for: GGUF's architecture, the defaults, and what is special about its config."""

    architecture: str
    defaults: Mapping[str, Any]
    parts: tuple[Callable[[_Draft], None], ...]


MODEL_TYPES: dict[str, ModelType] = {
    "llama": ModelType("llama", _LLAMA, (_silu,)),
    "mistral": ModelType("llama", _MISTRAL, (_silu, _window_everywhere)),
    "mixtral": ModelType("llama", _MIXTRAL, (_silu, _window_everywhere, _experts)),
    "qwen2": ModelType("qwen2", _QWEN, (_silu, _no_window)),
    "qwen3": ModelType("qwen3", _QWEN3, (_silu, _no_window)),
    "qwen3_moe": ModelType("qwen3moe", _QWEN3_MOE, (_silu, _no_window, _qwen_experts)),
    "gemma2": ModelType("gemma2", _GEMMA2, (_gemma, _gemma2)),
    "gemma3_text": ModelType("gemma3", _GEMMA3, (_gemma, _gemma3)),
    "phi3": ModelType("phi3", _PHI3, (_silu, _phi_window)),
}
