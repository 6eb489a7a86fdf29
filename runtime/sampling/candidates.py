"""What a step of the chain hands to the next: the candidates of every row, in llama.cpp's order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .largest import topk


@dataclass(slots=True)
class Candidates:
    """Candidates of n rows, up to K each; the samplers of a chain change them one after another.

    logits: float32 [n, K], -inf where a filter has dropped a candidate. ids: their tokens, int64 [n, K]; None: the
    column is the token. present: bool [n, K], which of them llama.cpp's list still has (a candidate of logit -inf
    may well be in it); None: all of them, or nobody asks (`Signature.sized`).
    is_sorted: likeliest first, in all rows. is_prefix: those present are the first ones of their row.
    """

    logits: torch.Tensor
    ids: torch.Tensor | None = None
    present: torch.Tensor | None = None
    is_sorted: bool = False
    is_prefix: bool = True

    @property
    def width(self) -> int:
        return self.logits.shape[1]

    def sizes(self) -> torch.Tensor:
        """How many candidates are left, int64 [n, 1]."""
        if self.present is None:
            return torch.full_like(self.logits[:, :1], self.width, dtype=torch.int64)
        return self.present.sum(1, keepdim=True)

    def ranks(self) -> torch.Tensor:
        """Place of each present candidate in its row's list, [K] or [n, K]."""
        if self.present is None or self.is_prefix:
            return torch.arange(self.width, device=self.logits.device)
        return self.present.cumsum(1) - 1

    def tokens(self, places: torch.Tensor) -> torch.Tensor:
        """The tokens at places [n, k]."""
        return places if self.ids is None else self.ids.gather(1, places)

    def drop(self, dropped: torch.Tensor, sized: bool, prefix: bool) -> None:
        """Drops those where dropped [n, K] is True. prefix: these are the last ones of their rows."""
        self.logits = self.logits.masked_fill(dropped, -math.inf)
        if sized:
            self.present = ~dropped if self.present is None else self.present & ~dropped
        self.is_prefix &= prefix

    def sort(self) -> None:
        """Likeliest first; among equals the one that stood first."""
        if not self.is_sorted:
            self.place(*self.logits.sort(dim=1, descending=True, stable=True))
            self.is_sorted = True

    def sort_where(self, rows: torch.Tensor) -> None:
        """As `sort` in those of the rows [n, 1] that are True; the others keep their order."""
        if not self.is_sorted:
            logits, places = self.logits.sort(dim=1, descending=True, stable=True)
            unmoved = torch.arange(self.width, device=self.logits.device)
            self.place(torch.where(rows, logits, self.logits), torch.where(rows, places, unmoved))

    def cut(self, k: int) -> None:
        """Leaves the k likeliest, sorted."""
        if self.is_sorted or k >= self.width:
            self.sort()
            return
        self.place(*topk(self.logits, k))
        self.is_sorted = True

    def place(self, logits: torch.Tensor, places: torch.Tensor) -> None:
        """Puts the candidates at places [n, k], whose logits these are, in that order."""
        self.logits = logits
        self.ids = places if self.ids is None else self.ids.gather(1, places)
        self.present = None if self.present is None else self.present.gather(1, places)
        self.is_sorted, self.is_prefix = False, self.present is None


def running_before(values: torch.Tensor) -> torch.Tensor:
    """Sums of what stands before each of values [n, K]; the first is 0."""
    return torch.nn.functional.pad(values.cumsum(1), (1, -1))
