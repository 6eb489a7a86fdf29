"""Small random checkpoints made with transformers: one row per architecture and variant."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

# No size is a power of two, heads are of 12, experts are few: a mistake in a stride shows.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 72,
    "intermediate_size": 83,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
N_TOKENS = 75
WINDOW = 19
ORIGINAL = 32


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


YARN = {"factor": 4.0, "original_max_position_embeddings": ORIGINAL}
LLAMA3 = {**YARN, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {
    **rope("longrope", long_factor=[1.0 + 0.7 * i for i in range(6)], short_factor=[1.0 + 0.1 * i for i in range(6)]),
    "original_max_position_embeddings": ORIGINAL,
}
MIXTURE = {"num_experts_per_tok": 2, "num_local_experts": 5}
QWEN_MIXTURE = {**MIXTURE, "moe_intermediate_size": 41, "norm_topk_prob": True}
WIDE_HEADS = {"head_dim": 20}
GEMMA = {**WIDE_HEADS, "sliding_window": WINDOW, "tie_word_embeddings": True}
# The sixth layer is the first without a window.
GEMMA3 = {**GEMMA, "query_pre_attn_scalar": 20, "num_hidden_layers": 7}
GEMMA3_LINEAR = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 20000.0},
    }
}


@dataclass(frozen=True)
class Case:
    """A model_type, what differs from SIZES, and the context to load it with (0: what config.json says)."""

    model_type: str
    changes: dict[str, Any]
    n_tokens: int = N_TOKENS
    n_ctx: int = 0


CASES: dict[str, Case] = {
    "llama": Case("llama", {}),
    "llama-tied": Case("llama", {"tie_word_embeddings": True}),
    "llama-wide-heads": Case("llama", WIDE_HEADS),
    "llama-biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope-llama3": Case("llama", rope("llama3", **LLAMA3)),
    "llama-rope-linear": Case("llama", rope("linear", factor=2.5)),
    "llama-rope-yarn": Case("llama", rope("yarn", **YARN)),
    "llama-rope-yarn-ramp": Case("llama", rope("yarn", **YARN, beta_fast=1.5, beta_slow=0.3)),
    "llama-rope-yarn-factor": Case("llama", rope("yarn", **YARN, attention_factor=0.8)),
    "llama-rope-yarn-mscale": Case("llama", rope("yarn", **YARN, mscale=0.9, mscale_all_dim=0.4)),
    "mistral": Case("mistral", {"sliding_window": None}),
    "mistral-window": Case("mistral", {"sliding_window": WINDOW}),
    "mixtral": Case("mixtral", MIXTURE),
    "qwen2": Case("qwen2", {}),
    "qwen2-rope-yarn": Case("qwen2", rope("yarn", **YARN)),
    "qwen3": Case("qwen3", WIDE_HEADS),
    "qwen3_moe": Case("qwen3_moe", {**QWEN_MIXTURE, **WIDE_HEADS}),
    "gemma2": Case("gemma2", {**GEMMA, "query_pre_attn_scalar": 20}),
    "gemma2-scaled": Case("gemma2", {**GEMMA, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0}),
    "gemma3_text": Case("gemma3_text", GEMMA3),
    "gemma3_text-linear": Case("gemma3_text", {**GEMMA3, **GEMMA3_LINEAR, "final_logit_softcapping": 5.0}),
    "gemma3_text-pattern": Case("gemma3_text", {**GEMMA, "query_pre_attn_scalar": 30, "sliding_window_pattern": 2}),
    "phi3": Case("phi3", {}),
    "phi3-partial-rotation": Case("phi3", rope("default", partial_rotary_factor=0.5)),
    "phi3-longrope-short": Case("phi3", LONGROPE, n_tokens=ORIGINAL, n_ctx=ORIGINAL),
    "phi3-longrope-long": Case("phi3", LONGROPE),
}


@cache
def make_model(name: str) -> Any:
    """transformers' model of a case, with weights large enough that every part of it matters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    case = CASES[name]
    config = AutoConfig.for_model(case.model_type, **{**SIZES, **case.changes})
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model = model.float().eval()
    shift = 0.0 if case.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for key, values in model.named_parameters():
            if key.endswith("norm.weight"):
                values.normal_(shift, 0.2)
            elif key.endswith("bias"):
                values.normal_(0.0, 0.3)
    return model


def make_checkpoint(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """Saves a case's model as transformers does; options go to save_pretrained."""
    model = make_model(name)
    if dtype != torch.float32:
        from copy import deepcopy

        model = deepcopy(model).to(dtype)
    model.save_pretrained(folder, **options)
    return folder


def make_tokens(n: int, seed: int = 0) -> list[int]:
    ids: list[int] = torch.randint(SIZES["vocab_size"], (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def reference_logits(name: str, tokens: list[int]) -> torch.Tensor:
    """transformers' logits, float32 [n, n_vocab]."""
    with torch.inference_mode():
        logits: torch.Tensor = make_model(name)(torch.tensor([tokens])).logits[0]
    return logits


def nmse(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The error's energy as a share of the expected values'."""
    return float((found.double() - expected.double()).square().sum() / expected.double().square().sum())
