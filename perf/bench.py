"""What the parts of kernels.py share: comparing results, rates, the lines that are printed.

A part is a module that checks and times kernels of one kind. Its items are plain objects that go to other processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from timing import Call, Times, first_line, measure, n_copies
from torch import Tensor

from naiad.quant.formats import Format
from naiad.triton_kernels.activations import Units
from naiad.triton_kernels.packing import packed_bytes
from naiad.triton_kernels.weights import PackedWeight

Record = dict[str, Any]


class Part(Protocol):
    """checks and check: what is wrong with the results of one item, a line each. programs and prepare: runs one item's
    kernels once, so that they are compiled. cases and time: the records of one case, each printed as a line too.

    limits: what the card can do (timing.card_limits), may be empty.
    """

    def checks(self, options: argparse.Namespace) -> Sequence[Any]: ...
    def check(self, item: Any, device: torch.device) -> Iterable[str]: ...
    def programs(self, options: argparse.Namespace) -> Sequence[Any]: ...
    def prepare(self, item: Any, device: torch.device) -> None: ...
    def cases(self, options: argparse.Namespace) -> Sequence[Any]: ...
    def time(self, case: Any, device: torch.device, limits: Mapping[str, Any]) -> Iterator[Record]: ...


def half(device: torch.device) -> torch.dtype:
    """The type of activations."""
    # The interpreter's bfloat16 arithmetic is wrong.
    return torch.float16 if device.type == "cpu" else torch.bfloat16


def compare(what: str, found: Tensor | Units, expected: Tensor, bound: float) -> Iterator[str]:
    """A line where the relative RMS difference exceeds the bound or is not a number."""
    numbers = dequantized(found) if isinstance(found, Units) else found
    expected = expected.double()
    if numbers.shape != expected.shape:
        yield f"{what}: shape {list(numbers.shape)}, expected {list(expected.shape)}"
        return
    error = float((numbers.double() - expected).norm() / expected.norm())
    if not error <= bound:
        yield f"{what}: relative RMS difference {error:.2g}, at most {bound:g} expected"


def guarded(what: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines, and one more where finding them fails."""
    try:
        yield from lines
    except Exception as error:  # whatever a compiler or a driver raises
        yield f"{what}: {first_line(error)}"


def dequantized(units: Units) -> Tensor:
    """The numbers that units stand for (activations.py), float32 [m, n_in]."""
    if not units.int8:
        return units.data[:, :, :256].flatten(1).narrow(1, 0, units.n_in)
    q = units.data[:, :, :64].contiguous().view(torch.int8).float()
    scales = units.data[:, :, 64:72].contiguous().view(torch.float32)
    numbers: Tensor = (q.unflatten(2, (8, 32)) * scales.unsqueeze(-1)).flatten(1)[:, : units.n_in]
    return numbers


def rms(x: Tensor) -> Tensor:
    return x.float().square().mean().sqrt()


def empty_weight(fmt: Format, shape: tuple[int, ...], device: torch.device) -> PackedWeight:
    """A matrix, or a stack of them, of zeros: made in no time, for calls whose kernels are only to be compiled."""
    data = torch.zeros(*shape[:-2], packed_bytes(fmt, *shape[-2:]), dtype=torch.uint8, device=device)
    return PackedWeight(fmt, shape, data)


def several(n_bytes: int, device: torch.device, most: int = 64) -> int:
    """Copies of data of so many bytes: more than the caches hold, but no more than `most` for what is small."""
    return max(1, min(most, n_copies(n_bytes, device)))


def timed(
    label: str,
    candidates: Mapping[str, Sequence[Call]],
    device: torch.device,
    limits: Mapping[str, Any],
    *,
    mine: Sequence[str],
    n_bytes: Mapping[str, float] | None = None,
    flops: float = 0.0,
    note: str = "",
) -> Record:
    """Measures, prints a line, and returns its record."""
    times, failed = measure(candidates, device)
    best = fastest_only(times, "sdpa")
    if any(key.startswith("sdpa") for key in best):
        printed = {key: why for key, why in failed.items() if not key.startswith("sdpa")}
    else:
        printed = failed
    record = rates(best, mine, n_bytes or {}, flops, limits.get("read_gb_s"))
    record["us"] |= spread(times)
    print(line(label, record, best, printed, mine, note), flush=True)
    return {"case": label.strip(), **record, "failed": failed, **({"aim": note} if note else {})}


def spread(times: Mapping[str, Times]) -> dict[str, list[float]]:
    """Median, lowest and highest."""
    return {key: [round(value, 2) for value in (t.median, t.low, t.high)] for key, t in times.items()}


def fastest_only(times: Mapping[str, Times], prefix: str) -> dict[str, Times]:
    """Of the candidates whose names begin so only the fastest."""
    names = [key for key in times if key.startswith(prefix)]
    first = min(names, key=lambda key: times[key].median, default="")
    return {key: t for key, t in times.items() if key not in names or key == first}


def rates(
    times: Mapping[str, Times],
    mine: Sequence[str],
    n_bytes: Mapping[str, float],
    flops: float,
    read_gb_s: float | None,
) -> Record:
    """Times, and what follows from them: GB/s of the candidates whose bytes are given, TFLOP/s, speed beside others."""
    us = {key: t.median for key, t in times.items()}
    record: Record = {"us": spread(times), "launches_included": [key for key, t in times.items() if not t.graph]}
    moved = {key: n_bytes[key] for key in us if key in n_bytes}
    if moved:
        record["bytes"] = moved
        record["gb_s"] = {key: round(n / us[key] / 1e3, 1) for key, n in moved.items()}
        if read_gb_s:
            record["share_of_read"] = {key: round(n / us[key] / 1e3 / read_gb_s, 3) for key, n in moved.items()}
    if flops:
        record["tflops"] = {key: round(flops / value / 1e6, 1) for key, value in us.items()}
    for peer in us.keys() - {*mine}:
        record[f"speed / {peer}"] = {key: round(us[peer] / us[key], 3) for key in mine if key in us}
    return record


def line(
    label: str, record: Record, times: Mapping[str, Times], failed: Mapping[str, str], mine: Sequence[str], note: str
) -> str:
    """One line of the table; an asterisk marks a time that includes launching."""
    cells = []
    for key, t in times.items():
        cell = f"{key} {t.median:.1f}{'' if t.graph else '*'} [{t.low:.1f} … {t.high:.1f}] µs"
        if key in record.get("gb_s", {}):
            cell += f" {record['gb_s'][key]:.0f} GB/s"
        if key in record.get("share_of_read", {}):
            cell += f" {record['share_of_read'][key]:.0%}"
        if key in record.get("tflops", {}):
            cell += f" {record['tflops'][key]:.0f} TFLOP/s"
        ratios = [
            f"{record[name][key]:.2f} x {name[8:]}"
            for name in record
            if name.startswith("speed / ") and key in record[name]
        ]
        cells.append(" ".join([cell, *(f"({ratio})" for ratio in ratios)]))
    cells += [f"{key}: {why}" if key in mine else f"without {key}" for key, why in failed.items()]
    return f"    {label}  " + " | ".join(cells) + (f"  aim: {note}" if note else "")
