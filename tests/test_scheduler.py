"""The scheduler: who is served when, who waits, who gives way, and how requests end."""

from __future__ import annotations

import math
import random
import time

import pytest
from scheduler_simulator import EOG, Clock, Simulator, make_scheduler, text_of

from naiad.runtime.engine.pages import GroupSpec
from naiad.runtime.engine.queues import even_shares
from naiad.runtime.engine.request import QueueFull, Request


def test_tiny_pools_preempt_and_the_texts_are_the_same() -> None:
    """Sixteen streams over little memory give what they give with much memory."""
    texts = []
    for groups in ((GroupSpec(400, 0),), (GroupSpec(30, 0),), (GroupSpec(30, 0, 40),)):
        simulator = Simulator(make_scheduler(groups, n_ctx=64, max_seqs=16))
        for seed in range(16):
            simulator.submit(Request(text_of(20, seed), max_tokens=30))
        simulator.finish()
        simulator.check_end()
        assert (simulator.scheduler.n_preempted > 10) == (groups[0].n_pages < 400)
        texts.append([r.tokens for r in sorted(simulator.ended, key=lambda r: r.id)])
    assert texts[0] == texts[1] == texts[2]


def test_a_long_prompt_stops_no_stream() -> None:
    """While 32,768 tokens enter, every stream gets a token in every step, and a short prompt comes in at once."""
    scheduler = make_scheduler((GroupSpec(1200, 0),), page_size=32, n_ctx=32768, n_batch=512)
    simulator = Simulator(scheduler)
    streams = [Request(text_of(50, seed), max_tokens=200) for seed in range(4)]
    for request in streams:
        simulator.submit(request)
    simulator.run()
    long, short = Request(text_of(32768, 9), max_tokens=1), Request(text_of(300, 10), max_tokens=1)
    simulator.submit(long)
    longest_wait = 0
    waits = dict.fromkeys(streams, 0)
    n_steps = 0
    while long.finish_reason is None:
        n_steps += 1
        if n_steps == 5:
            simulator.submit(short)
        step = simulator.run()
        assert step is not None
        served = {row.request for row in step.rows}
        for request in streams:
            waits[request] = 0 if request in served else waits[request] + 1
        longest_wait = max(longest_wait, *waits.values())
        assert n_steps != 6 or short.finish_reason == "length"
    assert longest_wait == 0
    assert n_steps == 66  # (32768 + 300) / (512 - 4)


def test_more_streams_than_places_in_a_step_take_turns() -> None:
    simulator = Simulator(make_scheduler(n_batch=3, max_seqs=8))
    requests = [Request(text_of(1, seed), max_tokens=40) for seed in range(8)]
    for request in requests:
        simulator.submit(request)
    for _ in range(20):
        simulator.run()
    assert len(simulator.scheduler.streams) == 8
    for _ in range(3):
        served = set()
        for _ in range(3):
            step = simulator.run()
            assert step is not None
            assert len(step.rows) == 3
            served |= {row.request for row in step.rows}
        assert served == set(requests)
    simulator.finish()


@pytest.mark.parametrize(("ageing", "last"), [(1.0, 30), (math.inf, 201)])
def test_low_priority_waits_but_does_not_starve(ageing: float, last: int) -> None:
    """A stream of requests of priority 5, two per second, fills both slots; ageing alone lets another one in."""
    clock = Clock()
    simulator = Simulator(make_scheduler(max_seqs=2, ageing=ageing, clock=clock))
    low = Request(text_of(10), max_tokens=3, priority=0)
    simulator.submit(low)
    for second in range(200):
        for i in range(2):
            simulator.submit(Request(text_of(10, 2 * second + i + 1), max_tokens=3, priority=5))
        clock.now += 1.0
        for _ in range(2):
            simulator.run()
        if low.finish_reason:
            assert second <= last
            break
    else:
        assert ageing == math.inf
    simulator.finish()


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(("ageing", "ends"), [(5.0, True), (math.inf, False)])
def test_a_prompt_that_gets_no_place_ages_too(ageing: float, ends: bool, begun: bool) -> None:
    """One that is half computed or waits, while prompts of a higher priority could fill every step."""
    clock = Clock()
    simulator = Simulator(make_scheduler((GroupSpec(4000, 0),), n_batch=16, ageing=ageing, clock=clock))
    low = Request(text_of(40), max_tokens=1)
    simulator.submit(low)
    if begun:
        simulator.run()
    for second in range(120):
        clock.now += 1.0
        simulator.submit(Request(text_of(16, second), max_tokens=1, priority=2, cache_prompt=False))
        simulator.run()
    assert (low.finish_reason == "length") == ends


