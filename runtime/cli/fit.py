"""`naiad fit`: which flags make a model fit into memory, without loading it.

The flags go to stdout on one line, as llama-fit-params prints them, the arithmetic to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...loaders.open import open_model
from ...loaders.stored import ModelSource
from ...quant.cache_types import plain_type
from ..config import ModelConfig
from ..demo import demo_model
from ..devices import DeviceInfo, activation_dtype, list_devices
from ..memory import CTX_STEP, MARGIN_BYTES, MIB, MemoryOptions, MemoryPlan, plan_memory, with_gpu_layers
from ..model import ModelOptions, Plan, plan_model, read_model_config
from .model_options import MODEL_OPTIONS, model_path
from .options import Option, Parser, integer

N_POSITIONAL = 0
PARSER = Parser(
    "fit",
    "Prints the flags with which a model fits into memory, and the arithmetic.",
    [
        *MODEL_OPTIONS,
        Option(
            ("-fitt", "--fit-target"),
            "MiB that stay free on a GPU",
            integer(0),
            "MIB",
            MARGIN_BYTES // MIB,
            env="LLAMA_ARG_FIT_TARGET",
        ),
        Option(("--memory",), "count as if the device had so many MiB free, even if it is not here", integer(1), "MIB"),
    ],
)


def main(values: dict[str, Any]) -> int:
    source = open_model(model_path(values) or demo_model(), use_mmap=values["mmap"])
    config = read_model_config(source)
    plan, devices = _first_plan(source, config, values)
    found, n_gpu = _fitted(source, config, plan, devices, values)
    for line in found.lines():
        print(line, file=sys.stderr)
    print(" ".join(_flags(found, n_gpu, values)))
    return 0


def _first_plan(
    source: ModelSource, config: ModelConfig, values: dict[str, Any]
) -> tuple[Plan, Mapping[torch.device, DeviceInfo]]:
    """Where the layers go if memory is no matter, and the devices, one of them as --memory pretends."""
    devices = {info.device: info for info in list_devices()}
    options = ModelOptions(
        device=values["device"],
        n_gpu_layers=values["n_gpu_layers"],
        dequantize=values["dequantize"],
        weight_dtype=values["weight_type"],
        n_ctx=values["ctx_size"],
        flash_attn=values["flash_attn"],
    )
    absent = _absent_gpu(values, devices)
    if absent is None:
        plan = plan_model(source, config, options)
        chosen = plan.output_device
    else:
        dequantize = "off" if options.dequantize == "auto" else options.dequantize
        plan = plan_model(source, config, replace(options, device="cpu", dequantize=dequantize))
        n_units = config.n_layers + 1
        n = n_units if options.n_gpu_layers is None else min(options.n_gpu_layers, n_units)
        plan, chosen = with_gpu_layers(plan, n, absent), absent
    if values["memory"]:
        n_bytes = values["memory"] * MIB
        devices[chosen] = DeviceInfo(chosen, "", n_bytes, n_bytes)
    return plan, devices


def _absent_gpu(values: dict[str, Any], devices: Mapping[torch.device, DeviceInfo]) -> torch.device | None:
    """A CUDA device that is asked for with a size, and is not here."""
    name = values["device"] or ""
    kind, _, index = name.partition(":")
    if kind != "cuda" or not values["memory"] or any(device.type == kind for device in devices):
        return None
    return torch.device(kind, int(index) if index.isdecimal() else 0)


def _fitted(
    source: ModelSource,
    config: ModelConfig,
    plan: Plan,
    devices: Mapping[torch.device, DeviceInfo],
    values: dict[str, Any],
) -> tuple[MemoryPlan, int]:
    """The first plan that fits, and its layers on the GPU: all that may be there, then fewer. ValueError for none."""
    complaint: ValueError | None = None
    for n_gpu, candidate in _candidates(plan, fixed=values["n_gpu_layers"] is not None):
        try:
            return plan_memory(source, config, candidate, _memory_options(candidate, values), devices), n_gpu
        except ValueError as error:
            complaint = complaint or error
    assert complaint is not None
    raise complaint


def _candidates(plan: Plan, *, fixed: bool) -> Iterator[tuple[int, Plan]]:
    n_gpu = sum(device.type != "cpu" for device in (*plan.layer_devices, plan.output_device))
    yield n_gpu, plan
    for n in range(n_gpu - 1, -1, -1) if not fixed else ():
        yield n, with_gpu_layers(plan, n, plan.output_device)


def _memory_options(plan: Plan, values: dict[str, Any]) -> MemoryOptions:
    first = plan.layer_devices[0]
    plain = plain_type(activation_dtype(first) if first.type == "cpu" or torch.cuda.is_available() else torch.bfloat16)
    return MemoryOptions(
        n_ctx=values["ctx_size"],
        n_batch=values["batch_size"],
        max_seqs=values["parallel"],
        k_type=values["cache_type_k"] or plain,
        v_type=values["cache_type_v"] or plain,
        cache_ram_bytes=values["cache_ram"] * MIB,
        margin_bytes=values["fit_target"] * MIB,
        use_mmap=values["mmap"],
        fused_attention=values["flash_attn"] != "off",
    )


def _flags(found: MemoryPlan, n_gpu: int, values: dict[str, Any]) -> Iterator[str]:
    n_ctx = found.n_ctx
    # What was cut down to what fits is rounded, so that it fits again when a little less is free.
    yield f"-c {n_ctx // CTX_STEP * CTX_STEP if n_ctx < found.wanted_ctx and n_ctx > CTX_STEP else n_ctx}"
    yield f"-ngl {n_gpu}"
    yield f"-b {found.options.n_batch}"
    for flag, key in (("-ctk", "cache_type_k"), ("-ctv", "cache_type_v")):
        if values[key]:
            yield f"{flag} {values[key]}"
    if found.options.max_seqs > 1:
        yield f"-np {found.options.max_seqs}"
