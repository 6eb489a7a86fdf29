"""The page pool under random use, against naive models."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from paged_memory import Device, Sequenced, contents_of

from naiad.runtime.engine.pages import GroupSpec


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=8),
    st.lists(st.integers(0, 1), max_size=14),
)
def test_matches_equal_a_search_of_all_texts(texts: list[list[int]], wanted: list[int]) -> None:
    """With memory for everything: whole pages that any text began with, and then the most of any one page."""
    device = Device(GroupSpec(200, 0))
    for text in texts:
        device.run(text)
    common = [next((i for i, (a, b) in enumerate(zip(t, wanted)) if a != b), min(len(t), len(wanted))) for t in texts]  # noqa: B905
    assert device.n_matched(wanted) == max(common)


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, grow and go over little memory; their pages must hold the right content all the time.

    The model is the content itself: a function of the tokens before each place.
    """

    @initialize(
        spec=st.lists(
            st.tuples(st.integers(5, 14), st.sampled_from([0, 0, 1, 5, 9]), st.integers(0, 8)), min_size=1, max_size=2
        )
    )
    def create(self, spec: list[tuple[int, int, int]]) -> None:
        self.device = Device(*(GroupSpec(*numbers) for numbers in spec))
        self.pool = self.device.pool
        self.alive: list[Sequenced] = []
        self.texts: list[list[int]] = [[]]

    @rule(data=st.data(), rest=st.lists(st.integers(0, 1), min_size=1, max_size=8))
    def start(self, data: st.DataObject, rest: list[int]) -> None:
        base = data.draw(st.sampled_from(self.texts))
        text = base[: data.draw(st.integers(0, len(base)))] + rest
        sequence = self.device.start(text)
        if sequence is not None:
            self.alive.append(sequence)
            self.texts.append(text)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=6))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        sequence = data.draw(st.sampled_from(self.alive))
        if self.device.grow(sequence, tokens):
            self.texts.append(sequence.tokens.copy())

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), keep=st.booleans())
    def release(self, data: st.DataObject, keep: bool) -> None:
        sequence = self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))
        self.pool.release(sequence.pages, sequence.tokens if keep else None, sequence.digests)

    @rule()
    def forget(self) -> None:
        self.pool.forget()

    @rule(data=st.data())
    def find(self, data: st.DataObject) -> None:
        self.pool.step += 1
        text = data.draw(st.sampled_from(self.texts))
        found = self.pool.find(text)
        if found is not None:
            self.device.memory.execute(self.pool.take_moves())
            assert self.device.memory.holds(found[1], contents_of(text[: found[0]]), found[0])
            self.pool.release(found[1], text[: found[0]])

    @invariant()
    def holds_what_it_should(self) -> None:
        for sequence in getattr(self, "alive", []):
            values = contents_of(sequence.tokens)
            assert self.device.memory.holds(sequence.pages, values, sequence.seen_from)
        if hasattr(self, "device"):
            self.device.memory.check([s.pages for s in self.alive])

    def teardown(self) -> None:
        if hasattr(self, "device"):
            for sequence in self.alive:
                self.pool.release(sequence.pages, sequence.tokens, sequence.digests)
            self.device.memory.check([])
            self.pool.forget()
            self.device.memory.check([])
            assert all(len(group.free) == len(group.refs) - 1 for group in self.pool.groups)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
