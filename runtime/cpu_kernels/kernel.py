"""Kernels: Python functions compiled for this processor, kept on disk as object code.

A kernel is a function of integers (addresses, sizes, numbers' bits) and of a `Task`'s three integers, all intp. What
numba makes of it is compiled once more without numba's wrapper, so that nothing of Python is left in it, and stored
under a digest of everything that it depends on: the next process loads it without numba's compiler.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from ...loaders.private import PrivateFolder, private_folder
from ..forks import Forked
from .isa import Isa, features_for, find_isa

# counter, thread, n_threads: see programs.py.
N_TASK = 3
# Files end with a SHA-256 of the rest.
DIGEST_BYTES = 32
# No kernel is as large; a file that is was not written by `_object`.
MAX_BYTES = 2**25
# Operations of LLVM that become calls of a library.
LIBM = {"exp", "exp2", "exp10", "log", "log2", "log10", "sin", "cos", "tan", "pow", "powi", "ldexp", "frexp"}
_lock = threading.RLock()


@dataclass(frozen=True, slots=True)
class Host:
    """The processor that kernels are compiled for."""

    triple: str
    cpu: str
    features: str
    isa: Isa


@cache
def this_host(isa: str | None = None) -> Host:
    """The processor at hand; isa: as if it had nothing better than these instructions (isa.py).

    ValueError where it lacks them.
    """
    features = dict(llvm.get_host_cpu_features())
    if isa is not None:
        features = features_for(isa, features)
    # What is there comes first: a feature implies others, and one that is not there takes away those that imply it.
    signs = [("+" if there else "-") + name for name, there in sorted(features.items(), key=lambda item: not item[1])]
    return Host(llvm.get_process_triple(), llvm.get_host_cpu_name(), ",".join(signs), find_isa(features))


def serves(host: Host) -> bool:
    """Whether kernels can be made for a host: without instructions for float16 and fma they would call functions that
    need not be there."""
    has = host.features.split(",")
    return host.triple.startswith(("aarch64", "arm64")) or ("+f16c" in has and "+fma" in has)


class _Lock(Forked):
    """What is compiled or loaded when the process forks is done first: LLVM is not to be left half-way in the child."""

    def before_fork(self) -> None:
        _lock.acquire()

    def after_fork_in_parent(self) -> None:
        _lock.release()

    after_fork_in_child = after_fork_in_parent


@cache
def _watched_lock() -> _Lock:
    watched = _Lock()
    watched.watch_forks()
    return watched


@dataclass(slots=True)
class Compiler:
    """Makes kernels for a host.

    folder: where object code is kept; None keeps none, and one that others could have written to is not used, with a
    warning. on_compile: told the name of every kernel that is compiled, which takes about a second each, and whether it
    will be kept.
    """

    host: Host
    folder: Path | None
    on_compile: Callable[[str, bool], None] = lambda name, kept: None
    n_compiled: int = 0
    _private: PrivateFolder | None = None
    _addresses: dict[tuple[str, tuple[Any, ...]], int] = field(default_factory=dict)
    _engine: Any = None

    def address(self, kernel: Kernel, *constants: Any) -> int:
        """The address of a kernel as void(arguments, counter, thread, n_threads), compiled if need be."""
        key = (kernel.name, constants)
        _watched_lock()
        with _lock:
            if key not in self._addresses:
                self._addresses[key] = self._loaded(self._object(kernel, constants), _symbol(kernel, constants))
            return self._addresses[key]

    def private(self) -> PrivateFolder | None:
        """The folder, if what lies there can be trusted."""
        if self.folder is not None and self._private is None:
            try:
                self._private = private_folder(self.folder)
            except OSError as error:
                warnings.warn(f"kernels are compiled at every start, as they cannot be kept: {error}", stacklevel=2)
                self.folder = None
        return self._private

    def _object(self, kernel: Kernel, constants: tuple[Any, ...]) -> bytes:
        folder, name = self.private(), ""
        if folder is not None:
            digest = hashlib.sha256(
                repr((_sources(), str(self.host), llvmlite.__version__, kernel.name, constants)).encode()
            ).hexdigest()
            name = f"{kernel.name}-{digest[:32]}.o"
            kept = _whole(folder.read(name, MAX_BYTES))
            if kept is not None:
                return kept
        self.on_compile(kernel.name, folder is not None and folder.writable)
        self.n_compiled += 1
        code = compiled(kernel, constants, self.host)
        if folder is not None:
            folder.write(name, code + hashlib.sha256(code).digest())
        return code

    def _loaded(self, code: bytes, symbol: str) -> int:
        if self._engine is None:
            machine = _machine(self.host)
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        address: int = self._engine.get_function_address(symbol)
        assert address, symbol
        return address


class Kernel:
    """A function that `kernel` or `kernel_family` has decorated."""

    def __init__(self, name: str, make: Callable[..., Callable[..., None]], parameters: list[str] | None) -> None:
        self.name, self.make = name, make
        self._parameters = {} if parameters is None else {(): parameters}

    def parameters(self, *constants: Any) -> list[str]:
        """The names of the arguments, without those of the task."""
        if constants not in self._parameters:
            self._parameters[constants] = _parameters(self.make(*constants))
        return self._parameters[constants]


def _parameters(function: Callable[..., None]) -> list[str]:
    names = list(inspect.signature(function).parameters)
    assert names[-N_TASK:] == ["counter", "thread", "n_threads"], names
    return names[:-N_TASK]


def kernel(function: Callable[..., None]) -> Kernel:
    """A kernel: its last parameters are counter, thread and n_threads."""
    return Kernel(function.__name__, lambda: function, _parameters(function))


def kernel_family(make: Callable[..., Callable[..., None]]) -> Kernel:
    """Kernels that differ in constants: `make` takes them and returns the function."""
    return Kernel(make.__name__, make, None)


def compiled(kernel: Kernel, constants: tuple[Any, ...], host: Host) -> bytes:
    """A kernel's object code, which defines one symbol and needs none of Python's."""
    module, machine = optimised(kernel, constants, host)
    code: bytes = machine.emit_object(module)
    return code


def optimised(kernel: Kernel, constants: tuple[Any, ...], host: Host) -> tuple[Any, Any]:
    """A kernel's module, and the machine that makes object code or assembly of it. The host may be any."""
    from .lower import lowered

    machine = _machine(host)
    module = llvm.parse_assembly(lowered(kernel, constants, host, _symbol(kernel, constants)))
    module.triple, module.data_layout = host.triple, str(machine.target_data)
    for function in module.functions:
        if not function.is_declaration and function.name != _symbol(kernel, constants):
            function.linkage = llvm.Linkage.internal
    module.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    declared = [function.name for function in module.functions if function.is_declaration]
    needed = [name for name in declared if not name.startswith("llvm.") or name.split(".")[1] in LIBM]
    assert set(needed) <= {"memcpy", "memset"}, f"{kernel.name} needs functions that may not be there: {needed}"
    return module, machine


