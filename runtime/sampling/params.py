"""What a request asks of sampling: llama.cpp's fields, defaults and bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..checks import MAX_FLOAT, MAX_INT, integer, number, quoted, switch, texts

RANDOM_SEED = 0xFFFFFFFF
# What is sampled where a model's logits are not numbers.
NO_TOKEN = -1

# Samplers in llama.cpp's default order, with the letters of --sampling-seq.
LETTERS = {
    "penalties": "e",
    "dry": "d",
    "top_n_sigma": "s",
    "top_k": "k",
    "typ_p": "y",
    "top_p": "p",
    "min_p": "m",
    "xtc": "x",
    "temperature": "t",
    "adaptive_p": "a",
    "infill": "i",
}
DEFAULT_SAMPLERS = tuple(name for name in LETTERS if name not in ("adaptive_p", "infill"))
ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}

MAX_SAMPLERS = 32
MAX_HISTORY = 2**20
MAX_BREAKERS = 32
MAX_BIASES = 2**14
# Stop texts, and the characters that they and others have together.
MAX_STOPS, MAX_CHARACTERS = 1024, 2**16

# Field: smallest and largest value. A number must also be finite as a 32-bit float.
INTEGERS = {
    "max_tokens": (-1, MAX_INT),
    "seed": (-1, RANDOM_SEED),
    "top_k": (-MAX_INT, MAX_INT),
    "repeat_last_n": (0, MAX_HISTORY),
    "dry_allowed_length": (0, MAX_INT),
    "dry_penalty_last_n": (0, MAX_HISTORY),
    "mirostat": (0, 2),
    "min_keep": (0, MAX_INT),
    "n_probs": (0, MAX_INT),
}
NUMBERS = {
    "temperature": (-MAX_FLOAT, MAX_FLOAT),
    "dynatemp_range": (-MAX_FLOAT, MAX_FLOAT),
    "dynatemp_exponent": (-MAX_FLOAT, MAX_FLOAT),
    "top_p": (0.0, MAX_FLOAT),
    "min_p": (-MAX_FLOAT, 1.0),
    "top_n_sigma": (-MAX_FLOAT, MAX_FLOAT),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "typical_p": (-MAX_FLOAT, MAX_FLOAT),
    "repeat_penalty": (1 / MAX_FLOAT, MAX_FLOAT),
    "presence_penalty": (-MAX_FLOAT, MAX_FLOAT),
    "frequency_penalty": (-MAX_FLOAT, MAX_FLOAT),
    "dry_multiplier": (-MAX_FLOAT, MAX_FLOAT),
    "dry_base": (-MAX_FLOAT, MAX_FLOAT),
    "mirostat_tau": (-MAX_FLOAT, MAX_FLOAT),
    "mirostat_eta": (-MAX_FLOAT, MAX_FLOAT),
    "adaptive_target": (-MAX_FLOAT, 1.0),
    "adaptive_decay": (0.0, 0.99),
}
SWITCHES = ("ignore_eos", "post_sampling_probs")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What to sample and when to stop; llama.cpp's names and defaults. Impossible values are a ValueError.

    max_tokens: tokens to generate, -1 for no limit but the context. seed: -1 for a random one.
    temperature <= 0 takes the likeliest token; with dynatemp_range > 0 it follows the entropy.
    top_k <= 0, top_p >= 1, min_p <= 0, typical_p >= 1, top_n_sigma <= 0, xtc_probability 0, xtc_threshold > 0.5,
    dry_multiplier 0 and dry_base < 1 switch those samplers off.
    repeat_last_n and dry_penalty_last_n: how many of the last tokens, prompt included, penalties and DRY look at.
    dry_sequence_breakers: texts that no repetition reaches across; llama.cpp reads 40 bytes of each.
    mirostat: 1 or 2 replaces all samplers but logit_bias and temperature.
    samplers: which samplers run, in which order (names or their aliases); adaptive_p goes last and chooses the token.
    min_keep: top_p, min_p, typ_p and xtc leave at least so many tokens.
    n_probs: return so many of the likeliest tokens with log probabilities, before all samplers or, with
    post_sampling_probs, with the probabilities that all samplers left. At most 2^24 for all tokens of a request.
    logit_bias: added to tokens' logits, -inf to rule them out; ids beyond the vocabulary are passed over.
    stop: texts that end the generation and are not part of the answer. A control token counts as it is spelled, whole.
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
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    typical_p: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
    n_probs: int = 0
    post_sampling_probs: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in INTEGERS.items():
            self._set(name, integer(name, getattr(self, name), low, high))
        for name, limits in NUMBERS.items():
            self._set(name, number(name, getattr(self, name), *limits))
        for name in SWITCHES:
            self._set(name, switch(name, getattr(self, name)))
        # Copies: what was checked must not change.
        self._set("logit_bias", _biases(self.logit_bias))
        for name, most in (("dry_sequence_breakers", MAX_BREAKERS), ("samplers", MAX_SAMPLERS), ("stop", MAX_STOPS)):
            self._set(name, texts(name, getattr(self, name), most, MAX_CHARACTERS))
        self._set("samplers", canonical_samplers(self.samplers))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _biases(given: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(given, Mapping):
        raise ValueError(f"logit_bias must map token ids to numbers, found {quoted(given)}")
    if len(given) > MAX_BIASES:
        raise ValueError(f"logit_bias must have at most {MAX_BIASES} tokens, found {len(given)}")
    biases = {}
    for token, bias in given.items():
        token = integer("a token of logit_bias", token, -MAX_INT)
        biases[token] = number(f"logit_bias of token {token}", bias, -math.inf)
    return biases


def canonical_samplers(names: Iterable[str]) -> tuple[str, ...]:
    """Names or llama.cpp's aliases of samplers (any case, top-k, topk, nucleus, temp, typ) as their names."""
    known = ALIASES | {alias: name for name in LETTERS for alias in _spellings(name)}
    result = []
    for name in names:
        if name.lower() not in known:
            raise ValueError(f"samplers: {quoted(name)} is not one of {', '.join(LETTERS)}")
        result.append(known[name.lower()])
    if result.count("xtc") > 1:
        raise ValueError("samplers: xtc can be there once, not twice")
    if "infill" in result:
        raise ValueError("samplers: infill is not supported, it compares the texts of all candidates")
    if len(result) > MAX_SAMPLERS:
        raise ValueError(f"samplers: {MAX_SAMPLERS} at most, not {len(result)}")
    return tuple(result)


def sampler_names(text: str, letters: bool | None = None) -> tuple[str, ...]:
    """Samplers as --samplers ("top_k;temperature") or --sampling-seq ("kt") write them.

    letters: whether text is a sequence of letters; None reads it as names if all of its parts are names.
    ValueError for what no sampler is called.
    """
    parts = [part.strip() for part in text.split(";")] if text else []
    if letters is None:
        try:
            return canonical_samplers(parts)
        except ValueError:
            letters = ";" not in text and "infill" not in text.lower()
    if not letters:
        return canonical_samplers(parts)
    by_letter = {letter: name for name, letter in LETTERS.items()}
    unknown = [letter for letter in text if letter not in by_letter]
    if unknown:
        raise ValueError(f"samplers: {unknown[0]!r} of {quoted(text)} is not one of the letters {''.join(by_letter)}")
    return canonical_samplers(by_letter[letter] for letter in text)


def _spellings(name: str) -> tuple[str, ...]:
    return name, name.replace("_", "-"), name.replace("_", "")
