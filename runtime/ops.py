"""The backend abstraction layer: what a device must be able to do to run a model.

A backend implements some or all of `Ops`. Each call goes down an ordered list of backends; one that cannot serve a
call returns `Declined` with the reason, the last (plain torch) takes everything. `layers` lets the first backend run
all layers of a device in its own way, `attention_block` and `mlp_block` any backend half a layer; declined, layers are
composed of halves, and these of the single operations.
Between the halves goes a `Stream`, in which a backend may hand itself what it made of the norm that comes next.

Shapes: activations are [n_tokens, width], without a batch dimension (batch.py); matrices are [n_out, n_in].
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from ..loaders.stored import StoredTensor
from ..quant.formats import Format
from .batch import Batch
from .cache import LayerCache
from .config import Activation, RopePairing

if TYPE_CHECKING:
    from .decoder import Layer
    from .layers import Attention, Linear, Mlp, Moe, Norm

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Declined:
    """Not served by this backend, and why. expected: that is as it should be, and nobody is warned."""

    reason: str
    expected: bool = False


class Weight(Protocol):
    """A matrix [n_out, n_in], or a stack of them [n_experts, n_out, n_in], in whatever form its backend keeps it."""

    @property
    def format(self) -> Format: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def n_bytes(self) -> int:
        """Memory taken on the device."""
        ...

    @property
    def copied(self) -> bool:
        """Whether that is memory of its own, and not the file's."""
        ...

    def expert(self, index: int) -> Weight:
        """One matrix of a stack."""
        ...

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows [start, stop) of a matrix as numbers, [stop - start, n_in]."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """A layer's attention: scores are q.k * scale, soft-capped where softcap > 0; a query at position p sees the
    keys at p - window + 1 … p where window > 0, all up to p otherwise."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    softcap: float = 0.0
    window: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """The residual stream between two halves of layers, x [n_tokens, n_embd].

    normed: the norm that the next half begins with, already computed, in a form that only its backend knows; or None.
    """

    x: torch.Tensor
    normed: Any = None


class Ops(Protocol):
    """The operations. x, y, q, k, v: activations in `dtype`; norms and softmax are computed in float32."""

    name: str
    device: torch.device
    dtype: torch.dtype

    def load(self, tensor: StoredTensor, scale: torch.Tensor | None) -> Weight | Declined:
        """A matrix or a stack of them from a file, kept on the device.

        scale: what each matrix is multiplied with, float32 [number of matrices] on the CPU; None for 1.
        """
        ...

    def load_embedding(self, tensor: StoredTensor) -> Weight | Declined:
        """A matrix of which only single rows are used."""
        ...

    def rows(self, weight: Weight, ids: torch.Tensor) -> torch.Tensor | Declined:
        """Rows `ids` [n] of a matrix -> [n, n_in]: the embedding."""
        ...

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor | Declined:
        """x [n, n_in] -> x @ weight.T + bias, [n, n_out]."""
        ...

    def logits(self, x: torch.Tensor, norm: Norm, output: Linear) -> torch.Tensor | Declined:
        """x [n, n_embd] -> output(norm(x)), float32 [n, n_vocab]."""
        ...

    def experts(self, x: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor, moe: Moe) -> torch.Tensor | Declined:
        """The sum over each token's experts `ids` [n, n_used] of shares [n, n_used] times the expert's gated MLP."""
        ...

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor | Declined:
        """RMSNorm over the last dimension."""
        ...

    def rope(self, x: torch.Tensor, angles: Angles, pairing: RopePairing) -> torch.Tensor | Declined:
        """Rotates the first elements of each head: x [n, n_heads, head_dim], angles each [n, dim / 2]."""
        ...

    def glu(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor | Declined:
        """activation(gate) * up."""
        ...

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: LayerCache,
        batch: Batch,
        params: AttentionParams,
    ) -> torch.Tensor | Declined:
        """Writes k and v [n, n_kv_heads, head_dim] to the cache, then attends: q [n, n_heads, head_dim] -> same."""
        ...

    def layers(
        self,
        layers: Sequence[Layer],
        stream: Stream,
        angles: dict[int, Angles],
        caches: Sequence[LayerCache],
        batch: Batch,
    ) -> Stream | Declined:
        """The stream after layers that follow each other. angles: by the id of a layer's rope."""
        ...

    def attention_block(
        self, block: Attention, stream: Stream, following: Mlp | Moe, angles: Angles, cache: LayerCache, batch: Batch
    ) -> Stream | Declined:
        """The stream after the attention half of a layer, norms included. following: the half that comes next."""
        ...

    def mlp_block(self, block: Mlp | Moe, stream: Stream, following: Attention | None) -> Stream | Declined:
        """The stream after the MLP half of a layer, norms included. following: None where others take over."""
        ...

    def describe(self) -> list[str]:
        """Which kernels serve what: lines for --verbose."""
        ...


