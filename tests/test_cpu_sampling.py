"""The CPU's sampling kernels against llama.cpp's recorded answers and against the samplers in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cpu_kernels import cpu_team, runnable_isas
from sampling_cases import N_STEPS, N_VOCAB, logits_of, sample_all
from test_sampling_batch import CASES, RECORDED, Recorder, check_recorded, open_case

from naiad.runtime.cpu_kernels import candidates
from naiad.runtime.cpu_kernels.doubles import exp_double, load_double, log_double, power_double, store_double
from naiad.runtime.cpu_kernels.kernel import Compiler, kernel, this_host
from naiad.runtime.cpu_kernels.programs import Program
from naiad.runtime.cpu_kernels.team import Team
from naiad.runtime.sampling import BatchSampler, SamplingParams
from naiad.runtime.sampling.cpu import CpuSampler
from naiad.runtime.sampling.params import NO_TOKEN
from naiad.runtime.sampling.state import State

REPORTS: list[dict[str, Any]] = [{}, {"n_probs": 5}, {"n_probs": 7, "post_sampling_probs": True}]
OWN = this_host().isa.name
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def sampler(n_vocab: int, n_slots: int, *, team: bool = False, isa: str = OWN) -> BatchSampler:
    """With a team, whose threads share rows, or alone. What may be read before it is written is no number."""
    compiler, threads = cpu_team(isa)

    def poisoned(state: State) -> CpuSampler:
        made = CpuSampler(state, compiler, threads if team else None)
        made.memory[:, [i for i in range(candidates.N_ARRAYS) if i != candidates.COUNTS]] = 0xFF
        return made

    return BatchSampler(n_vocab, n_slots, "cpu", on_cpu=poisoned)


def distinct(n: int, seed: int, scale: float = 3.0) -> npt.NDArray[np.float32]:
    """Normally distributed logits in random order, no two of them equal."""
    random = np.random.RandomState(seed)
    values: npt.NDArray[np.float32] = np.unique(random.normal(0, scale, 2 * n).astype(np.float32))
    return random.permutation(values)[:n]


def between_nans(rows: npt.NDArray[np.float32]) -> torch.Tensor:
    """Rows with NaNs before and behind them."""
    whole = torch.full((rows.size + 64,), math.nan)
    whole[32 : 32 + rows.size] = torch.from_numpy(rows.ravel())
    return whole[32 : 32 + rows.size].view(rows.shape)


@pytest.mark.parametrize(
    "report", [{}, pytest.param({"n_probs": N_VOCAB, "post_sampling_probs": True}, marks=pytest.mark.slow)]
)
def test_llama_cpp_choices(report: dict[str, Any]) -> None:
    """All recorded chains; those that the kernels do not serve are left to torch."""
    fast = sampler(N_VOCAB, len(CASES), team=True)
    for number in range(len(CASES)):
        open_case(fast, number, number, **report)
    for step in range(N_STEPS):
        answers = sample_all(fast, {i: logits_of(i, step, c["scale"]) for i, c in enumerate(CASES)}, padding=2)
        for number in range(len(CASES)):
            if report:
                check_recorded(number, step, answers[number])
            else:
                assert answers[number][0] == RECORDED[number]["tokens"][step]
    assert fast.on_cpu is not None
    served = [fast.on_cpu.serves(fast.signature(number)) for number in range(len(CASES))]
    assert 0.5 * len(CASES) < sum(served) < len(CASES)


def group(of: BatchSampler, slots: list[int], n_vocab: int, step: int) -> list[Any]:
    """What a sampler gives for slots of one signature, with a row of padding in the middle."""
    signature = of.signature(slots[0])
    rows = torch.tensor([*slots[:1], of.n_slots, *slots[1:]])
    draws = torch.from_numpy(np.insert(of.draws(slots), 1, 0.5, axis=0))
    logits = between_nans(np.stack([distinct(n_vocab, 100 * step + slot) for slot in rows.tolist()]))
    sampled = of.sample(logits, rows, draws, signature)
    parts = [sampled.tokens, sampled.logprobs, sampled.top_ids, sampled.top_logprobs]
    return [None if part is None else torch.cat([part[:1], part[2:]]) for part in parts]


@pytest.fixture
def exact_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch adds up exponentials in float32, as many in a row as a vocabulary has vectors: 20480 are off by 4e-6 in
    vectors of 8 and by half of it in those of 16. The kernels' sums are float64."""
    for name in ("softmax", "log_softmax"):
        stock = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, dim, stock=stock: stock(x.double(), dim).float())


