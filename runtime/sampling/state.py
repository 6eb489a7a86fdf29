"""What the device keeps per slot: a request's parameters and what its samplers remember between tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from .breakers import BreakerTable
from .fingerprints import powers
from .params import SamplingParams
from .signature import Signature

# exp(88.7) is the largest float32; DRY's exponents stop there.
LOG_MAX_FLOAT = 88.7228391
UNLIMITED = 2.0**30
# Numbers drawn for a sampler that did not need them wait here, so that none of its sequence is skipped.
N_WAITING = 1024
LARGEST_ID = 2**62

COLUMNS: dict[str, Callable[[SamplingParams], float]] = {
    "temperature": lambda p: p.temperature,
    "lowest_temperature": lambda p: max(0.0, p.temperature - p.dynatemp_range),
    "highest_temperature": lambda p: p.temperature + p.dynatemp_range,
    "dynatemp_exponent": lambda p: p.dynatemp_exponent,
    "top_k": lambda p: float(p.top_k),
    # Never 0, so that the first candidate, before which the sum is 0, stays.
    "top_p": lambda p: max(p.top_p, 1e-37),
    "log_min_p": lambda p: math.log(p.min_p) if p.min_p > 0 else -math.inf,
    "typical_p": lambda p: max(p.typical_p, 0.0),
    "min_keep": lambda p: float(p.min_keep),
    "top_n_sigma": lambda p: p.top_n_sigma,
    "xtc_probability": lambda p: p.xtc_probability,
    "xtc_threshold": lambda p: p.xtc_threshold,
    "repeat_last_n": lambda p: float(p.repeat_last_n),
    "repeat_penalty": lambda p: p.repeat_penalty,
    "frequency_penalty": lambda p: p.frequency_penalty,
    "presence_penalty": lambda p: p.presence_penalty,
    "dry_multiplier": lambda p: p.dry_multiplier,
    "dry_base": lambda p: p.dry_base,
    "dry_allowed_length": lambda p: float(p.dry_allowed_length),
    "dry_penalty_last_n": lambda p: float(p.dry_penalty_last_n),
    "dry_largest_exponent": lambda p: _largest_exponent(p.dry_base),
    "mirostat_tau": lambda p: p.mirostat_tau,
    "mirostat_eta": lambda p: p.mirostat_eta,
    "adaptive_target": lambda p: min(max(p.adaptive_target, 0.0), 1.0),
    "adaptive_decay": lambda p: p.adaptive_decay,
}
PLACES = {name: i for i, name in enumerate(COLUMNS)}


class State:
    """Tensors of n_slots + 1 rows each; the last row is for rows that only pad a batch.

    Tables whose width depends on the request are made when a request of that width first comes, by width, and stay
    where they are: a captured graph keeps reading them.
    numbers: float32 [rows, parameters], columns as in COLUMNS. seen: int64 [rows], tokens in the history so far.
    memory: float32 [rows, 3]: mirostat's mu; adaptive-p's sum of probabilities and of weights.
    given, taken: int64 [rows, 2], random numbers that the host gave, and that were needed: xtc's, the choice's.
    """

    def __init__(self, n_vocab: int, n_slots: int, device: torch.device) -> None:
        self.n_vocab, self.n_rows, self.device = n_vocab, n_slots + 1, device
        # Metal has no 64-bit floats.
        self.wide = torch.float32 if device.type == "mps" else torch.float64
        self.numbers = torch.zeros(self.n_rows, len(COLUMNS), device=device)
        self.seen = self._table(torch.int64)
        self.memory = torch.zeros(self.n_rows, 3, device=device)
        self.given = self._table(torch.int64, 2)
        self.taken = self._table(torch.int64, 2)
        self.waiting = self._table(self.wide, 2, N_WAITING)
        self.history: dict[int, torch.Tensor] = {}
        self.powers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.biases: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.breakers: dict[tuple[int, int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self._write_params(n_slots, SamplingParams())

    def open(
        self,
        slot: int,
        params: SamplingParams,
        signature: Signature,
        prompt: Sequence[int],
        biases: Mapping[int, float],
        breakers: BreakerTable,
    ) -> None:
        """Writes all that steps of this signature read in the slot's row."""
        self._write_params(slot, params)
        if signature.n_history:
            self._write_history(slot, signature.n_history, prompt)
        if signature.n_biases:
            self._write_biases(slot, signature.n_biases, biases)
        if signature.n_pairs:
            self._write_breakers(slot, breakers)

    def _table(self, dtype: torch.dtype, *widths: int) -> torch.Tensor:
        return torch.zeros(self.n_rows, *widths, dtype=dtype, device=self.device)

    def _write_params(self, slot: int, params: SamplingParams) -> None:
        p = params
        _write(self.numbers[slot], torch.tensor([value(p) for value in COLUMNS.values()], dtype=torch.float64).float())
        weight = 1 / (1 - p.adaptive_decay)
        _write(self.memory[slot], torch.tensor([2 * p.mirostat_tau, p.adaptive_target * weight, weight]))
        self.given[slot], self.taken[slot], self.seen[slot] = 0, 0, 0

    def _write_history(self, slot: int, width: int, prompt: Sequence[int]) -> None:
        if width not in self.history:
            # Both or none, where memory runs out between them.
            self.powers[width] = powers(width, self.device)
            self.history[width] = self._table(torch.int32, width)
        tokens = [token for token in prompt[-width:] if 0 <= token < self.n_vocab]
        _write(self.history[width][slot, : len(tokens)], torch.tensor(tokens, dtype=torch.int32))
        self.seen[slot] = len(tokens)

    def _write_biases(self, slot: int, width: int, biases: Mapping[int, float]) -> None:
        if width not in self.biases:
            self.biases[width] = self._table(torch.int64, width), self._table(torch.float32, width)
        # The rest adds 0 to token 0.
        padding = [0] * (width - len(biases))
        ids, values = self.biases[width]
        _write(ids[slot], torch.tensor([*biases, *padding], dtype=torch.int64))
        _write(values[slot], torch.tensor([*biases.values(), *padding], dtype=torch.float32))

    def _write_breakers(self, slot: int, table: BreakerTable) -> None:
        widths = table.widths
        n_pairs, n_tails, length = widths
        if widths not in self.breakers:
            self.breakers[widths] = (
                self._table(torch.int64, n_pairs).fill_(LARGEST_ID),
                self._table(torch.int64, n_tails, length),
                self._table(torch.int64, n_tails),
            )
        pairs, tails, lengths = self.breakers[widths]
        codes = sorted(tail * self.n_vocab + head for tail, head in table.pairs)
        _write(pairs[slot], torch.tensor(codes + [LARGEST_ID] * (n_pairs - len(codes))))
        missing = [()] * (n_tails - len(table.tails))
        padded = [[*tail, *[0] * (length - len(tail))] for tail in (*table.tails, *missing)]
        _write(tails[slot], torch.tensor(padded, dtype=torch.int64).reshape(n_tails, length))
        _write(lengths[slot], torch.tensor([len(tail) for tail in (*table.tails, *missing)]))


