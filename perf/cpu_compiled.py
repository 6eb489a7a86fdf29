"""Instructions per weight of the products' loops on CPUs, for formats and instruction sets, counted in the assembly.

python perf/cpu_compiled.py [--formats Q6_K,Q8_0] [--targets avx2,neon] [--print]

A single column is what generating needs, as many columns as Isa.columns what a prompt needs; for these, instructions
are counted per weight and column. Loops over parts of a block count as often as they run. stack: how many instructions
of a block's code use the stack: spilled registers. Without --print, perf/results/compiled-cpu.json is written, or those
of its entries that were asked for; a change of a kernel is seen in the diff. No processor of the kind is needed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from naiad.quant.formats import format_by_name
from naiad.runtime.cpu_kernels.isa import ISAS
from naiad.runtime.cpu_kernels.kernel import Host, optimised
from naiad.runtime.cpu_kernels.language import LANES
from naiad.runtime.cpu_kernels.product import SERVED, product

LINUX = "x86_64-unknown-linux-gnu"
# Processors that have the instructions and nothing better.
HOSTS = {
    "avx512vnni": Host(LINUX, "icelake-server", "", ISAS["avx512vnni"]),
    "avxvnni": Host(LINUX, "haswell", "+avx2,+fma,+f16c,+avxvnni", ISAS["avxvnni"]),
    "avx2": Host(LINUX, "znver3", "", ISAS["avx2"]),
    "neon": Host("aarch64-unknown-linux-gnu", "neoverse-n1", "+neon,+dotprod", ISAS["neon"]),
}
FORMATS = "Q4_K,Q5_K,Q6_K,Q3_K,Q8_0,Q4_0,IQ4_XS"
RESULTS = Path(__file__).parent / "results" / "compiled-cpu.json"
DOT = re.compile(r"\t(\{vex\}\s*)?(vpmaddubsw|vpdpbusd|sdot)\b")
LABEL = re.compile(r"^(\.L\w+):")
JUMP = re.compile(r"^\t(?:j\w+|b\.?\w*|cbn?z|tbn?z)\t.*?(\.L\w+)$")
INSTRUCTION = re.compile(r"^\t(?:\{vex\}\s*)?[a-z]")
STACK = re.compile(r"%r[sb]p|\[sp|\[x29")
Entry = dict[str, float]


@dataclass(frozen=True)
class Loop:
    """Lines of assembly from a label to the jump back."""

    first: int
    last: int
    lines: tuple[str, ...]

    @property
    def instructions(self) -> list[str]:
        return [line for line in self.lines if INSTRUCTION.match(line)]

    @property
    def n_dots(self) -> int:
        return sum(DOT.match(line) is not None for line in self.lines)

    def contains(self, other: Loop) -> bool:
        return self.first <= other.first and other.last <= self.last and self != other


def loops_of(assembly: str) -> list[Loop]:
    """Those that multiply, the shortest first."""
    lines = [line.split("#")[0].split("//")[0].rstrip() for line in assembly.split("\n")]
    places = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    found = []
    for i, line in enumerate(lines):
        match = JUMP.match(line)
        if match and places.get(match[1], i) < i:
            first = places[match[1]]
            found.append(Loop(first, i, tuple(lines[first : i + 1])))
    return sorted((loop for loop in found if loop.n_dots), key=lambda loop: len(loop.lines))


def counted(format: str, target: str, columns: int) -> Entry:
    """Of the loop over the blocks of a strip: see above."""
    fmt, host = format_by_name(format), HOSTS[target]
    module, machine = optimised(product, (format, columns), host)
    loops = loops_of(machine.emit_assembly(module))
    block = fmt.block_size * LANES * columns
    per_dot = 4 * host.isa.lanes
    inner = loops[0]
    whole = inner
    if inner.n_dots * per_dot < block:
        whole = next(loop for loop in loops if loop.contains(inner))
    outside = whole.n_dots - inner.n_dots if whole is not inner else 0
    trips = (block / per_dot - outside) / inner.n_dots
    assert trips == int(trips), f"{format} on {target}: a block of {block} weights is not a number of loops"
    n = len(whole.instructions) + (int(trips) - 1) * len(inner.instructions)
    return {"per_weight": round(n / block, 3), "stack": sum(STACK.search(line) is not None for line in whole.lines)}


def table(formats: Sequence[str], targets: Sequence[str]) -> dict[str, dict[str, Entry]]:
    """Entries by "format columns" and target."""
    found: dict[str, dict[str, Entry]] = {}
    for format in formats:
        for target in targets:
            for columns in (1, ISAS[target].columns):
                name = f"{format} {'one column' if columns == 1 else 'columns'}"
                found.setdefault(name, {})[target] = counted(format, target, columns)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    quantised = sorted(name for name in SERVED if format_by_name(name).is_quantized)
    parser.add_argument("--formats", default=FORMATS, help=f"{FORMATS}; there are {', '.join(quantised)}")
    parser.add_argument("--targets", default=",".join(HOSTS))
    parser.add_argument("--print", action="store_true", dest="only_print", help="write no file")
    arguments = parser.parse_args()
    found = table(arguments.formats.split(","), arguments.targets.split(","))
    for name, entries in found.items():
        print(f"{name:<20}" + "".join(f"{t:>12} {e['per_weight']:.3f} ({e['stack']})" for t, e in entries.items()))
    if not arguments.only_print:
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for name, entries in found.items():
            kept[name] = {**kept.get(name, {}), **entries}
        rows = ",\n".join(f" {json.dumps(name)}: {json.dumps(kept[name])}" for name in sorted(kept))
        RESULTS.write_text("{\n" + rows + "\n}\n")


if __name__ == "__main__":
    main()
