"""Runs the scheduler's steps on the device, without ever waiting for it: batches, forward pass, sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..batch import Batch, to_device
from ..cache import PagedCache
from ..decoder import Decoder
from ..sampling import BatchSampler, Sampled, Signature
from .graphs import SIZES, Capture, DecodeGraph, Graphs
from .pages import PAGE_SIZE
from .scheduler import Row, Step
from .slots import SlotTables


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of a sampled token, and the likeliest tokens of its place with theirs (see Sampled)."""

    logprob: float
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float32]


@dataclass(slots=True)
class Results:
    """What a step samples, on its way to the host. rows: those that sample; groups: the places in `rows` of each call
    of the sampler and what it returned, perhaps with more rows behind them."""

    rows: list[Row]
    groups: list[tuple[Sequence[int], Sampled]]
    arrived: torch.cuda.Event | None

    def wait(self) -> tuple[list[int], dict[int, Logprobs]]:
        """The sampled tokens, one per row, and the logprobs of the rows that asked for some, once they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        tokens = [0] * len(self.rows)
        logprobs: dict[int, Logprobs] = {}
        for places, sampled in self.groups:
            found = sampled.tokens.tolist()
            for i, place in enumerate(places):
                tokens[place] = found[i]
            if sampled.logprobs is not None:
                assert sampled.top_ids is not None and sampled.top_logprobs is not None
                own = sampled.logprobs.tolist()
                ids, tops = sampled.top_ids.numpy(), sampled.top_logprobs.numpy()
                logprobs |= {place: Logprobs(own[i], ids[i], tops[i]) for i, place in enumerate(places)}
        return tokens, logprobs


class Runner:
    """A model, its cache and its sampler.

    capture: how decode steps become graphs (graphs.py); None runs everything operation by operation. Graphs need all
    layers on one device.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        sampler: BatchSampler,
        *,
        max_seqs: int,
        n_ctx: int,
        capture: Capture | None = None,
    ) -> None:
        self.decoder, self.cache, self.sampler = decoder, cache, sampler
        self.device, self.output_device = decoder.input_ops.device, decoder.output_ops.device
        width = -(-n_ctx // PAGE_SIZE)
        self.slots = SlotTables(len(cache.groups), max_seqs, width, self.device, on_device=capture is not None)
        self.graphs = Graphs(decoder, cache, sampler, self.slots, capture) if capture is not None else None

    @torch.inference_mode()
    def launch(self, step: Step) -> Results:
        """Starts a step; the results come when they come."""
        if self.output_device.type == "cuda":
            # Where kernels are launched, of this thread. The first layers may be on a CPU.
            torch.cuda.set_device(self.output_device)
        self.cache.move(step.moves)
        self.slots.follow(step.rows)
        sampling = [row for row in step.rows if row.samples]
        graph = self._graph(step, sampling) if self.graphs is not None else None
        return self._replay(graph, sampling) if graph is not None else self._run(step, sampling)

    def _graph(self, step: Step, sampling: list[Row]) -> DecodeGraph | None:
        """The graph of a step in which every sequence gets one token and all sample alike, if there is one by now."""
        n = len(step.rows)
        assert self.graphs is not None
        if n > SIZES[-1] or len(sampling) < n or any(row.stop - row.start > 1 for row in step.rows):
            return None
        signature = self.sampler.signature(step.rows[0].request.slot)
        if any(self.sampler.signature(row.request.slot) != signature for row in step.rows):
            return None
        return self.graphs.find(next(size for size in SIZES if size >= n), signature)

    def _replay(self, graph: DecodeGraph, rows: list[Row]) -> Results:
        slots = [row.request.slot for row in rows]
        tokens = [_known(row)[0] for row in rows]
        sampled = graph.run(slots, [row.start for row in rows], tokens, self.sampler.draws(slots))
        return self._results(rows, [(range(len(rows)), sampled)])

    def _run(self, step: Step, sampling: list[Row]) -> Results:
        logits = self.decoder.forward(self._batch(step.rows), self.cache)
        by_signature: dict[Signature, list[int]] = {}
        for i, row in enumerate(sampling):
            by_signature.setdefault(self.sampler.signature(row.request.slot), []).append(i)
        groups: list[tuple[Sequence[int], Sampled]] = []
        for signature, places in by_signature.items():
            slots = [sampling[i].request.slot for i in places]
            chosen = logits if len(places) == len(sampling) else logits[to_device(np.array(places), logits.device)]
            # Metal has no 64-bit floats.
            numbers = self.sampler.draws(slots).astype(np.float32 if logits.device.type == "mps" else np.float64)
            draws = to_device(numbers, logits.device)
            rows = to_device(np.array(slots), logits.device)
            sampled = self.sampler.sample(chosen, rows, draws, signature)
            self.slots.follow_tokens(rows.to(self.device), sampled.tokens.to(self.device))
            groups.append((places, sampled))
        return self._results(sampling, groups)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        known = [_known(row) for row in rows]
        slots = np.array([row.request.slot for row in rows])
        new = np.array([row.stop - row.start for row in rows])
        ends = new.cumsum()
        widths = [max(len(row.request.pages[g]) for row in rows) for g in range(len(self.slots.host))]
        batch = Batch.from_tables(
            np.concatenate(known),
            new,
            np.array([row.start for row in rows]),
            [table[slots, :width] for table, width in zip(self.slots.host, widths, strict=True)],
            PAGE_SIZE,
            self.device,
            output_rows=[end - 1 for end, row in zip(ends, rows, strict=True) if row.samples],
        )
        # The host does not know yet what the step before has sampled; the device does.
        unknown = [i for i, tokens in enumerate(known) if tokens[-1] < 0]
        if unknown:
            places = to_device(np.stack((ends[unknown] - 1, slots[unknown])), self.device)
            batch.tokens.index_copy_(0, places[0], self.slots.last_tokens[places[1]])
        return batch

    def _results(self, rows: list[Row], groups: list[tuple[Sequence[int], Sampled]]) -> Results:
        if self.output_device.type == "cpu" and self.graphs is None:
            return Results(rows, groups, None)
        # A graph's own numbers are overwritten by its next run, which may come before they are read.
        on_cuda = self.output_device.type == "cuda"
        arriving = [(places, _copied(sampled, non_blocking=on_cuda)) for places, sampled in groups]
        if not on_cuda:
            return Results(rows, arriving, None)
        event = torch.cuda.Event()
        event.record()
        return Results(rows, arriving, event)


def _copied(sampled: Sampled, *, non_blocking: bool) -> Sampled:
    """A copy on the host; with non_blocking, on its way there."""
    parts: dict[str, Any] = {field.name: getattr(sampled, field.name) for field in fields(sampled)}
    there = {name: part for name, part in parts.items() if part is not None}
    return Sampled(**{name: part.to("cpu", non_blocking=non_blocking, copy=True) for name, part in there.items()})


def _known(row: Row) -> list[int]:
    """The tokens of a row; -1 for the one that is not known yet."""
    tokens = row.request.tokens[row.start : row.stop]
    return tokens if len(tokens) == row.stop - row.start else [*tokens, -1]
