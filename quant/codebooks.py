"""Tables from codes to weights. An entry is one integer that holds 2, 4 or 8 int8 weights.

Looking up one wide integer costs as much as looking up one byte, so the wider entry is the faster one.
Tables are built at first use and kept per device.
"""

from functools import lru_cache

import torch
from torch import Tensor

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the values of E2M1, which makes them integers.
E2M1_VALUES = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """int8 [n, k * weights per entry] for integers [n, k] that index the table."""
    entries = table.index_select(0, index.int().flatten())
    return entries.view(index.shape).view(torch.int8)


def lookup_nibbles(values: tuple[int, ...], codes: Tensor) -> Tensor:
    """int8 [n, k]: values[code] for uint8 codes [n, k] below 16, k even. Two in one look-up."""
    return lookup(_nibble_pairs(values, codes.device), codes.view(torch.int16))


@lru_cache
def _nibble_pairs(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int16 [0x0F10]: two values for two codes in the two bytes of an index."""
    pairs = [(values[i & 0x0F], values[i >> 8]) for i in range(0x0F10)]
    return _packed(torch.tensor(pairs), device)


@lru_cache
def bit_octets(zero: int, one: int, device: torch.device) -> Tensor:
    """int64 [256]: for a byte the value of each of its bits, lowest first."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return _packed(torch.where(bits == 1, one, zero), device)


@lru_cache
def crumb_quads(values: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 [256]: for a byte the values of its four 2-bit codes, lowest first."""
    crumbs = torch.arange(256).unsqueeze(1) >> torch.arange(0, 8, 2) & 3
    return _packed(torch.tensor(values)[crumbs], device)


@lru_cache
def even_signs(device: torch.device) -> Tensor:
    """int64 [128]: factors +-1 for the bits of a sign index and an eighth that makes the minuses even."""
    with_parity = [index | (index.bit_count() & 1) << 7 for index in range(128)]
    return bit_octets(1, -1, device)[torch.tensor(with_parity, device=device)]


@lru_cache
def grid(name: str, device: torch.device) -> Tensor:
    """The codebook of an IQ2 (int64) or IQ3 (int32) format, one entry per code."""
    return _packed(_grid_values(name), device)


@lru_cache
def ternary_grid(device: torch.device) -> Tensor:
    """int64 [4096]: the 2048 entries of IQ1 in eighths, with delta = 1/8 added, then with it subtracted."""
    eighths = 8 * _grid_values("IQ1_S")
    return _packed(torch.cat((eighths + 1, eighths - 1)), device)


def _grid_values(name: str) -> Tensor:
    """Integers [codes, weights per code]. The gguf package holds the codebooks."""
    import gguf.quants

    quant = getattr(gguf.quants, name)
    quant.init_grid()
    return torch.from_numpy(quant.grid).reshape(quant.grid_shape).to(torch.int8)


def _packed(values: Tensor, device: torch.device) -> Tensor:
    """Integers [entries, w] in int8's range as [entries] integers of w bytes."""
    wide = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.shape[1]]
    return values.to(torch.int8).contiguous().view(wide).flatten().to(device)
