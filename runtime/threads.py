"""How many threads compute on the CPU and where they run: llama.cpp's options, turned into a plan for a machine."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .machine import CPUs, Machine, this_machine

# ggml's GGML_MAX_N_THREADS: threads there may be, and CPUs that a mask can name.
MAX_THREADS = 512
POLL = 50
NUMA_MODES = ("distribute", "isolate", "numactl")


def cpus_of_mask(text: str) -> frozenset[int]:
    """The CPUs of hexadecimal masks, 0xF0 or f0, lowest bit first; several separated by commas add up."""
    cpus: set[int] = set()
    for part in text.split(","):
        if not re.fullmatch("(0x)?[0-9a-fA-F]*", part):
            raise ValueError(f"expected a mask in hexadecimal digits, found {part!r}")
        bits = int(part.removeprefix("0x") or "0", 16)
        if bits >> MAX_THREADS:
            raise ValueError(f"expected a mask of at most {MAX_THREADS} CPUs, found {bits.bit_length()} bits")
        cpus.update(i for i in range(bits.bit_length()) if bits >> i & 1)
    return frozenset(cpus)


def cpus_of_range(text: str) -> frozenset[int]:
    """The CPUs of ranges lo-hi, both included and either left out for the first or the last; several add up."""
    cpus: set[int] = set()
    for part in text.split(",") if text else ():
        match = re.fullmatch("([0-9]{0,9})-([0-9]{0,9})", part)
        if match is None:
            raise ValueError(f"expected a range of CPUs, lo-hi, found {part!r}")
        low, high = int(match[1] or 0), int(match[2] or MAX_THREADS - 1)
        if not low <= high < MAX_THREADS:
            raise ValueError(f"expected a rising range of CPUs below {MAX_THREADS}, found {part!r}")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


@dataclass(frozen=True, slots=True)
class ThreadOptions:
    """llama.cpp's options of threads, under its names.

    n_threads: for steps of one token per sequence; None for the physical cores, 0 or less for every CPU.
    cpu_mask, cpu_range: the CPUs to run on, those of both; where they name none, any. cpu_strict: one CPU for each
    thread. poll: how long idle threads look for work before they sleep, 0 to 100. prio: -1 (low), 0, 1, 2 or 3
    (realtime). Those in _batch hold for prompts; None: as without it. numa: one of NUMA_MODES, which say where threads
    run on machines of several memory nodes, or None.
    """

    n_threads: int | None = None
    n_threads_batch: int | None = None
    cpu_mask: str = ""
    cpu_range: str = ""
    cpu_strict: bool = False
    poll: int = POLL
    prio: int = 0
    cpu_mask_batch: str | None = None
    cpu_range_batch: str | None = None
    cpu_strict_batch: bool | None = None
    poll_batch: int | None = None
    prio_batch: int | None = None
    numa: str | None = None

    def __post_init__(self) -> None:
        for field in ("n_threads", "n_threads_batch"):
            if (getattr(self, field) or 0) > MAX_THREADS:
                raise ValueError(f"{field} must be at most {MAX_THREADS}, found {getattr(self, field)}")
        for name, low, high in (("poll", 0, 100), ("prio", -1, 3)):
            for field in (name, name + "_batch"):
                if not low <= (getattr(self, field) or 0) <= high:
                    raise ValueError(f"{field} must be from {low} to {high}, found {getattr(self, field)}")
        for name, parse in (("cpu_mask", cpus_of_mask), ("cpu_range", cpus_of_range)):
            for field in (name, name + "_batch"):
                try:
                    parse(getattr(self, field) or "")
                except ValueError as error:
                    raise ValueError(f"{field}: {error}") from None
        if self.numa is not None and self.numa not in NUMA_MODES:
            raise ValueError(f"numa must be one of {', '.join(NUMA_MODES)}, found {self.numa!r}")

    def for_batches(self) -> ThreadOptions:
        """The options with which prompts run, as plain ones."""
        names = ("n_threads", "cpu_mask", "cpu_range", "cpu_strict", "poll", "prio")
        changes = {name: getattr(self, name + "_batch") for name in names}
        changes = {name: value for name, value in changes.items() if value is not None}
        if "cpu_mask" in changes or "cpu_range" in changes:
            changes = {"cpu_mask": "", "cpu_range": "", **changes}
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """n_threads, the CPUs that each of them is bound to (masks is empty where they are not), poll and prio as above."""

    n_threads: int
    masks: tuple[CPUs, ...] = ()
    poll: int = POLL
    prio: int = 0


@dataclass(frozen=True, slots=True)
class ThreadPlans:
    """decode: for steps of one token per sequence. batch: for prompts."""

    decode: ThreadPlan
    batch: ThreadPlan


def plan_threads(options: ThreadOptions, machine: Machine | None = None) -> ThreadPlans:
    """Threads for a machine, this one unless another is given. ValueError for what it cannot do."""
    machine = machine or this_machine()
    return ThreadPlans(_plan(options, machine), _plan(options.for_batches(), machine))


def _plan(options: ThreadOptions, machine: Machine) -> ThreadPlan:
    mask = cpus_of_mask(options.cpu_mask) | cpus_of_range(options.cpu_range)
    pools = _pools(mask, options.numa, machine)
    usable = {cpu for pool in pools for cpu in pool}
    n = options.n_threads
    if n is None:
        n = machine.n_cores(usable or machine.cpus)
    elif n <= 0:
        n = min(MAX_THREADS, len(machine.cpus))
    if mask and n > len(usable):
        warnings.warn(f"{n} threads share the {len(usable)} CPUs that they are bound to", stacklevel=4)
    if options.prio and not machine.can_place:
        raise ValueError(f"prio must be 0 on this system, which has no priorities for threads, found {options.prio}")
    masks = tuple(_mask(pools, i, strict=options.cpu_strict) for i in range(n)) if pools else ()
    return ThreadPlan(n, masks, options.poll, options.prio)


def _pools(mask: frozenset[int], numa: str | None, machine: Machine) -> list[CPUs]:
    """The CPUs between which threads are dealt out; none where they may run anywhere."""
    if (mask or numa) and not machine.can_place:
        asked = "numa" if numa else "a CPU mask or range"
        raise ValueError(f"{asked} needs threads that can be bound to CPUs, which this system does not offer")
    spread = numa is not None and len(machine.nodes) > 1
    if not mask and not spread:
        return []
    if not spread or numa == "numactl":
        pools = [machine.cpus]
    else:
        pools = list(machine.nodes) if numa == "distribute" else [machine.nodes[machine.node]]
    if mask:
        found = [tuple(cpu for cpu in pool if cpu in mask) for pool in pools]
        if not any(found):
            names, asked = _names({cpu for pool in pools for cpu in pool}), _names(mask)
            raise ValueError(f"the CPU mask and range must name some of the CPUs {names}, found {asked}")
        pools = [pool for pool in found if pool]
    return pools


def _mask(pools: Sequence[CPUs], thread: int, *, strict: bool) -> CPUs:
    pool = pools[thread % len(pools)]
    return (pool[thread // len(pools) % len(pool)],) if strict else pool


def _names(cpus: Iterable[int]) -> str:
    """0-3,8 for 0, 1, 2, 3 and 8."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{low}-{high}" if low < high else f"{low}" for low, high in runs)


def set_priority(prio: int) -> None:
    """Gives the calling thread a priority (Linux): batch for -1, first-in-first-out for 1 to 3, as ggml does.

    0 leaves it as it is. Where the system does not permit it there is a warning, and it stays as it is, too.
    """
    if prio == 0:
        return
    policy = os.SCHED_BATCH if prio < 0 else os.SCHED_FIFO
    try:
        os.sched_setscheduler(0, policy, os.sched_param({-1: 0, 1: 40, 2: 80, 3: 90}[prio]))
    except OSError as error:
        warnings.warn(f"threads keep their usual priority, {prio} is not permitted: {error.strerror}", stacklevel=2)