@pytest.mark.parametrize(
    ("n_vocab", "every", "team", "isa"),
    [
        (33, 2, True, OWN),
        (1021, 3, False, OWN),
        (20480, 8, True, OWN),
        *((1021, 8, True, isa) for isa in runnable_isas() if isa == "avx2" != OWN),
    ],
)
@pytest.mark.usefixtures("exact_sums")
def test_equals_torch(n_vocab: int, every: int, team: bool, isa: str) -> None:
    """Chains of all kinds, of vocabularies that are no multiple of anything, two requests each, three tokens."""
    chains = [(number, report) for number in range(0, len(CASES), every) for report in REPORTS]
    fast, slow = sampler(n_vocab, 2 * len(chains), team=team, isa=isa), BatchSampler(n_vocab, 2 * len(chains), "cpu")
    assert fast.on_cpu is not None
    for i, (number, report) in enumerate(chains):
        for slot in (2 * i, 2 * i + 1):
            open_case(fast, slot, number, **report)
            open_case(slow, slot, number, **report)
        if not fast.on_cpu.serves(fast.signature(2 * i)):
            continue
        for step in range(3):
            found, expected = (group(of, [2 * i, 2 * i + 1], n_vocab, step) for of in (fast, slow))
            check_equal(found, expected, post=report.get("post_sampling_probs", False))
    for name in ("given", "taken", "waiting", "seen"):
        assert torch.equal(getattr(fast.state, name)[:-1], getattr(slow.state, name)[:-1]), name
    for width, history in fast.state.history.items():
        assert torch.equal(history[:-1], slow.state.history[width][:-1])
    assert not fast.on_cpu.memory[:, candidates.COUNTS].any()


def check_equal(found: list[Any], expected: list[Any], *, post: bool) -> None:
    assert torch.equal(found[0], expected[0])
    if expected[1] is None:
        assert found[1:] == [None, None, None]
        return
    for part in (1, 3):
        # Logarithms above -16 are rounded to half of 2^-20 on either side, exponentials err by 1e-7 of themselves.
        torch.testing.assert_close(found[part], expected[part], atol=1e-6, rtol=0)
    # Which of those without any probability are named is anybody's choice, but each of them once.
    named = found[3] > 0 if post else torch.full_like(found[2], True, dtype=torch.bool)
    assert torch.equal(found[2][named], expected[2][named])
    assert all(len(set(row)) == len(row) for row in found[2].tolist())


def answer(logits: npt.NDArray[np.float32], **params: Any) -> tuple[int, dict[int, float]]:
    alone = sampler(len(logits), 1)
    alone.open(0, SamplingParams(seed=1, **params), [])
    found: tuple[int, dict[int, float]] = sample_all(alone, {0: logits})[0]
    return found


@pytest.mark.parametrize("n", [1, 5, 300, 5000])
def test_the_first_of_equals(n: int) -> None:
    """Ties are broken as torch.argmax and a stable sort break them, both zeros included."""
    random = np.random.RandomState(n)
    logits = (random.randint(-2, 2, n) * random.choice([1.0, -1.0], n)).astype(np.float32)
    reference = torch.from_numpy(logits)
    assert answer(logits, temperature=0)[0] == int(reference.argmax())
    order = reference.sort(descending=True, stable=True).indices.tolist()
    for k in (1, 3, 40, 700):
        _, left = answer(logits, **{**OFF, "top_k": k, "n_probs": min(k, n), "post_sampling_probs": True})
        assert list(left)[:k] == order[:k]


