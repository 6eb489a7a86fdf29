"""Scales of matrices (as files in NVFP4 have them), experts in single tensors and dimensions of 1, on all backends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CASES, make_checkpoint, make_tokens, nmse
from model_twins import BLOCKS, Rounded, in_nvfp4

from naiad.loaders.experts import StackedExperts, with_stacks
from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.open import open_model
from naiad.loaders.stored import ModelSource, StoredTensor
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import F16, F32, format_by_name
from naiad.runtime.backends.torch import DenseWeight, TorchOps
from naiad.runtime.decoder import Decoder, build_decoder
from naiad.runtime.models import read_config
from naiad.runtime.ops import Dispatch
from naiad.runtime.session import Session
from naiad.runtime.tensors import TensorBook, without_ones

CPU = torch.device("cpu")
# Rows of whole blocks of 64; biases, which no scale multiplies; experts.
WIDE = {**BLOCKS, "intermediate_size": 128, "moe_intermediate_size": 64, "num_hidden_layers": 1}
MODELS = ("llama-biases", "mixtral", "gemma2")
Open = Callable[[str], ModelSource]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Open:
    root = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        for name in MODELS:
            # Under a name of their own: models are made once for each.
            patch.setitem(CASES, f"{name}-wide", replace(CASES[name], changes={**CASES[name].changes, **WIDE}))
            make_checkpoint(f"{name}-wide", root / name)
    return lambda name: open_model(root / name)


def built(source: ModelSource, *backends: Any) -> Decoder:
    config, ops = read_config(source.kv), Dispatch(backends)
    book = TensorBook(source, lambda n_bytes: None)
    return build_decoder(config, book, ops, [ops] * config.n_layers, ops, config.n_ctx_train)


def logits(decoder: Decoder, n: int = 9) -> torch.Tensor:
    """Of a prompt and of a token after it."""
    tokens, session = make_tokens(n), Session(decoder, n, k_type="f32", v_type="f32")
    return torch.cat([session.logits(tokens[:-1])[-1:], session.logits(tokens[-1:])])


def exact() -> TorchOps:
    return TorchOps(CPU, torch.float32, torch.float32)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.bfloat16])
def test_torch_applies_scales(name: str, weight_dtype: torch.dtype | None, opened: Open) -> None:
    expected = logits(built(in_nvfp4(opened(name), decoded=True), exact()))
    found = logits(built(in_nvfp4(opened(name), decoded=False), TorchOps(CPU, torch.float32, weight_dtype)))
    # Decoded to 16 bits (which the format's numbers fit into) a few rows are multiplied in 16 bits, too.
    assert nmse(found, expected) < (1e-3 if weight_dtype is torch.bfloat16 else 1e-9)


@pytest.mark.parametrize(
    "name", ["mixtral", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "mixtral")]
)
@pytest.mark.filterwarnings("error:cpu leaves:UserWarning")
def test_cpu_kernels_apply_scales(name: str, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from naiad.runtime.backends import cpu_programs, cpu_routes
    from naiad.runtime.backends.cpu import CpuOps
    from naiad.runtime.cpu_kernels import make_kernels
    from naiad.runtime.threads import ThreadOptions

    ops = CpuOps(make_kernels(ThreadOptions(n_threads=2)))
    # Rows in several stretches, each of which is scaled where it is added.
    monkeypatch.setattr(cpu_programs, "K_WEIGHTS", 64)
    decoder = built(in_nvfp4(opened(name), decoded=False), ops, exact())
    found = logits(decoder, 12)
    twin = in_nvfp4(opened(name), decoded=True)
    # The rounding that kernels do for quantised weights, which these are.
    expected, plain = logits(built(twin, _RoundedFloats()), 12), logits(built(twin, exact()), 12)
    assert nmse(found, expected) < 0.1 * nmse(plain, expected)
    # Prompts by torch, from decoded weights.
    monkeypatch.setattr(cpu_routes, "MIN_ROWS", 2)
    monkeypatch.setattr("naiad.runtime.backends.cpu.MIN_ROWS", 2)
    ops._route = "float32"
    one = decoder.layers[0].attention.attn_output
    x = torch.randn(5, one.weight.shape[1])
    bias = 0 if one.bias is None else one.bias
    assert nmse(one(decoder.layers[0].ops, x), x @ one.weight.dense(0, 64, torch.float32).T + bias) < 1e-10


class _RoundedFloats(Rounded):
    """Rounds for matrices that stand for quantised ones."""

    def __init__(self) -> None:
        super().__init__(CPU, torch.float32, torch.float32)

    def _matmul(self, x: torch.Tensor, weight: Any) -> torch.Tensor:
        # The router alone (5 rows) is not quantised.
        return super()._matmul(x, weight if weight.shape[0] == 5 else replace(weight, format=format_by_name("NVFP4")))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("mixtral", "many"),
        *(
            pytest.param(n, r, marks=pytest.mark.slow)
            for n in MODELS
            for r in ("few", "many")
            if (n, r) != ("mixtral", "many")
        ),
    ],
)
@pytest.mark.filterwarnings("error:triton leaves:UserWarning")
def test_triton_kernels_apply_scales(name: str, rows: str, opened: Open) -> None:
    pytest.importorskip("triton")
    from naiad.runtime.backends.triton import TritonOps
    from naiad.triton_kernels.tuning import arch_of, tuning

    table = tuning(arch_of(CPU))
    # Few rows by the matvec kernel, or all on tensor cores.
    table = replace(table, exact_rows=0, workspace_rows=1000) if rows == "many" else table
    ours = TritonOps(CPU, torch.float32, route="exact", table=table)
    found = logits(built(in_nvfp4(opened(name), decoded=False), ours, exact()), 3)
    assert nmse(found, logits(built(in_nvfp4(opened(name), decoded=True), exact()), 3)) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("route", ["exact", "int8"])
def test_triton_kernels_take_factors_of_matrices(dtype: torch.dtype, route: Any) -> None:
    """By themselves: a stack's matrices with a factor each, in 16 bits, and another matrix beside them."""
    pytest.importorskip("triton")
    from kernel_cases import DEVICE, random_rows

    from naiad.triton_kernels.linear import Linear
    from naiad.triton_kernels.weights import PackedWeight

    fmt, torch_random = format_by_name("NVFP4"), torch.Generator().manual_seed(1)
    rows, factors = random_rows(fmt, 2, 16, 256), torch.tensor([3e-3, -0.25])
    stack = PackedWeight.pack(rows.to(DEVICE), fmt, (2, 16, 256), factors)
    plain = PackedWeight.pack(rows[0].to(DEVICE), fmt, (16, 256))
    numbers = dequantize(rows, fmt).view(2, 16, 256)
    for i in range(2):
        assert nmse(stack.expert(i).dense(0, 16, torch.float32).cpu(), numbers[i] * factors[i]) < 1e-12
    weights = [stack.expert(1), plain, stack.expert(0)]
    expected = torch.cat([numbers[1] * factors[1], numbers[0], numbers[0] * factors[0]])
    for n in (1, 40):
        x = torch.randn(n, 256, generator=torch_random).to(DEVICE, dtype)
        found = Linear(weights, route=route)(x).cpu().float()
        assert nmse(found, x.cpu().float() @ expected.T) < 1e-4
        assert nmse(found[:, :16], x.cpu().float() @ expected[:16].T) < 1e-4
        assert nmse(found[:, 32:], x.cpu().float() @ expected[32:].T) < 1e-4


