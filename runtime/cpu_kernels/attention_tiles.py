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

from .attention_tables import TILE
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

    dots: rows times fours of keys whose products are summed at once. values: the same for sums of values: the most
    rows, and rows times vectors. product: rows and vectors of a tile of a matrix product.
    """

    dots: int
    values: tuple[int, int]
    product: tuple[int, int]

    def dot_tile(self, n_rows: int) -> tuple[int, int]:
        """Rows and fours of keys of a tile that divides n_rows rows (nearly) and 16 keys evenly."""
        rows = evenly(n_rows, max(QUAD, self.dots // QUAD))
        return rows, next(n for n in (4, 2, 1) if n * rows <= self.dots or n == 1)

    def value_tile(self, n_rows: int, n_vectors: int) -> tuple[int, int]:
        """Rows and vectors of a tile that divides n_rows rows (nearly) and n_vectors vectors evenly."""
        most, room = self.values
        rows = evenly(n_rows, most)
        return rows, next(n for n in range(min(room // rows, n_vectors), 0, -1) if n_vectors % n == 0)


TILINGS = {
    "avx512vnni": Tiling(20, (5, 20), (8, 2)),
    "avxvnni": Tiling(4, (2, 4), (4, 1)),
    "avx2": Tiling(4, (2, 4), (4, 1)),
    "neon": Tiling(4, (2, 4), (4, 1)),
    "generic": Tiling(4, (1, 2), (2, 1)),
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


def _load_run(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """Four float32, four times."""
    run = load(b, address, ir.VectorType(F32, QUAD))
    return b.shuffle_vector(run, run, ir.Constant(ir.VectorType(I32, LANES), [i % QUAD for i in range(LANES)]))


# Bytes of a value of the types that tiles read as they are; others are decoded before.
DIRECT = {"f32": 4, "f16": 2, "bf16": 2}


# ---- shuffles ----


def _pick(b: ir.IRBuilder, x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, LANES), order))


def _quads(b: ir.IRBuilder, x: ir.Value, y: ir.Value, from_x: tuple[int, int], from_y: tuple[int, int]) -> ir.Value:
    """Two runs of four lanes of x, then two of y."""
    runs = [*from_x, *(QUAD + run for run in from_y)]
    return _pick(b, x, y, [QUAD * run + i for run in runs for i in range(QUAD)])


def _transposed_runs(b: ir.IRBuilder, w: list[ir.Value]) -> list[ir.Value]:
    """Four vectors of four runs -> four, of which vector m has run m of each."""
    low = [_quads(b, x, y, (0, 1), (0, 1)) for x, y in ((w[0], w[1]), (w[2], w[3]))]
    high = [_quads(b, x, y, (2, 3), (2, 3)) for x, y in ((w[0], w[1]), (w[2], w[3]))]
    return [_quads(b, x, y, (m, 2 + m), (m, 2 + m)) for x, y in (low, high) for m in (0, 1)]


def _transposed_lanes(b: ir.IRBuilder, w: list[ir.Value]) -> list[ir.Value]:
    """Four vectors -> four, of which vector l has at lane 4 i + j lane 4 i + l of vector j."""

    def inside(x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
        return _pick(b, x, y, [QUAD * run + place for run in range(QUAD) for place in order])

    low = [inside(x, y, [0, LANES, 1, LANES + 1]) for x, y in ((w[0], w[1]), (w[2], w[3]))]
    high = [inside(x, y, [2, LANES + 2, 3, LANES + 3]) for x, y in ((w[0], w[1]), (w[2], w[3]))]
    return [inside(x, y, [2 * m, 2 * m + 1, LANES + 2 * m, LANES + 2 * m + 1]) for x, y in (low, high) for m in (0, 1)]


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

# A key's product with a query is the sum of so many sums.
PARTIAL_SUMS = QUAD


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

    def store_sum(self, address: Callable[[int, int], ir.Value]) -> None:
        """Adds them to what is there."""
        for i, row in enumerate(self.tile):
            for j, place in enumerate(row):
                at = address(i, j)
                store(self.b, self.b.fadd(load(self.b, at, FLOATS), self.b.load(place)), at)


def dot_rows(n_rows: int, n_quads: int, width: int, kind: str, score_bytes: int) -> Any:
    """dot_rows(keys, key_bytes, rows, scores): products of 16 keys, key_bytes apart, with n_rows rows of float32.

    Each product is the sum of PARTIAL_SUMS sums, over every fourth place in a head, as `product_tile` adds them. So a
    vector of four keys at four places, times the row's four numbers, gives four of these of each key. scores: 16 of
    each row, score_bytes from row to row.
    """

    @op(types.void, types.intp, types.intp, types.intp, types.intp)
    def dots(b: ir.IRBuilder, keys: ir.Value, key_bytes: ir.Value, rows: ir.Value, scores: ir.Value) -> None:
        found: list[list[ir.Value]] = [[] for _ in range(n_rows)]
        for first in range(0, QUAD, n_quads):
            # The keys of a vector are four apart, so that transposing runs puts all 16 in order.
            at = [
                [b.add(keys, b.mul(key_bytes, I64(first + quad + QUAD * j))) for j in range(QUAD)]
                for quad in range(n_quads)
            ]
            acc = _Accumulators(b, n_rows, n_quads)
            acc.fill(lambda i, j: const(FLOATS, 0.0))
            with cgutils.for_range(b, I64(width // LANES)) as loop:
                place, row = b.mul(loop.index, I64(DIRECT[kind] * LANES)), b.add(rows, b.mul(loop.index, I64(VECTOR)))
                numbers = [
                    _transposed_runs(b, [_load_number(b, b.add(address, place), kind) for address in own]) for own in at
                ]
                for m in range(PARTIAL_SUMS):
                    own = [_load_run(b, b.add(row, I64(4 * (i * width + QUAD * m)))) for i in range(n_rows)]
                    acc.add(own, [number[m] for number in numbers])
            for i in range(n_rows):
                found[i] += [b.load(acc.tile[i][j]) for j in range(n_quads)]
        for i, sums in enumerate(found):
            total, *others = _transposed_lanes(b, sums)
            for other in others:
                total = b.fadd(total, other)
            store(b, total, b.add(scores, I64(score_bytes * i)))

    return dots


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


def product_tile(n_rows: int, n_vectors: int, strides: Strides, *, scaled: bool, n_sums: int = 1) -> Any:
    """multiply(x, y, n, out, factors): a tile [n_rows, 16 n_vectors] of out = x y, over n steps; all float32.

    scaled: what `out` holds, its columns times `factors` [16 n_vectors], is added. n_sums: every n_sums-th step is
    added up by itself, then these sums one after another; it divides n.
    """
    assert n_sums == 1 or not scaled

    @op(types.void, types.intp, types.intp, types.intp, types.intp, types.intp)
    def multiply(b: ir.IRBuilder, x: ir.Value, y: ir.Value, n: ir.Value, out: ir.Value, factors: ir.Value) -> None:
        def place(i: int, j: int) -> ir.Value:
            return b.add(out, I64(i * strides.out + j * VECTOR))

        def add_steps(acc: _Accumulators, first: int) -> None:
            with cgutils.for_range(b, b.sdiv(n, I64(n_sums)) if n_sums > 1 else n) as loop:
                index = b.add(b.mul(loop.index, I64(n_sums)), I64(first))
                row = b.add(y, b.mul(index, I64(strides.y)))
                step = b.add(x, b.mul(index, I64(strides.x_step)))
                vectors = [load(b, b.add(row, I64(j * VECTOR)), FLOATS) for j in range(n_vectors)]
                numbers = [splat(b, load(b, b.add(step, I64(i * strides.x_row)), F32)) for i in range(n_rows)]
                acc.add(numbers, vectors)

        acc = _Accumulators(b, n_rows, n_vectors)
        if scaled:
            columns = [load(b, b.add(factors, I64(j * VECTOR)), FLOATS) for j in range(n_vectors)]
            acc.fill(lambda i, j: b.fmul(load(b, place(i, j), FLOATS), columns[j]))
        else:
            acc.fill(lambda i, j: const(FLOATS, 0.0))
        add_steps(acc, 0)
        acc.store(place)
        for first in range(1, n_sums):
            acc.fill(lambda i, j: const(FLOATS, 0.0))
            add_steps(acc, first)
            acc.store_sum(place)

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
    """e to the power of lanes that are at most 0, as `vectors.exp`; NaN where a lane is, 0 below -87.3: what is hidden
    counts for nothing at all."""

    def number(value: float) -> ir.Constant:
        return const(FLOATS, value)

    is_small = b.fcmp_ordered(">", number(-87.3), x)
    n = call(b, "llvm.rint.v16f32", FLOATS, b.fmul(x, number(1.4426950408889634)))
    r = fused(b, n, number(2.12194440e-4), fused(b, n, number(-0.693359375), x))
    p = number(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        p = fused(b, p, r, number(coefficient))
    power = b.shl(b.add(b.fptosi(n, INTS), const(INTS, 127)), const(INTS, 23))
    return b.select(is_small, number(0.0), b.fmul(p, b.bitcast(power, FLOATS)))


@op(types.float32, floats)
def sum_halves(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The sum of all lanes: lanes 8 apart are added, then those 4, 2 and 1 apart, as `sum_columns` adds rows."""
    for size in (8, 4, 2, 1):
        value = b.fadd(value, _pick(b, value, value, [i ^ size for i in range(LANES)]))
    return b.extract_element(value, I32(0))


def sum_columns(stride: int) -> Any:
    """sum_columns(address): the sum of TILE vectors, `stride` bytes apart, in the order in which `attention_few` adds
    what lies side by side: every 16th, then these as `sum_halves` does."""

    @op(floats, types.intp)
    def sums(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
        def part(first: int, step: int) -> ir.Value:
            """The sum of vectors first, first + step, …"""
            if step < LANES:
                return b.fadd(part(first, 2 * step), part(first + step, 2 * step))
            total = load(b, b.add(address, I64(first * stride)), FLOATS)
            for j in range(first + LANES, TILE, LANES):
                total = b.fadd(total, load(b, b.add(address, I64(j * stride)), FLOATS))
            return total

        return part(0, 1)

    return sums


@inline
def tanh(x):
    power = exp_negative(absolute(x) * -2.0)
    size = (all_floats(1.0) - power) / (power + 1.0)
    return as_floats(as_ints(size) | (as_ints(x) & -0x80000000))
