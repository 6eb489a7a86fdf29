"""One step's work: the only state that a forward pass is given besides the weights and the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """One sequence's part of a batch: its new tokens are rows [start, stop), its cache afterwards `length` tokens.

    pages: for every cache group, the numbers of its pages in order, enough for `length` tokens. 0 stands where a
    sliding window has let go of a page.
    """

    start: int
    stop: int
    length: int
    pages: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class NewTokens:
    """What a step adds to a sequence: its tokens, how many the cache holds already, and its pages per cache group."""

    tokens: Sequence[int]
    n_cached: int
    pages: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """Tokens of any number of sequences, one after another without padding (n_tokens in all).

    tokens, positions: int64 [n_tokens]. starts: int32 [n_sequences + 1], sequence i has rows starts[i] to starts[i + 1]
    - 1. lengths: int32 [n_sequences], tokens in the cache, new ones included. output_rows: int64 [n_outputs], the rows
    whose logits are wanted, or None for all. For every cache group: slots, int64 [n_tokens], where each token's key and
    value go, counted in tokens from the start of the cache; pages, int32 [n_sequences, width]. new: how many tokens
    each sequence adds.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: tuple[torch.Tensor, ...]
    starts: torch.Tensor
    lengths: torch.Tensor
    pages: tuple[torch.Tensor, ...]
    output_rows: torch.Tensor | None
    new: tuple[int, ...]

    @classmethod
    def build(
        cls,
        sequences: Sequence[NewTokens],
        page_size: int,
        device: torch.device | None = None,
        *,
        output_rows: Sequence[int] | None = None,
    ) -> Batch:
        """From lists; in two transfers to the device. output_rows: without it, the last row of every sequence."""
        return cls.from_tables(
            np.concatenate([np.asarray(s.tokens, np.int64) for s in sequences]),
            np.array([len(s.tokens) for s in sequences]),
            np.array([s.n_cached for s in sequences]),
            [_table([s.pages[group] for s in sequences]) for group in range(len(sequences[0].pages))],
            page_size,
            device,
            output_rows=output_rows,
        )

    @classmethod
    def from_tables(
        cls,
        tokens: Integers,
        new: Integers,
        cached: Integers,
        tables: Sequence[Integers],
        page_size: int,
        device: torch.device | None = None,
        *,
        output_rows: Sequence[int] | Integers | None = None,
    ) -> Batch:
        """From arrays: tokens [n_tokens]; new, cached [n_sequences]; a table [n_sequences, width] per cache group."""
        starts = np.concatenate(([0], new.cumsum()))
        positions = np.arange(len(tokens)) + np.repeat(cached - starts[:-1], new)
        row = np.repeat(np.arange(len(new)), new)
        slots = [t[row, positions // page_size] * page_size + positions % page_size for t in tables]
        outputs = starts[1:] - 1 if output_rows is None else np.asarray(output_rows, np.int64)
        long = _moved([tokens, positions, outputs, *slots], np.int64, device)
        short = _moved([starts, cached + new, *(t.ravel() for t in tables)], np.int32, device)
        return cls(
            tokens=long[0],
            positions=long[1],
            slots=tuple(long[3:]),
            starts=short[0],
            lengths=short[1],
            pages=tuple(part.view(len(new), -1) for part in short[2:]),
            output_rows=long[2],
            new=tuple(new.tolist()),
        )

    @cached_property
    def sequences(self) -> list[SequenceSlice]:
        """The sequences for code that takes them one by one; copies from the device."""
        starts, lengths = self.starts.tolist(), self.lengths.tolist()
        pages = [table.tolist() for table in self.pages]
        return [
            SequenceSlice(starts[i], starts[i + 1], lengths[i], [table[i] for table in pages])
            for i in range(len(lengths))
        ]

    def to(self, device: torch.device) -> Batch:
        if self.tokens.device == device:
            return self
        return replace(
            self,
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            slots=tuple(part.to(device) for part in self.slots),
            starts=self.starts.to(device),
            lengths=self.lengths.to(device),
            pages=tuple(part.to(device) for part in self.pages),
            output_rows=None if self.output_rows is None else self.output_rows.to(device),
        )


def _table(lists: Sequence[Sequence[int]]) -> Integers:
    """Lists of different lengths as rows of one table, zeros after their ends."""
    table = np.zeros((len(lists), max([1, *map(len, lists)])), np.int64)
    for row, pages in zip(table, lists, strict=True):
        row[: len(pages)] = pages
    return table


def to_device(values: npt.NDArray[Any], device: torch.device | None) -> torch.Tensor:
    """An array, which nobody changes any more, as a tensor on a device; a GPU takes it while the host goes on."""
    tensor = torch.from_numpy(values)
    if device is None or device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _moved(parts: Sequence[Integers], dtype: type, device: torch.device | None) -> list[torch.Tensor]:
    """Arrays as tensors on a device, moved there together."""
    joined = to_device(np.concatenate(parts).astype(dtype, copy=False), device)
    return list(joined.split([len(part) for part in parts]))
