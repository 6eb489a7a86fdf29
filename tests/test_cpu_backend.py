"""The CPU backend: whole models on its kernels beside torch in float32 and llama.cpp's recorded logits."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from checkpoints import CASES, WINDOW, make_checkpoint, make_tokens, nmse
from cpu_kernels import runnable_isas
from engines import engine_of, make_prompts, run
from model_twins import BLOCKS, Rounded, converted
from test_recorded import BOUNDS, QUANTS

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.open import open_model
from naiad.runtime import model
from naiad.runtime.backends import cpu_routes
from naiad.runtime.backends.cpu import CpuOps
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.cpu_kernels import make_kernels
from naiad.runtime.cpu_kernels.kernel import Compiler, this_host
from naiad.runtime.decoder import Decoder, build_decoder
from naiad.runtime.demo import demo_model
from naiad.runtime.engine.engine import Engine
from naiad.runtime.model import ModelOptions, load_model
from naiad.runtime.models import ARCHITECTURES, read_config
from naiad.runtime.ops import Dispatch
from naiad.runtime.sampling import SamplingParams
from naiad.runtime.session import Session
from naiad.runtime.tensors import TensorBook
from naiad.runtime.threads import ThreadOptions

CPU = torch.device("cpu")
OWN = this_host().isa.name
EXACT = ModelOptions(device="cpu", dequantize="on", weight_dtype=torch.float32)
KERNELS = ModelOptions(device="cpu")


def cpu_ops(decoder: Decoder) -> CpuOps:
    ops = decoder.layers[0].ops.backends[0]
    assert isinstance(ops, CpuOps)
    return ops


# One of each kind of decoder; the others are slow together.
QUICK = ("Q8_0", "MXFP4_MOE", "Q4_0", "Q4_K_M", "IQ4_XS", "IQ3_S", "IQ2_XS", "TQ1_0")


def recorded_files() -> list[Any]:
    names = [name for name in BOUNDS if name.startswith(QUANTS)]
    return [pytest.param(name, marks=() if Path(name).stem in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", recorded_files())
def test_as_near_to_float_as_llama_cpp(name: str, shared_data: Path) -> None:
    """Activations of 8 bits, in llama.cpp and here: the distance to float32 is not larger here.

    Measured: half of llama.cpp's on the average, a quarter where it has one scale for 256 activations, as much (0.9 to
    1.2 times) where it has one for 32, too.
    """
    ids = json.loads((shared_data / "recorded.json").read_text())["logits_ids"]
    with np.load(shared_data / "recorded_logits.npz") as file:
        theirs = torch.from_numpy(file[name])
    exact, plan = load_model(GGUFFile(shared_data / name), EXACT)
    expected = Session(exact, plan.n_ctx).logits(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder, plan = load_model(GGUFFile(shared_data / name), KERNELS)
        session = Session(decoder, plan.n_ctx)
        logits = torch.cat([session.logits([token]) for token in ids])
    assert nmse(logits, expected) < 1.25 * nmse(theirs, expected)
    if name.endswith("Q4_K_M.gguf"):
        session.reset()
        assert nmse(session.logits(ids), logits) < 1e-4


# One case for each way in which architectures differ; compiling for their heads takes most of the time.
MODELS = ("llama-biases", "mistral-window", "qwen3_moe", "gemma2", "phi3-partial-rotation")
MORE_MODELS = ("llama-rope-yarn", "mixtral", "qwen2", "qwen3", "gemma3_text")


def build(name: str, form: str, ops: Dispatch, folder: Path) -> Decoder:
    """A case's decoder with rows of whole blocks."""
    source = converted(open_model(folder if folder.exists() else make_checkpoint(name, folder)), form)
    config = read_config(source.kv)
    book = TensorBook(source, lambda n_bytes: None)
    return build_decoder(config, book, ops, [ops] * config.n_layers, ops, config.n_ctx_train)


def on_kernels(isa: str | None = None) -> Dispatch:
    return Dispatch([CpuOps(make_kernels(ThreadOptions(n_threads=2), isa=isa)), TorchOps(CPU, torch.float32, None)])


