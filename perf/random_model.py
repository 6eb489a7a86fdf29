"""Writes a GGUF file of any shape with random weights of any formats, for benchmarks: the speed is a real model's.

python perf/random_model.py out.gguf --shape 1b --mix q4_k_m
python perf/random_model.py out.gguf --shape 1b --layers 4 --ff 768 --experts 32 --used 4 --mix q8_0,attn_v=q6_k

A mix is a name (q4_k_m, q5_k_m, or a format for all matrices), or formats of single ones, or both, separated by commas.
With experts, --ff is the width of one of them and the file is a Qwen3-MoE's, else a Llama's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.stored import StoredTensor
from naiad.quant.floats import FLOAT_DTYPES
from naiad.quant.formats import Format, format_by_name
from naiad.runtime.demo import demo_model

UNUSED_TOKEN = 5


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. head_dim: 0 for n_embd / n_heads. n_ff: of an expert, where there are n_experts. n_vocab: 0 for
    the demo model's."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    tied: bool
    head_dim: int = 0
    n_experts: int = 0
    n_used: int = 0
    n_vocab: int = 0


SHAPES = {
    "tiny": Shape(2, 256, 512, 4, 2, True),
    "100m": Shape(8, 768, 2048, 12, 4, True),
    "1b": Shape(16, 2048, 8192, 32, 8, True),
    "3b": Shape(28, 3072, 8192, 24, 8, True),
    "8b": Shape(32, 4096, 14336, 32, 8, False),
}
# llama.cpp's rule for the layers of Q4_K_M and Q5_K_M whose attn_v and ffn_down get more bits.
MIXES = {"q4_k_m": "q4_k", "q5_k_m": "q5_k"}
DEFAULT_MIX = "q4_k_m"
MATRICES = ("token_embd", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def parse_mix(text: str) -> tuple[str, dict[str, Format]]:
    """The mix's name and the formats of the matrices that it names. ValueError for unknown ones."""
    mix, own = DEFAULT_MIX, {}
    for i, part in enumerate(text.split(",")):
        name, equals, value = part.partition("=")
        if equals and name in MATRICES:
            own[name] = format_by_name(value)
        elif equals or i:
            raise ValueError(f"expected MATRIX=FORMAT with one of {', '.join(MATRICES)}, found {part!r}")
        else:
            mix = part.lower()
            format_by_name(MIXES.get(mix, mix))
    return mix, own


def mix_format(mix: str, name: str, layer: int, n_layers: int) -> Format:
    """The format of a matrix in a mix; the output's is Q6_K but for mixes that have more bits."""
    mix, own = parse_mix(mix)
    base = format_by_name(MIXES.get(mix, mix))
    if name in own:
        return own[name]
    if name == "output":
        return base if mix == "q8_0" or not base.is_quantized else format_by_name("q6_k")
    more = layer < n_layers // 8 or layer >= 7 * n_layers // 8 or (layer - n_layers // 8) % 3 == 2
    if mix in MIXES and name in ("attn_v", "ffn_down") and more:
        return format_by_name("q6_k")
    return base


def random_blocks(fmt: Format, shape: tuple[int, ...], seed: int) -> Callable[[], torch.Tensor]:
    """Random bytes with small scales, so that every weight is an ordinary number."""

    def read() -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        if not fmt.is_quantized:
            return torch.randn(shape, generator=generator).mul_(0.02).to(FLOAT_DTYPES[fmt]).view(-1).view(torch.uint8)
        n_blocks = math.prod(shape[:-1]) * fmt.row_bytes(shape[-1]) // fmt.type_size
        blocks = torch.randint(0, 256, (n_blocks, fmt.type_size), dtype=torch.uint8, generator=generator)
        start = 0
        for field in fmt.fields:
            part = blocks[:, start : start + field.n_bytes]
            if field.dtype == "f16":
                scale = torch.full((n_blocks, field.count), 0.02 / 2**fmt.bits_per_weight, dtype=torch.float16)
                part.copy_(scale.view(torch.uint8))
            elif (fmt.name, field.name) == ("MXFP4", "e"):
                part.fill_(119)
            elif (fmt.name, field.name) == ("NVFP4", "d"):
                part.fill_(0x08)
            elif (fmt.name, field.name) == ("IQ1_M", "scales"):
                # The top nibble of the f16 that is spread over these bytes.
                part[:, 7] = part[:, 7] & 0x0F | 0x10
            start += field.n_bytes
        return blocks.view(-1)

    return read


def head_dim(shape: Shape) -> int:
    return shape.head_dim or shape.n_embd // shape.n_heads


