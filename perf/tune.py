"""Measures kernels and tiles on the card at hand and writes its entry of triton_kernels/tuning.json.

python perf/tune.py [--only attention|linear] [--dry-run] [--out other.json] [--jobs 8]

The first shape and format sorts out the slow candidates, the others decide between the rest, by the geometric mean of
their times. What cannot be compiled or launched here is left out. --dry-run prints the entry and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch
from candidates import REPEATS, Candidate, choose, mean
from timing import Call, Map, copies, default_jobs, describe, find_device, measure, n_copies, random_weight, workers
from tune_attention import tune_attention

from naiad.quant.formats import format_by_name
from naiad.triton_kernels.linear import Linear, Route
from naiad.triton_kernels.tuning import TABLE, SharedTile, Tile, Tuning, Vector, arch_of, to_json, tuning
from naiad.triton_kernels.weights import PackedWeight

PARTS = ("attention", "linear")
FORMATS: tuple[str, ...] = ("Q4_K", "Q6_K")
SHAPES: tuple[tuple[int, int], ...] = ((4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096))

# The candidates.
ROWS: tuple[int, ...] = (16, 32, 64, 128)
WARPS: tuple[int, ...] = (1, 2, 4, 8)
BATCHES: tuple[int, ...] = (1, 2, 4)
BNS: tuple[int, ...] = (64, 128)
TILE_WARPS: tuple[int, ...] = (4, 8)
STAGES: tuple[int, ...] = (1, 2, 3)
INT8: tuple[bool, ...] = (False, True)
# By the largest number of rows of x (0: any number) the tiles' bm and the row counts that decide.
BUCKETS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    16: ((16,), (16,)),
    32: ((16, 32), (32,)),
    64: ((16, 32, 64), (64,)),
    0: ((64, 128, 256), (128, 512)),
}
# Rows of W, rows of x, warps; stages; and the row counts that decide from where on such a tile is taken.
SHARED: tuple[tuple[int, int, int], ...] = ((256, 64, 4),)
SHARED_STAGES: tuple[int, ...] = (1, 2, 3)
SHARED_COUNTS: tuple[int, ...] = (2, 8, 16, 24, 32, 48, 64)
INVARIANT: tuple[tuple[int, ...], tuple[int, ...]] = ((16, 32, 64), (1, 16, 256))
MATVEC_COUNTS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
WORKSPACE_COUNTS: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)

# A warp's share of the accumulator: 128 of a thread's 255 registers.
MAX_ELEMENTS_PER_WARP = 4096
# More rows than any call has.
NEVER = 2**30


@dataclass(frozen=True, slots=True)
class Case:
    format: str
    n_out: int
    n_in: int


class LinearBench:
    """Times candidates on every case. run: a map over worker processes, which compile."""

    def __init__(self, device: torch.device, run: Map) -> None:
        self.device, self.run = device, run
        self.cases = [Case(fmt, *shape) for fmt in FORMATS for shape in SHAPES]
        self._weights = {case: self._rotation(case) for case in self.cases}

    def _rotation(self, case: Case) -> list[PackedWeight]:
        weight = random_weight(format_by_name(case.format), case.n_out, case.n_in, self.device)
        return copies(weight, n_copies(weight.n_bytes, self.device))

    def times(self, candidates: Sequence[Candidate], case: Case, rows: int) -> dict[Candidate, float]:
        """Median microseconds; nothing of candidates that do not run here."""
        # A single one is compiled where it is timed.
        if len(candidates) > 1:
            self.run(partial(compiles, case=case, rows=rows, device=str(self.device)), candidates)
        x = torch.randn(rows, case.n_in, device=self.device).to(half(self.device))
        calls = {candidate: self._calls(candidate, case, x) for candidate in candidates}
        times, _ = measure(calls, self.device, REPEATS)
        return {candidate: value.median for candidate, value in times.items()}

    def _calls(self, candidate: Candidate, case: Case, x: torch.Tensor) -> list[Call]:
        return [partial(linear(weight, candidate), x) for weight in self._weights[case]]


def half(device: torch.device) -> torch.dtype:
    # The interpreter's bfloat16 arithmetic is wrong.
    return torch.float16 if device.type == "cpu" else torch.bfloat16


def linear(weight: PackedWeight, candidate: Candidate) -> Linear:
    return Linear([weight], route=candidate.route, table=candidate.table, batch_invariant=candidate.invariant)


@lru_cache(maxsize=1)
def _weight(case: Case, device: str) -> PackedWeight:
    return random_weight(format_by_name(case.format), case.n_out, case.n_in, torch.device(device))


def compiles(candidate: Candidate, case: Case, rows: int, device: str) -> bool:
    """Runs a candidate once."""
    weight = _weight(case, device)
    x = torch.zeros(rows, case.n_in, dtype=half(weight.data.device), device=device)
    try:
        linear(weight, candidate)(x)
    except Exception:  # out of registers or shared memory, or whatever the compiler raises
        return False
    return True


def crossover(bench: LinearBench, few: Tuning, many: Tuning, counts: Sequence[int], route: Route = "int8") -> int:
    """How many of the row counts, from the first on, are served faster by the table for few rows than by the other."""
    one, other = Candidate("few", few, route=route), Candidate("many", many, route=route)
    for i, rows in enumerate(counts):
        if ratio(bench, one, other, rows) > 1:
            return i
    return len(counts)


def ratio(bench: LinearBench, one: Candidate, other: Candidate, rows: int) -> float:
    """Time of one / time of the other, which is also printed: the mean over all cases, of which one
    counts as 1 where `other` does not run, and as never where `one` does not."""
    times = [bench.times([one, other], case, rows) for case in bench.cases]
    found = mean([t[one] / t[other] if {one, other} <= t.keys() else (1.0 if one in t else NEVER) for t in times])
    print(f"  {rows:5} rows: {found:.3f}")
    return found


# ---- the parts of an entry --------------------------------------------------------------------------------------


def only_matmul(table: Tuning, tiles: tuple[Tile, ...]) -> Tuning:
    return replace(table, matvec_rows=0, exact_rows=0, workspace_rows=NEVER, tiles=tiles, shared=None)


def tiles(max_rows: int, bms: Sequence[int], split: bool, int8: Sequence[bool]) -> Iterator[Tile]:
    for bn, bm, warps, stages, integers in product(BNS, bms, TILE_WARPS, STAGES, int8):
        if bn * bm <= MAX_ELEMENTS_PER_WARP * warps:
            yield Tile(max_rows, bn, bm, warps, stages, split, integers)


def label(tile: Tile) -> str:
    text = f"bn {tile.bn} bm {tile.bm} warps {tile.warps} stages {tile.stages}"
    return text + (" split" if tile.split else "") + (" int8" if tile.int8 else "")


def tune_vector(bench: LinearBench, table: Tuning) -> Vector:
    """Rows and warps for one row of x, which is what generation has; then the batch for a few."""
    base = replace(table, matvec_rows=NEVER)
    # A lane holds a row at least.
    vectors = [Vector(rows, warps, table.vector.batch) for rows, warps in product(ROWS, WARPS) if rows <= 32 * warps]
    shapes = [Candidate(f"rows {v.rows} warps {v.warps}", replace(base, vector=v)) for v in vectors]
    best = choose(bench, "vector", shapes, (1,)).table.vector
    batches = [Candidate(f"batch {n}", replace(base, vector=replace(best, batch=n))) for n in BATCHES]
    return choose(bench, "vector, several rows", batches, (2, 4, 8)).table.vector


def tune_tile(bench: LinearBench, table: Tuning, max_rows: int, bms: Sequence[int], rows: Sequence[int]) -> Tile:
    """Splitting K is tried on the best tile alone: it depends more on the number of tiles than on their shape."""
    split = max_rows != 0
    what = f"up to {max_rows} rows" if max_rows else "more rows"

    def candidate(tile: Tile) -> Candidate:
        return Candidate(label(tile), only_matmul(table, (replace(tile, max_rows=0),)))

    best = choose(bench, what, [candidate(tile) for tile in tiles(max_rows, bms, split, INT8)], rows)
    tile = best.table.tiles[0]
    other = candidate(replace(tile, split=not split))
    tile = choose(bench, what + ", splits", [best, other], rows).table.tiles[0]
    return replace(tile, max_rows=max_rows)


def tune_shared(bench: LinearBench, table: Tuning) -> SharedTile | None:
    """The best of the tiles that go through shared memory, with the least rows for which it beats the others; None
    where it never does."""
    without = only_matmul(table, table.tiles)
    candidates = [
        Candidate(f"bn {bn} bm {bm} warps {warps} stages {n}", replace(without, shared=SharedTile(1, bn, bm, warps, n)))
        for (bn, bm, warps), n in product(SHARED, SHARED_STAGES)
    ]
    try:
        shared = choose(bench, "through shared memory", candidates, (32, 64)).table.shared
    except RuntimeError as none_runs:
        print(none_runs)
        return None
    assert shared is not None
    print("time through shared memory / time of the other tiles")
    best, other = Candidate("shared", replace(without, shared=shared)), Candidate("others", without)
    least = None
    for rows in reversed([n for n in SHARED_COUNTS if n <= shared.bm]):
        if ratio(bench, best, other, rows) > 1:
            break
        least = rows
    return replace(shared, min_rows=least) if least is not None else None


def tune_invariant(bench: LinearBench, table: Tuning) -> Tile:
    bms, rows = INVARIANT
    candidates = [
        Candidate(label(tile), replace(table, invariant=tile), invariant=True) for tile in tiles(0, bms, False, INT8)
    ]
    return choose(bench, "batch-invariant", candidates, rows).table.invariant


def tune_linear(bench: LinearBench, table: Tuning) -> Tuning:
    """The table with all that concerns linear layers as it is best on bench's device."""
    table = replace(table, vector=tune_vector(bench, table))
    table = replace(table, tiles=tuple(tune_tile(bench, table, most, *bucket) for most, bucket in BUCKETS.items()))
    table = replace(table, shared=tune_shared(bench, table))
    table = replace(table, invariant=tune_invariant(bench, table))
    matmul = replace(only_matmul(table, table.tiles), shared=table.shared)
    print("time of matvec / time of matmul")
    n = crossover(bench, replace(table, matvec_rows=NEVER), matmul, MATVEC_COUNTS)
    table = replace(table, matvec_rows=MATVEC_COUNTS[n - 1] if n else 0)
    print("the same on the exact route")
    n = crossover(bench, replace(table, exact_rows=NEVER), matmul, MATVEC_COUNTS, "exact")
    table = replace(table, exact_rows=MATVEC_COUNTS[n - 1] if n else 0)
    print("time of matmul / time of decoding and torch's product")
    n = crossover(bench, matmul, replace(matmul, workspace_rows=0), WORKSPACE_COUNTS)
    return replace(table, workspace_rows=WORKSPACE_COUNTS[n] if n < len(WORKSPACE_COUNTS) else NEVER)


