"""Compiles every kernel for every architecture, without a GPU, and reads what came out.

    python perf/compiled.py                     the whole matrix: perf/results/compiled-<triton version>.json
    python perf/compiled.py --targets sm_90     a part of it, the rest of the file stays
    python perf/compiled.py --quick             a representative part, nothing written
    python perf/compiled.py --targets sm_90 --formats Q4_K --print
    python perf/compiled.py --tables            the tables of perf/README.md, from the results on disk

Per case: registers, bytes spilled, bytes of shared memory, and the instructions of the main loop that one lane issues
per weight, with the number of 128-bit loads among them. The exit code is 1 where a case in a default
configuration spills or takes more than its architecture has.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from naiad.quant import formats
from naiad.quant.floats import FLOAT_DTYPES
from naiad.quant.formats import Format
from naiad.triton_kernels.activations import units_kernel
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.matmul import matmul_glu_kernel, matmul_kernel, reduce_kernel
from naiad.triton_kernels.matvec import matvec_glu_kernel, matvec_kernel
from naiad.triton_kernels.rows import rows_kernel
from naiad.triton_kernels.tuning import Tile, isa, tuning, warp_size

RESULTS = Path(__file__).with_name("results")

# Bytes of shared memory that a program may have. NVIDIA: CUDA C++ programming guide, table of compute capabilities,
# less the 1 KiB that the system keeps; AMD: LDS per workgroup.
SHARED_MEMORY = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
    "gfx90a": 65536,
    "gfx942": 65536,
    "gfx950": 163840,
    "gfx1100": 65536,
    "gfx1201": 65536,
}
MAX_REGISTERS = {"sm": 255, "gfx9": 512, "gfx1": 256}

# The formats whose every tile and batch is compiled. Of the others one kernel of a kind: for the targets of the quick
# run all of them, for the rest those that compile fast.
THOROUGH = ("Q4_K", "Q6_K", "Q8_0", "IQ4_XS")
QUICK_TARGETS = ("sm_80", "sm_90", "gfx942", "gfx1100")
QUICK_FORMATS = ("Q4_K", "Q6_K")


# By target and case.
Results = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration. weights: decoded per step of its loop, 0 where it has none to count."""

    target: str
    name: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    warps: int
    weights: int = 0


KERNELS = {
    kernel.fn.__name__: kernel
    for kernel in (
        *(matvec_kernel, matvec_glu_kernel, matmul_kernel, matmul_glu_kernel),
        *(reduce_kernel, rows_kernel, units_kernel),
    )
}
POINTERS = {
    **dict.fromkeys(("w", "w0", "w1", "w2", "gate", "up", "lut", "ids"), "*i32"),
    **dict.fromkeys(("y", "bias", "residual"), "*bf16"),
    **dict.fromkeys(("sums",), "*fp32"),
}
# Integers that are multiples of 16 in every real model. Units per row are not.
MULTIPLES_OF_16 = ("n0", "n1", "n2", "N", "K", "stride", "step")


def cases(target: str, fmts: list[Format], quick: bool) -> Iterator[Case]:
    """The default configurations of an architecture."""
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


