"""Importing what computes, which takes most of the time until the first token."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from .interrupt import leaving_at_once


@contextmanager
def importing() -> Iterator[None]:
    """Around the import of torch and all that needs it: Ctrl-C ends the process."""
    with leaving_at_once(), keeping():
        yield


@contextmanager
def keeping() -> Iterator[None]:
    """Around work whose objects all stay: none of them is looked at by the garbage collector, then or later.

    Modules and vocabularies are hundreds of thousands of objects, and the collector would walk them again and again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
