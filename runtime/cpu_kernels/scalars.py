"""Single numbers in memory, for kernels. Addresses are plain integers; nothing has to be aligned."""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.extending import intrinsic

from .language import BITS, F32, I32, I64, call, load, op, store


@op(types.intp, types.intp)
def load_int(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """An int64."""
    return load(b, address, I64)


@op(types.int64, types.intp)
def load_int32(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return b.sext(load(b, address, I32), I64)


@op(types.int64, types.intp)
def load_byte(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """A uint8."""
    return b.zext(load(b, address, BITS[8]), I64)


@op(types.int64, types.intp)
def load_short(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """A uint16."""
    return b.zext(load(b, address, BITS[16]), I64)


@op(types.float32, types.intp)
def load_float(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return load(b, address, F32)


@op(types.void, types.intp, types.int64)
def store_int(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """An int64."""
    store(b, value, address)


@op(types.void, types.intp, types.int64)
def store_int32(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    store(b, b.trunc(value, I32), address)


@op(types.void, types.intp, types.int64)
def store_short(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    store(b, b.trunc(value, BITS[16]), address)


@op(types.void, types.intp, types.int64)
def store_byte(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    store(b, b.trunc(value, BITS[8]), address)


@op(types.void, types.intp, types.float32)
def store_float(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    store(b, value, address)


@op(types.void, types.intp, types.float32)
def store_half(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    store(b, b.fptrunc(value, ir.HalfType()), address)


def emit_prefetch(b: ir.IRBuilder, address: ir.Value) -> None:
    """Asks for a cache line that will be read after a while; it need not be there."""
    pointer = b.inttoptr(address, BITS[8].as_pointer())
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))


prefetch = op(types.void, types.intp)(emit_prefetch)


@op(types.float32, types.float32)
def square_root(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return call(b, "llvm.sqrt.f32", F32, value)


@op(types.float32, types.int64)
def number(b: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """A float32 that a kernel was given as an integer (programs.py)."""
    return b.bitcast(b.trunc(bits, I32), F32)


@intrinsic(prefer_literal=True)
def scratch(context: Any, n_bytes: Any) -> Any:
    """The address of n_bytes (a constant) of the kernel's own memory, aligned to 64; it holds anything."""
    if not isinstance(n_bytes, types.IntegerLiteral):
        return None

    def code(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        with b.goto_entry_block():
            memory = b.alloca(ir.ArrayType(BITS[8], n_bytes.literal_value))
            memory.align = 64
        return b.ptrtoint(memory, I64)

    return types.intp(n_bytes), code