def _matmul_case(target: str, fmt: Format, tile: Tile, route: str) -> Case:
    splits = 4 if tile.split else 1
    return Case(
        target,
        f"matmul {route} {fmt.name} {tile.bn}x{tile.bm}",
        "matmul_kernel",
        (
            *(("x", "*i32" if route == "int8" else "*bf16"), ("y", "*fp32" if splits > 1 else "*bf16")),
            *(("D0", DECODERS[fmt.id]), ("D1", None), ("D2", None), ("w1", None), ("w2", None)),
            *(("bias", None), ("residual", None), ("INT8", route == "int8"), ("EVEN", True)),
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


def gpu_target(target: str) -> GPUTarget:
    if target.startswith("sm_"):
        return GPUTarget("cuda", int(target[3:]), 32)
    return GPUTarget("hip", target, warp_size(target))


def compile_case(case: Case) -> Any:
    """triton's CompiledKernel."""
    kernel = KERNELS[case.kernel]
    given = dict(case.arguments)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for i, name in enumerate(kernel.arg_names):
        value = given.get(name, POINTERS.get(name, "i32"))
        is_type = isinstance(value, str) and (value.startswith("*") or value == "i32")
        signature[name] = value if is_type else "constexpr"
        if not is_type:
            constants[name] = value
        elif value.startswith("*") or name in MULTIPLES_OF_16:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": case.warps, "enable_fp_fusion": True}
    return triton.compile(source, target=gpu_target(case.target), options=options)


def measure(case: Case) -> dict[str, float]:
    """Registers, spilled bytes, shared memory, and per weight the lane's instructions in the main loop."""
    compiled = compile_case(case)
    result: dict[str, float] = {"shared": compiled.metadata.shared}
    if case.target.startswith("sm_"):
        resources, loop = _nvidia(compiled.asm["cubin"])
    else:
        resources, loop = _amd(compiled.asm["amdgcn"])
    result |= resources
    if case.weights and loop:
        lanes = case.warps * warp_size(case.target)
        result["per_weight"] = round(len(loop) * lanes / case.weights, 2)
        result["wide_loads"] = sum(1 for line in loop if re.match(r"LDG\.\S*128|\w+_load_(dwordx4|b128)", line))
    return result


def _nvidia(cubin: bytes) -> tuple[dict[str, int], list[str]]:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ.get('PATH', '')}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def dump(option: str) -> str:
            command = [str(tools / "cuobjdump"), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

        usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", dump("-res-usage"))}
        sass = dump("-sass")
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?\S+\s+)?(.*?);", sass, re.M)
    lines = [(int(address, 16), text.strip()) for address, text in code]
    loops = [
        [text for address, text in lines if int(found[1], 16) <= address <= at]
        for at, branch in lines
        if (found := re.match(r"BRA\S*\s.*?0x([0-9a-f]+)", branch)) and int(found[1], 16) < at
    ]
    resources = {"registers": usage["REG"], "spilled": usage["STACK"] + usage["LOCAL"]}
    return resources, max(loops, key=len, default=[])


def _amd(assembly: str) -> tuple[dict[str, int], list[str]]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    labels: dict[str, int] = {}
    lines: list[str] = []
    loops: list[list[str]] = []
    for line in assembly.splitlines():
        text = line.split(";")[0].strip()
        if found := re.match(r"(\.LBB\S+):", text):
            labels[found[1]] = len(lines)
        elif re.match(r"[a-z]+_\w+", text):
            lines.append(text)
            target = re.match(r"s_c?branch\S*\s+(\.LBB\S+)", text)
            if target and target[1] in labels:
                loops.append(lines[labels[target[1]] :])
    resources = {
        "registers": field("vgpr_count"),  # accumulation registers included
        "spilled": 4 * field("vgpr_spill_count") + field("private_segment_fixed_size"),
    }
    # Scalar instructions are issued once for all lanes, on units of their own.
    return resources, [line for line in max(loops, key=len, default=[]) if not line.startswith("s_")]


def excess(case: Case, found: dict[str, float]) -> list[str]:
    """What the case takes more of than its architecture has."""
    limits = {
        "spilled": 0,
        "shared": SHARED_MEMORY[case.target],
        "registers": next(limit for prefix, limit in MAX_REGISTERS.items() if case.target.startswith(prefix)),
    }
    return [f"{case.target} {case.name}: {found[k]} {k}, limit {v}" for k, v in limits.items() if found[k] > v]


def _measured(case: Case) -> tuple[str, str, dict[str, float], list[str]]:
    found = measure(case)
    return case.target, case.name, found, excess(case, found)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compile every kernel for every architecture, without a GPU")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FORMATS} on {QUICK_TARGETS}")
    parser.add_argument("--targets", type=lambda text: text.split(","), help="comma-separated, such as sm_90,gfx942")
    parser.add_argument("--formats", type=lambda text: text.split(","), help="comma-separated, such as Q4_K,Q6_K")
    parser.add_argument("--only", default="", help="a regular expression for names of cases, such as 'matvec int8'")
    parser.add_argument("--print", action="store_true", help="print the cases, write nothing")
    parser.add_argument("--tables", action="store_true", help="print the results on disk as tables, compile nothing")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    return parser.parse_args(argv)


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for, in the order of targets, formats and kernels."""
    targets = options.targets or (QUICK_TARGETS if options.quick else tuple(SHARED_MEMORY))
    names = options.formats or (QUICK_FORMATS if options.quick else None)
    fmts = [fmt for fmt in formats.FORMATS if fmt.id in DECODERS and (names is None or fmt.name in names)]
    work = {(case.target, case.name): case for target in targets for case in cases(target, fmts, options.quick)}
    return [case for case in work.values() if re.search(options.only, case.name)]


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.tables:
        print(tables(json.loads(summary_path().read_text())))
        return 0
    work = chosen(options)
    results: Results = {case.target: {} for case in work}
    too_much: list[str] = []
    # Arguments name functions, which other processes find by the case's index.
    with ProcessPoolExecutor(options.jobs, initializer=_keep, initargs=(argv,)) as pool:
        for i, (target, name, found, over) in enumerate(pool.map(_measured_at, range(len(work)), chunksize=4)):
            print(f"{i + 1} of {len(work)} compiled", end="\r", file=sys.stderr)
            results[target][name] = found
            too_much += over
            if options.print or options.quick:
                print(f"{target:8} {name:34}", *(f"{key} {value:g}" for key, value in found.items()), flush=True)
    if not (options.print or options.quick):
        keep_cases = bool(options.formats or options.only)
        summary_path().write_text(_json(_merged(results, keep_cases)))
        print(f"wrote {summary_path()}")
    print(*too_much, sep="\n", file=sys.stderr)
    return 1 if too_much else 0


_WORK: list[Case] = []


def _keep(argv: list[str] | None) -> None:
    _WORK.extend(chosen(parse(argv)))


def _measured_at(index: int) -> tuple[str, str, dict[str, float], list[str]]:
    return _measured(_WORK[index])


def _json(results: Results) -> str:
    """A line per case, so that a change is seen in a diff."""
    blocks = []
    for target, found in results.items():
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
        blocks.append(f"  {json.dumps(target)}: {{\n{lines}\n  }}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _merged(results: Results, keep_cases: bool) -> Results:
    """The results among those on disk, in place of the same targets, or, of a part of a target, of the same cases."""
    merged: Results = json.loads(summary_path().read_text()) if summary_path().exists() else {}
    for target, found in results.items():
        merged[target] = merged.get(target, {}) | found if keep_cases else found
    return {target: merged[target] for target in SHARED_MEMORY if target in merged}


def summary_path(version: str = triton.__version__) -> Path:
    """Where the results of a release of Triton lie."""
    return RESULTS / f"compiled-triton-{version}.json"


# What the tables show: a title, the case of a format, and the text of a cell.
TABLES = (
    ("matvec, 8-bit activations, one row: instructions per weight · registers", "matvec int8 {} x1"),
    ("matvec, exact, one row: instructions per weight · registers", "matvec exact {} x1"),
    ("matmul, exact, the largest tile: instructions per weight · registers · KiB of shared memory", "matmul exact {} "),
)


def tables(summary: Results) -> str:
    """Markdown: a table per kernel, a row per format, a column per architecture."""
    names = [fmt.name for fmt in formats.FORMATS if fmt.id in DECODERS]
    blocks = []
    for title, case in TABLES:
        head = f"| {title} | {' | '.join(summary)} |\n|---|{'---|' * len(summary)}"
        rows = [
            f"| {name} | {' | '.join(_cell(found, case.format(name)) for found in summary.values())} |"
            for name in names
            if any(key.startswith(case.format(name)) for found in summary.values() for key in found)
        ]
        blocks.append("\n".join((head, *rows)))
    return "\n\n".join(blocks)


def _cell(found: dict[str, dict[str, float]], case: str) -> str:
    values = [value for name, value in found.items() if name.startswith(case)]
    if not values:
        return ""
    last = values[-1]
    shared = f" · {last['shared'] / 1024:.0f}" if case.startswith("matmul") else ""
    return f"{last.get('per_weight', 0):.2f} · {last['registers']:g}{shared}"


if __name__ == "__main__":
    sys.exit(main())
