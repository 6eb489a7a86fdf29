"""Matrix products on the CPU: every format against its twin in torch; activations' records; weights as numbers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from cpu_kernels import DTYPES, Weights, packed, random_rows, random_weights, run_kernel, runnable_isas
from torch import Tensor

from naiad.quant import formats
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import Format, format_by_name
from naiad.runtime.cpu_kernels.activations import (
    gate_quantise,
    gate_rows,
    norm_quantise,
    norm_rows,
    quantise,
    record_bytes,
)
from naiad.runtime.cpu_kernels.isa import ISAS
from naiad.runtime.cpu_kernels.kernel import this_host
from naiad.runtime.cpu_kernels.product import SERVED, product
from naiad.runtime.cpu_kernels.rows import dense, rows
from naiad.runtime.cpu_kernels.tiles import unpacked

FORMATS = [fmt for fmt in formats.FORMATS if fmt.is_quantized or fmt.name in DTYPES]
OWN = this_host().isa.name
# Two strips and a part of one.
N_OUT = 37


def ids(value: object) -> str:
    return value.name if isinstance(value, Format) else str(value)


def odd_width(fmt: Format) -> int:
    """Weights in a row: not a multiple of 256 where the format can do without."""
    return {1: 300, 32: 352, 64: 448, 128: 384}.get(fmt.block_size, 512)


def error(found: Tensor, expected: Tensor) -> float:
    """RMS of the difference over RMS of what is expected; NaN where anything found is NaN."""
    return float(((found.double() - expected.double()).square().mean() / expected.double().square().mean()).sqrt())


# ---- activations ----


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of records: codes float32 [n, n_in / 32, 32] and scales [n, n_in / 32, 1]."""
    groups = x.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127 / largest, 0)
    return (groups * inverse).round(), largest * torch.tensor(1 / 127)


def new_records(n_rows: int, n_in: int) -> npt.NDArray[np.uint8]:
    return np.full((n_rows, record_bytes(n_in)), 0xFF, np.uint8)


def records_of(x: Tensor, *, isa: str = OWN) -> npt.NDArray[np.uint8]:
    records = new_records(*x.shape)
    run_kernel(
        quantise,
        isa=isa,
        x=x.data_ptr(),
        x_stride=4 * x.stride(0),
        records=records.ctypes.data,
        records_stride=records.strides[0],
        n_rows=len(x),
        width=x.shape[1],
    )
    return records


def check_records(records: npt.NDArray[np.uint8], x: Tensor) -> None:
    """That records are those of x, to the last bit."""
    codes, scale = quantised(x)
    found = torch.from_numpy(records).unflatten(1, (-1, 64))
    assert torch.equal(found[..., :32].view(torch.int8).float(), codes)
    assert torch.equal(found[..., 32:36].contiguous().view(torch.float32), scale)
    sums = torch.stack((codes[..., :16].sum(-1), codes[..., 16:].sum(-1), codes.sum(-1)), -1)
    assert torch.equal(found[..., 36:48].contiguous().view(torch.int32), -sums.int())
    assert torch.equal(found[..., 48:60].contiguous().view(torch.float32), -scale * sums)


@pytest.mark.parametrize("width", [32, 544, 1056])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_records(width: int, scale: float) -> None:
    x = torch.randn(5, width) * scale
    check_records(records_of(x), x)


def test_records_of_extreme_groups() -> None:
    x = torch.randn(3, 128)
    x[0, 32:64] = 0
    x[1] = 0
    # One value far above the others, halves between codes, the largest number there is.
    x[2, :32] = 1e-6
    x[2, 5] = -1e6
    x[2, 32:64] = torch.arange(32) - 15.5
    x[2, 40] = 127
    x[2, 64] = torch.finfo(torch.float32).max
    check_records(records_of(x), x)


def close_records(records: npt.NDArray[np.uint8], expected: Tensor) -> None:
    """That records are those of values which may differ in the last bits."""
    found = torch.from_numpy(records).unflatten(1, (-1, 64))
    values = found[..., :32].view(torch.int8) * found[..., 32:36].contiguous().view(torch.float32)
    step = expected.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    assert ((values - expected.unflatten(-1, (-1, 32))).abs() <= 0.501 * step + 1e-30).all()
    sums = found[..., :32].view(torch.int8).int().unflatten(-1, (2, 16)).sum(-1)
    assert torch.equal(found[..., 36:44].contiguous().view(torch.int32), -sums)


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()).float()


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_norm_quantise(eps: float) -> None:
    x, weight, records = torch.randn(5, 416), torch.randn(416), new_records(5, 416)
    run_kernel(
        norm_quantise,
        x=x.data_ptr(),
        x_stride=4 * 416,
        weight=weight.data_ptr(),
        eps=eps,
        records=records.ctypes.data,
        records_stride=records.strides[0],
        n_rows=5,
        width=416,
    )
    close_records(records, normed(x, weight, eps))


