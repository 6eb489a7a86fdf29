"""The page pool: prefixes, windows, the host tier, copies, eviction."""

from __future__ import annotations

import random

import pytest
from paged_memory import SIZE, Device, contents_of, tokens_of

from naiad.runtime.engine.pages import NULL_PAGE, GroupSpec, Move, PagePool
from naiad.runtime.engine.prefixes import MAX_SCAN, PrefixIndex


@pytest.mark.parametrize(
    ("first", "second", "n_matched"),
    [
        ("abcdefgh", "abcdefgh", 8),
        ("abcdefgh", "abcdefghij", 8),
        ("abcdefgh", "abcdef", 6),
        ("abcdefgh", "abcdeXgh", 5),
        ("abcdefgh", "abcdXfgh", 4),
        ("abcdefgh", "abX", 2),
        ("abcdefgh", "Xbcdefgh", 0),
        ("abcdefghij", "abcdefghij", 10),
        ("abcdefghij", "abcdefghijk", 10),
        ("abcdefghij", "abcdefghiX", 9),
        ("abc", "abcdefgh", 3),
        ("", "abc", 0),
        ("abc", "", 0),
    ],
)
def test_the_longest_common_prefix_is_found(first: str, second: str, n_matched: int) -> None:
    device = Device(GroupSpec(20, 0))
    if first:
        device.run([ord(c) for c in first])
    assert device.n_matched([ord(c) for c in second]) == n_matched
    assert device.pool.match([ord(c) for c in second], None, 1).n_tokens == min(n_matched, 1)
    if second:
        device.run([ord(c) for c in second])


def test_pages_are_shared_and_the_last_is_copied() -> None:
    device = Device(GroupSpec(20, 0))
    first = device.start(tokens_of(11))
    second = device.start(tokens_of(11))
    assert first is not None
    assert second is not None
    assert first.pages == [[1, 2, 3]]
    assert second.pages == [[1, 2, 4]]
    device.pool.release(first.pages, first.tokens, first.digests)
    device.pool.step += 1
    pages = device.pool.take(device.pool.match(tokens_of(11), None, 10))
    assert pages == [[1, 2, 5]]
    assert device.pool.take_moves() == [Move("copy", 0, 3, 5)]
    device.memory.check([second.pages, pages])


def test_nothing_is_shared_where_it_is_not_wanted() -> None:
    device = Device(GroupSpec(20, 0), share=False)
    device.run(tokens_of(11))
    assert device.n_matched(tokens_of(11)) == 0
    assert (device.pool.n_idle(), device.pool.n_free()) == (0, 19)


def test_a_page_that_is_written_in_this_step_is_shared_but_not_moved() -> None:
    """Moves come before the step's rows, so a copy would read what is not there yet."""
    pool = PagePool([GroupSpec(6, 0, 4)], SIZE)
    pool.step = 1
    pages: list[list[int]] = [[]]
    assert pool.extend(pages, 8)
    pool.register(pages, tokens_of(8), [], 0, 2)
    assert pool.match(tokens_of(8)).n_tokens == 8
    assert pool.match(tokens_of(7)).n_tokens == 4
    pool.release(pages)
    assert pool.extend(pages, 20)
    assert pool.take_moves() == []
    pool.release(pages)
    assert (pool.n_evicted, pool.n_offloaded, pool.n_idle()) == (2, 0, 0)


def test_the_end_of_the_oldest_is_evicted_first() -> None:
    device = Device(GroupSpec(11, 0))
    old, new = tokens_of(16, 1), tokens_of(16, 2)
    device.run(old)
    device.run(new)
    device.run(tokens_of(16, 3))
    assert (device.n_matched(old), device.n_matched(new)) == (8, 16)
    device.run([*old[:8], 1])
    assert device.n_matched(new) == 12
    assert device.pool.n_evicted == 3


