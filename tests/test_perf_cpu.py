"""The benchmark of the CPU backend: random models of any shape and mix, and both engines computing what is timed."""

from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cpu import Sizes, alternating, batched, make_report, single, summary
from cpu_engines import EngineProcess, LlamaCpp, Naiad
from random_model import SHAPES, Shape, add_shape_options, chosen_shape, mix_format, parse_mix, write_random_model
from random_weights import random_bytes

from naiad import LLM
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import FORMATS, Format
from naiad.runtime.session import Session

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]


def test_mixes() -> None:
    """Layers of Q4_K_M as llama.cpp chooses them, and formats of single matrices."""
    shape = replace(TINY, n_layers=16, tied=False)
    more = [i for i in range(16) if mix_format("q4_k_m", shape, "ffn_down", i).name == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    for mix, name, expected in (
        ("q4_k_m", "attn_q", "Q4_K"),
        ("q4_k_m", "token_embd", "Q4_K"),
        ("q4_k_m", "output", "Q6_K"),
        ("q8_0", "output", "Q8_0"),
        ("f16", "output", "F16"),
        ("attn_v=q6_k,ffn_down=q8_0", "ffn_down", "Q8_0"),
        ("attn_v=q6_k,ffn_down=q8_0", "ffn_up", "Q4_K"),
        ("Q5_0,output=iq4_nl", "output", "IQ4_NL"),
        ("Q5_0,output=iq4_nl", "attn_k", "Q5_0"),
    ):
        assert mix_format(mix, shape, name, 2).name == expected, (mix, name)


@pytest.mark.parametrize("mix", ["q9", "", "q4_0,q8_0", "q4_0,attn=q8_0", "attn_v=q9", "q4_0,attn_v"])
def test_bad_mixes(mix: str) -> None:
    with pytest.raises(ValueError, match=r"expected (MATRIX=FORMAT|one of)"):
        parse_mix(mix)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", SHAPES["1b"]),
        ("--shape tiny --layers 3 --no-tied --vocab 2100", replace(TINY, n_layers=3, tied=False, n_vocab=2100)),
        ("--shape llama-3-8b --vocab 0", replace(SHAPES["llama-3-8b"], n_vocab=0)),
        ("--shape tiny --experts 8 --used 2", replace(TINY, architecture="qwen3moe", n_experts=8, n_used=2)),
        ("--shape tiny --architecture qwen2", replace(TINY, architecture="qwen2")),
    ],
)
def test_options(words: str, expected: Shape) -> None:
    parser = ArgumentParser()
    add_shape_options(parser)
    assert chosen_shape(parser.parse_args(words.split())) == expected


