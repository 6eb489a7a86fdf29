"""One request to the engine: what was asked for, and where the scheduler stands with it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]
NO_LIMIT = -1

_ids = itertools.count()


class QueueFull(RuntimeError):
    """So many requests wait already that no further one is taken."""


@dataclass(eq=False, slots=True)
class Request:
    """A prompt and how it is to be continued; the fields from `tokens` on belong to the scheduler.

    prompt: token ids. max_tokens: how many tokens to generate, -1 for no limit of its own. priority: higher runs first.
    deadline: when to give up, in seconds of the scheduler's clock. cache_prompt: may use what other requests left in
    the cache, and leaves its own there. ignore_eos: end-of-generation tokens do not end it.

    tokens: prompt and generated tokens, as far as they are known. n_computed: tokens whose keys and values are in the
    cache once all scheduled steps have run. n_in_flight: tokens that are sampled in scheduled steps and not yet known.
    pages: a list of page numbers per cache group. digests: one per whole page of tokens, as far as they were needed.
    slot: the place of the request's state on the device, -1 before it has one, kept from the first admission on.
    n_cached: prompt tokens that the cache held at the first admission. arrival: seconds of the scheduler's clock.
    """

    prompt: list[int]
    max_tokens: int = NO_LIMIT
    priority: float = 0
    deadline: float = math.inf
    cache_prompt: bool = True
    ignore_eos: bool = False
    id: int = field(default_factory=_ids.__next__)

    tokens: list[int] = field(default_factory=list)
    n_computed: int = 0
    n_in_flight: int = 0
    pages: list[list[int]] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    slot: int = -1
    n_cached: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    arrival: float = math.nan

    # The scheduler's notes. n_limit: the length at which it ends. n_indexed: whole pages given to the prefix index.
    n_limit: int = 0
    n_indexed: int = 0
    # Orders waiting requests and running ones; level is the priority that the request had reached when admitted.
    key: tuple[float, int] = (0.0, 0)
    rank: tuple[float, float, int] = (0, 0.0, 0)
    level: float = 0
    # Numbers of the steps that admitted it and that served it last, and the time of the latter.
    admitted: int = -1
    last_step: int = -1
    served: float = 0.0
    # Sampled tokens that are not to be taken when they come.
    n_void: int = 0
    # The digest of a page that another request computes and this one waits for.
    awaits: bytes | None = None

    @property
    def n_generated(self) -> int:
        """Generated tokens that are known."""
        return len(self.tokens) - len(self.prompt)

    @property
    def n_missing(self) -> int:
        """Tokens that exist, known or not, and are not yet in the cache."""
        return len(self.tokens) + self.n_in_flight - self.n_computed

    def check(self, n_ctx: int, capacity: int) -> None:
        """ValueError unless it is new and can be served with a context of `n_ctx` tokens and a cache of `capacity`."""
        if not math.isnan(self.arrival):
            raise ValueError(f"expected a new request, but request {self.id} was submitted before")
        check_length(len(self.prompt), n_ctx, capacity)
        if self.max_tokens < NO_LIMIT:
            raise ValueError(f"max_tokens must be -1 (no limit) or more, found {self.max_tokens}")
        if math.isnan(self.deadline):
            raise ValueError("expected a deadline in seconds, found nan")
        if not math.isfinite(self.priority):
            raise ValueError(f"expected a finite priority, found {self.priority}")


def check_length(n_prompt: int, n_ctx: int, capacity: int) -> None:
    """ValueError unless a prompt of so many tokens can be served."""
    if not n_prompt:
        raise ValueError("the prompt has no tokens")
    if n_prompt > n_ctx:
        raise ValueError(f"the prompt has {n_prompt} tokens, but the context holds {n_ctx}")
    if n_prompt > capacity:
        raise ValueError(f"the prompt has {n_prompt} tokens, but the cache holds {capacity}")
