"""How kernels say something new to LLVM: types, operations, and the processor that is being compiled for."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.ir as ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from .isa import ISAS, Isa

LANES = 16
BITS = {8: ir.IntType(8), 16: ir.IntType(16), 32: ir.IntType(32), 64: ir.IntType(64)}
I32, I64, F32 = BITS[32], BITS[64], ir.FloatType()
INTS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(F32, LANES)
BYTES = ir.VectorType(BITS[8], 4 * LANES)

# For small functions that kernels share: they become part of the kernel, for whatever processor it is compiled.
inline = njit(inline="always", error_model="numpy")


class VectorType(types.Type):  # type: ignore[misc]
    def __init__(self, name: str, llvm: ir.Type) -> None:
        self.llvm = llvm
        super().__init__(name=name)


ints, floats = VectorType("ints", INTS), VectorType("floats", FLOATS)


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, kind.llvm)


_compiling = threading.local()


@contextmanager
def compiled_for(isa: Isa) -> Iterator[None]:
    """Kernels compiled inside use what `isa` has."""
    before = getattr(_compiling, "isa", None)
    _compiling.isa = isa
    try:
        yield
    finally:
        _compiling.isa = before


def current_isa() -> Isa:
    """What the kernel that is being compiled is for."""
    isa: Isa = getattr(_compiling, "isa", None) or ISAS["generic"]
    return isa


def const(vector: ir.Type, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def splat(b: ir.IRBuilder, value: ir.Value, n: int = LANES) -> ir.Value:
    vector = ir.VectorType(value.type, n)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), const(ir.VectorType(I32, n), 0))


def load(b: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def store(b: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = 1


def call(b: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value, fastmath: Sequence[str] = ()) -> ir.Value:
    """An intrinsic function of LLVM."""
    signature = ir.FunctionType(result, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), args, fastmath=fastmath)


def fused(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    name = f"v{x.type.count}f32" if isinstance(x.type, ir.VectorType) else "f32"
    return call(b, f"llvm.fma.{name}", x.type, x, y, z)


def parts(b: ir.IRBuilder, vector: ir.Value, n: int) -> list[ir.Value]:
    """A vector in n pieces."""
    size = vector.type.count // n
    undefined = ir.Constant(vector.type, ir.Undefined)
    return [
        b.shuffle_vector(
            vector, undefined, ir.Constant(ir.VectorType(I32, size), list(range(i * size, (i + 1) * size)))
        )
        for i in range(n)
    ]


def whole(b: ir.IRBuilder, pieces: list[ir.Value]) -> ir.Value:
    """Pieces as one vector; their number is a power of two."""
    while len(pieces) > 1:
        size = 2 * pieces[0].type.count
        order = ir.Constant(ir.VectorType(I32, size), list(range(size)))
        pieces = [b.shuffle_vector(pieces[i], pieces[i + 1], order) for i in range(0, len(pieces), 2)]
    return pieces[0]


def op(result: Any, *takes: Any) -> Callable[[Callable[..., ir.Value]], Any]:
    """An operation of fixed types: the decorated function, given a builder and values, says it to LLVM."""

    def made(emit: Callable[..., ir.Value]) -> Any:
        def operation(context: Any, *args: Any) -> Any:
            def code(context: Any, b: ir.IRBuilder, sig: Any, values: Any) -> ir.Value:
                return emit(b, *values)

            return result(*takes), code

        # numba wants to see how many parameters there are.
        operation.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]
        operation.__name__, operation.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(operation)

    return made
