"""Decoders of the codebook formats: IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS."""

import torch
from torch import Tensor

from . import formats
from .blocks import Quants, bit_fields, bit_planes, reinterpret, split
from .codebooks import (
    IQ4_VALUES,
    bit_octets,
    even_signs,
    grid,
    lookup,
    lookup_nibbles,
    ternary_grid,
)


def iq1_s(blocks: Tensor) -> Quants:
    """d * (2 s + 1) * (grid +- 1/8)"""
    d, qs, qh = split(blocks, formats.IQ1_S)
    # Bit 15 selects the table's second half, where delta is subtracted.
    half = (qh >> 15 << 11).repeat_interleave(4, dim=1)
    return _ternary(qs | bit_fields(qh, 3, 4) << 8 | half, d, qh >> 12 & 7)


def iq1_m(blocks: Tensor) -> Quants:
    """d * (2 s + 1) * (grid +- 1/8)"""
    qs, qh, scales = split(blocks, formats.IQ1_M)
    # The fourth bit of a nibble of qh, delta's sign, lands on the table's bit 11.
    code = qs | _nibble_fields(qh) << 8
    # The top nibbles of the four words, lowest first, are the f16 scale.
    tops = (scales >> 12).unbind(1)
    d = tops[0] | tops[1] << 4 | tops[2] << 8 | tops[3] << 12
    d = d.to(torch.int16).view(torch.float16).float().unsqueeze(1)
    return _ternary(code, d, bit_fields(scales, 3, 4))


def _ternary(code: Tensor, d: Tensor, scale: Tensor) -> Quants:
    # The table holds eighths: an exact factor, since an f16's smallest value is far from float32's.
    return Quants(lookup(ternary_grid(code.device), code), d * (2 * scale + 1) * 0.125)


def iq2_xxs(blocks: Tensor) -> Quants:
    """d * (1/2 + s) / 4 * sign * grid"""
    d, qs = split(blocks, formats.IQ2_XXS)
    codes, signs_scales = qs.unflatten(1, (8, 2)).unbind(2)
    signs, scale = _signs_and_scale(signs_scales)
    q = lookup(grid("IQ2_XXS", qs.device), bit_fields(codes, 8, 4))
    return Quants(q.mul_(signs), d * (0.5 + scale) * 0.25)


def iq2_xs(blocks: Tensor) -> Quants:
    """d * (1/2 + s) / 4 * sign * grid"""
    d, qs, scales = split(blocks, formats.IQ2_XS)
    q = lookup(grid("IQ2_XS", qs.device), qs & 511)
    q.mul_(lookup(even_signs(qs.device), qs >> 9))
    return Quants(q, d * (0.5 + _nibble_fields(scales)) * 0.25)


def iq2_s(blocks: Tensor) -> Quants:
    """d * (1/2 + s) / 4 * sign * grid"""
    d, qs, signs, qh, scales = split(blocks, formats.IQ2_S)
    code = qs | bit_fields(reinterpret(qh, torch.int32), 2, 16) << 8
    q = lookup(grid("IQ2_S", qs.device), code)
    q.mul_(lookup(bit_octets(1, -1, qs.device), signs))
    return Quants(q, d * (0.5 + _nibble_fields(scales)) * 0.25)


def iq3_xxs(blocks: Tensor) -> Quants:
    """d * (1/2 + s) / 2 * sign * grid"""
    d, qs, signs_scales = split(blocks, formats.IQ3_XXS)
    signs, scale = _signs_and_scale(signs_scales)
    q = lookup(grid("IQ3_XXS", qs.device), qs)
    return Quants(q.mul_(signs), d * (0.5 + scale) * 0.5)


def iq3_s(blocks: Tensor) -> Quants:
    """d * (2 s + 1) * sign * grid"""
    d, qs, qh, signs, scales = split(blocks, formats.IQ3_S)
    code = qs | bit_fields(reinterpret(qh, torch.int32), 1, 32) << 8
    q = lookup(grid("IQ3_S", qs.device), code)
    q.mul_(lookup(bit_octets(1, -1, qs.device), signs))
    return Quants(q, d * (2 * _nibble_fields(scales) + 1))


def iq4_nl(blocks: Tensor) -> Quants:
    """d * table[q]"""
    d, qs = split(blocks, formats.IQ4_NL)
    return Quants(lookup_nibbles(IQ4_VALUES, bit_planes(qs, 4)), d)


def iq4_xs(blocks: Tensor) -> Quants:
    """d * scale * table[q]"""
    d, scales_h, scales_l, qs = split(blocks, formats.IQ4_XS)
    scale = _nibble_fields(scales_l) | bit_fields(scales_h, 2, 8) << 4
    codes = bit_planes(qs.unflatten(1, (8, 16)), 4)
    return Quants(lookup_nibbles(IQ4_VALUES, codes), d * (scale - 32))


def _nibble_fields(packed: Tensor) -> Tensor:
    """int32 [n, 2 k]: the nibbles of uint8 [n, k], low before high; k is a multiple of 4."""
    return bit_fields(reinterpret(packed, torch.int32), 4, 8)


def _signs_and_scale(words: Tensor) -> tuple[Tensor, Tensor]:
    """From words [n, 8]: factors +-1, int8 [n, 256], and the scales of the groups of 32, int32 [n, 8]."""
    signs = lookup(even_signs(words.device), bit_fields(words, 7, 4))
    return signs, words >> 28 & 15
