"""How weights lie in memory for the kernels: 16 rows side by side.

A strip is 16 rows of a matrix, block by block along the rows; where the file has the fields of one row's block, a tile
has those of 16 rows. Within a field, items of 4 bytes (2 or 1 where its size is no multiple) take turns:

    file    row 0:  d qs0 qs1 … | d qs0 …      tile    d of rows 0 … 15, qs0 of rows 0 … 15, qs1 of rows 0 … 15, …

so that one vector holds the same four bytes of 16 rows, and a thread reads memory from one end to the other. The last
strip is filled up with zeros.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from ...quant.formats import Format
from .atomics import next_task
from .kernel import kernel
from .language import LANES
from .scalars import load_byte, load_int, load_int32, load_short, store_byte, store_int32, store_short


def n_strips(n_out: int) -> int:
    """Strips that n_out rows take."""
    return -(-n_out // LANES)


def strip_bytes(fmt: Format, n_in: int) -> int:
    """Bytes of a strip of rows of n_in weights."""
    return LANES * fmt.row_bytes(n_in)


@cache
def items(fmt: Format) -> tuple[tuple[int, int, int], ...]:
    """(offset in a block, number of items, bytes of an item) of every field."""
    found, offset = [], 0
    for field in fmt.fields:
        # Signed scales are widened while they are loaded, a byte of each row.
        wide = (1,) if field.dtype == "i8" and field.count < fmt.block_size else (4, 2, 1)
        size = next(size for size in wide if field.n_bytes % size == 0)
        found.append((offset, field.n_bytes // size, size))
        offset += field.n_bytes
    return tuple(found)


@kernel
def pack_strips(source, target, table, n_fields, row_bytes, n_rows, type_size, n_matrices, counter, thread, n_threads):
    """Rows as they are in a file to strips, for a stack of matrices of n_rows rows; `table` is `items`."""
    strips = (n_rows + 15) // 16
    n_blocks = row_bytes // type_size
    while True:
        task = next_task(counter)
        if task >= strips * n_matrices:
            return
        matrix, strip = task // strips, task % strips
        here = source + (matrix * n_rows + 16 * strip) * row_bytes
        there = target + task * 16 * row_bytes
        rows = min(16, n_rows - 16 * strip)
        for _ in range(n_blocks):
            for f in range(n_fields):
                offset = load_int(table + 24 * f)
                n, size = load_int(table + 24 * f + 8), load_int(table + 24 * f + 16)
                for row in range(rows):
                    out, at = there + 16 * offset + row * size, here + row * row_bytes + offset
                    if size == 4:
                        for i in range(n):
                            store_int32(out + 64 * i, load_int32(at + 4 * i))
                    elif size == 2:
                        for i in range(n):
                            store_short(out + 32 * i, load_short(at + 2 * i))
                    else:
                        for i in range(n * size):
                            store_byte(out + 16 * size * (i // size) + i % size, load_byte(at + i))
            here += type_size
            there += 16 * type_size


def unpacked(strips: npt.NDArray[np.uint8], fmt: Format, n_in: int) -> npt.NDArray[np.uint8]:
    """Strips [n, strip bytes] as rows of a file again, [16 n, row bytes]."""
    n, n_blocks = len(strips), n_in // fmt.block_size
    tiles = strips.reshape(n, n_blocks, LANES * fmt.type_size)
    fields = []
    for offset, count, size in items(fmt):
        part = tiles[:, :, LANES * offset : LANES * (offset + count * size)]
        fields.append(
            part.reshape(n, n_blocks, count, LANES, size).transpose(0, 3, 1, 2, 4).reshape(n, LANES, n_blocks, -1)
        )
    return np.concatenate(fields, axis=-1).reshape(n * LANES, -1)
