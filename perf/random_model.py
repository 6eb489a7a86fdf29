"""Writes a llama-shaped GGUF file of any size with random weights, for benchmarks: the speed is the real model's.

python perf/random_model.py out.gguf --shape 1b --mix q4_k_m
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.stored import StoredTensor
from naiad.quant.formats import Format, format_by_name
from naiad.runtime.demo import demo_model


@dataclass(frozen=True)
class Shape:
    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    tied: bool


SHAPES = {
    "100m": Shape(8, 768, 2048, 12, 4, True),
    "1b": Shape(16, 2048, 8192, 32, 8, True),
    "3b": Shape(28, 3072, 8192, 24, 8, True),
    "8b": Shape(32, 4096, 14336, 32, 8, False),
}
# llama.cpp's rule for the layers of Q4_K_M and Q5_K_M whose attn_v and ffn_down get more bits.
MIXES = {"q4_k_m": "q4_k", "q5_k_m": "q5_k"}


def mix_format(mix: str, name: str, layer: int, n_layers: int) -> Format:
    """The format of a matrix in a mix; a plain format's name means all matrices, and Q6_K for the output."""
    if name in ("token_embd", "output") and mix != "q8_0":
        return format_by_name("q6_k")
    base = format_by_name(MIXES.get(mix, mix))
    more = layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
    if mix in MIXES and name in ("attn_v", "ffn_down") and more:
        return format_by_name("q6_k")
    return base


def random_blocks(fmt: Format, shape: tuple[int, int], seed: int) -> Callable[[], torch.Tensor]:
    """Random bytes with small scales, so that every weight is an ordinary number."""

    def read() -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        n_blocks = shape[0] * fmt.row_bytes(shape[1]) // fmt.type_size
        blocks = torch.randint(0, 256, (n_blocks, fmt.type_size), dtype=torch.uint8, generator=generator)
        start = 0
        for field in fmt.fields:
            if field.dtype == "f16":
                scale = torch.full((n_blocks, field.count), 0.02 / 2**fmt.bits_per_weight, dtype=torch.float16)
                blocks[:, start : start + field.n_bytes] = scale.view(torch.uint8)
            start += field.n_bytes
        return blocks.view(-1)

    return read


def tensors(shape: Shape, n_vocab: int, mix: str) -> Iterator[StoredTensor]:
    f32 = format_by_name("f32")
    head_dim = shape.n_embd // shape.n_heads
    n_kv = shape.n_kv_heads * head_dim

    def matrix(name: str, n_out: int, n_in: int, layer: int = 0) -> StoredTensor:
        fmt = mix_format(mix, name.split(".")[-2], layer, shape.n_layers)
        return StoredTensor(name, fmt, (n_out, n_in), random_blocks(fmt, (n_out, n_in), layer))

    def ones(name: str) -> StoredTensor:
        return StoredTensor(name, f32, (shape.n_embd,), lambda: torch.ones(shape.n_embd).view(torch.uint8))

    yield matrix("token_embd.weight", n_vocab, shape.n_embd)
    yield ones("output_norm.weight")
    if not shape.tied:
        yield matrix("output.weight", n_vocab, shape.n_embd)
    for i in range(shape.n_layers):
        yield ones(f"blk.{i}.attn_norm.weight")
        yield ones(f"blk.{i}.ffn_norm.weight")
        for name, n_out, n_in in (
            ("attn_q", shape.n_embd, shape.n_embd),
            ("attn_k", n_kv, shape.n_embd),
            ("attn_v", n_kv, shape.n_embd),
            ("attn_output", shape.n_embd, shape.n_embd),
            ("ffn_gate", shape.n_ff, shape.n_embd),
            ("ffn_up", shape.n_ff, shape.n_embd),
            ("ffn_down", shape.n_embd, shape.n_ff),
        ):
            yield matrix(f"blk.{i}.{name}.weight", n_out, n_in, i)


def write_random_model(path: str, shape: Shape, mix: str) -> None:
    """The demo model's tokenizer (its vocabulary is small beside a real one's) and random weights."""
    demo = GGUFFile(demo_model())
    kv = {k: v for k, v in demo.kv.items() if k.startswith("tokenizer.")}
    kv |= {
        "general.architecture": "llama",
        "general.name": f"random {shape.n_layers}x{shape.n_embd} {mix}",
        "llama.context_length": 8192,
        "llama.embedding_length": shape.n_embd,
        "llama.block_count": shape.n_layers,
        "llama.feed_forward_length": shape.n_ff,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.n_embd // shape.n_heads,
    }
    write_gguf(path, kv, tensors(shape, len(kv["tokenizer.ggml.tokens"]), mix), kv_types=demo.kv_types)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--mix", default="q4_k_m", help="q4_k_m, q5_k_m or a format's name")
    arguments = parser.parse_args()
    write_random_model(arguments.path, SHAPES[arguments.shape], arguments.mix)
