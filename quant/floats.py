"""Formats without blocks: F32 F16 BF16 F64 and the integers."""

import torch
from torch import Tensor

from .blocks import STORED_AS, Quants, reinterpret
from .formats import BF16, F16, F32, Format

# Weights that are torch's own numbers.
FLOAT_DTYPES: dict[Format, torch.dtype] = {fmt: STORED_AS[fmt.fields[0].dtype] for fmt in (F32, F16, BF16)}


def plain(blocks: Tensor, fmt: Format) -> Quants:
    """The items as they are. A device that lacks float64 (MPS) cannot hold F64."""
    (value,) = fmt.fields
    return Quants(reinterpret(blocks, STORED_AS[value.dtype]))
