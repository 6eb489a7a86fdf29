"""Models that are only sizes, and machines that are not here: what memory planning is tested with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from naiad.loaders.stored import StoredTensor
from naiad.quant.formats import Format, format_by_name
from naiad.runtime.config import ModelConfig, MoeConfig, RopeConfig, RopePairing
from naiad.runtime.defaults import MIB
from naiad.runtime.devices import DeviceInfo
from naiad.runtime.memory import MemoryOptions
from naiad.runtime.model import Plan

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30


def with_gpu_layers(plan: Plan, n: int, gpu: torch.device) -> Plan:
    """The same plan with the last n layers (the output counts as one) on a GPU, the others on the CPU."""
    n_units = len(plan.layer_devices) + 1
    places = [gpu if i >= n_units - n else CPU for i in range(n_units)]
    return replace(plan, layer_devices=tuple(places[:-1]), input_device=places[0], output_device=places[-1])


@dataclass(frozen=True)
class Source:
    """A file's directory without a file."""

    tensors: Mapping[str, StoredTensor]
    name: str = "made.gguf"
    kv: Mapping[str, Any] = field(default_factory=dict)

    def release(self, tensor: StoredTensor) -> None:
        raise AssertionError("planning reads no tensor")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that memory depends on. pattern: every so-manieth layer has no window; 0: none has one."""

    n_layers: int
    n_embd: int
    n_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    fmt: str = "Q4_K"
    window: int = 0
    pattern: int = 1
    n_experts: int = 0
    n_ctx: int = 8192
    softcap: float = 0.0
    tied: bool = False

    @property
    def config(self) -> ModelConfig:
        rope = RopeConfig(self.head_dim, RopePairing.NEOX)
        sliding = tuple(
            self.window > 0 and (not self.pattern or (i + 1) % self.pattern > 0) for i in range(self.n_layers)
        )
        return ModelConfig(
            "llama", "", self.n_ctx, self.n_layers, self.n_embd, self.n_ff, self.n_heads, self.n_kv_heads,
            self.head_dim, 1e-5, rope, rope, 1.0, self.window, sliding, attn_softcap=self.softcap,
            moe=MoeConfig(self.n_experts, 2, self.n_ff) if self.n_experts else None,
        )  # fmt: skip

    @property
    def source(self) -> Source:
        return Source({name: _stored(name, format_by_name(fmt), shape) for name, fmt, shape in self._tensors()})

    def _tensors(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        n_q, n_kv = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield "token_embd.weight", self.fmt, (self.n_vocab, self.n_embd)
        if not self.tied:
            yield "output.weight", self.fmt, (self.n_vocab, self.n_embd)
        yield "output_norm.weight", "F32", (self.n_embd,)
        stack = (self.n_experts,) if self.n_experts else ()
        suffix = "_exps" if self.n_experts else ""
        for i in range(self.n_layers):
            for name, rows, width in (("q", n_q, self.n_embd), ("k", n_kv, self.n_embd), ("v", n_kv, self.n_embd)):
                yield f"blk.{i}.attn_{name}.weight", self.fmt, (rows, width)
            yield f"blk.{i}.attn_output.weight", self.fmt, (self.n_embd, n_q)
            yield f"blk.{i}.attn_norm.weight", "F32", (self.n_embd,)
            yield f"blk.{i}.ffn_gate{suffix}.weight", self.fmt, (*stack, self.n_ff, self.n_embd)
            yield f"blk.{i}.ffn_up{suffix}.weight", self.fmt, (*stack, self.n_ff, self.n_embd)
            yield f"blk.{i}.ffn_down{suffix}.weight", self.fmt, (*stack, self.n_embd, self.n_ff)

    def plan(self, n_gpu: int | None = None, dtype: torch.dtype | None = None) -> Plan:
        """With so many layers on the GPU, None for all."""
        everywhere = Plan((CPU,) * self.n_layers, CPU, CPU, dtype, self.n_ctx, 0, 0, 0, "")
        return with_gpu_layers(everywhere, self.n_layers + 1 if n_gpu is None else n_gpu, GPU)


def _stored(name: str, fmt: Format, shape: tuple[int, ...]) -> StoredTensor:
    def read() -> torch.Tensor:
        raise AssertionError("planning reads no tensor")

    return StoredTensor(name, fmt, shape, read)


def machine(gpu: int = 80 * 1024, cpu: int = 64 * 1024) -> dict[torch.device, DeviceInfo]:
    """Free MiB; the totals are twice that."""
    sizes = {GPU: gpu * MIB, CPU: cpu * MIB}
    return {device: DeviceInfo(device, "", 2 * free, free) for device, free in sizes.items()}


def options(n_ctx: int = 0, max_seqs: int = 8, kind: str = "f16", **changes: Any) -> MemoryOptions:
    return MemoryOptions(n_ctx=n_ctx, n_batch=512, max_seqs=max_seqs, k_type=kind, v_type=kind, **changes)


LLAMA = Shape(32, 4096, 14336, 32, 8, 128, 128256)
MANY_HEADS = Shape(32, 4096, 11008, 32, 32, 128, 32000, n_ctx=4096)
GEMMA = Shape(62, 5376, 21504, 32, 16, 128, 262144, window=1024, pattern=6, n_ctx=131072, tied=True)
MISTRAL = Shape(32, 4096, 14336, 32, 8, 128, 32000, window=4096, pattern=0, n_ctx=32768)
MIXTRAL = Shape(32, 4096, 14336, 32, 8, 128, 32000, n_experts=8, n_ctx=32768)
TINY = Shape(3, 64, 96, 4, 2, 32, 97, fmt="Q8_0", n_ctx=512)
