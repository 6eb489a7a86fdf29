"""Thread options and what becomes of them on machines that are laid out in folders."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from naiad.runtime import llm
from naiad.runtime.cli import model_options
from naiad.runtime.cli.options import UsageError
from naiad.runtime.cli.run import PARSER
from naiad.runtime.cli.thread_options import thread_options
from naiad.runtime.machine import Machine, this_machine
from naiad.runtime.threads import (
    MAX_THREADS,
    ThreadOptions,
    cpus_of_mask,
    cpus_of_range,
    plan_threads,
    set_priority,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and the scheduler are Linux'")


def test_masks() -> None:
    for text, cpus in (
        ("", []),
        ("0x0", []),
        ("5", [0, 2]),
        ("0xF0", [4, 5, 6, 7]),
        ("00a0", [5, 7]),
        ("1,0x8", [0, 3]),
        ("8" + "0" * 127, [511]),
        ("0" * 400 + "1", [0]),
    ):
        assert sorted(cpus_of_mask(text)) == cpus, text


@pytest.mark.parametrize("text", ["g", "-1", "0X1", "0x0x1", "1_0", " 1", "1 ", "+1", "٣", "1" + "0" * 128])
def test_bad_masks(text: str) -> None:
    with pytest.raises(ValueError, match="expected a mask"):
        cpus_of_mask(text)


def test_ranges() -> None:
    for text, cpus in (
        ("", []),
        ("2-4", [2, 3, 4]),
        ("3-3", [3]),
        ("-1", [0, 1]),
        ("510-", [510, 511]),
        ("0-1,4-5", [0, 1, 4, 5]),
    ):
        assert sorted(cpus_of_range(text)) == cpus, text
    assert len(cpus_of_range("-")) == MAX_THREADS


@pytest.mark.parametrize(
    "text", ["3", "4-2", "0-512", "512-", "a-b", "1-2-3", "0-1,", "1 - 2", "٣-٤", "0-" + "9" * 5000]
)
def test_bad_ranges(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a .*range of CPUs"):
        cpus_of_range(text)


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"n_threads": 513}, "n_threads must be at most 512, found 513"),
    ({"n_threads_batch": 4096}, "n_threads_batch must be at most 512, found 4096"),
    ({"poll": 101}, "poll must be from 0 to 100, found 101"),
    ({"poll_batch": -1}, "poll_batch must be from 0 to 100, found -1"),
    ({"prio": -2}, "prio must be from -1 to 3, found -2"),
    ({"prio_batch": 4}, "prio_batch must be from -1 to 3, found 4"),
    ({"cpu_mask": "xyz"}, "cpu_mask: expected a mask in hexadecimal digits, found 'xyz'"),
    ({"cpu_range_batch": "7"}, "cpu_range_batch: expected a range of CPUs, lo-hi, found '7'"),
    ({"numa": "mirror"}, "numa must be one of distribute, isolate, numactl, found 'mirror'"),
]


@pytest.mark.parametrize(
    ("fields", "message"), BAD_OPTIONS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else None
)
def test_bad_options(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ThreadOptions(**fields)
    assert str(error.value) == message


# ---- machines ---------------------------------------------------------------------------------------------------


@pytest.fixture
def laid_out(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def lay_out(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return lay_out


def siblings(pairs: list[tuple[int, ...]], name: str = "thread_siblings_list") -> dict[str, str]:
    """Files that tell which CPUs share a core."""
    return {
        f"sys/devices/system/cpu/cpu{cpu}/topology/{name}": ",".join(map(str, pair)) for pair in pairs for cpu in pair
    }


def running_on(cpu: int) -> dict[str, str]:
    return {"proc/self/stat": f"17 (a ) b (c) R 1 {' '.join(['0'] * 34)} {cpu} 0 0"}


NODES = {"sys/devices/system/node/node0/cpulist": "0-1,4-5", "sys/devices/system/node/node1/cpulist": "2-3,6-7"}
# Two nodes of two cores of two threads.
LARGE = siblings([(0, 4), (1, 5), (2, 6), (3, 7)]) | NODES | running_on(6)
V2 = {"proc/self/cgroup": "0::/a/b"}

# files, CPUs that the process may use, then what is found: cores, nodes, the node it runs on, quota, useful threads.
MACHINES: list[tuple[str, dict[str, str], range | list[int], tuple[Any, ...]]] = [
    ("nothing is told", {}, range(3), (((0,), (1,), (2,)), ((0, 1, 2),), 0, None, 3)),
    (
        "two nodes",
        LARGE,
        range(8),
        (((0, 4), (1, 5), (2, 6), (3, 7)), ((0, 1, 4, 5), (2, 3, 6, 7)), 1, None, 4),
    ),
    ("a part of it", LARGE, [1, 4, 5], (((1, 5), (4,)), ((1, 4, 5),), 0, None, 2)),
    ("the newer name", siblings([(0, 1)], "core_cpus_list"), range(2), (((0, 1),), ((0, 1),), 0, None, 1)),
    (
        "a node without CPUs, ten of them in order",
        {f"sys/devices/system/node/node{i}/cpulist": "" if i == 1 else str(9 - i) for i in (0, 1, 2, 9)}
        | running_on(7),
        [0, 7, 9],
        (((0,), (7,), (9,)), ((9,), (7,), (0,)), 1, None, 3),
    ),
    (
        "efficiency cores",
        siblings([(0, 1), (2, 3)]) | {"sys/devices/cpu_atom/cpus": "4-7"},
        range(8),
        (((0, 1), (2, 3)), (tuple(range(8)),), 0, None, 2),
    ),
    ("only such", {"sys/devices/cpu_atom/cpus": "4-7"}, [5, 6], (((5,), (6,)), ((5, 6),), 0, None, 2)),
    (
        "a quota of the group above",
        V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "250000 100000"},
        range(4),
        (((0,), (1,), (2,), (3,)), ((0, 1, 2, 3),), 0, 2.5, 2),
    ),
    (
        "less than a CPU, in a container that names the groups outside of it",
        {"proc/self/cgroup": "0::/../other", "sys/fs/cgroup/cpu.max": "50000 100000"},
        range(2),
        (((0,), (1,)), ((0, 1),), 0, 0.5, 1),
    ),
    (
        "version 1",
        {
            "proc/self/cgroup": "9:cpuset:/x\n4:cpu,cpuacct:/y\n1:name=systemd:/",
            "sys/fs/cgroup/cpuset/x/cpu.cfs_quota_us": "1",
            "sys/fs/cgroup/cpuset/x/cpu.cfs_period_us": "1",
            "sys/fs/cgroup/cpu,cpuacct/y/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu,cpuacct/y/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        range(4),
        (((0,), (1,), (2,), (3,)), ((0, 1, 2, 3),), 0, 3.0, 3),
    ),
    (
        "damaged files",
        {
            "proc/self/cgroup": "garbage\n0::/a",
            "sys/fs/cgroup/a/cpu.max": "100000 0",
            "sys/fs/cgroup/cpu.max": "many few",
            "proc/self/stat": "1 (x",
        },
        range(2),
        (((0,), (1,)), ((0, 1),), 0, None, 2),
    ),
]


@pytest.mark.parametrize(("files", "allowed", "expected"), [m[1:] for m in MACHINES], ids=[m[0] for m in MACHINES])
def test_machines(
    laid_out: Callable[[dict[str, str]], Path],
    files: dict[str, str],
    allowed: range | list[int],
    expected: tuple[Any, ...],
) -> None:
    machine = this_machine(laid_out(files), "linux", allowed)
    found = machine.cores, machine.nodes, machine.node, machine.quota, machine.n_cores(machine.cpus)
    assert found == expected
    assert machine.cpus == tuple(allowed)
    assert machine.can_place


def test_other_systems() -> None:
    """Apple's processors have two kinds of cores; Windows only says how many CPUs there are."""
    apple = this_machine(platform="darwin", allowed=range(10), sysctl={"hw.perflevel0.physicalcpu": 6}.get)
    intel = this_machine(platform="darwin", allowed=range(8), sysctl={"hw.physicalcpu": 4}.get)
    windows = this_machine(platform="win32", allowed=range(12))
    assert [m.n_cores(m.cpus) for m in (apple, intel, windows)] == [6, 4, 12]
    for machine in (apple, intel, windows):
        assert not machine.can_place
        assert plan_threads(ThreadOptions(poll=3), machine).decode.masks == ()
        for options, message in (
            (ThreadOptions(cpu_mask="1"), "a CPU mask or range needs threads that can be bound"),
            (ThreadOptions(cpu_range_batch="0-1"), "a CPU mask or range needs threads that can be bound"),
            (ThreadOptions(numa="distribute"), "numa needs threads that can be bound"),
            (ThreadOptions(prio=2), "prio must be 0 on this system, which has no priorities for threads, found 2"),
        ):
            with pytest.raises(ValueError, match=message):
                plan_threads(options, machine)


