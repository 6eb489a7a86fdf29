"""Memory planned before anything is loaded: how many pages of cache fit beside the weights, or what would fit.

Nothing here touches a device: the plan is arithmetic over a file's directory, the options and the devices' free bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch

from ..loaders.stored import ModelSource
from ..quant.cache_types import CACHE_TYPES
from .cache import CacheGroup, cache_groups
from .config import ModelConfig
from .defaults import MARGIN_BYTES, MIB
from .devices import DeviceInfo
from .engine.pages import PAGE_SIZE
from .footprint import StepShape, WeightBytes, group_page_bytes, n_pages, step_bytes, weight_bytes
from .model import Plan

# Without -c, a context of so many tokens is enough to start with (llama.cpp's --fit-ctx).
ENOUGH_TOKENS = 4096
# Where a system does not say how much memory it has.
ASSUMED_BYTES = 8192 * MIB
# Contexts are suggested in multiples of this.
CTX_STEP = 256
# The kernels count the values of a layer's keys in 32 bits (triton_kernels/attention.py).
MAX_PLANE_VALUES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """What memory is planned for.

    n_ctx: tokens that one sequence may have; 0 for what the model was trained for, or less where that does not fit.
    n_batch: rows of a step. max_seqs: sequences at a time. k_type, v_type: cache types by name.
    cache_ram_bytes: host memory for idle prefixes, taken at once, but never more than half of what is left there.
    pool_tokens: tokens that the cache shall hold; None for max_seqs contexts, or as many as fit.
    """

    n_ctx: int
    n_batch: int
    max_seqs: int
    k_type: str
    v_type: str
    cache_ram_bytes: int = 0
    pool_tokens: int | None = None
    margin_bytes: int = MARGIN_BYTES
    use_mmap: bool = True
    fused_attention: bool = True

    def __post_init__(self) -> None:
        lowest = {"n_ctx": 0, "n_batch": 1, "max_seqs": 1, "cache_ram_bytes": 0, "pool_tokens": 1, "margin_bytes": 0}
        check_lowest(self, lowest)


Moved = Callable[[int], tuple[Plan, MemoryOptions]]


def check_lowest(options: object, lowest: Mapping[str, int]) -> None:
    """ValueError for an option, other than None, below what it may be."""
    for name, low in lowest.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, found {value}")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A device's memory in bytes. mapped: the part of `weights` that the system can drop and read again."""

    device: torch.device
    total: int
    free: int
    weights: int
    mapped: int
    cache: int
    workspace: int
    margin: int

    @property
    def needed(self) -> int:
        return self.weights - self.mapped + self.cache + self.workspace + self.margin

    @property
    def left(self) -> int:
        return self.free - self.needed

    @property
    def fits(self) -> bool:
        """On a CPU the cache takes at most half of what is free: other programs grow, too."""
        return self.left >= 0 and (self.device.type != "cpu" or self.cache <= self.free // 2)


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The pages of a cache group. n_pages counts page 0, which belongs to nobody. page_bytes: in all its layers."""

    window: int
    layers: tuple[int, ...]
    n_pages: int
    n_host_pages: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What goes into memory. n_ctx: tokens that one sequence may have; pool_tokens: that all have together.

    wanted_ctx, wanted_tokens: what these would be if memory were no matter.
    """

    devices: tuple[DeviceMemory, ...]
    groups: tuple[GroupMemory, ...]
    n_ctx: int
    pool_tokens: int
    wanted_ctx: int
    wanted_tokens: int
    options: MemoryOptions

    def lines(self) -> list[str]:
        """The arithmetic, for --verbose."""
        names = ("total", "free", "weights", "mapped", "cache", "workspace", "margin", "left")
        table = [["MiB", *names]]
        table += [[str(d.device), *(f"{getattr(d, name) / MIB:.1f}" for name in names)] for d in self.devices]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(pairs))
            for pairs in (zip(row, widths, strict=True) for row in table)
        ]
        options = self.options
        for group in self.groups:
            kind = f"a window of {group.window}" if group.window else "no window"
            host = f", {group.n_host_pages} on the host" if group.n_host_pages else ""
            lines.append(
                f"cache, {len(group.layers)} layers with {kind}: {group.n_pages} pages of {PAGE_SIZE} tokens, "
                f"{group.page_bytes / 2**10:.1f} KiB each (keys {options.k_type}, values {options.v_type}){host}"
            )
        lines.append(
            f"room for {self.pool_tokens} tokens; in one sequence {self.n_ctx}, sequences at a time {options.max_seqs}"
        )
        if self.n_ctx < self.wanted_ctx:
            lines.append(f"the model's context of {self.wanted_ctx} tokens does not fit, {self.n_ctx} do")
        elif self.pool_tokens < self.wanted_tokens:
            lines.append(f"{options.max_seqs} sequences of {self.n_ctx} tokens do not fit at a time")
        return lines


