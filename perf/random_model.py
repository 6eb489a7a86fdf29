"""Models of any shape with random weights in any formats, which are made when they are read; and files of them.

python perf/random_model.py out.gguf --shape llama-3-8b --mix q4_k_m --device cuda
python perf/random_model.py out.gguf --shape 1b --layers 4 --ff 768 --experts 32 --used 4 --mix q8_0,attn_v=q6_k

A mix is a name (q4_k_m, q5_k_m, or a format for all matrices), or formats of single ones, or both, separated by commas.
With experts, --ff is the width of one of them and the file is a Qwen3-MoE's. The tokenizer is the demo model's, with
unused tokens where the vocabulary is larger; --vocab 0 takes it as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from random_weights import random_bytes
from torch import Tensor

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.stored import ModelSource, StoredTensor
from naiad.quant.formats import F32, Q4_K, Q5_K, Q6_K, Q8_0, Format, format_by_name
from naiad.runtime.demo import demo_model

UNUSED_TOKEN = 5
ARCHITECTURES = ("llama", "qwen2", "qwen3moe")


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. n_ff: of an expert, where there are n_experts, of which a token uses n_used. n_vocab: 0 for the
    demo model's. head_dim: 0 for n_embd / n_heads. tied: whether the embedding is the output, too."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    tied: bool
    architecture: str = "llama"
    n_vocab: int = 0
    head_dim: int = 0
    n_experts: int = 0
    n_used: int = 0
    n_ctx: int = 8192
    rope_base: float = 1e4

    @property
    def head_size(self) -> int:
        return self.head_dim or self.n_embd // self.n_heads

    def check(self) -> None:
        """ValueError for impossible sizes."""
        if (self.n_embd % self.n_heads and not self.head_dim) or self.n_heads % self.n_kv_heads:
            raise ValueError(f"heads do not divide: {self}")
        if not 0 <= self.n_used <= self.n_experts or (self.n_experts and not self.n_used):
            raise ValueError(f"expected 1 to {self.n_experts} used experts, found {self.n_used}")
        if (self.architecture == "qwen3moe") != bool(self.n_experts):
            raise ValueError(
                f"expected experts in qwen3moe and only there, found {self.n_experts} in {self.architecture}"
            )


SHAPES = {
    "tiny": Shape(2, 256, 512, 4, 2, True),
    "tiny-experts": Shape(2, 256, 256, 4, 2, False, "qwen3moe", n_experts=16, n_used=4),
    "100m": Shape(8, 768, 2048, 12, 4, True),
    "1b": Shape(16, 2048, 8192, 32, 8, True),
    "3b": Shape(28, 3072, 8192, 24, 8, True),
    "llama-3-8b": Shape(32, 4096, 14336, 32, 8, False, "llama", 128256, rope_base=5e5),
    "qwen2.5-7b": Shape(28, 3584, 18944, 28, 4, False, "qwen2", 152064, n_ctx=32768, rope_base=1e6),
    "qwen2.5-32b": Shape(64, 5120, 27648, 40, 8, False, "qwen2", 152064, n_ctx=32768, rope_base=1e6),
    "llama-3-70b": Shape(80, 8192, 28672, 64, 8, False, "llama", 128256, rope_base=5e5),
    "qwen3-30b-a3b": Shape(
        48, 2048, 768, 32, 4, False, "qwen3moe", 151936, 128, n_experts=128, n_used=8, n_ctx=40960, rope_base=1e6
    ),
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, True, "llama", 128256, n_ctx=131072, rope_base=5e5),
}
# Those that models.py runs.
MODELS = tuple(name for name, shape in SHAPES.items() if shape.n_vocab)

# ---- which formats --------------------------------------------------------------------------------------------------

# llama.cpp's mixes whose attn_v and ffn_down get more bits in some layers.
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


def mix_format(mix: str, shape: Shape, name: str, layer: int = 0) -> Format:
    """The format of a matrix (one of MATRICES) in a mix, by llama.cpp's rule (llama-quant.cpp)."""
    mix, own = parse_mix(mix)
    base, n = format_by_name(MIXES.get(mix, mix)), shape.n_layers
    if name == "token_embd" and shape.tied:
        name = "output"
    if name in own:
        return own[name]
    if name == "output":
        if base is Q8_0 or not base.is_quantized:
            return base
        return Q8_0 if shape.n_embd % Q6_K.block_size else Q6_K
    if mix not in MIXES or name not in ("attn_v", "ffn_down"):
        return base
    if layer < n // 8 or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2:
        return Q6_K
    # A model of type 70B: the heads of v are so few that more bits for them cost nothing.
    is_70b = shape.architecture == "llama" and n == 80
    return Q5_K if is_70b and name == "attn_v" and base is Q4_K else base


# ---- a model --------------------------------------------------------------------------------------------------------


def metadata(name: str, shape: Shape) -> dict[str, Any]:
    """Under GGUF's keys, but for the tokenizer's."""
    own = {
        "block_count": shape.n_layers,
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        "attention.layer_norm_rms_epsilon": 1e-5 if shape.architecture == "llama" else 1e-6,
        "rope.dimension_count": shape.head_size,
        "rope.freq_base": shape.rope_base,
    }
    if shape.n_experts:
        own |= {"expert_count": shape.n_experts, "expert_used_count": shape.n_used}
        own |= {"expert_feed_forward_length": shape.n_ff}
    return {"general.architecture": shape.architecture, "general.name": f"random {name}"} | {
        f"{shape.architecture}.{key}": value for key, value in own.items()
    }


