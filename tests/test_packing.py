"""Packed planes: nothing lost, nothing added, nothing taken that does not fit."""

import pytest
import torch

pytest.importorskip("triton")

from kernel_cases import KERNEL_FORMATS, odd_width, random_rows

from naiad.quant import formats
from naiad.quant.formats import Format
from naiad.triton_kernels import packing


def ids(fmt: Format) -> str:
    return fmt.name


@pytest.mark.parametrize("fmt", KERNEL_FORMATS, ids=ids)
def test_planes_hold_every_byte_once_and_aligned(fmt: Format) -> None:
    planes = packing.planes(fmt)
    covered = [byte for plane in planes for byte in range(plane.start, plane.start + plane.width)]
    assert sorted(covered) == list(range(packing.unit_bytes(fmt)))
    assert all(plane.at % plane.width == 0 for plane in planes)
    assert [plane.at for plane in planes] == [sum(p.width for p in planes[:i]) for i in range(len(planes))]


@pytest.mark.parametrize("fmt", KERNEL_FORMATS, ids=ids)
def test_no_bit_is_added(fmt: Format) -> None:
    assert 8 * packing.unit_bytes(fmt) / packing.UNIT == fmt.bits_per_weight
    assert packing.packed_bytes(fmt, 64, 1024) == 64 * fmt.row_bytes(1024) + packing.factor_bytes(fmt)


@pytest.mark.parametrize("fmt", KERNEL_FORMATS, ids=ids)
def test_stacks_and_parts_are_packed_alike(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    n_in = odd_width(fmt)
    rows = random_rows(fmt, 2, 7, n_in)
    packed = packing.pack(rows, fmt, n_in)
    monkeypatch.setattr(packing, "CHUNK_BYTES", 3 * fmt.row_bytes(n_in))
    for i in range(2):
        assert torch.equal(packing.pack(rows[i].clone(), fmt, n_in), packed[i])
    assert packed[0].data_ptr() % 16 == 0 and packed.stride(0) % 16 == 0


def test_a_plane_is_what_the_documentation_says() -> None:
    rows = random_rows(formats.Q4_K, 3, 512)
    packed = packing.pack(rows, formats.Q4_K, 512)
    blocks = rows.view(3, 2, 9, 16)  # row, unit, piece
    assert torch.equal(packed.view(9, 2, 3, 16), blocks.permute(2, 1, 0, 3))


@pytest.mark.parametrize(
    ("rows", "n_in", "message"),
    [
        (torch.zeros(2, 144, dtype=torch.int8), 256, "expected uint8"),
        (torch.zeros(144, dtype=torch.uint8), 256, "expected uint8"),
        (torch.zeros(2, 143, dtype=torch.uint8), 256, r"\[..., n_out, 144\].*found.*143"),
        (torch.zeros(2, 144, dtype=torch.uint8), 200, "multiple of 256 weights, found 200"),
    ],
    ids=["dtype", "no rows", "short rows", "no whole blocks"],
)
def test_what_does_not_fit_is_refused(rows: torch.Tensor, n_in: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packing.pack(rows, formats.Q4_K, n_in)


def test_a_matrix_whose_words_int32_cannot_count_is_refused() -> None:
    with pytest.raises(ValueError, match="which is not below"):
        packing.packed_bytes(formats.Q8_0, 10**6, 8192)
