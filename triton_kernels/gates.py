"""Gated pairs outside of a matrix product: activation(gate) * up, in the form that the next layer reads.

For files whose gate and up are one matrix, and for calls with more rows than the matvec kernel takes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .activations import Form, Units, empty_form, in_form, store_form
from .epilogue import glu as product
from .grid import cdiv, next_power_of_2
from .packing import units

Activation = Literal["silu", "gelu", "gelu_erf", "relu2", "swiglu_oai"]
# Clamp and slope of gpt-oss (epilogue.py).
OAI_LIMIT, OAI_SLOPE = 7.0, 1.702


@triton.jit
def glu_kernel(
    out, gate, up, K, S, gate_stride, up_stride, ACTIVATION: tl.constexpr, FORM: tl.constexpr, GROUPS: tl.constexpr
):
    """out = ACTIVATION(gate) * up, of rows of K numbers; out as store_form has it.

    Grid (M, ceil(groups / GROUPS)), where groups are those of 32 numbers, with units 8 S.
    """
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    k = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    g = tl.load(gate + row * gate_stride + k, mask=k < K, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_stride + k, mask=k < K, other=0.0).to(tl.float32)
    store_form(out, row, group, K, S, product(g, u, ACTIVATION), FORM)


def glu(gate: Tensor, up: Tensor | None, activation: Activation, form: Form = "plain") -> Tensor | Units:
    """gate and up [m, k], rows with unit stride, of one type -> activation(gate) * up, [m, k].

    Without up, gate holds both, gate first: [m, 2 k]. ValueError where they do not fit each other.
    """
    if up is None:
        if gate.shape[-1] % 2:
            raise ValueError(f"expected gate and up side by side, [m, 2 k], found {list(gate.shape)}")
        gate, up = gate.chunk(2, dim=-1)
    _check(gate, up)
    m, k = gate.shape
    out = empty_form(m, k, form, gate.dtype, gate.device)
    n_groups = cdiv(k, 32) if form == "plain" else 8 * units(k)
    groups = min(32, next_power_of_2(n_groups))
    if m:
        glu_kernel[m, cdiv(n_groups, groups)](
            *(out, gate, up, k, units(k), gate.stride(0), up.stride(0)),
            **{"ACTIVATION": activation, "FORM": form, "GROUPS": groups, "num_warps": 4, "enable_fp_fusion": True},
        )
    return in_form(out, k, form, gate.dtype)


def _check(gate: Tensor, up: Tensor) -> None:
    same = (gate.shape, gate.dtype, gate.device) == (up.shape, up.dtype, up.device)
    if not same or gate.dim() != 2 or gate.stride(1) != 1 or up.stride(1) != 1:
        found = " and ".join(f"{t.dtype} {list(t.shape)} with strides {t.stride()} on {t.device}" for t in (gate, up))
        raise ValueError(f"expected a gate and an up [m, k] of one type with unit stride, found {found}")


def glu_reference(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """The twin of `glu` in torch, in the type of gate and up."""
    if activation == "swiglu_oai":
        gate, up = gate.clamp(max=OAI_LIMIT), up.clamp(-OAI_LIMIT, OAI_LIMIT)
        return gate * torch.sigmoid(OAI_SLOPE * gate) * (up + 1)
    if activation == "silu":
        return F.silu(gate) * up
    if activation == "relu2":
        return F.relu(gate).square() * up
    return F.gelu(gate, approximate="tanh" if activation == "gelu" else "none") * up