@linux
def test_the_machine_that_this_runs_on() -> None:
    machine = this_machine()
    assert set(machine.cpus) == os.sched_getaffinity(0)
    assert 1 <= plan_threads(ThreadOptions()).decode.n_threads <= len(machine.cpus)
    assert machine.nodes[machine.node]


# ---- plans ------------------------------------------------------------------------------------------------------

MACHINE = Machine(tuple(range(8)), ((0, 4), (1, 5), (2, 6), (3, 7)), ((0, 1, 4, 5), (2, 3, 6, 7)), node=1)
ALL, NODE_0, NODE_1 = MACHINE.cpus, *MACHINE.nodes

# options, then the number of threads and their masks.
PLANS: list[tuple[dict[str, Any], int, tuple[tuple[int, ...], ...]]] = [
    ({}, 4, ()),
    ({"n_threads": 3}, 3, ()),
    ({"n_threads": 0}, 8, ()),
    ({"n_threads": -1}, 8, ()),
    ({"cpu_strict": True}, 4, ()),
    ({"cpu_mask": "0x0"}, 4, ()),
    ({"cpu_mask": "0x33"}, 2, ((0, 1, 4, 5),) * 2),
    ({"cpu_mask": "1", "cpu_range": "6-"}, 3, ((0, 6, 7),) * 3),
    ({"cpu_range": "5-", "cpu_strict": True}, 3, ((5,), (6,), (7,))),
    ({"cpu_range": "7-9", "n_threads": 1, "cpu_strict": True}, 1, ((7,),)),
    ({"numa": "distribute"}, 4, (NODE_0, NODE_1) * 2),
    ({"numa": "distribute", "n_threads": 3, "cpu_strict": True}, 3, ((0,), (2,), (1,))),
    ({"numa": "distribute", "cpu_mask": "0x7"}, 3, ((0, 1), (2,), (0, 1))),
    ({"numa": "distribute", "cpu_mask": "0x3"}, 2, ((0, 1),) * 2),
    ({"numa": "isolate"}, 2, (NODE_1,) * 2),
    ({"numa": "isolate", "cpu_mask": "0xc", "cpu_strict": True}, 2, ((2,), (3,))),
    ({"numa": "numactl", "n_threads": 1}, 1, (ALL,)),
]


