"""Memory that control groups leave, on systems laid out in folders; tests/test_threads.py has their CPU quotas."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from naiad.runtime.cgroups import cpu_quota, memory_limits
from naiad.runtime.defaults import MIB
from naiad.runtime.devices import cpu_memory

MEMINFO = f"MemTotal:       {8000 * 1024} kB\nMemFree: 1 kB\nMemAvailable:   {6000 * 1024} kB\nSwapTotal: 9 kB"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
UNLIMITED = "9223372036854771712"


def v2(folder: str, limit: int | str, used: int, *, high: int | str = "max", **stat: int) -> dict[str, str]:
    """A group of version 2. Numbers are MiB."""
    base = f"{folder}/memory."
    return {
        base + "max": str(limit * MIB if isinstance(limit, int) else limit),
        base + "high": str(high * MIB if isinstance(high, int) else high),
        base + "current": str(used * MIB),
        base + "stat": "\n".join(f"{name} {value * MIB}" for name, value in stat.items()),
    }


def v1(folder: str, limit: int | str, used: int, above: int | str = UNLIMITED, **stat: int) -> dict[str, str]:
    """A group of version 1. above: the least limit of the groups above it. Numbers are MiB."""
    base, above = f"{folder}/memory.", above * MIB if isinstance(above, int) else above
    lines = [f"hierarchical_memory_limit {above}", *(f"{name} {value * MIB}" for name, value in stat.items())]
    return {
        base + "limit_in_bytes": str(limit * MIB if isinstance(limit, int) else limit),
        base + "usage_in_bytes": str(used * MIB),
        base + "memsw.limit_in_bytes": str(1 * MIB),
        base + "stat": "\n".join(lines),
    }


def proc(groups: str, *mounts: str) -> dict[str, str]:
    other = "22 1 8:1 / / rw - ext4 /dev/sda1 rw"
    return {"proc/self/cgroup": groups, "proc/self/mountinfo": "\n".join((other, *mounts)), "proc/meminfo": MEMINFO}


TOP = "sys/fs/cgroup"
# Files -> MiB in all, MiB free.
SYSTEMS: dict[str, tuple[dict[str, str], tuple[int, int]]] = {
    "no groups": ({"proc/meminfo": MEMINFO}, (8000, 6000)),
    "no limit": (proc("0::/a", V2_MOUNT) | v2(f"{TOP}/a", "max", 100), (8000, 6000)),
    "version 2, a namespace": (proc("0::/", V2_MOUNT) | v2(TOP, 700, 200), (700, 500)),
    "version 2, pages of files give way": (
        proc("0::/", V2_MOUNT) | v2(TOP, 700, 650, inactive_file=300, active_file=200, slab_reclaimable=10, shmem=90),
        (700, 560),
    ),
    "all of it in use": (proc("0::/", V2_MOUNT) | v2(TOP, 700, 720), (700, 0)),
    "more pages of files than are in use": (proc("0::/", V2_MOUNT) | v2(TOP, 700, 50, active_file=90), (700, 700)),
    "memory.high": (proc("0::/", V2_MOUNT) | v2(TOP, 900, 200, high=500), (500, 300)),
    "a limit larger than the machine": (proc("0::/", V2_MOUNT) | v2(TOP, 90000, 10), (8000, 6000)),
    "the machine has less free than the group": (proc("0::/", V2_MOUNT) | v2(TOP, 7500, 10), (7500, 6000)),
    "the group above is tighter": (
        proc("0::/a/b", V2_MOUNT) | v2(f"{TOP}/a/b", 3000, 10) | v2(f"{TOP}/a", 2000, 100),
        (2000, 1900),
    ),
    # Siblings use the memory of the group above: the limit that is least is not the one that leaves least.
    "the group above is fuller": (
        proc("0::/a/b", V2_MOUNT) | v2(f"{TOP}/a/b", 1000, 100) | v2(f"{TOP}/a", 2000, 1900, inactive_file=50),
        (1000, 150),
    ),
    "a leaf without a controller": (
        proc("0::/a/leaf", V2_MOUNT) | v2(f"{TOP}/a", 1000, 100) | {f"{TOP}/a/leaf/cgroup.procs": "1"},
        (1000, 900),
    ),
    "a part of version 2 is mounted": (
        proc("0::/docker/abc/job", "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw")
        | v2(f"{TOP}/job", 1000, 10)
        | v2(TOP, 900, 300),
        (900, 600),
    ),
    "names from outside": (
        proc("0::/../../abc", "30 23 0:26 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw") | v2(TOP, 900, 300),
        (900, 600),
    ),
    "version 1": (proc("4:memory:/", V1_MOUNT) | v1(f"{TOP}/memory", 700, 200), (700, 500)),
    "version 1 without a limit": (proc("4:memory:/", V1_MOUNT) | v1(f"{TOP}/memory", UNLIMITED, 200), (8000, 6000)),
    "version 1, a group below": (
        proc("7:cpu:/x\n4:memory:/a/b", V1_MOUNT)
        | v1(f"{TOP}/memory/a/b", 900, 200, inactive_file=150, active_file=10)
        | v1(f"{TOP}/memory/a", UNLIMITED, 300),
        (900, 860),
    ),
    "version 1, whole trees count": (
        proc("4:memory:/a", V1_MOUNT)
        | v1(f"{TOP}/memory/a", 900, 500, inactive_file=1, total_inactive_file=150, total_active_file=50),
        (900, 600),
    ),
    "version 1, limits of groups that are not seen": (
        proc("4:memory:/docker/abc", "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory")
        | v1(f"{TOP}/memory", UNLIMITED, 200, above=600),
        (600, 400),
    ),
    "both": (
        proc("4:memory:/a\n0::/", V1_MOUNT, "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw")
        | v1(f"{TOP}/memory/a", 800, 100)
        | {f"{TOP}/unified/cgroup.procs": "1"},
        (800, 700),
    ),
    "another mount point, with a blank": (
        proc("0::/a", r"30 23 0:26 / /mnt/c\040g rw - cgroup2 none rw") | v2("mnt/c g/a", 700, 100),
        (700, 600),
    ),
    "controllers together": (
        proc("4:cpu,memory:/a", "35 31 0:32 / /sys/fs/cgroup/cm rw - cgroup cgroup rw,xattr,cpu,memory")
        | v1(f"{TOP}/cm/a", 700, 100),
        (700, 600),
    ),
    "mounts are not told": (
        {"proc/self/cgroup": "4:memory:/a", "proc/meminfo": MEMINFO} | v1(f"{TOP}/memory/a", 700, 100),
        (700, 600),
    ),
    "meminfo is not there": (
        {"proc/self/cgroup": "0::/", "proc/meminfo": ""} | v2(TOP, 1, 0),
        (1, 1),
    ),
    "a limit of nothing": (proc("0::/", V2_MOUNT) | v2(TOP, 0, 5), (0, 0)),
    "damaged": (
        proc("garbage\n0::/", V2_MOUNT, "1 2 - cgroup2", "a - b - cgroup2 c d")
        | {f"{TOP}/memory.max": "9" * 5000, f"{TOP}/memory.current": "12", f"{TOP}/memory.stat": "x\ninactive_file y"},
        (8000, 6000),
    ),
}


def lay_out(files: Mapping[str, str], root: Path) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize("name", SYSTEMS)
def test_memory(name: str, tmp_path: Path) -> None:
    files, expected = SYSTEMS[name]
    total, free = cpu_memory(lay_out(files, tmp_path))
    assert (total // MIB, free // MIB) == expected
    assert total > 0


def test_quotas_where_groups_are_mounted_elsewhere(tmp_path: Path) -> None:
    """Of CPUs, by the same search."""
    mounts = (
        "33 31 0:30 /docker/abc /cg/cpu rw - cgroup cgroup rw,cpu",
        "30 23 0:26 /x /cg/two rw - cgroup2 cgroup2 rw",
    )
    files = proc("2:cpu:/docker/abc/in\n0::/x/y", *mounts) | {
        "cg/cpu/in/cpu.cfs_quota_us": "350000",
        "cg/cpu/in/cpu.cfs_period_us": "100000",
        "cg/cpu/docker/abc/cpu.cfs_quota_us": "1",
        "cg/two/y/cpu.max": "300000 100000",
        "cg/two/x/y/cpu.max": "1 100000",
    }
    assert cpu_quota(lay_out(files, tmp_path)) == 3.0


def test_the_machine_that_this_runs_on() -> None:
    total, free = cpu_memory()
    assert 0 < free <= total
    limit, left = memory_limits()
    assert (limit is None) == (left is None)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has control groups")
def test_a_group_that_is_made() -> None:
    """A real one, of either version; where none can be made there is nothing to see."""
    first = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists()
    group = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup") / f"naiad-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    program = f"""
import os
from naiad.runtime.cgroups import memory_limits
open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
print(*memory_limits())
"""
    try:
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(300 * MIB))
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    except OSError as error:
        pytest.skip(f"no limit can be set: {error}")
    finally:
        group.rmdir()
    limit, left = map(int, run.stdout.split())
    assert limit == 300 * MIB
    assert 200 * MIB < left <= limit
