"""The kernels of linear layers in their default configurations, as perf/compiled.py compiles them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from naiad.quant import formats
from naiad.quant.floats import FLOAT_DTYPES
from naiad.quant.formats import Format
from naiad.triton_kernels.activations import units_kernel
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.linear import NEVER_SHARED
from naiad.triton_kernels.matmul import matmul_glu_kernel, matmul_kernel, reduce_kernel
from naiad.triton_kernels.matvec import matvec_glu_kernel, matvec_kernel
from naiad.triton_kernels.rows import rows_kernel
from naiad.triton_kernels.tuning import SharedTile, Tile, isa, tuning, warp_size

# The formats whose every tile and batch is compiled. Of the others one kernel of a kind: for the targets of the quick
# run all of them, for the rest those that compile fast.
THOROUGH = ("Q4_K", "Q6_K", "Q8_0", "IQ4_XS")
QUICK_TARGETS = ("sm_80", "sm_90", "gfx942", "gfx1100")
QUICK_FORMATS = ("Q4_K", "Q6_K")


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration.

    arguments: values of constants, or types of those that are none. weights: decoded per step of its loop (of a cache,
    values), 0 where it has none to count. registers: what NVIDIA's compiler is told to keep to, 0 for nothing.
    """

    target: str
    name: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    warps: int
    weights: int = 0
    registers: int = 0


LINEAR_KERNELS = (
    *(matvec_kernel, matvec_glu_kernel, matmul_kernel, matmul_glu_kernel),
    *(reduce_kernel, rows_kernel, units_kernel),
)
POINTERS = {
    **dict.fromkeys(("w", "w0", "w1", "w2", "gate", "up", "lut", "ids"), "*i32"),
    **dict.fromkeys(("y", "bias", "residual"), "*bf16"),
    **dict.fromkeys(("sums",), "*fp32"),
}
# Integers that are multiples of 16 in every real model. Units per row are not.
MULTIPLES_OF_16 = (
    *("n0", "n1", "n2", "N", "K", "W", "stride", "step", "x_stride", "residual_stride", "gate_stride", "up_stride"),
    *("q_stride", "k_stride", "v_stride", "gate_vectors", "up_vectors", "vectors"),
)


def linear_cases(target: str, fmts: list[Format], quick: bool) -> Iterator[Case]:
    """The linear layers' part of an architecture."""
    for fmt in fmts:
        yield Case(target, f"rows {fmt.name}", "rows_kernel", _rows_arguments(target, fmt), 1)
        if fmt is formats.F32:
            continue  # multiplied by torch
        thorough = fmt.name in THOROUGH and not quick
        slow_ones = thorough or target in QUICK_TARGETS
        if fmt not in FLOAT_DTYPES:
            yield from _matvec_cases(target, fmt, "int8", thorough)
        if slow_ones or fmt in FLOAT_DTYPES:
            yield from _matvec_cases(target, fmt, "exact", thorough)
        tiles = tuning(target).tiles if thorough else tuning(target).tiles[-1:]
        for tile in tiles if slow_ones else ():
            yield _matmul_case(target, fmt, tile, "exact")
        shared = tuning(target).shared
        if shared is not None and fmt not in NEVER_SHARED:
            yield _matmul_case(target, fmt, shared, "exact")
        if thorough:
            yield _matmul_case(target, fmt, tiles[0], "int8")
    yield _mixed_case(target)
    yield _glu_case(target)
    yield Case(target, "reduce", "reduce_kernel", (("ACTIVATION", None), ("SPLITS", 8), ("BLOCK", 1024)), 4)
    for name, out, int8 in (("spread", "*fp32", False), ("quantize", "*i32", True)):
        yield Case(target, name, "units_kernel", (("GROUPS", 64), ("INT8", int8), ("x", "*bf16"), ("out", out)), 4)


def _matvec_arguments(target: str, route: str, batch: int) -> tuple[tuple[str, Any], ...]:
    vector = tuning(target).vector
    lanes = warp_size(target) * vector.warps
    return (
        *(("x", "*i32" if route == "int8" else "*fp32"), ("INT8", route == "int8")),
        *(("R", vector.rows), ("LANES", lanes), ("BM", batch), ("ISA", isa(target))),
    )


def _matvec_cases(target: str, fmt: Format, route: str, thorough: bool) -> Iterator[Case]:
    vector = tuning(target).vector
    decoders = (("D0", DECODERS[fmt.id]), ("D1", None), ("D2", None), ("w1", None), ("w2", None))
    for batch in (1, 2, 4) if thorough and route == "int8" else (1,):
        if batch <= vector.batch:
            yield Case(
                target,
                f"matvec {route} {fmt.name} x{batch}",
                "matvec_kernel",
                (*_matvec_arguments(target, route, batch), *decoders, ("bias", None), ("residual", None)),
                vector.warps,
                256 * warp_size(target) * vector.warps,
            )


def _matmul_case(target: str, fmt: Format, tile: Tile | SharedTile, route: str) -> Case:
    shared = isinstance(tile, SharedTile)
    splits = 4 if isinstance(tile, SharedTile) or tile.split else 1
    return Case(
        target,
        f"matmul {'shared' if shared else route} {fmt.name} {tile.bn}x{tile.bm}",
        "matmul_kernel",
        (
            *(("x", "*i32" if route == "int8" else "*bf16"), ("y", "*fp32" if splits > 1 else "*bf16")),
            *(("D0", DECODERS[fmt.id]), ("D1", None), ("D2", None), ("w1", None), ("w2", None)),
            *(("bias", None), ("residual", None), ("INT8", route == "int8"), ("EVEN", True), ("SHARED", shared)),
            *(("BN", tile.bn), ("BM", tile.bm), ("SPLITS", splits), ("ISA", isa(target)), ("STAGES", tile.stages)),
        ),
        tile.warps,
        256 * tile.bn,
    )


def _mixed_case(target: str) -> Case:
    """Q, K and V of a Q4_K_M file in one launch, with a bias."""
    q4, q6 = DECODERS[formats.Q4_K.id], DECODERS[formats.Q6_K.id]
    arguments = (*_matvec_arguments(target, "int8", 1), ("D0", q4), ("D1", q4), ("D2", q6), ("residual", None))
    return Case(target, "matvec int8 Q4_K+Q4_K+Q6_K x1", "matvec_kernel", arguments, tuning(target).vector.warps)


def _glu_case(target: str) -> Case:
    q4 = DECODERS[formats.Q4_K.id]
    arguments = (*_matvec_arguments(target, "int8", 1), ("D_GATE", q4), ("D_UP", q4), ("ACTIVATION", "silu"))
    return Case(target, "matvec glu int8 Q4_K x1", "matvec_glu_kernel", arguments, tuning(target).vector.warps)


def _rows_arguments(target: str, fmt: Format) -> tuple[tuple[str, Any], ...]:
    return (("out", "*bf16"), ("DECODE", DECODERS[fmt.id]), ("R", warp_size(target)), ("ISA", isa(target)))
