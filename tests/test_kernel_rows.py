"""Every decoder, through the kernel that turns rows of packed weights into numbers."""

import pytest
import torch

pytest.importorskip("triton")

from kernel_cases import DEVICE, EXTREME, KERNEL_FORMATS, ON_GPU, error, odd_width, random_rows, random_weight

from naiad.quant import formats
from naiad.quant.dequantize import dequantize
from naiad.quant.formats import Format
from naiad.triton_kernels.weights import PackedWeight

pytestmark = [
    *ON_GPU,
    pytest.mark.usefixtures("poisoned"),
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),  # integers wrap, as on a GPU
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]


def ids(fmt: Format) -> str:
    return fmt.name


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit in the interpreter; a GPU fuses the product and the sum of a weight."""
    if DEVICE.type == "cpu":
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    else:
        assert error(found, expected) < 1e-6


@pytest.mark.parametrize("fmt", KERNEL_FORMATS, ids=ids)
def test_rows_equal_the_twin(fmt: Format) -> None:
    n_in = odd_width(fmt)
    weight, twin = random_weight(fmt, 29, n_in)
    chosen = torch.tensor([28, 0, 5, 5, 17], device=DEVICE)
    assert_same(weight.rows(chosen, torch.float32).cpu(), twin[chosen.cpu()])
    assert_same(weight.dense(3, 28, torch.float32).cpu(), twin[3:28])


@pytest.mark.skipif(DEVICE.type != "cpu", reason="what a GPU does with denormals and NaN is its own")
@pytest.mark.parametrize("fmt", [fmt for fmt in KERNEL_FORMATS if fmt.is_quantized], ids=ids)
def test_extreme_scales(fmt: Format) -> None:
    n_in = odd_width(fmt)
    rows = random_rows(fmt, 20, n_in, scales=EXTREME)
    weight = PackedWeight.pack(rows, fmt, (20, n_in))
    assert_same(weight.dense(0, 20, torch.float32), dequantize(rows, fmt))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fmt", [formats.Q4_K, formats.Q8_0, formats.F32, formats.BF16], ids=ids)
def test_numbers_are_rounded_to_the_type_asked_for(fmt: Format, dtype: torch.dtype) -> None:
    weight, twin = random_weight(fmt, 5, odd_width(fmt))
    assert_same(weight.dense(0, 5, dtype).cpu(), twin.to(dtype))


def test_an_id_outside_the_matrix_gives_zeros() -> None:
    weight, twin = random_weight(formats.Q6_K, 4, 256)
    found = weight.rows(torch.tensor([3, 4, -1, 2**40], device=DEVICE), torch.float32).cpu()
    assert_same(found[0], twin[3])
    assert not found[1:].any()


def test_experts_are_matrices_of_a_stack() -> None:
    rows = random_rows(formats.Q5_K, 3, 5, 256)
    stack = PackedWeight.pack(rows.to(DEVICE), formats.Q5_K, (3, 5, 256))
    assert_same(stack.expert(2).dense(0, 5, torch.float32).cpu(), dequantize(rows[2], formats.Q5_K))
    with pytest.raises(ValueError, match="expected a matrix, found a stack"):
        stack.dense(0, 1, torch.float32)


def test_no_rows() -> None:
    weight, _ = random_weight(formats.Q4_K, 4, 256)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert weight.rows(none, torch.float32).shape == (0, 256)


def test_what_does_not_fit_is_refused() -> None:
    weight, _ = random_weight(formats.Q4_K, 4, 256)
    with pytest.raises(ValueError, match=r"rows within 0 … 4, found \[2, 5\)"):
        weight.dense(2, 5, torch.float32)
    with pytest.raises(ValueError, match=r"expected ids int32 or int64 \[n\].*found torch.float32"):
        weight.rows(torch.zeros(2), torch.float32)
    with pytest.raises(ValueError, match="no kernel decodes I32"):
        PackedWeight.pack(torch.zeros(1, 16, dtype=torch.uint8), formats.I32, (1, 4))
    with pytest.raises(ValueError, match="expected rows of shape"):
        PackedWeight.pack(torch.zeros(3, 144, dtype=torch.uint8), formats.Q4_K, (4, 256))
