"""The Python API: load a model, generate text, chat.

>>> llm = LLM("model.gguf")
>>> print(llm.chat([{"role": "user", "content": "Hello!"}], max_tokens=50).text)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast, overload

import torch
from tqdm import tqdm

from ..loaders.chat_template import BrokenTemplate, ChatTemplate, adapt_messages, template_for
from ..loaders.open import open_model
from ..loaders.tokenizer import Tokenizer
from . import checks
from .defaults import MAX_SEQS, N_BATCH
from .demo import demo_model
from .engine.build import EngineOptions, engine_memory, make_engine
from .engine.cache_file import restore_cache, save_cache
from .engine.engine import Engine
from .engine.identity import ModelIdentity
from .engine.pages import GroupSpec
from .engine.request import QueueFull
from .engine.vocabulary import Vocabulary
from .generation import Completion, Generation, OutputText
from .model import ModelOptions, Route, load_model, read_model_config
from .sampling import SamplingParams, recommended_params
from .threads import ThreadOptions, plan_threads

Message = Mapping[str, Any]
Prompt = str | Sequence[int]


class LLM:
    """A model, its tokenizer, and an engine that runs any number of requests on them together.

    model: a GGUF file (the first part of a split one), a safetensors folder, or None for the bundled demo model.
    n_ctx: tokens that a sequence may have, 0 for what the model was trained for.
    n_batch, max_seqs, max_queue, cache_tokens, cache_ram, prefix_sharing, graphs, overlap: see EngineOptions.
    device, n_gpu_layers, dequantize, weight_dtype, flash_attn, cache_type_k, cache_type_v, route, batch_invariant: see
    ModelOptions.
    n_threads: CPU threads, the physical cores by default; threads says more, and comes before it (threads.py). cpu_isa:
    see ModelOptions.
    chat_template: a built-in template's name or Jinja text in place of the model's own.
    progress: shows a bar on stderr while loading.

    default_params: what is sampled where a request does not say: llama.cpp's defaults, or what the file recommends.

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
        max_seqs: int = MAX_SEQS,
        max_queue: int | None = None,
        cache_tokens: int | None = None,
        cache_ram: int = 0,
        prefix_sharing: bool = True,
        graphs: bool = True,
        overlap: bool | None = None,
        n_threads: int | None = None,
        threads: ThreadOptions | None = None,
        cpu_isa: str | None = None,
        dequantize: str = "auto",
        weight_dtype: torch.dtype | None = None,
        flash_attn: str = "auto",
        cache_type_k: str | None = None,
        cache_type_v: str | None = None,
        route: Route = "int8",
        batch_invariant: bool = False,
        use_mmap: bool = True,
        chat_template: str | None = None,
        progress: bool = False,
    ) -> None:
        use_mmap, progress = checks.switch("use_mmap", use_mmap), checks.switch("progress", progress)
        if model is not None:
            checks.path("model", model)
        if chat_template is not None:
            checks.text("chat_template", chat_template)
        if n_threads is not None:
            n_threads = checks.integer("n_threads", n_threads, 1)
            threads = ThreadOptions(n_threads=n_threads) if threads is None else threads
        engine_options = EngineOptions(
            n_batch=n_batch,
            max_seqs=max_seqs,
            max_queue=max_queue,
            cache_tokens=cache_tokens,
            cache_ram=cache_ram,
            prefix_sharing=prefix_sharing,
            graphs=graphs,
            overlap=overlap,
        )
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
            threads=ThreadOptions() if threads is None else threads,
            cpu_isa=cpu_isa,
            on_compile=_announcement(wanted=progress),
        )
        if threads is not None:
            torch.set_num_threads(plan_threads(threads).batch.n_threads)
        self.path = Path(model) if model is not None else demo_model()
        source = open_model(self.path, use_mmap=use_mmap)
        self.kv = source.kv
        self.tokenizer = Tokenizer.from_source(source)
        self.default_params = recommended_params(source.kv)
        self.chat_template = self._template(chat_template)
        config = read_model_config(source)
        plan, self.memory = engine_memory(source, config, options, engine_options, use_mmap=use_mmap)
        plan, options = replace(plan, n_ctx=self.memory.n_ctx), replace(options, n_ctx=self.memory.n_ctx)
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
            self.decoder, self.plan = load_model(source, options, bar.update, plan)
        if self.tokenizer.n_vocab != self.decoder.n_vocab:
            raise ValueError(
                f"{source.name}: the tokenizer has {self.tokenizer.n_vocab} tokens, the model {self.decoder.n_vocab}"
            )
        self._identity = ModelIdentity(source, self.decoder.config)
        self.engine = make_engine(
            self.decoder,
            Vocabulary.of(self.tokenizer),
            n_ctx=self.memory.n_ctx,
            k_type=self.memory.options.k_type,
            v_type=self.memory.options.v_type,
            groups=[GroupSpec(group.n_pages, group.window, group.n_host_pages) for group in self.memory.groups],
            options=engine_options,
        )

    def _template(self, override: str | None) -> ChatTemplate | None:
        bos, eos = self._text(self.tokenizer.bos_id), self._text(self.tokenizer.eos_id)
        try:
            return template_for(self.kv, bos_token=bos, eos_token=eos, override=override, file=str(self.path))
        except ValueError as error:
            if override is not None:
                raise
            # Only chats need it.
            return BrokenTemplate(error)

    def _text(self, token: int | None) -> str:
        return "" if token is None else self.tokenizer.token_text(token)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is running and lets go of weights and cache; the object cannot be used afterwards."""
        if hasattr(self, "engine"):
            self.engine.close("the model was closed")
            del self.engine, self.decoder, self._identity
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @overload
    def generate(self, prompt: Prompt, params: SamplingParams | None = None, **changes: Any) -> Completion: ...
    @overload
    def generate(
        self,
        prompt: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **changes: Any,
    ) -> list[Completion]: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **changes: Any,
    ) -> Completion | list[Completion]:
        """Continues a text (tokenised with the model's special tokens) or a list of token ids; or many, together.

        params: for all prompts, or one for each. changes: fields of SamplingParams to set:
        `generate("Once", max_tokens=20, temperature=0)`. progress: shows a bar on stderr.

        Everything is checked before anything runs (ValueError). What fails while it runs raises RuntimeError for one
        prompt; of many, the others go on, and the completion's finish_reason is "error".
        """
        if not _is_many(prompt):
            return self._finish(self.start(cast(Prompt, prompt), cast(SamplingParams | None, params), **changes))
        prompts = cast(Sequence[Prompt], prompt)
        each = [params] * len(prompts) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"expected params for each of {len(prompts)} prompts, found {len(each)}")
        return self._generate_all(prompts, each, progress, changes)

    def _generate_all(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams | None],
        progress: bool,
        changes: Mapping[str, Any],
    ) -> list[Completion]:
        generations: list[Generation] = []
        try:
            for i, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
                try:
                    generations.append(self._start_when_there_is_room(prompt, own, changes))
                    if (refusal := generations[-1].handle.refusal) is not None:
                        raise refusal
                except ValueError as error:
                    raise ValueError(f"prompt {i}: {error}") from None
            completions = []
            for generation in tqdm(generations, desc="generating", unit="prompt", disable=not progress):
                completions.append(generation.completion("".join(generation.pieces())))
        finally:
            for generation in generations:
                generation.close()
        return completions

    def _start_when_there_is_room(
        self, prompt: Prompt, params: SamplingParams | None, changes: Mapping[str, Any]
    ) -> Generation:
        while True:
            try:
                return self.start(prompt, params, **changes)
            except QueueFull:
                if self.engine.threaded or not self.engine.step():
                    raise

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, **changes: Any) -> Iterator[str]:
        """As generate, but yields the text in pieces, never half a character; raises at its end what it failed with."""
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
        checks.messages(messages)
        if self.chat_template is None:
            raise ValueError(f"{self.path} has no chat template; give one by name or as Jinja text (chat_template=…)")
        t = self.tokenizer
        text = self.chat_template.render(adapt_messages(messages, self.chat_template), add_generation_prompt=True)
        # Many templates write the begin-of-text token that the tokenizer adds, too; it must not come twice.
        return self._encode(self.chat_template.without_added_tokens(text, add_bos=t.add_bos, add_eos=t.add_eos))

    def start(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: float = 0,
        timeout: float | None = None,
        cache_prompt: bool = True,
        **changes: Any,
    ) -> Generation:
        """A generation under way; the other methods are made of this one.

        It advances whenever one of the LLM's generations is iterated over. priority: higher ones run first. timeout:
        seconds after which it ends. cache_prompt: whether it uses and leaves prefixes in the cache.

        What is wrong with a prompt or with params is raised at once; a priority or a timeout that is nan, infinite or
        beyond bounds when the generation is read, so that those started before it are not lost.
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise TypeError(f"expected SamplingParams for a prompt, found {type(params).__name__}")
        self._engine()
        params = replace(params or self.default_params, **changes)
        tokens = self.tokenize(prompt)
        text = OutputText(self.tokenizer, params)
        handle = self._engine().submit(
            tokens,
            params,
            priority=priority,
            timeout=timeout,
            cache_prompt=cache_prompt,
            watch=text.put if text.has_stops else None,
        )
        return Generation(self.engine, handle, text)

    def _engine(self) -> Engine:
        if not hasattr(self, "engine"):
            raise RuntimeError("the model was closed")
        return self.engine

    def tokenize(self, prompt: Prompt) -> list[int]:
        """A prompt's tokens, with the model's special ones where it is a text. TypeError for anything else."""
        if isinstance(prompt, str):
            return self._encode(prompt)
        if isinstance(prompt, Mapping | bytes | bytearray | Set) or not hasattr(prompt, "__iter__"):
            raise TypeError(f"expected a text or a list of token ids, found {type(prompt).__name__}")
        # What cannot fit is not looked at.
        n_ctx = self.memory.n_ctx
        n = len(prompt) if hasattr(prompt, "__len__") else 0
        tokens = list(islice(prompt, n_ctx + 1)) if n <= n_ctx else []
        if len(tokens) > n_ctx or n > n_ctx:
            raise ValueError(f"the prompt has {n or 'more'} tokens, but the context holds {n_ctx}")
        return tokens if set(map(type, tokens)) <= {int} else [checks.token(value) for value in tokens]

    def _encode(self, text: str) -> list[int]:
        """ValueError, before it takes long, for a text that cannot fit."""
        n_ctx = self.memory.n_ctx
        if len(text) > n_ctx and (n := self.tokenizer.least_tokens(text)) > n_ctx:
            raise ValueError(f"the prompt has {n} tokens or more, but the context holds {n_ctx}")
        return self.tokenizer.encode(text)

    def save_cache(self, path: str | os.PathLike[str], prompt: Prompt) -> int:
        """Writes what the cache holds of a prompt to a file; how many tokens that is. ValueError where that is none."""
        engine, tokens = self._engine(), self.tokenize(prompt)
        engine.vocabulary.check_tokens(tokens)
        return save_cache(engine, self._identity, checks.path("path", path), tokens)

    def restore_cache(self, path: str | os.PathLike[str]) -> int:
        """Reads such a file back: prompts that begin with its tokens find them in the cache. The number of tokens.

        ValueError for a file of another model, other cache types or another version, or one that is damaged. To tell
        models apart their files are read once, unless it is the very file that the cache was written of.
        """
        return restore_cache(self._engine(), self._identity, checks.path("path", path))

    @staticmethod
    def _finish(generation: Generation) -> Completion:
        return generation.completion("".join(generation))


def _is_many(prompt: Any) -> bool:
    """Whether it is a list of prompts. TypeError for what is neither a prompt nor a list of them."""
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, Mapping | bytes | bytearray | Set) or not hasattr(prompt, "__getitem__"):
        found = type(prompt).__name__
        raise TypeError(f"expected a text or a list of token ids, or a list of such prompts, found {found}")
    # Single numbers of other libraries have no dimension.
    return bool(len(prompt)) and hasattr(prompt[0], "__len__") and getattr(prompt[0], "ndim", 1) > 0


def _announcement(*, wanted: bool) -> Callable[[str, bool], None]:
    """Says at the first kernel that is compiled what takes so long."""
    told = not wanted

    def announce(kernel: str, kept: bool) -> None:
        nonlocal told
        if not told:
            once = ", which the next start need not do" if kept else ""
            print(f"compiling kernels for this processor{once} ...", file=sys.stderr)
        told = True

    return announce
