"""Decoders of the 32-weight formats with one f16 scale per block: Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1."""

import torch
from torch import Tensor

from . import formats
from .blocks import Quants, bit_planes, split
from .codebooks import bit_octets, lookup


def q4_0(blocks: Tensor) -> Quants:
    """d * (q - 8)"""
    d, qs = split(blocks, formats.Q4_0)
    return Quants(bit_planes(qs, 4).view(torch.int8).sub_(8), d)


def q4_1(blocks: Tensor) -> Quants:
    """d * q + m"""
    d, m, qs = split(blocks, formats.Q4_1)
    return Quants(bit_planes(qs, 4), d, m)


def q5_0(blocks: Tensor) -> Quants:
    """d * (q - 16)"""
    d, qh, qs = split(blocks, formats.Q5_0)
    return Quants(_five_bits(qs, qh).sub_(16), d)


def q5_1(blocks: Tensor) -> Quants:
    """d * q + m"""
    d, m, qh, qs = split(blocks, formats.Q5_1)
    return Quants(_five_bits(qs, qh), d, m)


def q8_0(blocks: Tensor) -> Quants:
    """d * q"""
    d, qs = split(blocks, formats.Q8_0)
    return Quants(qs, d)


def q8_1(blocks: Tensor) -> Quants:
    """d * q"""
    d, _, qs = split(blocks, formats.Q8_1)
    return Quants(qs, d)


def _five_bits(qs: Tensor, qh: Tensor) -> Tensor:
    """int8 [n, 32] in 0..31 from low nibbles uint8 [n, 16] and a top bit per weight, uint8 [n, 4]."""
    low = bit_planes(qs, 4).view(torch.int8)
    return low.bitwise_or_(lookup(bit_octets(0, 16, qh.device), qh))
