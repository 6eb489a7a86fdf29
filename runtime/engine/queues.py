"""Ordered lists of requests, their deadlines, and how a budget is shared."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from .request import Request


class Deadlines:
    """The requests that have a deadline, by time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def add(self, request: Request, n_alive: int) -> None:
        """Watches a request, one of `n_alive` that have not ended."""
        if request.deadline == math.inf:
            return
        heapq.heappush(self._heap, (request.deadline, request.id, request))
        # Those that ended early would otherwise stay as long as their deadlines are away.
        if len(self._heap) > 2 * n_alive + 64:
            self._heap = [entry for entry in self._heap if entry[2].finish_reason is None]
            heapq.heapify(self._heap)

    def expired(self, now: float) -> list[Request]:
        """The requests whose time is up and that have not ended; each is returned once."""
        requests = []
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if request.finish_reason is None:
                requests.append(request)
        return requests


def remove(requests: list[Request], request: Request, key: Callable[[Request], Any]) -> bool:
    """Takes a request out of a list that is ordered by `key`; False when it is not there."""
    i = bisect_left(requests, key(request), key=key)
    if i == len(requests) or requests[i] is not request:
        return False
    del requests[i]
    return True


def even_shares(budget: int, needs: Sequence[int]) -> list[int]:
    """Splits a budget: who needs less than an even share gets what it needs, the others share the rest evenly."""
    shares = [0] * len(needs)
    for n_left, i in zip(range(len(needs), 0, -1), sorted(range(len(needs)), key=needs.__getitem__), strict=True):
        shares[i] = min(needs[i], -(-budget // n_left))
        budget -= shares[i]
    return shares
