"""The Python API: load a model, generate text, chat.

>>> llm = LLM("model.gguf")
>>> print(llm.chat([{"role": "user", "content": "Hello!"}], max_tokens=50).text)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from ..loaders.chat_template import ChatTemplate, adapt_messages, template_for
from ..loaders.open import open_model
from ..loaders.tokenizer import Tokenizer
from .demo import demo_model
from .model import ModelOptions, load_model
from .sampling import Sampler, SamplingParams
from .session import N_BATCH, Session
from .stop import StopFilter

Message = Mapping[str, Any]
Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class Timings:
    """Tokens and seconds of the prompt and of the generation.

    n_cached: prompt tokens that were in the cache already and took no time. The first generated token comes out of
    the prompt's last logits, so a generation of n tokens takes n - 1 steps.
    """

    n_prompt: int
    n_cached: int
    prompt_seconds: float
    n_generated: int
    generation_seconds: float

    @property
    def prompt_per_second(self) -> float:
        return (self.n_prompt - self.n_cached) / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def generated_per_second(self) -> float:
        return (self.n_generated - 1) / self.generation_seconds if self.generation_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished generation. finish_reason: "stop" (the model ended, or a stop text came) or "length"."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    timings: Timings

    def __str__(self) -> str:
        return self.text


class LLM:
    """A model, its tokenizer and one sequence's cache.

    model: a GGUF file (the first part of a split one), a safetensors folder, or None for the bundled demo model.
    n_ctx: tokens of context, 0 for what the model was trained for; its memory is taken as it is used.
    device, n_gpu_layers, dequantize, weight_dtype, flash_attn, cache_type_k, cache_type_v, route, batch_invariant: see
    ModelOptions.
    chat_template: a built-in template's name or Jinja text in place of the model's own.
    progress: shows a bar on stderr while loading.

    Raises OSError for a file that cannot be read, ValueError for everything that a file or an option has wrong.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        n_gpu_layers: int | None = None,
        n_ctx: int = 0,
        n_batch: int = N_BATCH,
        n_threads: int | None = None,
        dequantize: str = "auto",
        weight_dtype: torch.dtype | None = None,
        flash_attn: str = "auto",
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        route: Literal["int8", "exact"] = "int8",
        batch_invariant: bool = False,
        use_mmap: bool = True,
        chat_template: str | None = None,
        progress: bool = False,
    ) -> None:
        if n_threads is not None:
            if n_threads < 1:
                raise ValueError(f"n_threads must be at least 1, found {n_threads}")
            torch.set_num_threads(n_threads)
        options = ModelOptions(
            device=device,
            n_gpu_layers=n_gpu_layers,
            dequantize=dequantize,
            weight_dtype=weight_dtype,
            n_ctx=n_ctx,
            flash_attn=flash_attn,
            cache_type_k=cache_type_k,
            cache_type_v=cache_type_v,
            route=route,
            batch_invariant=batch_invariant,
        )
        self.path = Path(model) if model is not None else demo_model()
        source = open_model(self.path, use_mmap=use_mmap)
        self.kv = source.kv
        self.tokenizer = Tokenizer.from_kv(source.kv)
        self.chat_template = self._template(chat_template)
        n_bytes = sum(t.n_bytes for t in source.tensors.values())
        with tqdm(
            total=n_bytes,
            desc="loading",
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            disable=not progress,
        ) as bar:
            self.decoder, self.plan = load_model(source, options, bar.update)
        if self.tokenizer.n_vocab != self.decoder.n_vocab:
            raise ValueError(
                f"{source.name}: the tokenizer has {self.tokenizer.n_vocab} tokens, the model {self.decoder.n_vocab}"
            )
        self.session = Session(self.decoder, self.plan.n_ctx, n_batch, cache_type_k, cache_type_v)

    def _template(self, override: str | None) -> ChatTemplate | None:
        bos, eos = self._text(self.tokenizer.bos_id), self._text(self.tokenizer.eos_id)
        return template_for(self.kv, bos_token=bos, eos_token=eos, override=override)

    def _text(self, token: int | None) -> str:
        return "" if token is None else self.tokenizer.token_text(token)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the weights and the cache; the object cannot be used afterwards."""
        del self.session, self.decoder
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **changes: Any) -> Completion:
        """Continues a text (tokenised with the model's special tokens) or a list of token ids.

        changes: fields of SamplingParams to set: `generate("Once", max_tokens=20, temperature=0)`.
        """
        return self._finish(self.start(prompt, params, **changes))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **changes: Any) -> Iterator[str]:
        """As generate, but yields the text in pieces, never half a character."""
        return iter(self.start(prompt, params, **changes))

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, **changes: Any) -> Completion:
        """The assistant's answer to messages like {"role": "user", "content": "Hello!"}."""
        return self._finish(self.start(self.chat_prompt(messages), params, **changes))

    def chat_stream(
        self, messages: Sequence[Message], params: SamplingParams | None = None, **changes: Any
    ) -> Iterator[str]:
        """As chat, but yields the text in pieces."""
        return iter(self.start(self.chat_prompt(messages), params, **changes))

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, ready for the assistant's turn."""
        if self.chat_template is None:
            raise ValueError(f"{self.path} has no chat template; give one by name or as Jinja text (chat_template=…)")
        t = self.tokenizer
        text = self.chat_template.render(adapt_messages(messages, self.chat_template), add_generation_prompt=True)
        # Many templates write the begin-of-text token that the tokenizer adds, too; it must not come twice.
        return t.encode(self.chat_template.without_added_tokens(text, add_bos=t.add_bos, add_eos=t.add_eos))

    def start(self, prompt: Prompt, params: SamplingParams | None = None, **changes: Any) -> Generation:
        """A generation that runs as it is iterated over; the other methods are made of this one."""
        params = replace(params or SamplingParams(), **changes) if changes else params or SamplingParams()
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return Generation(self.session, self.tokenizer, tokens, params)

    @staticmethod
    def _finish(generation: Generation) -> Completion:
        text = "".join(generation)
        return generation.completion(text)


class Generation:
    """One generation: iterate for pieces of text, then ask for the completion."""

    def __init__(self, session: Session, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams) -> None:
        self.session, self.tokenizer, self.prompt, self.params = session, tokenizer, prompt, params
        self.tokens: list[int] = []
        self.finish_reason = "length"
        self.n_cached = 0
        self.prompt_seconds = self.generation_seconds = 0.0
        self.clock: Callable[[], float] = time.perf_counter
        session.check(prompt)

    def __iter__(self) -> Iterator[str]:
        # raw: what is generated goes on from the prompt, so a space at its beginning is part of it.
        decoder = self.tokenizer.stream(unparse_special=False, raw=True)
        stop = StopFilter(self.params.stop)
        for token in self._sample():
            text = stop.put(decoder.put(token))
            if text:
                yield text
            if stop.found:
                self.finish_reason = "stop"
                return
        rest = stop.put(decoder.finish()) + stop.finish()
        if stop.found:
            self.finish_reason = "stop"
        if rest:
            yield rest

    def _sample(self) -> Iterator[int]:
        """Tokens until the model ends, max_tokens is reached or the context is full."""
        if self.params.max_tokens == 0:
            return
        eog = self.tokenizer.eog_ids
        sampler = Sampler(self.params, eog, self.tokenizer.suppressed_ids)
        sampler.accept(self.prompt)
        start = self.clock()
        logits, self.n_cached = self.session.prefill(self.prompt)
        token = sampler.sample(logits)
        self.prompt_seconds = self.clock() - start
        start = self.clock()
        while True:
            sampler.accept([token])
            self.tokens.append(token)
            if token in eog and not self.params.ignore_eos:
                self.finish_reason = "stop"
                return
            yield token
            if len(self.tokens) == self.params.max_tokens or self.session.full:
                return
            token = sampler.sample(self.session.advance(token))
            self.generation_seconds = self.clock() - start

    def completion(self, text: str) -> Completion:
        timings = Timings(
            len(self.prompt), self.n_cached, self.prompt_seconds, len(self.tokens), self.generation_seconds
        )
        return Completion(text, tuple(self.tokens), self.finish_reason, timings)
