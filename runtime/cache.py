"""The paged key/value cache: pages of a fixed number of tokens, handed out to sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .config import ModelConfig

PAGE_SIZE = 32
MIN_PAGES = 8


@dataclass(slots=True)
class LayerCache:
    """One layer's keys and values, each [n_pages, page_size, n_kv_heads, head_dim]."""

    k: torch.Tensor
    v: torch.Tensor


class PagedCache:
    """All layers' caches and the list of free pages.

    The tensors start small and double when pages run out, up to `max_tokens`: a short answer from a model with a
    long context takes little memory.
    """

    def __init__(
        self, config: ModelConfig, devices: Sequence[torch.device], dtype: torch.dtype, max_tokens: int
    ) -> None:
        self.max_pages = -(-max_tokens // PAGE_SIZE)
        self.n_pages = min(MIN_PAGES, self.max_pages)
        shape = (self.n_pages, PAGE_SIZE, config.n_kv_heads, config.head_dim)
        self.layers = [
            LayerCache(torch.zeros(shape, dtype=dtype, device=d), torch.zeros(shape, dtype=dtype, device=d))
            for d in devices
        ]
        self.free = list(range(self.n_pages))

    @property
    def n_bytes(self) -> int:
        return sum(t.nbytes for layer in self.layers for t in (layer.k, layer.v))

    def extend(self, pages: list[int], n_tokens: int) -> None:
        """Adds pages to a sequence's list until it has room for `n_tokens` tokens; ValueError when full."""
        missing = -(-n_tokens // PAGE_SIZE) - len(pages)
        if missing > len(self.free):
            self._grow(self.n_pages - len(self.free) + missing)
        # Lowest numbers first: a lone sequence's pages then lie in order, and its cache can be used without a copy.
        for _ in range(missing):
            pages.append(self.free.pop(0))

    def release(self, pages: list[int]) -> None:
        """Gives a sequence's pages back and empties its list."""
        self.free = sorted(self.free + pages)
        pages.clear()

    def _grow(self, needed: int) -> None:
        if needed > self.max_pages:
            raise ValueError(
                f"the cache is full: {needed * PAGE_SIZE} tokens are needed, it holds {self.max_pages * PAGE_SIZE}"
            )
        n_pages = min(max(needed, 2 * self.n_pages), self.max_pages)
        for layer in self.layers:
            layer.k, layer.v = _enlarged(layer.k, n_pages), _enlarged(layer.v, n_pages)
        self.free += range(self.n_pages, n_pages)
        self.n_pages = n_pages


def _enlarged(pages: torch.Tensor, n_pages: int) -> torch.Tensor:
    larger = pages.new_zeros(n_pages, *pages.shape[1:])
    larger[: len(pages)] = pages
    return larger
