"""Samplers against llama.cpp's definitions, and the random draw against C++'s."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from naiad import SamplingParams
from naiad.runtime.sampling import Sampler

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def logits_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def kept(params: SamplingParams, probabilities: list[float]) -> list[int]:
    """The tokens that the filters leave, likeliest first."""
    ids, _ = Sampler(params)._filter(logits_of(probabilities).numpy())
    return [int(i) for i in ids]


# llama.cpp's own sampler test: probabilities, parameter, how many tokens stay.
FILTERS = [
    ("top_k", 1, [0.1, 0.2, 0.3, 0.4], [3]),
    ("top_k", 3, [0.1, 0.2, 0.3, 0.4], [3, 2, 1]),
    ("top_k", 4, [0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0]),
    ("top_k", 0, [0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0]),
    ("top_k", -5, [0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0]),
    ("top_p", 0.0, [0.1, 0.2, 0.3, 0.4], [3]),
    ("top_p", 0.7, [0.1, 0.2, 0.3, 0.4], [3, 2]),
    ("top_p", 0.8, [0.1, 0.2, 0.3, 0.4], [3, 2, 1]),
    ("top_p", 1.0, [0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0]),
    ("min_p", 0.00, [0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0]),
    ("min_p", 0.24, [0.1, 0.2, 0.3, 0.4], [3, 2, 1, 0]),
    ("min_p", 0.26, [0.1, 0.2, 0.3, 0.4], [3, 2, 1]),
    ("min_p", 0.49, [0.1, 0.2, 0.3, 0.4], [3, 2, 1]),
    ("min_p", 0.51, [0.1, 0.2, 0.3, 0.4], [3, 2]),
    ("min_p", 0.74, [0.1, 0.2, 0.3, 0.4], [3, 2]),
    ("min_p", 0.76, [0.1, 0.2, 0.3, 0.4], [3]),
    ("min_p", 1.00, [0.1, 0.2, 0.3, 0.4], [3]),
]


@pytest.mark.parametrize(("name", "value", "probabilities", "expected"), FILTERS)
def test_filters(name: str, value: float, probabilities: list[float], expected: list[int]) -> None:
    assert kept(SamplingParams(**{**OFF, name: value}), probabilities) == expected


def test_min_keep_wins_over_the_filters() -> None:
    assert kept(SamplingParams(**{**OFF, "top_p": 0.1, "min_p": 1.0, "min_keep": 3}), [0.1, 0.2, 0.3, 0.4]) == [3, 2, 1]


# llama.cpp's penalty cases: probabilities, last tokens, repeat, frequency, presence, expected probabilities by token.
PENALTIES = [
    ([0.2] * 5, [0], 50.0, 0.0, 0.0, [0, 0.25, 0.25, 0.25, 0.25]),
    ([0.2] * 5, [0, 1, 2], 50.0, 0.0, 0.0, [0, 0, 0, 0.5, 0.5]),
    ([0.2] * 5, [0, 1, 2, 0, 0], 50.0, 0.0, 0.0, [0, 0, 0, 0.5, 0.5]),
    ([0.2] * 5, [0], 1.0, 5.0, 5.0, [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
    ([0.2] * 5, [0, 1, 2], 1.0, 5.0, 5.0, [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
    ([0.2] * 5, [0, 1, 2, 0, 0], 1.0, 5.0, 5.0, [0.0, 0.000023, 0.000023, 0.499977, 0.499977]),
]


@pytest.mark.parametrize(("start", "last", "repeat", "frequency", "presence", "expected"), PENALTIES)
def test_penalties(
    start: list[float], last: list[int], repeat: float, frequency: float, presence: float, expected: list[float]
) -> None:
    params = SamplingParams(repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence)
    sampler = Sampler(params)
    sampler.accept(last)
    logits = logits_of(start).numpy().copy()
    sampler._apply_penalties(logits)
    # Where the penalty makes a token's share vanish, llama.cpp's table says 0.
    np.testing.assert_allclose(torch.tensor(logits).softmax(-1), expected, atol=1e-5)


def test_penalties_look_back_a_bounded_way() -> None:
    sampler = Sampler(SamplingParams(repeat_last_n=2))
    sampler.accept([1, 2])
    sampler.accept([3])
    assert sampler.last == [2, 3]
    none = Sampler(SamplingParams(repeat_last_n=0))
    none.accept([1])
    assert none.last == []


def test_temperature_zero_takes_the_likeliest_after_bias() -> None:
    logits = torch.tensor([1.0, 5.0, 3.0])
    assert Sampler(SamplingParams(temperature=0)).sample(logits) == 1
    assert Sampler(SamplingParams(temperature=0, logit_bias={1: -math.inf})).sample(logits) == 2
    assert Sampler(SamplingParams(temperature=0, ignore_eos=True), eog_ids=[1]).sample(logits) == 2
    assert logits.tolist() == [1.0, 5.0, 3.0]


def test_draw_is_that_of_mt19937() -> None:
    """C++ guarantees that the 10,000th output of mt19937 seeded with 5489 is 4123659995."""
    sampler = Sampler(SamplingParams(seed=5489))
    outputs = np.frombuffer(sampler.random.bytes(4 * 10_000), "<u4")
    assert outputs[-1] == 4123659995


def test_same_seed_same_choices_other_seed_others() -> None:
    logits = torch.zeros(1000)

    def choices(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(**OFF, seed=seed))
        return [sampler.sample(logits) for _ in range(20)]

    assert choices(1) == choices(1)
    assert choices(1) != choices(2)
    assert choices(-1) != choices(-1)


def test_distribution() -> None:
    """Chi-square of 4,000 draws against the probabilities; the limit is that of one error in a million."""
    probabilities = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625])
    sampler = Sampler(SamplingParams(**OFF, seed=3))
    counts = np.bincount([sampler.sample(logits_of(probabilities.tolist())) for _ in range(4000)], minlength=5)
    expected = probabilities * 4000
    assert ((counts - expected) ** 2 / expected).sum() < 33.4


BAD: list[dict[str, Any]] = [
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"top_p": -0.1},
    {"top_p": math.nan},
    {"min_p": 1.5},
    {"repeat_penalty": 0.0},
    {"repeat_penalty": -1.0},
    {"frequency_penalty": math.inf},
    {"repeat_last_n": -1},
    {"max_tokens": -2},
    {"seed": -2},
    {"seed": 2**32},
    {"min_keep": -1},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_impossible_values_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        SamplingParams(**bad)


def test_hostile_logits_still_give_a_token() -> None:
    for logits in (torch.full((5,), math.nan), torch.full((5,), -math.inf), torch.full((5,), math.inf)):
        for temperature in (0.0, 0.8):
            assert 0 <= Sampler(SamplingParams(temperature=temperature, seed=1)).sample(logits) < 5
