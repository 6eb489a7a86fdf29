"""Kernels for processors that are not here: compiled only. And the object code that is kept from process to process."""

from __future__ import annotations

import ctypes
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cpu_kernels import host_of, random_weights, runnable_isas

from naiad.quant import formats
from naiad.runtime.cpu_kernels import kernel as kernels
from naiad.runtime.cpu_kernels.activations import gate_rows, quantise
from naiad.runtime.cpu_kernels.isa import ISAS, features_for, find_isa
from naiad.runtime.cpu_kernels.kernel import Compiler, Host, compiled, optimised, serves, this_host
from naiad.runtime.cpu_kernels.product import product
from naiad.runtime.cpu_kernels.rows import dense
from naiad.runtime.cpu_kernels.scalars import store_float
from naiad.runtime.cpu_kernels.team import post
from naiad.runtime.cpu_kernels.tiles import pack_strips
from naiad.runtime.llm import _announcement

LINUX, ARM_LINUX = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"
HOSTS = {
    "AVX-512 VNNI": Host(LINUX, "icelake-server", "", ISAS["avx512vnni"]),
    "AVX-VNNI": Host(LINUX, "haswell", "+avx2,+fma,+f16c,+avxvnni", ISAS["avxvnni"]),
    "AVX2": Host(LINUX, "haswell", "", ISAS["avx2"]),
    "NEON": Host(ARM_LINUX, "generic", "+neon,+dotprod", ISAS["neon"]),
    "any ARM": Host(ARM_LINUX, "generic", "+neon", ISAS["generic"]),
    "macOS": Host("arm64-apple-darwin", "apple-m1", "", ISAS["neon"]),
    "Windows": Host("x86_64-pc-windows-msvc", "haswell", "", ISAS["avx2"]),
}
# What multiplies bytes there, and what must not be in the code.
DOTS = {
    "AVX-512 VNNI": (r"\bvpdpbusd\t.*%zmm", "vpmaddubsw"),
    "AVX-VNNI": (r"\{vex\}\s+vpdpbusd\t.*%ymm", "zmm"),
    "AVX2": (r"\bvpmaddubsw\t.*%ymm", "vpdpbusd"),
    "NEON": (r"\bsdot\tv\d+\.4s, v\d+\.16b", "smull"),
    "any ARM": (r"\bmla\tv\d+\.4s", "sdot"),
    "macOS": (r"\bsdot\.4s\tv\d+, v\d+", "smull"),
    "Windows": (r"\bvpmaddubsw\t.*%ymm", "vpdpbusd"),
}
CALL = re.compile(r"^\s+(?:callq?|bl|jmp)\s+([A-Za-z_]\w*)", re.MULTILINE)


def assembly(host: Host, kernel: kernels.Kernel, *constants: object) -> str:
    module, machine = optimised(kernel, constants, host)
    return str(machine.emit_assembly(module))


@pytest.mark.parametrize(
    ("name", "format"), [("AVX-VNNI", "Q4_K"), ("NEON", "Q4_K"), *((name, "Q8_0") for name in HOSTS)]
)
def test_products_elsewhere(name: str, format: str) -> None:
    found, (wanted, unwanted) = assembly(HOSTS[name], product, format, 1), DOTS[name]
    assert re.search(wanted, found)
    assert unwanted not in found
    assert set(CALL.findall(found)) <= {"memcpy", "memset"}


@pytest.mark.parametrize("name", ["AVX2", "NEON"])
def test_nothing_else_is_called(name: str) -> None:
    """Whatever a kernel cannot do by itself would have to be found when it is loaded."""
    for kernel, constants in ((gate_rows, ("gelu",)), (quantise, ()), (dense, ("IQ2_XXS", "BF16"))):
        assert set(CALL.findall(assembly(HOSTS[name], kernel, *constants))) <= {"memcpy", "memset"}


@pytest.mark.parametrize(
    ("name", "magic"), [("NEON", b"\x7fELF"), ("macOS", b"\xcf\xfa\xed\xfe"), ("Windows", b"\x64\x86")]
)
def test_objects_of_other_systems(name: str, magic: bytes) -> None:
    assert compiled(pack_strips, (), HOSTS[name]).startswith(magic)


@pytest.mark.parametrize(
    ("features", "isa"),
    [
        ("avx2 fma f16c avx512f avx512bw avx512vl avx512vnni", "avx512vnni"),
        ("avx2 fma f16c avx512f avx512bw avx512vl", "avx2"),
        ("avx2 fma f16c avxvnni", "avxvnni"),
        ("avx2 fma", "generic"),
        ("neon dotprod", "neon"),
        ("neon", "generic"),
        ("", "generic"),
    ],
)
def test_the_best_instructions_are_found(features: str, isa: str) -> None:
    found = {"sse2": True, "avxvnniint8": False, **dict.fromkeys(features.split(), True)}
    assert find_isa(found).name == isa


ALL = "avx2 fma f16c avx512f avx512bw avx512vl avx512vnni avxvnni"


@pytest.mark.parametrize(
    ("name", "features", "left"),
    [
        ("avx512vnni", ALL, ALL),
        ("avxvnni", ALL, "avx2 fma f16c avxvnni"),
        ("avx2", ALL, "avx2 fma f16c"),
        ("generic", ALL, "fma f16c"),
        ("generic", "neon dotprod i8mm", "neon"),
    ],
)
def test_better_instructions_are_left_out(name: str, features: str, left: str) -> None:
    found = features_for(name, dict.fromkeys(features.split(), True))
    assert {feature for feature, there in found.items() if there} == set(left.split())
    assert find_isa(found).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("avx512vnni", "this processor cannot run avx512vnni: it has no avx512f, avx512bw, avx512vl, avx512vnni"),
        ("avx2", "this processor cannot run avx2: it has no f16c"),
        ("AVX2", "expected an instruction set of avx512vnni, avxvnni, avx2, neon, generic, found 'AVX2'"),
    ],
)
def test_instructions_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        features_for(name, {"avx2": True, "fma": True, "f16c": False})


