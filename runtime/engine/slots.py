"""What running sequences keep on the device between steps, a row for each slot: page tables and last tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..batch import to_device
from .scheduler import Row


class SlotTables:
    """Page tables of `max_seqs` slots and one that belongs to nobody, for the rows that fill a batch up.

    width: pages that a sequence may have. on_device: whether the device has tables of its own, for captured steps;
    without, only the host's are kept.

    host: [max_seqs + 1, width] int32 of every cache group; tables: the same on the device. last_tokens:
    int64 [max_seqs + 1], the tokens that were sampled last.
    """

    def __init__(self, n_groups: int, max_seqs: int, width: int, device: torch.device, *, on_device: bool) -> None:
        self.nobody = max_seqs
        self.host = [np.zeros((max_seqs + 1, width), np.int32) for _ in range(n_groups)]
        self.tables = [torch.from_numpy(t).to(device, copy=True) for t in self.host] if on_device else []
        self.last_tokens = torch.zeros(max_seqs + 1, dtype=torch.int64, device=device)
        # The lists that the rows were written from; the scheduler gives a sequence new ones whenever it admits it.
        self._lists: list[Sequence[Sequence[int]] | None] = [None] * (max_seqs + 1)
        self._n_written = [[0] * n_groups for _ in range(max_seqs + 1)]

    def follow(self, rows: Sequence[Row]) -> None:
        """Takes over what has been added to the page lists of these rows' sequences.

        Pages that a window has let go of stay in the tables: nobody reads them there.
        """
        news: list[list[tuple[int, int, Sequence[int]]]] = [[] for _ in self.host]
        for row in rows:
            request = row.request
            slot, lists, written = request.slot, request.pages, self._n_written[request.slot]
            if self._lists[slot] is not lists:
                self._lists[slot] = lists
                written[:] = [0] * len(written)
            for group, pages in enumerate(lists):
                if len(pages) > written[group]:
                    news[group].append((slot, written[group], pages[written[group] :]))
                    written[group] = len(pages)
        for group, added in enumerate(news):
            for slot, first, numbers in added:
                self.host[group][slot, first : first + len(numbers)] = numbers
            if added and self.tables:
                self._upload(group, added)

    def follow_tokens(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """Takes over what was sampled; starts work on the device only.

        A step that is launched before the host knows takes token 0 where there is none, for a request that has failed.
        """
        self.last_tokens.index_copy_(0, slots, tokens.clamp(min=0))

    def _upload(self, group: int, added: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        width = self.host[group].shape[1]
        places = np.concatenate([np.arange(len(p)) + slot * width + first for slot, first, p in added])
        values = np.concatenate([np.asarray(p) for _, _, p in added])
        both = to_device(np.stack((places, values)), self.last_tokens.device)
        self.tables[group].view(-1).index_copy_(0, both[0], both[1].int())