def layer_matrices(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of a layer's quantised matrices."""
    n_q, n_kv = shape.n_heads * head_dim(shape), shape.n_kv_heads * head_dim(shape)
    yield "attn_q", (n_q, shape.n_embd)
    yield "attn_k", (n_kv, shape.n_embd)
    yield "attn_v", (n_kv, shape.n_embd)
    yield "attn_output", (shape.n_embd, n_q)
    stack, end = ((shape.n_experts,), "_exps") if shape.n_experts else ((), "")
    yield f"ffn_gate{end}", (*stack, shape.n_ff, shape.n_embd)
    yield f"ffn_up{end}", (*stack, shape.n_ff, shape.n_embd)
    yield f"ffn_down{end}", (*stack, shape.n_embd, shape.n_ff)


def tensors(shape: Shape, n_vocab: int, mix: str) -> Iterator[StoredTensor]:
    f32 = format_by_name("f32")

    def matrix(name: str, sizes: tuple[int, ...], role: str, layer: int = 0) -> StoredTensor:
        fmt = mix_format(mix, role, layer, shape.n_layers)
        if role == "output" and sizes[-1] % fmt.block_size:
            fmt = format_by_name("q8_0")
        fmt.row_bytes(sizes[-1])
        return StoredTensor(name, fmt, sizes, random_blocks(fmt, sizes, layer))

    def ones(name: str, n: int) -> StoredTensor:
        return StoredTensor(name, f32, (n,), lambda: torch.ones(n).view(torch.uint8))

    # A tied embedding is the output, too, and lies in its format.
    yield matrix("token_embd.weight", (n_vocab, shape.n_embd), "output" if shape.tied else "token_embd")
    yield ones("output_norm.weight", shape.n_embd)
    if not shape.tied:
        yield matrix("output.weight", (n_vocab, shape.n_embd), "output")
    for i in range(shape.n_layers):
        yield ones(f"blk.{i}.attn_norm.weight", shape.n_embd)
        yield ones(f"blk.{i}.ffn_norm.weight", shape.n_embd)
        if shape.n_experts:
            yield ones(f"blk.{i}.attn_q_norm.weight", head_dim(shape))
            yield ones(f"blk.{i}.attn_k_norm.weight", head_dim(shape))
            router = (shape.n_experts, shape.n_embd)
            yield StoredTensor(f"blk.{i}.ffn_gate_inp.weight", f32, router, random_blocks(f32, router, i))
        for name, sizes in layer_matrices(shape):
            yield matrix(f"blk.{i}.{name}.weight", sizes, name.removesuffix("_exps"), i)


def metadata(shape: Shape, mix: str) -> dict[str, Any]:
    """Under GGUF's keys, but for the tokenizer's."""
    architecture = "qwen3moe" if shape.n_experts else "llama"
    own: dict[str, Any] = {
        "context_length": 8192,
        "embedding_length": shape.n_embd,
        "block_count": shape.n_layers,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": head_dim(shape),
        "attention.value_length": head_dim(shape),
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": head_dim(shape),
    }
    if shape.n_experts:
        own |= {"expert_count": shape.n_experts, "expert_used_count": shape.n_used}
        own["expert_feed_forward_length"] = shape.n_ff
    return {
        "general.architecture": architecture,
        "general.name": f"random {shape.n_layers}x{shape.n_embd} {mix}",
    } | {f"{architecture}.{key}": value for key, value in own.items()}


def write_random_model(path: str, shape: Shape, mix: str) -> None:
    """The demo model's tokenizer, with unused tokens where more are wanted, and random weights.

    ValueError for impossible sizes, unknown formats, and rows that are no whole number of their format's blocks.
    """
    if (shape.n_embd % shape.n_heads and not shape.head_dim) or shape.n_heads % shape.n_kv_heads:
        raise ValueError(f"heads do not divide: {shape}")
    if not 0 <= shape.n_used <= shape.n_experts or (shape.n_experts and not shape.n_used):
        raise ValueError(f"expected 1 to {shape.n_experts} used experts, found {shape.n_used}")
    demo = GGUFFile(demo_model())
    kv = {k: v for k, v in demo.kv.items() if k.startswith("tokenizer.")}
    words, kinds = list(kv["tokenizer.ggml.tokens"]), list(kv["tokenizer.ggml.token_type"])
    if shape.n_vocab and shape.n_vocab < len(words):
        raise ValueError(f"expected a vocabulary of at least {len(words)} tokens, found {shape.n_vocab}")
    more = range(len(words), shape.n_vocab)
    kv["tokenizer.ggml.tokens"] = words + [f"<|unused_{i}|>" for i in more]
    kv["tokenizer.ggml.token_type"] = kinds + [UNUSED_TOKEN] * len(more)
    kv |= metadata(shape, mix)
    types = {key: kind for key, kind in demo.kv_types.items() if key in kv}
    write_gguf(path, kv, tensors(shape, len(kv["tokenizer.ggml.tokens"]), mix), kv_types=types)


SIZES = {
    "layers": "n_layers",
    "embd": "n_embd",
    "ff": "n_ff",
    "heads": "n_heads",
    "kv-heads": "n_kv_heads",
    "head-dim": "head_dim",
    "experts": "n_experts",
    "used": "n_used",
    "vocab": "n_vocab",
}


def add_shape_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    for option, field in SIZES.items():
        parser.add_argument(f"--{option}", type=int, dest=field, metavar="N", help="in place of the shape's")
    parser.add_argument(
        "--tied", action=argparse.BooleanOptionalAction, help="whether the embedding is the output, too"
    )


def chosen_shape(arguments: argparse.Namespace) -> Shape:
    fields = (*SIZES.values(), "tied")
    return replace(
        SHAPES[arguments.shape], **{f: getattr(arguments, f) for f in fields if getattr(arguments, f) is not None}
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    add_shape_options(parser)
    parser.add_argument("--mix", default=DEFAULT_MIX, help="see above")
    arguments = parser.parse_args()
    try:
        write_random_model(arguments.path, chosen_shape(arguments), arguments.mix)
    except ValueError as error:
        parser.error(str(error))
