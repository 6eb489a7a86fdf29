"""The paged key/value cache: keys and values of all layers, in pages of a fixed number of tokens.

Layers that see as far back as each other share one page list per sequence: a *cache group*. Which pages a sequence has
is decided by engine/pages.py; here is the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..quant.cache_types import CacheType, cache_type
from .batch import to_device
from .config import ModelConfig
from .engine.pages import PAGE_SIZE, Move

Planes = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers whose queries see the last `window` tokens, or all of them (0)."""

    window: int
    layers: tuple[int, ...]


def cache_groups(config: ModelConfig) -> tuple[CacheGroup, ...]:
    """The groups of a model: its layers without a window, then those with one; only groups that have layers."""
    windows = [config.window if sliding else 0 for sliding in config.sliding]
    return tuple(CacheGroup(w, tuple(i for i, own in enumerate(windows) if own == w)) for w in sorted(set(windows)))


@dataclass(slots=True)
class CachePages:
    """The keys or the values of one layer: planes [n_pages, page_size, n_kv_heads, width] (quant/cache_types.py)."""

    type: CacheType
    planes: Planes

    @classmethod
    def zeros(cls, kind: CacheType, n_pages: int, n_kv_heads: int, head_dim: int, device: torch.device) -> CachePages:
        """Pages that belong to no cache, for a kernel by itself."""
        shape = (n_pages, PAGE_SIZE, n_kv_heads)
        return cls(kind, tuple(torch.zeros(*shape, n, dtype=d, device=device) for n, d in kind.planes(head_dim)))

    @property
    def page_size(self) -> int:
        return self.planes[0].shape[1]

    def write(self, slots: torch.Tensor, values: torch.Tensor) -> None:
        """Puts values [n, n_kv_heads, head_dim] where `slots` [n] say, counted in tokens from the first page."""
        for plane, part in zip(self.planes, self.type.encode(values), strict=True):
            plane.view(-1, *plane.shape[2:]).index_copy_(0, slots, part)

    def read(self, pages: Sequence[int], n_tokens: int, dtype: torch.dtype) -> torch.Tensor:
        """The first tokens of a list of pages, [n_tokens, n_kv_heads, head_dim]; a view where it can be one."""
        return self.type.decode(tuple(_gather(plane, pages)[:n_tokens] for plane in self.planes), dtype)

    def read_table(self, table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """All tokens of a table of pages [n, width]: [n, width * page_size, n_kv_heads, head_dim]."""
        chosen = (plane[table].flatten(1, 2) for plane in self.planes)
        return self.type.decode(tuple(chosen), dtype)


@dataclass(slots=True)
class LayerCache:
    """One layer's keys and values. group: whose page lists and slots apply."""

    k: CachePages
    v: CachePages
    group: int = 0


@dataclass(slots=True)
class _Storage:
    """The layers of one group on one device: planes of keys and then of values, [n_layers, n_pages, …]."""

    group: int
    layers: list[int]
    planes: Planes
    host: Planes


class PagedCache:
    """The memory of all layers' caches.

    devices: where each layer is. n_pages: pages of each group of `cache_groups(config)`; page 0 is nobody's: padding is
    written there. n_host_pages: pages, beside page 0, in host memory, to which idle ones may move.
    k_type, v_type: names of cache types; ValueError where they do not fit the model's heads.
    """

    def __init__(
        self,
        config: ModelConfig,
        devices: Sequence[torch.device],
        k_type: str,
        v_type: str,
        n_pages: Sequence[int],
        n_host_pages: Sequence[int] | None = None,
    ) -> None:
        self.groups = cache_groups(config)
        assert len(n_pages) == len(self.groups)
        types = cache_type(k_type), cache_type(v_type)
        self.layers: list[LayerCache] = [None] * len(devices)  # type: ignore[list-item]
        self._storages: list[_Storage] = []
        shapes = [(config.n_kv_heads, n, dtype) for kind in types for n, dtype in kind.planes(config.head_dim)]
        n_k = len(types[0].planes(config.head_dim))
        for g, group in enumerate(self.groups):
            for device in dict.fromkeys(devices[i] for i in group.layers):
                layers = [i for i in group.layers if devices[i] == device]
                planes = _allocated(len(layers), n_pages[g], shapes, device)
                n_host = 1 + n_host_pages[g] if n_host_pages and n_host_pages[g] else 0
                # All layers of a page side by side: one stretch of pinned memory is copied without anybody waiting.
                host = _allocated(n_host, len(layers), shapes, torch.device("cpu"), pinned=device.type == "cuda")
                self._storages.append(_Storage(g, layers, planes, tuple(plane.transpose(0, 1) for plane in host)))
                for j, i in enumerate(layers):
                    own = [plane[j] for plane in planes]
                    k, v = CachePages(types[0], tuple(own[:n_k])), CachePages(types[1], tuple(own[n_k:]))
                    self.layers[i] = LayerCache(k, v, g)

    @property
    def n_bytes(self) -> int:
        """Memory set aside on the devices; a CPU takes it as it is used."""
        return sum(plane.nbytes for storage in self._storages for plane in storage.planes)

    def move(self, moves: Sequence[Move]) -> None:
        """Copies pages, all layers of them, in the order of the list."""
        for run in _independent(moves):
            kind, group = run[0].kind, run[0].group
            sources, targets = [m.source for m in run], [m.target for m in run]
            for storage in self._storages:
                if storage.group == group:
                    for plane, host in zip(storage.planes, storage.host, strict=True):
                        into, out_of = (host if kind == "offload" else plane), (host if kind == "load" else plane)
                        _copy_pages(into, targets, out_of, sources)

    def planes(self, group: int) -> Iterator[tuple[str, torch.Tensor]]:
        """A group's planes [n_pages, page_size, n_kv_heads, width] with a name for each."""
        for i in self.groups[group].layers:
            for letter, part in (("k", self.layers[i].k), ("v", self.layers[i].v)):
                for j, plane in enumerate(part.planes):
                    yield f"blk.{i}.{letter}.{j}", plane


def _allocated(
    outer: int,
    inner: int,
    shapes: Sequence[tuple[int, int, torch.dtype]],
    device: torch.device,
    *,
    pinned: bool = False,
) -> Planes:
    """Planes of zeros, [outer, inner, …]. On a CPU the system gives the memory when it is first written to."""
    planes = []
    for n_kv_heads, width, dtype in shapes:
        shape = (outer, inner, PAGE_SIZE, n_kv_heads, width)
        if device.type != "cpu":
            planes.append(torch.zeros(shape, dtype=dtype, device=device))
        elif pinned:
            planes.append(torch.empty(shape, dtype=dtype, pin_memory=True))
        else:
            # numpy's zeros come from calloc; torch's would touch every byte.
            zeros = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
            planes.append(zeros.view(dtype).view(shape) if len(zeros) else torch.empty(shape, dtype=dtype))
    return tuple(planes)


def _independent(moves: Sequence[Move]) -> Iterator[list[Move]]:
    """The moves in runs of one kind and group, in which none reads or overwrites what another one writes or reads."""
    run: list[Move] = []
    read: set[int] = set()
    written: set[int] = set()
    for move in moves:
        # Pages of the device and of the host have numbers of their own; taken for the same they only split a run.
        same = bool(run) and (move.kind, move.group) == (run[0].kind, run[0].group)
        if run and (not same or move.source in written or move.target in written or move.target in read):
            yield run
            run, read, written = [], set(), set()
        run.append(move)
        read.add(move.source)
        written.add(move.target)
    if run:
        yield run


def _copy_pages(into: torch.Tensor, targets: list[int], out_of: torch.Tensor, sources: list[int]) -> None:
    """Pages of planes [n_layers, n_pages, …], between memories where need be, without waiting for the device."""
    if into.device == out_of.device:
        both = to_device(np.array((targets, sources)), into.device)
        into[:, both[0]] = out_of[:, both[1]]
        return
    for source, target in zip(sources, targets, strict=True):
        into[:, target].copy_(out_of[:, source], non_blocking=True)


def _gather(pages: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
    """Pages of a plane as rows of tokens; a view where the pages lie in order."""
    first, n = wanted[0], len(wanted)
    if list(wanted) == list(range(first, first + n)):
        chosen = pages[first : first + n]
    else:
        chosen = pages[torch.tensor(wanted, device=pages.device)]
    return chosen.reshape(-1, *pages.shape[2:])
