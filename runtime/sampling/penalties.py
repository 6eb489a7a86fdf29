"""The samplers that change the logits of single tokens: biases and penalties for what the history already has."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .candidates import Candidates
from .state import Step


def logit_bias(c: Candidates, step: Step) -> None:
    """Adds the request's biases; always the first step, so the columns are still the tokens."""
    assert c.ids is None
    ids, values = step.state.biases[step.signature.n_biases]
    ids, values = ids.index_select(0, step.rows), values.index_select(0, step.rows)
    c.logits.scatter_add_(1, ids, values)


def penalties(c: Candidates, step: Step) -> None:
    """Repeat, frequency and presence penalties on the last tokens (Keskar et al., 2019, as llama.cpp corrects it)."""
    tokens, length = recent(step)
    counted = torch.arange(tokens.shape[1], device=tokens.device) < length.minimum(step.param("repeat_last_n"))
    ordered = torch.where(counted, tokens, step.state.n_vocab).sort(dim=1).values

    def penalised(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        count = torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)
        repeat = step.param("repeat_penalty")
        changed = torch.where(logits <= 0, logits * repeat, logits / repeat)
        changed = changed - (count * step.param("frequency_penalty") + step.param("presence_penalty"))
        return torch.where(count > 0, changed, logits)

    rescore(c, tokens, penalised)


def recent(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """The history, last token first, int64 [n, n_history] (what lies behind its length is some token), and its length,
    int64 [n, 1]."""
    width = step.signature.n_history
    history = step.state.history[width].index_select(0, step.rows)
    seen = step.state.seen.index_select(0, step.rows).unsqueeze(1)
    places = (seen - 1 - torch.arange(width, device=seen.device)) % width
    return history.gather(1, places).long(), seen.clamp(max=width)


def remember(step: Step, tokens: torch.Tensor) -> None:
    """Appends tokens int64 [n] to the rows' histories."""
    state, width = step.state, step.signature.n_history
    seen = state.seen.index_select(0, step.rows)
    state.history[width][step.rows, seen % width] = tokens.int()
    state.seen[step.rows] = seen + 1


def rescore(c: Candidates, tokens: torch.Tensor, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """Applies change(ids, logits), both [n, m], which gives every token's logit a new value or the same.

    tokens: int64 [n, m], the only ones that change may touch; some may stand there more than once.
    """
    if c.ids is None:
        c.logits = c.logits.scatter_(1, tokens, change(tokens, c.logits.gather(1, tokens)))
    else:
        c.logits = change(c.ids, c.logits)
    c.is_sorted = False