def test_equal_prompts_share_a_step_evenly_and_higher_ones_come_first() -> None:
    scheduler = make_scheduler(n_batch=60)
    a, b, c = (Request(text_of(n, n), max_tokens=1) for n in (100, 12, 101))
    high = Request(text_of(30, 1), max_tokens=1, priority=1)
    for request in (a, b, c):
        scheduler.submit(request)
    step = scheduler.schedule()
    assert step is not None
    assert {row.request: row.stop for row in step.rows} == {a: 24, b: 12, c: 24}
    assert [row.samples for row in step.rows] == [False, True, False]
    scheduler.submit(high)
    scheduler.complete(step, [1])
    step = scheduler.schedule()
    assert step is not None
    assert {row.request: row.stop - row.start for row in step.rows} == {high: 30, a: 15, c: 15}


def test_who_has_waited_shares_with_those_of_the_priority_that_it_has_reached() -> None:
    clock = Clock()
    scheduler = make_scheduler(n_batch=16, ageing=5.0, clock=clock)
    low, high = Request(text_of(40, 1)), Request(text_of(40, 2), priority=2)
    scheduler.submit(low)
    clock.now = 10.0
    scheduler.submit(high)
    step = scheduler.schedule()
    assert step is not None
    assert {row.request: row.stop for row in step.rows} == {low: 8, high: 8}


def test_who_is_preempted_comes_back_when_its_last_token_is_known() -> None:
    scheduler = make_scheduler((GroupSpec(6, 0),))
    first, second = Request(text_of(8, 1)), Request(text_of(8, 2))
    for request in (first, second):
        scheduler.submit(request)
    prompts = scheduler.schedule()
    streams = scheduler.schedule()  # there is one page left
    assert prompts is not None
    assert streams is not None
    assert [row.request for row in streams.rows] == [first]
    scheduler.cancel(first)
    assert scheduler.schedule() is None
    assert scheduler.complete(prompts, [7, 8]) == [(second, 8)]
    step = scheduler.schedule()
    assert step is not None
    assert [(row.request, row.start, row.stop) for row in step.rows] == [(second, 8, 9)]


@pytest.mark.parametrize(
    ("budget", "needs", "shares"),
    [
        (60, [100, 12, 101], [24, 12, 24]),
        (10, [3, 3, 3], [3, 3, 3]),
        (10, [9, 1, 9, 1], [4, 1, 4, 1]),
        (2, [5, 5, 5], [1, 1, 0]),
        (7, [5, 5], [4, 3]),
        (7, [], []),
    ],
)
def test_even_shares(budget: int, needs: list[int], shares: list[int]) -> None:
    assert even_shares(budget, needs) == shares


def test_a_prompt_enters_only_when_all_of_it_fits() -> None:
    scheduler = make_scheduler((GroupSpec(21, 0),), n_batch=8)
    simulator = Simulator(scheduler)
    first, second = Request(text_of(44, 1), max_tokens=4), Request(text_of(44, 2), max_tokens=4)
    small = Request(text_of(4, 3), max_tokens=1)
    for request in (first, second, small):
        simulator.submit(request)
    while first.finish_reason is None:
        assert not second.pages
        assert not small.pages  # or those that need much would never come in
        simulator.run()
    simulator.finish()
    assert scheduler.n_preempted == 0
    simulator.check_end()


def test_the_same_prompt_is_computed_once() -> None:
    """Sixteen completions of one prompt: the first computes it, the others only what does not fill a page."""
    scheduler = make_scheduler(n_batch=64, max_seqs=16)
    simulator = Simulator(scheduler)
    requests = [Request(text_of(130), max_tokens=8) for _ in range(16)]
    for request in requests:
        simulator.submit(request)
    n_computed = 0
    while scheduler.has_work:
        step = simulator.run()
        assert step is not None
        n_computed += sum(row.stop - row.start for row in step.rows if row.start < 130)
    assert n_computed == 130 + 15 * 2
    assert [r.n_cached for r in requests] == [0] + 15 * [128]
    assert simulator.n_steps == 3 + 7
    simulator.check_end()


