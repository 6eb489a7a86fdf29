"""The text of one request: tokens become whole characters, stop texts end it."""

from __future__ import annotations

import codecs
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..loaders.tokenizer import Tokenizer
from .engine.engine import Engine, Handle
from .engine.logprobs import TokenLogprobs
from .sampling import SamplingParams
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
    logprobs: Sequence[TokenLogprobs] = ()
    error: str | None = None

    def __str__(self) -> str:
        return self.text


class OutputText:
    """The text of a request's tokens, which stop texts end. Those are looked for with control tokens shown as they are
    spelled, and what is given out is without them.

    Where there are stop texts, the engine calls `put` with every token, and the request ends with the token that
    completes one. n_stop: that token's number, from 1; None before.
    """

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self.has_stops = any(params.stop)
        self.n_stop: int | None = None
        self._piece = tokenizer.token_to_piece
        self._eog = frozenset() if params.ignore_eos else frozenset(tokenizer.eog_ids)
        self._stop = StopFilter(params.stop)
        self._n = 0
        # Put by the thread that steps, taken by the one that reads.
        self._given: deque[bytes] = deque()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token: int) -> bool:
        """The next token; true if a stop text is complete."""
        self._n += 1
        piece = self._piece(token, True)
        hidden = token in self._eog or not self._piece(token, False)
        self._given.append(self._stop.put(piece, hidden=hidden))
        if self._stop.found:
            self.n_stop = self._n
        return self._stop.found

    def take(self, token: int) -> str:
        """The text that a token completes; `put` came before where there are stop texts."""
        if self.has_stops:
            return self._decoder.decode(self._given.popleft())
        return "" if token in self._eog else self._decoder.decode(self._piece(token, False))

    def finish(self) -> str:
        """The rest; a character that stayed incomplete becomes U+FFFD."""
        return self._decoder.decode(self._stop.finish(), final=True)


class Generation:
    """A request under way: iterate for pieces of text, then ask for the completion. Closed before its end, it ends.

    Iterating raises what the request failed with: what came before is not the whole text.
    """

    def __init__(self, engine: Engine, handle: Handle, text: OutputText) -> None:
        self.finish_reason: str | None = None
        self.engine, self.handle = engine, handle
        self._text = text
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
            text += self._text.take(self.handle.tokens[self._n_read])
            self._n_read += 1
            if self._n_read == self._text.n_stop:
                self.finish_reason = "stop"
        if reason is not None and not self.ended:
            self.finish_reason = reason
        return text + self._text.finish() if self.ended else text

    def __iter__(self) -> Iterator[str]:
        yield from self.pieces()
        self.check()

    def pieces(self) -> Iterator[str]:
        """As iterating, but a request that fails only ends: `finish_reason` says "error"."""
        return filter(None, self.steps())

    def steps(self) -> Iterator[str]:
        """As pieces, but an empty text, too, where a step brought none: prompts are read in several steps, and control
        tokens have no text."""
        try:
            while not self.ended:
                if not self.pending:
                    self._wait()
                yield self.take()
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
        tokens, logprobs = tuple(self.tokens), h.logprobs[:n]
        return Completion(text, tokens, self.finish_reason or "cancelled", timings, logprobs, h.error)

    def check(self) -> None:
        """RuntimeError if the request has failed, ValueError if it was refused."""
        if self.finish_reason == "error":
            raise self.handle.refusal or RuntimeError(self.handle.error)