def in_parts(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    """Logits of a prompt in one, a few tokens, and single ones."""
    session = Session(decoder, len(tokens), k_type="f32", v_type="f32")
    parts = tokens[:-6], tokens[-6:-2], tokens[-2:-1], tokens[-1:]
    return torch.cat([session.logits(list(part)) for part in parts])


def test_every_architecture_is_among_them() -> None:
    assert {CASES[name].model_type.removesuffix("_text").replace("_", "") for name in MODELS + MORE_MODELS} >= {
        *ARCHITECTURES
    }


@pytest.mark.parametrize(
    ("name", "form", "isa"),
    [
        *(pytest.param(name, form, OWN, marks=pytest.mark.slow) for name in MORE_MODELS for form in ("F32", "Q8_0")),
        *((name, form, OWN) for name in MODELS for form in ("F32", "Q8_0")),
        # Other instructions that this processor has.
        *(
            pytest.param("gemma2", "Q8_0", isa, id=f"gemma2-Q8_0-{isa}")
            for isa in runnable_isas()
            if isa == "avx2" != OWN
        ),
    ],
)
@pytest.mark.filterwarnings("error:cpu leaves:UserWarning")
def test_architectures(name: str, form: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    monkeypatch.setitem(CASES, f"{name}-blocks", replace(case, changes={**case.changes, **BLOCKS}))
    name, tokens = f"{name}-blocks", make_tokens(WINDOW + 30)
    found = in_parts(build(name, form, on_kernels(isa), tmp_path / "model"), tokens)
    twin = Dispatch([Rounded(CPU, torch.float32, torch.float32)])
    expected = in_parts(build(name, form, twin, tmp_path / "model"), tokens)
    if form == "F32":
        assert nmse(found, expected) < 1e-10
        return
    exact = in_parts(
        build(name, form, Dispatch([TorchOps(CPU, torch.float32, torch.float32)]), tmp_path / "model"), tokens
    )
    # A sum in another order is off by 2^-24 of it, which takes a value over the middle between two codes now and then:
    # a whole step, where rounding errs by 1 / 12 of its square. All later values move, and some of them cross over in
    # turn, so after two layers the twin with every activation moved by 2^-24 is half as far from itself as from exact
    # numbers. What holds whoever crosses: roundings without a connection are as far apart from each other as both are
    # from exact numbers together, and equally far from these; without one of the 8 bits it would be four times as far.
    error, usual = nmse(found, exact), nmse(expected, exact)
    assert nmse(found, expected) < error + usual
    assert usual / 2 < error < usual * 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["F32", "Q8_0"])
def test_logits_do_not_depend_on_how_a_text_is_cut(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in one step, in parts of any size, token by token."""
    case = CASES[name]
    monkeypatch.setitem(CASES, f"{name}-blocks", replace(case, changes={**case.changes, **BLOCKS}))
    decoder, tokens = build(f"{name}-blocks", form, on_kernels(), tmp_path / "model"), make_tokens(300)
    k_type, v_type = ("f32", "f16") if form == "F32" else ("q8_0", "q4_0")
    whole = Session(decoder, len(tokens), k_type=k_type, v_type=v_type).logits(tokens)
    for n_batch in (1, 7, 33, 64, 129):
        parts = Session(decoder, len(tokens), n_batch, k_type=k_type, v_type=v_type)
        assert torch.equal(parts.logits(tokens), whole), n_batch


def test_logprobs_do_not_depend_on_other_requests_or_the_cache() -> None:
    """Bit for bit: alone with nothing cached; together, in parts, preempted, going on from each other's texts."""
    decoder, _ = load_model(GGUFFile(demo_model()), KERNELS)
    prompts = make_prompts(decoder.n_vocab, (1, 9, 40, 70, 130), shared=45)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, n_probs=2)

    def answers(engine: Engine) -> list[list[Any]]:
        return [list(handle.logprobs) for handle in run(engine, prompts, params)]

    alone = [run(engine_of(decoder), [prompt], params)[0] for prompt in prompts]
    expected = [list(handle.logprobs) for handle in alone]
    switches: list[dict[str, Any]] = [{}, {"n_batch": 5}, {"n_batch": 64, "overlap": True}, {"n_pages": 14}]
    for options in switches:
        engine = engine_of(decoder, **options)
        assert answers(engine) == expected
        assert answers(engine) == expected, "with a warm cache"
        assert (engine.scheduler.n_preempted > 0) == ("n_pages" in options)
    # Tokens that were generated one by one are the beginning of a prompt, and end within a page.
    for cut in (1, 13, 39):
        longer = [[*prompt, *handle.tokens[:cut]] for prompt, handle in zip(prompts, alone, strict=True)]
        fresh = [run(engine_of(decoder), [prompt], params)[0].logprobs for prompt in longer]
        engine = engine_of(decoder)
        run(engine, prompts, params)
        again = run(engine, longer, params)
        assert [handle.logprobs for handle in again] == fresh
        assert all(handle.n_cached == handle.n_prompt - 1 for handle in again)


def test_what_kernels_do_not_serve_is_left_to_torch(tmp_path: Path) -> None:
    """Heads of 12, rows of 83: the layers are composed of single operations."""
    source = open_model(make_checkpoint("llama", tmp_path / "model"))
    with pytest.warns(UserWarning, match="cpu leaves load to torch: rows of 72 weights are no multiple of 32"):
        decoder, _ = load_model(source, KERNELS)
    exact, _ = load_model(source, EXACT)
    tokens = make_tokens(20)
    assert nmse(in_parts(decoder, tokens), in_parts(exact, tokens)) < 1e-10


def test_prompts_are_left_to_torch_only_where_that_is_asked_for() -> None:
    ops = cpu_ops(load_model(GGUFFile(demo_model()), KERNELS)[0])
    assert ops.prompt_route(10_000) == "int8"
    mixed = cpu_ops(load_model(GGUFFile(demo_model()), replace(KERNELS, route="mixed"))[0])
    mixed._measure = lambda route: {"int8": 3.0, "float32": 2.0, "bfloat16": 1.0}[route]  # type: ignore[method-assign]
    mixed.kernels = replace(mixed.kernels, compiler=Compiler(this_host(), None))
    assert [mixed.prompt_route(n) for n in (1, 10_000)] == ["int8", "bfloat16"]


def test_instructions_can_be_chosen() -> None:
    for isa in (OWN, "avx2") if "avx2" in runnable_isas() else (OWN,):
        decoder, _ = load_model(GGUFFile(demo_model()), replace(KERNELS, cpu_isa=isa))
        assert cpu_ops(decoder).kernels.compiler.host.isa.name == isa
    for wrong in ("sse", "neon" if "neon" not in runnable_isas() else "avx2"):
        with pytest.raises(ValueError, match=r"expected an instruction set|this processor cannot run"):
            load_model(GGUFFile(demo_model()), replace(KERNELS, cpu_isa=wrong))


def test_without_numba_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="kernels of avx2 need numba"):
        load_model(GGUFFile(demo_model()), replace(KERNELS, cpu_isa="avx2"))
    decoder, plan = load_model(GGUFFile(demo_model()), KERNELS)
    assert [ops.name for ops in decoder.output_ops.backends] == ["torch"]
    assert plan.weight_dtype == torch.float32 and not plan.cpu_kernels


