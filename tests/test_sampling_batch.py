"""The batched sampler: llama.cpp's recorded answers, rows that do not see each other, and distributions."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_cases import N_STEPS, N_VOCAB, cases, logits_of, prompt_of, sample_all, vocab_kv
from torch.utils._python_dispatch import TorchDispatchMode

from naiad.loaders.tokenizer import Tokenizer
from naiad.runtime.sampling import BatchSampler, BreakerFinder, SamplingParams
from naiad.runtime.sampling.fingerprints import powers, repeat_lengths
from naiad.runtime.sampling.largest import argmax, topk

CASES = cases()
RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("data").joinpath("sampling.json").read_text())[
    "cases"
]
TOKENIZER = Tokenizer.from_kv(vocab_kv())
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False, parse_special=False)


FINDER = BreakerFinder(N_VOCAB, TOKENIZER.lone_piece, encode)


def open_case(sampler: BatchSampler, slot: int, number: int, **more: Any) -> None:
    params = SamplingParams(**CASES[number]["params"], **more)
    sampler.open(slot, params, prompt_of(number), eog_ids=[2], breakers=FINDER.table_of(params))


def check_recorded(number: int, step: int, answer: tuple[int, dict[int, float]]) -> None:
    recorded, (token, probabilities) = RECORDED[number], answer
    assert sum(p >= 1e-7 for p in probabilities.values()) == recorded["sizes"][step]
    for i, p in recorded["candidates"][step].items():
        assert abs(probabilities[int(i)] - p) < 1e-5, i
    assert token == recorded["tokens"][step]


def test_llama_cpp_choices_together() -> None:
    """All cases as one batch, with rows of padding, for all steps."""
    assert len(CASES) == len(RECORDED)
    sampler = BatchSampler(N_VOCAB, len(CASES), "cpu")
    for number in range(len(CASES)):
        open_case(sampler, number, number, n_probs=N_VOCAB, post_sampling_probs=True)
    for step in range(N_STEPS):
        answers = sample_all(sampler, {i: logits_of(i, step, c["scale"]) for i, c in enumerate(CASES)}, padding=2)
        for number in range(len(CASES)):
            check_recorded(number, step, answers[number])


def test_llama_cpp_choices_one_by_one() -> None:
    """Without asking for probabilities, so that greedy chains are shortened."""
    for number, case in enumerate(CASES):
        sampler = BatchSampler(N_VOCAB, 1, "cpu")
        open_case(sampler, 0, number)
        tokens = [sample_all(sampler, {0: logits_of(number, i, case["scale"])})[0][0] for i in range(N_STEPS)]
        assert tokens == RECORDED[number]["tokens"], case


numbers = st.integers(0, len(CASES) - 1)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(numbers, min_size=2, max_size=6), st.integers(0, 3), st.data())
def test_rows_do_not_see_each_other(chosen: list[int], padding: int, data: st.DataObject) -> None:
    """Mixed requests, some of them in some steps, give what each gives alone in a sampler of its own."""
    shared = BatchSampler(N_VOCAB, 8, "cpu")
    slots = data.draw(st.permutations(range(8)))[: len(chosen)]
    alone = {slot: BatchSampler(N_VOCAB, 1, "cpu") for slot in slots}
    for slot, number in zip(slots, chosen, strict=True):
        open_case(shared, slot, number)
        open_case(alone[slot], 0, number)
    for step in range(3):
        taking = data.draw(st.lists(st.sampled_from(slots), min_size=1, unique=True))
        logits = {slot: logits_of(slot, step, 3.0) for slot in taking}
        answers = sample_all(shared, logits, padding)
        for slot in taking:
            assert answers[slot] == sample_all(alone[slot], {0: logits[slot]})[0]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(numbers, numbers)
def test_a_closed_slot_leaves_nothing_behind(before: int, after: int) -> None:
    used, fresh = BatchSampler(N_VOCAB, 1, "cpu"), BatchSampler(N_VOCAB, 1, "cpu")
    open_case(used, 0, before)
    for step in range(2):
        sample_all(used, {0: logits_of(before, step, 3.0)})
    used.close(0)
    for sampler in (used, fresh):
        open_case(sampler, 0, after)
    for step in range(3):
        logits = {0: logits_of(after, step, 3.0)}
        assert sample_all(used, logits) == sample_all(fresh, logits)


def test_long_histories_are_sampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = BatchSampler(N_VOCAB, 5, "cpu"), BatchSampler(N_VOCAB, 5, "cpu")
    params = SamplingParams(repeat_penalty=1.3, dry_multiplier=1.0, repeat_last_n=100, seed=3, n_probs=2)
    for sampler in (whole, parts):
        for slot in range(5):
            sampler.open(slot, params, prompt_of(slot))
    logits = {slot: logits_of(slot, 0, 3.0) for slot in range(5)}
    expected = sample_all(whole, logits)
    monkeypatch.setattr("naiad.runtime.sampling.batched.MAX_TOKENS_AT_ONCE", 256)
    assert sample_all(parts, logits) == expected


class Recorder(TorchDispatchMode):
    """Names of the operations that run."""

    names: tuple[str, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names += (str(func),)
        return func(*args, **(kwargs or {}))


def operations(sampler: BatchSampler) -> tuple[str, ...]:
    signature = sampler.signature(0)
    device = sampler.state.device
    logits, rows = torch.zeros(2, sampler.n_vocab, device=device), torch.tensor([0, sampler.n_slots], device=device)
    draws = torch.zeros(2, signature.n_draws, dtype=torch.float64, device=device)
    recorder = Recorder()  # type: ignore[no-untyped-call]
    with recorder:
        sampler.sample(logits, rows, draws, signature)
    return recorder.names


@pytest.mark.parametrize("number", range(len(CASES)))
def test_nothing_is_read_back(number: int) -> None:
    """Tensors without data: whatever needs a value on the host, or a shape that depends on one, fails."""
    sampler = BatchSampler(N_VOCAB, 2, "meta")
    open_case(sampler, 0, number, n_probs=3)
    # What is made on the host, inside a call, would have to be copied to the device.
    assert "aten.lift_fresh.default" not in operations(sampler)


def test_common_chains_are_few_operations() -> None:
    limits: list[tuple[dict[str, Any], int]] = [({"temperature": 0}, 7), ({}, 32)]
    for params, limit in limits:
        sampler = BatchSampler(4096, 1, "cpu")
        sampler.open(0, SamplingParams(**params), [1, 2])
        assert len(operations(sampler)) <= limit


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=64), st.integers(0, 64))
def test_repeat_lengths_are_the_z_function(tokens: list[int], length: int) -> None:
    n = min(length, len(tokens))
    row = torch.tensor([tokens + [0] * (64 - len(tokens))])
    found = repeat_lengths(row, torch.tensor([[n]]), powers(64, torch.device("cpu")))[0].tolist()
    for k in range(1, n):
        z = next((i for i in range(n - k) if tokens[i] != tokens[k + i]), n - k)
        assert found[k] == z


@pytest.mark.parametrize("shape", [(1, 20000), (3, 128_000), (300, 64), (2, 16448)])
def test_largest_of_very_many(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(shape, generator=generator)
    assert torch.equal(argmax(values), values.argmax(1, keepdim=True))
    assert argmax(torch.zeros(shape)).sum() == 0
    for k in (1, 5, 60):
        expected = values.topk(k, dim=1)
        found, places = topk(values, k)
        assert torch.equal(found, expected.values) and torch.equal(places, expected.indices)


def chi_square(tokens: list[int], probabilities: npt.NDArray[np.float64]) -> float:
    expected = probabilities * len(tokens)
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert not counts[expected == 0].any()
    likely = expected > 0
    return float(((counts - expected)[likely] ** 2 / expected[likely]).sum())


HALVES = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
# 4 degrees of freedom; more than this once in a million.
LIMIT = 33.4


def sample_many(n: int, probabilities: npt.NDArray[np.float64], **params: Any) -> list[int]:
    """One token from each of n requests, seeds 0 to n - 1."""
    sampler = BatchSampler(len(probabilities), n, "cpu")
    for slot in range(n):
        sampler.open(slot, SamplingParams(**{**OFF, **params, "seed": slot}), [])
    answers = sample_all(sampler, dict.fromkeys(range(n), np.log(probabilities).astype(np.float32)))
    return [token for token, _ in answers.values()]


def share(kept: Callable[[float], bool]) -> npt.NDArray[np.float64]:
    """HALVES, only those kept."""
    left = [float(p) if kept(p) else 0.0 for p in HALVES]
    return np.array(left) / sum(left)


def test_distribution_of_dist() -> None:
    assert chi_square(sample_many(1000, HALVES), HALVES) < LIMIT
    assert chi_square(sample_many(1000, HALVES, top_k=3), share(lambda p: p > 0.1)) < LIMIT


def test_distribution_of_xtc() -> None:
    """In 30 of 100 tokens, the first two are out."""
    mixed = 0.7 * HALVES + 0.3 * share(lambda p: p < 0.2)
    assert chi_square(sample_many(1000, HALVES, xtc_probability=0.3, xtc_threshold=0.12), mixed) < LIMIT


def test_distribution_of_mirostat() -> None:
    """mu starts at 2 tau: version 2 drops what surprises by more bits."""
    kept = share(lambda p: -math.log2(p) <= 3)
    assert chi_square(sample_many(1000, HALVES, mirostat=2, mirostat_tau=1.5), kept) < LIMIT
    # Zipf's exponent is 1.236 here, so that k = (0.7466 * 2 ** mu) ** (1 / 1.236) = 2.4 for version 1.
    kept = share(lambda p: p >= 0.25)
    assert chi_square(sample_many(1000, HALVES, mirostat=1, mirostat_tau=1.0), kept) < LIMIT


def test_distribution_of_adaptive_p() -> None:
    """The first token is drawn around the target, the second, without decay, around 2 target - p(first)."""

    def around(target: float) -> npt.NDArray[np.float64]:
        distance = np.abs(HALVES - min(max(target, 0), 1)) / 0.3
        weights = np.exp(-10 * distance**2 / (1 + distance))
        result: npt.NDArray[np.float64] = weights / np.sum(weights)
        return result

    n = 1000
    sampler = BatchSampler(5, n, "cpu")
    for slot in range(n):
        params = SamplingParams(samplers=("adaptive_p",), adaptive_target=0.3, adaptive_decay=0.0, seed=slot)
        sampler.open(slot, params, [])
    logits = dict.fromkeys(range(n), np.log(HALVES).astype(np.float32))
    first, second = sample_all(sampler, logits), sample_all(sampler, logits)
    pairs = [5 * first[slot][0] + second[slot][0] for slot in range(n)]
    joint = around(0.3)[:, None] * np.stack([around(0.6 - p) for p in HALVES])
    # 24 degrees of freedom.
    assert chi_square(pairs, joint.reshape(-1)) < 73
