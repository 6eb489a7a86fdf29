"""Strips of packed weights (tiles.py) as numbers: single rows, for token embeddings, or all of them, for torch.mm.

Both decode 256 weights of 16 rows at a time, into memory that stays in the innermost cache: one vector for a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
from numba import types

from ...quant.formats import format_by_name
from .atomics import next_task
from .decode import DECODERS
from .kernel import kernel_family
from .language import BITS, FLOATS, I64, INTS, LANES, const, inline, load, op, store
from .product import FLOAT_LOADS
from .scalars import load_float, load_int, load_int32, load_short, scratch, store_float, store_int32, store_short
from .sinks import STORE
from .vectors import store_floats

# Weights of a row that are decoded at a time, which is the largest block; bytes of a vector, of 16, of them all.
PIECE, VECTOR = 256, 4 * LANES
SQUARE_BYTES, PIECE_BYTES = LANES * VECTOR, PIECE * VECTOR
ITEM_BYTES = {"F32": 4, "BF16": 2}


def _decoder_of_units(format: str) -> tuple[int, int, Callable[..., Any]]:
    """Weights of a unit, bytes of its tile, and a function that stores n units from `tile` on as vectors at `out`."""
    fmt = format_by_name(format)
    size, tile_bytes = fmt.block_size, LANES * fmt.type_size
    if fmt.is_quantized:
        decode = DECODERS[format](STORE)
    else:
        numbers = FLOAT_LOADS[format]

        @inline
        def decode(state, tile, at, to):
            store_floats(to[0], numbers(tile))
            return state

    @inline
    def decode_units(tile, n, out):
        for _ in range(n):
            decode(0, tile, 0, (out, VECTOR))
            tile += tile_bytes
            out += VECTOR * size

    return size, tile_bytes, decode_units


@kernel_family
def rows(format: str) -> Callable[..., None]:
    """Rows `ids` (int64 [n]) of a matrix of n_units blocks a row, as float32; y_stride in bytes."""
    size, tile_bytes, decode_units = _decoder_of_units(format)
    units = PIECE // size

    def rows(ids, n, weights, n_units, y, y_stride, counter, thread, n_threads):
        numbers = scratch(PIECE_BYTES)
        pieces = (n_units + units - 1) // units
        while True:
            task = next_task(counter)
            if task >= n * pieces:
                return
            row, first = task // pieces, task % pieces * units
            n_here = min(units, n_units - first)
            id = load_int(ids + 8 * row)
            decode_units(weights + ((id >> 4) * n_units + first) * tile_bytes, n_here, numbers)
            source, target = numbers + 4 * (id & 15), y + row * y_stride + 4 * size * first
            for k in range(n_here * size):
                store_float(target + 4 * k, load_float(source + VECTOR * k))

    return rows


def _transposed(b: ir.IRBuilder, vectors: list[ir.Value]) -> list[ir.Value]:
    """16 vectors of a square, the other way round: each step exchanges one bit of a lane's and a vector's number."""
    for bit in (1, 2, 4, 8):
        first = ir.Constant(INTS, [LANES + i - bit if i & bit else i for i in range(LANES)])
        second = ir.Constant(INTS, [LANES + i if i & bit else i + bit for i in range(LANES)])
        for i in range(LANES):
            if not i & bit:
                pair = vectors[i], vectors[i | bit]
                vectors[i], vectors[i | bit] = b.shuffle_vector(*pair, first), b.shuffle_vector(*pair, second)
    return vectors


def _brain_floats(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The high halves of float32, rounded to nearest, halves to even."""
    bits = b.bitcast(value, INTS)
    odd = b.and_(b.lshr(bits, const(INTS, 16)), const(INTS, 1))
    rounded = b.add(bits, b.add(odd, const(INTS, 0x7FFF)))
    return b.trunc(b.lshr(rounded, const(INTS, 16)), ir.VectorType(BITS[16], LANES))


def _square_to_rows(convert: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Any:
    """An operation that stores 16 vectors as the first n_rows of 16 rows."""

    @op(types.void, types.intp, types.intp, types.intp, types.int64)
    def store_square(b: ir.IRBuilder, source: ir.Value, target: ir.Value, stride: ir.Value, n_rows: ir.Value) -> None:
        vectors = [load(b, b.add(source, I64(VECTOR * i)), FLOATS) for i in range(LANES)]
        last = b.sub(n_rows, I64(1))
        # Rows behind the last one go where that one will be written in the end.
        for i, vector in reversed(list(enumerate(_transposed(b, vectors)))):
            row = b.select(b.icmp_signed("<", I64(i), last), I64(i), last)
            store(b, convert(b, vector), b.add(target, b.mul(row, stride)))

    return store_square


SQUARES = {"F32": _square_to_rows(lambda b, value: value), "BF16": _square_to_rows(_brain_floats)}


@kernel_family
def dense(format: str, output: str) -> Callable[..., None]:
    """n_out rows of n_units blocks, row after row in format `output` ("F32", "BF16"); y_stride in bytes."""
    size, tile_bytes, decode_units = _decoder_of_units(format)
    units, item, store_square = PIECE // size, ITEM_BYTES[output], SQUARES[output]

    def dense(weights, n_units, n_out, y, y_stride, counter, thread, n_threads):
        numbers, rest = scratch(PIECE_BYTES), scratch(SQUARE_BYTES)
        pieces = (n_units + units - 1) // units
        while True:
            task = next_task(counter)
            if task >= (n_out + 15) // 16 * pieces:
                return
            strip, first = task // pieces, task % pieces * units
            n_here, n_rows = min(units, n_units - first), min(16, n_out - 16 * strip)
            decode_units(weights + (strip * n_units + first) * tile_bytes, n_here, numbers)
            target = y + 16 * strip * y_stride + item * size * first
            n = n_here * size
            for k in range(0, n - 15, 16):
                store_square(numbers + VECTOR * k, target + item * k, y_stride, n_rows)
            if n & 15 != 0:
                k = n - (n & 15)
                store_square(numbers + VECTOR * k, rest, VECTOR, 16)
                for row in range(n_rows):
                    for i in range(n & 15):
                        there, here = target + row * y_stride + item * (k + i), rest + VECTOR * row + item * i
                        if item == 4:
                            store_int32(there, load_int32(here))
                        else:
                            store_short(there, load_short(here))

    return dense
