"""What the tests of CPU kernels share: compiled kernels, a team of two threads, weights in strips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from naiad.loaders.private import user_cache
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import Format
from naiad.runtime.cpu_kernels.isa import ISAS
from naiad.runtime.cpu_kernels.kernel import Compiler, Host, this_host
from naiad.runtime.cpu_kernels.programs import Program
from naiad.runtime.cpu_kernels.team import Team
from naiad.runtime.cpu_kernels.tiles import items, n_strips, pack_strips, strip_bytes

N_THREADS = 2
# Where all kernels are kept: compiling is most of the time that these tests take.
FOLDER = user_cache("kernels")


def runnable_isas() -> list[str]:
    """The instruction sets that this processor can execute, its own first."""
    features = llvm.get_host_cpu_features()
    found = [name for name, isa in ISAS.items() if all(features.get(need) for need in isa.needs)]
    # In its own encoding few have AVX-VNNI; AVX-512 has the same instruction.
    return [*found, "avxvnni"] if "avx512vnni" in found and "avxvnni" not in found else found


def host_of(isa: str) -> Host:
    """This processor, as if it had nothing better than an instruction set of `runnable_isas`."""
    if isa == "avxvnni" and this_host().isa.name == "avx512vnni":
        return replace(this_host(), isa=ISAS[isa])
    return this_host(isa)


@cache
def cpu_team(isa: str = this_host().isa.name) -> tuple[Compiler, Team]:
    """Kernels for an instruction set, kept on disk, and threads that run them."""
    compiler = Compiler(host_of(isa), FOLDER)
    return compiler, Team(compiler, N_THREADS)


def run_kernel(kernel: object, *constants: object, isa: str = this_host().isa.name, **arguments: int | float) -> None:
    """One kernel on all threads."""
    compiler, team = cpu_team(isa)
    program = Program(compiler)
    program.add(kernel, *constants, **arguments)  # type: ignore[arg-type]
    team.run(program, N_THREADS)


# ---- weights ----

# Formats of plain numbers that matrices come in.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def random_rows(fmt: Format, n_out: int, n_in: int, *, exact: bool) -> Tensor:
    """uint8 [n_out, bytes per row]: random codes; scales are powers of two that differ little, or any ordinary ones.

    exact: products with small integers and their sums are exact in float32.
    """
    if not fmt.is_quantized:
        values = torch.randint(-8, 9, (n_out, n_in)) / 8 if exact else torch.randn(n_out, n_in)
        return values.to(DTYPES[fmt.name]).view(torch.uint8)
    blocks = torch.randint(0, 256, (n_out * fmt.row_bytes(n_in) // fmt.type_size, fmt.type_size), dtype=torch.uint8)
    start = 0
    for field in fmt.fields:
        part, shape = blocks[:, start : start + field.n_bytes], (len(blocks), field.count)
        scales = torch.randint(2, 4, shape).exp2() / 64 if exact else torch.rand(shape) / 64 + 0.001
        scales *= torch.randint(0, 2, shape) * 2 - 1
        if field.dtype in ("f16", "f32"):
            part.copy_(scales.to({"f16": torch.float16, "f32": torch.float32}[field.dtype]).view(torch.uint8))
        elif (fmt.name, field.name) == ("MXFP4", "e"):
            part.copy_(torch.randint(122, 125, shape))
        elif (fmt.name, field.name) == ("NVFP4", "d"):
            part.copy_(torch.randint(0, 0x38, shape))
        elif (fmt.name, field.name) == ("IQ1_M", "scales"):
            bits = scales[:, 0].half().view(torch.int16).int()
            for i in range(4):
                part[:, 2 * i + 1] = part[:, 2 * i + 1] & 15 | ((bits >> 4 * i & 15) << 4).to(torch.uint8)
        start += field.n_bytes
    return blocks.view(n_out, -1)


@dataclass(frozen=True)
class Weights:
    """A matrix: as a file has it, in strips, and as numbers."""

    fmt: Format
    n_out: int
    n_in: int
    strips: npt.NDArray[np.uint8]
    numbers: Tensor

    @property
    def n_units(self) -> int:
        """Blocks of a row."""
        return self.n_in // self.fmt.block_size

    @property
    def n_strips(self) -> int:
        """Strips, of which the last may have fewer rows."""
        return n_strips(self.n_out)

    @property
    def address(self) -> int:
        """Of the strips."""
        return int(self.strips.ctypes.data)


def packed(rows: Tensor, fmt: Format, n_in: int) -> npt.NDArray[np.uint8]:
    """Strips of matrices: rows uint8 [matrices, n_out, row bytes] to [matrices * strips, strip bytes]."""
    n_matrices, n_out, row_bytes = rows.shape
    rows = rows.contiguous()
    strips = np.zeros((n_matrices * n_strips(n_out), strip_bytes(fmt, n_in)), np.uint8)
    table = np.array(items(fmt), np.int64)
    run_kernel(
        pack_strips,
        source=rows.data_ptr(),
        target=strips.ctypes.data,
        table=table.ctypes.data,
        n_fields=len(table),
        row_bytes=row_bytes,
        n_rows=n_out,
        type_size=fmt.type_size,
        n_matrices=n_matrices,
    )
    return strips


def random_weights(fmt: Format, n_out: int, n_in: int, *, exact: bool = False) -> Weights:
    """A matrix with random weights."""
    rows = random_rows(fmt, n_out, n_in, exact=exact)
    return Weights(fmt, n_out, n_in, packed(rows[None], fmt, n_in), dequantize(rows, fmt))
