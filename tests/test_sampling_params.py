"""What a request can ask of sampling, what is refused, and what becomes one call of the sampler."""

import math
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
import pytest

from naiad.runtime.sampling import RANDOM_SEED, BatchSampler, SamplingParams, recommended_params, sampler_names
from naiad.runtime.sampling.breakers import BreakerFinder

DEFAULT = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")

BAD: list[dict[str, Any]] = [
    {"max_tokens": -2},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"seed": -2},
    {"seed": 2**32},
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"temperature": "0.8"},
    {"dynatemp_range": math.nan},
    {"dynatemp_exponent": math.inf},
    {"top_k": 2**31},
    {"top_k": 2.0},
    {"top_p": -0.1},
    {"top_p": math.nan},
    {"min_p": 1.05},
    {"min_p": 1.5},
    {"min_p": math.nan},
    {"top_n_sigma": math.nan},
    {"xtc_probability": -0.1},
    {"xtc_probability": 1.1},
    {"xtc_threshold": math.nan},
    {"xtc_threshold": 2.0},
    {"typical_p": math.nan},
    {"repeat_last_n": -1},
    {"repeat_last_n": 2**20 + 1},
    {"repeat_penalty": 0.0},
    {"repeat_penalty": -1.0},
    {"repeat_penalty": 1e-45},
    {"repeat_penalty": 1e39},
    {"presence_penalty": math.nan},
    {"frequency_penalty": math.inf},
    {"dry_multiplier": math.nan},
    {"dry_base": math.inf},
    {"dry_allowed_length": -1},
    {"dry_penalty_last_n": -1},
    {"dry_penalty_last_n": 2**20 + 1},
    {"dry_sequence_breakers": "abc"},
    {"dry_sequence_breakers": (1,)},
    {"dry_sequence_breakers": ("x",) * 33},
    {"mirostat": 3},
    {"mirostat": -1},
    {"mirostat_tau": math.nan},
    {"mirostat_eta": math.inf},
    {"adaptive_target": 1.1},
    {"adaptive_decay": 1.0},
    {"adaptive_decay": -0.1},
    {"samplers": ("top_k", "top_q")},
    {"samplers": "top_k"},
    {"samplers": ("infill",)},
    {"samplers": ("xtc", "top_k", "xtc")},
    {"samplers": ("top_k",) * 33},
    {"min_keep": -1},
    {"n_probs": -1},
    {"post_sampling_probs": 1},
    {"logit_bias": {1: math.nan}},
    {"logit_bias": {1: math.inf}},
    {"logit_bias": {"1": 1.0}},
    {"logit_bias": [(1, 1.0)]},
    {"logit_bias": dict.fromkeys(range(2**14 + 1), 1.0)},
    {"ignore_eos": None},
    {"stop": "end"},
    {"stop": b"end"},
    {"stop": None},
    {"stop": {"end": 1}},
    {"stop": ("a", 1)},
    {"stop": ["x"] * 1025},
    {"stop": ["x" * 300] * 300},
    {"stop": ("x" for _ in count())},
    {"samplers": ("top_k" for _ in count())},
    {"dry_sequence_breakers": ("x" * 2**17,)},
    {"temperature": 10**400},
    {"temperature": -(10**5000)},
    {"temperature": np.float64(math.nan)},
    {"temperature": np.bool_(True)},
    {"temperature": 1j},
    {"temperature": None},
    {"temperature": [1.0]},
    {"top_k": 10**5000},
    {"top_k": np.float32(3)},
    {"max_tokens": np.bool_(True)},
    {"n_probs": None},
    {"ignore_eos": "yes"},
    {"logit_bias": {True: 1.0}},
    {"logit_bias": {1: None}},
    {"logit_bias": {1: 10**400}},
    {"logit_bias": {10**400: 1.0}},
    {"logit_bias": None},
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: " ".join(bad))
def test_impossible_values_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=name) as caught:
        SamplingParams(**bad)
    assert len(str(caught.value)) < 300


def test_more_probabilities_than_tokens_are_refused() -> None:
    sampler = BatchSampler(10, 1, "cpu")
    with pytest.raises(ValueError, match="n_probs cannot be 11"):
        sampler.open(0, SamplingParams(n_probs=11), [])
    sampler.open(0, SamplingParams(n_probs=10), [])
    assert sampler.signature(0).n_probs == 10


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("edskypmxt", DEFAULT),
        (";".join(DEFAULT), DEFAULT),
        ("top-k;TopP;nucleus;temp;typ;minp", ("top_k", "top_p", "top_p", "temperature", "typ_p", "min_p")),
        ("kt", ("top_k", "temperature")),
        ("temp", ("temperature",)),
        ("dry; xtc", ("dry", "xtc")),
        ("a", ("adaptive_p",)),
        ("", ()),
    ],
)
def test_sampler_names(text: str, names: tuple[str, ...]) -> None:
    assert sampler_names(text) == names
    assert SamplingParams(samplers=names).samplers == names


def test_sampler_names_as_letters_or_names_only() -> None:
    assert sampler_names("temp", letters=True) == ("temperature", "penalties", "min_p", "top_p")
    for text, letters in (("kt", False), ("q", True), ("i", True), ("kq", None), ("top_k;q", None), ("infill", None)):
        with pytest.raises(ValueError, match="samplers"):
            sampler_names(text, letters)


