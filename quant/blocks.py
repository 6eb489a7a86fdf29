"""Taking blocks apart: fields, bit planes, packed words; and what a decoder makes of them.

Blocks are uint8 [n, type_size]. Every function works on whole chunks of blocks with few passes: bytes stay
bytes until the last moment, since a pass over bytes costs a fraction of one over floats.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .formats import FieldType, Format

# Unsigned words are read as signed ones of the same size, for which every backend has arithmetic.
STORED_AS: dict[FieldType, torch.dtype] = {
    "u8": torch.uint8,
    "i8": torch.int8,
    "u16": torch.int16,
    "i16": torch.int16,
    "u32": torch.int32,
    "i32": torch.int32,
    "i64": torch.int64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}


class Quants(NamedTuple):
    """Decoded blocks: weights are q * scale + offset, with float32 products and sums, each rounded once."""

    # [n, block_size]: int8 or uint8, or any type where q are the weights themselves and scale is None
    q: Tensor
    # float32 [n, k], one for each run of block_size / k weights
    scale: Tensor | None = None
    offset: Tensor | None = None


def split(blocks: Tensor, fmt: Format) -> list[Tensor]:
    """The fields of fmt in file order, each [n, count].

    Floats come as float32, u16 as int32 in 0..65535, u32 as the int32 of the same bits; the rest as it is.
    """
    columns = blocks.split([field.n_bytes for field in fmt.fields], dim=1)
    return [_typed(column, field.dtype) for column, field in zip(columns, fmt.fields, strict=True)]


def _typed(column: Tensor, dtype: FieldType) -> Tensor:
    values = reinterpret(column, STORED_AS[dtype])
    if values.is_floating_point():
        return values.float()
    return values.int().bitwise_and_(0xFFFF) if dtype == "u16" else values


def reinterpret(column: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [n, k] as items of dtype [n, k / itemsize], copied only where torch cannot view it."""
    if column.stride(1) != 1 or (column.storage_offset() | column.stride(0)) % dtype.itemsize:
        column = column.clone(memory_format=torch.contiguous_format)
    return column.view(dtype)


def bit_planes(packed: Tensor, width: int) -> Tensor:
    """uint8 [n, ..., w] to [n, -1]: of every w bytes all the lowest fields of width bits, then the next."""
    packed = packed.contiguous()  # short rows of a strided view are the slowest thing to work on
    mask, last = (1 << width) - 1, 8 - width
    middle = [(packed >> shift).bitwise_and_(mask) for shift in range(width, last, width)]
    return torch.stack([packed & mask, *middle, packed >> last], dim=-2).flatten(1)


def bit_fields(words: Tensor, width: int, count: int) -> Tensor:
    """Integers [n, k] to [n, k * count]: from every word count fields of width bits, lowest first."""
    shifts = torch.arange(0, width * count, width, dtype=words.dtype, device=words.device)
    return ((words.unsqueeze(-1) >> shifts) & ((1 << width) - 1)).flatten(1)