def test_take_and_extend_change_nothing_when_memory_does_not_suffice() -> None:
    device = Device(GroupSpec(7, 0), GroupSpec(5, 0))
    held = device.start(tokens_of(10))
    assert held is not None
    other: list[list[int]] = [[], []]
    assert not device.pool.extend(other, 5)
    assert other == [[], []]
    assert device.pool.extend(other, 4)
    device.pool.step += 1
    match = device.pool.match(tokens_of(7))
    assert (match.n_tokens, device.pool.take(match)) == (7, None)
    device.memory.check([held.pages, other])
    assert device.pool.take_moves() == []
    assert device.pool.take(match.whole(SIZE)) == [[1], [1]]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 9, 30])
def test_a_window_keeps_what_the_next_token_sees(window: int) -> None:
    device = Device(GroupSpec(40, 0), GroupSpec(40, window))
    sequence = device.start(tokens_of(3))
    assert sequence is not None
    for n in range(3, 40):
        device.grow(sequence, tokens_of(60)[n : n + 1])
        first_of_page = n - n % SIZE
        seen = {p // SIZE for p in range(max(0, first_of_page - window + 1), n + 1)}
        assert [page != NULL_PAGE for page in sequence.pages[1]] == [k in seen for k in range(len(sequence.pages[1]))]
        assert NULL_PAGE not in sequence.pages[0]
        assert device.memory.holds(sequence.pages, contents_of(sequence.tokens), n)
        assert sum(page != NULL_PAGE for page in sequence.pages[1]) <= device.pool.demand(n + 1, 1)[1]


def test_a_prefix_is_as_long_as_its_window_is_whole() -> None:
    """Pages of the window's group that were let go of and evicted: only ends whose windows are left can be matched."""
    device = Device(GroupSpec(60, 0), GroupSpec(12, 8))
    text = tokens_of(40)
    sequence = device.start(text[:1])
    assert sequence is not None
    for n in range(1, 40):
        device.grow(sequence, text[n : n + 1])
    device.pool.release(sequence.pages, sequence.tokens, sequence.digests)
    assert device.n_matched(text) == 40
    device.run(tokens_of(20, 1))  # evicts five of ten pages, those that the window left first
    assert device.n_matched(text) == 40
    device.run(tokens_of(20, 2))
    assert device.n_matched(text) < 40
    assert device.pool.prefixes.nodes  # the other group still knows all of it


def test_a_group_with_a_window_alone_needs_no_beginning() -> None:
    device = Device(GroupSpec(7, 8))
    assert device.pool.capacity > 10**9
    sequence = device.start(tokens_of(4))
    assert sequence is not None
    for n in range(4, 80):
        assert device.grow(sequence, tokens_of(80)[n : n + 1])
    device.pool.release(sequence.pages, sequence.tokens, sequence.digests)
    assert device.n_matched(tokens_of(80)) == 80
    taken = device.start([*tokens_of(80), 1])
    assert taken is not None
    assert taken.pages[0][:18] == [NULL_PAGE] * 18


def test_the_host_keeps_what_the_device_has_no_room_for() -> None:
    device = Device(GroupSpec(6, 0, 10))
    first, second = tokens_of(18, 1), tokens_of(18, 2)
    for text in (first, second, first, second):
        device.run(text)
    pool = device.pool
    assert (pool.n_offloaded, pool.n_loaded) == (10, 10)
    assert device.n_matched(first) == device.n_matched(second) == 18
    # What has a copy on the host is not moved there again.
    device.run(first)
    assert pool.n_offloaded == 10


def test_the_host_lets_go_of_the_oldest() -> None:
    device = Device(GroupSpec(4, 0, 3))
    texts = [tokens_of(12, seed) for seed in range(3)]
    for text in texts:
        device.run(text)
    assert [device.n_matched(text) for text in texts] == [0, 12, 12]
    device.pool.forget()
    assert [device.n_matched(text) for text in texts] == [0, 0, 0]
    device.memory.check([])


def test_a_page_evicted_for_a_load_is_moved_first() -> None:
    """Device and host are full: the text that comes back takes the place of the one that goes there."""
    device = Device(GroupSpec(4, 0, 3))
    for seed in (1, 2, 1, 2, 1):
        device.run(tokens_of(12, seed))
    assert device.n_matched(tokens_of(12, 1)) == 12


def test_what_a_failed_step_wrote_is_forgotten() -> None:
    pool = PagePool([GroupSpec(20, 0)], SIZE)
    pages: list[list[int]] = [[]]
    digests: list[bytes] = []
    assert pool.extend(pages, 16)
    for step in (1, 2, 3, 4):
        pool.step = step
        pool.register(pages, tokens_of(16), digests, step - 1, step)
    pool.settle(1)
    pool.unregister(3)
    assert pool.match(tokens_of(16)).n_tokens == 8
    pool.release(pages)
    assert (pool.n_idle(), pool.n_free()) == (2, 19)
    pool.unregister(0)
    assert pool.match(tokens_of(16)).n_tokens == 4


def test_saving_and_restoring() -> None:
    text = tokens_of(23)
    device = Device(GroupSpec(20, 0), GroupSpec(20, 6))
    device.run(text)
    device.pool.step += 1
    found = device.pool.find([*text, 5])
    assert found is not None
    n_tokens, pages = found
    device.memory.execute(device.pool.take_moves())
    assert n_tokens == 23
    assert device.memory.holds(pages, contents_of(text), 23)
    device.pool.release(pages, text)
    device.memory.check([])

    other = Device(GroupSpec(20, 0, 4), GroupSpec(20, 6, 4))
    for seed in (1, 2, 3):
        other.run(tokens_of(30, seed))
    adopted = other.pool.adopt(text)
    assert adopted is not None
    kept = [sum(page != NULL_PAGE for page in numbers) for numbers in adopted]
    assert kept == other.pool.n_kept_pages(23) == [6, 3]
    other.memory.execute(other.pool.take_moves())
    for device_pages, numbers in zip(other.memory.device, adopted, strict=True):
        for k, page in enumerate(numbers):
            if page != NULL_PAGE:
                values = contents_of(text)[k * SIZE : (k + 1) * SIZE]
                device_pages[page][: len(values)] = values
    other.pool.release(adopted, text)
    other.memory.check([])
    assert other.n_matched(text) == 23
    other.run([*text, 7, 8, 9])
    assert other.pool.adopt(tokens_of(100)) is None


def test_digests_depend_on_everything_before() -> None:
    index = PrefixIndex(1, SIZE)
    seen: dict[bytes, tuple[int, ...]] = {}
    for seed in range(200):
        draw = random.Random(seed)
        tokens = [draw.randrange(2) for _ in range(16)]
        digests: list[bytes] = []
        index.chain(tokens, digests, 2)
        index.chain(tokens, digests, 4)
        assert len(digests) == 4
        for k, digest in enumerate(digests, 1):
            assert seen.setdefault(digest, tuple(tokens[: k * SIZE])) == tuple(tokens[: k * SIZE])
    assert len(set(seen.values())) == len(seen)


def test_hostile_prompts_are_compared_with_few_pages() -> None:
    """Ten thousand continuations of one prefix; the one that was left first is out of sight."""
    device = Device(GroupSpec(20_010, 0))
    pool = device.pool
    for i in range(10_000):
        pages: list[list[int]] = [[]]
        pool.extend(pages, 6)
        pool.register(pages, [1, 2, 3, 4], [], 0, 1)
        pool.release(pages, [1, 2, 3, 4, i, i])
    looked_at = 0

    def usable(_: object) -> bool:
        nonlocal looked_at
        looked_at += 1
        return False

    parent = next(iter(pool.prefixes.nodes.values())).digest
    assert pool.prefixes.continuation(parent, [9_999] * 3, usable) == (0, None)
    assert looked_at == 1
    assert device.n_matched([1, 2, 3, 4, 9_999 - MAX_SCAN + 1]) == 5
    assert device.n_matched([1, 2, 3, 4, 9_999 - MAX_SCAN]) == 4


@pytest.mark.parametrize("spec", [GroupSpec(1, 0), GroupSpec(5, -1), GroupSpec(5, 0, -1)])
def test_impossible_sizes_are_refused(spec: GroupSpec) -> None:
    with pytest.raises(ValueError, match="expected at least 2 pages"):
        PagePool([spec])
    with pytest.raises(ValueError, match="at least one cache group"):
        PagePool([])
