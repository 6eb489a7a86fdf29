"""Decoders against the gguf package, against ggml, and against blocks worked out by hand."""

import math
from collections import defaultdict
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import gguf
import gguf.gguf_reader
import numpy as np
import pytest
import torch
from dequantize_witnesses import WITNESSES, Witness
from torch import Tensor

from naiad.quant import dequantize as module
from naiad.quant.blocks import Quants
from naiad.quant.dequantize import BLOCK_DECODERS, OUTPUT_DTYPES, dequantize
from naiad.quant.formats import FORMATS, ITEM_BYTES, Format, format_by_id, format_by_name

QUANTIZED = [fmt for fmt in FORMATS if fmt.is_quantized]
NOT_IN_GGUF = {"Q1_0", "Q2_0", "Q8_1", "Q8_K", "F64", "I8", "I16", "I32", "I64"}
RECORDED = np.load(Path(__file__).parent / "data" / "dequantize.npz")  # by data/record_dequantize.py

# Scales that arithmetic treats specially: zeros, denormals, the largest, infinities, not a number.
F16_BITS = (0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0xFC00, 0x7E01)

# Largest relative RMS error of a format over the files of tinystories256-quants: measured, plus a tenth.
MEASURED_RMS = {
    "F32": 0.0,
    "Q8_0": 0.00528,
    "Q6_K": 0.01727,
    "Q5_K": 0.03608,
    "Q5_1": 0.03395,
    "Q5_0": 0.04048,
    "Q4_K": 0.07127,
    "Q4_1": 0.07021,
    "Q4_0": 0.08171,
    "IQ4_NL": 0.07504,
    "IQ4_XS": 0.0757,
    "Q3_K": 0.14535,
    "IQ3_S": 0.13765,
    "IQ3_XXS": 0.18314,
    "Q2_K": 0.27136,
    "IQ2_S": 0.24905,
    "IQ2_XS": 0.30145,
    "IQ2_XXS": 0.34529,
    "IQ1_M": 0.45612,
    "IQ1_S": 0.48999,
    "Q1_0": 0.60037,
    "Q2_0": 0.71717,
    "TQ1_0": 0.80657,
    "TQ2_0": 0.80657,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads have nothing to gain from small tensors, and on a busy machine they wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ids(case: Format | Witness) -> str:
    return case.name if isinstance(case, Format) else case.format


def random_rows(fmt: Format, n_blocks: int, *leading: int) -> Tensor:
    """uint8 [*leading, n_blocks * type_size]"""
    return torch.randint(0, 256, (*leading, n_blocks * fmt.type_size), dtype=torch.uint8)


def extreme_blocks(fmt: Format) -> np.ndarray:
    """Every byte value at every place of a block, and every special value in every f16 field."""
    rng = np.random.default_rng(fmt.id)
    blocks = np.stack([rng.permutation(256).astype(np.uint8) for _ in range(fmt.type_size)], axis=1)
    start = 0
    for field in fmt.fields:
        if field.dtype == "f16":
            specials = rng.permutation(np.array(F16_BITS, "<u2")).view(np.uint8).reshape(-1, 2)
            blocks[: len(specials), start : start + 2] = specials
        start += field.count * ITEM_BYTES[field.dtype]
    return blocks


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal float32 bit patterns, so that -0 is not 0; any NaN equals any other."""
    assert found.dtype == expected.dtype == torch.float32
    assert found.shape == expected.shape
    same = (found.view(torch.int32) == expected.view(torch.int32)) | (found.isnan() & expected.isnan())
    assert same.all(), f"{(~same).sum()} of {same.numel()} weights differ, first {(~same).nonzero()[0]}"


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.name not in NOT_IN_GGUF], ids=ids)
def test_equals_the_gguf_package(fmt: Format) -> None:
    blocks = extreme_blocks(fmt)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(fmt.id)).astype(np.float32)
    assert_same_bits(dequantize(torch.from_numpy(blocks), fmt), torch.from_numpy(expected))


@pytest.mark.parametrize("name", ["Q1_0", "Q2_0", "Q8_K"])
def test_equals_recorded_ggml(name: str) -> None:
    blocks, weights = (torch.from_numpy(RECORDED[f"{name}_{what}"]) for what in ("blocks", "weights"))
    assert_same_bits(dequantize(blocks, format_by_name(name)), weights)


@pytest.mark.parametrize("witness", WITNESSES, ids=ids)
def test_equals_blocks_worked_out_by_hand(witness: Witness) -> None:
    fmt = format_by_name(witness.format)
    block = torch.zeros(fmt.type_size, dtype=torch.uint8)
    for place, value in witness.block.items():
        block[place : place + len(value)] = torch.tensor(list(value), dtype=torch.uint8)
    expected = torch.full((fmt.block_size,), witness.rest)
    for index, weight in witness.weights.items():
        expected[index] = weight
    assert torch.equal(dequantize(block, fmt), expected)


def test_every_quantized_format_has_a_witness() -> None:
    assert {witness.format for witness in WITNESSES} == {fmt.name for fmt in QUANTIZED}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("F64", torch.tensor([1 / 3, -2.5e-9, math.inf], dtype=torch.float64)),
        ("I8", torch.tensor([-128, 0, 127], dtype=torch.int8)),
        ("I16", torch.tensor([-32768, 0, 32767], dtype=torch.int16)),
        ("I32", torch.tensor([-(2**31), 16777217, 2**31 - 1], dtype=torch.int32)),
        ("I64", torch.tensor([-(2**63), 0, 2**53 + 1], dtype=torch.int64)),
    ],
)
def test_plain_numbers_are_rounded_to_float32(name: str, values: Tensor) -> None:
    data = values.view(torch.uint8)
    assert dequantize(data, format_by_name(name)).tolist() == values.float().tolist()


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 5), (2, 1, 3), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_shapes(fmt: Format, shape: tuple[int, ...]) -> None:
    data = random_rows(fmt, 3, *shape)
    before = data.clone()
    weights = dequantize(data, fmt)
    assert weights.shape == (*shape, 3 * fmt.block_size)
    assert torch.equal(data, before)
    one_by_one = [dequantize(block, fmt) for block in data.reshape(-1, fmt.type_size)]
    assert_same_bits(weights.flatten(), torch.cat([torch.empty(0), *one_by_one]))


def test_rows_without_weights() -> None:
    assert dequantize(torch.empty(4, 0, dtype=torch.uint8), format_by_name("Q4_K")).shape == (4, 0)


def strided(data: Tensor, layout: str) -> Tensor:
    """The same bytes [2, 3, row bytes] laid out in memory as `layout` says."""
    if layout == "every second row":
        return data.repeat_interleave(2, dim=1)[:, ::2]
    if layout == "columns":
        return torch.cat((data, data), dim=-1)[..., : data.shape[-1]]
    if layout == "transposed":
        return data.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "odd address":
        return torch.cat((data.new_zeros(1), data.flatten()))[1:].view(data.shape)
    assert layout == "every second byte"
    return data.repeat_interleave(2, dim=-1)[..., ::2]


LAYOUTS = ("every second row", "columns", "transposed", "odd address", "every second byte")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_strided_input_and_output(fmt: Format, layout: str) -> None:
    data = random_rows(fmt, 3, 2, 3)
    expected = dequantize(data, fmt)
    moved = strided(data, layout)
    assert torch.equal(moved, data)
    assert_same_bits(dequantize(moved, fmt), expected)
    out = strided(torch.full_like(expected, 7.0), layout)
    assert dequantize(moved, fmt, out=out) is out
    assert_same_bits(out, expected)


@pytest.mark.parametrize("chunk", [1, 300, 1000])
@pytest.mark.parametrize("layout", [None, "columns"])
@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_chunks_are_bounded_and_do_not_show(
    fmt: Format, layout: str | None, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_rows(fmt, 5, 2, 7)
    expected = dequantize(data, fmt)
    decode, sizes = BLOCK_DECODERS[fmt.id], []

    def watched(blocks: Tensor) -> Quants:
        sizes.append(len(blocks) * fmt.block_size)
        return decode(blocks)

    monkeypatch.setitem(BLOCK_DECODERS, fmt.id, watched)
    monkeypatch.setattr(module, "CHUNK_WEIGHTS", chunk)
    assert_same_bits(dequantize(strided(data, layout) if layout else data, fmt), expected)
    assert max(sizes) <= max(chunk, fmt.block_size)
    assert sum(sizes) == expected.numel()


@pytest.mark.parametrize("dtype", OUTPUT_DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_output_dtypes(fmt: Format, dtype: torch.dtype) -> None:
    data = random_rows(fmt, 2, 3)
    expected = dequantize(data, fmt).to(dtype)
    for found in (
        dequantize(data, fmt, dtype=dtype),
        dequantize(data, fmt, out=torch.full_like(expected, 7.0)),
        dequantize(data, fmt, dtype=dtype, out=torch.full_like(expected, 7.0)),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


Q8_0_ROWS = torch.zeros(3, 68, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("data", "dtype", "out", "message"),
    [
        (torch.zeros(3, 33, dtype=torch.uint8), None, None, "Q8_0 must be a multiple of 34 bytes, found 33"),
        (Q8_0_ROWS.view(torch.int8), None, None, "expected uint8 .* found torch.int8"),
        (Q8_0_ROWS.float(), None, None, "expected uint8 .* found torch.float32"),
        (torch.tensor(1, dtype=torch.uint8), None, None, r"expected uint8 \[..., row bytes\]"),
        (Q8_0_ROWS, torch.int8, None, "found torch.int8"),
        (Q8_0_ROWS, None, torch.empty(3, 64, dtype=torch.float64), "found torch.float64"),
        (Q8_0_ROWS, None, torch.empty(3, 63), r"\[3, 64\] .* found torch.float32 \[3, 63\]"),
        (Q8_0_ROWS, torch.float32, torch.empty(3, 64).half(), "must be torch.float32 .* found torch.float16"),
        (Q8_0_ROWS, None, torch.empty(3, 64, device="meta"), "on cpu, found .* on meta"),
    ],
)
def test_what_does_not_fit_is_refused(
    data: Tensor, dtype: torch.dtype | None, out: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dequantize(data, format_by_name("Q8_0"), dtype=dtype, out=out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_gpu_equals_cpu(fmt: Format) -> None:
    blocks = torch.from_numpy(extreme_blocks(fmt))
    assert_same_bits(dequantize(blocks.cuda(), fmt).cpu(), dequantize(blocks, fmt))


def read_tensors(path: Path) -> dict[str, tuple[Format, Tensor]]:
    """Name to format and bytes of every tensor of a GGUF file."""
    return {
        tensor.name: (format_by_id(int(tensor.tensor_type)), torch.from_numpy(tensor.data.copy().view(np.uint8)))
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_real_files(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's reader refuses ids that it does not know (Q2_0).
    kinds = IntEnum("kinds", {fmt.name: fmt.id for fmt in FORMATS})  # type: ignore[misc]
    monkeypatch.setattr(gguf.gguf_reader, "GGMLQuantizationType", kinds)
    for fmt in FORMATS:
        monkeypatch.setitem(gguf.GGML_QUANT_SIZES, fmt.id, (fmt.block_size, fmt.type_size))

    models = shared_data / "models"
    original = {
        name: dequantize(data, fmt) for name, (fmt, data) in read_tensors(models / "tinystories256-f16.gguf").items()
    }
    worst: dict[str, float] = defaultdict(float)
    for path in sorted((models / "tinystories256-quants").glob("*.gguf")):
        squares: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2))
        for name, (fmt, data) in read_tensors(path).items():
            exact = original[name]
            error = torch.dist(dequantize(data, fmt).view(exact.shape), exact)
            squares[fmt.name] += torch.stack((error, exact.norm())).square()
        for kind, (error_square, square) in squares.items():
            worst[kind] = max(worst[kind], math.sqrt(error_square / square))
    assert worst.keys() == MEASURED_RMS.keys()
    assert {kind: rms for kind, rms in worst.items() if rms > 1.1 * MEASURED_RMS[kind]} == {}
