"""Samplers' parameters, with the logits and prompts they are tried on; llama.cpp's answers to them are recorded.

Everything is made from fixed seeds: tests/data/record_sampling.py gives it to llama.cpp, the tests give it to naiad.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from naiad.runtime.sampling import BatchSampler

N_VOCAB = 400
N_STEPS = 6
SCALE = 3.0
TOKEN_TYPES = {"control": 3, "byte": 6, "normal": 1}
# Of the vocabulary below: words, and what stands for a breaker in one token or in more.
WORDS = [262, 263, 264, 266, 267]
BREAKERS = [[259], [260], [268], [270], [13], [274, 265, 259], [259, 265, 262]]
FREQUENT = [*WORDS, 259, 260, 265]
CHAIN_OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}


def vocab_kv() -> dict[str, Any]:
    """An SPM vocabulary in which breakers stand alone, in words and across tokens."""
    words = [":", '"', "*", "a", "b", "▁c", "▁", "ab", "bc", "a:b", 'x"', "**", ":\n", "Us", "er", "User", "er:", "cU"]
    words += [f"w{i}" for i in range(N_VOCAB - 259 - len(words))]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    kinds = ["normal", "control", "control", *["byte"] * 256, *["normal"] * len(words)]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": np.arange(len(texts), dtype=np.float32) * -0.01,
        "tokenizer.ggml.token_type": np.array([TOKEN_TYPES[kind] for kind in kinds], np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def logits_of(case: int, step: int, scale: float) -> npt.NDArray[np.float32]:
    """All different, so that no answer depends on how equal ones are sorted; what prompts consist of is likely."""
    logits = np.random.RandomState(1000 * case + step).normal(0, scale, N_VOCAB)
    logits[FREQUENT] += 2 * scale
    return logits.astype(np.float32)


def prompt_of(case: int) -> list[int]:
    """Few different tokens, and an end that has been there before, with breakers in it."""
    random = np.random.RandomState(case)
    tokens: list[int] = []
    while len(tokens) < 36:
        tokens += BREAKERS[random.randint(len(BREAKERS))] if random.rand() < 0.15 else [WORDS[random.randint(5)]]
    start = random.randint(1, 8)
    if case % 2:
        # What came next there was a breaker.
        tokens[17:22] = [*WORDS[:4], 259]
        return tokens[:36] + tokens[start:21]
    return tokens[:36] + tokens[start : start + random.randint(6, 20)]


def cases() -> list[dict[str, Any]]:
    """Parameters, by theme; `scale` is the logits' standard deviation."""
    off = CHAIN_OFF
    alone: list[dict[str, Any]] = [
        {},
        {"seed": 7},
        {"temperature": 0.0},
        {"temperature": 0.0, "repeat_penalty": 1.5, "presence_penalty": 0.5},
        {**off},
        {**off, "temperature": 0.3},
        {**off, "top_k": 1},
        {**off, "top_k": 40},
        {**off, "top_k": 300},
        {**off, "top_p": 0.5},
        {**off, "top_p": 0.1, "min_keep": 5},
        {**off, "min_p": 0.2},
        {**off, "min_p": 0.9, "min_keep": 5},
        {**off, "min_p": 0.05, "min_keep": 5},
        {**off, "typical_p": 0.5},
        {**off, "typical_p": 0.2, "min_keep": 12},
        {**off, "top_k": 20, "typical_p": 0.6, "top_p": 0.9},
        {**off, "top_n_sigma": 1.0},
        {**off, "top_n_sigma": 1.5, "top_k": 30, "min_keep": 3, "min_p": 0.1},
        {**off, "xtc_probability": 0.5, "xtc_threshold": 0.05},
        {**off, "xtc_probability": 1.0, "xtc_threshold": 0.02, "min_keep": 390},
        {**off, "xtc_probability": 0.5, "top_k": 20, "top_p": 0.6},
        {"xtc_probability": 0.5, "samplers": ("xtc", "top_k", "top_p")},
        {"xtc_probability": 0.5, "samplers": ("top_p", "xtc", "min_p", "top_k", "temp"), "min_keep": 2},
        {**off, "temperature": 1.0, "dynatemp_range": 0.8},
        {"dynatemp_range": 0.5, "dynatemp_exponent": 2.0, "temperature": 0.4},
        {"dynatemp_range": 0.7, "dynatemp_exponent": 0.5, "temperature": 1.5, "samplers": ("temp", "min_p", "top_p")},
        {"repeat_penalty": 1.3},
        {"repeat_penalty": 1.2, "frequency_penalty": 0.4, "presence_penalty": 0.7, "repeat_last_n": 20},
        {"frequency_penalty": -0.4, "presence_penalty": -1.0, "repeat_last_n": 200},
        {"repeat_penalty": 1.4, "samplers": ("top_k", "penalties", "min_p", "temperature")},
        {"repeat_penalty": 1.4, "temperature": 0.0, "samplers": ("top_k", "penalties", "temperature"), "top_k": 3},
        {"dry_multiplier": 0.8},
        {"dry_multiplier": 1.5, "dry_allowed_length": 1, "dry_penalty_last_n": 200, "dry_base": 1.3},
        {"dry_multiplier": 1.0, "dry_sequence_breakers": ("User:", "\n\n", ":a")},
        {"dry_multiplier": 2.0, "dry_allowed_length": 0, "dry_sequence_breakers": ("cU", "zz")},
        {"dry_multiplier": 0.1, "dry_sequence_breakers": ("Zz",), "dry_base": 1.0, "dry_allowed_length": 5},
        {"dry_multiplier": 3.0, "dry_sequence_breakers": ("User:", ":a"), **off, "dry_base": 1.2},
        {"dry_multiplier": 3.0, "dry_sequence_breakers": (" ",), **off, "dry_allowed_length": 1},
        {"dry_multiplier": 1.0, "samplers": ("top_k", "dry", "typ", "temperature"), "typical_p": 0.9},
        {"mirostat": 1, "mirostat_tau": 3.0},
        {"mirostat": 1, "mirostat_tau": 2.0, "mirostat_eta": 0.5, "temperature": 0.6},
        {"mirostat": 2},
        {"mirostat": 2, "mirostat_tau": 2.0, "mirostat_eta": 0.3, "temperature": 1.2},
        {"samplers": ("top_k", "adaptive_p"), "adaptive_target": 0.3},
        {"samplers": ("min_p", "adaptive_p", "temp"), "adaptive_target": 0.9, "adaptive_decay": 0.5},
        {"samplers": ("adaptive_p",), "adaptive_target": 0.0, "adaptive_decay": 0.99},
        {"samplers": ("min_p", "adaptive_p")},
        {"logit_bias": {5: 6.0, 17: -np.inf, 262: 4.0}, "ignore_eos": True},
        {"logit_bias": {5: 60.0, 6: 59.0}, "temperature": 0.0},
        {"samplers": ()},
        {"samplers": ("min_p", "top_k", "typ_p", "xtc", "penalties"), "typical_p": 0.95, "repeat_penalty": 1.1},
    ]
    spread = [{"scale": SCALE, "params": {"seed": 1, **p}} for p in alone]
    peaked = [
        {"scale": 9.0, "params": {"seed": 2, **p}}
        for p in alone
        if {
            "xtc_probability",
            "mirostat",
            "adaptive_target",
            "dynatemp_range",
            "typical_p",
            "min_keep",
            "dry_multiplier",
        }
        & set(p)
    ]
    return [*spread, *peaked]


def sample_all(sampler: BatchSampler, logits: dict[int, npt.NDArray[np.float32]], padding: int = 0) -> dict[int, Any]:
    """One token for every slot of `logits`: slot -> (token, {token: returned probability}). Slots of equal signature
    go together, with rows that pad the batch behind them."""
    groups: dict[Any, list[int]] = {}
    for slot in logits:
        groups.setdefault(sampler.signature(slot), []).append(slot)
    answers: dict[int, Any] = {}
    for signature, slots in groups.items():
        rows = torch.tensor(slots + [sampler.n_slots] * padding)
        draws = np.concatenate([sampler.draws(slots), np.full((padding, signature.n_draws), 0.5)])
        stacked = np.stack([logits[slot] for slot in slots] + [np.zeros_like(logits[slots[0]])] * padding)
        sampled = sampler.sample(torch.from_numpy(stacked), rows, torch.from_numpy(draws), signature)
        for i, slot in enumerate(slots):
            tops: dict[int, float] = {}
            if sampled.top_ids is not None and sampled.top_logprobs is not None:
                tops = dict(zip(sampled.top_ids[i].tolist(), sampled.top_logprobs[i].tolist(), strict=True))
            answers[slot] = int(sampled.tokens[i]), tops
    return answers
