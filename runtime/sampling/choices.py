"""The samplers that end a chain: they choose one candidate per row, by a random number."""

from __future__ import annotations

import math

import torch

from .candidates import Candidates
from .largest import argmax
from .state import Step

# How many of the likeliest tokens mirostat fits Zipf's law to.
MIROSTAT_M = 100
LARGEST_K = 2.0**31

MU, WEIGHTED_SUM, TOTAL_WEIGHT = 0, 1, 2

# Adaptive-p: width of the distribution around the target, its peak, and how fast it falls.
WIDTH = 0.3
PEAK = 5.0
SHARPNESS = 10.0


Choice = tuple[torch.Tensor, torch.Tensor]  # probabilities [n, K], chosen places [n, 1]


def dist(c: Candidates, step: Step) -> Choice:
    """By probability; one number per token even where only one candidate is left."""
    probs = c.logits.softmax(1)
    draws = step.draws
    return probs, _place(probs, draws if draws.shape[1] == 1 else draws[:, -1:])


def discrete(c: Candidates, step: Step) -> Choice:
    """As `dist`, but by a std::discrete_distribution, which draws nothing for a single candidate."""
    probs = c.logits.softmax(1)
    return probs, _place(probs, step.sequence(1, c.sizes() > 1))


def greedy(c: Candidates, step: Step) -> Choice:
    """The likeliest."""
    places = argmax(c.logits)
    return c.logits, places


def mirostat_1(c: Candidates, step: Step) -> Choice:
    """Mirostat (Basu et al., 2020): keeps the surprise near tau by cutting to the k likeliest."""
    c.sort()
    probs = c.logits.softmax(1)
    n_pairs = min(MIROSTAT_M, c.width) - 1
    ranks = torch.arange(1, n_pairs + 1, dtype=torch.float32, device=probs.device)
    steps = ((ranks + 1) / ranks).log()
    falls = (probs[:, :n_pairs] / probs[:, 1 : n_pairs + 1]).log()
    slope = (steps * falls).sum(1, keepdim=True) / (steps * steps).sum()
    excess = slope - 1
    mu = step.state.memory[step.rows, MU].unsqueeze(1)
    k = (excess * torch.exp2(mu) / (1 - step.state.n_vocab**-excess)) ** (1 / slope)
    # A k that is no 32-bit integer becomes 1, as it does in llama.cpp on x86.
    k = torch.where(k < LARGEST_K, k.clamp(min=1), 1.0).floor()
    c.drop(torch.arange(c.width, device=probs.device) >= k, sized=False, prefix=True)
    return _observed(c, step, mu, single=k == 1)


def mirostat_2(c: Candidates, step: Step) -> Choice:
    """Mirostat 2: keeps the surprise near tau by dropping what would surprise more than mu."""
    c.sort()
    mu = step.state.memory[step.rows, MU].unsqueeze(1)
    dropped = -c.logits.softmax(1).log2() > mu
    dropped[:, 0] = False
    c.drop(dropped, sized=False, prefix=True)
    return _observed(c, step, mu, single=dropped.sum(1, keepdim=True) == c.width - 1)


def adaptive_p(c: Candidates, step: Step) -> Choice:
    """Adaptive-p (llama.cpp's pull request 17927): prefers candidates whose probability is near a target, which moves
    so that the mean probability of the tokens chosen stays at it."""
    original = c.logits.softmax(1)
    memory = step.state.memory.index_select(0, step.rows)
    target = step.param("adaptive_target")
    total = memory[:, TOTAL_WEIGHT:]
    wanted = torch.where(total == 0, target, 2 * target - memory[:, WEIGHTED_SUM:TOTAL_WEIGHT] / total).clamp(0, 1)
    distance = (original - wanted).abs() * (1 / WIDTH)
    logits = PEAK - SHARPNESS * distance * distance / (1 + distance)
    probs = torch.where(c.logits == -math.inf, -math.inf, logits).softmax(1)
    places = _place(probs, step.sequence(1, c.sizes() > 1))
    news = torch.cat([original.gather(1, places), torch.ones_like(places)], 1)
    step.state.memory[step.rows, WEIGHTED_SUM:] = news + step.param("adaptive_decay") * memory[:, WEIGHTED_SUM:]
    return probs, places


def _observed(c: Candidates, step: Step, mu: torch.Tensor, single: torch.Tensor) -> Choice:
    """Chooses for mirostat and learns from the surprise. single: rows [n, 1] with one candidate."""
    probs = c.logits.softmax(1)
    places = _place(probs, step.sequence(1, ~single))
    surprise = -probs.gather(1, places).log2()
    learned = mu - step.param("mirostat_eta") * (surprise - step.param("mirostat_tau"))
    step.state.memory[step.rows, MU] = learned.squeeze(1)
    return probs, places


def _place(probs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The first place whose running sum reaches its row's draw [n, 1] of the whole; some place for NaNs."""
    sums = probs.cumsum(1, dtype=draws.dtype)
    return torch.searchsorted(sums, draws * sums[:, -1:]).clamp_(max=probs.shape[1] - 1)
