"""The table of kernels and tiles: complete, and found for every card of a known family."""

import json
from types import SimpleNamespace

import pytest
import torch

tuning = pytest.importorskip("naiad.triton_kernels.tuning", reason="needs Triton")


def written(entry: object) -> object:
    """As a reader of the file finds it."""
    return json.loads(json.dumps(tuning.to_json(entry)))


TABLE = json.loads(tuning.TABLE.read_text())
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx90a", "gfx942", "gfx950")
FAMILIES = ("gfx11xx", "gfx12xx")


def test_every_architecture_has_an_entry() -> None:
    assert set(TABLE) == {*ARCHITECTURES, *FAMILIES, "portable"}


@pytest.mark.parametrize("arch", TABLE)
def test_an_entry_is_what_it_is_written_as(arch: str) -> None:
    entry = tuning.from_json(arch, TABLE[arch])
    assert written(entry) == TABLE[arch]
    assert [tile.max_rows for tile in entry.tiles[:-1]] == sorted(tile.max_rows for tile in entry.tiles[:-1])
    for rows in (1, 16, 17, 64, 65, 10**6):
        assert entry.tile(rows).max_rows == 0 or entry.tile(rows).max_rows >= rows


@pytest.mark.parametrize(
    ("arch", "same_as"),
    [
        *(("sm_90", "sm_90"), ("sm_87", "sm_86"), ("sm_103", "sm_100"), ("sm_121", "sm_120"), ("sm_75", "sm_80")),
        *(("gfx1101", "gfx11xx"), ("gfx1201", "gfx12xx"), ("gfx908", "gfx90a"), ("gfx942", "gfx942")),
    ],
)
def test_other_cards_take_the_nearest_entry(arch: str, same_as: str) -> None:
    assert written(tuning.tuning(arch)) == TABLE[same_as]


@pytest.mark.parametrize("arch", ["gfx1030", "xe"])
def test_unknown_families_are_refused(arch: str) -> None:
    with pytest.raises(ValueError, match=f"no tuning for {arch}; there are entries for .*sm_90"):
        tuning.tuning(arch)


def test_devices_without_triton_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match=r"run on CUDA and ROCm devices.*found cpu"):
        tuning.arch_of(torch.device("cpu"))


@pytest.mark.parametrize(
    ("version", "known"), [("3.6.0", False), ("3.9.0", True), ("3.10.1+git1a", True), ("4.0", True)]
)
def test_old_releases_have_no_right_code_for_sm_100(version: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(major=10, minor=0, name="NVIDIA B200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(tuning.triton, "__version__", version)
    if known:
        assert tuning.arch_of(torch.device("cuda")) == "sm_100"
    else:
        with pytest.raises(ValueError, match=r"NVIDIA B200 needs Triton 3\.9 or later, found 3\.6\.0"):
            tuning.arch_of(torch.device("cuda"))


@pytest.mark.parametrize(
    ("arch", "isa"),
    [("sm_90", "ptx"), ("gfx90a", "gfx9"), ("gfx1100", "gfx11"), ("gfx1201", "gfx11"), ("cpu", "portable")],
)
def test_instruction_sets(arch: str, isa: str) -> None:
    assert tuning.isa(arch) == isa
