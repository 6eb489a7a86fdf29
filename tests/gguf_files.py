"""Builds GGUF files byte by byte, well-formed or not, without the writer that the tests are about."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.stored import StoredTensor, tensor_bytes
from naiad.quant.formats import Format

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)


@dataclass(frozen=True)
class RawTensor:
    """A tensor's entry in the directory and its data. None: what a well-formed file has there."""

    name: str = "t"
    dims: tuple[int, ...] = (4,)  # in the file's order, the row length first
    type_id: int = 0
    data: bytes = bytes(range(16))
    offset: int | None = None
    n_dims: int | None = None


def pack(codes: str, *values: float, order: str = "<") -> bytes:
    return struct.pack(order + codes, *values)


def string(text: str | bytes, order: str = "<") -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return pack("Q", len(raw), order=order) + raw


def pair(key: str | bytes, type_id: int, payload: bytes, order: str = "<") -> bytes:
    """A metadata pair; payload is everything after the type."""
    return string(key, order) + pack("I", type_id, order=order) + payload


def array(element: int, n: int, payload: bytes, order: str = "<") -> bytes:
    """The payload of an array."""
    return pack("IQ", element, n, order=order) + payload


def gguf_bytes(
    *pairs: bytes,
    tensors: Sequence[RawTensor] = (),
    magic: bytes = b"GGUF",
    version: int = 3,
    order: str = "<",
    alignment: int = 32,
    n_tensors: int | None = None,
    n_kv: int | None = None,
) -> bytes:
    """A whole file. `alignment` is only how it is laid out; general.alignment is one of the pairs."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors % 2**64,
        len(pairs) if n_kv is None else n_kv % 2**64,
    )
    head = magic + pack("IQQ", version, *counts, order=order) + b"".join(pairs)
    data = b""
    for t in tensors:
        n_dims = len(t.dims) if t.n_dims is None else t.n_dims
        dims = [dim % 2**64 for dim in t.dims]
        offset = len(data) if t.offset is None else t.offset % 2**64
        head += string(t.name, order) + pack(f"I{len(dims)}QIQ", n_dims, *dims, t.type_id, offset, order=order)
        data += padded(t.data, alignment)
    return padded(head, alignment) + data


def padded(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def random_tensor(name: str, fmt: Format, shape: tuple[int, ...], seed: int = 0) -> StoredTensor:
    """A tensor of random bytes in memory."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(256, (tensor_bytes(fmt, shape),), dtype=torch.uint8, generator=generator)
    return StoredTensor(name, fmt, shape, lambda: data)


def contents(file: GGUFFile) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Everything about a file's tensors, in file order."""
    return {t.name: (t.format.name, t.shape, bytes(t.bytes().numpy().data)) for t in file.tensors.values()}