STEPS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, ("top_k", "top_p", "min_p", "temperature", "dist")),
    ({"temperature": 0}, ("greedy",)),
    ({"temperature": 0, "logit_bias": {1: 1.0}, "repeat_penalty": 2.0}, ("logit_bias", "penalties", "greedy")),
    ({"temperature": 0, "typical_p": 0.5, "top_k": 0}, ("typ_p", "top_p", "min_p", "argmax", "dist")),
    (
        {"temperature": 0, "repeat_penalty": 2.0, "samplers": ("top_k", "penalties", "temp")},
        ("top_k", "penalties", "argmax", "dist"),
    ),
    ({"temperature": 0, "dynatemp_range": 0.5}, ("top_k", "top_p", "min_p", "dynatemp", "dist")),
    ({"mirostat": 2, "repeat_penalty": 2.0}, ("temperature", "mirostat_2")),
    ({"mirostat": 1, "temperature": 0}, ("greedy",)),
    ({"samplers": ("adaptive_p", "top_k")}, ("top_k", "discrete")),
    ({"samplers": ("adaptive_p", "top_k"), "adaptive_target": 0.5}, ("top_k", "adaptive_p")),
    ({"dry_multiplier": 1.0, "dry_base": 0.5}, ("top_k", "top_p", "min_p", "temperature", "dist")),
    ({"xtc_probability": 0.5, "xtc_threshold": 0.6, "top_p": 1.0}, ("top_k", "min_p", "temperature", "dist")),
]


@pytest.mark.parametrize(("params", "steps"), STEPS, ids=str)
def test_only_samplers_that_do_something_run(params: dict[str, Any], steps: tuple[str, ...]) -> None:
    sampler = BatchSampler(1000, 1, "cpu")
    sampler.open(0, SamplingParams(**params), [])
    assert sampler.signature(0).steps == steps
    assert sampler.draws([0]).shape == (1, 0 if steps[-1] == "greedy" else 1)


def test_signatures_share_sizes() -> None:
    sampler = BatchSampler(1000, 4, "cpu", max_history=500)
    sampler.open(0, SamplingParams(top_k=33, n_probs=5, repeat_penalty=1.1, repeat_last_n=70, seed=1), [])
    sampler.open(1, SamplingParams(top_k=64, n_probs=8, repeat_penalty=1.5, repeat_last_n=128, top_p=0.5), [])
    sampler.open(2, SamplingParams(top_k=65, repeat_penalty=1.5, repeat_last_n=2**20), [])
    sampler.open(3, SamplingParams(top_k=1000, seed=RANDOM_SEED), [])
    first = sampler.signature(0)
    assert first == sampler.signature(1)
    assert (first.n_candidates, first.n_history, first.n_probs) == (64, 128, 8)
    assert sampler.signature(2).n_history == 512
    assert sampler.signature(3).n_candidates is None


WORDS: list[str | bytes] = ["a", "b:", "U", "xUs", "User:", "er", "é", "\n\n", "s", b"\xc3", "UU"]


def test_breakers_are_found_in_and_across_tokens() -> None:
    """get_overlapping_token_sequences by hand."""
    finder = BreakerFinder(len(WORDS), lambda i: WORDS[i], lambda text: [ord(c) for c in text])

    def sequences(*texts: str) -> set[tuple[int, ...]]:
        table = finder.table(texts)
        return {(head, *table.tails[tail]) for tail, head in table.pairs}

    assert sequences(":") == {(1,), (4,)}
    assert sequences("User:") == {(2, *b"ser:"), (3, *b"er:"), (4,), (10, *b"ser:")}
    assert sequences("\n", "") == {(7,)}
    assert sequences("\ud800") == set()
    assert sequences("é") == {(6,), (9, ord("\N{REPLACEMENT CHARACTER}"))}
    assert sequences("s" + "y" * 60) == {(3, *b"y" * 20), (8, *b"y" * 20)}
    assert finder.table(["User:"]).tails[0] == ()
    assert BreakerFinder(len(WORDS), lambda i: WORDS[i]).table(["User:"]).pairs == ((0, 4),)


def test_numpy_numbers_are_numbers() -> None:
    of_numpy: dict[str, Any] = {"ignore_eos": np.bool_(True), "temperature": np.float32(0.5)}
    params = SamplingParams(top_k=np.int64(5), min_p=-0.0, **of_numpy)
    assert (params.top_k, params.temperature, params.ignore_eos) == (5, 0.5, True)
    assert [type(value) for value in (params.top_k, params.temperature, params.ignore_eos)] == [int, float, bool]
    others: dict[str, Any] = {"temperature": Fraction(1, 2), "stop": iter(["a", "b"])}
    assert SamplingParams(top_p=1, **others).stop == ("a", "b")


def test_a_file_recommends_and_the_impossible_is_passed_over() -> None:
    kv = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 20,
        "general.sampling.penalty_last_n": 7,
        "general.sampling.sequence": "top_k;temperature",
    }
    expected = SamplingParams(temperature=0.6, top_k=20, repeat_last_n=7, samplers=("top_k", "temperature"))
    assert recommended_params(kv) == expected
    with pytest.warns(UserWarning, match=r"general.sampling.min_p is passed over: min_p must be a number.*'much'"):
        assert recommended_params({**kv, "general.sampling.min_p": "much"}) == expected
    with pytest.warns(UserWarning, match=r"general.sampling.sequence is passed over"):
        assert recommended_params({"general.sampling.sequence": "best"}) == SamplingParams()