@pytest.mark.parametrize(("fields", "n_threads", "masks"), PLANS, ids=lambda v: str(v) if isinstance(v, dict) else "")
def test_plans(fields: dict[str, Any], n_threads: int, masks: tuple[tuple[int, ...], ...]) -> None:
    plans = plan_threads(ThreadOptions(**fields), MACHINE)
    assert (plans.decode.n_threads, plans.decode.masks) == (n_threads, masks)
    assert plans.batch == plans.decode


def test_numa_means_nothing_on_one_node() -> None:
    one = replace(MACHINE, nodes=(ALL,), node=0)
    for mode in ("distribute", "isolate", "numactl"):
        plan = plan_threads(ThreadOptions(numa=mode), one).decode
        assert (plan.n_threads, plan.masks) == (4, ())


@pytest.mark.parametrize(
    "fields", [{"cpu_mask": "0x300"}, {"cpu_range": "8-"}, {"numa": "isolate", "cpu_mask": "0x33"}], ids=str
)
def test_masks_without_a_usable_cpu(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must name some of the CPUs (0-7|2-3,6-7), found (8-9|8-511|0-1,4-5)$"):
        plan_threads(ThreadOptions(**fields), MACHINE)


def test_more_threads_than_their_cpus_are_noted() -> None:
    with pytest.warns(UserWarning, match="3 threads share the 2 CPUs"):
        plan = plan_threads(ThreadOptions(n_threads=3, cpu_mask="5", cpu_strict=True), MACHINE).decode
    assert plan.masks == ((0,), (2,), (0,))


def test_prompts_have_options_of_their_own() -> None:
    """Each of them; what is not given is as it is elsewhere, a mask and a range together."""
    base = ThreadOptions(n_threads=2, cpu_mask="3", cpu_strict=True, poll=10, prio=1, numa="numactl")
    for changes, expected in (
        ({}, base),
        ({"n_threads_batch": 1}, replace(base, n_threads=1)),
        ({"n_threads_batch": 0, "cpu_mask_batch": ""}, replace(base, n_threads=0, cpu_mask="")),
        ({"cpu_range_batch": "4-7"}, replace(base, cpu_mask="", cpu_range="4-7")),
        (
            {"cpu_strict_batch": False, "poll_batch": 0, "prio_batch": 0},
            replace(base, cpu_strict=False, poll=0, prio=0),
        ),
    ):
        options: ThreadOptions = replace(base, **changes)
        plans = plan_threads(options, MACHINE)
        assert plans.decode == plan_threads(base, MACHINE).decode
        assert plans.batch == plan_threads(expected, MACHINE).decode
        assert (plans.batch == plans.decode) == (expected == base)


@linux
@pytest.mark.parametrize(("prio", "policy"), [(-1, "SCHED_BATCH"), (1, "SCHED_FIFO"), (3, "SCHED_FIFO")])
def test_priorities(monkeypatch: pytest.MonkeyPatch, prio: int, policy: str) -> None:
    calls: list[tuple[int, int, int]] = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda *a: calls.append((a[0], a[1], a[2].sched_priority)))
    set_priority(0)
    assert not calls
    set_priority(prio)
    assert calls == [(0, getattr(os, policy), {-1: 0, 1: 40, 3: 90}[prio])]

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.warns(UserWarning, match=f"{prio} is not permitted: Operation not permitted"):
        set_priority(prio)


