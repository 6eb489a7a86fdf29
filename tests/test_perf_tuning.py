"""perf/tune_attention.py: what is tried for whom, and that it runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import timing
import torch
import tune_attention
from bench_attention import LLAMA, Case, Heads
from candidates import Candidate

from naiad.triton_kernels.tuning import AttentionTile, Tuning, tuning

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs kernels on CPU tensors")
CPU = torch.device("cpu")
SMALL = Heads(4, 2, 16)


@pytest.fixture
def table() -> Tuning:
    """Tiles for heads of up to 16 values, for those with 16-bit caches alone, and for all others."""
    entry = tuning("portable")
    first = AttentionTile(16, 64, 64, 4, 1, False)
    tiles = (first, replace(first, max_dim=0, decoded=True))
    return replace(entry, attention=replace(entry.attention, prefill=tiles, decode=tiles))


def test_cases_go_to_the_tile_that_serves_them(monkeypatch: pytest.MonkeyPatch, table: Tuning) -> None:
    monkeypatch.setattr(tune_attention, "HEADS", (SMALL, LLAMA))
    monkeypatch.setattr(tune_attention, "TYPES", ("", "f32"))
    found = tune_attention.served(table.attention, "decode", torch.bfloat16)
    assert [{(c.heads.head_dim, c.k_type) for c in found[i]} for i in range(2)] == [
        {(16, "")},
        {(16, "f32"), (128, ""), (128, "f32")},
    ]
    assert all(case.is_decode for cases in found.values() for case in cases)


def test_every_architecture_has_cases_for_tiles() -> None:
    for arch in ("sm_80", "sm_90", "sm_120", "gfx942", "gfx1100"):
        for kernel in tune_attention.SEQUENCES:
            found = tune_attention.served(tuning(arch).attention, kernel, torch.bfloat16)
            assert sum(map(len, found.values())) >= len(tune_attention.HEADS) * len(tune_attention.TYPES), arch


def test_the_fastest_is_chosen(monkeypatch: pytest.MonkeyPatch, table: Tuning) -> None:
    """Of tiles, each for the cases that it serves, then of divisions; those that do not run are left out."""
    best = {True: (64, 2), False: (128, 4)}

    def measure(
        found: Mapping[Candidate, Sequence[Any]], device: torch.device, repeats: int
    ) -> tuple[dict[Candidate, timing.Times], dict[Candidate, str]]:
        times = {}
        for candidate, calls in found.items():
            attention, (q, k, *_) = calls[0].func, calls[0].args
            entry = candidate.table.attention
            tile = attention._tile("decode" if len(q) < 10 else "prefill", q)
            wanted = best[attention.shape.head_dim == 16 and k[0].dtype != torch.int8 and len(k) == 1]
            value = 10.0 + ((tile.bn, tile.stages) != wanted) + (entry.programs != 3) + (entry.min_keys != 64)
            if tile.warps == 4:
                times[candidate] = timing.Times(value, value, value, True)
        return times, {}

    monkeypatch.setattr(tune_attention, "measure", measure)
    monkeypatch.setattr(tune_attention, "LLAMA", Heads(4, 2, 32))
    monkeypatch.setattr(tune_attention, "HEADS", (SMALL, Heads(4, 2, 32)))
    monkeypatch.setattr(tune_attention, "TYPES", ("",))
    monkeypatch.setattr(tune_attention, "SEQUENCES", {"prefill": (((20, 20),),), "decode": (((1, 40),),)})
    monkeypatch.setattr(tune_attention, "DIVIDED", (((1, 40),), ((1, 9), (1, 33))))
    found = tune_attention.tune_attention(CPU, lambda function, items: [], table).attention
    for tiles in (found.prefill, found.decode):
        assert [(tile.max_dim, tile.bn, tile.stages, tile.warps) for tile in tiles] == [(16, 64, 2, 4), (0, 128, 4, 4)]
        assert [tile.decoded for tile in tiles] == [False, True]
    assert (found.programs, found.min_keys) == (3, 64)


@interpreted
def test_candidates_run(table: Tuning) -> None:
    case = Case(SMALL, ((1, 40), (3, 70)))
    run: Any = lambda function, items: [function(item) for item in items]  # noqa: E731
    bench = tune_attention.AttentionBench(CPU, run, [case])
    good = tune_attention.candidate(table, "decode", 0, replace(table.attention.decode[0], bn=32))
    bad = tune_attention.candidate(table, "decode", 0, replace(table.attention.decode[0], bn=48))
    assert [tune_attention.compiles(one, case, "cpu") for one in (good, bad)] == [True, False]
    assert bench.times([good, bad], case, 1).keys() == {good}
