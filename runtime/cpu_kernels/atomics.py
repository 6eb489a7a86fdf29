"""What threads that share an instruction say to each other through memory."""

from __future__ import annotations

import llvmlite.ir as ir
from numba import types

from .language import I32, I64, call, inline, op


@op(types.intp, types.intp, types.int64)
def add_atomic(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> ir.Value:
    """Adds to an int64 that others add to, too; what it was before."""
    return b.atomic_rmw("add", b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@op(types.intp, types.intp, types.int64)
def exchange_atomic(b: ir.IRBuilder, address: ir.Value, value: ir.Value) -> ir.Value:
    """Sets an int64; what it was before."""
    return b.atomic_rmw("xchg", b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@op(types.intp, types.intp)
def load_atomic(b: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return b.load_atomic(b.inttoptr(address, I64.as_pointer()), "seq_cst", 8)


@op(types.void)
def pause(b: ir.IRBuilder) -> None:
    """Tells the core that this thread waits."""
    triple = b.module.triple
    if "86" in triple:
        call(b, "llvm.x86.sse2.pause", ir.VoidType())
    elif triple.startswith(("aarch64", "arm64")):
        call(b, "llvm.aarch64.hint", ir.VoidType(), I32(1))


@op(types.void, types.intp)
def call_plain(b: ir.IRBuilder, address: ir.Value) -> None:
    """Calls void f()."""
    b.call(b.inttoptr(address, ir.FunctionType(ir.VoidType(), []).as_pointer()), [])


@op(types.void, types.intp, types.intp, types.intp, types.intp, types.intp)
def call_kernel(
    b: ir.IRBuilder, address: ir.Value, arguments: ir.Value, counter: ir.Value, thread: ir.Value, n_threads: ir.Value
) -> None:
    signature = ir.FunctionType(ir.VoidType(), [I64] * 4)
    b.call(b.inttoptr(address, signature.as_pointer()), [arguments, counter, thread, n_threads])


@inline
def next_task(counter):
    """The number of a piece of an instruction's work that no thread has taken yet."""
    return add_atomic(counter, 1)
