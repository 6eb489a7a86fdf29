"""Models that compute NaN or infinity for some tokens: the requests with these fail and say so, the others go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CASES, make_checkpoint
from engines import assert_no_leak, engine_of, finish, make_prompts, run
from model_twins import BLOCKS, converted

from naiad.loaders.open import open_model
from naiad.loaders.stored import StoredTensor
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import F32
from naiad.runtime.decoder import Decoder
from naiad.runtime.model import ModelOptions, load_model
from naiad.runtime.sampling import SamplingParams

BAD = 90
BACKENDS = {
    "torch": ModelOptions(device="cpu", dequantize="on", weight_dtype=torch.float32),
    "kernels": ModelOptions(device="cpu"),
}


@dataclass(frozen=True)
class Damage:
    """In a row of the embedding, which prompts can avoid."""

    value: float

    def __call__(self, tensor: StoredTensor) -> StoredTensor:
        values = dequantize(tensor.bytes(), tensor.format).clone()
        values[BAD, 3] = self.value
        data = values.float().contiguous().view(torch.uint8).flatten()
        return StoredTensor(tensor.name, F32, tensor.shape, data.clone)


Load = Callable[[str, str, float], Decoder]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """A small model with rows of whole blocks, which the kernels take, and damaged numbers."""
    made: dict[tuple[str, str, float], Decoder] = {}
    folders: dict[str, Path] = {}

    def get(name: str, backend: str, value: float) -> Decoder:
        key = name, backend, value
        if key not in made:
            if name not in folders:
                patch.setitem(CASES, name + "-blocks", replace(CASES[name], changes={**CASES[name].changes, **BLOCKS}))
                folders[name] = make_checkpoint(name + "-blocks", tmp_path_factory.mktemp(name))
            source = open_model(folders[name])
            if backend == "kernels":
                source = converted(source, "Q8_0")
            assert isinstance(source.tensors, dict)
            source.tensors["token_embd.weight"] = Damage(value)(source.tensors["token_embd.weight"])
            made[key] = load_model(source, BACKENDS[backend])[0]
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        yield get


SWITCHES: list[dict[str, Any]] = [
    {},
    {"overlap": True},
    {"captured": True, "overlap": True, "n_batch": 16},
    {"n_pages": 9, "n_host_pages": 9, "prefix_sharing": True},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama", pytest.param("mistral-window", marks=pytest.mark.slow), "mixtral"])
def test_others_go_on(name: str, backend: str, switches: dict[str, Any], load: Load) -> None:
    """Beside the one that fails, behind it in its pages and slot, and with the same beginning."""
    decoder = load(name, backend, math.inf if switches.get("captured") else math.nan)
    prompts = [[t % BAD for t in prompt] for prompt in make_prompts(97, (33, 5, 50, 1), shared=34)]
    n = 12
    params = SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, logit_bias={BAD: -math.inf})
    expected = [_greedy(decoder, prompt, params) for prompt in prompts]
    engine = engine_of(decoder, max_seqs=3, **switches)
    bad = [
        engine.submit([*prompts[0][:36], BAD, 3], params),
        engine.submit([BAD], params),
        # The first token is a good one, and what it leads to is not.
        engine.submit(prompts[1], SamplingParams(temperature=0, max_tokens=n, logit_bias={BAD: 1000.0})),
        engine.submit(prompts[2], SamplingParams(seed=1, max_tokens=n, logit_bias={BAD: 1000.0}, n_probs=2)),
    ]
    good = [engine.submit(prompt, params) for prompt in prompts]
    finish(engine)
    for handle in bad:
        assert handle.finish_reason == "error"
        assert "the model computed logits that are not numbers (NaN or infinity)" in str(handle.error)
    assert [handle.tokens for handle in bad] == [[], [], [BAD], [BAD]]
    assert [handle.tokens for handle in good] == expected
    assert_no_leak(engine)
    assert [handle.tokens for handle in run(engine, prompts[::-1], params)] == expected[::-1]


def _greedy(decoder: Decoder, prompt: list[int], params: SamplingParams) -> list[int]:
    (handle,) = run(engine_of(decoder), [prompt], params)
    assert handle.finish_reason == "length"
    return handle.tokens


@pytest.mark.parametrize("overlap", [False, True])
def test_a_model_that_computes_nothing_else(overlap: bool, load: Load) -> None:
    """All fail, each after it was tried alone, and nothing hangs or stays."""
    decoder = load("llama", "torch", 1.0)
    norm = decoder.output_norm.weight
    kept = norm.clone()
    prompts = make_prompts(97, (3, 40, 70), shared=33)
    expected = [handle.tokens for handle in run(engine_of(decoder), prompts)]
    engine = engine_of(decoder, overlap=overlap, max_seqs=2, n_batch=32)
    try:
        norm[5] = math.nan
        failed = run(engine, [*prompts, *prompts])
    finally:
        norm.copy_(kept)
    assert {(handle.finish_reason, len(handle.tokens)) for handle in failed} == {("error", 0)}
    assert_no_leak(engine)
    assert [handle.tokens for handle in run(engine, prompts)] == expected


@pytest.mark.parametrize(
    "params", [SamplingParams(seed=5, max_tokens=9), SamplingParams(mirostat=2, seed=5, max_tokens=9)]
)
@pytest.mark.parametrize("overlap", [False, True])
def test_who_found_such_a_prefix_begins_again_alone(overlap: bool, params: SamplingParams, load: Load) -> None:
    """And gets what it would have got, random numbers included."""
    decoder = load("llama", "torch", 1.0)
    (prompt,) = make_prompts(97, (70,))
    (alone,) = run(engine_of(decoder), [prompt], params)
    engine = engine_of(decoder, overlap=overlap)
    run(engine, [prompt[:66]], SamplingParams(max_tokens=1))
    for _, plane in engine.runner.cache.planes(0):
        plane[1:] = math.nan
    handle, short = (
        engine.submit(prompt, params),
        engine.submit(prompt[:3], SamplingParams(temperature=0, max_tokens=2)),
    )
    finish(engine)
    assert (handle.tokens, handle.finish_reason, handle.n_cached) == (alone.tokens, alone.finish_reason, 0)
    assert short.finish_reason == "length"
    # What was damaged is forgotten; this one shares again.
    assert [run(engine, [prompt], params)[0].tokens for _ in range(2)] == [alone.tokens] * 2
    assert_no_leak(engine)