def test_triton_leaves_scales_of_other_formats_to_torch(opened: Open) -> None:
    pytest.importorskip("triton")
    from naiad.runtime.backends.triton import TritonOps

    tensor = StoredTensor("w.weight", F16, (4, 64), lambda: torch.ones(4, 64).half().view(-1).view(torch.uint8))
    ops = Dispatch([TritonOps(CPU, torch.float32), exact()])
    with pytest.warns(UserWarning, match="kernels have no scale for matrices in F16"):
        weight = ops.load(tensor, torch.tensor([0.5]))
    assert isinstance(weight, DenseWeight)
    assert torch.equal(weight.dense(0, 4, torch.float32), torch.full((4, 64), 0.5))


def floats(name: str, values: torch.Tensor) -> StoredTensor:
    return StoredTensor(name, F32, tuple(values.shape), lambda: values.contiguous().view(-1).view(torch.uint8))


BAD_SCALES = {
    "one for each row": (torch.ones(64), r"'blk.0.attn_output.scale' has shape \[64\], expected \[1\]"),
    "not a number": (torch.tensor([torch.nan]), "'blk.0.attn_output.scale' must hold finite numbers"),
}


@pytest.mark.parametrize(("values", "message"), BAD_SCALES.values(), ids=BAD_SCALES)
def test_bad_scales(values: torch.Tensor, message: str, opened: Open) -> None:
    source = opened("llama-biases")
    tensors = source.tensors
    assert isinstance(tensors, dict)
    tensors["blk.0.attn_output.scale"] = floats("blk.0.attn_output.scale", values)
    with pytest.raises(ValueError, match=message):
        built(source, exact())
    del tensors["blk.0.attn_output.scale"]
    for name in ("blk.0.attn_norm.scale", "blk.9.attn_q.scale", "token_embd.input_scale"):
        tensors[name] = floats(name, torch.ones(1))
        with pytest.raises(ValueError, match=f"1 tensors are not part of this architecture: {name}"):
            built(source, exact())
        del tensors[name]