@pytest.mark.parametrize("options", [ModelOptions(device="cpu", route="exact"), EXACT])
def test_exact_products_are_left_to_torch(options: ModelOptions) -> None:
    decoder, _ = load_model(GGUFFile(demo_model()), options)
    assert [ops.name for ops in decoder.output_ops.backends] == ["torch"]


def test_without_fused_attention_layers_are_composed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder, _ = load_model(GGUFFile(demo_model()), replace(KERNELS, flash_attn="off"))
        found = in_parts(decoder, make_tokens(30))
    assert nmse(found, in_parts(load_model(GGUFFile(demo_model()), KERNELS)[0], make_tokens(30))) < 1e-3


def test_torch_multiplies_prompts_where_it_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["qwen2"]
    monkeypatch.setitem(CASES, "blocks", replace(case, changes={**case.changes, **BLOCKS}))
    ops = Dispatch([CpuOps(make_kernels(ThreadOptions()), mixed=True), TorchOps(CPU, torch.float32, None)])
    decoder = build("blocks", "Q8_0", ops, tmp_path / "model")
    tokens = make_tokens(100)
    twin = Dispatch([TorchOps(CPU, torch.float32, torch.float32)])
    expected = in_parts(build("blocks", "Q8_0", twin, tmp_path / "model"), tokens)
    # The output is quantised on every route.
    for route, bound in (("int8", 1e-3), ("float32", 1e-4), ("bfloat16", 1e-3)):
        monkeypatch.setattr(cpu_ops(decoder), "_route", route)
        assert nmse(in_parts(decoder, tokens)[:-6], expected[:-6]) < bound


def test_the_faster_route_is_measured_once(tmp_path: Path) -> None:
    kernels = replace(make_kernels(ThreadOptions(n_threads=1)), compiler=Compiler(this_host(), tmp_path))
    seconds = {"int8": 2.0, "float32": 3.0, "bfloat16": 1.0}
    assert cpu_routes.fastest_route(kernels, lambda route: seconds[route]) == "bfloat16"
    assert cpu_routes.fastest_route(kernels, lambda route: pytest.fail("measured again")) == "bfloat16"
    (tmp_path / "routes.json").write_text("[1, {")
    seconds["bfloat16"] = 1.9
    assert cpu_routes.fastest_route(kernels, lambda route: seconds[route]) == "int8"


def test_a_planted_route_is_neither_read_nor_followed(tmp_path: Path) -> None:
    kernels = replace(make_kernels(ThreadOptions(n_threads=1)), compiler=Compiler(this_host(), tmp_path / "kept"))
    seconds = {"int8": 2.0, "float32": 3.0, "bfloat16": 1.0}
    assert cpu_routes.fastest_route(kernels, lambda route: seconds[route]) == "bfloat16"
    routes, precious = tmp_path / "kept" / "routes.json", tmp_path / "precious"
    precious.write_text(routes.read_text().replace("bfloat16", "float32"))
    routes.unlink()
    routes.symlink_to(precious)
    before = precious.read_text()
    assert cpu_routes.fastest_route(kernels, lambda route: seconds[route]) == "bfloat16"
    assert precious.read_text() == before and not routes.is_symlink()
