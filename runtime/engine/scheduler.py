"""Which tokens of which requests the next step computes.

Every running stream gets one token per step, parts of prompts fill the rest of the batch (chunked prefill, as in
Sarathi-Serve). Prompts of equal priority share what is left evenly, so a long one holds nobody up.
"""

from __future__ import annotations

import heapq
import time
from bisect import insort
from collections.abc import Callable, Sequence
from operator import attrgetter

from .claims import Claims
from .page_group import n_held
from .pages import PagePool
from .prefixes import Match
from .queues import Deadlines, even_shares, remove
from .request import NO_LIMIT, FinishReason, QueueFull, Request, check_length
from .steps import Row as Row
from .steps import Step as Step

AGEING_SECONDS = 30.0
NO_NUMBERS = (
    "the model computed logits that are not numbers (NaN or infinity): its weights are damaged, or numbers have become "
    "too large for the types that it is computed in"
)

_by_key = attrgetter("key")
_by_rank = attrgetter("rank")
_by_last_step = attrgetter("last_step")


class Scheduler:
    """Decides step by step; the caller launches each step that `schedule` returns and hands its tokens to `complete`.

    A step may be scheduled before the ones before it have completed. All that a step does to pages and slots happens
    on the device in the order of steps, so what is released while a step is still running can be handed out at once:
    whoever gets it writes later.

    n_ctx: tokens that a sequence may hold. n_batch: tokens per step. max_seqs: slots. max_queue: requests that
    may wait. eog_ids: tokens that end a text. ageing: after so many seconds of waiting a request counts as one
    priority higher. clock: seconds. ValueError for numbers below 1, or ageing not above 0.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        n_ctx: int,
        n_batch: int,
        max_seqs: int,
        max_queue: int,
        eog_ids: frozenset[int],
        ageing: float = AGEING_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sizes = {"n_ctx": n_ctx, "n_batch": n_batch, "max_seqs": max_seqs, "max_queue": max_queue}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, found {size}")
        if not ageing > 0:
            raise ValueError(f"ageing must be above 0 seconds, found {ageing}")
        self.pool, self.n_ctx, self.n_batch, self.max_queue = pool, n_ctx, n_batch, max_queue
        self.eog_ids, self.ageing, self.clock = eog_ids, ageing, clock
        self.waiting: list[Request] = []  # by key: the first is to be admitted next
        self.prompts: list[Request] = []  # admitted, not yet computed up to their last token; by rank
        self.streams: list[Request] = []  # the other running ones, by rank: the last is preempted first
        self.n_steps = self.n_preempted = 0
        self._n_parked = 0  # waiting requests that have a slot, as they were preempted
        self._slots = list(range(max_seqs))
        self._ended: list[Request] = []
        self._restarted: list[Request] = []
        self._deadlines = Deadlines()
        self._claims = Claims()
        # The request that memory did not suffice for, and how many pages were to spare.
        self._blocked: tuple[Request | None, int] = None, 0
        self._is_short = False  # somebody was preempted for the step that is being put together

    @property
    def n_running(self) -> int:
        return len(self.prompts) + len(self.streams)

    @property
    def n_waiting(self) -> int:
        return len(self.waiting)

    @property
    def has_work(self) -> bool:
        """Is there a request that has not ended?"""
        return bool(self.waiting or self.prompts or self.streams)

    def check_length(self, n_prompt: int) -> None:
        """ValueError for a prompt of so many tokens that could never be served."""
        check_length(n_prompt, self.n_ctx, self.pool.capacity)

    def most_tokens(self, n_prompt: int, max_tokens: int) -> int:
        """How many tokens a request can generate at most."""
        room = max(1, min(self.n_ctx, self.pool.capacity) + 1 - n_prompt)
        return room if max_tokens == NO_LIMIT else max(1, min(room, max_tokens))

    def submit(self, request: Request) -> None:
        """Queues a request. ValueError: it can never be served. QueueFull: too many wait already."""
        request.check(self.n_ctx, self.pool.capacity)
        if self.n_waiting >= self.max_queue:
            raise QueueFull(f"{self.n_waiting} requests wait already, and the queue holds {self.max_queue}; try later")
        n_prompt = len(request.prompt)
        request.arrival = request.served = now = self.clock()
        request.tokens = list(request.prompt)
        request.cache_prompt &= self.pool.share
        request.n_limit = min(self.n_ctx, self.pool.capacity) + 1
        if request.max_tokens != NO_LIMIT:
            request.n_limit = min(request.n_limit, n_prompt + request.max_tokens)
        request.key = (now / self.ageing - request.priority, request.id)
        insort(self.waiting, request, key=_by_key)
        self._deadlines.add(request, self.n_waiting + self.n_running)
        if request.max_tokens == 0:
            self._end(request, "length")

    def cancel(self, request: Request, reason: FinishReason = "cancelled") -> None:
        """Ends a request: it is in no later step. Nothing happens if it has ended already.

        Its pages and slot are free at once, though steps that are launched already may still write to them: whoever
        gets them next writes in a later step, and what stays indexed does not include positions that those steps write.
        """
        if request.finish_reason is None:
            self._end(request, reason)

    def abort_all(self, error: str) -> None:
        """Ends all requests with "error"; what steps that have not completed were to write is forgotten."""
        self.pool.unregister(0)
        for request in [*self.waiting, *self.prompts, *self.streams]:
            self._end(request, "error", error)

    def take_ended(self) -> list[Request]:
        """The requests that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def take_restarted(self) -> list[Request]:
        """The requests that have begun again since the last call: nothing that was sampled for them counts."""
        restarted, self._restarted = self._restarted, []
        return restarted

    def schedule(self) -> Step | None:
        """The next step; None when there is nothing to do, or nothing before running steps are completed."""
        now = self.clock()
        for request in self._deadlines.expired(now):
            self._end(request, "timeout")
        number = self.pool.step = self.n_steps + 1
        rows: list[Row] = []
        # Once more if all that came of it is that somebody gave way: there is memory now.
        for _ in range(2):
            self._is_short = False
            self._serve(rows, number, now)
            if rows or not self._is_short:
                break
        if not rows:
            self.pool.step = self.n_steps
            return None
        self.n_steps = number
        return Step(rows, self.pool.take_moves(), number)

    def complete(self, step: Step, sampled: Sequence[int]) -> list[tuple[Request, int]]:
        """Takes a step's tokens, one per row that samples; returns those that belong to requests still alive.

        A negative one is none: what the model computed is no number, and the request ends with an error. Masked keys
        and values count where they are no numbers (0 times NaN), so an innocent request may have found such a prefix in
        the cache: whose first token is none begins again, alone.
        """
        rows = [row for row in step.rows if row.samples]
        assert len(sampled) == len(rows), (len(sampled), len(rows))
        self.pool.settle(step.number)
        page_size = self.pool.page_size
        delivered = []
        for row, token in zip(rows, sampled, strict=True):
            request = row.request
            if request.finish_reason is not None:
                continue
            request.n_in_flight -= 1
            if request.n_void:
                request.n_void -= 1
                continue
            if token < 0:
                self._reject(request)
                continue
            delivered.append((request, token))
            request.tokens.append(token)
            n_tokens = len(request.tokens)
            if token in self.eog_ids and not request.ignore_eos:
                self._end(request, "stop")
            elif n_tokens >= request.n_limit:
                self._end(request, "length")
            elif n_tokens % page_size == 0:
                self._index(request)
        return delivered

    def fail(self, step: Step, error: str) -> None:
        """Ends the step's requests with "error", and those admitted since, which may share what it was to write."""
        self.pool.unregister(step.number)
        alive = [*self.waiting, *self.prompts, *self.streams]
        victims = [row.request for row in step.rows] + [r for r in alive if r.admitted >= step.number]
        for request in victims:
            if request.finish_reason is None:
                self._end(request, "error", error)

    def _serve(self, rows: list[Row], number: int, now: float) -> None:
        n_reserved = self._n_reserved(number)
        self._serve_streams(rows, number, self.n_batch - n_reserved)
        if self.prompts or self.waiting:
            self._serve_prompts(rows, number, now)
        if n_reserved and not rows:
            self._serve_streams(rows, number, self.n_batch)

    def _n_reserved(self, number: int) -> int:
        """Places that are kept for prompts: one in every second step, where the streams alone would fill them all."""
        full = len(self.streams) >= self.n_batch
        return int(full and number % 2 == 0 and bool(self.prompts or self._admissible()))

    def _serve_streams(self, rows: list[Row], number: int, n_places: int) -> None:
        page_size = self.pool.page_size
        for request in self._turns(n_places):
            if len(rows) == n_places:
                break
            start = request.n_computed
            if not request.pages or start + 1 >= request.n_limit:
                continue  # preempted a moment ago; or its last token is sampled, and not yet known
            if start % page_size == 0 and not self._make_room(request, number):
                continue
            rows.append(Row(request, start, start + 1, True))
            request.n_computed = start + 1
            request.n_in_flight += 1
            request.last_step = number
            if (start + 1) % page_size == 0:
                self._index(request)

    def _turns(self, n_places: int) -> list[Request]:
        """The streams in the order in which they are served: when there are too many, who has waited longest first."""
        if len(self.streams) <= n_places:
            return self.streams.copy()
        return sorted(self.streams, key=_by_last_step)

    def _make_room(self, request: Request, number: int) -> bool:
        """Gets a stream its next page, if need be from the lowest in rank; False when that is the stream itself."""
        self.pool.slide(request.pages, request.n_computed)
        while not self.pool.extend(request.pages, request.n_computed + 1):
            victim = max((r for r in (*self.prompts, *self.streams) if r.last_step != number), key=_by_rank)
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _serve_prompts(self, rows: list[Row], number: int, now: float) -> None:
        """Fills what is left of the step, highest level first."""
        budget = self.n_batch - len(rows)
        left = self.prompts.copy()
        # Again and again, as a prompt may go on from pages that were given to another one a moment ago.
        while budget > 0:
            group = self._next_group(left, budget, number, now)
            if not group:
                return
            for request, share in zip(group, even_shares(budget, [r.n_missing for r in group]), strict=True):
                if share and request.pages:
                    budget -= self._advance(request, share, rows, number, now)
            left = [r for r in left if r not in group]

    def _next_group(self, left: Sequence[Request], budget: int, number: int, now: float) -> list[Request]:
        """The prompts of the highest level among those in `left` and those that can be admitted, which they are."""
        levels = [self._level(r, now) for r in left]
        level = max(levels, default=None)
        group = [r for r, its in zip(left, levels, strict=True) if its == level]
        for request in self._admissible():
            aged = self._level(request, now)
            if level is not None and (aged < level or (aged == level and len(group) >= budget)):
                break
            if not self._may_start(request, aged, now):
                continue
            spare = self._spare()
            if self._blocked[0] is request and self.n_running and sum(spare) <= self._blocked[1]:
                break  # as in an earlier step
            match = self._match(request)
            if self._is_computed_elsewhere(request, match, aged, now):
                continue
            if not self._admit(request, match, spare, number, now):
                break  # nobody passes it, or large requests would wait for ever
            if level is None or aged > level:
                level, group = aged, []
            group.append(request)
        return group

    def _admissible(self) -> list[Request]:
        """Waiting requests, if any may be admitted: none while memory is so short that others were preempted for it."""
        if self._is_short or not (self._slots or self._n_parked):
            return []
        return self.waiting.copy()

    def _level(self, request: Request, now: float) -> float:
        """A request's priority, with what it has gained by waiting for admission or for a place in a step."""
        if request.pages:
            return request.level + int((now - request.served) / self.ageing)
        return request.priority + int((now - request.arrival) / self.ageing)

    def _may_start(self, request: Request, level: float, now: float) -> bool:
        if request.n_in_flight or (request.slot < 0 and not self._slots):
            return False
        owner = self._claims.must_wait(request)
        if owner is not None and self._level(owner, now) >= level:
            return False
        request.awaits = None
        return True

    def _match(self, request: Request) -> Match:
        if not request.cache_prompt:
            return Match(0)
        # At least the last token is computed again: its logits are what is asked for.
        return self.pool.match(request.tokens, request.digests, len(request.tokens) - 1)

    def _is_computed_elsewhere(self, request: Request, match: Match, level: float, now: float) -> bool:
        """Does a request wait because what it needs next is about to be computed, at its level or above?"""
        if not request.cache_prompt:
            return False
        n_pages = (len(request.tokens) - 1) // self.pool.page_size
        return self._claims.wait(request, len(match.nodes), n_pages, lambda owner: self._level(owner, now) >= level)

    def _admit(self, request: Request, match: Match, spare: list[int], number: int, now: float) -> bool:
        """Makes a waiting request run, from what it shares with others on; False when memory does not suffice."""
        pool = self.pool
        needs = zip(pool.demand(len(request.tokens), self.n_batch), pool.n_in_use(match), spare, strict=True)
        pages = None
        # All of its tokens must fit. On its own it always does, though fewer than n_batch at a time may.
        if not self.n_running or all(demand - shared <= n for demand, shared, n in needs):
            pages = pool.take(match)
            if pages is None:
                match = match.whole(pool.page_size)
                pages = pool.take(match)
        if pages is None:
            self._blocked = (request, sum(spare))
            return False
        remove(self.waiting, request, _by_key)
        if request.slot < 0:
            request.slot = heapq.heappop(self._slots)
            request.n_cached = match.n_tokens
        else:
            self._n_parked -= 1
        request.level = self._level(request, now)
        request.rank = (-request.level, request.arrival, request.id)
        request.pages, request.n_computed, request.n_indexed = pages, match.n_tokens, len(match.nodes)
        request.admitted, request.served = number, now
        insort(self.prompts, request, key=_by_rank)
        if request.cache_prompt:
            pool.prefixes.chain(request.tokens, request.digests, len(request.tokens) // pool.page_size)
            self._claims.add(request, request.n_indexed)
        return True

    def _spare(self) -> list[int]:
        """Pages per group that can be had, less those that the prompts under way are going to need."""
        spare = []
        for i, group in enumerate(self.pool.groups):
            needs = (group.demand(len(r.tokens), self.n_batch) - n_held(r.pages[i]) for r in self.prompts)
            spare.append(group.n_free - sum(max(0, n) for n in needs))
        return spare

    def _advance(self, request: Request, share: int, rows: list[Row], number: int, now: float) -> int:
        """Adds up to `share` tokens of a prompt to the step, as many as there is memory for; returns how many."""
        start = request.n_computed
        self.pool.slide(request.pages, start)
        while (n := min(share, request.n_missing, self.pool.room(request.pages) - start)) <= 0:
            # Prompts must not block each other half-way: the first in rank goes on. Streams end by themselves.
            victim = self.prompts[-1]
            if victim is request or victim.last_step == number:
                return 0
            self._preempt(victim)
        extended = self.pool.extend(request.pages, start + n)
        assert extended
        samples = n == request.n_missing
        rows.append(Row(request, start, start + n, samples))
        request.n_computed = start + n
        request.last_step, request.served = number, now
        self._index(request)
        if samples:
            request.n_in_flight += 1
            remove(self.prompts, request, _by_rank)
            insort(self.streams, request, key=_by_rank)
        return n

    def _index(self, request: Request) -> None:
        """Lets others share the pages that have become full of known tokens."""
        first, last = request.n_indexed, min(len(request.tokens), request.n_computed) // self.pool.page_size
        if last <= first or not request.cache_prompt:
            return
        self.pool.register(request.pages, request.tokens, request.digests, first, last)
        self._claims.remove(request, first, last)
        request.n_indexed = last

    def _reject(self, request: Request) -> None:
        """What was computed for a request is no number: nobody shall find it, and the request shares nothing."""
        self.pool.disown(request.pages)
        if request.n_generated or not request.cache_prompt:
            self._end(request, "error", NO_NUMBERS)
            return
        if request.pages:
            self._preempt(request, keep=False)
        request.cache_prompt, request.n_cached, request.n_void = False, 0, request.n_in_flight
        self._restarted.append(request)

    def _preempt(self, request: Request, *, keep: bool = True) -> None:
        """Takes a running request's pages; it waits again, before all of its priority that came later."""
        self._stop(request, keep=keep)
        request.n_computed = request.n_indexed = 0
        insort(self.waiting, request, key=_by_key)
        self._n_parked += 1
        self._is_short = True
        self.n_preempted += 1

    def _stop(self, request: Request, keep: bool) -> None:
        """Takes a running request out of its list and releases its pages; `keep`: what they hold may be used again."""
        remove(self.prompts, request, _by_rank) or remove(self.streams, request, _by_rank)
        if keep and request.cache_prompt:
            self._index(request)
            n_known = min(len(request.tokens), request.n_computed)
            self.pool.release(request.pages, request.tokens, request.digests, n_known)
        else:
            self.pool.release(request.pages)
        self._claims.remove(request, request.n_indexed)
        request.pages = []

    def _end(self, request: Request, reason: FinishReason, error: str | None = None) -> None:
        if request.pages:
            self._stop(request, keep=reason != "error")
        else:
            remove(self.waiting, request, _by_key)
            self._n_parked -= request.slot >= 0
        if request.slot >= 0:
            heapq.heappush(self._slots, request.slot)
        request.finish_reason, request.error = reason, error
        self._ended.append(request)
