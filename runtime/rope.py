"""Rotary position embedding: the frequencies of every scaling.

Sources: RoFormer (arXiv 2104.09864); linear scaling (arXiv 2306.15595); YaRN (arXiv 2309.00071);
LongRoPE (arXiv 2402.13753); Llama 3's factors come ready-made in the file as the tensor `rope_freqs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .config import RopeConfig, RopePairing


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotation: angle of pair i at position p is p * freqs[i]; cos and sin are multiplied by `scale`."""

    pairing: RopePairing
    freqs: torch.Tensor  # [dim / 2] float32
    scale: float

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, float32 [n_tokens, dim / 2], for positions [n_tokens]."""
        theta = positions.to(torch.float32)[:, None] * self.freqs
        return theta.cos() * self.scale, theta.sin() * self.scale


def make_rope(config: RopeConfig, divisors: torch.Tensor | None, device: torch.device) -> Rope:
    """The rotation of a model; `divisors` [dim / 2] are the per-pair factors of Llama 3 and LongRoPE files."""
    half = config.dim // 2
    freqs = config.base ** (-torch.arange(half, dtype=torch.float32) / half)
    if divisors is not None:
        freqs = freqs / divisors.to("cpu", torch.float32)
    scale = config.attn_factor
    if config.scaling == "yarn":
        freqs = _yarn(config, freqs)
        scale *= _yarn_scale(config)
    else:
        freqs = freqs / config.factor
    return Rope(config.pairing, freqs.to(device), scale)


def _yarn(config: RopeConfig, freqs: torch.Tensor) -> torch.Tensor:
    """Pairs that turn often keep their frequency, pairs that turn seldom are interpolated, a ramp lies between."""

    def pair_of(turns: float) -> float:
        """The (fractional) pair that makes `turns` full turns over the original context."""
        return config.dim * math.log(config.original_context / (turns * 2 * math.pi)) / (2 * math.log(config.base))

    low = max(math.floor(pair_of(config.yarn_beta_fast)), 0)
    high = min(math.ceil(pair_of(config.yarn_beta_slow)), config.dim - 1)
    ramp = ((torch.arange(len(freqs)) - low) / max(high - low, 0.001)).clamp(0, 1)
    keep = (1 - ramp) * config.yarn_ext_factor
    return freqs / config.factor * (1 - keep) + freqs * keep


def _yarn_scale(config: RopeConfig) -> float:
    """YaRN's attention temperature; files of models with their own multiplier ask for the ratio of two."""

    def temperature(multiplier: float) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * multiplier * math.log(config.factor) + 1.0

    if config.yarn_ext_factor == 0:
        return 1.0
    if config.yarn_log_multiplier:
        return temperature(1.0) / temperature(config.yarn_log_multiplier)
    return temperature(1.0)
