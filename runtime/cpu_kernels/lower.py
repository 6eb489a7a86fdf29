"""From a kernel to LLVM's language, by numba. Only processes that compile something import this."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from numba import config, types
from numba.core.compiler import Flags, compile_extra
from numba.core.registry import cpu_target

from .kernel import N_TASK, Host, Kernel
from .language import compiled_for


@contextmanager
def _unoptimised() -> Iterator[None]:
    """Optimising is left to `kernel.compiled`, which has the whole to look at."""
    before = config.OPT
    config.OPT = type(before)(0)
    try:
        yield
    finally:
        config.OPT = before


def _native(function: Callable[..., None], n: int) -> tuple[str, str]:
    """A function of n intp as numba compiles it, before there is machine code: a module, and its name there."""
    flags = Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    contexts = cpu_target.typing_context, cpu_target.target_context
    with _unoptimised():
        found = compile_extra(*contexts, function, (types.intp,) * n, types.void, flags, {})
    module = llvm.parse_assembly(found.library.get_llvm_str())
    # Python's functions, such as min, which numba compiles by themselves; two of them may bring the same third one.
    for library in dict.fromkeys(found.library._linking_libraries):
        other = llvm.parse_assembly(library.get_llvm_str())
        for used in other.functions:
            if not used.is_declaration:
                used.linkage = llvm.Linkage.linkonce_odr
        module.link_in(other)
    return str(module), found.fndesc.llvm_func_name


def lowered(kernel: Kernel, constants: tuple[Any, ...], host: Host, symbol: str) -> str:
    """The module of a kernel, with the function void `symbol`(arguments, counter, thread, n_threads)."""
    function: Callable[..., None] = kernel.make(*constants)
    n = len(kernel.parameters(*constants))
    with compiled_for(host.isa):
        text, name = _native(function, n + N_TASK)
    loads = "".join(
        f"  %place{i} = getelementptr i64, ptr %values, i64 {i}\n  %value{i} = load i64, ptr %place{i}\n"
        for i in range(n)
    )
    arguments = "".join(f"i64 %value{i}, " for i in range(n))
    return f"""{text}
define void @{symbol}(i64 %address, i64 %counter, i64 %thread, i64 %n_threads) {{
  %values = inttoptr i64 %address to ptr
{loads}  %result = alloca ptr
  %error = alloca ptr
  %status = call i32 @{name}(ptr %result, ptr %error, {arguments}i64 %counter, i64 %thread, i64 %n_threads)
  ret void
}}
"""
