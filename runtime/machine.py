"""What this process may use of the machine's CPUs: which of them, their physical cores, memory nodes and quotas.

On Linux it is read from /proc and /sys below a root that can be given, so that any machine can be laid out in a folder.
Elsewhere little more than the number of CPUs is known, and threads are left to the system.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .cgroups import cpu_quota, text

CPUs = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """What a process may use of a machine.

    cpus: those it may run on. cores: them by physical core, without the efficiency cores of a mixed processor.
    nodes: them by memory node, without nodes that have none; node: the one it runs on, as an index. quota: how many
    CPUs' time it is granted, None for all. can_place: whether threads can be bound to CPUs and given priorities.
    """

    cpus: CPUs
    cores: tuple[CPUs, ...]
    nodes: tuple[CPUs, ...]
    node: int = 0
    quota: float | None = None
    can_place: bool = True

    def n_cores(self, cpus: Iterable[int]) -> int:
        """Threads that are of use on these CPUs: their physical cores, or as many as the quota has time for."""
        chosen = set(cpus)
        n = sum(not chosen.isdisjoint(core) for core in self.cores) or len(chosen)
        return max(1, n if self.quota is None else min(n, int(self.quota)))


def _sysctl(name: str) -> int | None:
    """An integer that macOS tells."""
    value, size = ctypes.c_int32(), ctypes.c_size_t(4)
    call = ctypes.CDLL(None).sysctlbyname
    failed = call(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value


def this_machine(
    root: Path = Path("/"),
    platform: str = sys.platform,
    allowed: Iterable[int] | None = None,
    sysctl: Callable[[str], int | None] = _sysctl,
) -> Machine:
    """What there is for this process. root: where /proc and /sys lie. allowed: the CPUs that it may run on."""
    if platform == "linux":
        return _linux(root, tuple(sorted(os.sched_getaffinity(0) if allowed is None else allowed)))
    cpus = tuple(range(os.cpu_count() or 1)) if allowed is None else tuple(allowed)
    n_cores = None
    if platform == "darwin":
        # The fast cores of Apple's own processors; the others are Intel's.
        n_cores = sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu")
    cores = tuple((cpu,) for cpu in cpus[: n_cores or len(cpus)])
    return Machine(cpus, cores, (cpus,), can_place=False)


def _linux(root: Path, allowed: CPUs) -> Machine:
    system = root / "sys/devices/system"
    slow = set(_cpu_list(root / "sys/devices/cpu_atom/cpus"))
    cores: dict[CPUs, list[int]] = {}
    for cpu in allowed:
        if cpu not in slow or slow.issuperset(allowed):
            topology = system / f"cpu/cpu{cpu}/topology"
            siblings = _cpu_list(topology / "core_cpus_list") or _cpu_list(topology / "thread_siblings_list")
            cores.setdefault(siblings or (cpu,), []).append(cpu)
    folders = sorted(system.glob("node/node[0-9]*"), key=lambda folder: int(folder.name[4:]))
    nodes = [tuple(cpu for cpu in _cpu_list(folder / "cpulist") if cpu in allowed) for folder in folders]
    nodes = [node for node in nodes if node] or [allowed]
    here = _running_on(root)
    node = next((i for i, cpus in enumerate(nodes) if here in cpus), 0)
    return Machine(allowed, tuple(map(tuple, cores.values())), tuple(nodes), node, cpu_quota(root))


def _cpu_list(path: Path) -> CPUs:
    """The kernel's lists, 0-3,8; nothing where there is no such file."""
    parts = re.findall(r"(\d+)(?:-(\d+))?", text(path))
    return tuple(cpu for low, high in parts for cpu in range(int(low), int(high or low) + 1))


def _running_on(root: Path) -> int:
    """The CPU that the process ran on last (field 39 of stat; names of programs may hold blanks and brackets)."""
    fields = text(root / "proc/self/stat").rpartition(")")[2].split()
    return int(fields[36]) if len(fields) > 36 else 0