def _symbol(kernel: Kernel, constants: tuple[Any, ...]) -> str:
    return "_".join(["naiad", kernel.name, *(str(c).replace(".", "_") for c in constants)])


@cache
def _initialize(*, foreign: bool) -> None:
    """Prepares LLVM for this processor's code, or for all."""
    if foreign:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    else:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()


def _machine(host: Host) -> Any:
    _initialize(foreign=host.triple != llvm.get_process_triple())
    target = llvm.Target.from_triple(host.triple)
    # Position-independent code with small displacements may be loaded anywhere.
    return target.create_target_machine(
        opt=3, cpu=host.cpu, features=host.features, reloc="pic", codemodel="small", jit=True
    )


@cache
def _sources() -> str:
    """A digest of all that kernels are made of, and of numba's version."""
    from importlib.metadata import version

    digest = hashlib.sha256(version("numba").encode())
    here, tables = Path(__file__).parent, Path(__file__).parents[2] / "quant"
    for path in (*sorted(here.glob("*.py")), tables / "formats.py", tables / "codebooks.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _whole(data: bytes | None) -> bytes | None:
    """Object code without its digest; None where there is none, or it is damaged."""
    code = data[:-DIGEST_BYTES] if data is not None else b""
    return code if data is not None and hashlib.sha256(code).digest() == data[-DIGEST_BYTES:] else None
