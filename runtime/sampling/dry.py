"""DRY ("don't repeat yourself", p-e-w): penalises tokens that would go on with a repetition, the more the longer it is.

llama.cpp counts with the Z-algorithm, token after token. Here all places are compared at once (fingerprints.py), in
memory that grows with the history and steps that grow with its logarithm.
"""

from __future__ import annotations

import torch

from .candidates import Candidates
from .fingerprints import repeat_lengths
from .penalties import recent, rescore
from .state import Step


def dry(c: Candidates, step: Step) -> None:
    """Subtracts multiplier * base ** (length - allowed length) from what would lengthen a repetition."""
    tokens, length = recent(step)
    length = length.minimum(step.param("dry_penalty_last_n").long())
    repeats = repeat_lengths(tokens, length, step.state.powers[step.signature.n_history])
    if step.signature.n_pairs:
        repeats = repeats.minimum(_limit(tokens, length, step))
    width = tokens.shape[1]
    allowed = step.param("dry_allowed_length").long()
    counted = torch.arange(1, width, device=tokens.device) < length
    counted = counted & (repeats[:, 1:] >= allowed)
    # The token that followed the repetition found k places back stands k - 1 places back. Sorted by token and length,
    # the last of each token is its longest.
    base = width + 1
    keys = torch.where(counted, tokens[:, :-1] * base + repeats[:, 1:], step.state.n_vocab * base)
    keys = keys.sort(dim=1).values

    def penalised(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        place = torch.searchsorted(keys, ids * base + width, right=True) - 1
        longest = keys.gather(1, place.clamp(min=0)) - ids * base
        extends = (place >= 0) & (longest >= 0)
        if step.signature.n_pairs:
            extends = extends & ~_is_breaker(ids, step)
        exponent = (longest - allowed).minimum(step.param("dry_largest_exponent").long()).clamp(min=0)
        penalty = step.param("dry_base").to(step.state.wide) ** exponent
        return torch.where(extends, logits - (step.param("dry_multiplier") * penalty).float(), logits)

    rescore(c, tokens, penalised)


def _limit(tokens: torch.Tensor, length: torch.Tensor, step: Step) -> torch.Tensor:
    """How many of the last tokens stand behind the last breaker, int64 [n, 1]; the whole length without one."""
    pairs, tails, tail_lengths = (t.index_select(0, step.rows) for t in step.state.breakers[_widths(step)])
    width = tokens.shape[1]
    places = torch.arange(width, device=tokens.device)
    longest = torch.full_like(tokens, -1)
    for i in range(tails.shape[1]):
        tail_length = tail_lengths[:, i : i + 1]
        found = _contains(pairs, tokens + i * step.state.n_vocab) & (places >= tail_length) & (places < length)
        for j in range(tails.shape[2]):
            # What follows a place in the text stands before it here.
            follows = torch.nn.functional.pad(tokens, (j + 1, 0), value=-1)[:, :width]
            found = found & ((follows == tails[:, i, j : j + 1]) | (tail_length <= j))
        longest = torch.where(found, longest.maximum(tail_length), longest)
    place = torch.where(longest >= 0, places, width).amin(1, keepdim=True)
    behind = place - longest.gather(1, place.clamp(max=width - 1))
    return torch.where(place < width, behind, length)


def _is_breaker(ids: torch.Tensor, step: Step) -> torch.Tensor:
    """Which tokens are breakers by themselves: those with the empty tail, the first."""
    return _contains(step.state.breakers[_widths(step)][0].index_select(0, step.rows), ids)


def _contains(ordered: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Which of values [n, m] are in the rows of ordered [n, k], bool [n, m]."""
    place = torch.searchsorted(ordered, values).clamp(max=ordered.shape[1] - 1)
    return ordered.gather(1, place) == values


def _widths(step: Step) -> tuple[int, int, int]:
    return step.signature.n_pairs, step.signature.n_tails, step.signature.tail_length