def write(path: Path, entry: Tuning) -> None:
    """Puts the entry into the table at path, or, where there is none yet, into a copy of the package's."""
    entries = json.loads((path if path.exists() else TABLE).read_text())
    path.write_text(json.dumps(entries | {entry.arch: to_json(entry)}, indent=1))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu runs the interpreter, whose times mean nothing")
    parser.add_argument("--only", choices=PARTS, help="by default both, attention first")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("-j", "--jobs", type=int, help="processes that compile")
    arguments = parser.parse_args(argv)
    device = find_device(arguments.device)
    if device is None:
        return 2
    start, facts = time.perf_counter(), describe(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    with workers(arguments.jobs or default_jobs(device)) as run:
        entry = replace(tuning(arch_of(device)), arch=arch_of(device))
        if arguments.only != "linear":
            entry = tune_attention(device, run, entry)
        if arguments.only != "attention":
            entry = tune_linear(LinearBench(device, run), entry)
    versions = [f"{key} {facts[key]}" for key in ("driver_version", "cuda", "hip", "torch", "triton") if key in facts]
    entry = replace(entry, measured=", ".join([facts["card"], *versions]))
    print(f"{time.perf_counter() - start:.0f} s")
    print(json.dumps({entry.arch: to_json(entry)}, indent=1))
    if not arguments.dry_run:
        write(arguments.out, entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
