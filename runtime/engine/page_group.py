"""The pages of one cache group: which are free, held or idle, on the device and on the host."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from heapq import heappop, heappush

from .prefixes import Node

NULL_PAGE = 0


class PageGroup:
    """Books about pages 1 … n_pages - 1 of the device and 1 … n_host_pages of the host.

    window: how many tokens a token sees, itself included; 0 for all. refs: holders per page. owner: what indexed pages
    contain. idle: indexed pages that nobody holds; host_lru: what host pages contain; both oldest first.
    """

    def __init__(self, n_pages: int, n_host_pages: int, window: int, page_size: int) -> None:
        self.window, self.page_size = window, page_size
        self.free = list(range(1, n_pages))  # a heap
        self.refs = [0] * n_pages
        self.owner: dict[int, Node] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.host_free = list(range(n_host_pages, 0, -1))
        self.host_lru: OrderedDict[int, Node] = OrderedDict()

    @property
    def n_free(self) -> int:
        """Pages that can be had."""
        return len(self.free) + len(self.idle)

    @property
    def capacity(self) -> int | None:
        """How many tokens a sequence may have that gets all pages; None: any number, as old ones are let go of."""
        n_pages = len(self.refs) - 1
        return None if self.window and n_pages >= self.n_seen_by(1) else n_pages * self.page_size

    def first_seen(self, position: int) -> int:
        """The first page that is kept for a token at `position`: what any token of its page sees.

        So sequences end and go on at whole pages without anything missing.
        """
        position -= position % self.page_size
        return max(0, position - self.window + 1) // self.page_size if self.window else 0

    def n_seen_by(self, n_tokens: int) -> int:
        """The most pages that are kept for `n_tokens` tokens in a row, in a group with a window."""
        behind = -(-(self.window - 1) // self.page_size)
        return behind + 1 + -(-(n_tokens - 1) // self.page_size)

    def demand(self, n_tokens: int, n_batch: int) -> int:
        """Pages that a sequence of `n_tokens` tokens holds at once when it is computed `n_batch` at a time."""
        n_pages = -(-n_tokens // self.page_size)
        return min(n_pages, self.n_seen_by(n_batch)) if self.window else n_pages

    def hold(self, page: int) -> None:
        if self.refs[page] == 0:
            del self.idle[page]
        self.refs[page] += 1

    def let_go(self, page: int) -> None:
        self.refs[page] -= 1
        assert self.refs[page] >= 0, page
        if self.refs[page] == 0:
            if page in self.owner:
                self.idle[page] = None
            else:
                heappush(self.free, page)

    def pop(self) -> tuple[int, bool]:
        """A page that nobody holds, and whether it is an idle one, which the caller has to evict."""
        if self.free:
            # Lowest numbers first: a lone sequence's pages then lie in order.
            return heappop(self.free), False
        return self.idle.popitem(last=False)[0], True


def n_held(pages: Sequence[int]) -> int:
    """Pages of a sequence's list that a window has not let go of; those lie at its end."""
    n = 0
    for page in reversed(pages):
        if page == NULL_PAGE:
            break
        n += 1
    return n
