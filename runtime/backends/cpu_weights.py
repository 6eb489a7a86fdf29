"""Weights as the kernels for CPUs read them."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ...loaders.stored import StoredTensor
from ...quant.dequantize import dequantize
from ...quant.formats import Format
from ..cpu_kernels import Kernels
from ..cpu_kernels.language import LANES
from ..cpu_kernels.programs import Program
from ..cpu_kernels.rows import dense
from ..cpu_kernels.tiles import items, n_strips, pack_strips, strip_bytes, unpacked

# Decoded weights that torch multiplies with at a time.
WORKSPACE_BYTES = 64 * 2**20
# Huge pages are asked for from this size on.
HUGE_BYTES = 2**21


@dataclass(frozen=True, slots=True)
class TiledWeight:
    """A matrix, or a stack of them, as strips (cpu_kernels/tiles.py): uint8 [n_matrices * n_strips, strip bytes].

    scale: what each matrix is multiplied with, float32 [n_matrices], None for 1.
    """

    format: Format
    shape: tuple[int, ...]
    data: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def n_bytes(self) -> int:
        return self.data.nbytes

    @property
    def copied(self) -> bool:
        """Packing makes a copy."""
        return True

    @property
    def n_out(self) -> int:
        return self.shape[-2]

    @property
    def n_in(self) -> int:
        return self.shape[-1]

    @property
    def width(self) -> int:
        """n_out with the last strip filled up."""
        return n_strips(self.n_out) * LANES

    def expert(self, index: int) -> TiledWeight:
        strips = n_strips(self.n_out)
        scale = None if self.scale is None else self.scale[index : index + 1]
        return TiledWeight(self.format, self.shape[1:], self.data[index * strips : (index + 1) * strips], scale)

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        first = start // LANES
        strips = self.data[first : n_strips(stop)].numpy()
        rows = torch.from_numpy(unpacked(strips, self.format, self.n_in))[start - first * LANES :][: stop - start]
        if self.scale is None:
            return dequantize(rows, self.format, dtype=dtype)
        return (dequantize(rows, self.format) * self.scale).to(dtype)


def pack(tensor: StoredTensor, kernels: Kernels, scale: torch.Tensor | None = None) -> TiledWeight:
    """A tensor of a file, moved into strips by all threads."""
    fmt, shape = tensor.format, tensor.shape
    n_matrices = shape[0] if len(shape) == 3 else 1
    data = empty_bytes(n_matrices * n_strips(shape[-2]), strip_bytes(fmt, shape[-1]))
    table = np.array(items(fmt), np.int64)
    program = Program(kernels.compiler)
    program.add(
        pack_strips,
        source="source",
        target=data.data_ptr(),
        table=table.ctypes.data,
        n_fields=len(table),
        row_bytes=fmt.row_bytes(shape[-1]),
        n_rows=shape[-2],
        type_size=fmt.type_size,
        n_matrices=n_matrices,
    )
    # Just before they are used: a file that is cut short in between ends the process (TensorFile).
    stored = tensor.bytes()
    program.set(source=stored.data_ptr())
    kernels.run(program)
    return TiledWeight(fmt, shape, data, scale)


def decoded_product(x: torch.Tensor, weight: TiledWeight, dtype: torch.dtype, kernels: Kernels) -> torch.Tensor:
    """x W^T by torch, float32, with as many rows of W at a time as the workspace holds, decoded to dtype."""
    step = max(LANES, WORKSPACE_BYTES // (weight.n_in * dtype.itemsize) // LANES * LANES)
    decoded = torch.empty(min(step, weight.n_out), weight.n_in, dtype=dtype)
    y, x = torch.empty(len(x), weight.n_out), x.to(dtype)
    for start in range(0, weight.n_out, step):
        n_out = min(step, weight.n_out - start)
        program = Program(kernels.compiler)
        program.add(
            dense,
            weight.format.name,
            "F32" if dtype is torch.float32 else "BF16",
            weights=weight.data[start // LANES].data_ptr(),
            n_units=weight.n_in // weight.format.block_size,
            n_out=n_out,
            y=decoded.data_ptr(),
            y_stride=decoded.stride(0) * dtype.itemsize,
        )
        kernels.run(program)
        y[:, start : start + n_out] = F.linear(x, decoded[:n_out])
    return y if weight.scale is None else y.mul_(weight.scale)


def empty_bytes(n_rows: int, n_bytes: int) -> torch.Tensor:
    """uint8 [n_rows, n_bytes] of zeros from the system, in huge pages where it has some."""
    memory = mmap.mmap(-1, max(1, n_rows * n_bytes))
    if len(memory) >= HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)[: n_rows * n_bytes].view(n_rows, n_bytes)
