"""Kernels for CPUs, written with numba on vectors of its own (ARCHITECTURE.md, "How a layer runs on a CPU")."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from ...loaders.private import user_cache
from ..threads import ThreadOptions, ThreadPlan, ThreadPlans, plan_threads, set_priority
from .kernel import Compiler, this_host
from .programs import Program
from .team import Team


@dataclass(frozen=True, slots=True)
class Kernels:
    """What programs are made of and run by: threads for steps of one token, and for more."""

    compiler: Compiler
    decode: Team
    batch: Team
    plans: ThreadPlans

    def run(self, program: Program, n_rows: int = 2, most: int = 2**31) -> None:
        """Runs a program for a step of n_rows rows on as many threads as there are for it, or fewer."""
        team, plan = (self.decode, self.plans.decode) if n_rows == 1 else (self.batch, self.plans.batch)
        team.run(program, min(most, plan.n_threads))

    @property
    def n_threads(self) -> int:
        """The most threads that a program is run by."""
        return max(self.decode.n_threads, self.batch.n_threads)


def make_kernels(
    threads: ThreadOptions,
    on_compile: Callable[[str, bool], None] = lambda name, kept: None,
    isa: str | None = None,
) -> Kernels:
    """Threads as asked for, shared by all models of the process that ask alike. on_compile: see Compiler. isa: the
    instructions that kernels are made of; None: the best.

    ValueError for threads or instructions that this machine cannot give.
    """
    plans, compiler = plan_threads(threads), _compiler(isa)
    compiler.on_compile = on_compile
    if (plans.decode.masks, plans.decode.poll, plans.decode.prio) == (
        plans.batch.masks,
        plans.batch.poll,
        plans.batch.prio,
    ):
        larger = max(plans.decode, plans.batch, key=lambda plan: plan.n_threads)
        return Kernels(compiler, _team(larger, isa), _team(larger, isa), plans)
    return Kernels(compiler, _team(plans.decode, isa), _team(plans.batch, isa), plans)


@cache
def _compiler(isa: str | None) -> Compiler:
    return Compiler(this_host(isa), user_cache("kernels"))


@cache
def _team(plan: ThreadPlan, isa: str | None) -> Team:
    def begin(thread: int) -> None:
        if plan.masks:
            os.sched_setaffinity(0, plan.masks[thread % len(plan.masks)])
        set_priority(plan.prio)

    return Team(_compiler(isa), plan.n_threads, begin=begin, poll=plan.poll)
