"""The devices of this machine and how much memory they have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .cgroups import memory_limits


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device, as --list-devices shows it. Memory in bytes, 0 where the system does not say."""

    device: torch.device
    description: str
    total_bytes: int
    free_bytes: int


def list_devices() -> list[DeviceInfo]:
    """All devices, GPUs first, the CPU last."""
    found = []
    if torch.cuda.is_available():
        kind = "ROCm" if torch.version.hip else "CUDA"
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            found.append(DeviceInfo(torch.device("cuda", i), f"{name} ({kind})", total, free))
    if torch.xpu.is_available():
        for i in range(torch.xpu.device_count()):
            properties = torch.xpu.get_device_properties(i)
            total = properties.total_memory
            free = total - torch.xpu.memory_reserved(i)
            found.append(DeviceInfo(torch.device("xpu", i), f"{properties.name} (XPU)", total, free))
    if torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        found.append(DeviceInfo(torch.device("mps"), "Apple GPU (Metal)", total, free))
    total, free = cpu_memory()
    found.append(DeviceInfo(torch.device("cpu"), f"CPU ({torch.get_num_threads()} threads)", total, free))
    return found


def find_device(name: str | None, devices: Sequence[DeviceInfo] | None = None) -> DeviceInfo:
    """The device of that name ("cuda:0", "cpu", ...); without a name, the first GPU or else the CPU.

    devices: those of this machine unless others are given.
    """
    devices = list_devices() if devices is None else devices
    if name is None:
        return devices[0]
    for info in devices:
        if name in (str(info.device), info.device.type):
            return info
    raise ValueError(f"device {name!r} is not here, found: {', '.join(str(d.device) for d in devices)}")


def activation_dtype(device: torch.device) -> torch.dtype:
    """The dtype of activations: float32 where it costs little, else the 16-bit type with the wider range."""
    if device.type == "cpu":
        return torch.float32
    # A GPU that is not here, for which memory is planned, counts as one of those that have both.
    if device.type == "cuda" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def cpu_memory(root: Path = Path("/")) -> tuple[int, int]:
    """Total and available bytes, as far as control groups leave them. root: where /proc and /sys lie."""
    total, free = _installed_memory(root)
    limit, left = memory_limits(root)
    if limit is None or left is None:
        return total, free
    # A total of 0 would mean that nothing is known.
    return max(1, min(total or limit, limit)), min(free, left) if total else left


def _installed_memory(root: Path) -> tuple[int, int]:
    """The same of the whole machine."""
    try:
        fields = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return tuple(int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    except (OSError, KeyError, ValueError):
        pass
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0, 0
    # Where the system does not say what is free, half of what there is has to do as a guess.
    return total, total // 2