# ---- experts in single tensors ----


def split_experts(source: ModelSource, changes: dict[str, StoredTensor | None]) -> list[StoredTensor]:
    """The tensors with a stack's matrices by themselves. changes: in place of some, None for none."""
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in source.tensors.items():
        if "_exps" not in name:
            tensors[name] = tensor
            continue
        for i in range(tensor.shape[0]):
            single = name.replace("_exps", f".{i}")
            data = tensor.bytes()[i].clone().view(-1)
            tensors[single] = StoredTensor(single, tensor.format, tensor.shape[1:], data.clone)
    tensors |= {name: t for name, t in changes.items() if t}
    return [t for name, t in tensors.items() if changes.get(name, t)]


def test_experts_in_single_tensors(opened: Open, tmp_path: Path) -> None:
    source = opened("mixtral")
    write_gguf(tmp_path / "m.gguf", source.kv, split_experts(source, {}))
    old = open_model(tmp_path / "m.gguf")
    assert isinstance(old, StackedExperts) and set(old.tensors) == set(source.tensors)
    assert nmse(logits(built(old, exact())), logits(built(opened("mixtral"), exact()))) < 1e-12
    for tensor in old.tensors.values():
        old.release(tensor)
    assert with_stacks(source) is source


BAD_EXPERTS: dict[str, tuple[dict[str, StoredTensor | None], str]] = {
    "missing": ({"blk.0.ffn_up.3.weight": None}, "'blk.0.ffn_up_exps.weight' lacks expert 3, though it has expert 4"),
    "misshapen": (
        {"blk.0.ffn_down.2.weight": floats("blk.0.ffn_down.2.weight", torch.ones(64, 64))},
        r"'blk.0.ffn_down.2.weight' is F32 \[64, 64\], expected F32 \[64, 128\] as in 'blk.0.ffn_down.0.weight'",
    ),
    "twice": (
        {"blk.0.ffn_gate_exps.weight": floats("blk.0.ffn_gate_exps.weight", torch.ones(1))},
        "has both 'blk.0.ffn_gate.0.weight' and 'blk.0.ffn_gate_exps.weight'",
    ),
    "far": (
        {"blk.0.ffn_up.4000000000.weight": floats("blk.0.ffn_up.4000000000.weight", torch.ones(1))},
        "lacks expert 5, though it has expert 4000000000",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_EXPERTS.values(), ids=BAD_EXPERTS)
def test_bad_experts(changes: dict[str, StoredTensor | None], message: str, opened: Open, tmp_path: Path) -> None:
    source = opened("mixtral")
    write_gguf(tmp_path / "m.gguf", source.kv, split_experts(source, changes))
    with pytest.raises(ValueError, match=message):
        open_model(tmp_path / "m.gguf")


def test_too_few_experts(opened: Open, tmp_path: Path) -> None:
    source = opened("mixtral")
    none: dict[str, StoredTensor | None] = {"blk.0.ffn_up.4.weight": None}
    write_gguf(tmp_path / "m.gguf", source.kv, split_experts(source, none))
    with pytest.raises(
        ValueError, match=r"'blk.0.ffn_up_exps.weight' has shape \[4, 128, 64\], expected \[5, 128, 64\]"
    ):
        built(open_model(tmp_path / "m.gguf"), exact())


# ---- dimensions of 1 ----


def test_dimensions_of_1(opened: Open, tmp_path: Path) -> None:
    """Vectors as matrices of a row, matrices as stacks of one, through a file."""
    source = opened("mixtral")
    expected = logits(built(opened("mixtral"), exact()))
    tensors = [replace(t, shape=(1,) * (4 - len(t.shape)) + t.shape) for t in source.tensors.values()]
    write_gguf(tmp_path / "m.gguf", source.kv, tensors)
    file = GGUFFile(tmp_path / "m.gguf")
    assert {len(t.shape) for t in file.tensors.values()} == {4}
    assert nmse(logits(built(file, exact())), expected) < 1e-12
    assert [without_ones(s) for s in ((1, 1, 3), (3, 1), (1,), ())] == [(3,), (3, 1), (), ()]


@pytest.mark.parametrize("shape", [(64, 1), (1, 63), (2, 32)])
def test_other_shapes_stay_wrong(shape: tuple[int, ...], opened: Open) -> None:
    source = opened("mixtral")
    tensors = source.tensors
    assert isinstance(tensors, dict)
    tensors["output_norm.weight"] = floats("output_norm.weight", torch.ones(shape))
    with pytest.raises(ValueError, match=r"'output_norm.weight' has shape .*, expected \[64\]"):
        built(source, exact())
