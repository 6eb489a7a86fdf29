"""Rows of a paged cache: kernels write the twin's planes bit for bit and read every type."""

# Triton gives a kernel's annotations a meaning of its own.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from kernel_cases import DEVICE, ON_GPU

from naiad.quant.cache_types import CACHE_TYPES, cache_type
from naiad.triton_kernels import codebooks
from naiad.triton_kernels.kv_cache import load_rows, plane_pointers, store_rows
from naiad.triton_kernels.tuning import arch_of, isa

pytestmark = [*ON_GPU, pytest.mark.usefixtures("poisoned")]
N_ROWS = 11


@triton.jit
def write_kernel(
    x, data, high, scales, at, n, D: tl.constexpr, WIDTH: tl.constexpr, R: tl.constexpr, TYPE: tl.constexpr
):
    i, column = tl.arange(0, R), tl.arange(0, WIDTH)
    values = tl.load(x + i[:, None] * D + column[None, :], mask=(i < n)[:, None] & (column < D)[None, :], other=0.0)
    store_rows(values, data, high, scales, tl.load(at + i, mask=i < n, other=0), i < n, TYPE, D)


@triton.jit
def read_kernel(
    out,
    data,
    high,
    scales,
    lut,
    at,
    n,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    TYPE: tl.constexpr,
    ISA: tl.constexpr,
):
    DTYPE: tl.constexpr = out.dtype.element_ty
    i = tl.arange(0, R)
    row = tl.load(at + i, mask=i < n, other=0)
    found = load_rows(data, high, scales, lut, row, FIRST, WIDTH, D, TYPE, DTYPE, ISA)
    tl.store(out + i[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], found, mask=(i < n)[:, None])


def head_dims(name: str) -> list[int]:
    if name == "fp8":
        return [16, 80]
    return [64, 96] if CACHE_TYPES[name].bits else [12, 80]


CASES = [(name, d) for name in CACHE_TYPES for d in head_dims(name)]


def numbers(head_dim: int) -> torch.Tensor:
    """Rows of ordinary numbers, of tiny and large ones, of zeros, of one sign, and with ties."""
    x = torch.randn(N_ROWS, head_dim) * torch.logspace(-3, 2, N_ROWS)[:, None]
    x[0] = 0
    x[1] = x[1].abs() + 1
    x[2] = -x[2].abs()
    x[3, :8] = torch.tensor([8.0, -8.0, 0.5, -0.5, 1.5, 2.5, 7.5, -7.5])
    x[3, 8:] = 0.25
    x[4, :6] = torch.tensor([449.0, -1e5, 2**-9, 2**-10, 3 * 2**-10, 0.0155])
    return x


def planes_of(name: str, head_dim: int, n: int) -> tuple[torch.Tensor | None, ...]:
    """Empty planes: data, high, scales."""
    planes = [torch.empty(n, w, dtype=d, device=DEVICE) for w, d in cache_type(name).planes(head_dim)]
    return plane_pointers(planes)


@pytest.mark.parametrize(("name", "head_dim"), CASES)
def test_written_planes_equal_the_twins(name: str, head_dim: int) -> None:
    x, places = numbers(head_dim), torch.randperm(N_ROWS)
    planes = planes_of(name, head_dim, N_ROWS)
    options = {"D": head_dim, "WIDTH": triton.next_power_of_2(head_dim), "R": 16, "TYPE": name}
    write_kernel[1,](x.to(DEVICE), *planes, places.to(DEVICE), N_ROWS, **options, enable_fp_fusion=True)
    found = [plane for plane in planes if plane is not None]
    for plane, expected in zip(found, cache_type(name).encode(x), strict=True):
        assert torch.equal(plane[places.to(DEVICE)].cpu(), expected)


def check_reading(name: str, head_dim: int, x: torch.Tensor, dtype: torch.dtype, tolerance: float) -> None:
    """Rows of encoded x, read as numbers of a type, against the twin's."""
    kind, places = cache_type(name), torch.randperm(N_ROWS)
    parts = kind.encode(x)
    expected = kind.decode(parts, torch.float32)[places]
    on_device = [part.to(DEVICE) for part in parts]
    planes = plane_pointers(on_device)
    first = 64 if head_dim > 64 else 0
    width = 32 if head_dim > 64 else max(16, triton.next_power_of_2(head_dim))
    out = torch.empty(N_ROWS, width, dtype=dtype, device=DEVICE)
    options = {"FIRST": first, "WIDTH": width, "D": head_dim, "R": 16, "TYPE": name, "ISA": isa(arch_of(DEVICE))}
    lut = codebooks.table(DEVICE)
    read_kernel[1,](out, *planes, lut, places.to(DEVICE), N_ROWS, **options, enable_fp_fusion=True)
    wanted = torch.zeros(N_ROWS, width)
    wanted[:, : head_dim - first] = expected[:, first : first + width]
    atol = tolerance * float(wanted.abs().max())
    torch.testing.assert_close(out.cpu().float(), wanted, rtol=tolerance, atol=atol, equal_nan=True)


@pytest.mark.parametrize(("name", "head_dim"), CASES)
def test_read_rows_equal_the_twins(name: str, head_dim: int) -> None:
    check_reading(name, head_dim, numbers(head_dim), torch.float32, 1e-6)


@pytest.mark.parametrize(("name", "head_dim"), [case for case in CASES if case[0] not in ("f32", "bf16")])
@pytest.mark.parametrize("size", [1e-4, 1.0, 5e3])
def test_rows_read_as_halves(name: str, head_dim: int, size: float) -> None:
    """Up to the largest that f16 holds, and down to where scales are denormal: rounded once, with a minimum twice."""
    x = torch.randn(N_ROWS, head_dim).clamp(-6, 6) * size
    check_reading(name, head_dim, x, torch.float16, 2**-10 if CACHE_TYPES[name].has_minimum else 2**-11)
