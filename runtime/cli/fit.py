"""`naiad fit`: which flags make a model fit into memory, without loading it.

The flags go to stdout on one line, as llama-fit-params prints them, the arithmetic to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...loaders.open import open_model
from ...loaders.stored import ModelSource
from ..defaults import MARGIN_BYTES, MIB
from ..demo import demo_model
from .importing import importing
from .model_options import MODEL_OPTIONS, engine_options, model_options, model_path
from .options import Option, Parser, integer

if TYPE_CHECKING:
    from ..devices import DeviceInfo
    from ..memory import MemoryPlan

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
    with importing():
        from ..engine import build as _  # noqa: F401
    found, n_gpu = _fitted(source, values)
    for line in found.lines():
        print(line, file=sys.stderr)
    print(" ".join(_flags(found, n_gpu, values)))
    return 0


def _fitted(source: ModelSource, values: dict[str, Any]) -> tuple[MemoryPlan, int]:
    """The first plan that fits, and its layers on the GPU: all that may be there, then fewer. ValueError for none."""
    from ..engine.build import engine_memory
    from ..model import plan_model, read_model_config

    config, devices = read_model_config(source), _devices(values)
    options, engine = model_options(values), engine_options(values)

    def planned(n_gpu_layers: int | None) -> MemoryPlan:
        model = replace(options, n_gpu_layers=n_gpu_layers)
        margin = values["fit_target"] * MIB
        return engine_memory(
            source, config, model, engine, use_mmap=values["mmap"], margin_bytes=margin, devices=devices
        )[1]

    plan = plan_model(source, config, options, devices)
    n_gpu = sum(device.type != "cpu" for device in (*plan.layer_devices, plan.output_device))
    try:
        return planned(options.n_gpu_layers), n_gpu
    except ValueError:
        for n in range(n_gpu - 1, -1, -1) if options.n_gpu_layers is None else ():
            with suppress(ValueError):
                return planned(n), n
        raise


def _devices(values: dict[str, Any]) -> list[DeviceInfo]:
    """Those that are here, one of them with the memory that --memory pretends; or a GPU that is asked for with it."""
    import torch

    from ..devices import DeviceInfo, find_device, list_devices

    devices = list_devices()
    if not values["memory"]:
        return devices
    n_bytes, (kind, _, index) = values["memory"] * MIB, (values["device"] or "").partition(":")
    if kind == "cuda" and not any(info.device.type == kind for info in devices):
        gpu = torch.device(kind, int(index) if index.isdecimal() else 0)
        return [DeviceInfo(gpu, "", n_bytes, n_bytes), *devices]
    # With -ngl 0 the weights are on the CPU.
    chosen = find_device(values["device"] if values["n_gpu_layers"] != 0 else "cpu", devices).device
    return [DeviceInfo(chosen, "", n_bytes, n_bytes) if info.device == chosen else info for info in devices]


def _flags(found: MemoryPlan, n_gpu: int, values: dict[str, Any]) -> Iterator[str]:
    from ..memory import CTX_STEP

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
