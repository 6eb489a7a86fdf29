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


def in_nvfp4(source: ModelSource, *, decoded: bool) -> ModelSource:
    """The model with random matrices in NVFP4 and their scales, or the same numbers in float32.

    Scales are those of a matrix of usual weights, far from 1 and different everywhere, one for each expert.
    """
    fmt, tensors, found = format_by_name("NVFP4"), source.tensors, dict[str, StoredTensor]()
    assert isinstance(tensors, dict)

    def numbers(name: str, values: torch.Tensor) -> None:
        values = values.float().contiguous()
        found[name] = StoredTensor(name, F32, tuple(values.shape), lambda: values.view(-1).view(torch.uint8))

    for index, (name, tensor) in enumerate(tensors.items()):
        if len(tensor.shape) < 2 or "gate_inp" in name or name == "token_embd.weight":
            found[name] = tensor
            continue
        generator, (*rows, width) = torch.Generator().manual_seed(index), tensor.shape
        blocks = torch.randint(0, 256, (*rows, width // 64, 36), dtype=torch.uint8, generator=generator)
        blocks[..., :4] = torch.randint(0x60, 0x7F, (*rows, width // 64, 4), dtype=torch.uint8, generator=generator)
        scale = 2e-4 * (1 + torch.rand(rows[0] if len(rows) == 2 else 1, generator=generator))
        stem, raw = name.removesuffix(".weight"), blocks.view(*rows, -1)
        if decoded:
            values = dequantize(raw, fmt).view(tensor.shape)
            numbers(name, values * (scale[:, None, None] if len(rows) == 2 else scale))
        else:
            found[name] = StoredTensor(name, fmt, tensor.shape, raw.view(-1).clone)
            numbers(f"{stem}.scale", scale)
            numbers(f"{stem}.input_scale", torch.full_like(scale, 3.0))
    tensors.clear()
    tensors.update(found)
    return source
