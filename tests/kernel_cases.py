"""Random weights of every format for the tests of kernels, and how close a kernel must come to its twin."""

from math import prod

import pytest
import random_weights
import stand_in
import torch
from torch import Tensor

from naiad.quant.dequantize import dequantize
from naiad.quant.formats import FORMATS, Format
from naiad.triton_kernels.decode import DECODERS
from naiad.triton_kernels.weights import PackedWeight

# Before any table of values is read: the gguf package may be missing where there is a GPU.
stand_in.install()

# Where there is a GPU, kernels run on it; elsewhere in the interpreter.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
KERNEL_FORMATS = [fmt for fmt in FORMATS if fmt.id in DECODERS]
QUANTIZED = [fmt for fmt in KERNEL_FORMATS if fmt.is_quantized]

# RMS of the error over RMS of the exact result. The type is that of x and y; weights are rounded to it by the tensor
# core kernels. Sums are in float32 everywhere.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
# What rounding activations to 8 bits per group of 32 costs.
INT8_TOLERANCE = 0.012

# Scales that a hostile or a damaged file may have: zeros, denormals, the largest f16, NaN. (Infinite ones give NaN
# where the twin may give infinity: a kernel takes d (q - 1) as d q - d.)
EXTREME = torch.tensor([0.0, -0.0, 6e-8, -6e-8, 6.1e-5, 65504.0, -65504.0, torch.nan, 1.0])


def odd_width(fmt: Format) -> int:
    """Weights in a row: not a multiple of 256 where the format can do without."""
    return {1: 300, 32: 352, 64: 448, 128: 384}.get(fmt.block_size, 512)


def random_rows(fmt: Format, *shape: int, scales: Tensor | None = None) -> Tensor:
    """Rows of random blocks, uint8 [..., bytes per row]. Floats make ordinary weights, or are drawn from `scales`."""
    *leading, n_in = shape
    rows: Tensor = random_weights.random_rows(fmt, prod(leading), n_in, torch.device("cpu")).view(*leading, -1)
    if scales is None:
        return rows
    blocks, start = rows.view(-1, fmt.type_size), 0
    for field in fmt.fields:
        if field.dtype == "f16":
            values = scales[torch.randint(0, len(scales), (len(blocks), field.count))]
            blocks[:, start : start + field.n_bytes] = values.half().view(torch.uint8)
        start += field.n_bytes
    return rows


def random_weight(fmt: Format, n_out: int, n_in: int) -> tuple[PackedWeight, Tensor]:
    """A packed matrix on the device and its twin in float32 on the CPU."""
    rows = random_rows(fmt, n_out, n_in)
    return PackedWeight.pack(rows.to(DEVICE), fmt, (n_out, n_in)), dequantize(rows, fmt)


def error(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected; NaN where anything found is NaN."""
    found, expected = found.cpu().double(), expected.cpu().double()
    return float(((found - expected).square().mean() / expected.square().mean()).sqrt())
