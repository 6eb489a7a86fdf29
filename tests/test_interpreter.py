"""Triton's interpreter, as interpreter.repair() leaves it, against torch."""

# Triton gives a kernel's annotations a meaning of its own.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import os
from typing import Any

import interpreter
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
import triton.runtime.interpreter as stock

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels run on a device where TRITON_INTERPRET is not 1"
)

N = 128
SPECIAL = (0.0, -0.0, 1.0, -1.0, 3e38, -3e38, 1e-40, -1e-40, float("inf"), -float("inf"), float("nan"))
# Bits of float32 around what a cast to bfloat16 must decide: ties to even and to odd, their neighbours, the largest
# finite values (the last rounds to infinity), denormals, infinities, and a NaN whose upper 16 bits alone are infinity.
EDGES = (
    *(0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x3F817FFF, 0x3F818001, 0xBF808000, 0xBF818000),
    *(0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0xFF7FFFFF, 0x00000001, 0x00008000, 0x00008001),
    *(0x00018000, 0x80018000, 0x007FFFFF, 0x007F8000, 0x00800000, 0x7F800000, 0xFF800000, 0x7F800001),
    *(0xFFFFFFFF, 0x7FC00000, 0x00000000, 0x80000000),
)


@triton.jit
def arithmetic_kernel(x, y, out, n: tl.constexpr):
    i = tl.arange(0, n)
    a = tl.load(x + i)
    b = tl.load(y + i)
    tl.store(out + i, a + b)
    tl.store(out + n + i, a - b)
    tl.store(out + 2 * n + i, a * b)
    tl.store(out + 3 * n + i, a / b)
    tl.store(out + 4 * n + i, -a)
    tl.store(out + 5 * n + i, tl.abs(a))
    tl.store(out + 6 * n + i, a * 1.5 + 3.0)
    tl.store(out + 7 * n + i, tl.fma(a, b, a))


@triton.jit
def choice_kernel(x, y, out, n: tl.constexpr):
    i = tl.arange(0, n)
    a = tl.load(x + i)
    b = tl.load(y + i)
    tl.store(out + i, tl.maximum(a, b))
    tl.store(out + n + i, tl.minimum(a, b))
    tl.store(out + 2 * n + i, tl.where(a < b, a, b))
    tl.store(out + 3 * n + i, tl.clamp(a, tl.full((n,), -0.5, tl.bfloat16), tl.full((n,), 0.75, tl.bfloat16)))


@triton.jit
def comparison_kernel(x, y, out, n: tl.constexpr):
    i = tl.arange(0, n)
    a = tl.load(x + i)
    b = tl.load(y + i)
    tl.store(out + i, a < b)
    tl.store(out + n + i, a <= b)
    tl.store(out + 2 * n + i, a > b)
    tl.store(out + 3 * n + i, a >= b)
    tl.store(out + 4 * n + i, a == b)
    tl.store(out + 5 * n + i, a != b)
    tl.store(out + 6 * n + i, (a < b).to(tl.bfloat16))


@triton.jit
def copy_kernel(x, out, n: tl.constexpr):
    i = tl.arange(0, n)
    tl.store(out + i, tl.load(x + i))


@triton.jit
def reduce_kernel(x, out, n: tl.constexpr):
    a = tl.load(x + tl.arange(0, n))
    tl.store(out, tl.sum(a, 0))
    tl.store(out + 1, tl.max(a, 0))
    tl.store(out + 2, tl.min(a, 0))
    tl.store(out + 3 + tl.arange(0, n), tl.cumsum(a, 0))


@triton.jit
def dot_kernel(x, y, out, n: tl.constexpr):
    i = tl.arange(0, n)
    square = i[:, None] * n + i[None, :]
    tl.store(out + square, tl.dot(tl.load(x + square), tl.load(y + square)))


@triton.jit
def loops_kernel(out, n):
    total = 0
    for i in range(0, n):
        total += i
    for i in tl.range(n):
        total += i
    k = n
    while k > 0:
        total += k
        k -= 1
    if n > 3:
        total += 1000
    tl.store(out, total)


@pytest.fixture(scope="module", autouse=True)
def repaired() -> None:
    interpreter.repair()


def pairs() -> tuple[Tensor, Tensor]:
    """Two bfloat16 [N]: every pair of SPECIAL, and random numbers of both signs."""
    special = torch.cartesian_prod(torch.tensor(SPECIAL), torch.tensor(SPECIAL))
    both = torch.cat([special, torch.randn(N - len(special), 2)]).bfloat16()
    return both[:, 0].contiguous(), both[:, 1].contiguous()