def test_code_has_only_what_was_asked_for() -> None:
    """As if this processor had nothing better."""
    for name, unwanted in (("avx2", "%zmm|vpdpbusd"), ("generic", "%zmm|vpadd.*%ymm|vpdpbusd|vpmaddubsw")):
        if name in runnable_isas():
            host = host_of(name)
            assert host.isa.name == name and serves(host)
            assert not re.search(unwanted, assembly(host, product, "Q4_0", 1))


@pytest.mark.parametrize("function", [math.exp, math.atan])
def test_kernels_that_need_a_library_are_refused(function: Callable[..., float]) -> None:
    @kernels.kernel
    def curve(x, counter, thread, n_threads):  # type: ignore[no-untyped-def]
        store_float(x, np.float32(function(thread)))

    with pytest.raises(AssertionError, match="curve needs functions that may not be there"):
        compiled(curve, (), this_host())


# ---- kept object code ----


def compile_count(folder: Path) -> int:
    """How many kernels a process compiles that wants one."""
    compiler = Compiler(this_host(), folder)
    assert compiler.address(quantise)
    return compiler.n_compiled


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    program = f"""
from pathlib import Path
from naiad.runtime.cpu_kernels.activations import quantise
from naiad.runtime.cpu_kernels.kernel import Compiler, this_host
compiler = Compiler(this_host(), Path({str(folder)!r}))
print(bool(compiler.address(quantise)), compiler.n_compiled)
"""
    for answer in ("True 1\n", "True 0\n"):
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert found.stdout == answer
    assert folder.stat().st_mode & 0o777 == 0o700 or sys.platform == "win32"


def test_tables_are_kept_with_the_code(tmp_path: Path) -> None:
    """A kernel with a codebook, loaded from a file, decodes what the twin does."""
    weights = random_weights(formats.IQ2_XXS, 16, 256)
    Compiler(this_host(), tmp_path).address(dense, "IQ2_XXS", "F32")
    compiler = Compiler(this_host(), tmp_path)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(compiler.address(dense, "IQ2_XXS", "F32"))
    assert compiler.n_compiled == 0
    y, counter = torch.full((16, 256), torch.nan), np.zeros(1, np.int64)
    given = {"weights": weights.address, "n_units": 1, "n_out": 16, "y": y.data_ptr(), "y_stride": 4 * 256}
    arguments = np.array([given[name] for name in dense.parameters("IQ2_XXS", "F32")])
    call(arguments.ctypes.data, counter.ctypes.data, 0, 1)
    assert torch.equal(y, weights.numbers)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "shorter than its digest": lambda data: data[:20],
    "truncated": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(len(data)),
    "a changed bit": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "a changed digest": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "longer": lambda data: data + b"\0",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one kernel."""
    folder = tmp_path_factory.mktemp("kept")
    compile_count(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_compiled_again(kept: Path, damage: str) -> None:
    (path,) = kept.glob("*.o")
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    assert compile_count(kept) == 1
    assert compile_count(kept) == 0
    assert len(list(kept.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
@pytest.mark.parametrize("whose", ["everybody's", "a group's", "somebody else's"])
def test_folders_of_others_are_not_used(kept: Path, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in kept.iterdir())
    if whose == "somebody else's":
        me = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    else:
        kept.chmod(0o777 if whose == "everybody's" else 0o770)
    told: list[tuple[str, bool]] = []
    compiler = Compiler(this_host(), kept, on_compile=lambda *what: told.append(what))
    try:
        with pytest.warns(UserWarning, match="kernels are compiled at every start, as they cannot be kept: ") as noted:
            assert compiler.address(quantise) and compiler.address(post)
    finally:
        kept.chmod(0o700)
    assert told == [("quantise", False), ("post", False)] and len(noted) == 1
    assert sorted((path.name, path.stat().st_mtime_ns) for path in kept.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
@pytest.mark.parametrize("planted", ["writable by a group", "with a second name", "a link"])
def test_files_of_others_are_compiled_again(kept: Path, planted: str, tmp_path: Path) -> None:
    (path,) = kept.glob("*.o")
    if planted == "writable by a group":
        path.chmod(0o660)
    elif planted == "with a second name":
        os.link(path, tmp_path / "other")
    else:
        path.rename(tmp_path / "other").chmod(0o600)
        path.symlink_to(tmp_path / "other")
    assert compile_count(kept) == 1
    assert compile_count(kept) == 0


def test_without_a_place_to_write_it_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be kept: .*file is no folder"):
        assert compile_count(tmp_path / "file") == 1
    told: list[tuple[str, bool]] = []
    assert Compiler(this_host(), None, on_compile=lambda *what: told.append(what)).address(quantise)
    assert told == [("quantise", False)]


def test_who_waits_is_told_what_the_next_start_need_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = Compiler(this_host(), tmp_path, on_compile=_announcement(wanted=True))
    assert compiler.address(quantise)
    assert capsys.readouterr().err == "compiling kernels for this processor, which the next start need not do ...\n"
    # As on a read-only file system, where root may not write, either.
    monkeypatch.setattr(os, "access", lambda *_: False)
    compiler = Compiler(this_host(), tmp_path, on_compile=_announcement(wanted=True))
    assert compiler.address(post)
    assert capsys.readouterr().err == "compiling kernels for this processor ...\n"


def test_other_sources_are_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_count(tmp_path)
    monkeypatch.setattr(kernels, "_sources", lambda: "changed")
    assert compile_count(tmp_path) == 1