# What stands in one place of a row, and whether the row is one of numbers.
ODD = [
    (math.nan, False),
    (math.inf, False),
    (-math.nan, False),
    (-math.inf, True),
    (3.4e38, True),
    (-3.4e38, True),
    (1e-45, True),
    (-0.0, True),
]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("n", [5, 200, 4096])
def test_logits_that_are_not_numbers_give_no_token(n: int, fast: bool) -> None:
    """In all chains, wherever the value stands; the rows beside have what they have without it."""
    cases = CASES if n < 4096 else CASES[::8]
    chains = [SamplingParams(**{"seed": 3, **case["params"]}, **REPORTS[i % 2]) for i, case in enumerate(cases)]

    def opened() -> BatchSampler:
        made = sampler(n, len(chains), team=True) if fast else BatchSampler(n, len(chains), "cpu")
        for slot, chain in enumerate(chains):
            made.open(slot, chain, [1, 2, 1])
        return made

    rows = {slot: distinct(n, slot) for slot in range(len(chains))}
    expected = sample_all(opened(), {slot: row.copy() for slot, row in rows.items()})
    assert all(0 <= token < n for token, _ in expected.values())
    for i, (value, is_number) in enumerate(ODD):
        changed = {slot: row.copy() for slot, row in rows.items()}
        for slot in range(i % 2, len(chains), 2):
            changed[slot][(0, n - 1, n // 2, 3)[(slot // 2 + i) % 4]] = value
        for slot, (token, found) in sample_all(opened(), changed).items():
            if slot % 2 != i % 2:
                assert (token, found) == expected[slot]
            else:
                assert (0 <= token < n) == is_number
                assert is_number or token == NO_TOKEN
    for value in (math.nan, -math.inf, math.inf):
        nothing = dict.fromkeys(range(len(chains)), np.full(n, value, np.float32))
        assert {token for token, _ in sample_all(opened(), nothing).values()} == {NO_TOKEN}


@pytest.mark.parametrize("fast", [True, False])
def test_what_a_request_rules_out_is_its_own_affair(fast: bool) -> None:
    """All tokens, or all but those that penalties overflow for: the model's logits are numbers."""
    for changes in ({"logit_bias": dict.fromkeys(range(7), -math.inf)}, {"frequency_penalty": -3e38}):
        for temperature in (0.0, 1.0):
            params = SamplingParams(temperature=temperature, **changes)
            made = sampler(7, 1) if fast else BatchSampler(7, 1, "cpu")
            made.open(0, params, [1, 1, 1])
            assert 0 <= sample_all(made, {0: distinct(7, 1)})[0][0] < 7


def test_common_chains_are_few_operations() -> None:
    """Of torch: what makes the tensors of the results."""
    for params, limit in (({"temperature": 0}, 2), ({}, 2), ({"n_probs": 3, "repeat_penalty": 1.1}, 8)):
        fast = sampler(4096, 1)
        fast.open(0, SamplingParams(**params), [1, 2])
        signature = fast.signature(0)
        logits, rows, draws = torch.zeros(1, 4096), torch.tensor([0]), torch.from_numpy(fast.draws([0]))
        recorder = Recorder()  # type: ignore[no-untyped-call]
        with recorder:
            fast.sample(logits, rows, draws, signature)
        assert len(recorder.names) <= limit, recorder.names


def test_signatures_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.runtime.sampling.cpu.MAX_PLANS", 2)
    logits = distinct(100, 1)
    fast, slow = sampler(100, 1), BatchSampler(100, 1, "cpu")
    for k in (1, 5, 20, 60, 5, 1):
        for of in (fast, slow):
            of.open(0, SamplingParams(**{**OFF, "top_k": k, "seed": k}), [])
        assert sample_all(fast, {0: logits}) == sample_all(slow, {0: logits})


@kernel
def _functions(x, y, n, counter, thread, n_threads):  # type: ignore[no-untyped-def]
    for i in range(n):
        value = load_double(x + 8 * i)
        store_double(y + 24 * i, exp_double(value))
        store_double(y + 24 * i + 8, log_double(value))
        store_double(y + 24 * i + 16, power_double(abs(value), 1.7))


def test_functions_of_doubles() -> None:
    special = [0.0, 1.0, -1.0, 1e-310, 708.9, -707.9, 1e300, math.inf, -math.inf, math.nan]
    x = np.concatenate([special, np.random.RandomState(1).normal(0, 30, 200)])
    y = np.full((len(x), 3), math.nan)
    compiler = Compiler(this_host(), None)
    program = Program(compiler)
    program.add(_functions, x=x.ctypes.data, y=y.ctypes.data, n=len(x))
    Team(compiler, 1).run(program, 1)
    with np.errstate(all="ignore"):
        expected = np.stack([np.exp(x), np.log(x), np.abs(x) ** 1.7], 1)
    expected[(x < -708) | np.isnan(x), 0] = 0
    expected[np.isnan(x), 2] = 0
    np.testing.assert_allclose(y, expected, rtol=1e-14, atol=1e-300)
