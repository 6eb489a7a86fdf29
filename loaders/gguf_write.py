"""Writes GGUF files, whole or split, in either byte order; the counterpart of gguf.py.

A tensor's bytes are read, written and let go one tensor at a time, so a model of any size needs little memory.
"""

from __future__ import annotations

import contextlib
import os
import reprlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .gguf import (
    ARRAY,
    BOOL,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    NATIVE_ORDER,
    SCALARS,
    STRING,
    TYPE_NAMES,
    UINT32,
    VERSIONS,
)
from .stored import StoredTensor, align, swap_bytes

KVType = int | tuple[int, int]
UINT16, INT32, FLOAT32, UINT64, INT64 = 2, 5, 6, 10, 11
NUMPY_TYPES = {np.dtype(code): type_id for type_id, code in SCALARS.items()}
INT_RANGES = {
    UINT32: range(2**32),
    INT32: range(-(2**31), 2**31),
    INT64: range(-(2**63), 2**63),
    UINT64: range(2**64),
}
SPLIT_TYPES = {"split.no": UINT16, "split.count": UINT16, "split.tensors.count": INT32}


def write_gguf(
    path: str | os.PathLike[str],
    kv: Mapping[str, Any],
    tensors: Iterable[StoredTensor],
    *,
    kv_types: Mapping[str, KVType] | None = None,
    version: int = 3,
    byte_order: str = "<",
    max_part_bytes: int | None = None,
) -> list[Path]:
    """Writes a model and returns the paths of its files.

    kv_types: the metadata type of a key (as GGUFFile.kv_types has them) where the guess from the Python value is
    not wanted: UINT32 for integers, INT32 for lists of them where these fit, FLOAT32 for floats.
    max_part_bytes: tensor bytes per file; more than that goes to files named PATH-00001-of-0000N.gguf, each with
    at least one tensor. The metadata keys of a split model, split.*, are never copied from kv.

    Files appear under their names only when complete, the first part of a split model last. Raises ValueError
    for what the format cannot hold.
    """
    path, tensors = Path(path), list(tensors)
    kv = {key: value for key, value in kv.items() if key not in SPLIT_TYPES}
    types = {**(kv_types or {}), **SPLIT_TYPES, "general.alignment": UINT32}
    _check_names(kv, tensors)
    writer = _Writer(version, byte_order, kv.get("general.alignment", DEFAULT_ALIGNMENT))
    parts = _partition(tensors, max_part_bytes)
    if len(parts) == 1:
        writer.write(path, kv, types, tensors)
        return [path]
    stem = path.name.removesuffix(".gguf")
    paths = [path.with_name(f"{stem}-{i + 1:05}-of-{len(parts):05}.gguf") for i in range(len(parts))]
    for i in reversed(range(len(parts))):
        # Only the first part carries the model's metadata.
        part_kv = {key: value for key, value in kv.items() if i == 0 or key == "general.alignment"}
        part_kv |= {"split.no": i, "split.count": len(parts), "split.tensors.count": len(tensors)}
        writer.write(paths[i], part_kv, types, parts[i])
    return paths


