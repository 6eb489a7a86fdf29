"""What becomes of decoded weights: they are multiplied, or stored as numbers.

A decoder (decode.py) hands over 32 weights of 16 rows at a time: eight vectors of codes, each lane four neighbouring
codes of a row, with what makes numbers of them: weight = (code - zero) * scale - minimum. Codes of 8 bits (`FULL`) come
as the processor multiplies them: see Isa.unsigned.

`at` counts the bytes of activation records (activations.py), 64 for 32 weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .instructions import emit_dot
from .language import F32, FLOATS, I32, I64, INTS, LANES, const, current_isa, floats, fused, load, splat, store
from .records import FULL, RECORD, SCALE, SCALED_SUMS, SUMS
from .spans import WORDS, Codes, Words, dot_span


@dataclass(frozen=True, slots=True)
class Sink:
    """group(state, at, to, codes, scale, zero): 32 weights with one scale. halves(state, at, to, codes, scales, zero):
    with a scale for each 16. offset(state, at, to, minimum) and offsets(state, at, to, minima): what is subtracted.
    span(codes): see spans.py. All return the new state."""

    span: Callable[[Codes], Any]
    group: Callable[..., Any]
    halves: Callable[..., Any]
    offset: Callable[..., Any]
    offsets: Callable[..., Any]


def _zero(zero: Any) -> tuple[int, bool]:
    """The number that stands for 0, and whether codes are signed."""
    value: int = zero if isinstance(zero, int) else zero.literal_value
    if value != FULL:
        return value, False
    return (128, False) if current_isa().unsigned else (0, True)


def _scalar(b: ir.IRBuilder, column: ir.Value, at: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    return splat(b, load(b, b.add(b.add(column, at), I64(offset)), kind))


def _integers(
    b: ir.IRBuilder, column: ir.Value, at: ir.Value, codes: list[ir.Value], half: int, zero: int, signed: bool
) -> ir.Value:
    """Exact sums of products, of half 0, half 1 or (2) of all 32 weights."""
    if zero:
        assert zero & (zero - 1) == 0
        total = _scalar(b, column, at, SUMS + 4 * half, I32)
        total = b.shl(total, const(INTS, zero.bit_length() - 1))
    else:
        total = const(INTS, 0)
    first = 16 if half == 1 else 0
    for i, word in enumerate(codes):
        total = emit_dot(b, total, word, _scalar(b, column, at, first + 4 * i, I32), signed=signed)
    return total


@intrinsic(prefer_literal=True)
def _dot_group(context: Any, state: Any, at: Any, to: Any, codes: Any, scale: Any, zero: Any) -> Any:
    if not isinstance(zero, types.IntegerLiteral):
        return None
    n = state.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        sums, columns = cgutils.unpack_tuple(b, args[0], n), cgutils.unpack_tuple(b, args[2], n)
        words, at, scale = cgutils.unpack_tuple(b, args[3], 8), args[1], args[4]
        value, signed = _zero(zero)
        found = []
        for total, column in zip(sums, columns, strict=True):
            product = b.sitofp(_integers(b, column, at, words, 2, value, signed), FLOATS)
            factor = b.fmul(scale, _scalar(b, column, at, SCALE, F32))
            found.append(fused(b, product, factor, total))
        return cgutils.pack_array(b, found)

    return state(state, at, to, codes, scale, zero), code


@intrinsic(prefer_literal=True)
def _dot_halves(context: Any, state: Any, at: Any, to: Any, codes: Any, scales: Any, zero: Any) -> Any:
    if not isinstance(zero, types.IntegerLiteral):
        return None
    n = state.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        sums, columns = cgutils.unpack_tuple(b, args[0], n), cgutils.unpack_tuple(b, args[2], n)
        words, at, scales = cgutils.unpack_tuple(b, args[3], 8), args[1], cgutils.unpack_tuple(b, args[4], 2)
        value, signed = _zero(zero)
        found = []
        for total, column in zip(sums, columns, strict=True):
            first, second = (
                b.sitofp(_integers(b, column, at, words[4 * half : 4 * half + 4], half, value, signed), FLOATS)
                for half in (0, 1)
            )
            both = fused(b, second, scales[1], b.fmul(first, scales[0]))
            found.append(fused(b, both, _scalar(b, column, at, SCALE, F32), total))
        return cgutils.pack_array(b, found)

    return state(state, at, to, codes, scales, zero), code


@intrinsic
def _dot_offset(context: Any, state: Any, at: Any, to: Any, minimum: Any) -> Any:
    n = state.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        sums, columns = cgutils.unpack_tuple(b, args[0], n), cgutils.unpack_tuple(b, args[2], n)
        found = [
            fused(b, args[3], _scalar(b, column, args[1], SCALED_SUMS + 8, F32), total)
            for total, column in zip(sums, columns, strict=True)
        ]
        return cgutils.pack_array(b, found)

    return state(state, at, to, minimum), code


@intrinsic
def _dot_offsets(context: Any, state: Any, at: Any, to: Any, minima: Any) -> Any:
    n = state.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        sums, columns = cgutils.unpack_tuple(b, args[0], n), cgutils.unpack_tuple(b, args[2], n)
        found = []
        for total, column in zip(sums, columns, strict=True):
            for half, minimum in enumerate(cgutils.unpack_tuple(b, args[3], 2)):
                total = fused(b, minimum, _scalar(b, column, args[1], SCALED_SUMS + 4 * half, F32), total)
            found.append(total)
        return cgutils.pack_array(b, found)

    return state(state, at, to, minima), code


# State: a sum (floats) for each column. to: the columns' activations, an address each.
DOT = Sink(dot_span, _dot_group, _dot_halves, _dot_offset, _dot_offsets)


def _stored(
    b: ir.IRBuilder, at: ir.Value, to: ir.Value, codes: list[ir.Value], scales: list[ir.Value], zero: Any
) -> None:
    value, signed = _zero(zero)
    out, stride = cgutils.unpack_tuple(b, to, 2)
    out = b.add(out, b.mul(b.lshr(at, I64(1)), stride))
    for i, word in enumerate(codes):
        scale = scales[0] if len(scales) == 1 else scales[i // 4]
        for byte in range(4):
            code = b.shl(word, const(INTS, 24 - 8 * byte))
            code = b.ashr(code, const(INTS, 24)) if signed else b.lshr(code, const(INTS, 24))
            number = b.fmul(b.sitofp(b.sub(code, const(INTS, value)), FLOATS), scale)
            store(b, number, b.add(out, b.mul(I64(4 * i + byte), stride)))


def _store_span(codes: Codes) -> Any:
    @intrinsic
    def span(context: Any, state: Any, at: Any, to: Any, places: Any, scales: Any) -> Any:
        n_halves = scales.count // codes.groups

        def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            words = Words(b, cgutils.unpack_tuple(b, args[3]), LANES, 0)
            factors = cgutils.unpack_tuple(b, args[4])
            for g in range(codes.groups):
                found = [codes.emit(words, word, g) for word in range(WORDS)]
                own = factors[n_halves * g : n_halves * (g + 1)]
                _stored(b, b.add(args[1], I64(RECORD * g)), args[2], found, own, codes.zero)
            return args[0]

        return state(state, at, to, places, scales), code

    return span


@intrinsic(prefer_literal=True)
def _store_group(context: Any, state: Any, at: Any, to: Any, codes: Any, scale: Any, zero: Any) -> Any:
    if not isinstance(zero, types.IntegerLiteral):
        return None

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _stored(b, args[1], args[2], cgutils.unpack_tuple(b, args[3], 8), [args[4]], zero)
        return args[0]

    return state(state, at, to, codes, scale, zero), code


@intrinsic(prefer_literal=True)
def _store_halves(context: Any, state: Any, at: Any, to: Any, codes: Any, scales: Any, zero: Any) -> Any:
    if not isinstance(zero, types.IntegerLiteral):
        return None

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        words, scales = cgutils.unpack_tuple(b, args[3], 8), cgutils.unpack_tuple(b, args[4], 2)
        _stored(b, args[1], args[2], words, scales, zero)
        return args[0]

    return state(state, at, to, codes, scales, zero), code


def _subtracted(b: ir.IRBuilder, at: ir.Value, to: ir.Value, minima: list[ir.Value]) -> None:
    out, stride = cgutils.unpack_tuple(b, to, 2)
    out = b.add(out, b.mul(b.lshr(at, I64(1)), stride))
    for k in range(32):
        address = b.add(out, b.mul(I64(k), stride))
        minimum = minima[0] if len(minima) == 1 else minima[k // 16]
        store(b, b.fsub(load(b, address, FLOATS), minimum), address)


@intrinsic
def _store_offset(context: Any, state: Any, at: Any, to: Any, minimum: Any) -> Any:
    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _subtracted(b, args[1], args[2], [args[3]])
        return args[0]

    return state(state, at, to, minimum), code


@intrinsic
def _store_offsets(context: Any, state: Any, at: Any, to: Any, minima: Any) -> Any:
    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _subtracted(b, args[1], args[2], cgutils.unpack_tuple(b, args[3], 2))
        return args[0]

    return state(state, at, to, minima), code


# Weight k of the 16 rows goes to out + k * stride, where to is (out, stride); the state is any number.
STORE = Sink(_store_span, _store_group, _store_halves, _store_offset, _store_offsets)


@intrinsic(prefer_literal=True)
def no_sums(context: Any, n: Any) -> Any:
    """n times zeros."""
    if not isinstance(n, types.IntegerLiteral):
        return None

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return cgutils.pack_array(b, [const(FLOATS, 0.0)] * n.literal_value)

    return types.UniTuple(floats, n.literal_value)(n), code


@intrinsic
def load_sums(context: Any, columns: Any, at: Any) -> Any:
    """The vectors at columns[i] + at."""
    n = columns.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        addresses = cgutils.unpack_tuple(b, args[0], n)
        return cgutils.pack_array(b, [load(b, b.add(a, args[1]), FLOATS) for a in addresses])

    return types.UniTuple(floats, n)(columns, at), code


@intrinsic
def add_sums(context: Any, sums: Any, more: Any) -> Any:
    """Adds one vector to all."""
    n = sums.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return cgutils.pack_array(b, [b.fadd(total, args[1]) for total in cgutils.unpack_tuple(b, args[0], n)])

    return sums(sums, more), code


@intrinsic
def scale_sums(context: Any, sums: Any, factor: Any, begin: Any) -> Any:
    """begin[i] + factor * sums[i]"""
    n = sums.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        totals, starts = cgutils.unpack_tuple(b, args[0], n), cgutils.unpack_tuple(b, args[2], n)
        return cgutils.pack_array(b, [fused(b, t, args[1], start) for t, start in zip(totals, starts, strict=True)])

    return sums(sums, factor, begin), code


@intrinsic
def store_sums(context: Any, sums: Any, columns: Any, at: Any) -> Any:
    """Each vector to columns[i] + at."""
    n = sums.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> None:
        totals, addresses = cgutils.unpack_tuple(b, args[0], n), cgutils.unpack_tuple(b, args[1], n)
        for total, address in zip(totals, addresses, strict=True):
            store(b, total, b.add(address, args[2]))

    return types.void(sums, columns, at), code


@intrinsic
def multiply_floats(context: Any, sums: Any, at: Any, columns: Any, weights: Any) -> Any:
    """Adds weights (floats) times the float32 at columns[i] + at."""
    n = sums.count

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        totals, addresses = cgutils.unpack_tuple(b, args[0], n), cgutils.unpack_tuple(b, args[2], n)
        found = [
            fused(b, args[3], _scalar(b, column, args[1], 0, F32), total)
            for total, column in zip(totals, addresses, strict=True)
        ]
        return cgutils.pack_array(b, found)

    return sums(sums, at, columns, weights), code


@intrinsic(prefer_literal=True)
def rows_of(context: Any, base: Any, stride: Any, first: Any, count: Any, n: Any) -> Any:
    """Addresses of rows first, first + 1, … (n of them) of `count`; behind the last one, the last again."""
    if not isinstance(n, types.IntegerLiteral):
        return None

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        base, stride, first, count = args[:4]
        last = b.sub(count, I64(1))
        found = []
        for i in range(n.literal_value):
            row = b.add(first, I64(i))
            row = b.select(b.icmp_signed("<", row, last), row, last)
            found.append(b.add(base, b.mul(row, stride)))
        return cgutils.pack_array(b, found)

    return types.UniTuple(types.intp, n.literal_value)(base, stride, first, count, n), code


@intrinsic(prefer_literal=True)
def gathered_rows(context: Any, base: Any, stride: Any, rows: Any, first: Any, last: Any, share: Any, n: Any) -> Any:
    """Addresses of rows rows[first] // share, …: n of them from an int32 list; from `last` on, its last entry again."""
    if not isinstance(n, types.IntegerLiteral):
        return None

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        base, stride, rows, first, last, share = args[:6]
        end = b.sub(last, I64(1))
        found = []
        for i in range(n.literal_value):
            place = b.add(first, I64(i))
            place = b.select(b.icmp_signed("<", place, end), place, end)
            row = b.sext(load(b, b.add(rows, b.mul(place, I64(4))), I32), I64)
            found.append(b.add(base, b.mul(b.sdiv(row, share), stride)))
        return cgutils.pack_array(b, found)

    return types.UniTuple(types.intp, n.literal_value)(base, stride, rows, first, last, types.intp, n), code
