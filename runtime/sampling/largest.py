"""The largest of very many: torch's argmax and topk take whole vocabularies several times slower than a maximum, so the
maxima of blocks say first where to look."""

from __future__ import annotations

import torch

BLOCK = 64
# Fewer values than this are looked through at once.
MANY = 16384


def argmax(values: torch.Tensor) -> torch.Tensor:
    """The place of the largest of each row of values [n, m], the first of equals: int64 [n, 1]."""
    n, m = values.shape
    if n * m < MANY or m % BLOCK:
        return values.argmax(1, keepdim=True)
    blocks = values.view(n, -1, BLOCK)
    block = blocks.amax(2).argmax(1, keepdim=True)
    inside = _of(blocks, block).argmax(1, keepdim=True)
    return block * BLOCK + inside


def topk(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row of values [n, m] and their places, in descending order: both [n, k]."""
    n, m = values.shape
    if m < MANY or m % BLOCK or 4 * k * BLOCK > m:
        top = values.topk(k, dim=1)
        return top.values, top.indices
    # Each of the k largest lies in one of the k blocks with the largest maxima.
    blocks = values.view(n, -1, BLOCK)
    block = blocks.amax(2).topk(k, dim=1, sorted=False).indices
    top = _of(blocks, block).topk(k, dim=1)
    return top.values, block.gather(1, top.indices // BLOCK) * BLOCK + top.indices % BLOCK


def _of(blocks: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """The values [n, k * BLOCK] of the blocks of places block [n, k]."""
    return blocks.gather(1, block.unsqueeze(2).expand(-1, -1, BLOCK)).flatten(1)