def _check_names(kv: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> None:
    for key in kv:
        if not 0 < len(_utf8(key)) <= MAX_KEY_BYTES:
            raise ValueError(f"metadata key {key[:80]!r} must have 1 to {MAX_KEY_BYTES} bytes")
    seen = set()
    for tensor in tensors:
        if len(_utf8(tensor.name)) > MAX_NAME_BYTES:
            raise ValueError(f"tensor name {tensor.name!r} has more than {MAX_NAME_BYTES} bytes")
        if len(tensor.shape) > MAX_DIMS:
            raise ValueError(f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions, expected at most {MAX_DIMS}")
        if tensor.name in seen:
            raise ValueError(f"tensor name {tensor.name!r} appears twice")
        seen.add(tensor.name)


def _partition(tensors: Sequence[StoredTensor], max_bytes: int | None) -> list[list[StoredTensor]]:
    parts: list[list[StoredTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if max_bytes is not None and parts[-1] and filled + tensor.n_bytes > max_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(tensor)
        filled += tensor.n_bytes
    return parts


class _Writer:
    def __init__(self, version: int, byte_order: str, alignment: Any) -> None:
        if version not in VERSIONS:
            raise ValueError(f"cannot write GGUF version {version}, expected one of {VERSIONS}")
        if byte_order not in ("<", ">"):
            raise ValueError(f"byte order must be '<' or '>', found {byte_order!r}")
        if version == 2 and byte_order == ">":
            raise ValueError("GGUF version 2 is little endian; big endian needs version 3")
        if not isinstance(alignment, int) or alignment not in {1 << i for i in range(32)}:
            raise ValueError(f"general.alignment must be a power of two below 2**32, found {alignment!r}")
        self.version, self.byte_order, self.alignment = version, byte_order, alignment

    def write(
        self, path: Path, kv: Mapping[str, Any], types: Mapping[str, KVType], tensors: Sequence[StoredTensor]
    ) -> None:
        head = bytearray(MAGIC + self.pack("IQQ", self.version, len(tensors), len(kv)))
        for key, value in kv.items():
            head += self.string(key) + self.value(key, value, types.get(key))
        offset = 0
        for tensor in tensors:
            dims = tuple(reversed(tensor.shape))
            head += self.string(tensor.name) + self.pack(f"I{len(dims)}Q", len(dims), *dims)
            head += self.pack("IQ", tensor.format.id, offset)
            offset += align(tensor.n_bytes, self.alignment)
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                self.padded(file, head)
                for tensor in tensors:
                    data = np.asarray(tensor.read()).reshape(-1)
                    if self.byte_order != NATIVE_ORDER:
                        data = swap_bytes(data, tensor.format)
                    self.padded(file, data.data)
                file.truncate()
            os.replace(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                partial.unlink()

    def padded(self, file: BinaryIO, data: bytearray | memoryview) -> None:
        n_bytes = file.write(data)
        # What is skipped reads as zeros, and takes no memory however large the alignment is.
        file.seek(-n_bytes % self.alignment, os.SEEK_CUR)

    def pack(self, codes: str, *values: Any) -> bytes:
        return struct.pack(self.byte_order + codes, *values)

    def string(self, text: str) -> bytes:
        raw = _utf8(text)
        return self.pack("Q", len(raw)) + raw

    def value(self, key: str, value: Any, kind: KVType | None) -> bytes:
        """A metadata value with its type in front."""
        try:
            kind = _guess_type(value) if kind is None else kind
            if isinstance(kind, tuple):
                return self.pack("I", ARRAY) + self.array(value, kind[1])
            return self.pack("I", kind) + self.items([value], kind)
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise ValueError(f"metadata {key!r}: cannot write {reprlib.repr(value)}: {error}") from None

    def array(self, values: Any, element: int) -> bytes:
        if not isinstance(values, list | tuple | np.ndarray):
            raise ValueError("expected a list or an array")
        return self.pack("IQ", element, len(values)) + self.items(values, element)

    def items(self, values: Sequence[Any] | np.ndarray, kind: int) -> bytes:
        """Values of one type, one after another."""
        if kind == STRING:
            return b"".join(map(self.string, values))
        if kind == ARRAY:
            return b"".join(self.array(value, _guess_element(value)) for value in values)
        if kind not in SCALARS:
            raise ValueError(f"unknown type {kind}, expected 0 to {len(TYPE_NAMES) - 1}")
        code = SCALARS[kind]
        if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype == np.dtype(code):
            return values.astype(self.byte_order + code).tobytes()
        try:
            return self.pack(f"{len(values)}{code}", *values)
        except (struct.error, OverflowError) as error:
            raise ValueError(f"expected {TYPE_NAMES[kind]} ({error})") from None


def _utf8(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"expected a str, found {type(text).__name__}")
    return text.encode("utf-8", "surrogateescape")


def _guess_type(value: Any) -> KVType:
    if isinstance(value, list | tuple | np.ndarray):
        return (ARRAY, _guess_element(value))
    if isinstance(value, np.generic) and value.dtype in NUMPY_TYPES:
        return NUMPY_TYPES[value.dtype]
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return _int_type([value], UINT32, INT32, UINT64, INT64)
    if isinstance(value, float):
        return FLOAT32
    if isinstance(value, str):
        return STRING
    raise ValueError(f"GGUF has no type for {type(value).__name__}")


def _guess_element(values: Sequence[Any] | np.ndarray) -> int:
    """The element type of an array. Numbers read from a file are numpy's, so an empty list is one of strings."""
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype in NUMPY_TYPES:
        return NUMPY_TYPES[values.dtype]
    kinds = {ARRAY if isinstance(kind := _guess_type(value), tuple) else kind for value in values}
    if kinds <= INT_RANGES.keys() and kinds:
        return _int_type(values, INT32, INT64, UINT64)
    if kinds <= {FLOAT32, *INT_RANGES} and kinds:
        return FLOAT32
    if len(kinds) > 1:
        raise ValueError(f"one array cannot hold {' and '.join(TYPE_NAMES[kind] for kind in sorted(kinds))}")
    return kinds.pop() if kinds else STRING


def _int_type(values: Sequence[int] | np.ndarray, *kinds: int) -> int:
    """The first of these types that holds all the values."""
    for kind in kinds:
        if min(values) in INT_RANGES[kind] and max(values) in INT_RANGES[kind]:
            return kind
    raise ValueError("GGUF has no integers of more than 64 bits")
