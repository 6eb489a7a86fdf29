"""Random weights of every format, as a file holds them, made on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor

from naiad.quant.dequantize import dequantize
from naiad.quant.floats import FLOAT_DTYPES
from naiad.quant.formats import Field, Format

# What m or dmin of a block is, in units of d, where the quants' mean shall be 0.
OFFSETS = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
# Blocks that the size of a format's weights is measured with.
SAMPLE = 4096


def random_rows(fmt: Format, n_out: int, n_in: int, device: torch.device, seed: int = 0) -> Tensor:
    """uint8 [n_out, bytes per row] of a format: random bits, but scales that make every weight an ordinary number."""
    generator = torch.Generator(device).manual_seed(seed)
    if not fmt.is_quantized:
        return random_floats(fmt, (n_out, n_in), 0.02, generator)
    n_blocks = n_out * fmt.row_bytes(n_in) // fmt.type_size
    bits = partial(torch.randint, dtype=torch.uint8, generator=generator, device=device)
    blocks: Tensor = bits(0, 256, (n_blocks, fmt.type_size))
    for field, part in parts(fmt, blocks):
        if field.dtype == "f16":
            scale = torch.rand(n_blocks, field.count, generator=generator, device=device).add_(0.5).mul_(2.0**-11)
            part.copy_(scale.half().view(torch.uint8))
        elif (fmt.name, field.name) == ("MXFP4", "e"):
            part.copy_(bits(118, 124, part.shape))
        elif (fmt.name, field.name) == ("NVFP4", "d"):
            part.copy_(bits(0x18, 0x30, part.shape))
        elif (fmt.name, field.name) == ("IQ1_M", "scales"):
            part[:, 7] = part[:, 7] & 0x0F | 0x10  # the top nibble of the f16 that is spread over these bytes
    return blocks.view(n_out, -1)


def random_bytes(fmt: Format, sizes: tuple[int, ...], std: float, device: torch.device, seed: int) -> Tensor:
    """uint8 [bytes]: weights of mean 0 and standard deviation `std`, about where scales are coarse (MXFP4, NVFP4)."""
    generator = torch.Generator(device).manual_seed(seed)
    if not fmt.is_quantized:
        return random_floats(fmt, sizes, std, generator).view(-1)
    blocks = random_rows(fmt, math.prod(sizes[:-1]), sizes[-1], device, seed).view(-1, fmt.type_size)
    # Scales that differ as those of a real file do, by a factor of 3; 13 / 12 is their mean square.
    d = torch.rand(len(blocks), 1, generator=generator, device=device).add_(0.5)
    d.mul_(std / unit_size(fmt) / math.sqrt(13 / 12))
    if fmt.name not in OFFSETS:
        # Both signs: the quants' mean is not 0, that of -8 … 7 is -0.5.
        d.mul_(torch.randint(0, 2, d.shape, generator=generator, device=device).mul_(2).sub_(1))
    set_scales(fmt, blocks, d)
    return blocks.view(-1)


def random_floats(fmt: Format, sizes: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    """uint8 [..., bytes per row]."""
    values = torch.randn(sizes, generator=generator, device=generator.device)
    return values.mul_(std).to(FLOAT_DTYPES[fmt]).view(torch.uint8)


def parts(fmt: Format, blocks: Tensor) -> Iterator[tuple[Field, Tensor]]:
    """The fields of blocks, uint8 [blocks, bytes of a block]: views."""
    start = 0
    for field in fmt.fields:
        yield field, blocks[:, start : start + field.n_bytes]
        start += field.n_bytes


def set_scales(fmt: Format, blocks: Tensor, d: Tensor) -> None:
    """Gives blocks the scales d, float32 [blocks, 1], and minima in the middle of what their quants can be.

    Signs and digits that a field has no room for are lost. formats.py and kquants.py have the layouts.
    """
    offset = OFFSETS.get(fmt.name, 0.0)
    for field, part in parts(fmt, blocks):
        match fmt.name, field.name:
            case "MXFP4", "e":
                part.copy_(d.abs().log2().round() + 127)
            case "NVFP4", "d":
                part.copy_(d.abs().to(torch.float8_e4m3fn).view(torch.uint8))
            case "IQ1_M", "scales":
                nibbles = d.half().view(torch.int16) >> torch.arange(0, 16, 4, device=d.device)
                part[:, 1::2] = part[:, 1::2] % 16 + nibbles % 16 * 16
            case _, "d":
                part.copy_(d.half().view(torch.uint8))
            case _, "m" | "dmin":
                part.copy_((offset * d).half().view(torch.uint8))
            case "Q2_K", "scales":
                part.copy_(part % 16 * 17)
            case "Q4_K" | "Q5_K", "scales":
                # Minima equal to the scales.
                part[:, 4:8] = part[:, :4]
                part[:, 8:] = part[:, 8:] % 16 * 17


@lru_cache
def unit_size(fmt: Format) -> float:
    """The root mean square of random weights of a format with d = 1."""
    blocks = random_rows(fmt, SAMPLE, fmt.block_size, torch.device("cpu"))
    set_scales(fmt, blocks, torch.ones(SAMPLE, 1))
    return float(dequantize(blocks, fmt).double().square().mean().sqrt())
