"""The text of one request: tokens become whole characters, stop texts end it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from ..loaders.tokenizer import Tokenizer
from .engine.engine import Engine, Handle, TokenLogprobs
from .stop import StopFilter


@dataclass(frozen=True, slots=True)
class Timings:
    """Tokens and seconds of the prompt and of the generation.

    n_cached: prompt tokens that were in the cache already and took no time. waiting_seconds: before the first step. The
    first generated token comes out of the prompt's last logits, so a generation of n tokens takes n - 1 steps.
    """

    n_prompt: int
    n_cached: int
    prompt_seconds: float
    n_generated: int
    generation_seconds: float
    waiting_seconds: float = 0.0

    @property
    def prompt_per_second(self) -> float:
        return (self.n_prompt - self.n_cached) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def generated_per_second(self) -> float:
        return (self.n_generated - 1) / self.generation_seconds if self.generation_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation.

    finish_reason: "stop" (the model ended, or a stop text came), "length", "timeout", "cancelled" or "error", and then
    `error` says what went wrong. logprobs: of each token, where n_probs asked for them.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None

    def __str__(self) -> str:
        return self.text


class Generation:
    """A request under way: iterate for pieces of text, then ask for the completion. Closed before its end, it ends.

    Iterating raises what the request failed with: what came before is not the whole text.
    """

    def __init__(self, engine: Engine, handle: Handle, tokenizer: Tokenizer) -> None:
        self.finish_reason: str | None = None
        self.engine, self.handle = engine, handle
        # raw: what is generated goes on from the prompt, so a space at its beginning is part of it.
        self._decoder = tokenizer.stream(unparse_special=False, raw=True)
        self._stop = StopFilter(handle.params.stop)
        self._eog = frozenset() if handle.params.ignore_eos else frozenset(tokenizer.eog_ids)
        self._n_read = 0
        self._news = threading.Event()
        handle.listener = self._news.set

    def __del__(self) -> None:
        # A stream that nobody has begun to read has no `finally` that would do it.
        self.close()

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None

    @property
    def pending(self) -> bool:
        """Whether something has come that `take` has not seen."""
        return self._n_read < len(self.handle.tokens) or self.handle.finish_reason is not None

    @property
    def tokens(self) -> list[int]:
        """The tokens whose text was taken."""
        return self.handle.tokens[: self._n_read]

    def take(self) -> str:
        """The text that has come since the last call, never half a character."""
        # Asked for first: tokens may come while they are read, but none after the reason.
        reason = self.handle.finish_reason
        text = ""
        while not self.ended and self._n_read < len(self.handle.tokens):
            token = self.handle.tokens[self._n_read]
            self._n_read += 1
            if token not in self._eog:
                text += self._stop.put(self._decoder.put(token))
            if self._stop.found:
                self.engine.cancel(self.handle)
                self.finish_reason = "stop"
        if reason is not None and not self.ended:
            text += self._stop.put(self._decoder.finish()) + self._stop.finish()
            self.finish_reason = "stop" if self._stop.found else reason
        return text

    def __iter__(self) -> Iterator[str]:
        yield from self.pieces()
        self.check()

    def pieces(self) -> Iterator[str]:
        """As iterating, but a request that fails only ends: `finish_reason` says "error"."""
        try:
            while not self.ended:
                if not self.pending:
                    self._wait()
                text = self.take()
                if text:
                    yield text
        finally:
            self.close()

    def _wait(self) -> None:
        if self.engine.threaded:
            self._news.wait()
            self._news.clear()
        else:
            self.engine.step()

    def close(self) -> None:
        """Ends the request if it has not ended."""
        if not self.ended:
            self.engine.cancel(self.handle)
            self.finish_reason = "cancelled"

    def completion(self, text: str) -> Completion:
        h = self.handle
        n = self._n_read
        timings = Timings(
            n_prompt=h.n_prompt,
            n_cached=h.n_cached,
            prompt_seconds=h.first_token - h.started if n else 0.0,
            n_generated=n,
            generation_seconds=h.last_token - h.first_token,
            waiting_seconds=h.started - h.submitted if h.started else 0.0,
        )
        tokens, logprobs = tuple(self.tokens), tuple(h.logprobs[:n])
        return Completion(text, tokens, self.finish_reason or "cancelled", timings, logprobs, h.error)

    def check(self) -> None:
        """RuntimeError if the request has failed."""
        if self.finish_reason == "error":
            raise RuntimeError(self.handle.error)
