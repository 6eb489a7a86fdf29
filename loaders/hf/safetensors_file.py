"""Reads .safetensors files: the header at once, tensors as views of the mapped file.

The format (https://huggingface.co/docs/safetensors): 8 bytes n, n bytes of JSON that give each tensor's dtype, shape
and place, then the tensors one after another without gaps. Everything is little-endian. What the header says is
checked against the file's length before anything is allocated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...quant.formats import BF16, F16, F32, Format
from ..quote import quoted, written
from ..stored import Bytes, TensorFile, swap_bytes
from .json_file import parse_json

# The limit of the reference implementation.
MAX_HEADER_BYTES = 100_000_000
MAX_DIMS = 8
MAX_NAME = 1024
FORMATS: dict[str, Format] = {"F32": F32, "F16": F16, "BF16": BF16}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's dtype (safetensors' name for it), shape and place in the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int

    @property
    def format(self) -> Format:
        """ValueError for a dtype that models here are not made of."""
        if self.dtype not in FORMATS:
            raise ValueError(f"dtype {self.dtype[:80]} is not supported, expected one of {', '.join(FORMATS)}")
        return FORMATS[self.dtype]


class SafetensorsFile:
    """An open file. entries: name -> Entry, in file order. ValueError, naming the file, for anything malformed.

    With use_mmap=False tensors are copies, read from the file each time they are asked for.
    """

    def __init__(self, path: Path, *, use_mmap: bool = True) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 8:
            raise ValueError(f"{path}: not a safetensors file: {size} bytes, the header alone has 8")
        self.file = TensorFile(path, use_mmap=use_mmap)
        n_header = int.from_bytes(self.file.map[:8], "little")
        limit = min(size - 8, MAX_HEADER_BYTES)
        if n_header > limit:
            raise ValueError(f"{path}: not a safetensors file: its header claims {n_header} bytes, at most {limit} fit")
        header = parse_json(self.file.map[8 : 8 + n_header], f"{path}: the header", strict=True)
        header.pop("__metadata__", None)
        try:
            self.entries = _entries(header, 8 + n_header, size)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def read(self, name: str) -> Bytes:
        """A tensor's bytes in native byte order, uint8 [n_bytes]; a view of the file where it is mapped."""
        entry = self.entries[name]
        data = self.file.read(entry.offset, entry.n_bytes)
        return data if sys.byteorder == "little" else swap_bytes(data, entry.format)

    def release(self, name: str) -> None:
        """Lets the pages of a tensor whose bytes were used leave memory; reading it again stays possible."""
        entry = self.entries[name]
        self.file.release(entry.offset, entry.n_bytes)


def _entries(header: Mapping[str, Any], start: int, size: int) -> dict[str, Entry]:
    entries = {name: _entry(name, fields, start) for name, fields in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: item[1].offset))
    expected = start
    for name, entry in ordered.items():
        if entry.offset != expected:
            raise ValueError(
                f"tensor {name!r} starts at byte {entry.offset}, expected {expected}: no gaps, no overlaps"
            )
        expected += entry.n_bytes
    if expected != size:
        raise ValueError(f"the tensors end at byte {expected}, but the file has {size}: is it truncated?")
    return ordered


def _entry(name: str, fields: Any, start: int) -> Entry:
    if len(name) > MAX_NAME:
        raise ValueError(f"tensor {quoted(name)} has a name of more than {MAX_NAME} characters")
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str):
        raise ValueError(f"tensor {name!r} has the dtype {quoted(dtype)}, expected a name")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise ValueError(f"tensor {name!r} has shape {written(shape)}, expected at most {MAX_DIMS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name!r} has data_offsets {written(offsets)}, expected its start and its end")
    # A size of 0 does not make the others harmless: torch counts in int64.
    if math.prod(max(n, 1) for n in shape) >= 2**60:
        raise ValueError(f"tensor {name!r} has shape {shape}, expected less than 2**60 elements")
    n_bytes = offsets[1] - offsets[0]
    if dtype in FORMATS and n_bytes != math.prod(shape) * FORMATS[dtype].type_size:
        raise ValueError(f"tensor {name!r} ({dtype}, shape {shape}) cannot have {n_bytes} bytes")
    return Entry(dtype, tuple(shape), start + offsets[0], n_bytes)


def _are_sizes(values: Any) -> bool:
    """Whether this is a list of integers that a file's sizes can be (not JSON's true, which Python takes for 1)."""
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)