def layer_tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a layer."""
    n_embd, n_ff = shape.n_embd, shape.n_ff
    n_q, n_kv = shape.n_heads * shape.head_size, shape.n_kv_heads * shape.head_size
    for name, n_out in (("attn_q", n_q), ("attn_k", n_kv), ("attn_v", n_kv)):
        yield f"{name}.weight", (n_out, n_embd)
        if shape.architecture == "qwen2":
            yield f"{name}.bias", (n_out,)
        if shape.architecture == "qwen3moe" and name != "attn_v":
            yield f"{name}_norm.weight", (shape.head_size,)
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

    Weights are centred and of 1 / sqrt(row length), so that products keep the size of what is multiplied; rows of an
    embedding that is not the output are of size 1, norms 1, biases 0.1. The metadata has no tokenizer. ValueError for
    impossible sizes, unknown formats, and rows that are no whole number of their format's blocks.
    """

    def __init__(self, name: str, shape: Shape, device: torch.device, mix: str = DEFAULT_MIX) -> None:
        shape.check()
        self.name, self.device = name, device
        self.kv = metadata(name, shape)
        self.tensors: dict[str, StoredTensor] = {}
        n_vocab = shape.n_vocab or len(GGUFFile(demo_model()).kv["tokenizer.ggml.tokens"])
        formats = partial(mix_format, mix, shape)
        embedding = (n_vocab, shape.n_embd)
        self._add("token_embd.weight", embedding, formats("token_embd"), None if shape.tied else 1.0)
        if not shape.tied:
            self._add("output.weight", embedding, formats("output"))
        self._add("output_norm.weight", (shape.n_embd,), F32)
        for i in range(shape.n_layers):
            for tensor, sizes in layer_tensors(shape):
                matrix = tensor.removesuffix(".weight").removesuffix("_exps")
                self._add(f"blk.{i}.{tensor}", sizes, formats(matrix, i) if matrix in MATRICES else F32)

    def _add(self, name: str, sizes: tuple[int, ...], fmt: Format, std: float | None = None) -> None:
        fmt.row_bytes(sizes[-1])
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


def read_bytes(source: RandomSource, shape: Shape, batch: int = 1) -> float:
    """W, the bytes of the weights that a step of so many sequences reads, with experts chosen evenly at random."""
    used = 1 - (1 - shape.n_used / shape.n_experts) ** batch if shape.n_experts else 1.0
    embedding = source.tensors["token_embd.weight"]
    total = batch * embedding.n_bytes / embedding.shape[0]
    for name, tensor in source.tensors.items():
        if tensor is not embedding or shape.tied:
            total += tensor.n_bytes * (used if "_exps" in name else 1)
    return total


def prompt_flops(source: RandomSource, shape: Shape) -> float:
    """Operations per token of a prompt in the layers' products."""
    matrices = [(n, t.n_elements) for n, t in source.tensors.items() if n.startswith("blk.") and len(t.shape) > 1]
    return 2 * sum(n * shape.n_used / shape.n_experts if "_exps" in name else n for name, n in matrices)


# ---- a file ---------------------------------------------------------------------------------------------------------


def write(source: ModelSource, path: str) -> None:
    """A GGUF file of a source that has no tokenizer, with the demo model's. ValueError for too small a vocabulary."""
    demo = GGUFFile(demo_model())
    kv = {key: value for key, value in demo.kv.items() if key.startswith("tokenizer.")}
    words, kinds = list(kv["tokenizer.ggml.tokens"]), list(kv["tokenizer.ggml.token_type"])
    n_vocab = source.tensors["token_embd.weight"].shape[0]
    if n_vocab < len(words):
        raise ValueError(f"expected a vocabulary of at least {len(words)} tokens, found {n_vocab}")
    more = range(len(words), n_vocab)
    kv["tokenizer.ggml.tokens"] = words + [f"<|unused_{i}|>" for i in more]
    kv["tokenizer.ggml.token_type"] = kinds + [UNUSED_TOKEN] * len(more)
    types = {key: kind for key, kind in demo.kv_types.items() if key in kv}
    tensors = [replace(tensor, read=partial(host_bytes, tensor)) for tensor in source.tensors.values()]
    write_gguf(path, {**kv, **source.kv}, tensors, kv_types=types)


def host_bytes(tensor: StoredTensor) -> Tensor:
    return tensor.bytes().cpu().view(-1)


def write_random_model(path: str, shape: Shape, mix: str, device: torch.device | None = None) -> None:
    """A file of a model, its weights made on the device, by default the CPU. ValueError as RandomSource and write."""
    name = f"{shape.n_layers}x{shape.n_embd} {mix}"
    write(RandomSource(name, shape, device or torch.device("cpu"), mix), path)


# ---- options --------------------------------------------------------------------------------------------------------

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
    parser.add_argument("--architecture", choices=ARCHITECTURES, help="in place of the shape's; with experts qwen3moe")
    for option, field in SIZES.items():
        parser.add_argument(f"--{option}", type=int, dest=field, metavar="N", help="in place of the shape's")
    parser.add_argument(
        "--tied", action=argparse.BooleanOptionalAction, help="whether the embedding is the output, too"
    )


def chosen_shape(arguments: argparse.Namespace) -> Shape:
    given = {field: getattr(arguments, field) for field in (*SIZES.values(), "tied", "architecture")}
    if given["n_experts"] and given["architecture"] is None:
        given["architecture"] = "qwen3moe"
    return replace(SHAPES[arguments.shape], **{field: value for field, value in given.items() if value is not None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    add_shape_options(parser)
    parser.add_argument("--mix", default=DEFAULT_MIX, help="see above")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where weights are made")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no cuda device here: this needs a GPU with CUDA or ROCm")
    try:
        write_random_model(arguments.path, chosen_shape(arguments), arguments.mix, torch.device(arguments.device))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
