"""How error messages and `naiad info` show values of files: a short piece, whatever the size of the value."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

MAX_QUOTED = 80


def written(value: Any) -> str:
    """A short piece of a value, texts without quotation marks."""
    return value[:MAX_QUOTED] if isinstance(value, str) else quoted(value)


def quoted(value: Any, limit: int = MAX_QUOTED) -> str:
    """repr(value) where that is short, else about `limit` letters of it and how long the value is."""
    if isinstance(value, str | bytes) and len(value) > limit:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{repr(value[:limit])[:limit]}... ({len(value)} {unit})"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[: limit // 2].tolist()
    short = reprlib.Repr()
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = limit // 2
    short.maxstring = short.maxlong = short.maxother = limit
    try:
        text = short.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints; a deep nest
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit + 2 else text[:limit] + "..."
