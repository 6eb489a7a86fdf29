"""How much memory the parts of a running model take: weights, a page of cache, a step. Pure arithmetic, in bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from ..loaders.stored import ModelSource, StoredTensor
from ..quant.cache_types import cache_type
from ..quant.floats import FLOAT_DTYPES
from ..triton_kernels.packing import factor_bytes, unit_bytes, units
from .backends.torch import WORKSPACE_BYTES
from .cache import CacheGroup, cache_groups
from .config import ModelConfig
from .engine.pages import PAGE_SIZE
from .model import Plan

# As in triton_kernels/linear.py and attention.py, which cannot be imported where Triton is missing.
TRITON_WORKSPACE_BYTES = 256 * 2**20
ATTENTION_PARTS = 32
# An output row's logits: float32 (4) beside the activations' type (4), a copy with penalties (4), sorted with their
# places (4 + 8), their probabilities and the running sum of these (4 + 4).
BYTES_PER_LOGIT = 32


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes of weights on a device. mapped: the part that stays in the file's mapping, which the system can drop."""

    total: int = 0
    mapped: int = 0

    def __add__(self, other: WeightBytes) -> WeightBytes:
        return WeightBytes(self.total + other.total, self.mapped + other.mapped)


def n_pages(n_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-n_tokens // PAGE_SIZE)


def page_bytes(config: ModelConfig, k_type: str, v_type: str) -> int:
    """A page of one layer, keys and values. ValueError for a type that does not fit the heads."""
    planes = (plane for name in (k_type, v_type) for plane in cache_type(name).planes(config.head_dim))
    return PAGE_SIZE * config.n_kv_heads * sum(width * dtype.itemsize for width, dtype in planes)


def group_page_bytes(
    config: ModelConfig, group: CacheGroup, plan: Plan, k_type: str, v_type: str
) -> dict[torch.device, int]:
    """A page of all the layers of a group, for each device that has some of them."""
    layers = Counter(plan.layer_devices[i] for i in group.layers)
    return {device: n * page_bytes(config, k_type, v_type) for device, n in layers.items()}


def weight_bytes(source: ModelSource, plan: Plan, *, use_mmap: bool = True) -> dict[torch.device, WeightBytes]:
    """What the tensors take on each device, in the form that the plan gives them (decoder.py, TorchOps.load)."""
    found = {device: WeightBytes() for device in (*plan.layer_devices, plan.input_device, plan.output_device)}
    tied = "output.weight" not in source.tensors
    for name, tensor in source.tensors.items():
        if name == "token_embd.weight" and tied:
            found[plan.output_device] += _loaded(tensor, plan.output_device, plan.weight_dtype, use_mmap)
            if plan.input_device == plan.output_device:
                continue
        device = _device_of(name, plan)
        dtype = None if name == "token_embd.weight" else plan.weight_dtype
        found[device] += _loaded(tensor, device, dtype, use_mmap)
    return found


def _device_of(name: str, plan: Plan) -> torch.device:
    head, _, rest = name.partition(".")
    index = rest.partition(".")[0]
    if head == "blk" and index.isdecimal() and int(index) < len(plan.layer_devices):
        return plan.layer_devices[int(index)]
    return plan.output_device if head.startswith("output") else plan.input_device


def _loaded(tensor: StoredTensor, device: torch.device, dtype: torch.dtype | None, use_mmap: bool) -> WeightBytes:
    if len(tensor.shape) < 2:
        return WeightBytes(4 * tensor.n_elements)
    if dtype is not None and FLOAT_DTYPES.get(tensor.format) not in (dtype, torch.float32):
        return WeightBytes(dtype.itemsize * tensor.n_elements)
    if device.type == "cpu":
        return WeightBytes(tensor.n_bytes, tensor.n_bytes if use_mmap else 0)
    if device.type == "cuda":
        # The kernels' form fills rows up to whole units.
        n_rows = tensor.n_elements // max(1, tensor.shape[-1])
        factors = n_rows // max(1, tensor.shape[-2]) * factor_bytes(tensor.format)
        return WeightBytes(n_rows * units(tensor.shape[-1]) * unit_bytes(tensor.format) + factors)
    return WeightBytes(tensor.n_bytes)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step may consist of: rows of tokens, sequences, and the tokens of the longest of them."""

    n_batch: int
    max_seqs: int
    n_ctx: int
    fused_attention: bool = True


def step_bytes(
    config: ModelConfig, plan: Plan, device: torch.device, n_vocab: int, largest_matrix: int, step: StepShape
) -> int:
    """What a step takes on a device beside weights and cache; largest_matrix in elements.

    activations   rows x (n_embd + max(n_q + 2 n_kv, n_ff)) x (three copies and one in float32),
                  with experts n_ff counts once for each that a token uses, and so do the float32 rows that they give
    decoding      the largest matrix as numbers, at most a workspace
    attention     below
    logits        max_seqs x n_vocab x BYTES_PER_LOGIT, on the device of the output
    page tables   4 bytes for every page of every sequence, in each group
    """
    size = 4 if device.type == "cpu" else 2
    rows = max(step.n_batch, step.max_seqs)
    n_used, n_ff = (config.moe.n_used, config.moe.n_ff) if config.moe else (1, config.n_ff)
    widest = max((config.n_heads + 2 * config.n_kv_heads) * config.head_dim, n_used * n_ff)
    activations = rows * (config.n_embd + widest) * (3 * size + 4)
    if config.moe:
        activations += rows * n_used * config.n_embd * 4
    workspace = TRITON_WORKSPACE_BYTES if device.type == "cuda" else WORKSPACE_BYTES
    decoding = min(workspace, largest_matrix * size)
    logits = step.max_seqs * n_vocab * BYTES_PER_LOGIT if device == plan.output_device else 0
    tables = 4 * len(cache_groups(config)) * step.max_seqs * n_pages(step.n_ctx)
    return activations + decoding + _attention_bytes(config, device, size, step) + logits + tables


def _attention_bytes(config: ModelConfig, device: torch.device, size: int, step: StepShape) -> int:
    """The kernels' partial results of decoding rows: sum, maximum and total of PARTS chunks per head, float32.

    Torch (backends/torch.py) takes one sequence after another, or single tokens of as many as a workspace holds: their
    keys and values gathered, decoded and masked; and the mask of a group's heads as bool and as numbers, or scores in
    the open, three of them in float32.
    """
    if device.type == "cuda" and step.fused_attention:
        return step.max_seqs * config.n_heads * ATTENTION_PARTS * (config.head_dim + 2) * 4
    seen = step.n_ctx if not all(config.sliding) else min(step.n_ctx, config.window + step.n_batch)
    each = 2 * seen * config.n_kv_heads * config.head_dim * size
    keys_and_values = 3 * max(each, min(WORKSPACE_BYTES, step.max_seqs * each))
    rows = min(step.n_batch, step.n_ctx)
    if config.attn_softcap > 0 or not step.fused_attention:
        return keys_and_values + rows * seen * config.n_heads * 12
    return keys_and_values + rows * seen * (config.n_heads // config.n_kv_heads) * (1 + size)
