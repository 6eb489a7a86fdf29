"""Choosing among configurations of kernels by their times (what the parts of tune.py share)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from naiad.triton_kernels.linear import Route
from naiad.triton_kernels.tuning import Tuning

# After the first case those stay that are among the best so many and slower than the best by this factor at most.
KEEP, KEEP_FACTOR = 8, 1.2
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Candidate:
    label: str
    table: Tuning
    invariant: bool = False
    route: Route = "int8"


class Bench(Protocol):
    """Times candidates. What a row count is depends on the cases."""

    @property
    def cases(self) -> Sequence[Any]: ...

    def times(self, candidates: Sequence[Candidate], case: Any, rows: int) -> dict[Candidate, float]:
        """Median microseconds; nothing of candidates that do not run here."""


def choose(bench: Bench, what: str, candidates: Sequence[Candidate], rows: Sequence[int]) -> Candidate:
    """The candidate with the lowest geometric mean over all cases and row counts. RuntimeError where none runs."""
    found: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    for i, case in enumerate(bench.cases):
        for m in rows:
            for candidate, value in bench.times(list(found), case, m).items():
                found[candidate].append(value)
            # One that failed even once has fewer times than the others.
            most = max(map(len, found.values()))
            found = {candidate: values for candidate, values in found.items() if values and len(values) == most}
        if not found:
            raise RuntimeError(f"{what}: none of {len(candidates)} candidates runs on this device")
        if i == 0:
            print(f"{what}: {len(candidates)} candidates, {len(found)} of them run")
            show(found)
            found = survivors(found)
    if len(bench.cases) > 1:
        print(f"{what}: the {len(found)} fastest on all shapes and formats")
        show(found)
    return min(found, key=lambda candidate: mean(found[candidate]))


def survivors(found: Mapping[Candidate, list[float]]) -> dict[Candidate, list[float]]:
    best = sorted(found, key=lambda candidate: mean(found[candidate]))[:KEEP]
    limit = KEEP_FACTOR * mean(found[best[0]])
    return {candidate: found[candidate] for candidate in best if mean(found[candidate]) <= limit}


def show(found: Mapping[Candidate, list[float]]) -> None:
    for candidate in sorted(found, key=lambda c: mean(found[c])):
        print(f"  {mean(found[candidate]):10.2f} µs  {candidate.label}")


def mean(times: Sequence[float]) -> float:
    return statistics.geometric_mean(times)
