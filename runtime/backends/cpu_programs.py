"""Programs of instructions on rows: what the layers on a CPU are put together from.

Activations between instructions lie in buffers that all programs share, float32 rows, or records where a product with
quantised weights reads them. A program knows buffers as variables, since they grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ...quant.formats import Format
from ..config import Activation
from ..cpu_kernels import Kernels
from ..cpu_kernels.activations import gate_quantise, gate_rows, norm_quantise, norm_rows, quantise, record_bytes
from ..cpu_kernels.language import LANES
from ..cpu_kernels.product import product
from ..cpu_kernels.programs import Argument, Program
from ..cpu_kernels.tiles import n_strips
from ..layers import Linear, Norm
from ..ops import Weight
from .cpu_weights import TiledWeight

GATES = {Activation.SILU: "silu", Activation.GELU_TANH: "gelu"}
# Up to so many rows, only reading the weights counts. Beyond: weights of a row that stay in the innermost cache while
# many rows of x pass by, rows of x that stay in the next one, and strips that a thread takes at a time.
FEW_ROWS = 8
K_WEIGHTS, COLUMN_BLOCK, CHUNK = 2048, 128, 8
# Another thread is worth its barriers for so many more bytes of weights (times rows): it saves little on a model of a
# few MB when the machine is idle, and costs much when it is not.
BYTES_PER_THREAD = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Operand:
    """Rows in memory: a variable or an address, and the bytes from row to row."""

    address: str | int
    stride: int

    def named(self, name: str) -> dict[str, Argument]:
        """The arguments of an instruction that calls it so."""
        return {name: self.address, f"{name}_stride": self.stride}


def stream(width: int) -> Operand:
    """The rows that a program is run for: the residual stream."""
    return Operand("x", 4 * width)


@dataclass(slots=True)
class Buffers:
    """Memory by name. version: changes with addresses."""

    memory: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    version: int = 0

    def address(self, name: str, n_bytes: int) -> int:
        found = self.memory.get(name)
        if found is None or found.nbytes < n_bytes:
            # From the beginning of a cache line on.
            whole = np.empty(n_bytes + 64, np.uint8)
            found = self.memory[name] = whole[-whole.ctypes.data % 64 :]
            self.version += 1
        return int(found.ctypes.data)


class Part(Protocol):
    """What adds instructions to a program."""

    def build(self, builder: Builder) -> None: ...


class Builder:
    """Adds instructions for rows to a program.

    columns: rows of x that pass over weights at a time. blocked: for so many rows that caches have to be thought of.
    """

    def __init__(self, kernels: Kernels, columns: int, *, blocked: bool) -> None:
        self.kernels, self.columns, self.blocked = kernels, columns, blocked
        self.program = Program(kernels.compiler)
        # Bytes per row of every buffer; variables that lie inside of one; variables that are multiples of n_rows.
        self.row_bytes: dict[str, int] = {}
        self.inside: dict[str, tuple[str, int]] = {}
        self.multiples: dict[str, int] = {}
        # Weights that are read for a row.
        self.n_bytes = 0

    def buffer(self, name: str, row_bytes: int) -> str:
        """Memory of so many bytes per row, as a variable."""
        self.row_bytes[name] = max(row_bytes, self.row_bytes.get(name, 0))
        return name

    def rows(self, name: str, width: int) -> Operand:
        """A buffer of float32 rows."""
        return Operand(self.buffer(name, 4 * width), 4 * width)

    def side_by_side(self, name: str, widths: Sequence[int]) -> list[Operand]:
        """A buffer of float32 rows, in several parts."""
        row_bytes, operands, offset = 4 * sum(widths), [], 0
        self.buffer(name, row_bytes)
        for width in widths:
            variable = f"{name}+{offset}"
            self.inside[variable] = name, offset
            operands.append(Operand(variable, row_bytes))
            offset += 4 * width
        return operands

    def times(self, n: int) -> str:
        """n for each row, as a variable."""
        if n == 1:
            return "n_rows"
        self.multiples[f"n_rows*{n}"] = n
        return f"n_rows*{n}"

    def input(self, x: Operand, width: int, fmt: Format, norm: Norm | None) -> Operand:
        """x, or its norm, in the form that a product with weights of a format reads."""
        source: dict[str, Argument] = {**x.named("x"), "n_rows": "n_rows", "width": width}
        if norm is not None:
            self.program.keep.append(norm.weight)
            source |= {"weight": norm.weight.data_ptr(), "eps": norm.eps}
        if fmt.is_quantized:
            to = Operand(self.buffer("records", record_bytes(width)), record_bytes(width))
            self.program.add(quantise if norm is None else norm_quantise, **source, **to.named("records"))
            return to
        if norm is None:
            return x
        to = self.rows("numbers", width)
        self.program.add(norm_rows, **source, **to.named("y"), add=0, add_stride=0)
        return to

    def product(
        self, linear: Linear, x: Operand, y: Operand, add: Operand | None = None, *, barrier: bool = True
    ) -> None:
        """y = x W^T + bias + add."""
        weight = tiled(linear.weight)
        strips, block_size = n_strips(weight.n_out), weight.format.block_size
        self.n_bytes += weight.n_bytes
        self.program.add(
            product,
            weight.format.name,
            self.columns,
            *scaled(weight),
            barrier=barrier,
            **x.named("x"),
            n_rows="n_rows",
            weights=weight.data.data_ptr(),
            n_units=weight.n_in // block_size,
            n_strips=strips,
            **y.named("y"),
            **(add or Operand(0, 0)).named("add"),
            bias=self.padded(linear.bias, weight.width),
            scale=self.padded(None if weight.scale is None else weight.scale.expand(weight.width), weight.width),
            k_units=max(1, (K_WEIGHTS if self.blocked else weight.n_in) // block_size),
            column_block=COLUMN_BLOCK,
            chunk=self.chunk(strips),
        )

    def chunk(self, strips: int) -> int:
        """Strips that make a task."""
        return CHUNK if self.blocked else max(1, strips // (8 * self.kernels.n_threads))

    def gated(
        self, activation: Activation, gate: Operand, up: Operand, width: int, fmt: Format, per_row: int = 1
    ) -> Operand:
        """activation(gate) * up in the form that a product with weights of a format reads; per_row rows for each."""
        source: dict[str, Argument] = {
            **gate.named("gate"),
            **up.named("up"),
            "n_rows": self.times(per_row),
            "width": width,
        }
        if fmt.is_quantized:
            stride = record_bytes(width)
            to = Operand(self.buffer("records", per_row * stride), stride)
            self.program.add(gate_quantise, GATES[activation], **source, **to.named("records"))
            return to
        self.program.add(gate_rows, GATES[activation], **source, **gate.named("y"))
        return gate

    def finish(self, last: Linear, x: Operand, post: Norm | None) -> None:
        """The last product of a half layer, added to the stream; where there is a norm behind it, its norm."""
        width = last.weight.shape[-2]
        if post is None:
            self.product(last, x, stream(width), stream(width))
            return
        y = self.rows("numbers", width)
        self.product(last, x, y)
        self.program.keep.append(post.weight)
        self.program.add(
            norm_rows,
            **y.named("x"),
            weight=post.weight.data_ptr(),
            eps=post.eps,
            **stream(width).named("add"),
            **stream(width).named("y"),
            n_rows="n_rows",
            width=width,
        )

    def padded(self, values: torch.Tensor | None, width: int) -> int:
        """The address of a vector with zeros for the rows that fill up the last strip; 0 for none."""
        if values is None:
            return 0
        whole = torch.zeros(width)
        whole[: len(values)] = values
        self.program.keep.append(whole)
        return whole.data_ptr()


@dataclass(slots=True)
class _Built:
    """A program, and for how many rows and which addresses of buffers its variables are set."""

    builder: Builder
    n_rows: int = 0
    version: int = -1


class Plan:
    """Parts that run one after another, as a program for each kernel variant that numbers of rows ask for."""

    def __init__(self, kernels: Kernels, buffers: Buffers, parts: Sequence[Part]) -> None:
        self.kernels, self.buffers, self.parts = kernels, buffers, parts
        self._built: dict[tuple[int, bool], _Built] = {}

    def run(self, n_rows: int, **values: int) -> None:
        """Runs everything for so many rows. values: of variables other than buffers."""
        if n_rows == 0:
            return
        columns = 1 if n_rows == 1 else min(4 if n_rows <= 4 else 8, self.kernels.compiler.host.isa.columns)
        key = columns, n_rows > FEW_ROWS
        built = self._built.get(key)
        if built is None:
            built = self._built[key] = _Built(Builder(self.kernels, columns, blocked=key[1]))
            for part in self.parts:
                part.build(built.builder)
        builder, program = built.builder, built.builder.program
        if n_rows > built.n_rows or built.version != self.buffers.version:
            built.n_rows = max(n_rows, built.n_rows)
            places = {name: self.buffers.address(name, n * built.n_rows) for name, n in builder.row_bytes.items()}
            program.set(**places, **{name: places[where] + n for name, (where, n) in builder.inside.items()})
            built.version = self.buffers.version
        program.set(n_rows=n_rows, **{name: n * n_rows for name, n in builder.multiples.items()}, **values)
        self.kernels.run(program, n_rows, 1 + builder.n_bytes * n_rows // BYTES_PER_THREAD)


def tiled(weight: Weight) -> TiledWeight:
    """ValueError where another backend keeps the weight."""
    if not isinstance(weight, TiledWeight):
        raise ValueError("the weights are kept by torch")
    return weight


def scaled(weight: TiledWeight) -> tuple[bool, ...]:
    """The constant of a kernel that multiplies with a weight's scale, where there is one."""
    return () if weight.scale is None else (True,)


def check_weights(*weights: Weight) -> None:
    """ValueError where rows do not end with a strip, so that the next ones cannot lie behind them."""
    for weight in weights:
        if tiled(weight).n_out % LANES:
            raise ValueError(f"a matrix of {tiled(weight).n_out} rows is no multiple of {LANES}")
