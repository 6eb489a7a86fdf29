"""Reads GGUF files: metadata at once, tensors as views of the mapped file.

Versions 2, 3 and 4 (4 has no public layout of its own; files with that number have version 3's), both byte
orders, split files. Which malformed files are refused follows llama.cpp's own reader; sizes are checked against
the file's length before anything is allocated, so a hostile header costs no memory.

Opening takes at most 12 bytes of memory and 50 ns per byte of metadata (strings of two letters in an array), and
beyond that at most 150 MB and 3 s for what is counted below. Long texts are decoded when they are asked for.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import reprlib
import struct
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..quant.formats import Format, format_by_id
from .gguf_metadata import GGUFMetadata, decode
from .quote import quoted
from .stored import Bytes, StoredTensor, TensorFile, align, swap_bytes, tensor_bytes

MAGIC = b"GGUF"
VERSIONS = (2, 3, 4)
NATIVE_ORDER = "<" if sys.byteorder == "little" else ">"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME_BYTES = 63
MAX_KEY_BYTES = 65_535
MAX_ARRAY_DEPTH = 4
# Strings and arrays in arrays: as Python objects they take many times their bytes in the file.
MAX_OBJECTS = 2**24
# Arrays in arrays, pairs and tensors cost more, and no model has many: most files have 50 pairs and 1000 tensors.
MAX_INNER_ARRAYS = 2**16
MAX_PAIRS = 2**16
MAX_TENSORS = 2**17

# Metadata value types: id -> struct code of the scalar; strings and arrays have layouts of their own.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY, UINT32 = 7, 8, 9, 4
TYPE_NAMES = (
    *("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32"),
    *("BOOL", "STRING", "ARRAY", "UINT64", "INT64", "FLOAT64"),
)
SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
MAX_SPLITS = 99_999


class GGUFError(ValueError):
    """A file that is not a GGUF file that we can read; the message names it, what was expected and found."""


class _Cursor:
    """Reads values one after another from a mapped file and never past its end."""

    def __init__(self, file: mmap.mmap, byte_order: str, pos: int) -> None:
        self.file, self.byte_order, self.pos = file, byte_order, pos
        self.n_objects = self.n_inner_arrays = 0

    def need(self, n_bytes: int, what: str) -> None:
        left = len(self.file) - self.pos
        if n_bytes > left:
            raise GGUFError(f"{what} needs {n_bytes} bytes at offset {self.pos}, but the file has {left} left")

    def scalar(self, code: str, what: str) -> Any:
        size = struct.calcsize(code)
        self.need(size, what)
        (value,) = struct.unpack_from(self.byte_order + code, self.file, self.pos)
        self.pos += size
        return value

    def string(self, what: str, max_bytes: int | None = None) -> str:
        start, stop = self.text(what, max_bytes)
        return decode(self.file[start:stop])

    def text(self, what: str, max_bytes: int | None = None) -> tuple[int, int]:
        """Where a string's bytes begin and end."""
        n_bytes = self.scalar("Q", f"the length of {what}")
        if max_bytes is not None and n_bytes > max_bytes:
            raise GGUFError(f"{what} has {n_bytes} bytes, expected at most {max_bytes}")
        self.need(n_bytes, what)
        start, self.pos = self.pos, self.pos + n_bytes
        return start, self.pos

    def strings(self, n: int, what: str) -> list[str]:
        """An array of strings; written out flat because vocabularies have hundreds of thousands."""
        file, end, pos = self.file, len(self.file), self.pos
        length = struct.Struct(self.byte_order + "Q").unpack_from
        out = []
        for i in range(n):
            start = pos + 8
            if start > end:
                raise GGUFError(f"{what} has {n} strings, but the file ends after {i}")
            pos = start + length(file, pos)[0]
            if pos > end:
                raise GGUFError(f"{what}: string {i} has {pos - start} bytes, but the file has {end - start} left")
            out.append(file[start:pos].decode("utf-8", "surrogateescape"))
        self.pos = pos
        return out

    def array(self, what: str, depth: int = 1) -> tuple[list[Any] | np.ndarray, int]:
        """An array's values and its element type: lists of str or arrays, numpy arrays of numbers."""
        element = self.scalar("I", f"the element type of {what}")
        n = self.scalar("Q", f"the length of {what}")
        if element in SCALARS:
            code = SCALARS[element]
            self.need(n * struct.calcsize(code), what)
            # Any byte but 0 is true, and numpy's bool would keep the byte.
            stored = np.dtype(self.byte_order + ("B" if element == BOOL else code))
            values = np.frombuffer(self.file, stored, n, self.pos)
            self.pos += values.nbytes
            return values.astype(code), element
        if element not in (STRING, ARRAY):
            raise GGUFError(f"{what} has the unknown element type {element}, expected 0 to {len(TYPE_NAMES) - 1}")
        self.need((8 if element == STRING else 12) * n, what)
        self.n_objects += n
        if self.n_objects > MAX_OBJECTS:
            raise GGUFError(f"{what}: found more than {MAX_OBJECTS} strings or arrays, expected fewer")
        if element == STRING:
            return self.strings(n, what), element
        self.n_inner_arrays += n
        if self.n_inner_arrays > MAX_INNER_ARRAYS:
            raise GGUFError(f"{what}: found more than {MAX_INNER_ARRAYS} arrays in arrays, expected fewer")
        if depth == MAX_ARRAY_DEPTH:
            raise GGUFError(f"{what} nests arrays more than {MAX_ARRAY_DEPTH} deep")
        return [self.array(what, depth + 1)[0] for _ in range(n)], element