class Dispatch:
    """`Ops` over an ordered list of backends on one device.

    declined: how often each backend declined which operation and why, for --verbose.
    """

    def __init__(self, backends: Sequence[Ops]) -> None:
        self.backends = list(backends)
        self.name = " > ".join(b.name for b in self.backends)
        self.device, self.dtype = backends[-1].device, backends[-1].dtype
        self.declined: Counter[tuple[str, str, str]] = Counter()

    def _offer(self, operation: str, *args: Any) -> Any:
        """The first backend's result that is not Declined, or the last Declined."""
        result: Any = Declined("there is no backend")
        for i, backend in enumerate(self.backends):
            result = getattr(backend, operation)(*args)
            if not isinstance(result, Declined):
                return result
            if result.expected:
                continue
            key = (backend.name, operation, result.reason)
            self.declined[key] += 1
            if self.declined[key] == 1 and i + 1 < len(self.backends):
                slower = self.backends[i + 1].name
                warnings.warn(f"{backend.name} leaves {operation} to {slower}: {result.reason}", stacklevel=4)
        return result

    def _call(self, operation: str, *args: Any) -> Any:
        result = self._offer(operation, *args)
        if isinstance(result, Declined):
            tried = "; ".join(f"{b}: {why}" for b, op, why in self.declined if op == operation)
            shapes = ", ".join(f"{a.dtype} {list(a.shape)}" for a in args if isinstance(a, torch.Tensor))
            raise RuntimeError(f"no backend on {self.device} takes {operation}({shapes}): {tried}")
        return result

    def load(self, tensor: StoredTensor, scale: torch.Tensor | None = None) -> Weight:
        weight: Weight = self._call("load", tensor, scale)
        return weight

    def load_embedding(self, tensor: StoredTensor) -> Weight:
        weight: Weight = self._call("load_embedding", tensor)
        return weight

    def rows(self, weight: Weight, ids: torch.Tensor) -> torch.Tensor:
        return self._tensor("rows", weight, ids)

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self._tensor("linear", x, weight, bias)

    def logits(self, x: torch.Tensor, norm: Norm, output: Linear) -> torch.Tensor:
        return self._tensor("logits", x, norm, output)

    def experts(self, x: torch.Tensor, ids: torch.Tensor, shares: torch.Tensor, moe: Moe) -> torch.Tensor:
        return self._tensor("experts", x, ids, shares, moe)

    def norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self._tensor("norm", x, weight, eps)

    def rope(self, x: torch.Tensor, angles: Angles, pairing: RopePairing) -> torch.Tensor:
        return self._tensor("rope", x, angles, pairing)

    def glu(self, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        return self._tensor("glu", gate, up, activation)

    def attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: LayerCache,
        batch: Batch,
        params: AttentionParams,
    ) -> torch.Tensor:
        return self._tensor("attention", q, k, v, cache, batch, params)

    def layers(
        self,
        layers: Sequence[Layer],
        stream: Stream,
        angles: dict[int, Angles],
        caches: Sequence[LayerCache],
        batch: Batch,
    ) -> Stream:
        """In one piece where the first backend takes them so, else half by half."""
        result = self.backends[0].layers(layers, stream, angles, caches, batch)
        if not isinstance(result, Declined):
            return result
        for i, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
            turns = angles[id(layer.rope)]
            stream = self.attention_block(layer.attention, stream, layer.mlp, turns, cache, batch)
            following = layers[i + 1].attention if i + 1 < len(layers) else None
            stream = self.mlp_block(layer.mlp, stream, following)
        return stream

    def attention_block(
        self, block: Attention, stream: Stream, following: Mlp | Moe, angles: Angles, cache: LayerCache, batch: Batch
    ) -> Stream:
        result = self._offer("attention_block", block, stream, following, angles, cache, batch)
        if isinstance(result, Declined):
            return Stream(block.compose(self, stream.x, angles, cache, batch))
        after: Stream = result
        return after

    def mlp_block(self, block: Mlp | Moe, stream: Stream, following: Attention | None) -> Stream:
        result = self._offer("mlp_block", block, stream, following)
        if isinstance(result, Declined):
            return Stream(block.compose(self, stream.x))
        after: Stream = result
        return after

    def describe(self) -> list[str]:
        """Lines for --verbose: the backends in order, what each serves with what, and what was left to the next."""
        lines = [f"{self.device}: {line}" for backend in self.backends for line in backend.describe()]
        first = self.backends[:-1]
        left = [(op, why) for name, op, why in self.declined if any(b.name == name for b in first)]
        return lines + [f"{self.device}: {op} is left to {self.backends[-1].name}: {why}" for op, why in left]

    def _tensor(self, operation: str, *args: Any) -> torch.Tensor:
        result: torch.Tensor = self._call(operation, *args)
        return result