@pytest.mark.parametrize("add", ["nothing", "rows", "itself"])
def test_norm_rows(add: str) -> None:
    x, weight, more = torch.randn(3, 208), torch.randn(208), torch.randn(3, 208)
    y = {"nothing": torch.full_like(x, torch.nan), "rows": x.clone(), "itself": more.clone()}[add]
    source = y if add == "rows" else x
    run_kernel(
        norm_rows,
        x=source.data_ptr(),
        x_stride=4 * 208,
        weight=weight.data_ptr(),
        eps=1e-5,
        add={"nothing": 0, "rows": more.data_ptr(), "itself": y.data_ptr()}[add],
        add_stride=4 * 208,
        y=y.data_ptr(),
        y_stride=4 * 208,
        n_rows=3,
        width=208,
    )
    expected = normed(x, weight, 1e-5) + (0 if add == "nothing" else more)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


GATES = {"silu": F.silu, "gelu": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("activation", GATES)
def test_gates(activation: str) -> None:
    gate, up = torch.randn(3, 1056) * 5, torch.randn(3, 1056)
    gate[0, :6] = torch.tensor([0.0, -0.0, -200.0, 200.0, -20.0, 1e-20])
    expected = (GATES[activation](gate.double()) * up.double()).float()
    records, y = new_records(3, 1056), torch.full_like(gate, torch.nan)
    sources: dict[str, Any] = {
        "gate": gate.data_ptr(),
        "gate_stride": 4 * 1056,
        "up": up.data_ptr(),
        "up_stride": 4 * 1056,
        "n_rows": 3,
        "width": 1056,
    }
    run_kernel(gate_quantise, activation, **sources, records=records.ctypes.data, records_stride=records.strides[0])
    close_records(records, expected)
    run_kernel(gate_rows, activation, **sources, y=y.data_ptr(), y_stride=4 * 1056)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


# ---- strips ----


def test_every_format_is_served() -> None:
    assert {fmt.name for fmt in FORMATS} == SERVED


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_strips_hold_the_file(fmt: Format) -> None:
    n_in = odd_width(fmt)
    matrices = torch.randint(0, 256, (2, N_OUT, fmt.row_bytes(n_in)), dtype=torch.uint8)
    found = unpacked(packed(matrices, fmt, n_in), fmt, n_in).reshape(2, 48, -1)
    assert (found[:, :N_OUT] == matrices.numpy()).all()
    assert not found[:, N_OUT:].any()


# ---- products ----


def small_integers(n_rows: int, n_in: int) -> Tensor:
    """Activations whose codes are themselves, divided by one of two powers of two for each group."""
    x = torch.randint(-127, 128, (n_rows, n_in)).float()
    groups = x.view(n_rows, -1, 32) if n_in % 32 == 0 else x.view(n_rows, 1, -1)
    groups[..., 7] = 127
    groups /= torch.randint(1, 3, groups[..., :1].shape)
    return x


def multiplied(
    weights: Weights,
    x: Tensor,
    *,
    columns: int = 1,
    k_units: int = 1 << 20,
    column_block: int = 64,
    chunk: int = 2,
    add: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    isa: str = OWN,
) -> Tensor:
    """x W^T by the kernel. Where `add` is as large as y it is overwritten by the result."""
    width = 16 * weights.n_strips
    records = records_of(x, isa=isa) if weights.fmt.is_quantized else x.numpy()
    y = torch.full((len(x), width), torch.nan) if add is None or add.shape[1] != width else add
    run_kernel(
        product,
        weights.fmt.name,
        columns,
        *(() if scale is None else (True,)),
        isa=isa,
        x=records.ctypes.data,
        x_stride=records.strides[0],
        n_rows=len(x),
        weights=weights.address,
        n_units=weights.n_units,
        n_strips=weights.n_strips,
        y=y.data_ptr(),
        y_stride=4 * width,
        add=0 if add is None else add.data_ptr(),
        add_stride=0 if add is None else 4 * add.stride(0),
        bias=0 if bias is None else bias.data_ptr(),
        scale=0 if scale is None else scale.data_ptr(),
        k_units=k_units,
        column_block=column_block,
        chunk=chunk,
    )
    return y[:, : weights.n_out]


def twin(weights: Weights, x: Tensor) -> Tensor:
    """The exact product with what the kernel takes for x."""
    if weights.fmt.is_quantized:
        codes, scale = quantised(x)
        x = (codes.double() * scale.double()).flatten(1)
    return x.double() @ weights.numbers.double().T


def check_exact(fmt: Format, isa: str = OWN, columns: int = 1) -> None:
    n_in = odd_width(fmt)
    weights, x = random_weights(fmt, N_OUT, n_in, exact=True), small_integers(3, n_in)
    expected = twin(weights, x)
    assert torch.equal(expected.float().double(), expected)
    assert torch.equal(multiplied(weights, x, columns=columns, isa=isa), expected.float())


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_integers_are_multiplied_exactly(fmt: Format) -> None:
    check_exact(fmt)


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_product(fmt: Format) -> None:
    n_in = odd_width(fmt)
    weights, x = random_weights(fmt, N_OUT, n_in), torch.randn(3, n_in)
    expected = twin(weights, x)
    found = multiplied(weights, x)
    assert error(found, expected) < 1e-6
    assert torch.equal(multiplied(weights, x, k_units=1, column_block=2, chunk=1), found)


# An offset, halves with a scale each, a table, plain numbers; by as many columns as processors have use for.
BLOCKS = [("Q4_K", 8), ("Q6_K", 4), ("IQ2_S", 4), ("Q8_0", 8), ("F16", 8)]


@pytest.mark.parametrize(("name", "columns"), BLOCKS, ids=ids)
@pytest.mark.parametrize("n_rows", [1, 3, 8, 21])
def test_blocks_of_columns(name: str, columns: int, n_rows: int) -> None:
    fmt = format_by_name(name)
    n_in = odd_width(fmt)
    weights, x = random_weights(fmt, N_OUT, n_in), torch.randn(n_rows, n_in)
    n = weights.n_units // 2
    found = multiplied(weights, x, columns=columns, k_units=n, column_block=10)
    assert error(found, twin(weights, x)) < 1e-6
    # No row depends on what is multiplied beside it, or in which blocks.
    assert torch.equal(found, torch.cat([multiplied(weights, row[None]) for row in x]))


@pytest.mark.parametrize(("name", "columns"), BLOCKS, ids=ids)
def test_integers_are_multiplied_exactly_by_columns(name: str, columns: int) -> None:
    check_exact(format_by_name(name), columns=columns)


@pytest.mark.parametrize("add", ["nothing", "rows", "itself"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("name", "columns"), [("Q4_K", 1), ("Q4_K", 8), ("F16", 1)])
def test_what_products_are_added_to(name: str, columns: int, add: str, with_bias: bool) -> None:
    fmt = format_by_name(name)
    n_in = odd_width(fmt)
    weights, x, bias = random_weights(fmt, N_OUT, n_in), torch.randn(9, n_in), torch.randn(48)
    # Rows of another stride, or the result's own.
    more = {"nothing": None, "rows": torch.randn(9, 64), "itself": torch.randn(9, 48)}[add]
    expected = twin(weights, x)
    if more is not None:
        expected += more[:, :N_OUT]
    if with_bias:
        expected += bias[:N_OUT]
    found = multiplied(weights, x, columns=columns, k_units=1, add=more, bias=bias if with_bias else None)
    assert error(found, expected) < 1e-6


@pytest.mark.parametrize("add", ["nothing", "itself"])
@pytest.mark.parametrize(("name", "columns"), [("NVFP4", 1), ("NVFP4", 8), ("F16", 1)])
def test_products_are_scaled_before_anything_is_added(name: str, columns: int, add: str) -> None:
    fmt = format_by_name(name)
    n_in = odd_width(fmt)
    weights, x, bias = random_weights(fmt, N_OUT, n_in), torch.randn(9, n_in), torch.randn(48)
    scale = 1e-3 * torch.randn(48)
    more = torch.randn(9, 48) if add == "itself" else None
    expected = twin(weights, x) * scale[:N_OUT] + bias[:N_OUT] + (0 if more is None else more[:, :N_OUT])
    found = multiplied(weights, x, columns=columns, k_units=1, add=more, bias=bias, scale=scale)
    assert error(found, expected) < 1e-6


# One format for each way of multiplying, looking up and scaling.
OTHER_ISAS = [
    (name, isa) for isa in runnable_isas() if isa != OWN for name in ("Q4_K", "Q6_K", "Q8_0", "IQ4_NL", "IQ2_S", "F32")
]


@pytest.mark.parametrize(("name", "isa"), OTHER_ISAS)
def test_other_instruction_sets(name: str, isa: str) -> None:
    check_exact(format_by_name(name), isa=isa)


# Those whose sums are as large as their number of bits allows.
NARROW = [fmt for fmt in FORMATS if re.fullmatch("Q[2-8]_[01K]|IQ4_..|MXFP4", fmt.name)]


@pytest.mark.parametrize("isa", [isa for isa in runnable_isas() if isa in (OWN, "avx2")])
@pytest.mark.parametrize("fmt", NARROW, ids=ids)
def test_extreme_codes_do_not_overflow(fmt: Format, isa: str) -> None:
    """All weights at the end of their range, all activations 127 or -127: the largest sums that there can be."""
    n_in = odd_width(fmt)
    rows = random_rows(fmt, N_OUT, n_in, exact=True).view(N_OUT, -1, fmt.type_size)
    start = 0
    for field in fmt.fields:
        if field.name in ("qs", "ql", "qh", "hmask", "scales"):
            for row, byte in ((0, 0xFF), (1, 0x00), (2, 0x80), (3, 0x7F)):
                rows[row::4, :, start : start + field.n_bytes] = byte
        start += field.n_bytes
    rows = rows.view(N_OUT, -1)
    weights = Weights(fmt, N_OUT, n_in, packed(rows[None], fmt, n_in), dequantize(rows, fmt))
    x = torch.full((4, n_in), 127.0)
    x[1] = -127
    x[2, ::2] = -127
    x[3, 1::3] = -127
    assert error(multiplied(weights, x, isa=isa), twin(weights, x)) < 1e-6


def test_own_columns_are_tested() -> None:
    """The number of columns that this processor's kernels are made for."""
    assert {columns for _, columns in BLOCKS} >= {ISAS[name].columns for name in ISAS}


# ---- numbers ----


def as_rows(weights: Weights, output: str, *, isa: str = OWN) -> Tensor:
    """All rows by the kernel, each followed by 8 values that stay as they were."""
    y = torch.full((weights.n_out, weights.n_in + 8), torch.nan, dtype=DTYPES[output])
    run_kernel(
        dense,
        weights.fmt.name,
        output,
        isa=isa,
        weights=weights.address,
        n_units=weights.n_units,
        n_out=weights.n_out,
        y=y.data_ptr(),
        y_stride=y.stride(0) * y.element_size(),
    )
    assert y[:, weights.n_in :].isnan().all()
    return y[:, : weights.n_in]


# What is stored is decoded by the same lines that products have been checked with: a few of each kind will do.
STORED = ("F16", "Q4_0", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_XS", "TQ1_0")


@pytest.mark.parametrize(
    "fmt", [pytest.param(f, marks=() if f.name in STORED else pytest.mark.slow) for f in FORMATS], ids=ids
)
def test_dense(fmt: Format) -> None:
    weights = random_weights(fmt, N_OUT, odd_width(fmt))
    assert torch.equal(as_rows(weights, "F32"), weights.numbers)


@pytest.mark.parametrize("name", ["F32", "Q5_K", "Q8_0"])
def test_dense_bfloat16(name: str) -> None:
    fmt = format_by_name(name)
    weights = random_weights(fmt, N_OUT, odd_width(fmt))
    assert torch.equal(as_rows(weights, "BF16"), weights.numbers.bfloat16())


@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q6_K", "IQ3_S"])
def test_rows(name: str) -> None:
    fmt = format_by_name(name)
    weights = random_weights(fmt, N_OUT, odd_width(fmt))
    wanted = torch.tensor([36, 0, 15, 16, 16, 31])
    y = torch.full((len(wanted), weights.n_in), torch.nan)
    run_kernel(
        rows,
        fmt.name,
        ids=wanted.data_ptr(),
        n=len(wanted),
        weights=weights.address,
        n_units=weights.n_units,
        y=y.data_ptr(),
        y_stride=4 * weights.n_in,
    )
    assert torch.equal(y, weights.numbers[wanted])


def test_a_stack_of_experts() -> None:
    """Matrices of a stack begin at whole strips."""
    raw = torch.stack([random_rows(formats.Q5_0, 21, 96, exact=True) for _ in range(3)])
    strips = packed(raw, formats.Q5_0, 96)
    x = small_integers(2, 96)
    for i in range(3):
        one = Weights(formats.Q5_0, 21, 96, strips[2 * i : 2 * i + 2], dequantize(raw[i], formats.Q5_0))
        assert torch.equal(multiplied(one, x), twin(one, x).float())