@pytest.mark.parametrize(
    ("shape", "mix", "message"),
    [
        (replace(TINY, n_ff=320), "q4_k", "a row of Q4_K must be a multiple of 256 weights, found 320"),
        (replace(TINY, n_heads=3), "q8_0", "heads do not divide"),
        (replace(TINY, n_experts=4), "q8_0", "expected 1 to 4 used experts, found 0"),
        (replace(TINY, n_experts=4, n_used=1), "q8_0", "expected experts in qwen3moe and only there, found 4 in llama"),
        (replace(TINY, n_vocab=100), "q8_0", "expected a vocabulary of at least 2048 tokens, found 100"),
    ],
)
def test_bad_shapes(tmp_path: Path, shape: Shape, mix: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_random_model(str(tmp_path / "x.gguf"), shape, mix)


WEIGHTS = [f for f in FORMATS if f.name[0] not in "I" or f.name.startswith("IQ")]
WEIGHTS = [f for f in WEIGHTS if f.name not in ("F64", "Q8_1", "Q8_K")]


# How far off the size may be where scales have few bits.
COARSE = {"MXFP4": 0.12, "NVFP4": 0.06}


@pytest.mark.parametrize("fmt", WEIGHTS, ids=lambda f: f.name)
def test_random_weights_are_centred_and_of_the_size_asked_for(fmt: Format) -> None:
    for std in (1.0, 28672**-0.5):
        data = random_bytes(fmt, (2, 64, 1024), std, CPU, seed=3)
        values = dequantize(data.view(2, 64, -1), fmt).double()
        assert values.shape == (2, 64, 1024)
        assert float(values.square().mean().sqrt()) == pytest.approx(std, rel=COARSE.get(fmt.name, 0.03))
        assert abs(float(values.mean())) < 0.02 * std
        # Their quants are 0.5 too many.
        assert values.mean(-1).abs().max() < (0.6 if fmt.name in ("Q2_0", "TQ2_0") else 0.2) * std
    assert not torch.equal(data, random_bytes(fmt, (2, 64, 1024), std, CPU, seed=4))


FILES = {
    "dense": (TINY, "q4_k_m,attn_q=iq4_xs"),
    "biased": (replace(TINY, architecture="qwen2", tied=False), "q4_k_m"),
    "experts": (SHAPES["tiny-experts"], "q4_k_m"),
    "narrow heads": (replace(SHAPES["tiny-experts"], head_dim=32, n_vocab=2100), "q8_0,ffn_down=q5_k"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    paths = {name: str(folder / f"{name}.gguf") for name in FILES}
    for name, (shape, mix) in FILES.items():
        write_random_model(paths[name], shape, mix)
    return paths


PROMPTS = [[(7 * i + 13 * j) % 2000 + 30 for i in range(9)] for j in range(3)]


def reference(path: str, tokens: list[int]) -> torch.Tensor:
    """Logits after the last token, computed in plain torch."""
    decoder = LLM(path, device="cpu", n_ctx=64, max_seqs=1, dequantize="on").decoder
    return Session(decoder, 64).logits(tokens)[-1].float()


@pytest.mark.parametrize(("name", "n_batch"), [("dense", 512), pytest.param("narrow heads", 7, marks=pytest.mark.slow)])
def test_naiad_computes_what_is_timed(models: dict[str, str], name: str, n_batch: int) -> None:
    """However prompts are cut into steps, behind whatever was forgotten."""
    engine = Naiad(models[name], n_threads=1, n_ctx=64, n_seqs=3, dequantize="off")
    engine.n_batch = n_batch
    engine.add([[5] * 40] * 3)
    engine.cut(0)
    engine.add([prompt[:4] for prompt in PROMPTS])
    engine.add([prompt[4:8] for prompt in PROMPTS])
    engine.add([prompt[8:] for prompt in PROMPTS])
    for logits, prompt in zip(engine.logits, PROMPTS, strict=True):
        assert nmse(logits, reference(models[name], prompt)) < 1e-3


@pytest.mark.parametrize("name", FILES)
def test_llama_cpp_computes_the_same(models: dict[str, str], name: str) -> None:
    api = pytest.importorskip("llama_cpp")
    engine = LlamaCpp(models[name], n_threads=1, n_ctx=64, n_seqs=3, dequantize="off")
    engine.add([[5] * 40] * 3)
    engine.cut(0)
    engine.add([prompt[:8] for prompt in PROMPTS])
    engine.add([prompt[8:] for prompt in PROMPTS])
    for i, prompt in enumerate(PROMPTS):
        logits = np.ctypeslib.as_array(api.llama_get_logits_ith(engine.context, i), (engine.n_vocab,))
        assert nmse(torch.from_numpy(logits), reference(models[name], prompt)) < 1e-3
    # Keys and values of 256 tokens for each of 3 sequences, in 16 bits.
    shape, _ = FILES[name]
    assert engine.cache_bytes == 3 * 256 * 2 * 2 * shape.n_kv_heads * shape.head_size * shape.n_layers


def nmse(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).square().sum() / y.square().sum())


class Recorded:
    """An engine that only writes down what it is asked for."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        self.name, self.calls = name, calls

    def call(self, *command: Any) -> float:
        self.calls.append((self.name, *command))
        return 2.0


def test_engines_take_turns() -> None:
    calls: list[tuple[Any, ...]] = []
    engines: Any = [Recorded("a", calls), Recorded("b", calls)]
    assert alternating(engines, 3, lambda e: e.call("x")) == {"a": [2.0] * 3, "b": [2.0] * 3}
    assert [call[0] for call in calls] == list("abbaab")


def test_what_is_timed() -> None:
    """Every test begins at its depth, and rates count the tokens of all sequences."""
    calls: list[tuple[Any, ...]] = []
    engines: Any = [Recorded("a", calls)]
    tests: list[dict[str, Any]] = []
    single(engines, Sizes(10, 4, 100), 1, make_report(tests))
    batched(engines, Sizes(10, 4, 100, 3, 20, 5), 1, make_report(tests))
    assert [(t["test"], t["a"][0]) for t in tests] == [
        ("pp10", 5.0),
        ("tg4", 2.0),
        ("pp10 @ d100", 5.0),
        ("tg4 @ d100", 2.0),
        ("pp20 x 3", 30.0),
        ("tg5 x 3", 7.5),
    ]
    timed = [call[1:] for call in calls]
    warm = [("cut", 0), ("prompt", 1, 10), ("cut", 0), ("generate", 1, 1)]
    flat = [("cut", 0), ("prompt", 1, 10), ("cut", 0), ("generate", 1, 4)]
    filled = [("cut", 0), ("prompt", 1, 100)]
    deep = [("cut", 100), ("prompt", 1, 10), ("cut", 100), ("generate", 1, 4)]
    warm_batch = [("cut", 0), ("prompt", 3, 20), ("generate", 3, 1)]
    batch = [("cut", 0), ("prompt", 3, 20), ("cut", 20), ("generate", 3, 5)]
    assert timed == warm + flat + filled + deep + warm_batch + batch


def test_summaries() -> None:
    assert summary([3.0, 1.0, 2.0]) == [2.0, 1.0, 3.0]
    tests: list[dict[str, Any]] = []
    make_report(tests)("x", {"naiad": [1.0, 9.0], "llama.cpp": [2.0, 3.0]})
    assert tests[0]["ratio"] == [1.75, 0.5, 3.0]


def test_an_engine_in_a_process(models: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    options = {"n_threads": 1, "dequantize": "off"}
    with EngineProcess("naiad", path=models["dense"], n_ctx=64, n_seqs=2, **options) as engine:
        assert engine.call("prompt", 2, 20) > 0
        engine.call("cut", 10)
        assert engine.call("generate", 2, 3) > 0
        assert 50 * 2**20 < engine.call("peak") < 4 * 2**30
    with pytest.raises(RuntimeError, match="the process of another ended"):
        EngineProcess("another")
    assert "KeyError: 'another'" in capfd.readouterr().err
