"""Which kernel and which tile for which number of rows, per architecture.

`tuning.json` has an entry per architecture; perf/tune.py measures on the card at hand and writes it. An entry that
nobody measured says so ("measured": null) and holds defaults that fit the architecture's registers and shared memory.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
import triton

TABLE = Path(__file__).with_name("tuning.json")

# Older releases make empty kernels of products for sm_100's tensor cores (3.6.0), or nobody has looked (3.7, 3.8).
SM_100_TRITON = (3, 9)
# The architecture whose entry serves those with no entry of their own, newest first.
_NVIDIA = ("sm_120", "sm_100", "sm_90", "sm_89", "sm_86", "sm_80")


@dataclass(frozen=True, slots=True)
class Vector:
    """matvec: `rows` rows of W beside each other in a program of at most `warps` warps, at most `batch` rows of x at
    once where they are 8-bit integers."""

    rows: int
    warps: int
    batch: int


@dataclass(frozen=True, slots=True)
class Tile:
    """matmul for up to `max_rows` rows of x (0: any number): tiles of bn rows of W by bm rows of x.

    split: K may be divided until there are two programs per multiprocessor. int8: on the int8 route, multiply integers;
    otherwise that route, too, multiplies decoded weights here, which past a few rows takes fewer instructions.
    """

    max_rows: int
    bn: int
    bm: int
    warps: int
    stages: int
    split: bool
    int8: bool


@dataclass(frozen=True, slots=True)
class SharedTile:
    """matmul for min_rows … bm rows of 16-bit x on a route without integers: tiles of bn rows of W, which go through
    shared memory (matmul.py), by bm of x. K is divided until there are two programs per multiprocessor."""

    min_rows: int
    bn: int
    bm: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """attention with heads of up to max_dim values (0: any): tiles of bm rows of queries (at most, where few tokens are
    new) by bn keys. decoded: whether it also serves queries of 32 bits and caches of f32, which take more registers.
    """

    max_dim: int
    bm: int
    bn: int
    warps: int
    stages: int
    decoded: bool


@dataclass(frozen=True, slots=True)
class AttentionTuning:
    """prefill, decode: tiles by head size. programs: of the decode kernel, per multiprocessor. min_keys: at least so
    many keys of a sequence to a program."""

    prefill: tuple[AttentionTile, ...]
    decode: tuple[AttentionTile, ...]
    programs: int
    min_keys: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """An architecture's entry.

    matvec_rows: up to so many rows of x go to the matvec kernel on the int8 route; exact_rows: the same on the exact
    route, where a row of x costs more instructions and tensor cores soon do better. workspace_rows: from so many on,
    W is decoded to a workspace and multiplied by torch. shared: what linear layers take in place of `tiles` where it
    fits, or None. invariant: the one tile of the batch-invariant mode.
    """

    arch: str
    measured: str | None
    vector: Vector
    matvec_rows: int
    exact_rows: int
    tiles: tuple[Tile, ...]
    workspace_rows: int
    shared: SharedTile | None
    invariant: Tile
    attention: AttentionTuning

    def tile(self, rows: int) -> Tile:
        """The tile for so many rows of x."""
        return next(tile for tile in self.tiles if not tile.max_rows or rows <= tile.max_rows)


@lru_cache
def tuning(arch: str) -> Tuning:
    """The entry of an architecture such as sm_90 or gfx942, or of the nearest older one.

    ValueError where there is none.
    """
    table = json.loads(TABLE.read_text())
    for name in (arch, *_substitutes(arch)):
        if name in table:
            return from_json(arch, table[name])
    raise ValueError(f"no tuning for {arch}; there are entries for {', '.join(table)}")


def from_json(arch: str, entry: dict) -> Tuning:  # type: ignore[type-arg]
    tiles = tuple(Tile(**tile) for tile in entry["tiles"])
    assert tiles[-1].max_rows == 0, f"{arch}: the last tile must take any number of rows"
    return Tuning(
        arch,
        entry["measured"],
        Vector(**entry["vector"]),
        entry["matvec_rows"],
        entry["exact_rows"],
        tiles,
        entry["workspace_rows"],
        SharedTile(**entry["shared"]) if entry["shared"] else None,
        Tile(**entry["invariant"]),
        AttentionTuning(
            tuple(AttentionTile(**tile) for tile in entry["attention"]["prefill"]),
            tuple(AttentionTile(**tile) for tile in entry["attention"]["decode"]),
            entry["attention"]["programs"],
            entry["attention"]["min_keys"],
        ),
    )


def to_json(entry: Tuning) -> dict[str, object]:
    """What `from_json` reads."""
    return {key: value for key, value in asdict(entry).items() if key != "arch"}


def _substitutes(arch: str) -> tuple[str, ...]:
    if arch.startswith("sm_"):
        older = tuple(name for name in _NVIDIA if int(name[3:]) <= int(arch[3:]))
        return older or _NVIDIA[-1:]
    if arch.startswith(("gfx11", "gfx12")):
        return (arch[:5] + "xx",)
    return ("gfx90a",) if arch.startswith("gfx9") else ()


def isa(arch: str) -> str:
    """Which instructions words.py may write out."""
    if arch.startswith("sm_"):
        return "ptx"
    if arch.startswith("gfx9"):
        return "gfx9"
    return "gfx11" if arch.startswith(("gfx11", "gfx12")) else "portable"


def warp_size(arch: str) -> int:
    """Lanes of a warp: AMD's CDNA has 64."""
    return 64 if arch.startswith("gfx9") else 32


def arch_of(device: torch.device) -> str:
    """The architecture of a CUDA or ROCm device; "portable" for any other in Triton's interpreter.

    ValueError for a device that Triton has no code for, or no right code.
    """
    if device.type != "cuda":
        if not triton.knobs.runtime.interpret:
            raise ValueError(
                f"Triton kernels run on CUDA and ROCm devices (or with TRITON_INTERPRET=1), found {device}"
            )
        return "portable"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    if properties.major == 10 and _triton_version() < SM_100_TRITON:
        needed = ".".join(map(str, SM_100_TRITON))
        raise ValueError(f"{properties.name} needs Triton {needed} or later, found {triton.__version__}")
    return f"sm_{properties.major}{properties.minor}"


def _triton_version() -> tuple[int, int]:
    major, minor = triton.__version__.split(".")[:2]
    return int(major), int(minor)


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of a kernel run side by side at least. The interpreter runs one at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
