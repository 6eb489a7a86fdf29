"""Linear layers over packed weights: every format, route, kernel and epilogue against its twin in torch."""

from dataclasses import replace
from itertools import product as product_of
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from kernel_cases import (
    DEVICE,
    INT8_TOLERANCE,
    KERNEL_FORMATS,
    ON_GPU,
    QUANTIZED,
    TOLERANCE,
    error,
    odd_width,
    random_rows,
    random_weight,
)
from torch import Tensor

from naiad.loaders.gguf import GGUFFile
from naiad.quant import formats
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import Format
from naiad.triton_kernels.activations import INT8_SCALES, INT8_SUMS, quantize, quantize_reference
from naiad.triton_kernels.linear import NEVER_SHARED, Linear, vector_lanes
from naiad.triton_kernels.tuning import SharedTile, Tile, Vector, arch_of, tuning
from naiad.triton_kernels.weights import PackedWeight

pytestmark = [
    *ON_GPU,
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # integers wrap, as on a GPU
]

TABLE = tuning(arch_of(DEVICE))
N_OUT = 21
# Small tiles, so that a few rows already take several programs.
TILE = Tile(max_rows=0, bn=32, bm=16, warps=4, stages=1, split=False, int8=False)
# Every kernel, whatever the number of rows: the table that leads to it.
KERNELS = {
    "matvec": replace(TABLE, matvec_rows=64, exact_rows=64),
    "matmul": replace(TABLE, matvec_rows=0, exact_rows=0, tiles=(TILE,), shared=None, workspace_rows=1000),
    "matmul shared": replace(TABLE, matvec_rows=0, exact_rows=0, shared=SharedTile(1, 32, 64, 4, 1)),
    "matmul int8": replace(TABLE, matvec_rows=0, tiles=(replace(TILE, int8=True),), shared=None, workspace_rows=1000),
    "workspace": replace(TABLE, matvec_rows=0, exact_rows=0, workspace_rows=1),
}


def ids(fmt: Format) -> str:
    return fmt.name


def product(x: Tensor, twin: Tensor) -> Tensor:
    return x.cpu().double() @ twin.double().T


def rows_of(count: int, n_in: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, n_in, device=DEVICE).to(dtype)


# ---- formats x kernels x routes ----


@pytest.mark.parametrize("fmt", KERNEL_FORMATS, ids=ids)
def test_exact_matvec(fmt: Format) -> None:
    weight, twin = random_weight(fmt, N_OUT, odd_width(fmt))
    x = rows_of(1, odd_width(fmt))
    assert error(Linear([weight], route="exact", table=KERNELS["matvec"])(x), product(x, twin)) < TOLERANCE[x.dtype]


