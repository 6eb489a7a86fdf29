"""From a file to a running model: what goes where, in which form, then the loading itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from ..loaders.stored import ModelSource
from ..quant.cache_types import cache_type
from ..quant.floats import FLOAT_DTYPES
from .backends.torch import TorchOps
from .checks import integer, quoted, switch, text
from .config import ModelConfig
from .decoder import Decoder, build_decoder
from .defaults import WEIGHT_TYPES
from .devices import DeviceInfo, activation_dtype, find_device, list_devices
from .models import read_config
from .ops import Dispatch, Ops
from .tensors import TensorBook
from .threads import ThreadOptions
from .trim import trim_memory

# Up to this size a model is decoded to float32: exact, and the memory does not matter.
SMALL_MODEL_BYTES = 256 * 2**20
WEIGHT_DTYPES = dict(zip(WEIGHT_TYPES, (None, torch.float32, torch.bfloat16, torch.float16), strict=True))
# Decoded weights may take this share of the memory that is free.
DECODED_SHARE = 0.6


Route = Literal["int8", "exact", "mixed"]
ROUTES: tuple[Route, ...] = get_args(Route)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is loaded.

    device: "cuda:0", "mps", "cpu", ...; None takes the first GPU or else the CPU.
    n_gpu_layers: how many layers (the output counts as one) go there; None or more than there are: all.
    dequantize: "on" decodes quantised weights when loading, "off" keeps them as they are and decodes when they are
    used, "auto" is "on" on a CPU with memory enough for it. weight_dtype: what they are decoded to; None chooses.
    n_ctx: tokens of context; 0 takes what the model was trained for.
    flash_attn: "off" computes attention step by step, "on" and "auto" with fused kernels where they apply.
    cache_type_k, cache_type_v: how keys and values are kept (quant/cache_types.py); None: as they are computed.
    route: "int8" quantises activations to 8 bits where quantised weights are multiplied faster that way, as llama.cpp
    does; "exact" never does; "mixed" is "int8", but leaves prompts on a CPU to torch where that is measured to be
    faster, so that results depend on what else is in a batch and on what the cache holds.
    batch_invariant: on a GPU, results do not depend on what else is in the batch, at some cost.
    threads: of what runs on the CPU. on_compile: see cpu_kernels.kernel.Compiler. cpu_isa: the instructions that its
    kernels are made of, a name of cpu_kernels/isa.py; None takes the best that the processor has.
    """

    device: str | None = None
    n_gpu_layers: int | None = None
    dequantize: str = "auto"
    weight_dtype: torch.dtype | None = None
    n_ctx: int = 0
    flash_attn: str = "auto"
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    route: Route = "int8"
    batch_invariant: bool = False
    threads: ThreadOptions = field(default_factory=ThreadOptions)
    on_compile: Callable[[str, bool], None] = lambda name, kept: None
    cpu_isa: str | None = None

    def __post_init__(self) -> None:
        if self.dequantize not in ("auto", "on", "off"):
            raise ValueError(f"dequantize must be auto, on or off, found {quoted(self.dequantize)}")
        if self.flash_attn not in ("auto", "on", "off"):
            raise ValueError(f"flash_attn must be auto, on or off, found {quoted(self.flash_attn)}")
        if self.route not in ROUTES:
            raise ValueError(f"route must be int8, exact or mixed, found {quoted(self.route)}")
        for name in ("device", "cache_type_k", "cache_type_v", "cpu_isa"):
            if getattr(self, name) is not None:
                text(name, getattr(self, name))
        for kind in (self.cache_type_k, self.cache_type_v):
            if kind is not None:
                cache_type(kind)
        object.__setattr__(self, "n_ctx", integer("n_ctx", self.n_ctx, 0))
        if self.n_gpu_layers is not None:
            object.__setattr__(self, "n_gpu_layers", integer("n_gpu_layers", self.n_gpu_layers, 0))
        object.__setattr__(self, "batch_invariant", switch("batch_invariant", self.batch_invariant))
        if self.weight_dtype not in WEIGHT_DTYPES.values():
            found = quoted(self.weight_dtype)
            raise ValueError(f"weight_dtype must be torch's float32, bfloat16 or float16, found {found}")
        if not isinstance(self.threads, ThreadOptions):
            raise ValueError(f"threads must be ThreadOptions, found {quoted(self.threads)}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What was decided before loading: the device of every layer and of the output, and the weights' form."""

    layer_devices: tuple[torch.device, ...]
    input_device: torch.device
    output_device: torch.device
    weight_dtype: torch.dtype | None
    n_ctx: int
    n_parameters: int
    file_bytes: int
    decoded_bytes: int
    reason: str
    cpu_kernels: bool = False

    def describe(self, config: ModelConfig) -> list[str]:
        """Lines for --verbose."""
        n_gpu = sum(d.type != "cpu" for d in (*self.layer_devices, self.output_device))
        form = "as stored" if self.weight_dtype is None else f"decoded to {str(self.weight_dtype).split('.')[1]}"
        memory = self.file_bytes if self.weight_dtype is None else self.decoded_bytes
        experts = f", {config.moe.n_experts} experts, {config.moe.n_used} used" if config.moe else ""
        return [
            f"device: {self.output_device} ({n_gpu} of {config.n_layers + 1} layers on a GPU)",
            f"model: {config.name or 'unnamed'}, architecture {config.architecture}, {self.n_parameters:,} parameters",
            f"shape: {config.n_layers} layers, width {config.n_embd}, {config.n_heads} heads of {config.head_dim}, "
            f"{config.n_kv_heads} kv heads, mlp {config.moe.n_ff if config.moe else config.n_ff}{experts}",
            f"context: {self.n_ctx} tokens (trained for {config.n_ctx_train})",
            f"weights: {form}, {memory / 2**20:.1f} MiB ({self.file_bytes / 2**20:.1f} MiB in the file); {self.reason}",
        ]


def read_model_config(source: ModelSource) -> ModelConfig:
    """A file's configuration. ValueError for metadata that is missing, impossible or not implemented."""
    try:
        return read_config(source.kv)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None


def plan_model(
    source: ModelSource, config: ModelConfig, options: ModelOptions, devices: Sequence[DeviceInfo] | None = None
) -> Plan:
    """Decides what goes where; reads no tensor. devices: those of this machine unless others are given."""
    devices = list_devices() if devices is None else devices
    info = find_device(options.device, devices)
    n_units = config.n_layers + 1
    n_gpu = n_units if options.n_gpu_layers is None else min(options.n_gpu_layers, n_units)
    if info.device.type == "cpu":
        n_gpu = 0
    cpu = torch.device("cpu")
    kernels = n_gpu < n_units and has_cpu_kernels(options)
    places = [info.device if i >= n_units - n_gpu else cpu for i in range(n_units)]
    matrices = [t for t in source.tensors.values() if len(t.shape) > 1]
    n_weights = sum(t.n_elements for t in matrices)
    if kernels:
        dtype, reason = None, "kernels for this processor read them so"
    else:
        dtype, reason = _weight_dtype(source, options, n_weights, find_device("cpu", devices).free_bytes, n_gpu)
    return Plan(
        layer_devices=tuple(places[:-1]),
        input_device=places[0],
        output_device=places[-1],
        weight_dtype=dtype,
        cpu_kernels=kernels,
        n_ctx=options.n_ctx or config.n_ctx_train,
        n_parameters=sum(t.n_elements for t in source.tensors.values()),
        file_bytes=sum(t.n_bytes for t in source.tensors.values()),
        decoded_bytes=n_weights * (dtype.itemsize if dtype else 0),
        reason=reason,
    )


def has_cpu_kernels(options: ModelOptions) -> bool:
    """Whether layers on the CPU run on kernels of their own; numba is not there for every system.

    ValueError for instructions that are asked for and not there.
    """
    if options.dequantize == "on" or options.weight_dtype is not None or options.route == "exact":
        return False
    if find_spec("numba") is None:
        if options.cpu_isa is not None:
            raise ValueError(f"kernels of {options.cpu_isa} need numba, which is not installed")
        return False
    # numba takes half a second to import.
    from .cpu_kernels.kernel import serves, this_host

    return serves(this_host(options.cpu_isa))


def _weight_dtype(
    source: ModelSource, options: ModelOptions, n_weights: int, free_bytes: int, n_gpu: int
) -> tuple[torch.dtype | None, str]:
    """The form of the weights, and why."""
    if options.dequantize == "off":
        return None, "--dequantize off"
    small = n_weights * 4 <= SMALL_MODEL_BYTES
    dtype = options.weight_dtype or (torch.float32 if small else torch.bfloat16)
    if options.dequantize == "on":
        return dtype, "--dequantize on"
    if n_gpu:
        return None, "a GPU keeps them as stored"
    if options.weight_dtype is None and not small and _all_stored_as_floats(source):
        return None, "they are not quantised"
    needed = n_weights * dtype.itemsize
    fits = f"{needed / 2**20:.0f} MiB of {free_bytes / 2**20:.0f} MiB free"
    if needed <= free_bytes * DECODED_SHARE:
        return dtype, f"decoding takes {fits}"
    return None, f"decoding would take {fits}"


def _all_stored_as_floats(source: ModelSource) -> bool:
    return all(t.format in FLOAT_DTYPES for t in source.tensors.values())


def make_ops(device: torch.device, weight_dtype: torch.dtype | None, options: ModelOptions) -> Dispatch:
    """The backends of a device, fastest first."""
    dtype, fused = activation_dtype(device), options.flash_attn != "off"
    backends: list[Ops] = [TorchOps(device, dtype, weight_dtype, fused_attention=fused)]
    if device.type == "cpu" and has_cpu_kernels(options):
        from .backends.cpu import CpuOps
        from .cpu_kernels import make_kernels

        kernels = make_kernels(options.threads, options.on_compile, options.cpu_isa)
        backends.insert(0, CpuOps(kernels, fused_attention=fused, mixed=options.route == "mixed"))
    if device.type == "cuda":
        try:
            # Triton is not there on every system.
            from .backends.triton import TritonOps

            triton = TritonOps(
                device,
                dtype,
                route="exact" if options.route == "exact" else "int8",
                batch_invariant=options.batch_invariant,
                decoded=weight_dtype is not None,
                fused_attention=fused,
            )
            backends.insert(0, triton)
        except (ImportError, ValueError) as error:
            warnings.warn(f"{device} is served by torch alone, which is slow: {error}", stacklevel=2)
    return Dispatch(backends)


def load_model(
    source: ModelSource,
    options: ModelOptions,
    progress: Callable[[int], None] = lambda n_bytes: None,
    plan: Plan | None = None,
) -> tuple[Decoder, Plan]:
    """Builds the model of a file, as planned. ValueError for what the file or the options ask and cannot have."""
    config = read_model_config(source)
    plan = plan or plan_model(source, config, options)
    devices = {plan.input_device, plan.output_device, *plan.layer_devices}
    ops = {device: make_ops(device, plan.weight_dtype, options) for device in devices}
    book = TensorBook(source, progress)
    if plan.cpu_kernels:
        trim_memory()
    decoder = build_decoder(
        config,
        book,
        ops[plan.input_device],
        [ops[d] for d in plan.layer_devices],
        ops[plan.output_device],
        plan.n_ctx,
    )
    return decoder, plan
