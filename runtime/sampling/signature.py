"""Which samplers a request runs and with which static sizes: what requests sampled in one call have in common."""

from __future__ import annotations

from dataclasses import dataclass

from .params import SamplingParams

MIN_HISTORY = 16
EDITS = ("logit_bias", "penalties", "dry")


@dataclass(frozen=True, slots=True)
class Signature:
    """Shapes and steps of one call of `BatchSampler.sample`; equal for all of its rows.

    steps: the samplers that do something, in order; the last one chooses the token.
    n_candidates: the width to which top_k cuts the vocabulary, at least as large as any row's top_k; None: no cut.
    n_history, n_biases, n_probs: widths of the rows' history, biases and returned candidates; powers of two or 0.
    n_pairs, n_tails, tail_length: widths of DRY's breakers (see breakers.py).
    sized: the samplers ask how many candidates there are. min_keep: some of them keep more than one.
    n_draws: random numbers that a row takes per token.
    """

    steps: tuple[str, ...]
    n_candidates: int | None = None
    n_history: int = 0
    n_biases: int = 0
    n_pairs: int = 0
    n_tails: int = 0
    tail_length: int = 0
    n_probs: int = 0
    post_sampling_probs: bool = False
    sized: bool = False
    min_keep: bool = False
    n_draws: int = 0

    @property
    def edits(self) -> bool:
        """Whether a step changes logits in place."""
        return any(step in EDITS for step in self.steps)


def bucket(n: int, smallest: int = 1) -> int:
    """The power of two that is at least n; 0 for 0."""
    return max(smallest, 1 << (n - 1).bit_length()) if n else 0


def steps_of(params: SamplingParams, has_biases: bool) -> tuple[str, ...]:
    """The samplers of llama.cpp's chain (common_sampler_init) that do something with these parameters."""
    edits = ("logit_bias",) if has_biases else ()
    if params.mirostat:
        scaled = "argmax" if params.temperature <= 0 else "temperature"
        steps: tuple[str, ...] = (scaled, f"mirostat_{params.mirostat}")
    else:
        steps = tuple(_step(name, params) for name in params.samplers if _acts(name, params))
        steps += (_choice(params),)
    if "argmax" in steps and not (params.n_probs and params.post_sampling_probs):
        steps = _greedy(steps)
    return edits + steps


def signature_of(
    params: SamplingParams, n_vocab: int, n_biases: int, breakers: tuple[int, int, int], max_history: int
) -> Signature:
    """n_biases: how many tokens have a bias. breakers: n_pairs, n_tails and tail_length of DRY's breakers."""
    steps = steps_of(params, n_biases > 0)
    lengths = {"penalties": params.repeat_last_n, "dry": params.dry_penalty_last_n}
    n_history = max((n for name, n in lengths.items() if name in steps), default=0)
    keeps = params.min_keep > 1 and bool({"top_p", "min_p", "typ_p", "xtc"} & set(steps))
    width = bucket(params.top_k) if "top_k" in steps else 0
    n_pairs, n_tails, tail_length = breakers if "dry" in steps else (0, 0, 0)
    return Signature(
        steps,
        n_candidates=width if 0 < width < n_vocab else None,
        n_history=bucket(min(n_history, max_history), MIN_HISTORY),
        n_biases=bucket(n_biases),
        n_pairs=n_pairs,
        n_tails=n_tails,
        tail_length=tail_length,
        n_probs=min(bucket(params.n_probs), n_vocab),
        post_sampling_probs=params.post_sampling_probs and params.n_probs > 0,
        sized=keeps or bool({"xtc", "dynatemp", "discrete", "adaptive_p"} & set(steps)),
        min_keep=keeps,
        n_draws=("xtc" in steps) + (steps[-1] != "greedy"),
    )


def _greedy(steps: tuple[str, ...]) -> tuple[str, ...]:
    """Steps with an argmax, as edits of the logits and one argmax where that is the same.

    Argmax leaves one token, so nothing behind it matters. Before it, only typ_p and xtc can drop the likeliest token,
    and only edits behind a filter see fewer tokens than the vocabulary.
    """
    before = steps[: steps.index("argmax")]
    edits = tuple(step for step in before if step in EDITS)
    if {"typ_p", "xtc"} & set(before) or before[: len(edits)] != edits:
        return steps
    return (*edits, "greedy")


def _acts(name: str, params: SamplingParams) -> bool:
    """Whether a sampler of the chain does anything; adaptive_p is no filter but a choice."""
    p = params
    penalises = p.repeat_penalty != 1 or p.frequency_penalty != 0 or p.presence_penalty != 0
    acts = {
        "penalties": p.repeat_last_n > 0 and penalises,
        "dry": p.dry_multiplier != 0 and p.dry_base >= 1 and p.dry_penalty_last_n > 0,
        "top_n_sigma": p.top_n_sigma > 0,
        "top_k": p.top_k > 0,
        "typ_p": p.typical_p < 1,
        "top_p": p.top_p < 1,
        "min_p": p.min_p > 0,
        "xtc": p.xtc_probability > 0 and p.xtc_threshold <= 0.5,
        "temperature": p.dynatemp_range > 0 or p.temperature != 1,
    }
    return acts.get(name, False)


def _step(name: str, params: SamplingParams) -> str:
    if name != "temperature":
        return name
    if params.dynatemp_range > 0:
        return "dynatemp"
    return "argmax" if params.temperature <= 0 else "temperature"


def _choice(params: SamplingParams) -> str:
    if "adaptive_p" not in params.samplers:
        return "dist"
    return "discrete" if params.adaptive_target < 0 else "adaptive_p"
