"""The Python API for asyncio: as many requests as one likes, all in one engine.

>>> llm = AsyncLLM("model.gguf")
>>> async for piece in llm.stream("Once upon a time"):
...     print(piece, end="")
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from .engine.thread import EngineThread
from .generation import Completion, Generation
from .llm import LLM, Message, Prompt
from .sampling import SamplingParams


class AsyncLLM:
    """LLM's methods as coroutines, over an engine in a thread of its own. Takes an LLM, or LLM's arguments.

    The event loop never waits for the device. A task that is cancelled, or a stream that is left, ends its request.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        given = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], LLM) else None
        if given is not None and (options or given.engine.threaded):
            raise ValueError("an LLM that is given takes no options, and has one AsyncLLM at a time")
        self.llm = given if given is not None else LLM(*arguments, **options)
        self._thread = EngineThread(self.llm.engine)

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends what is running and frees the model's memory."""
        await asyncio.to_thread(self._thread.close)
        self.llm.close()

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: float = 0, **changes: Any
    ) -> Completion:
        """As LLM.generate, for one prompt; gather several for a batch."""
        generation = await self.start(prompt, params, priority=priority, **changes)
        return generation.completion("".join([piece async for piece in self.pieces(generation)]))

    async def chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None, *, priority: float = 0, **changes: Any
    ) -> Completion:
        """As LLM.chat."""
        prompt = await asyncio.to_thread(self.llm.chat_prompt, messages)
        return await self.generate(prompt, params, priority=priority, **changes)

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: float = 0, **changes: Any
    ) -> AsyncIterator[str]:
        """As LLM.stream."""
        async for piece in self.pieces(await self.start(prompt, params, priority=priority, **changes)):
            yield piece

    async def chat_stream(
        self, messages: Sequence[Message], params: SamplingParams | None = None, *, priority: float = 0, **changes: Any
    ) -> AsyncIterator[str]:
        """As LLM.chat_stream."""
        prompt = await asyncio.to_thread(self.llm.chat_prompt, messages)
        async for piece in self.stream(prompt, params, priority=priority, **changes):
            yield piece

    async def start(self, prompt: Prompt, params: SamplingParams | None = None, **options: Any) -> Generation:
        """As LLM.start; the text is tokenised in a thread. Whoever starts it takes `pieces` of it, or closes it."""
        made: list[Generation] = []
        left = threading.Event()

        def begin() -> Generation:
            made.append(self.llm.start(prompt, params, **options))
            if left.is_set():
                made[0].close()
            return made[0]

        try:
            return await asyncio.to_thread(begin)
        except asyncio.CancelledError:
            # The thread goes on, and submits a request that nobody waits for: who comes second ends it.
            left.set()
            for generation in made:
                generation.close()
            raise

    @staticmethod
    async def pieces(generation: Generation) -> AsyncIterator[str]:
        """The text of a generation as it comes; raises what it failed with."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            # The loop may have been closed while the engine was at work.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(news.set)

        generation.handle.listener = tell
        try:
            while True:
                # Cleared before looking, so that what comes while looking is not overlooked.
                news.clear()
                piece = generation.take()
                if piece:
                    yield piece
                if generation.ended:
                    generation.check()
                    return
                if not generation.pending:
                    await news.wait()
        finally:
            generation.close()
