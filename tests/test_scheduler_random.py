"""Random arrivals, ends and failures: every row finds in the cache exactly what it attends to, and nothing is lost."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scheduler_simulator import Clock, Simulator, make_scheduler, text_of

from naiad.runtime.engine.pages import GroupSpec
from naiad.runtime.engine.request import Request

GROUPS = {
    "roomy": (GroupSpec(200, 0),),
    "tiny": (GroupSpec(18, 0),),
    "tiny, host": (GroupSpec(18, 0, 12),),
    "window": (GroupSpec(18, 10),),
    "two groups": (GroupSpec(24, 0), GroupSpec(14, 9)),
    "two groups, host": (GroupSpec(24, 0, 9), GroupSpec(14, 9, 5)),
    "two groups, roomy host": (GroupSpec(30, 0, 60), GroupSpec(30, 1, 60)),
}


def arrivals(draw: random.Random, n: int, clock: Clock) -> Iterable[Request]:
    """Requests that share prefixes with earlier ones, in part, up to 60 tokens."""
    known = [text_of(40, seed) for seed in range(3)]
    for _ in range(n):
        base = draw.choice(known)
        prompt = base[: draw.randrange(len(base) + 1)] + [draw.randrange(1, 5) for _ in range(draw.randrange(1, 20))]
        known[draw.randrange(len(known))] = prompt[:40]
        yield Request(
            prompt[:60],
            max_tokens=draw.choice([-1, 0, 1, 2, 5, 10, 30]),
            priority=draw.choice([0, 0, 0, 1, -1]),
            deadline=clock.now + draw.choice([math.inf, math.inf, 3.0, 20.0]),
            cache_prompt=draw.random() < 0.9,
            ignore_eos=draw.random() < 0.2,
        )


def simulate(
    groups: tuple[GroupSpec, ...], depth: int, n_requests: int, fail_rate: float, n_batch: int, seed: int
) -> Simulator:
    draw, clock = random.Random(seed), Clock()
    scheduler = make_scheduler(groups, n_ctx=64, n_batch=n_batch, max_seqs=6, max_queue=20, ageing=5.0, clock=clock)
    simulator = Simulator(scheduler, depth, eog_rate=0.05)
    requests = deque(arrivals(draw, n_requests, clock))
    while requests or scheduler.has_work:
        clock.now += draw.random()
        for _ in range(draw.choice([0, 0, 0, 1, 1, 2, 5])):
            if requests and scheduler.n_waiting < scheduler.max_queue:
                requests[0].deadline += clock.now
                simulator.submit(requests.popleft())
        alive = [*scheduler.waiting, *scheduler.prompts, *scheduler.streams]
        if alive and draw.random() < 0.02:
            scheduler.cancel(draw.choice(alive))
        idle = not simulator.under_way
        step = simulator.run(fails=draw.random() < fail_rate)
        assert step or not idle or not scheduler.has_work
    while simulator.under_way:
        simulator.run()
    simulator.check_end()
    return simulator


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("kind", GROUPS)
def test_every_row_finds_the_tokens_that_it_attends_to(kind: str, depth: int) -> None:
    """Ten thousand arrivals in all; a third while steps fail, and a third with batches smaller than the streams."""
    for seed, fail_rate, n_batch in ((1, 0.0, 40), (2, 0.03, 24), (3, 0.0, 4)):
        simulator = simulate(GROUPS[kind], depth, 159, fail_rate, n_batch, seed)
        pool = simulator.scheduler.pool
        reasons = {r.finish_reason for r in simulator.ended}
        assert {"stop", "length", "cancelled", "timeout"} <= reasons
        assert ("error" in reasons) == (fail_rate > 0)
        assert any(r.n_cached for r in simulator.ended)
        assert (pool.n_loaded > 0) == ("host" in kind)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(GROUPS)), st.integers(0, 2), st.sampled_from([0.0, 0.1]), st.integers(1, 40), st.integers(0)
)
@example("tiny", 2, 0.1, 36, 387917)  # a step fails; who shared its pages is preempted already, with a token in flight
def test_random_runs(kind: str, depth: int, fail_rate: float, n_batch: int, seed: int) -> None:
    simulate(GROUPS[kind], depth, 25, fail_rate, n_batch, seed)
