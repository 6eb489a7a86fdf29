"""Well-formed files that are no model we can run: a ValueError that names the file and the thing, soon and cheaply."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.open import open_model
from naiad.loaders.stored import ModelSource, StoredTensor
from naiad.quant.formats import F32
from naiad.runtime.demo import demo_model
from naiad.runtime.model import ModelOptions, load_model
from naiad.runtime.session import Session

Shapes = dict[str, tuple[int, ...]]
N_VOCAB, WIDTH, N_FF, N_HEADS, N_KV_HEADS, HEAD_DIM, N_LAYERS, N_EXPERTS = 11, 8, 12, 4, 2, 4, 2, 3
N_Q, N_KV = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
GEMMA_NORMS: Shapes = {
    "attn_q_norm.weight": (HEAD_DIM,),
    "attn_k_norm.weight": (HEAD_DIM,),
    "post_attention_norm.weight": (WIDTH,),
    "post_ffw_norm.weight": (WIDTH,),
}
SEPARATE: Shapes = {
    "attn_q.weight": (N_Q, WIDTH),
    "attn_k.weight": (N_KV, WIDTH),
    "attn_v.weight": (N_KV, WIDTH),
}
DENSE: Shapes = {
    "ffn_gate.weight": (N_FF, WIDTH),
    "ffn_up.weight": (N_FF, WIDTH),
    "ffn_down.weight": (WIDTH, N_FF),
}
FUSED: Shapes = {
    "attn_qkv.weight": (N_Q + 2 * N_KV, WIDTH),
    "ffn_up.weight": (2 * N_FF, WIDTH),
    "ffn_down.weight": (WIDTH, N_FF),
}
EXPERTS: Shapes = {
    "ffn_gate_inp.weight": (N_EXPERTS, WIDTH),
    "ffn_gate_exps.weight": (N_EXPERTS, N_FF, WIDTH),
    "ffn_up_exps.weight": (N_EXPERTS, N_FF, WIDTH),
    "ffn_down_exps.weight": (N_EXPERTS, WIDTH, N_FF),
}
LAYERS: dict[str, Shapes] = {
    "llama": SEPARATE | DENSE,
    "gemma3": SEPARATE | DENSE | GEMMA_NORMS,
    "phi3": FUSED,
    "qwen3moe": SEPARATE | EXPERTS | {name: GEMMA_NORMS[name] for name in ("attn_q_norm.weight", "attn_k_norm.weight")},
}
SIZES = {
    "block_count": N_LAYERS,
    "context_length": 64,
    "embedding_length": WIDTH,
    "feed_forward_length": N_FF,
    "attention.head_count": N_HEADS,
    "attention.head_count_kv": N_KV_HEADS,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": HEAD_DIM,
}
MORE: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3": {"attention.sliding_window": 4},
    "phi3": {},
    "qwen3moe": {"expert_count": N_EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": N_FF},
}


def small_model(architecture: str) -> tuple[dict[str, Any], Shapes]:
    """Metadata and tensor shapes of a model that loads."""
    every = {"attn_norm.weight": (WIDTH,), "attn_output.weight": (WIDTH, N_Q), "ffn_norm.weight": (WIDTH,)}
    shapes: Shapes = {"token_embd.weight": (N_VOCAB, WIDTH), "output_norm.weight": (WIDTH,)}
    for i in range(N_LAYERS):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in (every | LAYERS[architecture]).items()}
    kv = {f"{architecture}.{key}": value for key, value in (SIZES | MORE[architecture]).items()}
    return {"general.architecture": architecture, **kv}, shapes


def zeros(name: str, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(name, F32, shape, lambda: torch.zeros(math.prod(shape) * 4, dtype=torch.uint8))


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """None removes a key."""
    return {key: value for key, value in (values | changes).items() if value is not None}


@dataclass
class MemorySource:
    """A model that was never in a file."""

    kv: dict[str, Any]
    tensors: dict[str, StoredTensor]
    name: str = "model in memory"

    def release(self, tensor: StoredTensor) -> None:
        pass


def run(source: ModelSource) -> torch.Tensor:
    """Loads a model and runs one token; a session has memory for all of its context."""
    decoder, plan = load_model(source, ModelOptions(device="cpu"))
    return Session(decoder, min(plan.n_ctx, 2**16)).logits([1])


def load(path: Path, architecture: str, kv_changes: dict[str, Any], shape_changes: dict[str, Any]) -> torch.Tensor:
    """Writes the changed model to a file, loads it and runs one token."""
    kv, shapes = small_model(architecture)
    tensors = [zeros(name, shape) for name, shape in changed(shapes, shape_changes).items()]
    write_gguf(path, changed(kv, kv_changes), tensors)
    return run(GGUFFile(path))


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than 1 GiB of address space on top of what is in use."""
    if sys.platform != "linux":
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("architecture", LAYERS)
def test_unchanged_it_loads(architecture: str, tmp_path: Path) -> None:
    assert load(tmp_path / "model.gguf", architecture, {}, {}).shape == (1, N_VOCAB)


