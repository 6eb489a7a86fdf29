"""Captured steps: a whole decode step as one graph, from page tables to sampled tokens, for a number of rows.

What changes from step to step, a few numbers per row, is copied to the device before the graph is replayed; everything
else (page tables, last tokens, the sampler's state) is there already.
"""

from __future__ import annotations

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..batch import Batch
from ..cache import PagedCache
from ..decoder import Decoder
from ..sampling import BatchSampler, Sampled, Signature
from .pages import PAGE_SIZE
from .slots import SlotTables

# A step of n rows runs in the graph of the next size.
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
MAX_GRAPHS = 64
# Steps of a kind that run without a graph first, and kinds that are counted.
CAPTURED_AFTER, MAX_COUNTED = 4, 4096


class Capture(Protocol):
    """How a function becomes a graph: runs it once, captures it; returns what replays it and its result."""

    def __call__(self, function: Callable[[], Sampled]) -> tuple[Callable[[], object], Sampled]: ...


class CudaCapture:
    """CUDA and HIP graphs, all in one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None

    def __call__(self, function: Callable[[], Sampled]) -> tuple[Callable[[], object], Sampled]:
        if self.stream is None:
            # Of this device: torch's own is that of the first device that anything was captured on.
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self.stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # Around the capture, too: where that fails, torch.cuda.graph does not put the stream back.
        with torch.cuda.stream(self.stream):
            # Kernels are compiled and workspaces allocated here.
            function()
            # Other threads may go on allocating meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                result = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph.replay, result


class Graphs:
    """The captured steps, at most MAX_GRAPHS of them, those in use.

    A size and signature that few steps have is not worth a capture, which takes a good part of a second.
    """

    def __init__(
        self, decoder: Decoder, cache: PagedCache, sampler: BatchSampler, slots: SlotTables, capture: Capture
    ) -> None:
        self._parts = decoder, cache, sampler, slots
        self._capture: Capture | None = capture
        self._found: OrderedDict[tuple[int, Signature], DecodeGraph] = OrderedDict()
        self._uses: Counter[tuple[int, Signature]] = Counter()

    def __len__(self) -> int:
        return len(self._found)

    def find(self, n_rows: int, signature: Signature) -> DecodeGraph | None:
        """The graph of steps of so many rows; None where there is none, or not yet."""
        key = n_rows, signature
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        if len(self._uses) > MAX_COUNTED:
            self._uses.clear()
        self._uses[key] += 1
        if self._capture is None or self._uses[key] < CAPTURED_AFTER:
            return None
        if _left_to_torch(self._parts[0]):
            self._capture = None
            return None
        try:
            graph = DecodeGraph(n_rows, signature, *self._parts, self._capture)
        except Exception as error:
            warnings.warn(f"steps run without graphs from now on, capturing one failed: {error}", stacklevel=2)
            self._capture = None
            return None
        if len(self._found) == MAX_GRAPHS:
            self._found.popitem(last=False)
        self._found[key] = graph
        return graph


def _left_to_torch(decoder: Decoder) -> bool:
    """Whether steps so far left to torch what it cannot do within a graph: experts, which it reads from the device, or
    attention, which in a graph would read the cache as far as the longest context."""
    ops = decoder.output_ops  # that of all layers: graphs are for one device
    alone = ops.device.type == "cuda" and len(ops.backends) == 1
    return alone or any(operation in ("attention", "experts") for _, operation, _ in ops.declined)


class DecodeGraph:
    """A step in which `n_rows` sequences get one token each, captured when it is made."""

    def __init__(
        self,
        n_rows: int,
        signature: Signature,
        decoder: Decoder,
        cache: PagedCache,
        sampler: BatchSampler,
        slots: SlotTables,
        capture: Capture,
    ) -> None:
        self.decoder, self.cache, self.sampler, self.slots = decoder, cache, sampler, slots
        self.n_rows, self.signature = n_rows, signature
        device = slots.last_tokens.device
        # Slot, position, and token or -1 of each row; rows that fill up are nobody's.
        self._host = np.zeros((3, n_rows), np.int64)
        self._host[0] = slots.nobody
        self._inputs = torch.from_numpy(self._host).to(device, copy=True)
        self._draws = torch.zeros(n_rows, signature.n_draws, dtype=torch.float64, device=device)
        self._starts = torch.arange(n_rows + 1, dtype=torch.int32, device=device)
        self._replay, self.sampled = capture(self._step)

    @torch.inference_mode()
    def _step(self) -> Sampled:
        rows, positions, given = self._inputs
        last = self.slots.last_tokens
        page = positions[:, None] // PAGE_SIZE
        tables = tuple(table[rows] for table in self.slots.tables)
        batch = Batch(
            tokens=torch.where(given >= 0, given, last[rows]),
            positions=positions,
            slots=tuple(t.gather(1, page)[:, 0].long() * PAGE_SIZE + positions % PAGE_SIZE for t in tables),
            starts=self._starts,
            lengths=(positions + 1).int(),
            pages=tables,
            output_rows=None,
            new=(1,) * self.n_rows,
        )
        logits = self.decoder.forward(batch, self.cache)
        sampled = self.sampler.sample(logits, rows, self._draws, self.signature)
        self.slots.follow_tokens(rows, sampled.tokens)
        return sampled

    def run(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        tokens: Sequence[int],
        draws: npt.NDArray[np.float64],
    ) -> Sampled:
        """One step. tokens: -1 where it is the one that was sampled last. The next step overwrites what comes back."""
        n = len(slots)
        self._host[0, :n], self._host[1, :n], self._host[2, :n] = slots, positions, tokens
        self._host[0, n:], self._host[1, n:], self._host[2, n:] = self.slots.nobody, 0, 0
        self._inputs.copy_(_pinned(self._host, self._inputs.device), non_blocking=True)
        self._draws[:n].copy_(_pinned(draws, self._inputs.device), non_blocking=True)
        self._replay()
        return self.sampled


def _pinned(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy that a GPU can take while the host goes on."""
    tensor = torch.from_numpy(values.copy())
    return tensor.pin_memory() if device.type == "cuda" else tensor
