"""The paged key/value cache: pages of a fixed number of tokens, handed out to sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..quant.cache_types import CacheType, cache_type
from .batch import SequenceSlice
from .config import ModelConfig

PAGE_SIZE = 32
MIN_PAGES = 8


@dataclass(slots=True)
class CachePages:
    """The keys or the values of one layer: planes [n_pages, page_size, n_kv_heads, width] (quant/cache_types.py)."""

    type: CacheType
    planes: tuple[torch.Tensor, ...]

    @classmethod
    def zeros(cls, kind: CacheType, n_pages: int, n_kv_heads: int, head_dim: int, device: torch.device) -> CachePages:
        shape = (n_pages, PAGE_SIZE, n_kv_heads)
        return cls(kind, tuple(torch.zeros(*shape, n, dtype=d, device=device) for n, d in kind.planes(head_dim)))

    def write(self, slots: torch.Tensor, values: torch.Tensor) -> None:
        """Puts values [n, n_kv_heads, head_dim] where `slots` [n] say, counted in tokens from the first page."""
        for plane, part in zip(self.planes, self.type.encode(values), strict=True):
            plane.view(-1, *plane.shape[2:]).index_copy_(0, slots, part)

    def read(self, sequence: SequenceSlice, dtype: torch.dtype) -> torch.Tensor:
        """A sequence's keys or values [length, n_kv_heads, head_dim]; a view where it can be one."""
        return self.type.decode(tuple(_gather(plane, sequence) for plane in self.planes), dtype)

    def enlarge(self, n_pages: int) -> None:
        self.planes = tuple(_enlarged(plane, n_pages) for plane in self.planes)


@dataclass(slots=True)
class LayerCache:
    """One layer's keys and values."""

    k: CachePages
    v: CachePages


class PagedCache:
    """All layers' caches and the list of free pages.

    k_type, v_type: names of cache types; ValueError where they do not fit the model's heads.

    The tensors start small and double when pages run out, up to `max_tokens`: a short answer from a model with a
    long context takes little memory.
    """

    def __init__(
        self, config: ModelConfig, devices: Sequence[torch.device], k_type: str, v_type: str, max_tokens: int
    ) -> None:
        self.max_pages = -(-max_tokens // PAGE_SIZE)
        self.n_pages = min(MIN_PAGES, self.max_pages)
        shape = (self.n_pages, config.n_kv_heads, config.head_dim)
        types = cache_type(k_type), cache_type(v_type)
        self.layers = [LayerCache(*(CachePages.zeros(kind, *shape, d) for kind in types)) for d in devices]
        self.free = list(range(self.n_pages))

    @property
    def n_bytes(self) -> int:
        return sum(plane.nbytes for layer in self.layers for part in (layer.k, layer.v) for plane in part.planes)

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
            layer.k.enlarge(n_pages)
            layer.v.enlarge(n_pages)
        self.free += range(self.n_pages, n_pages)
        self.n_pages = n_pages


def _enlarged(pages: torch.Tensor, n_pages: int) -> torch.Tensor:
    larger = pages.new_zeros(n_pages, *pages.shape[1:])
    larger[: len(pages)] = pages
    return larger


def _gather(pages: torch.Tensor, sequence: SequenceSlice) -> torch.Tensor:
    """A sequence's part of a plane, [length, n_kv_heads, width]; a view where its pages lie in order."""
    first, n = sequence.pages[0], len(sequence.pages)
    if list(sequence.pages) == list(range(first, first + n)):
        chosen = pages[first : first + n]
    else:
        chosen = pages[torch.tensor(sequence.pages, device=pages.device)]
    return chosen.reshape(-1, *pages.shape[2:])[: sequence.length]
