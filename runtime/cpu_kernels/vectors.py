"""Vectors of 16 lanes inside numba functions: the words in which kernels are written.

`ints` are 16 int32, which may be taken for 64 bytes, four to a lane; `floats` are 16 float32. Operators work lane by
lane, with another vector or with a number; `>>` shifts zeros in. LLVM cuts the vectors into whatever registers the
processor has. Addresses are plain integers (intp); nothing has to be aligned.

What a processor does in a way of its own is chosen while a kernel is compiled (instructions.py).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from .instructions import emit_lookup
from .isa import Isa
from .language import (
    BITS,
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    VectorType,
    call,
    const,
    current_isa,
    floats,
    fused,
    inline,
    ints,
    load,
    op,
    splat,
    store,
)


def _operator(op: Any, kind: VectorType, numbers: Any, emit: Callable[..., ir.Value]) -> None:
    number = types.int32 if kind is ints else types.float32

    @type_callable(op)
    def typed(context: Any) -> Any:
        def result(left: Any, right: Any) -> Any:
            return kind if left == kind and (right == kind or isinstance(right, numbers)) else None

        return result

    @lower_builtin(op, kind, kind)
    def of_vectors(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return emit(b, *args)

    @lower_builtin(op, kind, numbers)
    def of_number(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return emit(b, args[0], splat(b, context.cast(b, args[1], sig.args[1], number)))


for _op, _name in (
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.xor, "xor"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
    (operator.add, "add"),
    (operator.sub, "sub"),
    (operator.mul, "mul"),
):
    _operator(_op, ints, types.Integer, getattr(ir.IRBuilder, _name))
for _op, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_op, floats, types.Float, getattr(ir.IRBuilder, _name))


@op(ints, types.intp)
def load_words(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 int32."""
    return load(b, address, INTS)


