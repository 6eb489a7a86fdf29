"""Decoders of the 256-weight formats with two-level scales: Q2_K .. Q6_K and Q8_K."""

import torch
from torch import Tensor

from . import formats
from .blocks import Quants, bit_planes, reinterpret, split


def q2_k(blocks: Tensor) -> Quants:
    """d * scale * q - dmin * min"""
    scales, qs, d, dmin = split(blocks, formats.Q2_K)
    return Quants(_crumbs(qs), d * (scales & 15), -dmin * (scales >> 4))


def q3_k(blocks: Tensor) -> Quants:
    """d * scale * (q - 4), where the top bit of q is in hmask"""
    hmask, qs, scales, d = split(blocks, formats.Q3_K)
    top = bit_planes(hmask, 1)
    q = _crumbs(qs).add_(top, alpha=4)
    return Quants(q.view(torch.int8).sub_(4), d * _q3_k_scales(scales))


def q4_k(blocks: Tensor) -> Quants:
    """d * scale * q - dmin * min"""
    d, dmin, scales, qs = split(blocks, formats.Q4_K)
    scale, minimum = _scales_and_minima(scales)
    return Quants(_nibbles(qs), d * scale, -dmin * minimum)


def q5_k(blocks: Tensor) -> Quants:
    """d * scale * q - dmin * min"""
    d, dmin, scales, qh, qs = split(blocks, formats.Q5_K)
    scale, minimum = _scales_and_minima(scales)
    top = bit_planes(qh, 1)
    q = _nibbles(qs).add_(top, alpha=16)
    return Quants(q, d * scale, -dmin * minimum)


def q6_k(blocks: Tensor) -> Quants:
    """d * scale * (q - 32)"""
    ql, qh, scales, d = split(blocks, formats.Q6_K)
    low = bit_planes(ql.unflatten(1, (2, 64)), 4)
    q = low.add_(_crumbs(qh), alpha=16)
    return Quants(q.view(torch.int8).sub_(32), d * scales)


def q8_k(blocks: Tensor) -> Quants:
    """d * q"""
    d, qs, _ = split(blocks, formats.Q8_K)
    return Quants(qs, d)


def _nibbles(qs: Tensor) -> Tensor:
    """uint8 [n, 128] to [n, 256]: 32 low nibbles, then the same bytes' high ones, four times."""
    return bit_planes(qs.unflatten(1, (4, 32)), 4)


def _crumbs(qs: Tensor) -> Tensor:
    """uint8 [n, 64] to [n, 256]: per 32 bytes their four 2-bit planes."""
    return bit_planes(qs.unflatten(1, (2, 32)), 2)


def _scales_and_minima(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima of 6 bits, uint8 [n, 8] each, from uint8 [n, 12].

    Read as words of four bytes: the first four scales, the first four minima (6 bits per byte), then the low
    nibbles of the other four scales and minima, whose top bits are the two spare bits of the first words.
    """
    a, b, c = reinterpret(scales.contiguous(), torch.int32).unbind(1)
    scale = (a & 0x3F3F3F3F, (c & 0x0F0F0F0F) | (a >> 2 & 0x30303030))
    minimum = (b & 0x3F3F3F3F, (c >> 4 & 0x0F0F0F0F) | (b >> 2 & 0x30303030))
    return torch.stack(scale, 1).view(torch.uint8), torch.stack(minimum, 1).view(torch.uint8)


def _q3_k_scales(scales: Tensor) -> Tensor:
    """Sixteen signed scales, int8 [n, 16], from uint8 [n, 12], four to a word as in _scales_and_minima."""
    a, b, top = reinterpret(scales.contiguous(), torch.int32).unbind(1)
    low = (a, b, a >> 4, b >> 4)
    words = [(low[i] & 0x0F0F0F0F) | (top >> 2 * i & 0x03030303) << 4 for i in range(4)]
    return torch.stack(words, 1).view(torch.int8).sub_(32)
