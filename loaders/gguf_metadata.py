"""A GGUF file's metadata as a dict, in which long texts are decoded only when they are asked for."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, MutableMapping
from typing import Any

# Texts up to here are decoded while opening.
LONG_TEXT_BYTES = 2**16


def decode(raw: bytes) -> str:
    """Token texts may hold bytes that are not UTF-8; surrogates keep them for the tokenizer."""
    return raw.decode("utf-8", "surrogateescape")


class GGUFMetadata(MutableMapping[str, Any]):
    """key -> value: numbers, bool and str as such, lists of str or of arrays, numpy arrays of numbers."""

    def __init__(self, file: mmap.mmap) -> None:
        self._file = file
        self._values: dict[str, Any] = {}
        # Where the texts lie that nobody has asked for.
        self._undecoded: dict[str, tuple[int, int]] = {}

    def put_text(self, key: str, start: int, stop: int) -> None:
        """A text that lies at these places in the file."""
        if stop - start <= LONG_TEXT_BYTES:
            self._values[key] = decode(self._file[start:stop])
        else:
            self._values[key] = None
            self._undecoded[key] = start, stop

    def beginning(self, key: str, n: int) -> tuple[Any, int]:
        """The first n letters of a long text and the bytes that it has; other values whole, and 0."""
        if key not in self._undecoded:
            return self._values[key], 0
        start, stop = self._undecoded[key]
        return decode(self._file[start : min(stop, start + 4 * n)])[:n], stop - start

    def __getitem__(self, key: str) -> Any:
        if key in self._undecoded:
            start, stop = self._undecoded[key]
            self[key] = decode(self._file[start:stop])
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._undecoded.pop(key, None)
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        self._undecoded.pop(key, None)
        del self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
