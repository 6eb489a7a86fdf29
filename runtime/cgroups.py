"""What Linux's control groups leave to this process: CPUs' time and memory, in versions 1 and 2, whole trees of them.

A process is in a group of each hierarchy, and what holds for a group holds for all below it. Where hierarchies are
mounted, and which part of them, stands in /proc/self/mountinfo; the group's path in /proc/self/cgroup (man 7 cgroups).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Where hierarchies usually are, for systems that do not say.
USUAL = PurePosixPath("/sys/fs/cgroup")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The least of what the groups of this process grant it, in CPUs; None for all. root: where /proc and /sys lie."""
    return min((quota for folder in _groups("cpu", root) for quota in _quota(folder)), default=None)


def memory_limits(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """The least limit in bytes, and the least that is left below a limit; None where there is none.

    Cached pages of files are not counted as used, for they give way; swap is not counted as memory.
    """
    found = [limit for folder in _groups("memory", root) for limit in _memory(folder)]
    return min((limit for limit, _ in found), default=None), min((left for _, left in found), default=None)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the groups that a process is in, its own and all above it that can be seen."""
    mounts = list(_mounts(root))
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        places = [(top, point) for kind, top, point in mounts if (controller in kind if controllers else not kind)]
        usual = [USUAL / controllers] if controllers else [USUAL, USUAL / "unified"]
        for top, point in places or [(PurePosixPath("/"), point) for point in usual]:
            yield from _chain(root / str(point).lstrip("/"), top, PurePosixPath(path))


def _chain(folder: Path, top: PurePosixPath, path: PurePosixPath) -> Iterator[Path]:
    """The folders from a mount point, where the group `top` is seen, down to the group `path`."""
    # Inside a container the names may be those outside of it, then only the mount point is there.
    inside = path.relative_to(top) if path.is_relative_to(top) else path
    parts = [part for part in inside.parts if part not in ("/", "..")]
    for n in range(len(parts) + 1):
        yield folder.joinpath(*parts[:n])


def _mounts(root: Path) -> Iterator[tuple[set[str], PurePosixPath, PurePosixPath]]:
    """Hierarchies that are mounted: their controllers (none for version 2), the group seen at the top, and where."""
    for line in text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, kind = mount.split(), system.split()
        if len(fields) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            controllers = set(kind[2].split(",")) if kind[0] == "cgroup" else set()
            yield controllers, PurePosixPath(_unescaped(fields[3])), PurePosixPath(_unescaped(fields[4]))


def _unescaped(name: str) -> str:
    """Blanks and backslashes of names are octal numbers there."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def _quota(folder: Path) -> list[float]:
    words = text(folder / "cpu.max").split()
    if not words:
        words = [text(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    # A quota of "max" or -1 is none.
    numbers = [_integer(word) for word in words]
    if len(numbers) == 2 and numbers[0] is not None and numbers[1]:
        return [numbers[0] / numbers[1]]
    return []


def _memory(folder: Path) -> Iterator[tuple[int, int]]:
    """A group's limits, each with what is left below it."""
    stat = dict(line.split(maxsplit=1) for line in text(folder / "memory.stat").splitlines() if " " in line)
    used = _integer(text(folder / "memory.current"))
    if used is not None:
        # Above memory.high a group is slowed down until it is hardly at work.
        limits = [text(folder / name) for name in ("memory.max", "memory.high")]
        given_way = ["inactive_file", "active_file", "slab_reclaimable"]
    else:
        used = _integer(text(folder / "memory.usage_in_bytes"))
        # The last is the least of the groups above, too, even of those that are not seen.
        limits = [text(folder / "memory.limit_in_bytes"), stat.get("hierarchical_memory_limit", "")]
        whole = "total_" if "total_inactive_file" in stat else ""
        given_way = [whole + "inactive_file", whole + "active_file"]
    if used is None:
        return
    used = max(0, used - sum(_integer(stat.get(name, "")) or 0 for name in given_way))
    for limit in map(_integer, limits):
        if limit is not None:
            yield limit, max(0, limit - used)


def _integer(word: str) -> int | None:
    """A number of at most 64 bits; None for "max", "-1" and everything else."""
    word = word.strip()
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 20 else None


def text(path: Path) -> str:
    """A file's text; nothing where there is no such file."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
