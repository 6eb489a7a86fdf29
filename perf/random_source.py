"""Models of real shapes in Q4_K_M with random weights, which are made on the device when they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from random_model import mix_format
from timing import random_rows
from torch import Tensor

from naiad.loaders.stored import StoredTensor
from naiad.quant.formats import F32, Q4_K, Q5_K, Format


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model. n_ff: of an expert, where there are n_experts, of which a token uses n_used."""

    architecture: str
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    n_vocab: int
    rope_base: float
    head_dim: int = 128
    n_ctx: int = 32768
    n_experts: int = 0
    n_used: int = 0

    @property
    def eps(self) -> float:
        return 1e-5 if self.architecture == "llama" else 1e-6


SHAPES = {
    "llama-3-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128256, 5e5, n_ctx=8192),
    "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 152064, 1e6),
    "qwen2.5-32b": Shape("qwen2", 64, 5120, 27648, 40, 8, 152064, 1e6),
    "llama-3-70b": Shape("llama", 80, 8192, 28672, 64, 8, 128256, 5e5, n_ctx=8192),
    "qwen3-30b-a3b": Shape("qwen3moe", 48, 2048, 768, 32, 4, 151936, 1e6, n_ctx=40960, n_experts=128, n_used=8),
    "tiny": Shape("qwen2", 4, 256, 512, 4, 2, 512, 1e4, head_dim=64, n_ctx=256),
    "tiny-experts": Shape("qwen3moe", 2, 256, 256, 4, 2, 512, 1e4, head_dim=64, n_ctx=256, n_experts=16, n_used=4),
}
MODELS = tuple(name for name in SHAPES if not name.startswith("tiny"))


def metadata(name: str, shape: Shape) -> dict[str, Any]:
    """Under GGUF's keys, but for the tokenizer's."""
    own = {
        "block_count": shape.n_layers,
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": shape.eps,
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": shape.rope_base,
    }
    if shape.n_experts:
        own |= {"expert_count": shape.n_experts, "expert_used_count": shape.n_used}
        own |= {"expert_feed_forward_length": shape.n_ff}
    return {"general.architecture": shape.architecture, "general.name": f"random {name}"} | {
        f"{shape.architecture}.{key}": value for key, value in own.items()
    }


def matrix_format(shape: Shape, name: str, layer: int) -> Format:
    """llama.cpp's rule for Q4_K_M (llama-quant.cpp) in models whose output is not tied to the embedding."""
    if name == "token_embd":
        return Q4_K
    fmt = mix_format("q4_k_m", name.removesuffix("_exps"), layer, shape.n_layers)
    # A model of type 70B: the heads of v are so few that more bits for them cost nothing.
    is_70b = shape.architecture == "llama" and shape.n_layers == 80
    return Q5_K if is_70b and name == "attn_v" and fmt is Q4_K else fmt


