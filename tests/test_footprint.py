"""What the parts of a model take: figures against what is really allocated."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from gguf_files import random_tensor
from planned_models import (
    CPU,
    GEMMA,
    GPU,
    LLAMA,
    MANY_HEADS,
    MISTRAL,
    MIXTRAL,
    TINY,
    Shape,
    Source,
    machine,
    options,
)
from torch.utils._python_dispatch import TorchDispatchMode

from naiad.loaders.open import open_model
from naiad.quant.formats import format_by_name
from naiad.runtime import footprint
from naiad.runtime.batch import Batch, NewTokens
from naiad.runtime.cache import PagedCache
from naiad.runtime.decoder import Decoder
from naiad.runtime.demo import demo_model
from naiad.runtime.engine.pages import PAGE_SIZE
from naiad.runtime.footprint import StepShape, step_bytes, weight_bytes
from naiad.runtime.memory import MAX_PLANE_VALUES, MemoryOptions, plan_memory
from naiad.runtime.model import ModelOptions, load_model, plan_model, read_model_config
from naiad.triton_kernels import attention, linear, packing

# What a token takes in all layers, keys and values: n_layers x 2 x n_kv_heads x head_dim x bits / 8, known figures.
TOKEN_BYTES = [
    (LLAMA, "f16", 128 * 1024),
    (LLAMA, "q8_0", 68 * 1024),
    (LLAMA, "q4_0", 36 * 1024),
    (LLAMA, "q5_1", 48 * 1024),
    (LLAMA, "fp8", 64 * 1024),
    (MANY_HEADS, "f16", 512 * 1024),
    (MIXTRAL, "bf16", 128 * 1024),
    (GEMMA, "f16", 496 * 1024),
    (MISTRAL, "f32", 256 * 1024),
]


@pytest.mark.parametrize(("shape", "kind", "expected"), TOKEN_BYTES)
def test_bytes_of_a_token(shape: Shape, kind: str, expected: int) -> None:
    plan = plan_memory(shape.source, shape.config, shape.plan(), options(kind=kind), machine(gpu=10**6))
    assert sum(group.page_bytes for group in plan.groups) == 32 * expected


@pytest.mark.parametrize("kinds", [("f16", "f16"), ("q8_0", "q4_1"), ("f32", "q5_0"), ("fp8", "iq4_nl")])
@pytest.mark.parametrize("shape", [TINY, replace(TINY, window=40, pattern=2), replace(TINY, window=40, pattern=0)])
def test_pages_take_what_the_cache_allocates(shape: Shape, kinds: tuple[str, str]) -> None:
    wanted = MemoryOptions(n_ctx=0, n_batch=32, max_seqs=2, k_type=kinds[0], v_type=kinds[1])
    plan = plan_memory(shape.source, shape.config, shape.plan(0), wanted, machine())
    cache = PagedCache(shape.config, [CPU] * shape.n_layers, *kinds, [group.n_pages for group in plan.groups])
    assert [(group.window, group.layers) for group in plan.groups] == [(g.window, g.layers) for g in cache.groups]
    assert cache.n_bytes == plan.devices[0].cache == sum(group.n_pages * group.page_bytes for group in plan.groups)


def _tensors_of(part: Any) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for item in part:
            yield from _tensors_of(item)
    elif is_dataclass(part):
        for entry in fields(part):
            yield from _tensors_of(getattr(part, entry.name))


def _parts(decoder: Decoder) -> list[object]:
    """All that has weights."""
    layers = [(layer.attention, layer.mlp) for layer in decoder.layers]
    return [decoder.token_embd, decoder.output, decoder.output_norm, *layers]


@pytest.mark.parametrize("dequantize", ["on", "off"])
@pytest.mark.parametrize("weight_dtype", [None, torch.bfloat16])
def test_weights_take_what_loading_allocates(dequantize: str, weight_dtype: torch.dtype | None) -> None:
    source = open_model(demo_model())
    loading = ModelOptions(device="cpu", dequantize=dequantize, weight_dtype=weight_dtype)
    decoder, plan = load_model(source, loading)
    held = {tensor.data_ptr(): tensor.nbytes for tensor in _tensors_of(_parts(decoder))}
    counted = weight_bytes(source, plan)[CPU]
    rope = sum(4 * t.n_elements for name, t in source.tensors.items() if name.startswith("rope"))
    assert counted.total == sum(held.values()) + rope
    vectors = sum(4 * t.n_elements for t in source.tensors.values() if len(t.shape) < 2)
    assert (counted.mapped == counted.total - vectors) == (dequantize == "off")


@pytest.mark.parametrize(
    ("name", "width"), [("Q8_0", 288), ("Q4_K", 512), ("IQ4_NL", 96), ("F16", 100), ("Q6_K", 256), ("NVFP4", 64)]
)
def test_weights_on_a_gpu_are_packed(name: str, width: int) -> None:
    tensor = random_tensor("blk.0.attn_q.weight", format_by_name(name), (48, width))
    packed = packing.pack(tensor.bytes(), tensor.format, width)
    assert weight_bytes(Source({tensor.name: tensor}), TINY.plan())[GPU].total == packed.nbytes


def test_weights_go_where_the_layers_are() -> None:
    shape = replace(TINY, tied=True)
    sizes = {name: t.n_bytes for name, t in shape.source.tensors.items() if len(t.shape) > 1}
    vectors = 4 * shape.n_embd
    found = weight_bytes(shape.source, shape.plan(2))
    # Rows of 64 and 96 Q8_0 weights are filled up to 256: by 4 and 8/3. The embedding is on both sides.
    grown = sum(
        n_bytes * 256 // shape.source.tensors[name].shape[-1]
        for name, n_bytes in sizes.items()
        if name.startswith("blk.2.") or name == "token_embd.weight"
    )
    assert found[GPU].total == grown + 2 * vectors
    assert found[CPU].mapped == sum(n for name, n in sizes.items() if not name.startswith("blk.2."))
    assert found[CPU].total == found[CPU].mapped + 2 * vectors
    assert weight_bytes(shape.source, shape.plan(2), use_mmap=False)[CPU].mapped == 0


def test_figures_that_are_written_twice_are_the_same() -> None:
    assert footprint.TRITON_WORKSPACE_BYTES == linear.WORKSPACE_BYTES
    assert footprint.ATTENTION_PARTS == attention.PARTS
    assert MAX_PLANE_VALUES == attention.MAX_VALUES


class Peak(TorchDispatchMode):
    """The most bytes of new tensors that are alive at a time; `old` are there already."""

    def __init__(self, old: Iterator[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.old = {tensor.untyped_storage().data_ptr() for tensor in old}
        self.alive: dict[int, tuple[int, int]] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.old:
                storage = tensor.untyped_storage()
                key, n_bytes = storage.data_ptr(), storage.nbytes()
                users, _ = self.alive.get(key, (0, 0))
                self.alive[key] = users + 1, n_bytes
                self.now += 0 if users else n_bytes
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        users, n_bytes = self.alive[key]
        if users > 1:
            self.alive[key] = users - 1, n_bytes
        else:
            del self.alive[key]
            self.now -= n_bytes


@pytest.mark.parametrize(
    ("new", "cached"), [([512], [0]), ([300], [700]), ([1] * 24, [500] * 24), ([200, 1, 1], [0, 900, 33])]
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_takes_no_more_than_is_planned(new: list[int], cached: list[int], fused: bool) -> None:
    loading = ModelOptions(device="cpu", dequantize="on", flash_attn="on" if fused else "off", n_ctx=1024)
    decoder, plan = load_model(open_model(demo_model()), loading)
    lists = [list(range(32 * i + 1, 32 * i + 33)) for i in range(len(new))]
    cache = PagedCache(decoder.config, [CPU] * len(decoder.layers), "f32", "f32", [32 * len(new) + 1])
    batch = Batch.build([NewTokens([1] * n, c, [p]) for n, c, p in zip(new, cached, lists, strict=True)], PAGE_SIZE)
    with Peak(_tensors_of((cache.layers, *_parts(decoder)))) as peak:
        decoder.forward(batch, cache)
    step = StepShape(n_batch=max(64, sum(new)), max_seqs=len(new), n_ctx=1024, fused_attention=fused)
    largest = max(t.n_elements for t in open_model(demo_model()).tensors.values())
    planned = step_bytes(decoder.config, plan, CPU, decoder.n_vocab, largest, step)
    # Far too much would be as wrong.
    assert planned / 10 < peak.most <= planned


def test_a_real_file() -> None:
    """The figures for the demo model come from its file and from the plan that loading follows."""
    source = open_model(demo_model())
    config = read_model_config(source)
    plan = plan_model(source, config, ModelOptions(device="cpu", dequantize="off"))
    found = plan_memory(source, config, plan, options(kind="f32"), machine())
    assert found.devices[0].weights == pytest.approx(plan.file_bytes, rel=0.01)
    assert found.n_ctx == plan.n_ctx
