"""Weights as the kernels read them: the file's bits, transposed into aligned planes.

A unit is 256 weights of a row: one block of the 256-weight formats, several of the others; a row that ends inside a
unit is filled up with zero bytes. The bytes of a unit are cut into pieces of 16, 8, 4 and 2 bytes, and the same piece
of all units of a matrix forms a plane:

    [plane][unit of the row][row][bytes of the piece]        wide planes first

A lane that decodes one unit loads its pieces at full width, and the lanes beside it, which decode the same unit of the
next rows, load the bytes next to them. No bit is added. Some are put in another order (`_RULES`), so that one shift
and one mask put four neighbouring weights into the four bytes of a word; and some are flipped, so that biased
integers become signed ones.

Behind the planes of a matrix in NVFP4 lies its factor, a float32 with 12 bytes to fill up: the format's scales alone do
not say how large weights are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..quant import formats
from ..quant.formats import Format

UNIT = 256
PIECES = (16, 8, 4, 2)
# Rows are packed a part at a time, so that the copies on the way stay small.
CHUNK_BYTES = 64 * 2**20
# Formats whose decoders multiply with a factor of the matrix, and the bytes that it takes.
FACTORED = frozenset((formats.NVFP4,))
FACTOR_BYTES = 16
# Kernels count words of four bytes in int32.
MAX_BYTES = 2**33


@dataclass(frozen=True, slots=True)
class Plane:
    """Bytes [start, start + width) of every unit, `at` bytes after the beginning of the unit's planes."""

    start: int
    width: int
    at: int


@lru_cache
def planes(fmt: Format) -> tuple[Plane, ...]:
    """How the bytes of a unit are cut up, in the order of the planes.

    Fields of 16 bytes and more are cut on their own, runs of shorter ones together, the widest piece first.
    """
    runs: list[int] = []
    joined = False
    for field in fmt.fields:
        n_bytes = field.n_bytes * blocks_per_unit(fmt)
        if joined and n_bytes < 16 and blocks_per_unit(fmt) == 1:
            runs[-1] += n_bytes
        else:
            runs.append(n_bytes)
        joined = n_bytes < 16
    cuts: list[tuple[int, int]] = []
    start = 0
    for run in runs:
        end = start + run
        for width in PIECES:
            while end - start >= width:
                cuts.append((start, width))
                start += width
        assert start == end, f"{fmt.name}: an odd number of bytes"
    result: list[Plane] = []
    at = 0
    for begin, width in sorted(cuts, key=lambda cut: -cut[1]):
        result.append(Plane(begin, width, at))
        at += width
    return tuple(result)


