"""What requests with n_probs get besides tokens, kept as plain numbers: objects would take ten times the memory."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

# Of a request, in 8 bytes each: 128 MiB, a dozen of the likeliest for every token of the longest contexts.
MAX_KEPT = 2**24


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's logprob, and the likeliest tokens of its place with theirs.

    Natural logarithms of probabilities before all samplers; with post_sampling_probs, the probabilities after them.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class LogprobList(Sequence[TokenLogprobs]):
    """Of a request's tokens, in order; what is read is made when it is read. One thread appends, others may read."""

    def __init__(self) -> None:
        self._width = 0
        self._own, self._ids, self._tops = array("f"), array("i"), array("f")
        # The last to grow: its length says how much is there.
        self._tokens = array("i")

    def append(self, token: int, logprob: float, ids: npt.NDArray[np.int64], tops: npt.NDArray[np.float32]) -> None:
        """ids, tops: [width] of the likeliest tokens, for every token as many."""
        assert len(ids) == len(tops) == self._width or not self._tokens
        self._width = len(ids)
        self._own.append(logprob)
        self._ids.frombytes(ids.astype(np.int32).tobytes())
        self._tops.frombytes(tops.astype(np.float32).tobytes())
        self._tokens.append(token)

    def __len__(self) -> int:
        return len(self._tokens)

    @overload
    def __getitem__(self, place: int) -> TokenLogprobs: ...
    @overload
    def __getitem__(self, place: slice) -> LogprobList: ...
    def __getitem__(self, place: int | slice) -> TokenLogprobs | LogprobList:
        n = len(self)
        if isinstance(place, slice):
            return self._part(range(n)[place])
        i = range(n)[place]
        start, stop = i * self._width, (i + 1) * self._width
        top = zip(self._ids[start:stop], self._tops[start:stop], strict=True)
        return TokenLogprobs(self._tokens[i], self._own[i], tuple(top))

    def _part(self, places: range) -> LogprobList:
        part = LogprobList()
        part._width = self._width
        for i in places:
            part._own.append(self._own[i])
            part._ids.extend(self._ids[i * self._width : (i + 1) * self._width])
            part._tops.extend(self._tops[i * self._width : (i + 1) * self._width])
            part._tokens.append(self._tokens[i])
        return part

    @property
    def n_bytes(self) -> int:
        return sum(len(part) * part.itemsize for part in (self._tokens, self._own, self._ids, self._tops))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self._tokens.tobytes())


def check_kept(n_probs: int, n_tokens: int) -> None:
    """ValueError where a request could come to keep more than MAX_KEPT numbers."""
    if n_probs * n_tokens > MAX_KEPT:
        raise ValueError(
            f"n_probs must be at most {MAX_KEPT // n_tokens} for up to {n_tokens} tokens, found {n_probs}; "
            f"max_tokens says how many tokens there can be"
        )
