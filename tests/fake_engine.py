"""An engine whose work takes known times, and a model that has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from naiad.runtime.sampling import SamplingParams

PROMPT_NS, STEP_NS = 1000, 50000


@dataclass
class FakeHandle:
    prompt: list[int]
    params: SamplingParams
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None


class FakeEngine:
    """A prompt token that the cache does not hold takes PROMPT_NS, a step of all that generate STEP_NS.

    A prompt's last token is computed in any case; without other tokens before it, in a step like those of a generation.
    """

    def __init__(self) -> None:
        self.now = 10**9
        self.running: list[FakeHandle] = []
        self.submitted: list[FakeHandle] = []
        self.cached: list[list[int]] = []
        self.fails = self.idles = False
        self.n_forgotten = 0

    def submit(self, prompt: Sequence[int], params: SamplingParams) -> FakeHandle:
        handle = FakeHandle(list(prompt), params)
        self.running.append(handle)
        self.submitted.append(handle)
        return handle

    def step(self) -> bool:
        if not self.running or self.idles:
            return False
        beginning = [handle for handle in self.running if not handle.tokens]
        computed = [len(handle.prompt) - self._n_cached(handle.prompt) for handle in beginning]
        in_steps = len(self.running) > len(beginning) or 1 in computed
        self.now += PROMPT_NS * sum(n for n in computed if n > 1) + (STEP_NS if in_steps else 0)
        for handle in list(self.running):
            handle.tokens.append(7)
            if self.fails:
                handle.finish_reason, handle.error = "error", "the device is gone"
            elif len(handle.tokens) == handle.params.max_tokens:
                handle.finish_reason = "length"
            if handle.finish_reason:
                self.running.remove(handle)
                self.cached.append([*handle.prompt, *handle.tokens[:-1]])
        return True

    def _n_cached(self, prompt: list[int]) -> int:
        return max(
            (i for text in self.cached for i in range(len(prompt)) if text[:i] == prompt[:i] and len(text) >= i),
            default=0,
        )

    def forget(self) -> None:
        self.cached.clear()
        self.n_forgotten += 1

    def synchronize(self) -> None:
        pass


class FakeModel:
    """What a command reads of a model."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.tokenizer = SimpleNamespace(n_vocab=1000, bos_id=1, add_bos=True)
        self.kv = {"general.architecture": "qwen2", "general.size_label": "7B", "general.file_type": 15}
        cpu = torch.device("cpu")
        self.plan = SimpleNamespace(
            layer_devices=(cpu,), output_device=cpu, n_parameters=7615616512, file_bytes=4677120000, weight_dtype=None
        )
        self.memory = SimpleNamespace(options=SimpleNamespace(k_type="f16", v_type="f16"), pool_tokens=10**6)
        self.path = "models/qwen2.gguf"

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *exc: object) -> None:
        pass
