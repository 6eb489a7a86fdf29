"""One sequence on one model, without an engine: tokens in, logits out. For measuring and testing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..quant.cache_types import plain_type
from .batch import Batch, NewTokens
from .cache import PagedCache, cache_groups
from .decoder import Decoder
from .engine.pages import PAGE_SIZE

N_BATCH = 512


class Session:
    """Runs a sequence of at most `n_ctx` tokens through a model, `n_batch` tokens at a time.

    tokens: what the cache holds. k_type, v_type: cache types by name; None keeps keys and values as they are computed.
    """

    def __init__(
        self,
        decoder: Decoder,
        n_ctx: int,
        n_batch: int = N_BATCH,
        k_type: str | None = None,
        v_type: str | None = None,
    ) -> None:
        if n_batch < 1:
            raise ValueError(f"n_batch must be at least 1, found {n_batch}")
        devices = [layer.ops.device for layer in decoder.layers]
        self.decoder, self.n_ctx, self.n_batch = decoder, n_ctx, n_batch
        plain = plain_type(decoder.layers[0].ops.dtype)
        n_pages = 1 + -(-n_ctx // PAGE_SIZE)
        n_groups = len(cache_groups(decoder.config))
        self.cache = PagedCache(decoder.config, devices, k_type or plain, v_type or plain, [n_pages] * n_groups)
        self.pages = [range(1, n_pages)] * n_groups
        self.tokens: list[int] = []

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Adds tokens to the sequence; the logits of each, float32 [len(tokens), n_vocab].

        ValueError for no tokens, more than the context holds, or tokens out of range.
        """
        if not tokens:
            raise ValueError("there are no tokens")
        if len(self.tokens) + len(tokens) > self.n_ctx:
            raise ValueError(f"{len(self.tokens) + len(tokens)} tokens do not fit into a context of {self.n_ctx}")
        if not all(0 <= t < self.decoder.n_vocab for t in tokens):
            raise ValueError(f"there are token ids outside 0 … {self.decoder.n_vocab - 1}")
        return torch.cat([self._run(tokens[i : i + self.n_batch]) for i in range(0, len(tokens), self.n_batch)])

    def reset(self) -> None:
        self.tokens = []

    def _run(self, tokens: Sequence[int]) -> torch.Tensor:
        n_pages = -(-(len(self.tokens) + len(tokens)) // PAGE_SIZE)
        pages = [group[:n_pages] for group in self.pages]
        new = NewTokens(tokens, len(self.tokens), pages)
        batch = Batch.build([new], PAGE_SIZE, output_rows=range(len(tokens)))
        logits = self.decoder.forward(batch, self.cache)
        self.tokens = [*self.tokens, *tokens]
        return logits
