"""Repairs for Triton's interpreter (TRITON_INTERPRET=1), as Triton 3.6.0 and 3.9.0 have it.

It keeps bfloat16 as uint16 and computes with these bits as if they were integers, truncates where it converts to
bfloat16, and with numpy >= 2.4 Triton 3.6.0 cannot use a tensor of one element as the bound of a range. It also
spends most of its time on what never changes: it prepares the language anew for every function that a kernel calls,
describes the same types and shapes again for every value, and computes an overflow that nobody looks at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# What is patched, with the parameters that the patches rely on.
SIGNATURES = {
    "InterpreterBuilder.cast_impl": "self src dst_type",
    "InterpreterBuilder.unary_op": "self arg op",
    "InterpreterBuilder.binary_op": "self lhs rhs op",
    "InterpreterBuilder.ternary_op": "self lhs rhs other op",
    "InterpreterBuilder.create_fma": "self x y z",
    "InterpreterBuilder.create_dot": "self a b d input_precision max_num_imprecise_acc",
    "ReduceOps.sum": "self input",
    "ReduceOps.min_max": "self input val_reduce_op idx_reduce_op",
    "ScanOps.cumsum": "self input",
    "ScanOps.cumprod": "self input",
    "ReduceScanOpInterface.to_tensor": "self ret dtype",
    "_patch_lang_tensor": "tensor scope",
    "_patch_lang": "fn",
    "GridExecutor.__call__": "self args_dev kwargs",
    "InterpretedFunction.__call__": "self args kwargs",
    "_get_np_dtype": "tt_dtype",
    "tl.block_type.__init__": "self element_ty shape",
    "tl.tensor.__init__": "self handle type",
    "TritonSemantic.broadcast_impl_value": "self lhs rhs",
    "TritonSemantic.binary_op_sanitize_overflow_impl": "self lhs rhs binary_op",
}


def repair() -> None:
    """Make the interpreter compute bfloat16 in float32, rounded to nearest even, and remember what it made.

    Nothing happens without Triton, nor a second time. It imports Triton, which reads TRITON_INTERPRET just then.
    RuntimeError where Triton's internals are others than those patched here.
    """
    if find_spec("triton") is None:
        return
    from triton.runtime import interpreter as stock

    if hasattr(stock, "bf16_repaired"):
        return
    _check(stock)
    builder = stock.InterpreterBuilder
    for name in ("unary_op", "binary_op", "ternary_op", "create_fma"):
        setattr(builder, name, _through_float32(stock, getattr(builder, name), rounded=True))
    builder.create_dot = _through_float32(stock, builder.create_dot, rounded=False)
    _repair_casts(stock)
    _repair_reductions(stock)
    _repair_index(stock)
    _repair_calls(stock)
    _remember_types(stock)
    _skip_unread_checks(stock)
    stock.bf16_repaired = True


def _check(stock: Any) -> None:
    for path, expected in SIGNATURES.items():
        try:
            found = " ".join(inspect.signature(attrgetter(path)(stock)).parameters)
        except AttributeError:
            found = "nothing of that name"
        if found != expected:
            _refuse(stock, path, found, expected)
    storage = stock._get_np_dtype(stock.tl.bfloat16)
    if storage != np.uint16:
        _refuse(stock, "_get_np_dtype(bfloat16)", str(storage), "uint16")


def _refuse(stock: Any, name: str, found: str, expected: str) -> None:
    raise RuntimeError(
        f"tests/interpreter.py cannot repair the interpreter of Triton {stock.triton.__version__}: "
        f"{stock.__name__}.{name}: got {found}, expected {expected}"
    )


def _to_float32(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bits(values: Array) -> Array:
    """Bits of the nearest bfloat16, the even one of two; by way of float32, as torch does it. NaN stays NaN."""
    bits = np.asarray(values).astype(np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, nearest).astype(np.uint16)


def _is_bf16(stock: Any, handle: Any) -> bool:
    return isinstance(handle, stock.TensorHandle) and handle.dtype.scalar == stock.tl.bfloat16


def _widened(stock: Any, handle: Any) -> Any:
    if not _is_bf16(stock, handle):
        return handle
    return stock.TensorHandle(_to_float32(handle.data), stock.tl.float32)


def _through_float32(stock: Any, method: Callable[..., Any], rounded: bool) -> Callable[..., Any]:
    def wrapper(self: Any, *args: Any) -> Any:
        selects = args[-1] is np.where  # which moves bits, whatever they mean
        if selects or not any(_is_bf16(stock, arg) for arg in args):
            return method(self, *args)
        result = method(self, *(_widened(stock, arg) for arg in args))
        if not rounded or result.data.dtype == np.bool_:
            return result
        return stock.TensorHandle(_to_bits(result.data), stock.tl.bfloat16)

    return wrapper


def _repair_casts(stock: Any) -> None:
    builder, bfloat16 = stock.InterpreterBuilder, stock.tl.bfloat16
    cast = builder.cast_impl

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == bfloat16 and not _is_bf16(stock, src):
            return stock.TensorHandle(_to_bits(src.data), bfloat16)
        return cast(self, src if dst_type.scalar == bfloat16 else _widened(stock, src), dst_type)

    builder.cast_impl = cast_impl
    if not hasattr(builder, "get_bf16"):  # Triton 3.6.0: there are no constants of this type
        builder.get_bf16 = lambda self, value: self.cast_impl(self.get_fp32(value), bfloat16)


def _repair_reductions(stock: Any) -> None:
    """sum, min, max, cumsum, cumprod: they get float32 data, and to_tensor() rounds the result to the input's type."""
    stock_to_tensor = stock.ReduceScanOpInterface.to_tensor

    def to_tensor(self: Any, ret: Any, dtype: Any) -> Any:
        floats = np.asarray(ret).dtype == np.float32
        return stock_to_tensor(self, _to_bits(ret) if floats and dtype == stock.tl.bfloat16 else ret, dtype)

    def widening(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
            return method(self, stock.tl.tensor(_widened(stock, input.handle), input.type), *args, **kwargs)

        return wrapper

    stock.ReduceScanOpInterface.to_tensor = to_tensor
    for owner, name in (
        (stock.ReduceOps, "sum"),
        (stock.ReduceOps, "min_max"),
        (stock.ScanOps, "cumsum"),
        (stock.ScanOps, "cumprod"),
    ):
        setattr(owner, name, widening(getattr(owner, name)))


def _repair_index(stock: Any) -> None:
    patch_lang_tensor = stock._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch_lang_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    stock._patch_lang_tensor = patched


def _repair_calls(stock: Any) -> None:
    """A function called by a kernel only prepares modules that its kernel has not prepared already."""
    prepare, run = stock._patch_lang, stock.GridExecutor.__call__
    prepared: set[str] = set()
    known: dict[Any, set[str]] = {}

    def languages(fn: Any) -> set[str]:
        if fn not in known:
            modules = [value for value in fn.__globals__.values() if inspect.ismodule(value)]
            known[fn] = {module.__name__ for module in modules if module in (stock.tl, stock.tl.core)}
        return known[fn]

    def run_grid(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared.clear()
        prepared.update(languages(self.fn))
        return run(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not languages(self.fn) <= prepared:
            prepare(self.fn)
            prepared.update(languages(self.fn))
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise stock.InterpreterError(repr(error)) from error

    stock.GridExecutor.__call__ = run_grid
    stock.InterpretedFunction.__call__ = call


def _remember_types(stock: Any) -> None:
    """One object for equal types of blocks, and one for equal shapes of tensors: they are made for every operation."""
    block_type, find_dtype = stock.tl.block_type, stock._get_np_dtype
    blocks: dict[Any, Any] = {}
    shapes: dict[Any, tuple[Any, Any]] = {}
    dtypes: dict[str, Any] = {}
    describe_block, describe_tensor = block_type.__init__, stock.tl.tensor.__init__
    broadcast_others = stock.TritonSemantic.broadcast_impl_value

    def make_block(cls: Any, element_ty: Any, shape: Any) -> Any:
        sizes = tuple(int(getattr(size, "value", size)) for size in getattr(shape, "value", shape))
        space, const = getattr(element_ty, "address_space", None), getattr(element_ty, "const", None)
        key = element_ty.name, space, const, sizes
        if key not in blocks:
            blocks[key] = object.__new__(cls)
            blocks[key].sizes = sizes
        return blocks[key]

    def fill_block(self: Any, element_ty: Any, shape: Any) -> None:
        if "name" not in self.__dict__:
            describe_block(self, element_ty, shape)

    def fill_tensor(self: Any, handle: Any, type: Any) -> None:
        key = type.sizes if type.is_block() else ()
        if key not in shapes:
            describe_tensor(self, handle, type)
            shapes[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[key]

    def np_dtype(tt_dtype: Any) -> Any:
        if tt_dtype.name not in dtypes:
            dtypes[tt_dtype.name] = find_dtype(tt_dtype)
        return dtypes[tt_dtype.name]

    def broadcast(self: Any, lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.shape is rhs.shape else broadcast_others(self, lhs, rhs)

    block_type.__new__, block_type.__init__ = make_block, fill_block
    stock.TritonSemantic.broadcast_impl_value = broadcast
    stock.tl.tensor.__init__ = fill_tensor
    stock._get_np_dtype = np_dtype


def _skip_unread_checks(stock: Any) -> None:
    """Whether integers overflow is asserted in debug mode alone, but computed for every sum and product."""
    check = stock.TritonSemantic.binary_op_sanitize_overflow_impl

    def checked(self: Any, lhs: Any, rhs: Any, binary_op: Any) -> None:
        if self.builder.options.debug:
            check(self, lhs, rhs, binary_op)

    stock.TritonSemantic.binary_op_sanitize_overflow_impl = checked