# (architecture, changed metadata, changed tensors, what the message says); keys without a dot are the architecture's.
BAD: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "architecture-unknown": ("llama", {"general.architecture": "mamba"}, {}, "architecture 'mamba' .*llama, qwen2"),
    "architecture-missing": ("llama", {"general.architecture": None}, {}, "architecture None"),
    "architecture-number": ("llama", {"general.architecture": 3}, {}, "architecture 3"),
    "tensor-missing": ("llama", {}, {"blk.1.ffn_up.weight": None}, "'blk.1.ffn_up.weight' is missing"),
    "norm-missing": ("llama", {}, {"output_norm.weight": None}, "'output_norm.weight' is missing"),
    "embedding-missing": ("llama", {}, {"token_embd.weight": None}, "'token_embd.weight'"),
    "embedding-flat": ("llama", {}, {"token_embd.weight": (N_VOCAB,)}, "'token_embd.weight'"),
    "embedding-narrow": ("llama", {}, {"token_embd.weight": (N_VOCAB, 7)}, "'token_embd.weight' .*11, 7.*11, 8"),
    "output-of-other-vocabulary": ("llama", {}, {"output.weight": (10, WIDTH)}, "'output.weight' .*10, 8.*11, 8"),
    "q-misshapen": ("llama", {}, {"blk.0.attn_q.weight": (N_Q + 1, WIDTH)}, "'blk.0.attn_q.weight' .*17, 8.*16, 8"),
    "bias-misshapen": ("llama", {}, {"blk.0.attn_q.bias": (3,)}, r"'blk.0.attn_q.bias' .*\[3\].*\[16\]"),
    "rope-factors-misshapen": ("llama", {}, {"rope_freqs.weight": (3,)}, r"'rope_freqs.weight' .*\[3\].*\[2\]"),
    "rope-factors-zero": ("llama", {}, {"rope_freqs.weight": (2,)}, "'rope_freqs.weight' must hold positive"),
    "experts-misshapen": ("qwen3moe", {}, {"blk.1.ffn_up_exps.weight": (4, N_FF, WIDTH)}, "'blk.1.ffn_up_exps.weight'"),
    "experts-missing": ("qwen3moe", {}, {"blk.1.ffn_gate_inp.weight": None}, "'blk.1.ffn_gate_inp.weight' is missing"),
    "q-norm-missing": ("qwen3moe", {}, {"blk.0.attn_q_norm.weight": None}, "'blk.0.attn_q_norm.weight' is missing"),
    "qkv-missing": ("phi3", {}, {"blk.0.attn_qkv.weight": None}, "'blk.0.attn_q.weight' is missing"),
    "tensor-extra": ("llama", {}, {"blk.0.attn_sinks.weight": (4,)}, "1 tensors .*blk.0.attn_sinks.weight"),
    "layer-extra": ("llama", {}, {"blk.2.attn_norm.weight": (WIDTH,)}, "blk.2.attn_norm.weight"),
    "q-norm-extra": ("llama", {}, {"blk.0.attn_q_norm.weight": (HEAD_DIM,)}, "blk.0.attn_q_norm.weight"),
    "layers-none": ("llama", {"block_count": 0}, {}, "block_count"),
    "layers-missing": ("llama", {"block_count": None}, {}, "lacks llama.block_count"),
    "layers-huge": ("llama", {"block_count": 2**32 - 1}, {}, "block_count .*4294967295"),
    "layers-many": ("llama", {"block_count": 1024}, {}, "'blk.2.attn_norm.weight' is missing"),
    "layers-negative": ("llama", {"block_count": -1}, {}, "block_count .*-1"),
    "layers-text": ("llama", {"block_count": "two"}, {}, "block_count .*two"),
    "layers-float": ("llama", {"block_count": 2.0}, {}, "block_count .*2.0"),
    "layers-bool": ("llama", {"block_count": True}, {}, "block_count .*True"),
    "width-none": ("llama", {"embedding_length": 0}, {}, "embedding_length"),
    "width-huge": ("llama", {"embedding_length": 2**31}, {}, "embedding_length"),
    "context-none": ("llama", {"context_length": 0}, {}, "context_length"),
    "heads-none": ("llama", {"attention.head_count": 0}, {}, "head_count"),
    "heads-huge": ("llama", {"attention.head_count": 2**31 - 1}, {}, "head_count"),
    "kv-heads-none": ("llama", {"attention.head_count_kv": 0}, {}, "head_count_kv"),
    "kv-heads-3-for-4": ("llama", {"attention.head_count_kv": 3}, {}, "4 heads cannot share 3 kv heads"),
    "kv-heads-5-for-4": ("llama", {"attention.head_count_kv": 5}, {}, "head_count_kv .*5"),
    "heads-differ": ("llama", {"attention.head_count": [4, 2]}, {}, "head_count must be the same for every layer"),
    "kv-heads-differ": ("llama", {"attention.head_count_kv": [2, 1]}, {}, "head_count_kv must be the same"),
    "heads-of-no-layer": ("llama", {"attention.head_count": []}, {}, "head_count must be"),
    "head-of-one": ("llama", {"attention.key_length": 1}, {}, "key_length"),
    "head-huge": ("llama", {"attention.key_length": 2**31}, {}, "key_length"),
    "value-heads-differ": ("llama", {"attention.value_length": 6}, {}, "value heads of 6 beside key heads of 4"),
    "more-heads-than-width": ("llama", {"attention.key_length": None, "attention.head_count": 16}, {}, "key_length"),
    "mlp-none": ("llama", {"feed_forward_length": 0}, {}, "ffn_gate.weight"),
    "mlp-huge": ("llama", {"feed_forward_length": 2**31 - 1}, {}, "feed_forward_length"),
    "eps-missing": ("llama", {"attention.layer_norm_rms_epsilon": None}, {}, "lacks .*epsilon"),
    "eps-nan": ("llama", {"attention.layer_norm_rms_epsilon": math.nan}, {}, "epsilon .*nan"),
    "eps-infinite": ("llama", {"attention.layer_norm_rms_epsilon": math.inf}, {}, "epsilon .*inf"),
    "eps-negative": ("llama", {"attention.layer_norm_rms_epsilon": -1e-5}, {}, "epsilon"),
    "eps-text": ("llama", {"attention.layer_norm_rms_epsilon": "1e-5"}, {}, "epsilon"),
    "rope-odd": ("phi3", {"rope.dimension_count": 3}, {}, "dimension_count must be even"),
    "rope-none": ("phi3", {"rope.dimension_count": 0}, {}, "dimension_count"),
    "rope-wider-than-heads": ("phi3", {"rope.dimension_count": 6}, {}, "dimension_count .*6"),
    "rope-partial-llama": ("llama", {"rope.dimension_count": 2}, {}, "dimension_count 2"),
    "rope-base-none": ("llama", {"rope.freq_base": 0.0}, {}, "freq_base"),
    "rope-base-nan": ("llama", {"rope.freq_base": math.nan}, {}, "freq_base"),
    "rope-type-unknown": ("llama", {"rope.scaling.type": "dynamic"}, {}, "scaling.type .*'dynamic'"),
    "rope-type-number": ("llama", {"rope.scaling.type": 1}, {}, "scaling.type"),
    "rope-factor-nan": ("llama", {"rope.scaling.factor": math.nan}, {}, "scaling.factor"),
    "rope-factor-negative": ("llama", {"rope.scaling.factor": -2.0}, {}, "scaling.factor"),
    "rope-factor-tiny": ("llama", {"rope.scaling.factor": 1e-30}, {}, "scaling.factor"),
    "yarn-beta-none": (
        "llama",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_beta_fast": 0.0},
        {},
        "yarn_beta_fast",
    ),
    "window-negative": ("gemma3", {"attention.sliding_window": -4}, {}, "sliding_window"),
    "pattern-short": ("gemma3", {"attention.sliding_window_pattern": [True]}, {}, "sliding_window_pattern .*2 flags"),
    "pattern-text": ("gemma3", {"attention.sliding_window_pattern": ["a", "b"]}, {}, "sliding_window_pattern"),
    "pattern-none": ("gemma3", {"attention.sliding_window_pattern": 0}, {}, "sliding_window_pattern"),
    "softcap-nan": ("gemma3", {"final_logit_softcapping": math.nan}, {}, "final_logit_softcapping"),
    "experts-used-many": ("qwen3moe", {"expert_used_count": 4}, {}, "expert_used_count .*4"),
    "experts-used-none": ("qwen3moe", {"expert_used_count": 0}, {}, "expert_used_count"),
    "experts-used-missing": ("qwen3moe", {"expert_used_count": None}, {}, "lacks qwen3moe.expert_used_count"),
    "experts-none": ("qwen3moe", {"expert_count": None}, {}, "expert_count"),
    "experts-huge": ("qwen3moe", {"expert_count": 2**31 - 1}, {}, "expert_count"),
    "experts-sigmoid": ("qwen3moe", {"expert_gating_func": 2}, {}, "gating .*2"),
    "experts-in-a-dense-architecture": ("phi3", {"expert_count": 3, "expert_used_count": 1}, {}, "phi3 has no experts"),
}


