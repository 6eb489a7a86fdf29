"""BatchSampler: a token for each of many sequences, by chains that differ from request to request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from . import choices, filters
from .breakers import BreakerTable
from .candidates import Candidates
from .dry import dry
from .largest import topk
from .params import MAX_HISTORY, NO_TOKEN, SamplingParams
from .penalties import logit_bias, penalties, remember
from .signature import Signature, signature_of
from .state import State, Step
from .uniform import Uniform

if TYPE_CHECKING:
    from .cpu import CpuSampler

STEPS: dict[str, Callable[[Candidates, Step], None]] = {
    "logit_bias": logit_bias,
    "penalties": penalties,
    "dry": dry,
    "top_n_sigma": filters.top_n_sigma,
    "top_k": filters.top_k,
    "typ_p": filters.typ_p,
    "top_p": filters.top_p,
    "min_p": filters.min_p,
    "xtc": filters.xtc,
    "temperature": filters.temperature,
    "dynatemp": filters.dynatemp,
    "argmax": filters.argmax,
}
CHOICES: dict[str, Callable[[Candidates, Step], choices.Choice]] = {
    "greedy": choices.greedy,
    "dist": choices.dist,
    "discrete": choices.discrete,
    "mirostat_1": choices.mirostat_1,
    "mirostat_2": choices.mirostat_2,
    "adaptive_p": choices.adaptive_p,
}
# Rows with long histories are sampled a few at a time, so that their tables stay within this many tokens.
MAX_TOKENS_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens: int64 [n], NO_TOKEN where the model's logits have NaN, +infinity or nothing but -infinity; what else is
    said of such a row means nothing. With n_probs, else None: logprobs: float32 [n], those of the tokens; top_ids,
    top_logprobs: [n, m], the likeliest tokens first, where m is at least n_probs unless there are fewer candidates.
    They are natural logarithms of the softmax of the model's logits or, with post_sampling_probs, probabilities after
    all samplers."""

    tokens: torch.Tensor
    logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    signature: Signature
    streams: tuple[Uniform, ...]


