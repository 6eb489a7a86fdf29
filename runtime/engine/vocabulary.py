"""What the engine must know of a model's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from ...loaders.tokenizer import Tokenizer
from ..sampling import BatchSampler, BreakerFinder, BreakerTable, SamplingParams


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """eog_ids: tokens that end a generation. suppressed_ids: tokens never generated. finder: DRY's breakers; without
    it, no text breaks a repetition."""

    n_vocab: int
    eog_ids: frozenset[int] = frozenset()
    suppressed_ids: frozenset[int] = frozenset()
    finder: BreakerFinder | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special=False, parse_special=False)

        finder = BreakerFinder(tokenizer.n_vocab, tokenizer.lone_piece, encode)
        return cls(tokenizer.n_vocab, frozenset(tokenizer.eog_ids), frozenset(tokenizer.suppressed_ids), finder)

    def check_tokens(self, prompt: Sequence[int]) -> None:
        """ValueError unless all are token ids."""
        # Python's own integers by their smallest and largest: prompts are long.
        plain = not len(prompt) or set(map(type, prompt)) == {int}
        if plain:
            sound = not len(prompt) or (min(prompt) >= 0 and max(prompt) < self.n_vocab)
        else:
            sound = all(isinstance(t, Integral) and 0 <= t < self.n_vocab for t in prompt)
        if not sound:
            raise ValueError(f"the prompt has token ids outside 0 … {self.n_vocab - 1}")

    def check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """ValueError for a prompt or parameters that do not fit the vocabulary."""
        if not len(prompt):
            raise ValueError("the prompt has no tokens")
        self.check_tokens(prompt)
        if params.n_probs > self.n_vocab:
            raise ValueError(f"n_probs: expected at most the {self.n_vocab} tokens there are, found {params.n_probs}")

    def breakers(self, params: SamplingParams) -> BreakerTable:
        """A request's breakers; the first that asks for some waits for a second with a large vocabulary."""
        return self.finder.table_of(params) if self.finder is not None else BreakerTable()

    def open(
        self,
        sampler: BatchSampler,
        slot: int,
        prompt: Sequence[int],
        params: SamplingParams,
        breakers: BreakerTable,
    ) -> None:
        """Begins a request in a sampler's slot."""
        sampler.open(slot, params, prompt, eog_ids=self.eog_ids, suppressed_ids=self.suppressed_ids, breakers=breakers)
