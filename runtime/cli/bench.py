"""`naiad bench`: llama-bench's tests, options and tables, on the engine.

pp: a prompt; tg: tokens one by one; pp+tg: both after one another; at a depth, all of it behind that many tokens.
"""

from __future__ import annotations

import math
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ...quant.cache_names import CACHE_TYPE_NAMES
from ..defaults import N_BATCH
from .bench_output import FORMATS, Markdown, Printer, Result
from .importing import importing
from .lists import layer_list, listed, number_list, pair, word_list
from .options import Option, Parser, integer, number, on_off_auto, one_of
from .timing import SPARE_TOKENS, Case, RandomTokens, measure

N_POSITIONAL = 0


def _list(names: tuple[str, ...], text: str, convert: Callable[[str], list[Any]]) -> Option:
    return Option(names, text, convert, "LIST", many=True)


# Each may have several values; what it has when there is none.
LISTS: list[tuple[Option, list[Any]]] = [
    (_list(("-m", "--model"), "GGUF files or safetensors folders (the demo model without it)", word_list(str)), [None]),
    (_list(("-p", "--n-prompt"), "tokens of a prompt (default: 512)", number_list(0)), [512]),
    (_list(("-n", "--n-gen"), "tokens to generate (default: 128)", number_list(0)), [128]),
    (_list(("-pg",), "PP,TG: a prompt and tokens to generate after it, timed together", pair), []),
    (_list(("-d", "--n-depth"), "tokens that are in the cache before (default: 0)", number_list(0)), [0]),
    (_list(("-b", "--batch-size"), f"prompt tokens per step (default: {N_BATCH})", number_list(1)), [N_BATCH]),
    (_list(("-ctk", "--cache-type-k"), "type of the cache's keys", word_list(one_of(*CACHE_TYPE_NAMES))), [None]),
    (_list(("-ctv", "--cache-type-v"), "type of its values", word_list(one_of(*CACHE_TYPE_NAMES))), [None]),
    (_list(("-t", "--threads"), "CPU threads", number_list(1, 4096)), [None]),
    (_list(("-ngl", "--gpu-layers", "--n-gpu-layers"), "layers on the GPU (default: all, -1)", layer_list), [None]),
    (
        _list(("-fa", "--flash-attn"), "fused attention: on, off or auto", word_list(on_off_auto)),
        ["auto"],
    ),
    (_list(("-dev", "--device"), "devices to use", word_list(str)), [None]),
    (_list(("--route",), "products: int8, exact or mixed", word_list(one_of("int8", "exact", "mixed"))), ["int8"]),
]
PARSER = Parser(
    "bench",
    "Times prompts and generation. Options of a test take several values, 16,32 or 16-64+16 or 16-64*2, and may be "
    "given several times.",
    [
        *(option for option, _ in LISTS),
        Option(("-r", "--repetitions"), "repetitions of each test", integer(1), "N", 5),
        Option(("-o", "--output"), "md, json, jsonl, csv or sql", one_of("md", *FORMATS), "FORMAT", "md"),
        Option(("--delay",), "seconds between tests", number(0, 86400), "N", 0.0),
        Option(("--no-warmup",), "time the first run, too"),
        Option(("--progress",), "say on stderr what is going on"),
    ],
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What an engine is made with."""

    model: str | None
    n_gpu_layers: int | None
    device: str | None
    route: str
    n_batch: int
    type_k: str | None
    type_v: str | None
    flash_attn: str
    n_threads: int | None


def main(values: dict[str, Any]) -> int:
    values = {**values, **{option.key: listed(option, values) or usual for option, usual in LISTS}}
    cases = list(_cases(values))
    if not cases:
        raise ValueError("there is nothing to time: -p, -n and -pg are all 0")
    with importing():
        from .. import llm as _  # noqa: F401
    write: Callable[[str], object] = sys.stdout.write
    printer: Printer = (
        Markdown(write, _columns(values), _version())
        if values["output"] == "md"
        else (FORMATS[values["output"]](write))
    )
    progress: Callable[[str], None] = _say if values["progress"] else lambda text: None
    printer.begin()
    try:
        for setting in _settings(values):
            progress(f"loading {setting.model or 'the demo model'}")
            with load(setting, max(case.n_tokens for case in cases) + SPARE_TOKENS) as llm:
                described = describe(llm, setting)
                for i, case in enumerate(cases):
                    progress(f"test {i + 1}/{len(cases)}: {case}")
                    time.sleep(values["delay"])
                    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                    samples = run_case(llm, case, values["repetitions"], warmup=not values["no_warmup"])
                    described |= {"n_prompt": case.n_prompt, "n_gen": case.n_gen, "n_depth": case.n_depth}
                    printer.test(Result(**described, test_time=started, samples_ns=tuple(samples)))
                    sys.stdout.flush()
    finally:
        # What was measured before an error can be read.
        printer.end()
    return 0


def _say(text: str) -> None:
    print(f"naiad bench: {text}", file=sys.stderr)


def _settings(values: Mapping[str, Any]) -> Iterator[Setting]:
    """In llama-bench's order, in which models change least."""
    keys = (
        "model",
        "n_gpu_layers",
        "device",
        "route",
        "batch_size",
        "cache_type_k",
        "cache_type_v",
        "flash_attn",
        "threads",
    )
    return (Setting(*chosen) for chosen in product(*(values[key] for key in keys)))


def _cases(values: Mapping[str, Any]) -> Iterator[Case]:
    for depth in values["n_depth"]:
        yield from (Case(n, 0, depth) for n in values["n_prompt"] if n)
        yield from (Case(0, n, depth) for n in values["n_gen"] if n)
        yield from (Case(n_prompt, n_gen, depth) for n_prompt, n_gen in values["pg"] if n_prompt or n_gen)


def _columns(values: Mapping[str, Any]) -> list[str]:
    """The table's columns that are there for the machine, or because something is not as usual."""
    from ..devices import list_devices

    on_cpu = list_devices()[0].device.type == "cpu"
    usual = {option.key: default for option, default in LISTS}
    shown = [
        ("n_gpu_layers", "n_gpu_layers", not on_cpu),
        ("n_threads", "threads", on_cpu),
        ("n_batch", "batch_size", False),
        ("type_k", "cache_type_k", False),
        ("type_v", "cache_type_v", False),
        ("flash_attn", "flash_attn", False),
        ("devices", "device", False),
        ("route", "route", False),
    ]
    return [column for column, key, always in shown if always or values[key] != usual[key]]


def load(setting: Setting, n_ctx: int) -> Any:
    """The model and its engine, for one sequence at a time."""
    from ..llm import LLM

    options: dict[str, Any] = {
        "device": setting.device,
        "n_gpu_layers": setting.n_gpu_layers,
        "n_ctx": n_ctx,
        "n_batch": setting.n_batch,
        "max_seqs": 1,
        "n_threads": setting.n_threads,
        "flash_attn": setting.flash_attn,
        "cache_type_k": setting.type_k,
        "cache_type_v": setting.type_v,
        "route": setting.route,
    }
    return LLM(setting.model, **options)


def run_case(llm: Any, case: Case, repetitions: int, *, warmup: bool) -> list[int]:
    """Nanoseconds of each repetition."""
    tokens = RandomTokens(llm.tokenizer)
    if warmup:
        measure(llm.engine, tokens, replace(case, n_gen=min(case.n_gen, 2)))
    return [measure(llm.engine, tokens, case) for _ in range(repetitions)]


def _version() -> str:
    import torch

    from naiad import __version__

    return f"naiad {__version__}, torch {torch.__version__}"


def describe(llm: Any, setting: Setting) -> dict[str, Any]:
    """The fields of a Result that all tests of a model share."""
    import torch

    from naiad import __version__

    from ..devices import list_devices

    plan = llm.plan
    gpus = [info for info in list_devices() if info.device.type != "cpu"]
    used = {device.type for device in (*plan.layer_devices, plan.output_device)} - {"cpu"}
    kinds = {"cuda": "ROCm" if torch.version.hip else "CUDA", "mps": "Metal", "xpu": "XPU"}
    return {
        "cpu_info": _cpu_name(),
        "gpu_info": ", ".join(info.description for info in gpus),
        "backends": ",".join(kinds.get(kind, kind) for kind in sorted(used)) or "CPU",
        "model_filename": str(llm.path),
        "model_type": model_type(llm.kv, plan.n_parameters),
        "model_size": plan.file_bytes,
        "model_n_params": plan.n_parameters,
        "n_batch": setting.n_batch,
        "n_ubatch": setting.n_batch,
        "n_threads": torch.get_num_threads(),
        "type_k": llm.memory.options.k_type,
        "type_v": llm.memory.options.v_type,
        "n_gpu_layers": -1 if setting.n_gpu_layers is None else setting.n_gpu_layers,
        "flash_attn": {"auto": -1, "off": 0, "on": 1}[setting.flash_attn],
        "devices": setting.device or "auto",
        "route": setting.route,
        "weights": "as stored" if plan.weight_dtype is None else str(plan.weight_dtype).split(".")[1],
        "naiad_version": __version__,
        "torch_version": str(torch.__version__),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# llama.cpp's names of general.file_type.
_FILE_TYPES = {
    0: "all F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K - Medium",
    11: "Q3_K - Small", 12: "Q3_K - Medium", 13: "Q3_K - Large", 14: "Q4_K - Small", 15: "Q4_K - Medium",
    16: "Q5_K - Small", 17: "Q5_K - Medium", 18: "Q6_K", 19: "IQ2_XXS - 2.0625 bpw", 20: "IQ2_XS - 2.3125 bpw",
    21: "Q2_K - Small", 22: "IQ3_XS - 3.3 bpw", 23: "IQ3_XXS - 3.0625 bpw", 24: "IQ1_S - 1.5625 bpw",
    25: "IQ4_NL - 4.5 bpw", 26: "IQ3_S - 3.4375 bpw", 27: "IQ3_S mix - 3.66 bpw", 28: "IQ2_S - 2.5 bpw",
    29: "IQ2_M - 2.7 bpw", 30: "IQ4_XS - 4.25 bpw", 31: "IQ1_M - 1.75 bpw", 32: "BF16", 36: "TQ1_0 - 1.69 bpw ternary",
    37: "TQ2_0 - 2.06 bpw ternary", 38: "MXFP4 MoE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


def model_type(kv: Mapping[str, Any], n_parameters: int) -> str:
    """As llama.cpp describes a model: architecture, size and file type."""
    kind = kv.get("general.file_type")
    label = kv.get("general.size_label")
    if not isinstance(label, str) or not re.fullmatch(r"[\w.]{1,12}", label):
        label = _rounded(n_parameters)
    name = _FILE_TYPES.get(int(kind), "") if isinstance(kind, int) else ""
    return f"{kv.get('general.architecture', '')} {label} {name}".strip()


def _rounded(n: int) -> str:
    unit, letter = (1e9, "B") if n >= 1e9 else (1e6, "M") if n >= 1e6 else (1e3, "K")
    return f"{n / unit:.{max(0, 1 - int(math.log10(max(1.0, n / unit))))}f}{letter}"
