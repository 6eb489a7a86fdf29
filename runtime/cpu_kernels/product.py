"""y = x W^T for all formats: one loop over strips of weights and tiles of activations, with a decoder inside.

Weights are read once for `column_block` rows of x. A pass over a strip takes `k_units` blocks of it at a time, so that
it stays in the innermost cache while it is decoded again for the next `columns` rows of x, and these in the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...quant.formats import Format, format_by_name
from .atomics import next_task
from .decode import DECODERS, SPANNED, WORD_FIELDS
from .kernel import kernel_family
from .language import LANES, inline
from .records import RECORD
from .scalars import prefetch
from .sinks import DOT, add_sums, load_sums, multiply_floats, no_sums, rows_of, scale_sums, store_sums
from .spans import AHEAD
from .vectors import as_floats, load_floats, load_halves, load_shorts

FLOAT_LOADS = {
    "F32": load_floats,
    "F16": load_halves,
    "BF16": inline(lambda address: as_floats(load_shorts(address) << 16)),
}

SERVED = frozenset((*DECODERS, *FLOAT_LOADS))


def _unasked(fmt: Format) -> tuple[int, int]:
    """From where to where a tile is asked for as a whole: without what spans ask for (spans.py)."""
    if fmt.name not in SPANNED:
        return 0, LANES * fmt.type_size
    starts = {field.name: LANES * sum(f.n_bytes for f in fmt.fields[:i]) for i, field in enumerate(fmt.fields)}
    own = [field for field in fmt.fields if field.name not in WORD_FIELDS]
    # The scales of a block, or all that is beside its words: a cache line or a few.
    field = max(own, key=lambda field: field.n_bytes)
    return starts[field.name], starts[field.name] + LANES * field.n_bytes


def unit_product(format: str) -> tuple[int, int, Callable[..., Any]]:
    """What a unit of weights is: how far it goes in a row of x, its tile's bytes, and what multiplies it."""
    fmt = format_by_name(format)
    tile_bytes = LANES * fmt.type_size
    if fmt.is_quantized:
        step, decode = fmt.block_size // 32 * RECORD, DECODERS[format](DOT)
    else:
        step, load = 4, FLOAT_LOADS[format]

        @inline
        def decode(state, tile, at, to):
            return multiply_floats(state, at, to, load(tile))

    first, last = _unasked(fmt)

    @inline
    def multiply(state, tile, at, to):
        for line in range(first, last, 64):
            prefetch(tile + AHEAD + line)
        return decode(state, tile, at, to)

    return step, tile_bytes, multiply


@kernel_family
def product(format: str, columns: int, scaled: bool = False) -> Callable[..., None]:
    """Rows of y, float32, n_strips * 16 wide. x: records, or float32 for formats of plain numbers.

    add: rows that the products are added to (they may be y's own), 0 for none. bias: a vector, 0 for none. scale: a
    vector that the products are multiplied with, of kernels that are `scaled`. Tasks are
    `chunk` strips for a block of columns.
    """
    step, tile_bytes, multiply = unit_product(format)

    def product(
        x,
        x_stride,
        n_rows,
        weights,
        n_units,
        n_strips,
        y,
        y_stride,
        add,
        add_stride,
        bias,
        scale,
        k_units,
        column_block,
        chunk,
        counter,
        thread,
        n_threads,
    ):
        n_chunks = (n_strips + chunk - 1) // chunk
        n_blocks = (n_rows + column_block - 1) // column_block
        while True:
            task = next_task(counter)
            if task >= n_chunks * n_blocks:
                return
            first_strip, first_row = task % n_chunks * chunk, task // n_chunks * column_block
            last_strip, last_row = min(first_strip + chunk, n_strips), min(first_row + column_block, n_rows)
            for first_unit in range(0, n_units, k_units):
                last_unit = min(first_unit + k_units, n_units)
                for strip in range(first_strip, last_strip):
                    for row in range(first_row, last_row, columns):
                        place = 64 * strip
                        to = rows_of(x, x_stride, row, last_row, columns)
                        out = rows_of(y, y_stride, row, last_row, columns)
                        if first_unit != 0:
                            sums = load_sums(out, place)
                        elif add != 0:
                            sums = load_sums(rows_of(add, add_stride, row, last_row, columns), place)
                        else:
                            sums = no_sums(columns)
                        if first_unit == 0 and bias != 0:
                            sums = add_sums(sums, load_floats(bias + place))
                        begin = sums
                        if scaled:
                            sums = no_sums(columns)
                        tile = weights + (strip * n_units + first_unit) * tile_bytes
                        at = first_unit * step
                        for _ in range(first_unit, last_unit):
                            sums = multiply(sums, tile, at, to)
                            tile += tile_bytes
                            at += step
                        if scaled:
                            sums = scale_sums(sums, load_floats(scale + place), begin)
                        store_sums(sums, out, place)

    return product
