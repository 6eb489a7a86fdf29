"""Which running request is going to compute which page, so that others wait for it instead of doing the same."""

from __future__ import annotations

from collections.abc import Callable

from .request import Request


class Claims:
    """Pages by their digests. Only running requests own any, and they wait for nobody, so there is no cycle."""

    def __init__(self) -> None:
        self.owners: dict[bytes, Request] = {}

    def add(self, request: Request, first: int) -> None:
        """Claims all pages from number `first` on that `request.digests` names."""
        self.owners.update(dict.fromkeys(request.digests[first:], request))

    def remove(self, request: Request, first: int, last: int | None = None) -> None:
        """Gives up pages [first, last): they are computed, or will not be."""
        for digest in request.digests[first:last]:
            if self.owners.get(digest) is request:
                del self.owners[digest]

    def must_wait(self, request: Request) -> Request | None:
        """Who computes what a request was told to wait for, if it still does."""
        return None if request.awaits is None else self.owners.get(request.awaits)

    def wait(self, request: Request, first: int, n_pages: int, worth: Callable[[Request], bool]) -> bool:
        """Makes a request wait if page `first` of its `n_pages` is claimed by an owner that is worth waiting for.

        It waits for the last page in a row of the same owner: looking at every one in between costs more.
        """
        owner = self.owners.get(request.digests[first]) if first < n_pages else None
        if owner is None or not worth(owner):
            return False
        last = first
        while last + 1 < n_pages and self.owners.get(request.digests[last + 1]) is owner:
            last += 1
        request.awaits = request.digests[last]
        return True
