"""Memory planning for machines that are not here; all advice is followed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_models import (
    CPU,
    GEMMA,
    GIB,
    GPU,
    LLAMA,
    MANY_HEADS,
    MISTRAL,
    MIXTRAL,
    TINY,
    Shape,
    machine,
    options,
    with_gpu_layers,
)

from naiad.runtime.defaults import MIB
from naiad.runtime.devices import DeviceInfo
from naiad.runtime.footprint import n_pages
from naiad.runtime.memory import MemoryOptions, MemoryPlan, Moved, plan_memory
from naiad.runtime.model import Plan

# Shape, -ngl, free MiB on the GPU, n_ctx, max_seqs -> pages of each group (page 0 included), the longest sequence.
PLANS: list[tuple[Shape, int | None, int, int, int, list[int], int]] = [
    # 8 x 8192 tokens of 128 KiB are 8 GiB.
    (LLAMA, None, 80 * 1024, 0, 8, [8 * 256 + 1], 8192),
    (LLAMA, None, 80 * 1024, 100, 3, [3 * 4 + 1], 100),
    (LLAMA, 0, 0, 0, 8, [8 * 256 + 1], 8192),
    (MIXTRAL, None, 80 * 1024, 4096, 4, [4 * 128 + 1], 4096),
    # Windows of 1024 and steps of 512 take 48 pages and two more, as much again for what idles.
    (GEMMA, None, 400 * 1024, 0, 2, [2 * 4096 + 1, 2 * 2 * 50 + 1], 131072),
    # Never more than without a window.
    (GEMMA, None, 400 * 1024, 1024, 2, [2 * 32 + 1, 2 * 32 + 1], 1024),
    (MISTRAL, None, 80 * 1024, 0, 4, [4 * 2 * 146 + 1], 32768),
    # 2^31 values are 524288 tokens of 4096.
    (MANY_HEADS, None, 10**6, 4096, 200, [16382 + 1], 4096),
]


@pytest.mark.parametrize(("shape", "n_gpu", "gpu", "n_ctx", "max_seqs", "expected", "longest"), PLANS)
def test_plans(
    shape: Shape, n_gpu: int | None, gpu: int, n_ctx: int, max_seqs: int, expected: list[int], longest: int
) -> None:
    plan = plan_memory(shape.source, shape.config, shape.plan(n_gpu), options(n_ctx, max_seqs), machine(gpu))
    assert [group.n_pages for group in plan.groups] == expected
    assert plan.n_ctx == longest
    assert all(group.n_host_pages == 0 for group in plan.groups)
    check(plan)


def check(plan: MemoryPlan) -> None:
    """What holds for every plan."""
    for device in plan.devices:
        assert device.needed + device.left == device.free and device.left >= 0
        assert device.needed == device.weights - device.mapped + device.cache + device.workspace + device.margin
        if device.device.type == "cpu":
            assert device.margin == 0 and device.cache <= device.free // 2
    assert plan.groups[0].window > 0 or plan.groups[0].n_pages == n_pages(plan.pool_tokens) + 1
    assert all(1 < group.n_pages <= n_pages(plan.pool_tokens) + 1 for group in plan.groups)
    assert 1 <= plan.n_ctx <= plan.pool_tokens <= plan.wanted_tokens


def test_a_small_gpu_holds_fewer_tokens_than_wanted() -> None:
    plan = plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(), options(0, 64), machine(gpu=16 * 1024))
    (device,), (group,) = plan.devices, plan.groups
    check(plan)
    assert group.n_pages == (device.free - device.weights - device.workspace - device.margin) // (4 * MIB)
    assert plan.n_ctx == 8192 and "64 sequences of 8192 tokens do not fit at a time" in plan.lines()


def test_a_long_context_of_the_model_is_cut_to_what_fits_but_one_that_is_asked_for_is_not() -> None:
    shape = replace(LLAMA, n_ctx=2**20)
    plan = plan_memory(shape.source, shape.config, shape.plan(), options(), machine(gpu=16 * 1024))
    check(plan)
    assert 4096 < plan.n_ctx == plan.pool_tokens < 2**20
    assert f"the model's context of {2**20} tokens does not fit, {plan.n_ctx} do" in plan.lines()
    with pytest.raises(ValueError, match=r"a context of 1048576 tokens does not fit: cuda:0 has 16384 MiB free"):
        plan_memory(shape.source, shape.config, shape.plan(), options(2**20), machine(gpu=16 * 1024))


def test_windows_give_way_to_a_whole_context() -> None:
    shape = replace(GEMMA, n_ctx=65536)
    plan = plan_memory(shape.source, shape.config, shape.plan(), options(65536, 64), machine(gpu=26 * 1024))
    check(plan)
    full, sliding = plan.groups
    assert plan.n_ctx == 65536 <= plan.pool_tokens
    n_seqs, rest = divmod(sliding.n_pages - 1, 50)
    assert rest == 0 and 1 <= n_seqs < 64
    # With windows for one sequence more, a whole context would not fit.
    assert 50 * sliding.page_bytes > plan.devices[0].left + (full.n_pages - 2049) * full.page_bytes


def test_a_cpu_gives_half_of_its_memory() -> None:
    shape = replace(LLAMA, n_ctx=2**20)
    plan = plan_memory(shape.source, shape.config, shape.plan(0), options(), machine(cpu=64 * 1024))
    check(plan)
    assert 32 * GIB - 8 * MIB < plan.devices[0].cache <= 32 * GIB
    # A file that is larger than memory can be mapped all the same.
    assert plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(0), options(256, 1), machine(cpu=2048)).n_ctx == 256
    with pytest.raises(ValueError, match="No option alone makes it fit"):
        unmapped = options(256, 1, use_mmap=False)
        plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(0), unmapped, machine(cpu=2048))


def test_the_host_tier_is_bounded_by_its_option_and_by_half_of_what_is_left() -> None:
    for cpu, cache_ram, expected in ((64 * 1024, 8192, 8192), (64 * 1024, 10**9, 32 * 1024), (4096, 8192, 2048)):
        asked = options(cache_ram_bytes=cache_ram * MIB)
        plan = plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(), asked, machine(cpu=cpu))
        assert [group.n_host_pages for group in plan.groups] == [expected // 4]
    plan = plan_memory(GEMMA.source, GEMMA.config, GEMMA.plan(), options(cache_ram_bytes=GIB), machine())
    assert len({group.n_host_pages for group in plan.groups}) == 1
    assert 0 <= GIB - sum(group.n_host_pages * group.page_bytes for group in plan.groups) < 16 * MIB


def test_a_pool_of_a_size_of_its_own() -> None:
    plan = plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(), options(pool_tokens=1000), machine())
    assert (plan.groups[0].n_pages, plan.pool_tokens, plan.n_ctx) == (33, 1024, 1024)
    with pytest.raises(ValueError, match="a cache of 1000 tokens cannot hold a context of 2000"):
        plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(), options(2000, pool_tokens=1000), machine())
    with pytest.raises(
        ValueError, match=r"a cache of 900000 tokens does not fit.*What fits: a cache of (\d+) tokens"
    ) as e:
        plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(), options(pool_tokens=900000), machine())
    found = int(re.findall(r"a cache of (\d+) tokens", str(e.value))[-1])
    plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(), options(pool_tokens=found), machine())
    with pytest.raises(ValueError, match="does not fit"):
        plan_memory(LLAMA.source, LLAMA.config, LLAMA.plan(), options(pool_tokens=found + 32), machine())


HOSTILE: list[dict[str, int]] = [
    {"n_ctx": 2**62},
    {"n_ctx": 2**62, "window": 2**40, "pattern": 0},
    {"n_ctx": 2**62, "window": 5, "pattern": 2},
]


@pytest.mark.parametrize("changes", HOSTILE)
@pytest.mark.parametrize("n_gpu", [0, None])
def test_hostile_sizes_stay_within_free_memory(changes: dict[str, int], n_gpu: int | None) -> None:
    shape = replace(TINY, **changes)  # type: ignore[arg-type]
    plan = plan_memory(shape.source, shape.config, shape.plan(n_gpu), options(0, 64), machine(gpu=4096, cpu=4096))
    check(plan)
    assert all(device.needed <= 4 * GIB for device in plan.devices)
    with pytest.raises(ValueError, match=r"a context of 4611686018427387904 tokens"):
        plan_memory(shape.source, shape.config, shape.plan(n_gpu), options(2**62), machine(gpu=4096, cpu=4096))


@pytest.mark.parametrize(
    ("name", "value"), [("n_ctx", -1), ("n_batch", 0), ("max_seqs", 0), ("cache_ram_bytes", -1), ("pool_tokens", 0)]
)
def test_impossible_options(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        replace(options(), **{name: value})  # type: ignore[arg-type]


def test_lines_add_up_and_are_aligned() -> None:
    plan = plan_memory(MIXTRAL.source, MIXTRAL.config, MIXTRAL.plan(20), options(4096), machine())
    head, *rows = [line for line in plan.lines() if line.startswith(("MiB", "cpu", "cuda"))]
    assert len({len(line) for line in (head, *rows)}) == 1
    assert head.split() == ["MiB", "total", "free", "weights", "mapped", "cache", "workspace", "margin", "left"]
    assert [row.split()[0] for row in rows] == ["cpu", "cuda:0"]
    for row in rows:
        _, free, weights, mapped, cache, workspace, margin, left = map(float, row.split()[1:])
        assert free == pytest.approx(weights - mapped + cache + workspace + margin + left, abs=0.4)
    assert (
        "cache, 32 layers with no window: 1025 pages of 32 tokens, 4096.0 KiB each (keys f16, values f16)"
        in plan.lines()
    )


def test_a_system_that_does_not_say_what_it_has_gets_a_guess() -> None:
    silent = {CPU: DeviceInfo(CPU, "", 0, 0)}
    plan = plan_memory(replace(LLAMA, n_ctx=2**20).source, LLAMA.config, LLAMA.plan(0), options(0, 999), silent)
    assert 0 < plan.devices[0].cache <= 4 * GIB


def _fits(shape: Shape, plan: Plan, wanted: MemoryOptions, devices: Mapping[torch.device, DeviceInfo]) -> bool:
    try:
        check(plan_memory(shape.source, shape.config, plan, wanted, devices))
    except ValueError:
        return False
    return True


def moved(shape: Shape, plan: Plan, wanted: MemoryOptions, devices: Mapping[torch.device, DeviceInfo]) -> Moved:
    """Fewer layers on a GPU; with none there, weights are decoded if that takes no more than 60 % of what is free."""

    def planned(n_gpu: int) -> tuple[Plan, MemoryOptions]:
        n_weights = sum(t.n_elements for t in shape.source.tensors.values() if len(t.shape) > 1)
        dtype = torch.float32 if n_weights <= 2**26 else torch.bfloat16
        decodes = n_gpu == 0 and n_weights * dtype.itemsize <= 0.6 * devices[CPU].free_bytes
        form = dtype if decodes else plan.weight_dtype
        return replace(with_gpu_layers(plan, n_gpu, GPU), weight_dtype=form), wanted

    return planned


def _followed(
    shape: Shape, plan: Plan, wanted: MemoryOptions, devices: Mapping[torch.device, DeviceInfo], message: str
) -> int:
    """Follows every piece of advice of a message; how many there were."""

    def fits(plan: Plan, wanted: MemoryOptions) -> bool:
        return _fits(shape, plan, wanted, devices)

    n = 0
    if found := re.search(r"-c (\d+)", message):
        n_ctx, n = int(found[1]), n + 1
        assert n_ctx % 256 == 0 and fits(plan, replace(wanted, n_ctx=n_ctx))
        least = wanted.n_ctx or min(shape.n_ctx, 4096)
        assert n_ctx + 256 >= least or not fits(plan, replace(wanted, n_ctx=n_ctx + 256))
    if found := re.search(r"-ctk (\w+) -ctv (\w+)(?: \(or ([^)]*)\))?", message):
        assert found[1] == found[2]
        for kind in [found[1], *(found[3] or "").split(", ")]:
            if kind:
                n += 1
                assert fits(plan, replace(wanted, k_type=kind, v_type=kind)), kind
    if found := re.search(r"-ngl (\d+)", message):
        n_gpu, n = int(found[1]), n + 1
        assert fits(*moved(shape, plan, wanted, devices)(n_gpu))
    for option, name in (("-np", "max_seqs"), ("-b", "n_batch")):
        if found := re.search(rf"{option} (\d+)", message):
            n += 1
            most: dict[str, Any] = {name: int(found[1])}
            more: dict[str, Any] = {name: int(found[1]) + 1}
            assert fits(plan, replace(wanted, **most))
            assert not fits(plan, replace(wanted, **more))
    if "--dequantize off" in message:
        n += 1
        assert fits(replace(plan, weight_dtype=None), wanted)
    if found := re.search(r"What fits: a cache of (\d+) tokens", message):
        n += 1
        assert fits(plan, replace(wanted, pool_tokens=int(found[1])))
    assert ("What fits" in message) == (n > 0) == ("No option alone" not in message)
    return n


SHAPES = st.builds(
    Shape,
    n_layers=st.integers(1, 6),
    n_embd=st.sampled_from([256, 512]),
    n_ff=st.sampled_from([256, 1024]),
    n_heads=st.just(8),
    n_kv_heads=st.sampled_from([1, 2, 8]),
    head_dim=st.sampled_from([16, 64, 80, 128]),
    n_vocab=st.integers(10, 40000),
    fmt=st.sampled_from(["Q8_0", "F16", "BF16", "F32"]),
    window=st.sampled_from([0, 0, 100, 4096]),
    pattern=st.sampled_from([0, 1, 2, 6]),
    n_experts=st.sampled_from([0, 0, 4]),
    n_ctx=st.sampled_from([100, 2048, 32768, 2**20, 2**50]),
    softcap=st.sampled_from([0.0, 50.0]),
    tied=st.booleans(),
)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    shape=SHAPES,
    n_gpu=st.integers(0, 7),
    dtype=st.sampled_from([None, torch.bfloat16, torch.float32]),
    gpu=st.integers(1, 4000),
    cpu=st.integers(1, 4000),
    n_ctx=st.sampled_from([0, 1, 700, 5000, 100000, 2**40]),
    max_seqs=st.sampled_from([1, 4, 64]),
    kind=st.sampled_from(["f32", "f16"]),
    pool=st.sampled_from([None, None, None, 5000, 10**6]),
)
def test_advice_can_be_followed(
    shape: Shape,
    n_gpu: int,
    dtype: torch.dtype | None,
    gpu: int,
    cpu: int,
    n_ctx: int,
    max_seqs: int,
    kind: str,
    pool: int | None,
) -> None:
    devices = machine(gpu, cpu)
    wanted = options(n_ctx, max_seqs, kind, pool_tokens=pool, margin_bytes=100 * MIB)
    plan = shape.plan(min(n_gpu, shape.n_layers + 1), dtype)
    try:
        found = plan_memory(shape.source, shape.config, plan, wanted, devices, moved(shape, plan, wanted, devices))
    except ValueError as error:
        if "cannot hold a context" not in str(error):
            _followed(shape, plan, wanted, devices, str(error))
        return
    check(found)
    assert found.n_ctx >= (n_ctx or min(shape.n_ctx, 4096 if pool is None else pool))


ADVICE: list[tuple[Shape, int | None, dict[str, Any], int, str]] = [
    (LLAMA, None, {"n_ctx": 131072, "max_seqs": 1}, 16 * 1024, r"-c \d+; or -ctk q8_0 -ctv q8_0 .*; or -ngl 2\d$"),
    (LLAMA, None, {"n_ctx": 8192, "max_seqs": 1}, 4 * 1024, r"What fits: -ngl \d+$"),
    (
        MANY_HEADS,
        None,
        {"n_ctx": 10**6, "max_seqs": 1},
        10**6,
        r"than can be counted on a GPU, at most 524224 .*-c 524032",
    ),
    (
        LLAMA,
        0,
        {"n_ctx": 150000, "max_seqs": 1, "kind": "f32"},
        0,
        r"of which the cache may have half.*-c \d+; or -ctk",
    ),
]


@pytest.mark.parametrize(("shape", "n_gpu", "changes", "gpu", "pattern"), ADVICE)
def test_advice(shape: Shape, n_gpu: int | None, changes: dict[str, Any], gpu: int, pattern: str) -> None:
    wanted, plan, devices = options(**changes), shape.plan(n_gpu), machine(gpu)
    with pytest.raises(ValueError) as caught:
        plan_memory(shape.source, shape.config, plan, wanted, devices, moved(shape, plan, wanted, devices))
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert _followed(shape, plan, wanted, devices, message)


# Free MiB on the CPU, tokens -> whether -ngl 0 is a way out for a GPU that is too small for the output alone. Decoded,
# the weights take 15317 MiB, which is not done if it is more than 60 % of what is free.
WITHOUT_A_GPU = [
    (8192, 8192, True),
    (8192, 40000, False),
    (40000, 8192, True),
    (26000, 90000, False),
    (25000, 90000, True),
]


@pytest.mark.parametrize(("cpu", "n_ctx", "possible"), WITHOUT_A_GPU)
def test_everything_on_the_cpu_is_a_way_out(cpu: int, n_ctx: int, possible: bool) -> None:
    wanted, plan, devices = options(n_ctx, 1), LLAMA.plan(), machine(1100, cpu)
    with pytest.raises(ValueError) as caught:
        plan_memory(LLAMA.source, LLAMA.config, plan, wanted, devices, moved(LLAMA, plan, wanted, devices))
    assert ("-ngl 0" in str(caught.value)) == possible
    _followed(LLAMA, plan, wanted, devices, str(caught.value))
