"""Sampling: llama.cpp's chain of samplers for one sequence, in its order, and its random draws.

Order: logit bias, penalties, top-k, top-p, min-p, temperature, then one draw from what is left.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

RANDOM_SEED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What to sample and when to stop; llama.cpp's names and defaults.

    max_tokens: tokens to generate, -1 for no limit but the context. seed: -1 for a random one.
    temperature <= 0 takes the likeliest token. top_k <= 0, top_p >= 1, min_p <= 0 switch those filters off.
    repeat_last_n: how many of the last tokens, prompt included, the penalties look at.
    stop: texts that end the generation and are not part of the answer.
    """

    max_tokens: int = -1
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    min_keep: int = 0
    seed: int = -1
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limits = {
            "max_tokens": self.max_tokens >= -1,
            "temperature": math.isfinite(self.temperature),
            "top_p": not math.isnan(self.top_p) and self.top_p >= 0,
            "min_p": not math.isnan(self.min_p) and self.min_p <= 1,
            "repeat_penalty": math.isfinite(self.repeat_penalty) and self.repeat_penalty > 0,
            "frequency_penalty": math.isfinite(self.frequency_penalty),
            "presence_penalty": math.isfinite(self.presence_penalty),
            "repeat_last_n": self.repeat_last_n >= 0,
            "min_keep": self.min_keep >= 0,
            "seed": -1 <= self.seed <= RANDOM_SEED,
        }
        for name, valid in limits.items():
            if not valid:
                raise ValueError(f"{name} cannot be {getattr(self, name)}")


class Sampler:
    """The state of one sequence's sampling: its random numbers and its last tokens.

    eog_ids: the tokens that ignore_eos rules out. suppressed_ids: tokens that the model must never generate.
    """

    def __init__(self, params: SamplingParams, eog_ids: Iterable[int] = (), suppressed_ids: Iterable[int] = ()) -> None:
        self.params = params
        seed = secrets.randbits(32) if params.seed in (-1, RANDOM_SEED) else params.seed
        # RandomState's Mersenne twister is seeded as C++'s std::mt19937 is.
        self.random = np.random.RandomState(seed)
        self.last: list[int] = []
        self.bias = dict(params.logit_bias)
        ruled_out = [*suppressed_ids, *(eog_ids if params.ignore_eos else ())]
        self.bias.update(dict.fromkeys(ruled_out, -math.inf))

    def accept(self, tokens: Iterable[int]) -> None:
        """Tokens of the prompt, or the one just sampled: the penalties count them."""
        if self.params.repeat_last_n > 0:
            self.last = [*self.last, *tokens][-self.params.repeat_last_n :]

    def sample(self, logits: torch.Tensor) -> int:
        """The next token from its logits [n_vocab]; the caller accepts it."""
        values = logits.float().cpu().numpy().copy()
        self._apply_bias(values)
        self._apply_penalties(values)
        if self.params.temperature <= 0:
            return int(values.argmax())
        ids, kept = self._filter(values)
        return int(ids[self._draw(kept / np.float32(self.params.temperature))])

    def _apply_bias(self, logits: npt.NDArray[np.float32]) -> None:
        for token, bias in self.bias.items():
            if 0 <= token < len(logits):
                logits[token] += bias

    def _apply_penalties(self, logits: npt.NDArray[np.float32]) -> None:
        p = self.params
        if not self.last or (p.repeat_penalty == 1 and p.frequency_penalty == 0 and p.presence_penalty == 0):
            return
        ids, counts = np.unique(np.array(self.last), return_counts=True)
        chosen = logits[ids]
        chosen = np.where(chosen <= 0, chosen * p.repeat_penalty, chosen / p.repeat_penalty)
        logits[ids] = chosen - counts * p.frequency_penalty - p.presence_penalty

    def _filter(self, logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The tokens that top-k, top-p and min-p leave, likeliest first, and their logits."""
        p, n = self.params, len(logits)
        k = n if p.top_k <= 0 else min(max(p.top_k, p.min_keep), n)
        ids = np.argpartition(-logits, k - 1)[:k] if k < n else np.arange(n)
        # Stable: among equals the lower token goes first, whatever the partition did.
        ids = np.sort(ids)
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        kept = logits[ids]
        if p.top_p < 1:
            weights = _exp(kept)
            reached = np.cumsum(weights / weights.sum()) >= p.top_p
            n_keep = int(reached.argmax()) + 1 if reached.any() else len(ids)
            n_keep = max(n_keep, p.min_keep, 1)
            ids, kept = ids[:n_keep], kept[:n_keep]
        if p.min_p > 0:
            n_keep = max(int((kept >= kept[0] + math.log(p.min_p)).sum()), p.min_keep, 1)
            ids, kept = ids[:n_keep], kept[:n_keep]
        return ids, kept

    def _draw(self, logits: npt.NDArray[np.float32]) -> int:
        """An index, by its probability: the first whose running sum reaches the draw, as llama.cpp does it."""
        weights = _exp(logits)
        low, high = np.frombuffer(self.random.bytes(8), "<u4").astype(np.float64)
        target = (low + high * 2.0**32) / 2.0**64 * weights.sum(dtype=np.float64)
        return int(min(np.searchsorted(np.cumsum(weights, dtype=np.float64), target), len(weights) - 1))


def _exp(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """exp, shifted so that the largest is 1; a broken model's infinities and NaNs go through without a warning."""
    with np.errstate(invalid="ignore"):
        result: npt.NDArray[np.float32] = np.exp(logits - logits.max())
    return result
