"""The options that say which model is loaded and how it runs: those of every command that runs one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...loaders.hub import fetch_model
from ...quant.cache_names import CACHE_TYPE_NAMES
from ..defaults import N_BATCH, WEIGHT_TYPES
from .importing import importing, keeping
from .options import Option, UsageError, integer, layer_count, on_off_auto, one_of
from .thread_options import THREAD_OPTIONS, thread_options

if TYPE_CHECKING:
    from ..engine.build import EngineOptions
    from ..llm import LLM
    from ..model import ModelOptions

MODEL_OPTIONS = [
    Option(
        ("-m", "--model"),
        "GGUF file or safetensors folder (the demo model without it)",
        str,
        "FILE",
        env="LLAMA_ARG_MODEL",
    ),
    Option(
        ("-hf", "-hfr", "--hf-repo"),
        "model on the Hugging Face Hub, user/model[:quant]",
        str,
        "REPO",
        env="LLAMA_ARG_HF_REPO",
    ),
    Option(
        ("-hff", "--hf-file"),
        "file of that repository, overrides the quant",
        str,
        "FILE",
        env="LLAMA_ARG_HF_FILE",
    ),
    Option(
        ("-c", "--ctx-size"),
        "tokens of context, 0 = what the model was trained for",
        integer(0),
        "N",
        0,
        env="LLAMA_ARG_CTX_SIZE",
    ),
    Option(
        ("-b", "--batch-size"),
        "tokens per step, of all sequences",
        integer(1),
        "N",
        N_BATCH,
        env="LLAMA_ARG_BATCH",
    ),
    Option(("-np", "--parallel"), "sequences at a time", integer(1, 4096), "N", 1, env="LLAMA_ARG_N_PARALLEL"),
    Option(
        ("-cram", "--cache-ram"),
        "MiB of host memory for idle prefixes",
        integer(0),
        "MIB",
        0,
        env="LLAMA_ARG_CACHE_RAM",
    ),
    *THREAD_OPTIONS,
    Option(
        ("--cpu-isa",),
        "instructions of the CPU's kernels: avx512vnni, avxvnni, avx2, neon or generic; without it, the best there are",
        str,
        "NAME",
    ),
    Option(("-dev", "--device"), "device to use, see --list-devices", str, "NAME", env="LLAMA_ARG_DEVICE"),
    Option(
        ("-ngl", "--gpu-layers", "--n-gpu-layers"),
        "layers on the GPU: a number, auto or all",
        layer_count,
        "N",
        env="LLAMA_ARG_N_GPU_LAYERS",
    ),
    Option(
        ("-fa", "--flash-attn"),
        "fused attention: on, off or auto",
        on_off_auto,
        "WHEN",
        "auto",
        env="LLAMA_ARG_FLASH_ATTN",
    ),
    *(
        Option(
            (short, f"--cache-type-{letter}"),
            f"type of the cache's {what}: {', '.join(CACHE_TYPE_NAMES)}; without it, as they are computed",
            one_of(*CACHE_TYPE_NAMES),
            "TYPE",
            env=f"LLAMA_ARG_CACHE_TYPE_{letter.upper()}",
        )
        for short, letter, what in (("-ctk", "k", "keys"), ("-ctv", "v", "values"))
    ),
    Option(
        ("--route",),
        "multiply quantised weights with 8-bit activations where that is faster (int8) or never (exact); mixed: "
        "like int8, but prompts on a CPU by torch where that is faster; results then depend on what is cached",
        one_of("int8", "exact", "mixed"),
        "ROUTE",
        "int8",
    ),
    Option(("--batch-invariant",), "on a GPU, let no result depend on what else is in the batch", default=False),
    Option(("--mmap",), "map the file into memory", default=True, off=("--no-mmap",)),
    Option(
        ("--dequantize",),
        "decode quantised weights when loading: on, off or auto",
        on_off_auto,
        "WHEN",
        "auto",
    ),
    Option(("--weight-type",), "what they are decoded to: auto, f32, bf16 or f16", one_of(*WEIGHT_TYPES), "TYPE"),
]


def model_path(values: dict[str, Any]) -> str | Path | None:
    """Where the model lies, fetched from the Hub if need be; None for the demo model."""
    if values["hf_repo"]:
        return fetch_model(values["hf_repo"], values["hf_file"])
    if values["hf_file"]:
        raise UsageError("--hf-file needs --hf-repo")
    path: str | None = values["model"]
    return path


def model_options(values: Mapping[str, Any]) -> ModelOptions:
    """How a command's options want a model to be loaded."""
    from ..model import WEIGHT_DTYPES, ModelOptions

    return ModelOptions(
        device=values["device"],
        n_gpu_layers=values["n_gpu_layers"],
        n_ctx=values["ctx_size"],
        threads=thread_options(values),
        cpu_isa=values["cpu_isa"],
        dequantize=values["dequantize"],
        weight_dtype=WEIGHT_DTYPES[values["weight_type"] or "auto"],
        flash_attn=values["flash_attn"],
        cache_type_k=values["cache_type_k"],
        cache_type_v=values["cache_type_v"],
        route=values["route"],
        batch_invariant=values["batch_invariant"],
    )


def engine_options(values: Mapping[str, Any]) -> EngineOptions:
    """How they want requests to run."""
    from ..engine.build import EngineOptions

    return EngineOptions(n_batch=values["batch_size"], max_seqs=values["parallel"], cache_ram=values["cache_ram"])


def load_llm(values: dict[str, Any], **more: Any) -> LLM:
    """The model that a command's options ask for. more: arguments of LLM that come before theirs."""
    with importing():
        from ..llm import LLM

    asked = (model_options(values), engine_options(values))
    arguments = {field.name: getattr(part, field.name) for part in asked for field in fields(part)}
    del arguments["on_compile"]  # LLM has its own.
    arguments |= {"use_mmap": values["mmap"], "progress": sys.stderr.isatty()}
    path = model_path(values)
    with keeping():
        return LLM(path, **(arguments | more))
