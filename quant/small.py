"""Decoders of the 4-bit float formats MXFP4 and NVFP4 and of Q1_0, Q2_0, TQ1_0 and TQ2_0."""

import torch
from torch import Tensor

from . import formats
from .blocks import Quants, bit_planes, split
from .codebooks import E2M1_VALUES, bit_octets, crumb_quads, lookup, lookup_nibbles


def mxfp4(blocks: Tensor) -> Quants:
    """2^(e - 128) * doubled E2M1"""
    e, qs = split(blocks, formats.MXFP4)
    e = e.int()
    # Below 2 the scale is a denormal, the exponent one-hot in the mantissa.
    scale = torch.where(e < 2, (e + 1) << 21, (e - 1) << 23).view(torch.float32)
    return Quants(lookup_nibbles(E2M1_VALUES, bit_planes(qs, 4)), scale)


def nvfp4(blocks: Tensor) -> Quants:
    """half of UE4M3 * doubled E2M1"""
    d, qs = split(blocks, formats.NVFP4)
    codes = bit_planes(qs.unflatten(1, (4, 8)), 4)
    return Quants(lookup_nibbles(E2M1_VALUES, codes), _half_ue4m3(d))


def _half_ue4m3(code: Tensor) -> Tensor:
    """float32: half the value of uint8 UE4M3 codes (bias 7, no sign: bit 7 is ignored; 0x7F means 0)."""
    bits = code.int().bitwise_and_(0x7F)
    # The exponent moves from bias 7 to 127, less 1 for the half; a subnormal code is its mantissa.
    normal = ((bits << 20) + ((127 - 7 - 1) << 23)).view(torch.float32)
    value = torch.where(bits < 8, bits * 2.0**-10, normal)
    return value.masked_fill_(code == 0x7F, 0)


def q1_0(blocks: Tensor) -> Quants:
    """d where the bit is set, else -d"""
    d, qs = split(blocks, formats.Q1_0)
    return Quants(lookup(bit_octets(-1, 1, qs.device), qs), d)


def q2_0(blocks: Tensor) -> Quants:
    """d * (q - 1)"""
    d, qs = split(blocks, formats.Q2_0)
    return Quants(lookup(crumb_quads((-1, 0, 1, 2), qs.device), qs), d)


def tq1_0(blocks: Tensor) -> Quants:
    """d * (q - 1)"""
    qs, qh, d = split(blocks, formats.TQ1_0)
    digits = [_digit_tops(qs[:, :32], 5), _digit_tops(qs[:, 32:], 5), _digit_tops(qh, 4)]
    tops = torch.cat(digits, dim=1)
    # 3 * top / 256 rounded down is 0 up to 85, 1 up to 170, then 2.
    q = (tops > 85).view(torch.int8).add_((tops > 170).view(torch.int8))
    return Quants(q.sub_(1), d)


def _digit_tops(packed: Tensor, count: int) -> Tensor:
    """uint8 [n, w] to [n, count * w]: the base-3 fraction with digit 0, 1, .. on top (products wrap)."""
    packed = packed.contiguous()
    return torch.cat([packed * 3**digit for digit in range(count)], dim=1)


def tq2_0(blocks: Tensor) -> Quants:
    """d * (q - 1)"""
    qs, d = split(blocks, formats.TQ2_0)
    return Quants(bit_planes(qs.unflatten(1, (2, 32)), 2).view(torch.int8).sub_(1), d)
