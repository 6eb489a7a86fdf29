"""From a loaded model to an engine: options, memory, parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...loaders.stored import ModelSource
from ...quant.cache_types import plain_type
from ..cache import PagedCache
from ..checks import MAX_INT, integer, switch
from ..config import ModelConfig
from ..decoder import Decoder
from ..defaults import MARGIN_BYTES, MAX_SEQS, MIB, N_BATCH
from ..devices import DeviceInfo, activation_dtype, list_devices
from ..forks import prepare_torch
from ..memory import MemoryOptions, MemoryPlan, plan_memory
from ..model import ModelOptions, Plan, plan_model
from ..ops import Dispatch
from ..sampling import BatchSampler
from .engine import Engine
from .graphs import Capture, CudaCapture
from .pages import GroupSpec, PagePool
from .runner import Runner
from .scheduler import Scheduler
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..sampling.cpu import CpuSampler
    from ..sampling.state import State

# The least and the most that options may be; what memory allows is less.
SIZES = {
    "n_batch": (1, 2**24),
    "max_seqs": (1, 2**16),
    "max_queue": (1, MAX_INT),
    "cache_tokens": (1, MAX_INT),
    "cache_ram": (0, MAX_INT),
}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How requests run together.

    n_batch: tokens of a step, of all sequences together. max_seqs: sequences that run at a time. max_queue: requests
    that may wait for their turn, None for any number. cache_tokens: tokens that the cache holds; None for as many as
    max_seqs contexts have, or as fit into memory. cache_ram: MiB of host memory for idle prefixes.
    prefix_sharing: whether requests share the cache of prompts that begin alike. graphs: on a GPU, whether decode steps
    are captured. overlap: whether a step begins before the host knows the results of the last; None: on a GPU.
    """

    n_batch: int = N_BATCH
    max_seqs: int = MAX_SEQS
    max_queue: int | None = None
    cache_tokens: int | None = None
    cache_ram: int = 0
    prefix_sharing: bool = True
    graphs: bool = True
    overlap: bool | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in SIZES.items():
            if getattr(self, name) is not None or name in ("n_batch", "max_seqs", "cache_ram"):
                object.__setattr__(self, name, integer(name, getattr(self, name), low, high))
        for name in ("prefix_sharing", "graphs"):
            object.__setattr__(self, name, switch(name, getattr(self, name)))
        if self.overlap is not None:
            object.__setattr__(self, "overlap", switch("overlap", self.overlap))


def engine_memory(
    source: ModelSource,
    config: ModelConfig,
    model: ModelOptions,
    options: EngineOptions,
    *,
    use_mmap: bool,
    margin_bytes: int = MARGIN_BYTES,
    devices: Sequence[DeviceInfo] | None = None,
) -> tuple[Plan, MemoryPlan]:
    """What goes where, and how memory is divided. devices: those of this machine unless others are given.

    ValueError where memory does not suffice, saying what would fit.
    """
    devices = list_devices() if devices is None else devices

    def planned(n_gpu_layers: int | None) -> tuple[Plan, MemoryOptions]:
        plan = plan_model(source, config, replace(model, n_gpu_layers=n_gpu_layers), devices)
        k_type, v_type = cache_type_names(plan, model)
        return plan, MemoryOptions(
            n_ctx=model.n_ctx,
            n_batch=options.n_batch,
            max_seqs=options.max_seqs,
            k_type=k_type,
            v_type=v_type,
            cache_ram_bytes=options.cache_ram * MIB,
            pool_tokens=options.cache_tokens,
            margin_bytes=margin_bytes,
            use_mmap=use_mmap,
            fused_attention=model.flash_attn != "off",
        )

    plan, wanted = planned(model.n_gpu_layers)
    return plan, plan_memory(source, config, plan, wanted, {info.device: info for info in devices}, planned)


def cache_type_names(plan: Plan, model: ModelOptions) -> tuple[str, str]:
    # The kernels for CPUs read 16 bits as fast as they come, and llama.cpp's default is the same.
    plain = "f16" if plan.cpu_kernels else plain_type(activation_dtype(plan.layer_devices[0]))
    return model.cache_type_k or plain, model.cache_type_v or plain


def make_engine(
    decoder: Decoder,
    vocabulary: Vocabulary,
    *,
    n_ctx: int,
    k_type: str,
    v_type: str,
    groups: Sequence[GroupSpec],
    options: EngineOptions,
    capture: Capture | None = None,
) -> Engine:
    """An engine over a model. groups: the memory of each of its cache groups.

    capture: how steps are captured, where graphs are wanted; by default CUDA's way where all layers are on one GPU.
    """
    prepare_torch()
    devices = [layer.ops.device for layer in decoder.layers]
    n_pages, n_host_pages = [spec.n_pages for spec in groups], [spec.n_host_pages for spec in groups]
    cache = PagedCache(decoder.config, devices, k_type, v_type, n_pages, n_host_pages)
    scheduler = Scheduler(
        PagePool(groups, share=options.prefix_sharing),
        n_ctx=n_ctx,
        n_batch=options.n_batch,
        max_seqs=options.max_seqs,
        max_queue=sys.maxsize if options.max_queue is None else options.max_queue,
        eog_ids=vocabulary.eog_ids,
    )
    output = decoder.output_ops.device
    if capture is None and {output, decoder.input_ops.device, *devices} == {output} and output.type == "cuda":
        capture = CudaCapture()
    runner = Runner(
        decoder,
        cache,
        BatchSampler(
            decoder.n_vocab, options.max_seqs, output, max_history=n_ctx, on_cpu=cpu_sampling(decoder.output_ops)
        ),
        max_seqs=options.max_seqs,
        n_ctx=n_ctx,
        capture=capture if options.graphs else None,
    )
    overlap = output.type == "cuda" if options.overlap is None else options.overlap
    return Engine(scheduler, runner, vocabulary, overlap=overlap)


def cpu_sampling(ops: Dispatch) -> Callable[[State], CpuSampler] | None:
    """How rows are sampled where the output is computed by the kernels for CPUs; None leaves it to torch."""
    kernels = getattr(ops.backends[0], "kernels", None)
    if kernels is None:
        return None
    # numba is not there for every system.
    from ..sampling.cpu import CpuSampler

    return lambda state: CpuSampler(state, kernels.compiler, kernels.decode)