def launched(kernel: Any, *inputs: Tensor, rows: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    out = torch.full((rows, N), 77).to(dtype)
    kernel[(1,)](*inputs, out, n=N)
    return out


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    """The same bits, but for NaN: which one a machine gives is its own affair."""
    integer = {2: torch.int16, 4: torch.int32}[got.element_size()]
    assert got.dtype == expected.dtype
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(0.0).view(integer), expected.nan_to_num(0.0).view(integer))


def test_arithmetic_is_that_of_torch() -> None:
    a, b = pairs()
    got = launched(arithmetic_kernel, a, b, rows=8)
    got[4] += 0.0  # Triton 3.6.0 negates as 0 - x, and so has no -0 there
    negated = -a + 0.0
    fused = (a.float() * b.float() + a.float()).bfloat16()
    expected = torch.stack([a + b, a - b, a * b, a / b, negated, a.abs(), a * 1.5 + 3.0, fused])
    assert_same_bits(got, expected)


def test_choices_compare_values_and_keep_bits() -> None:
    a, b = torch.randn(2, N).bfloat16()
    expected = torch.stack([a.maximum(b), a.minimum(b), torch.where(a < b, a, b), a.clamp(-0.5, 0.75)])
    assert_same_bits(launched(choice_kernel, a, b, rows=4), expected)


def test_comparisons_are_those_of_torch() -> None:
    a, b = pairs()
    got = launched(comparison_kernel, a, b, rows=7, dtype=torch.float32)
    assert torch.equal(got.bool(), torch.stack([a < b, a <= b, a > b, a >= b, a == b, a != b, a < b]))
    assert torch.equal(got, got.bool().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32])
def test_cast_to_bfloat16_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    bits = torch.cat([torch.tensor(EDGES), torch.randint(0, 1 << 32, (N - len(EDGES),))]).to(torch.int32)
    values = bits if dtype == torch.int32 else bits.view(torch.float32).to(dtype)
    assert_same_bits(launched(copy_kernel, values, rows=1)[0], values.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32])
def test_cast_from_bfloat16_takes_the_value(dtype: torch.dtype) -> None:
    x = torch.randn(N).mul_(1000).bfloat16()
    if dtype == torch.float32:
        x[:4] = torch.tensor([1e-40, -1e-40, float("inf"), float("nan")])
    got = launched(copy_kernel, x, rows=1, dtype=dtype)[0]
    assert torch.equal(got.nan_to_num(1.0), x.to(dtype).nan_to_num(1.0))


def test_reductions_add_and_compare_values() -> None:
    x = torch.randint(-8, 9, (N,)).bfloat16()  # integers: every partial sum is exact in float32
    got = torch.empty(3 + N, dtype=torch.bfloat16)
    reduce_kernel[(1,)](x, got, n=N)
    expected = torch.stack([x.float().sum(), x.float().max(), x.float().min()])
    assert_same_bits(got, torch.cat([expected, x.float().cumsum(0)]).bfloat16())


def test_dot_of_bfloat16_has_float32_precision() -> None:
    x, y = torch.randn(2, N, N).bfloat16()
    out = torch.empty(N, N)
    dot_kernel[(1,)](x, y, out, n=N)
    expected = x.float() @ y.float()
    assert (out - expected).norm() / expected.norm() < 1e-6


def test_loops_run_to_a_bound_from_an_argument() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    loops_kernel[(1,)](out, 5)
    assert out.item() == 10 + 10 + 15 + 1000


def test_repair_twice_is_repair_once() -> None:
    repaired = dict(vars(stock.InterpreterBuilder))
    interpreter.repair()
    assert dict(vars(stock.InterpreterBuilder)) == repaired


@pytest.mark.parametrize(("name", "found"), [("create_none", "nothing of that name"), ("create_idiv", "self lhs rhs")])
def test_other_internals_are_refused_by_name(name: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(stock, "bf16_repaired")
    monkeypatch.setattr(interpreter, "SIGNATURES", {f"InterpreterBuilder.{name}": "self lhs rhs op"})
    message = rf"Triton {triton.__version__}: .*InterpreterBuilder\.{name}: got {found}, expected self lhs rhs op$"
    with pytest.raises(RuntimeError, match=message):
        interpreter.repair()


def test_without_triton_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(stock, "bf16_repaired")
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None)
    interpreter.repair()
    assert not hasattr(stock, "bf16_repaired")
