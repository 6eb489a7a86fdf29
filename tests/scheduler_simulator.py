"""A simulated device that runs a scheduler's steps and knows what every place of the cache holds."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from paged_memory import GARBAGE, Memory, contents_of

from naiad.runtime.engine.pages import GroupSpec, PagePool
from naiad.runtime.engine.request import Request
from naiad.runtime.engine.scheduler import Row, Scheduler, Step

EOG = 0
N_VOCAB = 50


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Launched:
    """A step on the simulated device: its tokens, and for each row whether it saw what it must see."""

    step: Step
    sampled: list[int]
    saw: list[bool]
    failed: bool


class Simulator:
    """Runs a scheduler's steps as a device would, up to `depth` of them ahead of what the scheduler knows.

    The next token of a sequence is a function of the sequence, so a repeated computation gives the same text.
    """

    def __init__(self, scheduler: Scheduler, depth: int = 0, eog_rate: float = 0.0) -> None:
        self.scheduler, self.depth, self.eog_rate = scheduler, depth, eog_rate
        self.memory = Memory(scheduler.pool)
        self.texts: dict[Request, list[int]] = {}
        self.values: dict[Request, list[int]] = {}
        self.delivered: dict[Request, list[int]] = {}
        self.ended: list[Request] = []
        self.under_way: deque[Launched] = deque()
        self.n_steps = 0

    def submit(self, request: Request) -> None:
        self.scheduler.submit(request)
        self.texts[request], self.delivered[request] = list(request.prompt), []
        self.values[request] = []

    def run(self, fails: bool = False) -> Step | None:
        """Schedules and launches one step, and completes the one that is due."""
        scheduler = self.scheduler
        streams = [r for r in scheduler.streams if r.n_computed + 1 < r.n_limit]
        step = scheduler.schedule()
        if step is not None:
            self.n_steps += 1
            self._check_step(step, streams)
            self.under_way.append(self._launch(step, fails))
        if self.under_way and (step is None or len(self.under_way) > self.depth):
            self._complete(self.under_way.popleft())
        self.check()
        return step

    def finish(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            self.run()
            if not (self.scheduler.has_work or self.under_way):
                return
        raise AssertionError(f"not finished after {max_steps} steps: {self.scheduler.waiting}")

    def check(self) -> None:
        scheduler = self.scheduler
        self.ended += scheduler.take_ended()
        running = [*scheduler.prompts, *scheduler.streams]
        self.memory.check([r.pages for r in running])
        slots = [r.slot for r in [*running, *scheduler.waiting] if r.slot >= 0]
        assert len(set(slots)) == len(slots)
        assert scheduler.prompts == sorted(scheduler.prompts, key=lambda r: r.rank)
        assert scheduler.streams == sorted(scheduler.streams, key=lambda r: r.rank)
        assert all(r.n_missing == 1 or r.finish_reason for r in scheduler.streams)

    def check_end(self) -> None:
        """Nothing is left over, and every request ended once with exactly its text."""
        pool = self.scheduler.pool
        assert sorted(r.id for r in self.ended) == sorted(r.id for r in self.texts)
        assert all(r.finish_reason for r in self.ended)
        self.memory.check([])
        pool.forget()
        self.memory.check([])
        assert not pool.prefixes.nodes
        assert all(len(g.free) == len(g.refs) - 1 for g in pool.groups)
        for request in self.texts:
            assert request.tokens == request.prompt + self.delivered[request]
            assert self.texts[request][: len(request.tokens)] == request.tokens

    def _check_step(self, step: Step, streams: Iterable[Request]) -> None:
        assert sum(row.stop - row.start for row in step.rows) <= self.scheduler.n_batch
        assert len({row.request for row in step.rows}) == len(step.rows)
        kinds = [row.start >= len(row.request.prompt) and row.stop - row.start == 1 for row in step.rows]
        served = {row.request for row in step.rows}
        # Every running stream advances in every step, unless it was preempted or they are too many for one.
        alive = {request for request in streams if request.pages and request.finish_reason is None}
        assert alive <= served or len(alive & served) >= self.scheduler.n_batch - 1
        assert kinds[: len(served & set(streams))] == [True] * len(served & set(streams))
        assert all(row.request.finish_reason is None for row in step.rows)

    def _launch(self, step: Step, fails: bool) -> Launched:
        self.memory.execute(step.moves, fails=fails)
        for row in step.rows:
            request = row.request
            text = self.texts[request]
            assert row.stop <= len(text) <= self.scheduler.n_ctx
            self.values[request] = contents_of(text[: row.stop], self.values[request])
            values = [GARBAGE] * (row.stop - row.start) if fails else self.values[request][row.start : row.stop]
            self.memory.write(request.pages, row.start, values)
        saw = [self.memory.holds(r.request.pages, self.values[r.request][: r.stop], r.start) for r in step.rows]
        sampled = [self._sample(row) for row in step.rows if row.samples]
        return Launched(step, sampled, saw, fails)

    def _sample(self, row: Row) -> int:
        text = self.texts[row.request]
        assert row.stop == len(text)
        draw = random.Random(self.values[row.request][row.stop - 1])
        text.append(EOG if draw.random() < self.eog_rate else draw.randrange(1, N_VOCAB))
        return text[-1]

    def _complete(self, launched: Launched) -> None:
        step = launched.step
        if launched.failed:
            self.scheduler.fail(step, "the device is gone")
            assert all(row.request.finish_reason for row in step.rows)
            return
        for row, saw in zip(step.rows, launched.saw, strict=True):
            assert saw or row.request.finish_reason is not None, row
        for request, token in self.scheduler.complete(step, launched.sampled):
            self.delivered[request].append(token)


def make_scheduler(
    groups: Iterable[GroupSpec] = (GroupSpec(200, 0),),
    *,
    page_size: int = 4,
    n_ctx: int = 512,
    n_batch: int = 64,
    max_seqs: int = 8,
    max_queue: int = 1000,
    ageing: float = math.inf,
    clock: Clock | None = None,
) -> Scheduler:
    return Scheduler(
        PagePool(tuple(groups), page_size),
        n_ctx=n_ctx,
        n_batch=n_batch,
        max_seqs=max_seqs,
        max_queue=max_queue,
        eog_ids=frozenset([EOG]),
        ageing=ageing,
        clock=clock or Clock(),
    )


def text_of(n: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, N_VOCAB) for _ in range(n)]
