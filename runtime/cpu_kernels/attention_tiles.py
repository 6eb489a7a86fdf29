"""The inner products of attention, unrolled: what needs more registers side by side than a kernel's text could name.

Each function here makes an operation for sizes that are known while compiling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils

from .language import (
    BITS,
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    call,
    const,
    floats,
    fused,
    inline,
    load,
    op,
    splat,
    store,
)
from .vectors import absolute, all_floats, as_floats, as_ints

QUAD = 4
LINE = 64
VECTOR = 4 * LANES


@dataclass(frozen=True, slots=True)
class Tiling:
    """Accumulators, in vectors of 16 lanes, that the registers hold beside what is multiplied.

    dots: rows whose products with four keys are summed at once. values: the same for sums of values: the most rows, and
    rows times vectors. product: rows and vectors of a tile of a matrix product.
    """

    dots: int
    values: tuple[int, int]
    product: tuple[int, int]

    def value_tile(self, n_rows: int, n_vectors: int) -> tuple[int, int]:
        """Rows and vectors of a tile that divides n_rows rows (nearly) and n_vectors vectors evenly."""
        most, room = self.values
        rows = evenly(n_rows, most)
        return rows, next(n for n in range(min(room // rows, n_vectors), 0, -1) if n_vectors % n == 0)


TILINGS = {
    "avx512vnni": Tiling(5, (5, 20), (8, 2)),
    "avxvnni": Tiling(1, (2, 4), (4, 1)),
    "avx2": Tiling(1, (2, 4), (4, 1)),
    "neon": Tiling(1, (2, 4), (4, 1)),
    "generic": Tiling(1, (1, 2), (2, 1)),
}


def evenly(n: int, most: int) -> int:
    """The size of as few parts of n as possible, of at most `most` each."""
    n_parts = -(-n // most)
    return -(-n // n_parts)


# ---- numbers of the cache as they are loaded ----


def _load_number(b: ir.IRBuilder, address: ir.Value, kind: str) -> ir.Value:
    """16 values of a plain type."""
    if kind == "f16":
        return b.fpext(load(b, address, ir.VectorType(ir.HalfType(), LANES)), FLOATS)
    if kind == "bf16":
        words = b.zext(load(b, address, ir.VectorType(BITS[16], LANES)), INTS)
        return b.bitcast(b.shl(words, const(INTS, 16)), FLOATS)
    return load(b, address, FLOATS)


# Bytes of a value of the types that tiles read as they are; others are decoded before.
DIRECT = {"f32": 4, "f16": 2, "bf16": 2}


# ---- shuffles ----


def _pick(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, LANES), order))


def _quads(b: ir.IRBuilder, x: ir.Value, y: ir.Value, from_x: tuple[int, int], from_y: tuple[int, int]) -> ir.Value:
    """Two runs of four lanes of x, then two of y."""
    runs = [*from_x, *(QUAD + run for run in from_y)]
    return _pick(b, x, y, [QUAD * run + i for run in runs for i in range(QUAD)])


def _sum_quad(b: ir.IRBuilder, w: list[ir.Value]) -> ir.Value:
    """Four vectors -> one, where lane 4 i + j is the sum of lanes 4 i … 4 i + 3 of vector j."""

    def inside(x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
        return _pick(b, x, y, [QUAD * run + place for run in range(QUAD) for place in order])

    def pair(x: ir.Value, y: ir.Value) -> ir.Value:
        return b.fadd(inside(x, y, [0, LANES, 1, LANES + 1]), inside(x, y, [2, LANES + 2, 3, LANES + 3]))

    x, y = pair(w[0], w[1]), pair(w[2], w[3])
    return b.fadd(inside(x, y, [0, 1, LANES, LANES + 1]), inside(x, y, [2, 3, LANES + 2, LANES + 3]))


def _join_quads(b: ir.IRBuilder, w: list[ir.Value]) -> ir.Value:
    """Four vectors of `_sum_quad` -> their 16 sums, in order."""

    def pair(x: ir.Value, y: ir.Value) -> ir.Value:
        return b.fadd(_quads(b, x, y, (0, 1), (0, 1)), _quads(b, x, y, (2, 3), (2, 3)))

    x, y = pair(w[0], w[1]), pair(w[2], w[3])
    return b.fadd(_quads(b, x, y, (0, 2), (0, 2)), _quads(b, x, y, (1, 3), (1, 3)))


def transpose(source_bytes: int, target_bytes: int) -> Any:
    """transpose(source, target): 16 rows of 16 float32 as columns; bytes from row to row of either."""

    @op(types.void, types.intp, types.intp)
    def transposed(b: ir.IRBuilder, source: ir.Value, target: ir.Value) -> None:
        rows = [load(b, b.add(source, I64(i * source_bytes)), FLOATS) for i in range(LANES)]
        size = 1
        while size < LANES:
            for i in range(LANES):
                if not i & size:
                    x, y = rows[i], rows[i + size]
                    rows[i] = _pick(b, x, y, [LANES + j - size if j & size else j for j in range(LANES)])
                    rows[i + size] = _pick(b, x, y, [LANES + j if j & size else j + size for j in range(LANES)])
            size *= 2
        for i, row in enumerate(rows):
            store(b, row, b.add(target, I64(i * target_bytes)))

    return transposed


# ---- products ----


def dot_rows(n_rows: int, width: int, kind: str, score_bytes: int) -> Any:
    """dot_rows(keys, key_bytes, rows, scores): products of 16 keys, key_bytes apart, with n_rows rows of float32.

    Lanes are places in a head. Four keys are multiplied at a time; the sums over lanes are taken for 16 together, which
    takes two shuffles for each. scores: 16 of each row, score_bytes from row to row.
    """

    def quad(b: ir.IRBuilder, keys: ir.Value, key_bytes: ir.Value, rows: ir.Value) -> list[ir.Value]:
        at = [b.add(keys, b.mul(key_bytes, I64(j))) for j in range(QUAD)]
        acc: list[list[Any]] = [[None] * QUAD for _ in range(n_rows)]
        for d in range(0, width, LANES):
            key = [_load_number(b, b.add(address, I64(DIRECT[kind] * d)), kind) for address in at]
            for i in range(n_rows):
                row = load(b, b.add(rows, I64(4 * (i * width + d))), FLOATS)
                acc[i] = [
                    b.fmul(row, k) if total is None else fused(b, row, k, total)
                    for total, k in zip(acc[i], key, strict=True)
                ]
        return [_sum_quad(b, totals) for totals in acc]

    @op(types.void, types.intp, types.intp, types.intp, types.intp)
    def dots(b: ir.IRBuilder, keys: ir.Value, key_bytes: ir.Value, rows: ir.Value, scores: ir.Value) -> None:
        sums = cgutils.alloca_once(b, FLOATS, size=QUAD * n_rows)
        with cgutils.for_range(b, I64(LANES // QUAD)) as loop:
            found = quad(b, b.add(keys, b.mul(b.mul(key_bytes, I64(QUAD)), loop.index)), key_bytes, rows)
            for i, value in enumerate(found):
                b.store(value, b.gep(sums, [b.add(loop.index, I64(QUAD * i))]))
        for i in range(n_rows):
            joined = _join_quads(b, [b.load(b.gep(sums, [I64(QUAD * i + j)])) for j in range(QUAD)])
            store(b, joined, b.add(scores, I64(score_bytes * i)))

    return dots


class _Accumulators:
    """A tile of vectors that lives in registers through a loop."""

    def __init__(self, b: ir.IRBuilder, n_rows: int, n_columns: int) -> None:
        self.b = b
        self.tile = [[cgutils.alloca_once(b, FLOATS) for _ in range(n_columns)] for _ in range(n_rows)]

    def fill(self, value: Callable[[int, int], ir.Value]) -> None:
        for i, row in enumerate(self.tile):
            for j, place in enumerate(row):
                self.b.store(value(i, j), place)

    def add(self, x: list[ir.Value], y: list[ir.Value]) -> None:
        """The products of all of x and all of y."""
        for row, a in zip(self.tile, x, strict=True):
            for place, c in zip(row, y, strict=True):
                self.b.store(fused(self.b, a, c, self.b.load(place)), place)

    def store(self, address: Callable[[int, int], ir.Value]) -> None:
        for i, row in enumerate(self.tile):
            for j, place in enumerate(row):
                store(self.b, self.b.load(place), address(i, j))


def add_values(n_rows: int, n_vectors: int, kind: str, weight_bytes: int, sum_bytes: int) -> Any:
    """add_values(values, value_bytes, n, weights, sums): adds n values, each times its weight, to n_rows sums of
    n_vectors vectors. weights: float32, those of a row beside each other. Bytes are from value to value, row to row."""

    @op(types.void, types.intp, types.intp, types.intp, types.intp, types.intp)
    def add(
        b: ir.IRBuilder, values: ir.Value, value_bytes: ir.Value, n: ir.Value, weights: ir.Value, sums: ir.Value
    ) -> None:
        def place(i: int, j: int) -> ir.Value:
            return b.add(sums, I64(i * sum_bytes + j * VECTOR))

        acc = _Accumulators(b, n_rows, n_vectors)
        acc.fill(lambda i, j: load(b, place(i, j), FLOATS))
        with cgutils.for_range(b, n) as loop:
            at = b.add(values, b.mul(value_bytes, loop.index))
            weight = b.add(weights, b.mul(loop.index, I64(4)))
            shares = [splat(b, load(b, b.add(weight, I64(i * weight_bytes)), F32)) for i in range(n_rows)]
            acc.add(shares, [_load_number(b, b.add(at, I64(DIRECT[kind] * LANES * j)), kind) for j in range(n_vectors)])
        acc.store(place)

    return add


@dataclass(frozen=True, slots=True)
class Strides:
    """Bytes between elements of x from row to row and from step to step, between rows of y (a row for each step) and
    between rows of the result."""

    x_row: int
    x_step: int
    y: int
    out: int


def product_tile(n_rows: int, n_vectors: int, strides: Strides, *, scaled: bool) -> Any:
    """multiply(x, y, n, out, factors): a tile [n_rows, 16 n_vectors] of out = x y, over n steps; all float32.

    scaled: what `out` holds, its columns times `factors` [16 n_vectors], is added.
    """

    @op(types.void, types.intp, types.intp, types.intp, types.intp, types.intp)
    def multiply(b: ir.IRBuilder, x: ir.Value, y: ir.Value, n: ir.Value, out: ir.Value, factors: ir.Value) -> None:
        def place(i: int, j: int) -> ir.Value:
            return b.add(out, I64(i * strides.out + j * VECTOR))

        acc = _Accumulators(b, n_rows, n_vectors)
        if scaled:
            columns = [load(b, b.add(factors, I64(j * VECTOR)), FLOATS) for j in range(n_vectors)]
            acc.fill(lambda i, j: b.fmul(load(b, place(i, j), FLOATS), columns[j]))
        else:
            acc.fill(lambda i, j: const(FLOATS, 0.0))
        with cgutils.for_range(b, n) as loop:
            row = b.add(y, b.mul(loop.index, I64(strides.y)))
            step = b.add(x, b.mul(loop.index, I64(strides.x_step)))
            vectors = [load(b, b.add(row, I64(j * VECTOR)), FLOATS) for j in range(n_vectors)]
            numbers = [splat(b, load(b, b.add(step, I64(i * strides.x_row)), F32)) for i in range(n_rows)]
            acc.add(numbers, vectors)
        acc.store(place)

    return multiply


def scale_row(n_vectors: int) -> Any:
    """scale_row(source, factor, target): n_vectors vectors times a number; source and target may be the same."""

    @op(types.void, types.intp, types.float32, types.intp)
    def scale(b: ir.IRBuilder, source: ir.Value, factor: ir.Value, target: ir.Value) -> None:
        factors = splat(b, factor)
        for at in range(0, n_vectors * VECTOR, VECTOR):
            store(b, b.fmul(load(b, b.add(source, I64(at)), FLOATS), factors), b.add(target, I64(at)))

    return scale


def fill_row(n_vectors: int) -> Any:
    """fill_row(target, stride, value): n_vectors vectors of one number, `stride` bytes apart."""

    @op(types.void, types.intp, types.intp, types.float32)
    def fill(b: ir.IRBuilder, target: ir.Value, stride: ir.Value, value: ir.Value) -> None:
        values = splat(b, value)
        for i in range(n_vectors):
            store(b, values, b.add(target, b.mul(stride, I64(i))))

    return fill


@op(floats, floats)
def exp_negative(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """e to the power of lanes that are at most 0, as `vectors.exp`; NaN where a lane is."""

    def number(value: float) -> ir.Constant:
        return const(FLOATS, value)

    least = number(-87.3)
    x = b.select(b.fcmp_ordered(">", least, x), least, x)
    n = call(b, "llvm.rint.v16f32", FLOATS, b.fmul(x, number(1.4426950408889634)))
    r = fused(b, n, number(2.12194440e-4), fused(b, n, number(-0.693359375), x))
    p = number(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        p = fused(b, p, r, number(coefficient))
    power = b.shl(b.add(b.fptosi(n, INTS), const(INTS, 127)), const(INTS, 23))
    return b.fmul(p, b.bitcast(power, FLOATS))


@inline
def tanh(x):
    power = exp_negative(absolute(x) * -2.0)
    size = (all_floats(1.0) - power) / (power + 1.0)
    return as_floats(as_ints(size) | (as_ints(x) & -0x80000000))
