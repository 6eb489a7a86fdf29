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
from pathlib import Path
from typing import Any

import triton
from cases import LINEAR_KERNELS, MULTIPLES_OF_16, POINTERS, QUICK_FORMATS, QUICK_TARGETS, Case, linear_cases
from layer_cases import LAYER_KERNELS, layer_cases
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from naiad.quant import formats
from naiad.quant.formats import Format
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.tuning import warp_size

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

KERNELS = {kernel.fn.__name__: kernel for kernel in (*LINEAR_KERNELS, *LAYER_KERNELS)}

TYPES = ("i32", "fp32")

# By target and case.
Results = dict[str, dict[str, dict[str, float]]]


def cases(target: str, fmts: list[Format], quick: bool) -> Iterator[Case]:
    """The default configurations of an architecture."""
    yield from linear_cases(target, fmts, quick)
    yield from layer_cases(target, quick)


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
        is_type = isinstance(value, str) and (value.startswith("*") or value in TYPES)
        signature[name] = value if is_type else "constexpr"
        if not is_type:
            constants[name] = value
        elif value.startswith("*") or name in MULTIPLES_OF_16:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options: dict[str, Any] = {"num_warps": case.warps, "enable_fp_fusion": True}
    if case.registers and case.target.startswith("sm_"):
        options["maxnreg"] = case.registers
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
    spans = [
        (int(found[1], 16), at)
        for at, branch in lines
        if (found := re.match(r"BRA\S*\s.*?0x([0-9a-f]+)", branch)) and int(found[1], 16) < at
    ]
    loops = [[text for address, text in lines if first <= address <= last] for first, last in _innermost(spans)]
    resources = {"registers": usage["REG"], "spilled": usage["STACK"] + usage["LOCAL"]}
    return resources, max(loops, key=len, default=[])


def _innermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The loops, first and last place each, in which there is no other."""
    return [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]


def _amd(assembly: str) -> tuple[dict[str, int], list[str]]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    labels: dict[str, int] = {}
    lines: list[str] = []
    spans: list[tuple[int, int]] = []
    for line in assembly.splitlines():
        text = line.split(";")[0].strip()
        if found := re.match(r"(\.LBB\S+):", text):
            labels[found[1]] = len(lines)
        elif re.match(r"[a-z]+_\w+", text):
            lines.append(text)
            target = re.match(r"s_c?branch\S*\s+(\.LBB\S+)", text)
            if target and target[1] in labels:
                spans.append((labels[target[1]], len(lines)))
    resources = {
        "registers": field("vgpr_count"),  # accumulation registers included
        "spilled": 4 * field("vgpr_spill_count") + field("private_segment_fixed_size"),
    }
    loops = [lines[first:last] for first, last in _innermost(spans)]
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
    ("matmul, through shared memory, up to 64 rows: the same", "matmul shared {} "),
)


# The cases that have no format of their own.
OTHERS = (
    *("attention", "norm", "rope", "glu", "matvec norm", "matvec glu units", "router", "select", "expert", "grouped"),
    *("sort", "combine"),
)
OTHERS_TITLE = "instructions per value of the cache (attention) · registers · KiB of shared memory · **bytes spilled**"


def tables(summary: Results) -> str:
    """Markdown: a table per kernel of linear layers, a row per format, and one of all other kernels, a row per case; a
    column per architecture."""
    names = [fmt.name for fmt in formats.FORMATS if fmt.id in DECODERS]
    blocks = []
    for title, case in TABLES:
        kind = case.partition("{")[0]
        shown = {target: found for target, found in summary.items() if any(key.startswith(kind) for key in found)}
        rows = [
            f"| {name} | {' | '.join(_cell(found, case.format(name)) for found in shown.values())} |"
            for name in names
            if any(key.startswith(case.format(name)) for found in shown.values() for key in found)
        ]
        blocks.append("\n".join((_head(title, shown), *rows)))
    others = dict.fromkeys(name for found in summary.values() for name in found if name.startswith(OTHERS))
    rows = [f"| {name} | {' | '.join(_resources(found.get(name)) for found in summary.values())} |" for name in others]
    return "\n\n".join((*blocks, "\n".join((_head(OTHERS_TITLE, summary), *rows))))


def _head(title: str, summary: Results) -> str:
    return f"| {title} | {' | '.join(summary)} |\n|---|{'---|' * len(summary)}"


def _resources(values: dict[str, float] | None) -> str:
    if values is None:
        return ""
    spilled = f" · **{values['spilled']:g} B**" if values["spilled"] else ""
    counted = f"{values['per_weight']:.1f} · " if "per_weight" in values else ""
    return f"{counted}{values['registers']:g} · {values['shared'] / 1024:.0f}{spilled}"


def _cell(found: dict[str, dict[str, float]], case: str) -> str:
    values = [value for name, value in found.items() if name.startswith(case)]
    if not values:
        return ""
    last = values[-1]
    shared = f" · {last['shared'] / 1024:.0f}" if case.startswith("matmul") else ""
    return f"{last.get('per_weight', 0):.2f} · {last['registers']:g}{shared}"


if __name__ == "__main__":
    sys.exit(main())
