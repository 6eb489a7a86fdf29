"""Sampling on a CPU by a kernel, without an operation of torch for every little thing."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..cpu_kernels import candidates, sampling
from ..cpu_kernels.kernel import Compiler
from ..cpu_kernels.language import LANES
from ..cpu_kernels.programs import ARGUMENTS, COUNTER, Program
from ..cpu_kernels.team import Team
from .batched import Sampled
from .cpu_chains import STEPS, Chain
from .signature import Signature
from .state import N_WAITING, State

# Signatures whose plans are kept; requests could come with ever new ones.
MAX_PLANS = 64


@dataclass(slots=True)
class Plan:
    """What the kernel is given for one signature, in a program at an address. n_top: likeliest tokens that are
    reported. table: the steps."""

    fields: npt.NDArray[np.int64]
    table: npt.NDArray[np.int64]
    program: Program
    address: int
    n_top: int


class CpuSampler:
    """Samples for one BatchSampler, whose state it shares.

    team: threads that share the rows of a call; without one, or with one row, the caller's thread does it all.
    """

    def __init__(self, state: State, compiler: Compiler, team: Team | None = None) -> None:
        self.state, self.compiler, self.team = state, compiler, team
        self._plans: dict[Signature, Plan] = {}
        stride = 4 * (-(-state.n_vocab // LANES) + 1) * LANES
        self.n_threads = min(team.n_threads, state.n_rows) if team is not None else 1
        # All zeros, which costs nothing before it is written to.
        self.memory = np.zeros((self.n_threads, candidates.N_ARRAYS, stride), np.uint8)
        function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)
        self._run = function(compiler.address(sampling.sample_rows))

    def serves(self, signature: Signature) -> bool:
        """Whether `sample` can do it: all but DRY, mirostat and adaptive-p."""
        return signature in self._plans or all(name in STEPS for name in signature.steps)

    def sample(self, logits: torch.Tensor, rows: torch.Tensor, draws: torch.Tensor, signature: Signature) -> Sampled:
        """As BatchSampler.sample; rows of padding get token 0."""
        plan = self._plans.get(signature) or self._make_plan(signature)
        assert logits.dtype == torch.float32 and rows.dtype == torch.int64 and draws.dtype == torch.float64
        logits, rows, draws = logits.contiguous(), rows.contiguous(), draws.contiguous()
        n, fields = rows.shape[0], plan.fields
        sampled = _zeros(n, plan.n_top)
        fields[sampling.N_ROWS] = n
        fields[sampling.LOGITS_ROWS] = logits.data_ptr()
        fields[sampling.SLOTS] = rows.data_ptr()
        fields[sampling.DRAWS] = draws.data_ptr()
        fields[sampling.TOKENS] = sampled.tokens.data_ptr()
        if plan.n_top:
            wanted = (sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
            fields[[sampling.OWN, sampling.TOP_IDS, sampling.TOPS]] = [t.data_ptr() for t in wanted if t is not None]
        if self.team is not None and n > 1:
            self.team.run(plan.program, min(n, self.n_threads))
        else:
            plan.program.code[0, COUNTER] = 0
            self._run(plan.address + 8 * ARGUMENTS, plan.address + 8 * COUNTER, 0, 1)
        return sampled

    def _make_plan(self, signature: Signature) -> Plan:
        state = self.state
        steps = self._table(Chain(signature, state.n_vocab))
        width = signature.n_candidates if "top_k" in signature.steps else None
        n_top = signature.n_probs
        if signature.post_sampling_probs:
            n_top = min(n_top, width or state.n_vocab)
        values = {
            sampling.STEPS: steps.ctypes.data,
            sampling.N_STEPS: len(steps),
            sampling.N_VOCAB: state.n_vocab,
            sampling.N_SLOTS: state.n_rows - 1,
            sampling.N_DRAWS: signature.n_draws,
            sampling.NUMBERS: state.numbers.data_ptr(),
            sampling.N_NUMBERS: state.numbers.shape[1],
            sampling.SEEN: state.seen.data_ptr(),
            sampling.GIVEN: state.given.data_ptr(),
            sampling.TAKEN: state.taken.data_ptr(),
            sampling.WAITING: state.waiting.data_ptr(),
            sampling.N_WAITING: N_WAITING,
            sampling.N_TOP: n_top,
            sampling.WORKSPACE: self.memory.ctypes.data,
            sampling.ARRAY_BYTES: self.memory.shape[2],
        }
        if signature.n_history:
            values[sampling.HISTORY] = state.history[signature.n_history].data_ptr()
            values[sampling.N_HISTORY] = signature.n_history
        if signature.n_biases:
            ids, biases = state.biases[signature.n_biases]
            values |= {sampling.BIASED: ids.data_ptr(), sampling.BIASES: biases.data_ptr()}
            values[sampling.N_BIASES] = signature.n_biases
        fields = np.zeros(sampling.PLAN_WIDTH, np.int64)
        fields[list(values)] = list(values.values())
        program = Program(self.compiler)
        program.add(sampling.sample_rows, plan=fields.ctypes.data)
        if len(self._plans) == MAX_PLANS:
            self._plans.clear()
        plan = Plan(fields, steps, program, program.code.ctypes.data, n_top)
        self._plans[signature] = plan
        return plan

    def _table(self, chain: Chain) -> npt.NDArray[np.int64]:
        """The chain's steps as the kernel reads them; compiles those that no chain had before."""
        table = np.zeros((len(chain.steps), sampling.STEP_WIDTH), np.int64)
        for row, step in zip(table, chain.steps, strict=True):
            row[: len(step)] = step
            if step[0] != sampling.SKIP:
                first = max(code for code in sampling.STEP_KERNELS if code <= step[0])
                row[sampling.STEP_KERNEL] = self.compiler.address(sampling.STEP_KERNELS[first])
        return table


def _zeros(n: int, m: int) -> Sampled:
    """What padding gets. m: how many of the likeliest tokens are reported."""
    tokens = torch.zeros(n, dtype=torch.int64)
    if not m:
        return Sampled(tokens)
    return Sampled(tokens, torch.zeros(n), torch.zeros(n, m, dtype=torch.int64), torch.zeros(n, m))
