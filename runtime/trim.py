"""Gives memory back that only starting up has needed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

MADV_DONTNEED = 4
# Smaller mappings are not worth a call.
LEAST_BYTES = 2**20


def trim_memory() -> None:
    """Lets go of the pages of libraries' code and of the allocator's free memory; nothing on systems but Linux.

    Importing torch and LLVM executes tens of MiB of code once. Such pages are the files' own, so those that are needed
    again come back by themselves, from the system's cache.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for start, end in _code(Path("/proc/self/smaps").read_text()):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(ctypes.c_size_t(0))


def _code(smaps: str) -> Iterator[tuple[int, int]]:
    """Where libraries' code lies that nobody has written to."""
    mapping = None
    for line in smaps.splitlines():
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            start, end = (int(number, 16) for number in fields[0].split("-"))
            is_code = fields[1] == "r-xp" and len(fields) == 6 and fields[5].startswith("/")
            mapping = (start, end) if is_code and end - start >= LEAST_BYTES else None
        elif fields[0] == "Private_Dirty:" and mapping is not None and fields[1] == "0":
            yield mapping