@pytest.mark.parametrize(
    ("fmt", "n_rows"),
    [(fmt, 1) for fmt in QUANTIZED] + [(formats.Q4_K, 2), (formats.Q6_K, 3), (formats.Q8_0, 7)],
    ids=lambda value: value.name if isinstance(value, Format) else str(value),
)
def test_int8_matvec(fmt: Format, n_rows: int) -> None:
    weight, twin = random_weight(fmt, 40 if n_rows == 7 else N_OUT, odd_width(fmt))
    x = rows_of(n_rows, odd_width(fmt))
    found = Linear([weight], route="int8", table=KERNELS["matvec"])(x)
    assert error(found, product(x, twin)) < INT8_TOLERANCE
    # Apart from the rounding of x, which is the same in the twin, only float32 sums are inexact.
    q, scale, _ = quantize_reference(x.cpu())
    rounded = (q.double().unflatten(2, (8, 32)) * scale.double().unsqueeze(-1)).flatten(1)[:, : odd_width(fmt)]
    assert error(found, product(rounded, twin)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("fmt", QUANTIZED, ids=ids)
def test_integers_match_exactly(fmt: Format) -> None:
    """Scales that are powers of two and activations that are small integers leave nothing to round."""
    rows = random_rows(fmt, 16, 512, scales=torch.tensor([0.25, 0.5, 1.0]))
    if fmt is formats.IQ1_M:
        rows.view(-1, 56)[:, 49::2] &= 0x0F  # f16 1.0 is 0x3C00, and the highest nibble comes last
        rows.view(-1, 56)[:, 53] |= 0xC0
        rows.view(-1, 56)[:, 55] |= 0x30
    if fmt is formats.MXFP4:
        rows.view(-1, 17)[:, 0] = torch.randint(125, 131, (rows.numel() // 17,), dtype=torch.uint8)
    if fmt is formats.NVFP4:
        rows.view(-1, 36)[:, :4] = torch.randint(0x30, 0x48, (rows.numel() // 36, 4), dtype=torch.uint8)
    weight = PackedWeight.pack(rows.to(DEVICE), fmt, (16, 512))
    x = torch.randint(-3, 4, (1, 512)).float()
    x[:, ::32] = 127  # the largest of every group, so that its scale is 1
    found = Linear([weight], route="int8", table=KERNELS["matvec"])(x.to(DEVICE))
    assert torch.equal(found.cpu().double(), product(x, dequantize(rows, fmt)))


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [(fmt, torch.float32) for fmt in KERNEL_FORMATS]
    + list(product_of((formats.Q4_K, formats.Q6_K, formats.MXFP4, formats.BF16), (torch.float16, torch.bfloat16))),
    ids=lambda value: value.name if isinstance(value, Format) else str(value),
)
def test_exact_matmul(fmt: Format, dtype: torch.dtype) -> None:
    weight, twin = random_weight(fmt, N_OUT, odd_width(fmt))
    x = rows_of(19, odd_width(fmt), dtype)
    assert error(Linear([weight], route="exact", table=KERNELS["matmul"])(x), product(x, twin)) < TOLERANCE[dtype]


@pytest.mark.parametrize("fmt", [fmt for fmt in KERNEL_FORMATS if fmt is not formats.F32], ids=ids)
def test_shared_matmul(fmt: Format) -> None:
    """Numbers rounded to 16 bits, made of bytes in one step, for every format; rows past the last are not read."""
    weight, twin = random_weight(fmt, N_OUT, odd_width(fmt))
    x = rows_of(19, odd_width(fmt), torch.float16)
    layer = Linear([weight], route="int8", table=KERNELS["matmul shared"])
    assert isinstance(layer._tile(x), Tile if fmt in NEVER_SHARED else SharedTile)
    assert error(layer(x), product(x, twin)) < TOLERANCE[x.dtype]
    assert isinstance(layer._tile(rows_of(65, 1, x.dtype)), Tile) and isinstance(layer._tile(x.float()), Tile)


@pytest.mark.parametrize("fmt", [formats.Q2_K, formats.Q4_K, formats.Q6_K, formats.Q8_0, formats.IQ4_NL], ids=ids)
def test_int8_matmul(fmt: Format) -> None:
    """One format for each way in which scales and offsets come."""
    weight, twin = random_weight(fmt, N_OUT, odd_width(fmt))
    x = rows_of(5, odd_width(fmt))
    found = Linear([weight], route="int8", table=KERNELS["matmul int8"])(x)
    assert error(found, product(x, twin)) < INT8_TOLERANCE
    assert error(found, Linear([weight], route="int8", table=KERNELS["matvec"])(x)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("fmt", [formats.Q4_K, formats.F16], ids=ids)
def test_workspace(fmt: Format) -> None:
    weight, twin = random_weight(fmt, N_OUT, odd_width(fmt))
    x = rows_of(19, odd_width(fmt))
    # Room for five rows of W at a time.
    layer = Linear([weight], table=KERNELS["workspace"], workspace_bytes=5 * 4 * odd_width(fmt))
    assert error(layer(x), product(x, twin)) < TOLERANCE[x.dtype]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="equal only where sums have the same order")
def test_float32_weights_are_not_rounded_to_the_type_of_x() -> None:
    weight, twin = random_weight(formats.F32, 40, 256)
    x = rows_of(3, 256, torch.bfloat16)
    assert torch.equal(Linear([weight])(x).cpu(), (x.cpu().float() @ twin.T).bfloat16())


def test_strided_activations() -> None:
    weight, twin = random_weight(formats.Q5_0, N_OUT, 352)
    x = rows_of(4, 1000)[::2, 7:359]
    for name in ("matvec", "matmul", "workspace"):
        found = Linear([weight], route="exact", table=KERNELS[name])(x)
        assert error(found, product(x, twin)) < TOLERANCE[x.dtype], name


# ---- activations ----


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_quantized_activations_equal_the_twin(dtype: torch.dtype) -> None:
    largest = min(torch.finfo(dtype).max / 8, 1e30)
    x = (torch.randn(3, 300) * torch.tensor([[1.0], [1 / largest], [largest]])).to(dtype)
    x[0, :32] = 0
    x[0, 32:64] = torch.arange(-16, 16) + 0.5
    x[1, 32:64] = 1e-42  # its inverse is infinite
    words = quantize(x.to(DEVICE)).cpu()
    q, scale, sums = quantize_reference(x)
    assert torch.equal(words[:, :, :64].contiguous().view(torch.int8), q)
    at_scales, at_sums = 4 * INT8_SCALES.value, 4 * INT8_SUMS.value
    assert torch.equal(words[:, :, at_scales : at_scales + 8].view(torch.float32), scale)
    torch.testing.assert_close(words[:, :, at_sums : at_sums + 16].view(torch.float32), sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("n_units", "lanes"), [(1, 32), (3, 32), (14, 256), (16, 256), (20, 128), (56, 256), (74, 256), (108, 256)]
)
def test_few_lanes_wait_for_others(n_units: int, lanes: int) -> None:
    """16 rows beside each other, at most 8 warps of 32; the units of real models among the lanes that share a row."""
    assert vector_lanes(replace(TABLE, vector=Vector(16, 8, 4)), 32, n_units) == lanes


# ---- several matrices, epilogues ----


@pytest.mark.parametrize("kernel", ["matvec", "matmul", "workspace"])
@pytest.mark.parametrize("route", ["int8", "exact"])
def test_matrices_of_different_formats_side_by_side(kernel: str, route: str) -> None:
    """Q, K and V as Q4_K_M has them, with a bias, added to a residual."""
    parts = [random_weight(fmt, n, 512) for fmt, n in ((formats.Q4_K, 70), (formats.Q4_0, 33), (formats.Q6_K, 5))]
    bias, x, residual = (torch.randn(shape, device=DEVICE) for shape in (108, (3, 512), (3, 108)))
    layer = Linear([weight for weight, _ in parts], bias=bias, route=route, table=KERNELS[kernel])  # type: ignore[arg-type]
    expected = product(x, torch.cat([twin for _, twin in parts])) + bias.cpu() + residual.cpu()
    int8 = route == "int8" and kernel == "matvec"
    assert error(layer(x, residual), expected) < (INT8_TOLERANCE if int8 else TOLERANCE[x.dtype])


@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("kernel", ["matvec", "matmul", "workspace"])
def test_gated_pair(kernel: str, activation: str) -> None:
    (gate, gate_twin), (up, up_twin) = random_weight(formats.Q4_K, 37, 256), random_weight(formats.Q6_K, 37, 256)
    x = rows_of(3, 256)
    layer = Linear([gate, up], activation=activation, route="exact", table=KERNELS[kernel])  # type: ignore[arg-type]
    opened = product(x, gate_twin)
    act = torch.nn.functional.silu(opened) if activation == "silu" else _gelu(opened)
    assert error(layer(x), act * product(x, up_twin)) < 2 * TOLERANCE[x.dtype]


def test_gated_pair_of_large_values_has_no_nan() -> None:
    weight, _ = random_weight(formats.Q8_0, 8, 256)
    x = 1e4 * rows_of(1, 256)
    for activation in ("silu", "gelu"):
        assert Linear([weight, weight], activation=activation, table=KERNELS["matvec"])(x).isfinite().all()


def _gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


@pytest.mark.parametrize("activation", [None, "silu"])
def test_split_k_adds_in_order(activation: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.triton_kernels.linear.multiprocessors", lambda device: 100)
    table = replace(KERNELS["matmul"], tiles=(replace(TILE, split=True),))
    (a, a_twin), (b, b_twin) = random_weight(formats.Q4_K, 40, 1024), random_weight(formats.Q4_K, 40, 1024)
    x = rows_of(2, 1024)
    layer = Linear([a, b], activation=activation, route="exact", table=table)  # type: ignore[arg-type]
    assert layer._splits(2, table.tiles[0]) == 4
    first, second = product(x, a_twin), product(x, b_twin)
    expected = torch.nn.functional.silu(first) * second if activation else torch.cat([first, second], 1)
    found = layer(x)
    assert error(found, expected) < 2 * TOLERANCE[x.dtype]
    assert torch.equal(found, layer(x))


@pytest.mark.parametrize("n_programs", [1, 100])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_shared_tiles_of_several_matrices(
    activation: str | None, n_programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether K is divided or not; a gated pair is joined by the kernel that adds."""
    monkeypatch.setattr("naiad.triton_kernels.linear.multiprocessors", lambda device: n_programs)
    (a, a_twin), (b, b_twin) = random_weight(formats.Q4_K, 40, 768), random_weight(formats.Q6_K, 40, 768)
    bias = torch.randn(80, device=DEVICE)
    x = rows_of(5, 768, torch.float16)
    residual = None if activation else rows_of(5, 80, torch.float16)
    layer = Linear([a, b], bias=bias, activation=activation, table=KERNELS["matmul shared"])  # type: ignore[arg-type]
    assert layer._splits(5, layer._tile(x)) == (2 if n_programs > 1 else 1)
    first = product(x, a_twin) + bias[:40].cpu()
    second = product(x, b_twin) + bias[40:].cpu()
    expected = torch.nn.functional.silu(first) * second if activation else torch.cat([first, second], 1)
    if residual is not None:
        expected += residual.cpu()
    assert error(layer(x, residual), expected) < 2 * TOLERANCE[x.dtype]


def test_batch_invariant_rows_do_not_depend_on_their_neighbours() -> None:
    weight, twin = random_weight(formats.Q4_K, 40, 512)
    layer = Linear([weight], batch_invariant=True, table=replace(TABLE, invariant=TILE))
    x = rows_of(21, 512)
    together = layer(x)
    assert error(together, product(x, twin)) < TOLERANCE[x.dtype]
    for start, stop in ((0, 1), (4, 6), (3, 20)):
        assert torch.equal(layer(x[start:stop]), together[start:stop])


def test_no_rows() -> None:
    weight, _ = random_weight(formats.Q4_K, 40, 256)
    assert Linear([weight])(rows_of(0, 256)).shape == (0, 40)


# ---- real weights ----

RECORDED_FORMATS = {fmt.name for fmt in QUANTIZED} - {"MXFP4", "NVFP4"}


def test_real_files(shared_data: Path) -> None:
    """A matrix of every format that the quantised models of the test data have."""
    seen: set[str] = set()
    for path in sorted((shared_data / "models/tinystories256-quants").glob("*.gguf")):
        with GGUFFile(path) as file:
            for tensor in file.tensors.values():
                if tensor.format.name in seen or tensor.format not in QUANTIZED or len(tensor.shape) != 2:
                    continue
                seen.add(tensor.format.name)
                rows = tensor.bytes()[:17].clone()
                weight = PackedWeight.pack(rows.to(DEVICE), tensor.format, (len(rows), tensor.shape[1]))
                x = rows_of(1, tensor.shape[1])
                expected = product(x, dequantize(rows, tensor.format))
                found = Linear([weight], route="exact", table=KERNELS["matvec"])(x)
                assert error(found, expected) < TOLERANCE[x.dtype], tensor.format.name
                found = Linear([weight], route="int8", table=KERNELS["matvec"])(x)
                # The rows of a trained matrix are alike, so that the luck of one x shows in all results.
                assert error(found, expected) < 2 * INT8_TOLERANCE, tensor.format.name
    assert seen >= RECORDED_FORMATS


# ---- bad input ----


def test_what_does_not_fit_is_refused_when_the_layer_is_made() -> None:
    q4, _ = random_weight(formats.Q4_K, 8, 512)
    narrow, _ = random_weight(formats.Q4_K, 8, 256)
    short, _ = random_weight(formats.Q4_K, 7, 512)
    stack = PackedWeight.pack(random_rows(formats.Q4_K, 2, 8, 512).to(DEVICE), formats.Q4_K, (2, 8, 512))
    with pytest.raises(ValueError, match="one to three matrices"):
        Linear([])
    with pytest.raises(ValueError, match=r"one to three matrices.*2, 8, 512"):
        Linear([stack])
    with pytest.raises(ValueError, match=r"one n_in on one device, found shapes \[\(8, 512\), \(8, 256\)\]"):
        Linear([q4, narrow])
    with pytest.raises(ValueError, match=r"two matrices of one shape without a bias, found 2 of shapes.*\(7, 512\)"):
        Linear([q4, short], activation="silu")
    with pytest.raises(ValueError, match="and a bias"):
        Linear([q4, q4], activation="silu", bias=torch.zeros(8, device=DEVICE))
    with pytest.raises(ValueError, match=r"expected a bias \[8\].*found \[9\]"):
        Linear([q4], bias=torch.zeros(9, device=DEVICE))


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 511), torch.zeros(512), torch.zeros(512, 2).T, torch.zeros(2, 512, dtype=torch.float64)],
    ids=["width", "dimensions", "strides", "dtype"],
)
def test_activations_that_do_not_fit_are_refused(x: Tensor) -> None:
    weight, _ = random_weight(formats.Q4_K, 8, 512)
    with pytest.raises(ValueError, match=r"expected x \[M, 512\] with unit stride.*found"):
        Linear([weight])(x.to(DEVICE))


def test_residuals_that_do_not_fit_are_refused() -> None:
    weight, _ = random_weight(formats.Q4_K, 8, 256)
    x = rows_of(2, 256)
    with pytest.raises(ValueError, match=r"expected a residual \[2, 8\], contiguous, found \[2, 7\]"):
        Linear([weight])(x, torch.zeros(2, 7, device=DEVICE))
    with pytest.raises(ValueError, match="expected a residual"):
        Linear([weight])(x, torch.zeros(8, 2, device=DEVICE).T)
    with pytest.raises(ValueError, match="no residual beside an activation"):
        Linear([weight, weight], activation="silu")(x, torch.zeros(2, 8, device=DEVICE))
