"""One sequence on one model: prompt in, logits out, with its cache kept between prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..quant.cache_types import plain_type
from .batch import Batch
from .cache import PAGE_SIZE, PagedCache
from .decoder import Decoder

N_BATCH = 512


class Session:
    """Runs a sequence through a model, `n_batch` tokens at a time.

    tokens: what the cache holds. A prompt that begins with the same tokens as the cache does (a chat's next turn)
    only computes the rest. k_type, v_type: cache types by name; None keeps keys and values as they are computed.
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
        self.cache = PagedCache(decoder.config, devices, k_type or plain, v_type or plain, n_ctx)
        self.pages: list[int] = []
        self.tokens: list[int] = []

    def prefill(self, tokens: Sequence[int]) -> tuple[torch.Tensor, int]:
        """Makes the cache hold exactly `tokens`; the last one's logits [n_vocab], and how many were there already.

        Raises ValueError for an empty prompt, one that leaves no room in the context, or tokens out of range.
        """
        self.check(tokens)
        n_kept = 0
        # At least the last token is computed again: its logits are what is asked for.
        for ours, wanted in zip(self.tokens, tokens[:-1], strict=False):
            if ours != wanted:
                break
            n_kept += 1
        self.tokens = self.tokens[:n_kept]
        for start in range(n_kept, len(tokens), self.n_batch):
            logits = self._run(tokens[start : start + self.n_batch])
        return logits[-1], n_kept

    def advance(self, token: int) -> torch.Tensor:
        """Adds one token; its logits [n_vocab]. The caller sees to it that `full` is false."""
        return self._run([token])[-1]

    @property
    def full(self) -> bool:
        return len(self.tokens) >= self.n_ctx

    def all_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits of every token, float32 [len(tokens), n_vocab], computed anew."""
        self.check(tokens)
        self.tokens = []
        parts = range(0, len(tokens), self.n_batch)
        return torch.cat([self._run(tokens[i : i + self.n_batch], all_logits=True) for i in parts])

    def check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise ValueError("the prompt has no tokens")
        if len(tokens) > self.n_ctx:
            raise ValueError(f"the prompt has {len(tokens)} tokens, but the context holds {self.n_ctx}")
        if not all(0 <= t < self.decoder.n_vocab for t in tokens):
            raise ValueError(f"the prompt has token ids outside 0 … {self.decoder.n_vocab - 1}")

    def _run(self, tokens: Sequence[int], *, all_logits: bool = False) -> torch.Tensor:
        self.cache.extend(self.pages, len(self.tokens) + len(tokens))
        batch = Batch.single(tokens, len(self.tokens), self.pages, PAGE_SIZE, all_logits=all_logits)
        logits = self.decoder.forward(batch, self.cache)
        self.tokens = [*self.tokens, *tokens]
        return logits
