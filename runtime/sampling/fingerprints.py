"""Where a history repeats its own end: fingerprints of prefixes (Karp and Rabin, 1987) tell whether two stretches are
equal, and a binary search finds the longest, for all places at once."""

from __future__ import annotations

import numpy as np
import torch

# Two fingerprints of 31 bits: products fit into 63 bits, and equal pairs of unequal stretches are one in 2**62.
PRIMES = (2_147_483_647, 2_147_483_629)
BASES = (1_103_515_245, 1_812_433_253)


def powers(width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """BASES to the powers 0 … width - 1, int64 [2, 1, width], and PRIMES, [2, 1, 1]."""
    primes = np.array(PRIMES, np.int64).reshape(2, 1, 1)
    table = np.ones((2, 1, 1), np.int64)
    step = np.array(BASES, np.int64).reshape(2, 1, 1)
    while table.shape[2] < width:
        table = np.concatenate([table, table * step % primes], axis=2)
        step = step * step % primes
    return torch.from_numpy(table[:, :, :width].copy()).to(device), torch.from_numpy(primes).to(device)


def repeat_lengths(
    tokens: torch.Tensor, length: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """How many tokens from place k on equal those from place 0 on, for all k: int64 [n, H], the Z-function.

    tokens: int64 [n, H], last token first; H is a power of two. length: int64 [n, 1], how many of them count.
    tables: `powers(H)`.
    """
    power, primes = tables
    width = tokens.shape[1]
    terms = (tokens + 1) * power % primes
    sums = torch.nn.functional.pad(terms.cumsum(2), (1, 0)) % primes
    places = torch.arange(width, device=tokens.device)
    start = sums[:, :, :width]
    found = torch.zeros_like(tokens)
    bit = width // 2
    while bit:
        tried = found + bit
        end = places + tried
        here = sums.gather(2, end.clamp(max=width).expand(2, -1, -1)) - start
        first = sums.gather(2, tried.expand(2, -1, -1)) * power
        equal = ((first - here) % primes == 0).all(0) & (end <= length)
        found = torch.where(equal, tried, found)
        bit //= 2
    return found