def test_nobody_waits_for_pages_of_a_request_that_went_away() -> None:
    scheduler = make_scheduler(n_batch=32)
    simulator = Simulator(scheduler)
    first, second = Request(text_of(200), max_tokens=2), Request(text_of(200), max_tokens=2)
    simulator.submit(first)
    simulator.submit(second)
    for _ in range(3):
        simulator.run()
    assert (first.n_computed, second.slot) == (96, -1)
    scheduler.cancel(first)
    step = simulator.run()
    assert step is not None
    assert [(row.request, row.start, row.stop) for row in step.rows] == [(second, 96, 128)]
    simulator.finish()
    simulator.check_end()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_chat_goes_on_where_it_was(depth: int) -> None:
    simulator = Simulator(make_scheduler(), depth)
    first = Request(text_of(30), max_tokens=9)
    simulator.submit(first)
    simulator.finish()
    known = len(first.tokens) - 1  # the last token was sampled, and never computed
    second = Request([*first.tokens, 1, 2, 3], max_tokens=1)
    private = Request([*first.tokens, 1, 2, 3], max_tokens=1, cache_prompt=False)
    for request in (second, private):
        simulator.submit(request)
    simulator.finish()
    assert (second.n_cached, private.n_cached) == (known, 0)
    simulator.check_end()


@pytest.mark.parametrize(("priorities", "victim"), [((0, 0, 0), 2), ((0, 1, 1), 0), ((1, 0, 1), 1), ((1, 0, 0), 2)])
def test_the_lowest_and_latest_is_preempted_and_resumed_before_newer_ones(
    priorities: tuple[int, ...], victim: int
) -> None:
    scheduler = make_scheduler((GroupSpec(17, 0),), max_seqs=4, n_ctx=64)
    simulator = Simulator(scheduler)
    requests = [Request(text_of(17, i), max_tokens=20, priority=p) for i, p in enumerate(priorities)]
    for request in requests:
        simulator.submit(request)
    for _ in range(20):
        simulator.run()
        if scheduler.n_preempted:
            break
    assert scheduler.waiting == [requests[victim]]
    newer = Request(text_of(1, 4), max_tokens=2, priority=priorities[victim])
    simulator.submit(newer)
    while not requests[victim].pages:
        assert not newer.pages
        simulator.run()
    simulator.finish()
    simulator.check_end()


def test_prompts_do_not_block_each_other_half_way() -> None:
    """A stream takes the page that two prompts reckoned with: the first of them goes on, the other one gives way."""
    scheduler = make_scheduler((GroupSpec(15, 0),), n_batch=3)
    simulator = Simulator(scheduler)
    simulator.submit(Request(text_of(4), max_tokens=40))
    for _ in range(2):
        simulator.run()
    first, second = Request(text_of(24, 1), max_tokens=1), Request(text_of(24, 2), max_tokens=1)
    for request in (first, second):
        simulator.submit(request)
    while first.finish_reason is None:
        step = simulator.run()
        assert step is not None
        assert [row.stop - row.start for row in step.rows if row.request is first] >= [1]
    assert scheduler.n_preempted == 1
    assert scheduler.waiting == [second]
    simulator.finish()
    simulator.check_end()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_sequence_ends_with_length_where_context_or_cache_end(depth: int) -> None:
    for n_pages, n_ctx, n_generated in ((200, 40, 31), (6, 512, 11), (4, 512, 3), (200, 10, 1)):
        simulator = Simulator(make_scheduler((GroupSpec(n_pages, 0),), n_ctx=n_ctx), depth)
        request = Request(text_of(10))
        simulator.submit(request)
        simulator.finish()
        assert (request.finish_reason, request.n_generated) == ("length", n_generated)
        simulator.check_end()


def test_a_windows_memory_is_bounded_however_long_the_text() -> None:
    simulator = Simulator(make_scheduler((GroupSpec(5, 8),), n_ctx=300))
    request = Request(text_of(100))
    simulator.submit(request)
    simulator.finish()
    assert (request.finish_reason, len(request.tokens)) == ("length", 301)
    simulator.check_end()


def test_deadlines_and_ends() -> None:
    clock = Clock()
    scheduler = make_scheduler(max_seqs=1, clock=clock)
    simulator = Simulator(scheduler)
    running, waiting = Request(text_of(5), deadline=7.0), Request(text_of(6), deadline=3.0)
    nothing, patient = Request(text_of(5), max_tokens=0), Request(text_of(6), max_tokens=1)
    for request in (running, waiting, nothing, patient):
        simulator.submit(request)
    reasons = []
    for _ in range(10):
        simulator.run()
        clock.now += 1.0
        reasons.append([r.finish_reason for r in (running, waiting, nothing, patient)])
    assert [r[0] for r in reasons] == 7 * [None] + 3 * ["timeout"]
    assert [r[1] for r in reasons] == 3 * [None] + 7 * ["timeout"]
    assert [r[2] for r in reasons] == 10 * ["length"]
    assert [r[3] for r in reasons] == 7 * [None] + 3 * ["length"]
    simulator.check_end()