# ---- options ----------------------------------------------------------------------------------------------------

ACCEPTED: list[tuple[str, ThreadOptions]] = [
    ("", ThreadOptions()),
    ("-t 3 -tb 5", ThreadOptions(n_threads=3, n_threads_batch=5)),
    ("--threads 0 --threads-batch -1", ThreadOptions(n_threads=0, n_threads_batch=-1)),
    ("-C 0xF -Cr 8-9 --cpu-strict 1", ThreadOptions(cpu_mask="0xF", cpu_range="8-9", cpu_strict=True)),
    ("--cpu-mask f --cpu-range -3 --cpu-strict 0", ThreadOptions(cpu_mask="f", cpu_range="-3")),
    ("-Cr 0-1 -Cr 4-5", ThreadOptions(cpu_range="0-1,4-5")),
    ("--poll 0 --prio -1", ThreadOptions(poll=0, prio=-1)),
    (
        "-Cb 3 -Crb 4- --cpu-strict-batch 0 --poll-batch 1 --prio-batch 3",
        ThreadOptions(cpu_mask_batch="3", cpu_range_batch="4-", cpu_strict_batch=False, poll_batch=1, prio_batch=3),
    ),
    ("--cpu_mask_batch 3 --cpu-range-batch 0-0", ThreadOptions(cpu_mask_batch="3", cpu_range_batch="0-0")),
    ("--numa isolate", ThreadOptions(numa="isolate")),
]


@pytest.mark.filterwarnings("ignore:.*given more than once")
@pytest.mark.parametrize(("arguments", "expected"), ACCEPTED, ids=[text for text, _ in ACCEPTED])
def test_accepted_options(arguments: str, expected: ThreadOptions) -> None:
    assert thread_options(PARSER.parse(arguments.split(), {})) == expected


def test_options_from_the_environment() -> None:
    values = PARSER.parse([], {"LLAMA_ARG_THREADS": "7", "LLAMA_ARG_NUMA": ""})
    assert thread_options(values) == ThreadOptions(n_threads=7, numa="distribute")
    with pytest.raises(UsageError, match="LLAMA_ARG_THREADS: expected an integer, found 'many'"):
        PARSER.parse([], {"LLAMA_ARG_THREADS": "many"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-t 513", "-t: expected an integer from -2147483648 to 512, found 513"),
        ("-tb x", "-tb: expected an integer, found 'x'"),
        ("-C 0xZ", "-C: expected a mask in hexadecimal digits, found '0xZ'"),
        ("-Cb -", "-Cb: expected a mask in hexadecimal digits, found '-'"),
        ("-Cr 5", "-Cr: expected a range of CPUs, lo-hi, found '5'"),
        ("-Crb 3-1", "-Crb: expected a rising range of CPUs below 512, found '3-1'"),
        ("--cpu-strict yes", "--cpu-strict: expected on or off, 1 or 0, found 'yes'"),
        ("--poll 101", "--poll: expected an integer from 0 to 100, found 101"),
        ("--poll-batch -1", "--poll-batch: expected an integer from 0 to 100, found -1"),
        ("--prio 4", "--prio: expected an integer from -1 to 3, found 4"),
        ("--prio-batch low", "--prio-batch: expected an integer, found 'low'"),
        ("--numa mirror", "--numa: expected one of distribute, isolate, numactl, found 'mirror'"),
    ],
)
def test_refused_options(arguments: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        PARSER.parse(arguments.split(), {})
    assert str(error.value) == message


def test_a_model_is_loaded_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "LLM", lambda path, **fields: fields)
    fields: Any = model_options.load_llm(PARSER.parse(["-t", "2", "-Crb", "1-2", "--prio-batch", "1"], {}))
    assert fields["threads"] == ThreadOptions(n_threads=2, cpu_range_batch="1-2", prio_batch=1)
    assert "n_threads" not in fields
