"""Decoder of the formats without blocks: F32 F16 BF16 F64 and the integers."""

from torch import Tensor

from .blocks import STORED_AS, Quants, reinterpret
from .formats import Format


def plain(blocks: Tensor, fmt: Format) -> Quants:
    """The items as they are. A device that lacks float64 (MPS) cannot hold F64."""
    (value,) = fmt.fields
    return Quants(reinterpret(blocks, STORED_AS[value.dtype]))
