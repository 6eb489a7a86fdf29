"""A tensor as it lies in a file: the common currency of the GGUF and safetensors readers.

Readers work on numpy alone; torch is imported by whoever asks for a tensor's bytes as torch's.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..quant.formats import ITEM_BYTES, Format

if TYPE_CHECKING:
    import torch

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A lazy tensor: its format and shape are known, its bytes are read when asked for.

    `shape` is in torch's order, the row length last (GGUF files store it the other way round); a 0-d tensor is
    a row of one weight. `read` gives the bytes flat, uint8 in the machine's byte order, numpy's or torch's.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    read: Callable[[], Bytes | torch.Tensor]

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return tensor_bytes(self.format, self.shape)

    def bytes(self) -> torch.Tensor:
        """The stored bytes, uint8 [*shape[:-1], row bytes]; a view of the mapped file where there is one."""
        import torch

        return torch.as_tensor(self.read()).view(*self.shape[:-1], self.format.row_bytes(_row_length(self.shape)))


class ModelSource(Protocol):
    """What a model is built from, whichever kind of file it lies in.

    kv: the metadata under GGUF's keys. tensors: under GGUF's names, in file order.
    release: the tensor's bytes will not be needed again, their pages may leave memory.
    """

    @property
    def name(self) -> str: ...
    @property
    def kv(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, StoredTensor]: ...
    def release(self, tensor: StoredTensor) -> None: ...


class TensorFile:
    """A file whose byte ranges become tensors: views of its mapping, which lives as long as any of them.

    With use_mmap=False they are copies, read from the file each time. OSError when the file cannot be opened.

    The system ends a process that looks at a part of a mapping whose file has become shorter (SIGBUS). So a file's size
    is looked at before a range of it is handed out, and again when it was used; between the two nothing can be done.
    """

    def __init__(self, path: Path, *, use_mmap: bool) -> None:
        self.path, self.use_mmap = path, use_mmap
        with path.open("rb") as file:
            self.map = _map(file.fileno())
            self._opened = os.fstat(file.fileno())

    def read(self, offset: int, n_bytes: int) -> Bytes:
        """uint8 [n_bytes]. ValueError when the file was cut short or replaced meanwhile."""
        if self.use_mmap:
            self._check(self.map.size())
            return np.frombuffer(self.map, np.uint8, n_bytes, offset)
        data = np.empty(n_bytes, np.uint8)
        with self.path.open("rb") as file:
            found = os.fstat(file.fileno())
            if not os.path.samestat(found, self._opened):
                raise ValueError(f"{self.path}: the file was replaced by another while it was loaded")
            self._check(found.st_size)
            file.seek(offset)
            n_read = file.readinto(data.data)
        if n_read != n_bytes:
            raise ValueError(f"{self.path}: read {n_read} bytes at offset {offset}, expected {n_bytes}")
        return data

    def _check(self, size: int) -> None:
        if size < self._opened.st_size:
            raise ValueError(
                f"{self.path}: the file was cut short while it was loaded, "
                f"expected {self._opened.st_size} bytes, found {size}"
            )

    def release(self, offset: int, n_bytes: int) -> None:
        """Lets the pages that lie inside a range leave memory; reading it again stays possible.

        ValueError when the file was cut short: what was read may have been zeros.
        """
        if not self.use_mmap:
            return
        self._check(self.map.size())
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        start, stop = align(offset, mmap.PAGESIZE), (offset + n_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            self.map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _map(fileno: int) -> mmap.mmap:
    """The whole file, copy-on-write: torch wants writable arrays, and the file must never change."""
    if sys.platform == "linux":
        # Linux reserves memory for all the copies that might be made, so that a file larger than memory could
        # not be mapped, unless told otherwise. Not every Python has a name for the flag.
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)
        return mmap.mmap(fileno, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(fileno, 0, access=mmap.ACCESS_COPY)


def swap_bytes(data: Bytes, fmt: Format) -> Bytes:
    """The same blocks in the other byte order: the numbers of each field are reversed, single bytes stay."""
    blocks = data.reshape(-1, fmt.type_size).copy()
    start = 0
    for field in fmt.fields:
        stop = start + field.n_bytes
        items = blocks[:, start:stop].reshape(-1, ITEM_BYTES[field.dtype])
        blocks[:, start:stop] = items[:, ::-1].reshape(-1, field.n_bytes)
        start = stop
    swapped: Bytes = blocks.reshape(-1)
    return swapped


def align(n: int, alignment: int) -> int:
    """The least multiple of alignment that is not less than n."""
    return (n + alignment - 1) // alignment * alignment


def tensor_bytes(fmt: Format, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; ValueError when its rows are not whole blocks."""
    return math.prod(shape[:-1]) * fmt.row_bytes(_row_length(shape))


def _row_length(shape: tuple[int, ...]) -> int:
    return shape[-1] if shape else 1