def test_a_failed_step_ends_its_requests_and_no_others() -> None:
    scheduler = make_scheduler(max_seqs=2)
    simulator = Simulator(scheduler)
    a, b, c = (Request(text_of(20, s), max_tokens=4) for s in range(3))
    for request in (a, b, c):
        simulator.submit(request)
    simulator.run()
    simulator.run(fails=True)
    assert [(r.finish_reason, r.error) for r in (a, b)] == 2 * [("error", "the device is gone")]
    simulator.finish()
    assert c.finish_reason == "length"
    again = Request(text_of(20, 0), max_tokens=4)
    simulator.submit(again)
    simulator.finish()
    assert again.n_cached == 19  # the first step's pages are good
    simulator.check_end()
    scheduler.submit(d := Request(text_of(20, 4)))
    scheduler.abort_all("closing")
    assert (d.finish_reason, d.error, scheduler.has_work) == ("error", "closing", False)


def test_end_of_generation_tokens() -> None:
    for ignore_eos, n_generated, reason in ((False, 1, "stop"), (True, 5, "length")):
        simulator = Simulator(make_scheduler(), eog_rate=1.0)
        request = Request(text_of(5), max_tokens=5, ignore_eos=ignore_eos)
        simulator.submit(request)
        simulator.finish()
        assert (request.finish_reason, request.n_generated, request.tokens[-1]) == (reason, n_generated, EOG)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([]), "no tokens"),
        (Request([1] * 513), "513 tokens, but the context holds 512"),
        (Request([1] * 401), "401 tokens, but the cache holds 400"),
        (Request([1], max_tokens=-2), "max_tokens must be -1"),
        (Request([1], deadline=math.nan), "nan"),
    ],
)
def test_what_can_never_be_served_is_refused(request_: Request, message: str) -> None:
    scheduler = make_scheduler((GroupSpec(101, 0),))
    with pytest.raises(ValueError, match=message):
        scheduler.submit(request_)
    assert not scheduler.has_work


def test_a_full_queue_and_a_request_twice() -> None:
    scheduler = make_scheduler(max_queue=2)
    request = Request([1])
    scheduler.submit(request)
    with pytest.raises(ValueError, match="submitted before"):
        scheduler.submit(request)
    scheduler.submit(Request([1]))
    with pytest.raises(QueueFull, match="2 requests wait already, and the queue holds 2"):
        scheduler.submit(Request([1]))
    scheduler.schedule()
    scheduler.submit(Request([1]))
    with pytest.raises(ValueError, match="n_batch must be at least 1, found 0"):
        make_scheduler(n_batch=0)
    with pytest.raises(ValueError, match="ageing"):
        make_scheduler(ageing=0.0)


def test_few_places_are_wasted() -> None:
    """64 streams with prompts of 100 to 1,000 tokens and answers of 50 to 500, all drawn evenly."""
    draw = random.Random(0)
    scheduler = make_scheduler((GroupSpec(4000, 0),), page_size=32, n_ctx=2048, n_batch=2048, max_seqs=64)
    for seed in range(64):
        scheduler.submit(Request(text_of(draw.randrange(100, 1001), seed), max_tokens=draw.randrange(50, 501)))
    worst = 0.0
    while (step := scheduler.schedule()) is not None:
        scheduler.complete(step, [1] * sum(row.samples for row in step.rows))
        if len(scheduler.streams) == 64:
            n_places = 32 * sum(len(r.pages[0]) for r in scheduler.streams)
            worst = max(worst, 1 - sum(r.n_computed for r in scheduler.streams) / n_places)
    assert 0 < worst < 0.04


@pytest.mark.parametrize(("n_streams", "limit"), [(1, 30e-6), (64, 300e-6)])
def test_scheduling_takes_little_time(n_streams: int, limit: float) -> None:
    scheduler = make_scheduler((GroupSpec(4000, 0),), page_size=32, n_ctx=32768, n_batch=4096, max_seqs=64)
    for seed in range(n_streams):
        scheduler.submit(Request(text_of(500, seed)))
    times: list[float] = []
    while len(times) < 300:
        start = time.thread_time()
        step = scheduler.schedule()
        assert step is not None
        scheduler.complete(step, [1] * sum(row.samples for row in step.rows))
        if not scheduler.prompts and not scheduler.waiting:
            times.append(time.thread_time() - start)
    assert sorted(times)[len(times) // 4] < limit
