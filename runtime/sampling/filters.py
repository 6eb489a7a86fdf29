"""The samplers that narrow candidates down or reshape their logits, as llama.cpp's llama-sampler.cpp defines them.

Each changes the candidates. Parameters that differ between rows are columns of the step; what is the same for all rows
(widths, whether anybody counts candidates) stands in its signature.
"""

from __future__ import annotations

import math

import torch

from .candidates import Candidates, running_before
from .state import Step

LARGEST = torch.finfo(torch.float32).max


def top_k(c: Candidates, step: Step) -> None:
    """The k likeliest."""
    c.cut(step.signature.n_candidates or c.width)
    c.drop(c.ranks() >= step.param("top_k"), step.signature.sized, prefix=True)


def top_p(c: Candidates, step: Step) -> None:
    """The fewest likeliest whose probabilities reach p."""
    c.sort()
    _drop(c, step, running_before(c.logits.softmax(1)) >= step.param("top_p"), prefix=True)


def min_p(c: Candidates, step: Step) -> None:
    """Those whose probability is at least p times the largest."""
    largest = c.logits[:, :1] if c.is_sorted and c.is_prefix else c.logits.amax(1, keepdim=True)
    dropped = c.logits < largest + step.param("log_min_p")
    if c.is_sorted or not step.signature.min_keep:
        _drop(c, step, dropped, prefix=c.is_sorted)
        return
    # llama.cpp sorts the candidates only where too few pass, and takes the first ones.
    scarce = (~dropped).sum(1, keepdim=True) < step.param("min_keep")
    c.sort_where(scarce)
    behind = torch.arange(c.width, device=c.logits.device) >= step.param("min_keep")
    c.drop(torch.where(scarce, behind, dropped), step.signature.sized, prefix=False)


def typ_p(c: Candidates, step: Step) -> None:
    """Those whose surprise is nearest the entropy, until their probabilities exceed p (Meister et al., 2022)."""
    c.sort()
    probs = c.logits.softmax(1)
    surprise = -probs.log()
    entropy = torch.where(probs > 0, probs * surprise, 0).sum(1, keepdim=True)
    distance = (surprise - entropy).abs().clamp(max=LARGEST)
    if c.present is not None:
        distance = distance.masked_fill(~c.present, math.inf)
    places = distance.sort(dim=1, stable=True).indices
    c.place(c.logits.gather(1, places), places)
    # All candidates present come before the others now.
    c.is_prefix = True
    _drop(c, step, running_before(probs.gather(1, places)) > step.param("typical_p"), prefix=True)


def top_n_sigma(c: Candidates, step: Step) -> None:
    """Rules out those more than n standard deviations below the largest logit; the list keeps its length."""
    real = c.logits != -math.inf
    count = real.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(real, c.logits, 0).sum(1, keepdim=True) / count
    variance = torch.where(real, (c.logits - mean) ** 2, 0).sum(1, keepdim=True) / count
    threshold = c.logits.amax(1, keepdim=True) - step.param("top_n_sigma") * variance.sqrt()
    c.logits = c.logits.masked_fill(c.logits < threshold, -math.inf)


def xtc(c: Candidates, step: Step) -> None:
    """With some probability drops all likely candidates (p >= threshold) but the least likely of them."""
    sizes = c.sizes()
    chance = step.sequence(0, sizes >= 2)
    acts = (chance <= step.param("xtc_probability")) & (sizes >= 2)
    likely = c.logits.softmax(1) >= step.param("xtc_threshold")
    if c.present is not None:
        likely = likely & c.present
    n_dropped = likely.sum(1, keepdim=True) - 1
    # As in llama.cpp, rows where the chance comes are sorted, the others keep their order.
    c.sort_where(acts)
    acts = acts & (sizes - n_dropped >= step.param("min_keep"))
    c.drop(acts & (c.ranks() < n_dropped), sized=True, prefix=False)


def temperature(c: Candidates, step: Step) -> None:
    c.logits = c.logits / step.param("temperature")


def argmax(c: Candidates, step: Step) -> None:
    """Temperature 0: rules out all but the likeliest; the list keeps its length."""
    c.logits = _only_largest(c.logits)


def dynatemp(c: Candidates, step: Step) -> None:
    """A temperature between two limits that grows with the entropy."""
    sizes = c.sizes()
    c.sort()
    probs = c.logits.softmax(1)
    entropy = -torch.where(probs > 0, probs * probs.log(), 0).sum(1, keepdim=True)
    relative = entropy / sizes.clamp(min=2).to(entropy.dtype).log()
    low, high = step.param("lowest_temperature"), step.param("highest_temperature")
    heat = torch.where(sizes > 1, low + (high - low) * relative ** step.param("dynatemp_exponent"), 1.0)
    scaled = torch.where(c.logits == -math.inf, -math.inf, c.logits / heat)
    c.logits = torch.where(heat > 0, scaled, _only_largest(c.logits))


def _only_largest(logits: torch.Tensor) -> torch.Tensor:
    places = logits.argmax(1, keepdim=True)
    return torch.full_like(logits, -math.inf).scatter(1, places, logits.gather(1, places))


def _drop(c: Candidates, step: Step, dropped: torch.Tensor, prefix: bool) -> None:
    """Drops these, but none of the first min_keep of each row."""
    if step.signature.min_keep:
        dropped = dropped & (c.ranks() >= step.param("min_keep"))
    c.drop(dropped, step.signature.sized, prefix)