def plan_memory(
    source: ModelSource,
    config: ModelConfig,
    plan: Plan,
    options: MemoryOptions,
    devices: Mapping[torch.device, DeviceInfo],
    moved: Moved | None = None,
) -> MemoryPlan:
    """How the free memory is divided; devices: those of the plan, and the CPU.

    moved: what would be planned with so many layers on a GPU; without it there is no advice on that.

    ValueError where not even one sequence fits, of n_ctx tokens or, without n_ctx, of 4096: it says what would fit.
    """
    problem = _Problem(source, config, plan, options, devices, moved)
    found = problem.solve()
    if found is None:
        raise ValueError(_complaint(problem))
    return found


@dataclass(frozen=True)
class _Problem:
    """Everything that a plan depends on; variants of it are tried for advice."""

    source: ModelSource
    config: ModelConfig
    plan: Plan
    options: MemoryOptions
    devices: Mapping[torch.device, DeviceInfo]
    moved: Moved | None

    @cached_property
    def weights(self) -> dict[torch.device, WeightBytes]:
        return weight_bytes(self.source, self.plan, use_mmap=self.options.use_mmap)

    @cached_property
    def groups(self) -> tuple[tuple[CacheGroup, dict[torch.device, int]], ...]:
        """Each group with a page's bytes on each device."""
        o = self.options
        return tuple(
            (group, group_page_bytes(self.config, group, self.plan, o.k_type, o.v_type))
            for group in cache_groups(self.config)
        )

    @cached_property
    def n_vocab(self) -> int:
        embedding = self.source.tensors.get("token_embd.weight")
        return embedding.shape[-2] if embedding and len(embedding.shape) > 1 else 0

    @cached_property
    def largest_matrix(self) -> int:
        return max((prod(t.shape[-2:]) for t in self.source.tensors.values() if len(t.shape) > 1), default=0)

    @property
    def n_ctx(self) -> int:
        """The context that is wanted."""
        return self.options.n_ctx or self.config.n_ctx_train

    @property
    def wanted(self) -> int:
        """The pages that are wanted for layers without a window."""
        pool = self.options.pool_tokens
        return self.options.max_seqs * n_pages(self.n_ctx) if pool is None else n_pages(pool)

    @property
    def least_ctx(self) -> int:
        """The context without which there is no plan."""
        return self.options.n_ctx or min(self.n_ctx, ENOUGH_TOKENS)

    @property
    def required(self) -> int:
        """The pages without which there is no plan."""
        return self.wanted if self.options.pool_tokens is not None else n_pages(self.least_ctx)

    @property
    def most(self) -> int:
        """The pages that can be counted, beside page 0."""
        if all(self.config.sliding) or all(device.type != "cuda" for device in self.plan.layer_devices):
            return self.wanted
        return min(self.wanted, MAX_PLANE_VALUES // (PAGE_SIZE * self.config.n_kv_heads * self.config.head_dim) - 1)

    def group_pages(self, window: int, pages: int, n_seqs: int, spare: bool) -> int:
        """A group's pages, when layers without a window get `pages`.

        A window of w tokens needs w + n_batch tokens and two pages that are partly used, for each of n_seqs sequences;
        as much again if idle prefixes are to stay; never more than a layer without a window.
        """
        if window:
            each = n_pages(window + self.options.n_batch) + 2
            pages = min(pages, n_seqs * each * (2 if spare else 1))
        return pages + 1

    def usage(self, pages: int, n_seqs: int, spare: bool) -> Iterator[DeviceMemory]:
        """What every device then has to hold."""
        o = self.options
        step = StepShape(o.n_batch, o.max_seqs, min(self.n_ctx, pages * PAGE_SIZE), o.fused_attention)
        for device, weights in self.weights.items():
            info = self.devices[device]
            cache = sum(
                self.group_pages(group.window, pages, n_seqs, spare) * sizes.get(device, 0)
                for group, sizes in self.groups
            )
            yield DeviceMemory(
                device=device,
                total=info.total_bytes or ASSUMED_BYTES,
                free=info.free_bytes if info.total_bytes else ASSUMED_BYTES,
                weights=weights.total,
                mapped=weights.mapped,
                cache=cache,
                workspace=step_bytes(self.config, self.plan, device, self.n_vocab, self.largest_matrix, step),
                margin=0 if device.type == "cpu" else o.margin_bytes,
            )

    def largest(self, n_seqs: int, spare: bool) -> int:
        """The most pages that fit, 0 for none."""
        return _last(lambda n: all(d.fits for d in self.usage(n, n_seqs, spare)), self.most)

    def solve(self) -> MemoryPlan | None:
        """All that is wanted, with room for the idle prefixes of windows; or without; or with windows for fewer
        sequences, so that one whole context fits; or what fits of one."""
        if self.most < self.required:
            return None
        n_seqs = self.options.max_seqs
        spare = self.largest(n_seqs, True) >= self.wanted
        if not spare:
            whole = max(self.required, min(self.wanted, n_pages(self.n_ctx)))
            n_seqs = _last(lambda n: self.largest(n, False) >= whole, n_seqs) or 1
        pages = self.largest(n_seqs, spare)
        return self._plan(pages, n_seqs, spare) if pages >= self.required else None

    def _plan(self, pages: int, n_seqs: int, spare: bool) -> MemoryPlan | None:
        o = self.options
        n_ctx = min(self.n_ctx, pages * PAGE_SIZE)
        if n_ctx < o.n_ctx:
            return None
        devices = tuple(self.usage(pages, n_seqs, spare))
        n_host = self._host_pages(devices)
        groups = tuple(
            GroupMemory(
                window=group.window,
                layers=group.layers,
                n_pages=self.group_pages(group.window, pages, n_seqs, spare),
                n_host_pages=n_host,
                page_bytes=sum(sizes.values()),
            )
            for group, sizes in self.groups
        )
        return MemoryPlan(devices, groups, n_ctx, pages * PAGE_SIZE, self.n_ctx, self.wanted * PAGE_SIZE, o)

    def _host_pages(self, devices: tuple[DeviceMemory, ...]) -> int:
        """Pages of each group that the host holds: as many tokens in all groups, at most half of the memory left."""
        host = self.devices[torch.device("cpu")]
        here = [d.left for d in devices if d.device.type == "cpu"]
        left = here[0] if here else host.free_bytes if host.total_bytes else ASSUMED_BYTES
        wanted = min(self.options.cache_ram_bytes, left // 2)
        return wanted // sum(sum(sizes.values()) for _, sizes in self.groups)


def _last(holds: Callable[[int], bool], high: int) -> int:
    """The largest n of 1 … high for which it holds, as it does for all smaller ones; 0 for none."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _complaint(problem: _Problem) -> str:
    """What does not fit, and what would."""
    o = problem.options
    pages = problem.required
    what = f"a cache of {o.pool_tokens} tokens" if o.pool_tokens else f"a context of {problem.least_ctx} tokens"
    if o.pool_tokens and o.pool_tokens < o.n_ctx:
        return f"a cache of {o.pool_tokens} tokens cannot hold a context of {o.n_ctx}"
    if problem.most < pages:
        text = f"{what} has more values in a layer than can be counted on a GPU, at most {problem.most * PAGE_SIZE} fit"
    else:
        worst = min(problem.usage(pages, 1, False), key=lambda d: (d.fits, d.left))
        half = ", of which the cache may have half" if worst.left >= 0 else ""
        text = (
            f"{what} does not fit: {worst.device} has {worst.free // MIB} MiB free{half}, and it takes "
            f"{-(-worst.needed // MIB)} MiB: weights {_mib(worst.weights - worst.mapped)}, cache {_mib(worst.cache)}, "
            f"workspace {_mib(worst.workspace)}, margin {_mib(worst.margin)}"
        )
    advice = list(_advice(problem))
    return f"{text}. " + ("What fits: " + "; or ".join(advice) if advice else "No option alone makes it fit")


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f}"


def _advice(problem: _Problem) -> Iterator[str]:
    """Options each of which makes the plan possible by itself."""
    o, plan = problem.options, problem.plan

    def fits(**changes: object) -> bool:
        return replace(problem, options=replace(o, **changes)).solve() is not None  # type: ignore[arg-type]

    if o.pool_tokens is None:
        steps = (problem.least_ctx - 1) // CTX_STEP
        if n := _last(lambda n: fits(n_ctx=n * CTX_STEP), steps):
            yield f"-c {n * CTX_STEP}"
    elif n := _last(lambda n: fits(pool_tokens=n * PAGE_SIZE), problem.wanted - 1):
        yield f"a cache of {n * PAGE_SIZE} tokens"
    if names := [name for name in _smaller_types(problem) if fits(k_type=name, v_type=name)]:
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        yield f"-ctk {names[0]} -ctv {names[0]}{others}"
    if n := _last(lambda n: fits(max_seqs=n), o.max_seqs - 1):
        yield f"-np {n}"
    if n := _last(lambda n: fits(n_batch=n), o.n_batch - 1):
        yield f"-b {n}"
    n_gpu = sum(d.type != "cpu" for d in (*plan.layer_devices, plan.output_device))
    for n in range(n_gpu - 1, -1, -1):
        if problem.moved is None:
            break
        moved, wanted = problem.moved(n)
        if replace(problem, plan=moved, options=wanted).solve() is not None:
            yield f"-ngl {n}"
            break
    if plan.weight_dtype is not None and replace(problem, plan=replace(plan, weight_dtype=None)).solve() is not None:
        yield "--dequantize off"


def _smaller_types(problem: _Problem) -> list[str]:
    """Cache types with fewer bits than the present ones, largest first, that the heads allow."""
    o, head_dim = problem.options, problem.config.head_dim
    bits = max(CACHE_TYPES[o.k_type].bits_per_value, CACHE_TYPES[o.v_type].bits_per_value)
    names = []
    for kind in sorted(CACHE_TYPES.values(), key=lambda t: -t.bits_per_value):
        # The kernels read 16 values of fp8 at a time.
        if kind.bits_per_value < bits and head_dim % (16 if kind.name == "fp8" else 1 if kind.dtype else 32) == 0:
            names.append(kind.name)
    return names
