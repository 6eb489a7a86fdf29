"""Hands a file's tensors to the model that is being built; notices what is missing, misshapen or left over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ..loaders.stored import ModelSource, StoredTensor
from ..quant.dequantize import dequantize
from .layers import Linear, Norm
from .ops import Dispatch, Weight

# Tensors of old converters that hold what is computed from the metadata anyway.
IGNORED_SUFFIXES = (".attn_rot_embd", ".rotary_emb.inv_freq", "rope.freqs", "rope_freqs.weight")


class TensorBook:
    """The tensors of a file, each taken by name with the shape that the configuration demands.

    progress is called with the number of bytes of every tensor that has been loaded.
    """

    def __init__(self, source: ModelSource, progress: Callable[[int], None]) -> None:
        self.source, self.progress = source, progress
        self.left = dict(source.tensors)

    def has(self, name: str) -> bool:
        return name in self.source.tensors

    def take(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        tensor = self.source.tensors.get(name)
        if tensor is None:
            raise ValueError(f"{self.source.name}: tensor {name!r} is missing")
        # Some writers give dimensions of 1 that others leave out: the same numbers in the same order.
        if tensor.shape != shape and without_ones(tensor.shape) != without_ones(shape):
            raise ValueError(
                f"{self.source.name}: tensor {name!r} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
        self.left.pop(name, None)
        return tensor if tensor.shape == shape else replace(tensor, shape=shape)

    def vector(self, name: str, n: int, device: torch.device) -> torch.Tensor:
        """A norm's or a bias's numbers, float32 [n]."""
        tensor = self.take(name, (n,))
        values = dequantize(tensor.bytes(), tensor.format).to(device)
        self.progress(tensor.n_bytes)
        return values

    def scale(self, name: str, n: int) -> torch.Tensor | None:
        """`name`.scale: what each of n matrices is multiplied with, float32 [n]; None where the file has none.

        Files in NVFP4 have them, and the scales of activations beside them, `name`.input_scale, which only products
        with activations in NVFP4 would need.
        """
        if self.has(f"{name}.input_scale"):
            self.take(f"{name}.input_scale", (n,))
        if not self.has(f"{name}.scale"):
            return None
        values = self.vector(f"{name}.scale", n, torch.device("cpu"))
        if not bool(values.isfinite().all()):
            raise ValueError(f"{self.source.name}: tensor '{name}.scale' must hold finite numbers")
        return values

    def weight(self, name: str, shape: tuple[int, ...], ops: Dispatch) -> Weight:
        tensor = self.take(name, shape)
        scale = self.scale(name.removesuffix(".weight"), shape[0] if len(shape) == 3 else 1)
        weight = ops.load(tensor, scale)
        self._loaded(tensor, weight)
        return weight

    def embedding(self, name: str, shape: tuple[int, int], ops: Dispatch) -> Weight:
        """A matrix of which only single rows are used."""
        tensor = self.take(name, shape)
        weight = ops.load_embedding(tensor)
        self._loaded(tensor, weight)
        return weight

    def _loaded(self, tensor: StoredTensor, weight: Weight) -> None:
        # Of a weight that was decoded or copied, the file's pages are not needed any more.
        if weight.copied:
            self.source.release(tensor)
        self.progress(tensor.n_bytes)

    def linear(self, name: str, n_out: int, n_in: int, ops: Dispatch) -> Linear:
        """`name`.weight and, where the file has them, `name`.scale and `name`.bias."""
        bias = self.vector(f"{name}.bias", n_out, ops.device) if self.has(f"{name}.bias") else None
        return Linear(self.weight(f"{name}.weight", (n_out, n_in), ops), bias)

    def norm(self, name: str, n: int, eps: float, ops: Dispatch) -> Norm:
        return Norm(self.vector(f"{name}.weight", n, ops.device), eps)

    def finish(self) -> None:
        """Raises ValueError if the file holds tensors that the model would silently do without."""
        left = [name for name in self.left if not name.endswith(IGNORED_SUFFIXES)]
        if left:
            shown = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
            raise ValueError(f"{self.source.name}: {len(left)} tensors are not part of this architecture: {shown}")


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the dimensions of 1 before its first other one, as ggml compares shapes."""
    first = next((i for i, n in enumerate(shape) if n != 1), len(shape))
    return shape[first:]
