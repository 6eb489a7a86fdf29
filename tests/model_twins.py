"""Random checkpoints in any format, and the torch backend with activations rounded as kernels round them."""

from __future__ import annotations

import gguf
import torch

from naiad.loaders.stored import ModelSource, StoredTensor
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import F32, format_by_name
from naiad.runtime.backends.torch import TorchOps
from naiad.runtime.ops import Weight

# Whole blocks of 32 in every row, so that matrices can be quantised: changes of a case of checkpoints.py.
BLOCKS = {
    **{"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32},
}


def converted(source: ModelSource, form: str) -> ModelSource:
    """The same model with matrices of another format, but for routers."""
    fmt = format_by_name(form)

    def convert(tensor: StoredTensor) -> StoredTensor:
        values = dequantize(tensor.bytes(), tensor.format).numpy()
        data = torch.from_numpy(gguf.quants.quantize(values, gguf.GGMLQuantizationType[form]))
        return StoredTensor(tensor.name, fmt, tensor.shape, data.contiguous().view(torch.uint8).flatten().clone)

    tensors = source.tensors
    assert isinstance(tensors, dict)
    matrices = {name: t for name, t in tensors.items() if len(t.shape) > 1 and "gate_inp" not in name}
    tensors.update({name: convert(tensor) for name, tensor in matrices.items()})
    return source


def rounded(x: torch.Tensor) -> torch.Tensor:
    """x [n, width] as it is after quantising it to 8 bits, 32 values at a time."""
    groups = x.unflatten(-1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    codes = (groups / scale.clamp_min(torch.finfo(torch.float32).tiny)).round()
    found: torch.Tensor = (codes * scale).flatten(-2)
    return found


class Rounded(TorchOps):
    """The twin of the int8 routes: activations of quantised weights are rounded as the kernels round them."""

    def _matmul(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        return super()._matmul(x if weight.format is F32 else rounded(x), weight)