@op(ints, types.intp)
def load_bytes(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 uint8, widened."""
    return b.zext(load(b, address, ir.VectorType(BITS[8], LANES)), INTS)


@op(ints, types.intp)
def load_signed_bytes(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 int8, widened."""
    return b.sext(load(b, address, ir.VectorType(BITS[8], LANES)), INTS)


@op(ints, types.intp)
def load_shorts(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 uint16, widened."""
    return b.zext(load(b, address, ir.VectorType(BITS[16], LANES)), INTS)


@op(floats, types.intp)
def load_halves(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 float16, widened."""
    return b.fpext(load(b, address, ir.VectorType(ir.HalfType(), LANES)), FLOATS)


@op(floats, types.intp)
def load_floats(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """16 float32."""
    return load(b, address, FLOATS)


@op(types.void, types.intp, ints)
def store_words(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """16 int32."""
    store(b, value, address)


@op(types.void, types.intp, ints)
def store_bytes(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """The low bytes of 16 int32."""
    store(b, b.trunc(value, ir.VectorType(BITS[8], LANES)), address)


@op(types.void, types.intp, ints)
def store_shorts(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """The low 16 bits of 16 int32."""
    store(b, b.trunc(value, ir.VectorType(BITS[16], LANES)), address)


@op(types.void, types.intp, floats)
def store_floats(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """16 float32."""
    store(b, value, address)


@op(types.void, types.intp, floats)
def store_halves(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """16 numbers as float16, rounded to nearest."""
    store(b, b.fptrunc(value, ir.VectorType(ir.HalfType(), LANES)), address)


@op(floats, ints)
def to_floats(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Signed integers as numbers."""
    return b.sitofp(value, FLOATS)


@op(ints, floats)
def to_ints(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Numbers that are whole already, as integers."""
    return b.fptosi(value, INTS)


@op(floats, ints)
def as_floats(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The bits of 16 float32."""
    return b.bitcast(value, FLOATS)


@op(ints, floats)
def as_ints(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The bits of 16 float32 as integers."""
    return b.bitcast(value, INTS)


def _halves(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    half = b.bitcast(b.trunc(words, ir.VectorType(BITS[16], LANES)), ir.VectorType(ir.HalfType(), LANES))
    return b.fpext(half, FLOATS)


@op(floats, ints)
def low_half(b: ir.IRBuilder, words: ir.Value) -> ir.Value:
    """The float16 in the low 16 bits of each lane."""
    return _halves(b, words)


@op(ints, ints, types.int64)
def shift_signed(b: ir.IRBuilder, value: ir.Value, n: ir.Value) -> ir.Value:
    """value >> n with the sign shifted in."""
    return b.ashr(value, splat(b, b.trunc(n, I32)))


def constant(values: Callable[[Isa], Sequence[int]]) -> Any:
    """A function without parameters that gives 16 int32 which are known while compiling."""

    def values_now(b: ir.IRBuilder) -> ir.Value:
        return ir.Constant(INTS, list(values(current_isa())))

    return op(ints)(values_now)


@op(ints, ints, ints)
def lookup(b: ir.IRBuilder, table: ir.Value, codes: ir.Value) -> ir.Value:
    """For 64 bytes from 0 to 15, the bytes of a table, which stands in every four lanes."""
    return emit_lookup(b, table, codes)


def table(values: Callable[[], bytes]) -> Any:
    """A function without parameters that gives the address of bytes which are part of the kernel."""

    def address(b: ir.IRBuilder) -> ir.Value:
        data = bytearray(values())
        kept = cgutils.global_constant(b, "table", ir.Constant(ir.ArrayType(BITS[8], len(data)), data))
        kept.align = 64
        return b.ptrtoint(kept, I64)

    return op(types.intp)(address)


@op(floats, floats, floats, floats)
def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """x * y + z, rounded once."""
    return fused(b, x, y, z)


@op(floats, floats, floats)
def maximum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return call(b, "llvm.maxnum.v16f32", FLOATS, x, y)


@op(floats, floats, floats)
def minimum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    return call(b, "llvm.minnum.v16f32", FLOATS, x, y)


@op(ints, floats, floats)
def below(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """-1 in lanes where x < y, else 0."""
    return b.sext(b.fcmp_ordered("<", x, y), INTS)


@op(ints, floats)
def not_numbers(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """-1 in lanes that are NaN, else 0."""
    return b.sext(b.fcmp_unordered("uno", x, x), INTS)


@op(floats, floats, floats)
def greater(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The greater of each lane, y where either is NaN: a single instruction, unlike `maximum`."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@op(floats, ints, floats, floats)
def choose(b: ir.IRBuilder, mask: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """x in lanes where the mask is negative, else y."""
    return b.select(b.icmp_signed("<", mask, const(INTS, 0)), x, y)


@op(floats, floats)
def absolute(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return call(b, "llvm.fabs.v16f32", FLOATS, x)


@op(floats, floats)
def rounded(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The nearest whole number, halves to even."""
    return call(b, "llvm.rint.v16f32", FLOATS, x)


@op(floats, types.float32)
def all_floats(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same number in all lanes."""
    return splat(b, value)


@op(ints, types.int64)
def all_ints(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The same number in all lanes."""
    return splat(b, b.trunc(value, I32))


@op(types.float32, floats)
def sum_floats(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The sum of all lanes."""
    # In whatever order is fast; it is the same for every call.
    return call(b, "llvm.vector.reduce.fadd.v16f32", F32, F32(-0.0), value, fastmath=("reassoc",))


@op(types.float32, floats)
def max_floats(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The largest lane."""
    return call(b, "llvm.vector.reduce.fmax.v16f32", F32, value)


@op(types.float32, floats, floats)
def largest_size(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The largest absolute value of both; NaN where there is any, as positive numbers are ordered as their bits are."""
    x, y = (b.and_(b.bitcast(value, INTS), const(INTS, 0x7FFFFFFF)) for value in (x, y))
    larger = b.select(b.icmp_signed(">", x, y), x, y)
    return b.bitcast(call(b, "llvm.vector.reduce.smax.v16i32", I32, larger), F32)


@op(types.int64, ints)
def sum_ints(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """The sum of all lanes."""
    return b.sext(call(b, "llvm.vector.reduce.add.v16i32", I32, value), I64)


@op(types.int64, ints)
def sign_bits(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Bit i: whether lane i is negative."""
    return b.zext(b.bitcast(b.icmp_signed("<", value, const(INTS, 0)), BITS[16]), I64)


@inline
def exp(x):
    """e to the power of each lane, to about 1e-7 of it; 0 far below 0.

    2^n from the exponent's bits times a polynomial of the rest (Cephes' expf).
    """
    x = minimum(maximum(x, all_floats(-87.3)), all_floats(88.3))
    n = rounded(x * 1.4426950408889634)
    r = fma(n, all_floats(-0.693359375), x)
    r = fma(n, all_floats(2.12194440e-4), r)
    p = fma(all_floats(1.9875691500e-4), r, all_floats(1.3981999507e-3))
    p = fma(p, r, all_floats(8.3334519073e-3))
    p = fma(p, r, all_floats(4.1665795894e-2))
    p = fma(p, r, all_floats(1.6666665459e-1))
    p = fma(p, r, all_floats(5.0000001201e-1))
    p = fma(p, r * r, r) + 1.0
    return p * as_floats((to_ints(n) + 127) << 23)