class BatchSampler:
    """Samples for n_slots requests of one model.

    Requests lie in slots. `open`, `close`, `signature` and `draws` run on the host; `sample` only starts work on the
    device, reads nothing back and has shapes that depend on the number of rows and the signature alone, so it can be
    captured in a CUDA graph. Slot n_slots stands for rows that pad a batch.
    max_history: tokens that a sequence can have; penalties and DRY need not look farther back.
    on_cpu: makes what samples logits on a CPU, where it can (see cpu.py).
    """

    def __init__(
        self,
        n_vocab: int,
        n_slots: int,
        device: torch.device | str,
        max_history: int = MAX_HISTORY,
        *,
        on_cpu: Callable[[State], CpuSampler] | None = None,
    ) -> None:
        self.n_vocab, self.n_slots, self.max_history = n_vocab, n_slots, max_history
        self.state = State(n_vocab, n_slots, torch.device(device))
        self.on_cpu = on_cpu(self.state) if on_cpu is not None and self.state.device.type == "cpu" else None
        self.requests: dict[int, _Request] = {}

    @torch.inference_mode()
    def open(
        self,
        slot: int,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        eog_ids: Iterable[int] = (),
        suppressed_ids: Iterable[int] = (),
        breakers: BreakerTable | None = None,
    ) -> None:
        """A request begins: seeds its random numbers and fills its history with the end of the prompt.

        eog_ids: tokens that ignore_eos rules out. suppressed_ids: tokens that the model must never generate.
        breakers: DRY's, from BreakerFinder. ValueError if n_probs is larger than the vocabulary.
        """
        assert 0 <= slot < self.n_slots
        if params.n_probs > self.n_vocab:
            raise ValueError(f"n_probs cannot be {params.n_probs}: the vocabulary has {self.n_vocab} tokens")
        ruled_out = [*suppressed_ids, *(eog_ids if params.ignore_eos else ())]
        biases = {int(token): float(bias) for token, bias in params.logit_bias.items() if 0 <= token < self.n_vocab}
        biases.update((token, -math.inf) for token in ruled_out if 0 <= token < self.n_vocab)
        breakers = breakers or BreakerTable()
        signature = signature_of(params, self.n_vocab, len(biases), breakers.widths, self.max_history)
        self.state.open(slot, params, signature, prompt, biases, breakers)
        streams = [Uniform(params.seed)] if signature.steps[-1] != "greedy" else []
        if "xtc" in signature.steps:
            streams.insert(0, Uniform(params.seed, single=True))
        self.requests[slot] = _Request(signature, tuple(streams))

    def close(self, slot: int) -> None:
        """The slot's request has ended."""
        del self.requests[slot]

    def signature(self, slot: int) -> Signature:
        """Of the slot's request; requests with equal signatures can be sampled in one call."""
        return self.requests[slot].signature

    def draws(self, slots: Sequence[int]) -> npt.NDArray[np.float64]:
        """The random numbers for one token each, float64 [n, n_draws]; the slots have equal signatures."""
        numbers = [[stream.next() for stream in self.requests[slot].streams] for slot in slots]
        return np.array(numbers, dtype=np.float64)

    def sample(self, logits: torch.Tensor, rows: torch.Tensor, draws: torch.Tensor, signature: Signature) -> Sampled:
        """One token for each row, and what its samplers remember of it.

        logits: float32 [n, n_vocab]; may be overwritten. rows: slots, int64 [n]; all different, but n_slots may repeat.
        draws: [n, n_draws] from `draws`; any numbers in rows of n_slots. All tensors lie on the sampler's device.
        """
        if self.on_cpu is not None and self.on_cpu.serves(signature):
            return self.on_cpu.sample(logits, rows, draws, signature)
        return self._sample_in_parts(logits, rows, draws, signature)

    @torch.inference_mode()
    def _sample_in_parts(
        self, logits: torch.Tensor, rows: torch.Tensor, draws: torch.Tensor, signature: Signature
    ) -> Sampled:
        n = len(rows)
        at_once = max(1, MAX_TOKENS_AT_ONCE // max(signature.n_history, 1))
        if n <= at_once:
            return self._sample(logits, rows, draws, signature)
        parts = [slice(i, i + at_once) for i in range(0, n, at_once)]
        return _joined([self._sample(logits[p], rows[p], draws[p], signature) for p in parts])

    def _sample(self, logits: torch.Tensor, rows: torch.Tensor, draws: torch.Tensor, signature: Signature) -> Sampled:
        step = Step(self.state, signature, rows, draws)
        raw = logits
        # NaN where there is any NaN; without edits the likeliest token has it.
        largest = None if signature.steps == ("greedy",) else logits.amax(1)
        if signature.n_probs and not signature.post_sampling_probs and signature.edits:
            logits = logits.clone()
        candidates = Candidates(logits)
        for name in signature.steps[:-1]:
            STEPS[name](candidates, step)
        probs, places = CHOICES[signature.steps[-1]](candidates, step)
        chosen = candidates.tokens(places)
        tokens = chosen.squeeze(1)
        if signature.n_history:
            remember(step, tokens)
        largest = raw.gather(1, chosen).squeeze(1) if largest is None else largest
        tokens = torch.where(largest.abs() < math.inf, tokens, NO_TOKEN)
        if not signature.n_probs:
            return Sampled(tokens)
        if signature.post_sampling_probs:
            top, top_places = topk(probs, min(signature.n_probs, probs.shape[1]))
            return Sampled(tokens, probs.gather(1, places).squeeze(1), candidates.tokens(top_places), top)
        logprobs = raw.log_softmax(1)
        top, top_ids = topk(logprobs, signature.n_probs)
        return Sampled(tokens, logprobs.gather(1, chosen).squeeze(1), top_ids, top)


def _joined(parts: list[Sampled]) -> Sampled:
    def join(name: str) -> torch.Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    return Sampled(torch.cat([part.tokens for part in parts]), join("logprobs"), join("top_ids"), join("top_logprobs"))