@pytest.mark.parametrize(("architecture", "kv", "tensors", "message"), BAD.values(), ids=BAD)
def test_bad_model(
    architecture: str, kv: dict[str, Any], tensors: dict[str, Any], message: str, tmp_path: Path, little_memory: None
) -> None:
    path = tmp_path / "model.gguf"
    prefixed = {key if key.startswith("general.") else f"{architecture}.{key}": value for key, value in kv.items()}
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        load(path, architecture, prefixed, tensors)
    assert time.process_time() - start < 1
    assert re.match(re.escape(str(path)), str(error.value)), error.value


NASTY: list[Any] = [0, -1, 1, 2**31, 2**40, 1e-30, 1e30, math.inf, math.nan, True, "", "text"]
NASTY += [np.array(values) for values in ([], [1], [1, 2], [0.5, 0.5])] + [["a", "b"]]


# Between them, the first two read every key and have every kind of layer but the fused one.
@pytest.mark.parametrize(
    "architecture", ["gemma3", "qwen3moe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "phi3"))]
)
def test_any_value_loads_or_raises_value_error(architecture: str, little_memory: None) -> None:
    """Every number of the metadata, and of the keys that usually are absent, takes every nasty value."""
    scaling = ("factor", "type", "original_context_length", "attn_factor", "yarn_ext_factor", "yarn_log_multiplier")
    absent = [f"rope.scaling.{key}" for key in (*scaling, "yarn_beta_fast", "yarn_beta_slow")]
    absent += ["rope.freq_base_swa", "attention.scale", "expert_weights_scale", "attention.sliding_window"]
    absent += ["final_logit_softcapping", "attention.sliding_window_pattern"]
    kv, shapes = small_model(architecture)
    tensors = {name: zeros(name, shape) for name, shape in shapes.items()}
    kv |= {f"{architecture}.rope.scaling.type": "yarn", f"{architecture}.rope.scaling.factor": 4.0}
    n_loaded = 0
    for key in (*SIZES, *MORE[architecture], *absent):
        for value in NASTY:
            source = MemorySource({**kv, f"{architecture}.{key}": value}, tensors)
            try:
                run(source)
                n_loaded += 1
            except ValueError as error:
                assert str(error).startswith(source.name), (key, value)
    assert n_loaded > 20


@pytest.mark.parametrize("route", ["int8", "exact"])
def test_a_file_that_is_cut_short_while_it_is_loaded(tmp_path: Path, route: Literal["int8", "exact"]) -> None:
    """One error that names it, after some tensors; the system would end the process for looking at what is gone."""
    path, n_loaded = tmp_path / "model.gguf", 0
    shutil.copy(demo_model(), path)
    size = path.stat().st_size

    def cut(n_bytes: int) -> None:
        nonlocal n_loaded
        n_loaded += 1
        if n_loaded == 5:
            os.truncate(path, 4096)

    options = ModelOptions(device="cpu", route=route, dequantize="auto" if route == "int8" else "off")
    message = re.escape(f"{path}: the file was cut short while it was loaded, expected {size} bytes, found 4096")
    with pytest.raises(ValueError, match=message):
        load_model(open_model(path), options, cut)
    assert n_loaded == 5
