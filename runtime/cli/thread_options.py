"""The options that say how many threads compute on the CPU and where they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..threads import MAX_THREADS, NUMA_MODES, POLL, ThreadOptions, cpus_of_mask, cpus_of_range
from .options import Option, integer, one_of, switch


def checked(parse: Callable[[str], object]) -> Callable[[str], str]:
    """A converter that leaves a text as it is if it can be parsed."""

    def convert(text: str) -> str:
        parse(text)
        return text

    return convert


def numa_mode(text: str) -> str:
    return one_of(*NUMA_MODES)(text or "distribute")


# Any number below 1 stands for every CPU.
count = integer(-(2**31), MAX_THREADS)

THREAD_OPTIONS = [
    Option(
        ("-t", "--threads"),
        "CPU threads, 0 for one per CPU; without it, one per physical core",
        count,
        "N",
        env="LLAMA_ARG_THREADS",
    ),
    Option(("-tb", "--threads-batch"), "threads for prompts; without it, as many as --threads", count, "N"),
    *(
        option
        for short, end, what in (("", "", "CPU threads"), ("b", "-batch", "threads for prompts"))
        for option in (
            Option(
                (f"-C{short}", f"--cpu-mask{end}"),
                f"CPUs of the {what}, a mask in hexadecimal digits of any length",
                checked(cpus_of_mask),
                "M",
                many=True,
            ),
            Option(
                (f"-Cr{short}", f"--cpu-range{end}"),
                f"CPUs of the {what}, beside those of --cpu-mask{end}",
                checked(cpus_of_range),
                "LO-HI",
                many=True,
            ),
            Option((f"--cpu-strict{end}",), f"whether each of the {what} has one CPU", switch, "0|1"),
            Option(
                (f"--prio{end}",),
                f"priority of the {what}: low (-1), normal (0), medium (1), high (2), realtime (3)",
                integer(-1, 3),
                "N",
            ),
            Option(
                (f"--poll{end}",),
                f"how long idle {what} look for work before they sleep, 0 to 100"
                + (f"; without it {POLL}" if not end else "; without it as --poll"),
                integer(0, 100),
                "N",
            ),
        )
    ),
    Option(
        ("--numa",),
        "on machines of several memory nodes, run threads on all of them (distribute), on that where the program "
        "started (isolate), or where numactl says (numactl)",
        numa_mode,
        "TYPE",
        env="LLAMA_ARG_NUMA",
    ),
]


def thread_options(values: Mapping[str, Any]) -> ThreadOptions:
    """The ThreadOptions that a command's options ask for."""

    def joined(key: str) -> str | None:
        return None if values[key] is None else ",".join(values[key])

    return ThreadOptions(
        n_threads=values["threads"],
        n_threads_batch=values["threads_batch"],
        cpu_mask=joined("cpu_mask") or "",
        cpu_range=joined("cpu_range") or "",
        cpu_strict=bool(values["cpu_strict"]),
        poll=POLL if values["poll"] is None else values["poll"],
        prio=values["prio"] or 0,
        cpu_mask_batch=joined("cpu_mask_batch"),
        cpu_range_batch=joined("cpu_range_batch"),
        cpu_strict_batch=values["cpu_strict_batch"],
        poll_batch=values["poll_batch"],
        prio_batch=values["prio_batch"],
        numa=values["numa"],
    )
