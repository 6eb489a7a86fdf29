"""Chains of samplers as steps of the CPU's sampling kernels (runtime/cpu_kernels/sampling.py)."""

from __future__ import annotations

from collections.abc import Callable

from ..cpu_kernels import candidates, sampling
from .params import NO_TOKEN
from .signature import EDITS, Signature
from .state import PLACES

# Maxima are of blocks of at most so many logits; of fewer where more candidates are wanted than there would be blocks.
LARGEST_BLOCK, SMALLEST_BLOCK = 256, 16
BLOCKS_PER_CANDIDATE = 8
# What changes logits where they lie, perhaps.
IN_PLACE = (*EDITS, "top_n_sigma", "xtc", "temperature", "argmax")
# Of a chain's steps, those that check the model's logits come first.
N_CHECKING = 3
PENALTIES = ("repeat_last_n", "repeat_penalty", "frequency_penalty", "presence_penalty")


class Chain:
    """The steps for one signature, each a code and its operands.

    The first ones look at the model's logits: a row that has NaN, +infinity or nothing but -infinity gets NO_TOKEN, and
    takes no further step.
    """

    def __init__(self, signature: Signature, n_vocab: int) -> None:
        self.signature, self.n_vocab = signature, n_vocab
        self.steps: list[tuple[int, ...]] = []
        self._is_checked = False
        # Whether the candidates are the model's row as it lies there; whether they are sorted.
        self.is_row, self.is_sorted = True, False
        with_logprobs = signature.n_probs > 0 and not signature.post_sampling_probs
        if with_logprobs:
            self._report_logprobs()
        for name in signature.steps:
            if with_logprobs and self.is_row and name in IN_PLACE:
                self._add(sampling.COPY)
                self.is_row = False
            STEPS[name](self)
        if with_logprobs:
            self._add(sampling.REPORT_LOGPROB)
        elif signature.n_probs:
            self._order(candidates.KEYS_OF_LOGITS)
            self._add(sampling.REPORT_PROBS)
        assert self._is_checked
        self.steps[N_CHECKING - 1] = (sampling.SKIP, len(self.steps) - N_CHECKING)

    def bias(self) -> None:
        self._add(sampling.ADD_BIASES)

    def penalise(self) -> None:
        self._add(sampling.PENALISE, *(PLACES[name] for name in PENALTIES))
        self.is_sorted = False

    def top_k(self) -> None:
        k = self.signature.n_candidates
        if k is None or self.is_sorted:
            self._sort()
        else:
            self._keep_best(k, PLACES["top_k"])
        self._add(sampling.KEEP_FIRST, PLACES["top_k"])

    def top_p(self) -> None:
        self._sort()
        self._softmax()
        self._add(sampling.KEEP_MASS, PLACES["top_p"], PLACES["min_keep"], 0)

    def min_p(self) -> None:
        if self.is_sorted:
            self._add(sampling.KEEP_ABOVE, PLACES["log_min_p"], PLACES["min_keep"])
            return
        self._find_largest()
        self._add(sampling.NEAR_LARGEST, PLACES["log_min_p"])
        self._add(sampling.COLLECT)
        self.is_row = False
        if self.signature.min_keep:
            self._add(sampling.UNDO_SCARCE, PLACES["min_keep"])
            self._if_acts(self._sort, lambda: self._add(sampling.KEEP_FIRST, PLACES["min_keep"]))

    def typ_p(self) -> None:
        self._sort()
        self._softmax()
        self._add(sampling.FIND_DISTANCES)
        self._order(candidates.KEYS_OF_DISTANCES)
        self._add(sampling.KEEP_MASS, PLACES["typical_p"], PLACES["min_keep"], 1)
        self.is_sorted = False

    def top_n_sigma(self) -> None:
        self._find_largest()
        self._add(sampling.OUTLIERS, PLACES["top_n_sigma"])

    def xtc(self) -> None:
        self._softmax()
        self._add(sampling.XTC, PLACES["xtc_probability"], PLACES["xtc_threshold"])
        self._if_acts(self._sort, lambda: self._add(sampling.DROP_FIRST, PLACES["min_keep"]))

    def temperature(self) -> None:
        self._add(sampling.SET_HEAT, PLACES["temperature"])
        self._add(sampling.COOL)

    def dynatemp(self) -> None:
        self._sort()
        self._softmax()
        names = ("lowest_temperature", "highest_temperature", "dynatemp_exponent")
        self._add(sampling.FIND_HEAT, *(PLACES[name] for name in names))
        self._add(sampling.COOL)
        self._if_acts(self.argmax)

    def argmax(self) -> None:
        self._find_largest()
        self._add(sampling.FIND_FIRST)
        self._add(sampling.KEEP_PLACE)

    def greedy(self) -> None:
        self._find_largest()
        self._add(sampling.FIND_FIRST)
        self._add(sampling.TAKE)

    def dist(self) -> None:
        self._choose(sampling.DRAW_ALWAYS)

    def discrete(self) -> None:
        self._choose(sampling.DRAW_AMONG)

    def _choose(self, draw: int) -> None:
        self._softmax()
        self._add(draw)
        self._add(sampling.CHOOSE)
        self._add(sampling.TAKE)

    def _add(self, code: int, *operands: int) -> None:
        if not self._is_checked and code != sampling.FIND_LARGEST:
            self._find_largest()
        self.steps.append((code, *operands))

    def _if_acts(self, *actions: Callable[[], None]) -> None:
        """What these add is only done for rows for which the step before says so."""
        place, was_sorted = len(self.steps), self.is_sorted
        self._add(sampling.SKIP)
        for action in actions:
            action()
        self.steps[place] = (sampling.SKIP, len(self.steps) - place - 1)
        self.is_sorted = was_sorted

    def _find_largest(self, k: int = 0) -> None:
        block = LARGEST_BLOCK
        while block > SMALLEST_BLOCK and self.n_vocab < BLOCKS_PER_CANDIDATE * k * block:
            block //= 2
        self._add(sampling.FIND_LARGEST, block)
        if not self._is_checked:
            self._is_checked = True
            self.steps += [(sampling.CHECK, NO_TOKEN), (sampling.SKIP, 0)]

    def _softmax(self) -> None:
        self._find_largest()
        self._add(sampling.SOFTMAX)

    def _order(self, source: int) -> None:
        self._add(sampling.WRITE_KEYS, source)
        self._add(sampling.SORT)
        self._add(sampling.FOLLOW)
        self.is_row = False

    def _sort(self) -> None:
        if not self.is_sorted:
            self._order(candidates.KEYS_OF_LOGITS)
            self.is_sorted = True

    def _keep_best(self, k: int, column: int) -> None:
        """The k likeliest, or as many as a column says, and perhaps some more, sorted."""
        self._find_largest(k)
        self._add(sampling.WRITE_KEYS, candidates.KEYS_OF_MAXIMA)
        self._add(sampling.SORT)
        self._add(sampling.KEEP_BEST, column, k)
        self._add(sampling.COLLECT)
        self._order(candidates.KEYS_OF_LOGITS)
        self.is_sorted = True

    def _report_logprobs(self) -> None:
        self._softmax()
        self._add(sampling.NORMALIZE)
        self._keep_best(self.signature.n_probs, -1)
        self._add(sampling.REPORT_LOGPROBS)
        self._add(sampling.RESTART)
        self.is_row, self.is_sorted = True, False


# What the kernels serve: without the samplers that remember more than tokens, and DRY.
STEPS: dict[str, Callable[[Chain], None]] = {
    "logit_bias": Chain.bias,
    "penalties": Chain.penalise,
    "top_n_sigma": Chain.top_n_sigma,
    "top_k": Chain.top_k,
    "typ_p": Chain.typ_p,
    "top_p": Chain.top_p,
    "min_p": Chain.min_p,
    "xtc": Chain.xtc,
    "temperature": Chain.temperature,
    "dynatemp": Chain.dynatemp,
    "argmax": Chain.argmax,
    "greedy": Chain.greedy,
    "dist": Chain.dist,
    "discrete": Chain.discrete,
}
