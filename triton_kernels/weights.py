"""A matrix, or a stack of them, packed for the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..quant.formats import Format
from . import codebooks, packing
from .decode import DECODERS
from .grid import cdiv
from .rows import rows_kernel
from .tuning import arch_of, isa, warp_size


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """[n_out, n_in], or a stack [n_experts, n_out, n_in]; data: uint8 [..., packed bytes] (packing.py)."""

    format: Format
    shape: tuple[int, ...]
    data: Tensor

    @classmethod
    def pack(cls, data: Tensor, fmt: Format, shape: tuple[int, ...], factors: Tensor | None = None) -> PackedWeight:
        """From rows as a file has them, uint8 [..., n_out, bytes per row], on the device where they shall stay.

        factors: what each matrix is multiplied with (packing.pack).
        ValueError where the format has no kernel, or data are not the rows of such a shape.
        """
        if fmt.id not in DECODERS:
            raise ValueError(f"no kernel decodes {fmt.name}")
        if data.shape[:-1] != shape[:-1]:
            raise ValueError(f"expected rows of shape {shape[:-1]}, found {tuple(data.shape[:-1])}")
        return cls(fmt, shape, packing.pack(data, fmt, shape[-1], factors))

    @property
    def copied(self) -> bool:
        """Packing makes a copy."""
        return True

    @property
    def n_bytes(self) -> int:
        """Memory taken on the device."""
        return self.data.nbytes

    @property
    def words(self) -> Tensor:
        """The packed bytes as the kernels take them, int32."""
        return self.data.view(torch.int32)

    def expert(self, index: int) -> PackedWeight:
        """One matrix of a stack."""
        return PackedWeight(self.format, self.shape[1:], self.data[index])

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows [start, stop) of a matrix as numbers."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"expected rows within 0 … {self.shape[0]}, found [{start}, {stop})")
        return self._decode(None, start, torch.empty(stop - start, self.shape[1], dtype=dtype, device=self.data.device))

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows `ids` [n], integers on the device, as numbers [n, n_in]. An id outside the matrix gives zeros."""
        if ids.dim() != 1 or ids.dtype not in (torch.int32, torch.int64) or ids.device != self.data.device:
            expected = f"int32 or int64 [n] on {self.data.device}"
            raise ValueError(f"expected ids {expected}, found {ids.dtype} {list(ids.shape)} on {ids.device}")
        out = torch.empty(len(ids), self.shape[1], dtype=dtype, device=self.data.device)
        return self._decode(ids.contiguous(), 0, out)

    def dense_into(self, start: int, out: Tensor) -> Tensor:
        """Rows from `start` on, as many as out [n, n_in] has, contiguous; returns out."""
        assert out.is_contiguous() and out.shape[1] == self.shape[1] and start + len(out) <= self.shape[0]
        return self._decode(None, start, out)

    def _decode(self, ids: Tensor | None, first: int, out: Tensor) -> Tensor:
        if len(self.shape) != 2:
            raise ValueError(f"expected a matrix, found a stack of shape {self.shape}")
        n_out, n_in = self.shape
        device = self.data.device
        arch = arch_of(device)
        n_units = packing.units(n_in)
        if len(out):
            rows_kernel[cdiv(len(out), warp_size(arch)), n_units](
                out,
                self.words,
                codebooks.table(device),
                ids,
                first,
                len(out),
                n_out,
                n_in,
                n_units,
                DECODE=DECODERS[self.format.id],
                R=warp_size(arch),  # a row per lane
                ISA=isa(arch),
                num_warps=1,
                enable_fp_fusion=True,
            )
        return out
