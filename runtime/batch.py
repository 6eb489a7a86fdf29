"""One step's work: the only state that a forward pass is given besides the weights and the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """One sequence's part of a batch: its new tokens are rows [start, stop), its cache afterwards `length` tokens.

    pages: the numbers of its cache pages, in order, enough for `length` tokens.
    """

    start: int
    stop: int
    length: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of any number of sequences, one after another without padding (n_tokens in all).

    tokens, positions: int64 [n_tokens]. slots: int64 [n_tokens], where each token's key and value go, counted in
    tokens from the start of the cache. output_rows: int64 [n_outputs], the rows whose logits are wanted.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sequences: Sequence[SequenceSlice]
    output_rows: torch.Tensor

    @classmethod
    def single(
        cls,
        tokens: Sequence[int],
        n_cached: int,
        pages: Sequence[int],
        page_size: int,
        *,
        all_logits: bool = False,
    ) -> Batch:
        """New tokens of one sequence that has `n_cached` tokens in the cache already."""
        n = len(tokens)
        positions = torch.arange(n_cached, n_cached + n)
        page_numbers = torch.tensor(pages, dtype=torch.int64)
        return cls(
            tokens=torch.tensor(tokens, dtype=torch.int64),
            positions=positions,
            slots=page_numbers[positions // page_size] * page_size + positions % page_size,
            sequences=(SequenceSlice(0, n, n_cached + n, pages),),
            output_rows=torch.arange(n) if all_logits else torch.tensor([n - 1]),
        )

    def to(self, device: torch.device) -> Batch:
        if self.tokens.device == device:
            return self
        return Batch(
            self.tokens.to(device),
            self.positions.to(device),
            self.slots.to(device),
            self.sequences,
            self.output_rows.to(device),
        )
