"""The attention kernels' tiles, and how the decode kernel divides its work (a part of tune.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Literal

import torch
from bench import half
from bench_attention import LLAMA, MIXED, Case, Heads, K, inputs, token_bytes
from candidates import REPEATS, Candidate, choose
from timing import Call, Map, measure, n_copies

from naiad.triton_kernels.attention import Attention, attention_tile
from naiad.triton_kernels.tuning import AttentionTile, AttentionTuning, Tuning

Kernel = Literal["prefill", "decode"]

# Heads of every size that entries of the table distinguish and models have.
HEADS: tuple[Heads, ...] = (LLAMA, Heads(32, 8, 64), Heads(16, 8, 256))
TYPES: tuple[str, ...] = ("", "q8_0")
SEQUENCES: dict[Kernel, tuple[tuple[tuple[int, int], ...], ...]] = {
    "prefill": (((4 * K, 4 * K),),),
    "decode": (((1, 4 * K),) * 32, ((1, 4 * K),)),
}
# The batches that decide about programs and chunks.
DIVIDED: tuple[tuple[tuple[int, int], ...], ...] = (
    *(((1, n * K),) * many for n, many in ((4, 1), (1, 1), (32, 1), (4, 32))),
    MIXED,
)

# The candidates: rows of queries (of prompts), keys, warps, stages; programs per multiprocessor, least keys of each.
BMS: tuple[int, ...] = (64, 128)
BNS: tuple[int, ...] = (32, 64, 128)
WARPS: tuple[int, ...] = (4, 8)
STAGES: tuple[int, ...] = (1, 2, 3, 4, 5)
PROGRAMS: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
MIN_KEYS: tuple[int, ...] = (64, 128, 256, 512)


class AttentionBench:
    """Times candidates on batches of sequences. run: a map over worker processes, which compile."""

    def __init__(self, device: torch.device, run: Map, cases: Sequence[Case]) -> None:
        self.device, self.run, self.cases = device, run, cases

    def times(self, candidates: Sequence[Candidate], case: Case, rows: int) -> dict[Candidate, float]:
        """Median microseconds; nothing of candidates that do not run here."""
        # A single one is compiled where it is timed.
        if len(candidates) > 1:
            self.run(partial(compiles, case=case, device=str(self.device)), candidates)
        n_bytes = case.n_cached * token_bytes(case, half(self.device))
        data = inputs(case, n_copies(n_bytes, self.device) if case.is_decode else 1, self.device)

        def calls(candidate: Candidate) -> list[Call]:
            q, k, v, tables, kinds = data
            attention = Attention(case.heads.shape, *kinds, self.device, table=candidate.table)
            return [partial(attention, q, k, v, table) for table in tables]

        times, _ = measure({candidate: calls(candidate) for candidate in candidates}, self.device, REPEATS)
        return {candidate: value.median for candidate, value in times.items()}


def compiles(candidate: Candidate, case: Case, device: str) -> bool:
    """Runs a candidate once, on few keys: their number is no constant of a kernel."""
    short = replace(case, sequences=tuple((min(new, 64), 64) for new, _ in case.sequences))
    q, k, v, (table,), kinds = inputs(short, 1, torch.device(device))
    try:
        Attention(case.heads.shape, *kinds, torch.device(device), table=candidate.table)(q, k, v, table)
    except Exception:  # out of registers or shared memory, or whatever the compiler raises
        return False
    return True


def tune_attention(device: torch.device, run: Map, table: Tuning) -> Tuning:
    """The table with all that concerns attention as it is best on the device: tiles for one division of the decode
    kernel's work, then the division."""
    for kernel in SEQUENCES:
        for index, cases in served(table.attention, kernel, half(device)).items():
            bench = AttentionBench(device, run, cases)
            found = [candidate(table, kernel, index, tile) for tile in tiles(table, kernel, index)]
            what = f"attention {kernel}, {', '.join(str(case.heads) for case in cases)}"
            table = choose(bench, what, found, (1,)).table
    bench = AttentionBench(device, run, [Case(LLAMA, sequences) for sequences in DIVIDED])
    return choose(bench, "attention decode, division", list(divisions(table)), (1,)).table


def served(entry: AttentionTuning, kernel: Kernel, dtype: torch.dtype) -> dict[int, list[Case]]:
    """The cases that each of a kernel's tiles serves, by the tile's place in the table."""
    known = entry.decode if kernel == "decode" else entry.prefill
    found: dict[int, list[Case]] = {}
    for heads, kind, sequences in product(HEADS, TYPES, SEQUENCES[kernel]):
        case = Case(heads, sequences, kind, kind)
        k, v = case.types(dtype)
        tile = attention_tile(entry, kernel, heads.head_dim, heads.head_dim, (k.name, v.name), dtype.itemsize)
        found.setdefault(known.index(tile), []).append(case)
    return found


def tiles(table: Tuning, kernel: Kernel, index: int) -> Iterator[AttentionTile]:
    entry = table.attention
    tile = (entry.decode if kernel == "decode" else entry.prefill)[index]
    # The decode kernel takes as many rows as there are, up to a limit that no case reaches.
    bms = (tile.bm,) if kernel == "decode" else BMS
    for bm, bn, warps, stages in product(bms, BNS, WARPS, STAGES):
        yield replace(tile, bm=bm, bn=bn, warps=warps, stages=stages)


def candidate(table: Tuning, kernel: Kernel, index: int, tile: AttentionTile) -> Candidate:
    known = list(table.attention.decode if kernel == "decode" else table.attention.prefill)
    known[index] = tile
    entry = (
        replace(table.attention, decode=tuple(known))
        if kernel == "decode"
        else replace(table.attention, prefill=tuple(known))
    )
    label = f"bm {tile.bm} bn {tile.bn} warps {tile.warps} stages {tile.stages}"
    return Candidate(label, replace(table, attention=entry))


def divisions(table: Tuning) -> Iterator[Candidate]:
    for programs, min_keys in product(PROGRAMS, MIN_KEYS):
        entry = replace(table.attention, programs=programs, min_keys=min_keys)
        yield Candidate(f"programs {programs} min_keys {min_keys}", replace(table, attention=entry))