class Step:
    """One call of `BatchSampler.sample`, as the samplers see it.

    rows: int64 [n]. draws: [n, signature.n_draws], xtc's first and the choice's last.
    """

    def __init__(self, state: State, signature: Signature, rows: torch.Tensor, draws: torch.Tensor) -> None:
        self.state, self.signature, self.rows = state, signature, rows
        self.draws = draws if draws.dtype == state.wide else draws.to(state.wide)
        self._numbers: torch.Tensor | None = None

    def param(self, name: str) -> torch.Tensor:
        """float32 [n, 1]."""
        if self._numbers is None:
            self._numbers = self.state.numbers.index_select(0, self.rows)
        return self._numbers.narrow(1, PLACES[name], 1)

    def sequence(self, place: int, needed: torch.Tensor) -> torch.Tensor:
        """The next number of each row's stream (0: xtc's, 1: the choice's); rows that need none leave it for later.

        needed: bool [n, 1]. A sampler draws only when it has a choice, which only the device knows, so the host draws
        for every token. Up to N_WAITING numbers wait; with more, the oldest are lost.
        """
        state, rows = self.state, self.rows
        column = 0 if place == 0 else self.signature.n_draws - 1
        given, taken = state.given[rows, place], state.taken[rows, place]
        state.waiting[rows, place, given % N_WAITING] = self.draws[:, column]
        state.given[rows, place] = given + 1
        state.taken[rows, place] = taken + needed.squeeze(1)
        return state.waiting[rows, place, taken % N_WAITING].unsqueeze(1)


def _write(row: torch.Tensor, values: torch.Tensor) -> None:
    """Copies values to a row; the host does not wait for the GPU that it is on."""
    on_cuda = row.device.type == "cuda"
    row.copy_(values.pin_memory() if on_cuda else values, non_blocking=on_cuda)


def _largest_exponent(base: float) -> float:
    largest = int(LOG_MAX_FLOAT / math.log(base)) if base > 1.000001 else 0
    return float(largest) if largest > 0 else UNLIMITED