def layer_tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a layer."""
    n_embd, n_ff = shape.n_embd, shape.n_ff
    n_q, n_kv = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    for name, n_out in (("attn_q", n_q), ("attn_k", n_kv), ("attn_v", n_kv)):
        yield f"{name}.weight", (n_out, n_embd)
        if shape.architecture == "qwen2":
            yield f"{name}.bias", (n_out,)
        if shape.architecture == "qwen3moe" and name != "attn_v":
            yield f"{name}_norm.weight", (shape.head_dim,)
    yield "attn_norm.weight", (n_embd,)
    yield "attn_output.weight", (n_embd, n_q)
    yield "ffn_norm.weight", (n_embd,)
    stack, end = ((shape.n_experts,), "_exps") if shape.n_experts else ((), "")
    if shape.n_experts:
        yield "ffn_gate_inp.weight", (shape.n_experts, n_embd)
    yield f"ffn_gate{end}.weight", (*stack, n_ff, n_embd)
    yield f"ffn_up{end}.weight", (*stack, n_ff, n_embd)
    yield f"ffn_down{end}.weight", (*stack, n_embd, n_ff)


class RandomSource:
    """A model as a file would hold it (loaders/stored.py), whose tensors are made on the device when they are read.

    Weights are centred and of 1 / sqrt(row length), so that products keep the size of what is multiplied; rows of the
    embedding are of size 1, norms 1, biases 0.1.
    """

    def __init__(self, name: str, shape: Shape, device: torch.device) -> None:
        self.name, self.device = name, device
        self.kv = metadata(name, shape)
        self.tensors: dict[str, StoredTensor] = {}
        self._add("token_embd.weight", (shape.n_vocab, shape.n_embd), matrix_format(shape, "token_embd", 0), 1.0)
        self._add("output.weight", (shape.n_vocab, shape.n_embd), matrix_format(shape, "output", 0))
        self._add("output_norm.weight", (shape.n_embd,), F32)
        for i in range(shape.n_layers):
            for tensor, sizes in layer_tensors(shape):
                plain = len(sizes) == 1 or "gate_inp" in tensor
                fmt = F32 if plain else matrix_format(shape, tensor.removesuffix(".weight"), i)
                self._add(f"blk.{i}.{tensor}", sizes, fmt)

    def _add(self, name: str, sizes: tuple[int, ...], fmt: Format, std: float | None = None) -> None:
        if "norm" in name:
            read = partial(ones, sizes, self.device)
        else:
            size = std or (0.1 if len(sizes) == 1 else sizes[-1] ** -0.5)
            read = partial(random_bytes, fmt, sizes, size, self.device, len(self.tensors))
        self.tensors[name] = StoredTensor(name, fmt, sizes, read)

    def release(self, tensor: StoredTensor) -> None:
        """Nothing is held."""


def ones(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.ones(sizes, device=device).view(torch.uint8).view(-1)


# What the quants of a weight are centred by, and the size of a weight with d = 1: the root mean square of the scales
# (6 bits, or signed bytes) times that of the centred quants.
CENTRES = {
    "Q4_K": (7.5, math.sqrt(1333.5 * 255 / 12)),
    "Q5_K": (15.5, math.sqrt(1333.5 * 1023 / 12)),
    "Q6_K": (0.0, math.sqrt(5461.5 * 4095 / 12)),
}


def random_bytes(fmt: Format, sizes: tuple[int, ...], std: float, device: torch.device, seed: int) -> Tensor:
    """Weights of mean 0 and size `std` as a file holds them, uint8 [bytes]."""
    generator = torch.Generator(device).manual_seed(seed)
    if fmt is F32:
        return torch.randn(sizes, generator=generator, device=device).mul_(std).view(torch.uint8).view(-1)
    blocks = random_rows(fmt, math.prod(sizes[:-1]), sizes[-1], device, seed).view(-1, fmt.type_size)
    centre, size = CENTRES[fmt.name]
    # Scales that differ as those of a real file do, by a factor of 3; 13 / 12 is their mean square.
    d = torch.rand(len(blocks), 1, generator=generator, device=device).add_(0.5).mul_(std / size / math.sqrt(13 / 12))
    start = 0
    for field in fmt.fields:
        part = blocks[:, start : start + field.n_bytes]
        if field.name in ("d", "dmin"):
            part.copy_((d if field.name == "d" else centre * d).half().view(torch.uint8))
        elif field.name == "scales" and centre:
            # Minima equal to the scales (kquants.py has the layout).
            part[:, 4:8] = part[:, :4]
            part[:, 8:] = part[:, 8:] % 16 * 17
        start += field.n_bytes
    return blocks.view(-1)


def read_bytes(source: RandomSource, shape: Shape, batch: int = 1) -> float:
    """W, the bytes of the weights that a step of so many sequences reads, with experts chosen evenly at random."""
    used = 1 - (1 - shape.n_used / shape.n_experts) ** batch if shape.n_experts else 1.0
    total = 0.0
    for name, tensor in source.tensors.items():
        if name == "token_embd.weight":
            total += batch * tensor.n_bytes / tensor.shape[0]
        else:
            total += tensor.n_bytes * (used if "_exps" in name else 1)
    return total


def prompt_flops(source: RandomSource, shape: Shape) -> float:
    """Operations per token of a prompt in the layers' products."""
    matrices = [(n, t.n_elements) for n, t in source.tensors.items() if n.startswith("blk.") and len(t.shape) > 1]
    return 2 * sum(n * shape.n_used / shape.n_experts if "_exps" in name else n for name, n in matrices)
