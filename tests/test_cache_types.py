"""Cache types: the bits of ggml's blocks in planes."""

import gguf
import numpy as np
import pytest
import torch

from naiad.quant.cache_types import CACHE_TYPES, CacheType, cache_type
from naiad.quant.codebooks import IQ4_VALUES
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import format_by_name

QUANTIZED = [t for t in CACHE_TYPES.values() if t.bits]
REFERENCES = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def values() -> torch.Tensor:
    x = torch.randn(5, 3, 96) * torch.tensor([1.0, 1e-3, 200.0])[:, None]
    x[0, 0, :32] = 0
    x[1, 1, 32:64] = -x[1, 1, 32:64].abs()
    x[2, 2, 3] = -(x[2, 2, 5].abs() + 1e4)
    return x


def blocks_of(name: str, planes: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The planes as ggml's blocks, uint8 [..., bytes per row]."""
    fmt = format_by_name(name.upper())
    n_blocks = planes[0].shape[-1] * (1 if name == "q8_0" else 2) // 32
    parts = {"qs": planes[0].unflatten(-1, (n_blocks, -1))}
    scales = planes[-1].unflatten(-1, (n_blocks, -1))
    parts |= {"d": scales[..., :1], "m": scales[..., 1:]}
    if len(planes) == 3:
        parts["qh"] = planes[1].unsqueeze(-1)
    columns = [parts[field.name].contiguous().view(torch.uint8) for field in fmt.fields]
    return torch.cat(columns, -1).flatten(-2)


@pytest.mark.parametrize("name", REFERENCES)
def test_encoding_is_that_of_the_gguf_package(name: str) -> None:
    x = values()
    found = blocks_of(name, cache_type(name).encode(x))
    expected = gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType[name.upper()])
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_decoding_is_that_of_the_blocks(kind: CacheType) -> None:
    planes = kind.encode(values())
    expected = dequantize(blocks_of(kind.name, planes), format_by_name(kind.name.upper()))
    assert torch.equal(kind.decode(planes, torch.float32), expected)


def test_iq4_nl_takes_nearest_entries_and_the_best_scale() -> None:
    x = values()
    planes = cache_type("iq4_nl").encode(x)
    found = cache_type("iq4_nl").decode(planes, torch.float64).view(-1, 32)
    codebook = torch.tensor(IQ4_VALUES, dtype=torch.float64)
    for block, decoded in zip(x.double().view(-1, 32), found, strict=True):
        first = block[block.abs().argmax()] / -127
        if first == 0:
            continue
        q = codebook[(block[:, None] / first - codebook).abs().argmin(1)]
        scale = (block**2 * q * block).sum() / (block**2 * q * q).sum()
        torch.testing.assert_close(decoded, (q * scale).double(), rtol=1e-3, atol=127 * 2**-25)


@pytest.mark.parametrize(("name", "bound"), [("f32", 0), ("f16", 1e-3), ("bf16", 1e-2), ("fp8", 0.07)])
def test_numbers(name: str, bound: float) -> None:
    x = torch.randn(7, 40)
    x[0, :3] = torch.tensor([448.0, -447.0, 2**-9])
    t = cache_type(name)
    torch.testing.assert_close(t.decode(t.encode(x), torch.float32), x, rtol=bound, atol=2**-10 if bound else 0)


def test_fp8_saturates() -> None:
    x = torch.tensor([1e4, -torch.inf, torch.nan])
    found = cache_type("fp8").decode(cache_type("fp8").encode(x), torch.float32)
    torch.testing.assert_close(found, torch.tensor([448.0, -448.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_planes_are_as_announced(kind: str) -> None:
    t = cache_type(kind)
    planes = t.encode(torch.randn(2, 64))
    assert [(p.shape[-1], p.dtype) for p in planes] == list(t.planes(64))
    assert sum(8 * p.nbytes for p in planes) == 2 * 64 * t.bits_per_value


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="q4_0 cache needs heads of a multiple of 32 values, found 80"):
        cache_type("q4_0").planes(80)
    with pytest.raises(ValueError, match=r"one of f32, f16, .*found 'q3_k'"):
        cache_type("q3_k")