def blocks_per_unit(fmt: Format) -> int:
    return max(1, UNIT // fmt.block_size)


def unit_bytes(fmt: Format) -> int:
    """Bytes of a unit, the same as in the file."""
    return blocks_per_unit(fmt) * fmt.type_size


def factor_bytes(fmt: Format) -> int:
    """Bytes behind the units of a matrix."""
    return FACTOR_BYTES if fmt in FACTORED else 0


def units(n_in: int) -> int:
    """Units of a row of n_in weights."""
    return -(-n_in // UNIT)


def packed_bytes(fmt: Format, n_out: int, n_in: int) -> int:
    """Bytes of a packed matrix, a multiple of 16. ValueError where n_in is no whole number of blocks."""
    fmt.row_bytes(n_in)
    n_bytes = -(-units(n_in) * n_out * unit_bytes(fmt) // 16) * 16 + factor_bytes(fmt)
    if n_bytes >= MAX_BYTES:
        raise ValueError(
            f"a {fmt.name} matrix of {n_out} x {n_in} takes {n_bytes} bytes, which is not below {MAX_BYTES}"
        )
    return n_bytes


def pack(data: Tensor, fmt: Format, n_in: int, factors: Tensor | None = None) -> Tensor:
    """Rows of blocks, uint8 [..., n_out, bytes per row], as planes: uint8 [..., packed bytes].

    factors: what each matrix is multiplied with, float32, 1 by default; only for a format of FACTORED. ValueError where
    the rows are not those of n_in weights in fmt.
    """
    if data.dtype != torch.uint8 or data.dim() < 2 or data.shape[-1] != fmt.row_bytes(n_in):
        expected = f"uint8 [..., n_out, {fmt.row_bytes(n_in)}] for {n_in} weights of {fmt.name} per row"
        raise ValueError(f"expected {expected}, found {data.dtype} {list(data.shape)}")
    n_out = data.shape[-2]
    packed = torch.zeros(*data.shape[:-2], packed_bytes(fmt, n_out, n_in), dtype=torch.uint8, device=data.device)
    for matrix, target in zip(
        data.reshape(-1, *data.shape[-2:]).unbind(), packed.view(-1, packed.shape[-1]).unbind(), strict=True
    ):
        _pack_matrix(matrix, target, fmt, units(n_in))
    if fmt in FACTORED:
        place = packed[..., -FACTOR_BYTES:].view(torch.float32)[..., 0]
        place.copy_(torch.ones_like(place) if factors is None else factors.view(place.shape))
    else:
        assert factors is None, f"{fmt.name} has no factor"
    return packed


def _pack_matrix(rows: Tensor, target: Tensor, fmt: Format, n_units: int) -> None:
    n_out, step = len(rows), max(1, CHUNK_BYTES // (n_units * unit_bytes(fmt)))
    for start in range(0, n_out, step):
        chunk = _unit_rows(rows[start : start + step], fmt, n_units)
        for plane in planes(fmt):
            begin = plane.at * n_units * n_out
            view = target[begin : begin + plane.width * n_units * n_out].view(n_units, n_out, plane.width)
            piece = chunk[:, :, plane.start : plane.start + plane.width]
            view[:, start : start + step] = piece.transpose(0, 1)


def _unit_rows(rows: Tensor, fmt: Format, n_units: int) -> Tensor:
    """uint8 [n, n_units, bytes of a unit]: of every unit the fields one after the other, reordered by the rules."""
    n, count = len(rows), blocks_per_unit(fmt)
    padded = torch.nn.functional.pad(rows, (0, n_units * unit_bytes(fmt) - rows.shape[1]))
    blocks = padded.view(n, n_units, count, fmt.type_size)
    parts = blocks.split([field.n_bytes for field in fmt.fields], dim=3)
    rules = _RULES.get(fmt.id, {})
    fields = []
    for field, part in zip(fmt.fields, parts, strict=True):
        flat = part.flatten(2)
        fields.append(rules[field.name](flat) if field.name in rules else flat)
    return torch.cat(fields, dim=2)


Rule = Callable[[Tensor], Tensor]


def _bits(packed: Tensor) -> Tensor:
    """From bit e % 8 of byte e / 8 to bit e / 32 of byte e % 32, as Q5_K has it; e is a weight of the unit."""
    return _join(_split(packed, 1).unflatten(2, (8, 32)).transpose(2, 3), 1)


def _crumbs(packed: Tensor) -> Tensor:
    """From bits 2 (e % 4) of byte e / 4 to bits 2 (e % 128 / 32) of byte 32 (e / 128) + e % 32, as Q2_K has it."""
    return _join(_split(packed, 2).unflatten(2, (2, 4, 32)).transpose(3, 4), 2)


def _nibble_runs(packed: Tensor) -> Tensor:
    """From nibbles j and j + 16 of 32 in byte j to words of four low and four high ones: what `prmt` indexes with."""
    return _runs(packed, 16)


def _short_nibble_runs(packed: Tensor) -> Tensor:
    """The same from NVFP4, where byte j holds nibbles j and j + 8 of 16."""
    return _runs(packed, 8)


def _runs(packed: Tensor, distance: int) -> Tensor:
    nibbles = _split(packed, 4).unflatten(2, (-1, distance, 2)).transpose(3, 4)
    halves = nibbles.reshape(*packed.shape[:2], -1, 2, 4, 4)  # group, half, word, nibble
    return _join(halves.transpose(3, 4).flatten(3).unflatten(3, (-1, 2)), 4)


def _split(packed: Tensor, width: int) -> Tensor:
    """uint8 [n, m, k] to [n, m, k * 8 / width]: every byte's fields of width bits, lowest first."""
    shifts = torch.arange(0, 8, width, device=packed.device, dtype=torch.uint8)
    return (packed.unsqueeze(-1) >> shifts & (1 << width) - 1).flatten(2)


def _join(fields: Tensor, width: int) -> Tensor:
    """The reverse of _split over the last dimension, flattened to [n, m, -1]."""
    shifts = torch.arange(0, 8, width, device=fields.device, dtype=torch.uint8)
    return (fields << shifts).sum(-1, dtype=torch.uint8).flatten(2)


def _flip(mask: int, rule: Rule | None = None) -> Rule:
    """Flips the bits of mask in every byte, after another rule."""
    return lambda packed: (rule(packed) if rule else packed) ^ mask


# By format id and field. A flipped top bit turns q, which stands for q - 2^(bits - 1), into two's complement.
_RULES: dict[int, dict[str, Rule]] = {
    formats.Q4_0.id: {"qs": _flip(0x88)},
    formats.Q5_0.id: {"qh": _flip(0xFF, _bits)},
    formats.Q5_1.id: {"qh": _bits},
    formats.Q3_K.id: {"hmask": _flip(0xFF)},
    formats.Q6_K.id: {"qh": _flip(0xAA)},
    formats.Q1_0.id: {"qs": _bits},
    formats.Q2_0.id: {"qs": _crumbs},
    formats.IQ4_NL.id: {"qs": _nibble_runs},
    formats.IQ4_XS.id: {"qs": _nibble_runs},
    formats.MXFP4.id: {"qs": _nibble_runs},
    formats.NVFP4.id: {"qs": _short_nibble_runs},
}