class GGUFFile:
    """An open GGUF file (all parts of a split one).

    kv: metadata; numbers, bool and str as such, arrays of strings as list[str], of numbers as numpy arrays.
    kv_types: for each key its type id, for arrays (ARRAY, element type), so that a copy can be exact (the type
    of an array inside an array shows in its values).
    tensors: name -> StoredTensor, in file order, reading nothing until their bytes are asked for.

    With use_mmap=False tensors are read from the file into memory of their own each time they are asked for.
    Raises GGUFError (a ValueError) for anything malformed, OSError when the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, use_mmap: bool = True) -> None:
        self.path = Path(path)
        first = _Part(self.path, use_mmap)
        self.version, self.byte_order, self.alignment = first.version, first.byte_order, first.alignment
        self.kv, self.kv_types = first.kv, first.kv_types
        self._parts = [first, *_other_parts(first, use_mmap)]
        self.tensors: dict[str, StoredTensor] = {}
        self._part_of: dict[str, _Part] = {}
        for part in self._parts:
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise GGUFError(f"{part.path}: tensor {name!r} is also in another part of the model")
                if len(self.tensors) >= MAX_TENSORS:
                    raise GGUFError(f"{self.path}: the parts hold more than {MAX_TENSORS} tensors, expected fewer")
                self.tensors[name], self._part_of[name] = tensor, part
        if len(self._parts) > 1:
            expected = first.integer("split.tensors.count", default=len(self.tensors))
            if expected != len(self.tensors):
                raise GGUFError(f"{self.path}: the parts hold {len(self.tensors)} tensors, expected {expected}")

    @property
    def name(self) -> str:
        return str(self.path)

    def release(self, tensor: StoredTensor) -> None:
        """Lets the pages of a tensor whose bytes were used leave memory; reading it again stays possible."""
        part = self._part_of[tensor.name]
        part.file.release(part.offsets[tensor.name], tensor.n_bytes)

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Tensors taken from the file keep its mapping alive; it goes when the last of them does.
        self._parts.clear()
        self._part_of.clear()
        self.tensors = {}


def _other_parts(first: _Part, use_mmap: bool) -> list[_Part]:
    n_parts = first.integer("split.count", default=0)
    if n_parts <= 1:
        return []
    path = first.path
    if n_parts > MAX_SPLITS:
        raise GGUFError(f"{path}: split.count is {n_parts}, expected at most {MAX_SPLITS}")
    number = first.integer("split.no")
    if number != 0:
        raise GGUFError(
            f"{path} is part {number + 1} of {n_parts} of a split model; open the first, ...-00001-of-{n_parts:05}.gguf"
        )
    match = SPLIT_NAME.fullmatch(path.name)
    if not match or int(match[2]) != 1 or int(match[3]) != n_parts:
        raise GGUFError(f"{path} is the first of {n_parts} parts, so its name must end in -00001-of-{n_parts:05}.gguf")
    parts = []
    for i in range(1, n_parts):
        path = path.with_name(f"{match[1]}-{i + 1:05}-of-{n_parts:05}.gguf")
        if not path.exists():
            raise GGUFError(f"{first.path}: part {i + 1} of {n_parts} is missing, expected {path}")
        part = _Part(path, use_mmap)
        number, count = part.integer("split.no"), part.integer("split.count")
        if (number, count) != (i, n_parts):
            raise GGUFError(f"{path}: expected part {i + 1} of {n_parts}, found part {number + 1} of {count}")
        # What counts is in the first.
        part.kv.clear()
        part.kv_types.clear()
        parts.append(part)
    return parts


class _Part:
    """One file: a whole model or one part of a split one."""

    def __init__(self, path: Path, use_mmap: bool) -> None:
        self.path = path
        size = path.stat().st_size
        if size < 24:
            raise GGUFError(f"{path}: not a GGUF file: {size} bytes, the header alone has 24")
        self.file = TensorFile(path, use_mmap=use_mmap)
        try:
            self._parse(self.file.map)
        except GGUFError as error:
            raise GGUFError(f"{path}: {error}") from None

    def integer(self, key: str, default: int | None = None) -> int:
        """A metadata value that must be an integer >= 0."""
        value = self.kv.get(key, default)
        if not isinstance(value, int) or value < 0:
            raise GGUFError(f"{self.path}: {key} must be an integer >= 0, found {reprlib.repr(value)}")
        return value

    def _parse(self, file: mmap.mmap) -> None:
        self.version, self.byte_order = _version_and_order(file[:8])
        cursor = _Cursor(file, self.byte_order, pos=8)
        n_tensors = cursor.scalar("Q", "the number of tensors")
        n_kv = cursor.scalar("Q", "the number of metadata pairs")
        # The smallest possible entries bound both counts before any loop runs.
        cursor.need(n_tensors * 24 + n_kv * 14, f"a directory of {n_tensors} tensors and {n_kv} metadata pairs")
        for n, limit, what in ((n_tensors, MAX_TENSORS, "tensors"), (n_kv, MAX_PAIRS, "metadata pairs")):
            if n > limit:
                raise GGUFError(f"it has {n} {what}, expected at most {limit}")
        self.kv = GGUFMetadata(file)
        self.kv_types: dict[str, int | tuple[int, int]] = {}
        for i in range(n_kv):
            self._parse_pair(cursor, i)
        self.alignment = self._alignment()
        entries = [_parse_tensor(cursor, i) for i in range(n_tensors)]
        self._place_tensors(entries, align(cursor.pos, self.alignment), len(file))

    def _parse_pair(self, cursor: _Cursor, i: int) -> None:
        key = cursor.string(f"metadata key {i}", MAX_KEY_BYTES)
        if not key:
            raise GGUFError(f"metadata key {i} is empty")
        what = quoted(key)
        if key in self.kv:
            raise GGUFError(f"metadata key {what} appears twice")
        kind = cursor.scalar("I", f"the type of {what}")
        if kind in SCALARS:
            self.kv[key], self.kv_types[key] = cursor.scalar(SCALARS[kind], what), kind
        elif kind == STRING:
            self.kv.put_text(key, *cursor.text(what))
            self.kv_types[key] = kind
        elif kind == ARRAY:
            self.kv[key], element = cursor.array(what)
            self.kv_types[key] = (ARRAY, element)
        else:
            raise GGUFError(f"{what} has the unknown type {kind}, expected 0 to {len(TYPE_NAMES) - 1}")

    def _alignment(self) -> int:
        key = "general.alignment"
        if key not in self.kv:
            return DEFAULT_ALIGNMENT
        value, kind = self.kv[key], self.kv_types[key]
        if kind != UINT32:
            found = TYPE_NAMES[kind if isinstance(kind, int) else ARRAY]
            raise GGUFError(f"{key} must be of type UINT32, found {found}")
        if value == 0 or value & (value - 1):
            raise GGUFError(f"{key} must be a power of two, found {value}")
        return int(value)

    def _place_tensors(self, entries: list[tuple[str, Format, tuple[int, ...], int]], start: int, size: int) -> None:
        """Tensors lie one after another, each aligned; any other offset is a sign of damage."""
        self.tensors: dict[str, StoredTensor] = {}
        self.offsets: dict[str, int] = {}
        expected = 0
        for name, fmt, shape, offset in entries:
            if name in self.tensors:
                raise GGUFError(f"tensor {name!r} appears twice")
            if offset != expected:
                raise GGUFError(f"tensor {name!r} has offset {offset}, expected {expected}")
            n_bytes = tensor_bytes(fmt, shape)
            if start + offset + n_bytes > size:
                raise GGUFError(
                    f"tensor {name!r} ({fmt.name}, shape {list(shape)}) needs {n_bytes} bytes at offset "
                    f"{start + offset}, but the file has {size}: is it truncated?"
                )
            read = partial(self._read, fmt, start + offset, n_bytes)
            self.tensors[name], self.offsets[name] = StoredTensor(name, fmt, shape, read), start + offset
            expected = align(offset + n_bytes, self.alignment)

    def _read(self, fmt: Format, offset: int, n_bytes: int) -> Bytes:
        data = self.file.read(offset, n_bytes)
        return data if self.byte_order == NATIVE_ORDER else swap_bytes(data, fmt)


def _parse_tensor(cursor: _Cursor, i: int) -> tuple[str, Format, tuple[int, ...], int]:
    name = cursor.string(f"the name of tensor {i}", MAX_NAME_BYTES)
    what = f"tensor {name!r}"
    n_dims = cursor.scalar("I", f"the number of dimensions of {what}")
    if n_dims > MAX_DIMS:
        raise GGUFError(f"{what} has {n_dims} dimensions, expected at most {MAX_DIMS}")
    dims = [cursor.scalar("Q", f"the shape of {what}") for _ in range(n_dims)]
    type_id = cursor.scalar("I", f"the type of {what}")
    offset = cursor.scalar("Q", f"the offset of {what}")
    shape = tuple(reversed(dims))
    try:
        fmt = format_by_id(type_id)
        tensor_bytes(fmt, shape)
    except ValueError as error:
        raise GGUFError(f"{what}: {error}") from None
    # A dimension of 0 does not make the others harmless: torch counts in int64.
    if math.prod(max(dim, 1) for dim in dims) * fmt.type_size >= 2**63:
        raise GGUFError(f"{what} ({fmt.name}) has shape {list(shape)}, expected less than 2**63 bytes")
    return name, fmt, shape, offset


def _version_and_order(header: bytes) -> tuple[int, str]:
    if header[:4] != MAGIC:
        raise GGUFError(f"not a GGUF file: it starts with {header[:4]!r}, expected {MAGIC!r}")
    for order in "<>":
        (version,) = struct.unpack(order + "I", header[4:])
        if version in VERSIONS:
            return version, order
    (version,) = struct.unpack("<I", header[4:])
    if version == 1:
        raise GGUFError("GGUF version 1 is no longer supported; convert the model again")
    raise GGUFError(f"GGUF version {version}, expected one of {', '.join(map(str, VERSIONS))}")
