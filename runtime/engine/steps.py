"""What a step computes: the scheduler's answer, and what the device is given."""

from __future__ import annotations

from dataclasses import dataclass

from .pages import Move
from .request import Request


@dataclass(slots=True)
class Row:
    """Tokens [start, stop) of a request's sequence; with `samples` the last one's logits give the next token."""

    request: Request
    start: int
    stop: int
    samples: bool


@dataclass(slots=True)
class Step:
    """Rows of running streams first, then parts of prompts. `moves` are executed in order before the rows.

    number: counts steps from 1; they are launched and completed in this order.
    """

    rows: list[Row]
    moves: list[Move]
    number: int
