"""Format records: sizes and ids against ggml's, names, and what is refused."""

import gguf
import pytest

from naiad.quant.formats import FORMATS, RETIRED, Format, format_by_id, format_by_name

# Weights and bytes per block of ggml's type table where the gguf package has none or another: it lacks Q2_0,
# and gives Q8_1 the two float32 scales of years ago.
SIZES_OF_GGML = {"Q2_0": (64, 18), "Q8_1": (32, 36)}


def ids(fmt: Format) -> str:
    return fmt.name


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_sizes_are_those_of_ggml(fmt: Format) -> None:
    expected = SIZES_OF_GGML.get(fmt.name) or gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(fmt.id)]
    assert (fmt.block_size, fmt.type_size) == expected
    assert fmt.bits_per_weight == 8 * expected[1] / expected[0]
    assert fmt.is_quantized == (expected[0] > 1)


def test_ids_and_names_are_those_of_ggml() -> None:
    ours = {fmt.name: fmt.id for fmt in FORMATS}
    theirs = {kind.name: int(kind) for kind in gguf.GGMLQuantizationType if kind < 43}
    assert theirs.items() <= ours.items()
    assert {fmt.id for fmt in FORMATS} | set(RETIRED) == set(range(43))
    assert not {fmt.id for fmt in FORMATS} & set(RETIRED)


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_lookup(fmt: Format) -> None:
    assert format_by_id(fmt.id) is fmt
    assert format_by_name(fmt.name) is fmt
    assert format_by_name(fmt.name.lower()) is fmt


def test_iq4_xxs_means_iq4_xs() -> None:
    assert format_by_name("iq4_xxs") is format_by_id(23)


@pytest.mark.parametrize(("id", "name"), RETIRED.items())
def test_retired_formats_are_refused_by_name(id: int, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} was retired.*requantise"):
        format_by_id(id)
    with pytest.raises(ValueError, match=rf"{name} was retired.*requantise"):
        format_by_name(name.lower())


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown tensor format id 43"):
        format_by_id(43)
    with pytest.raises(ValueError, match="unknown tensor format id -1"):
        format_by_id(-1)
    with pytest.raises(ValueError, match="unknown tensor format 'q9_k', expected one of F32, "):
        format_by_name("q9_k")


@pytest.mark.parametrize("fmt", FORMATS, ids=ids)
def test_row_bytes(fmt: Format) -> None:
    assert fmt.row_bytes(0) == 0
    assert fmt.row_bytes(3 * fmt.block_size) == 3 * fmt.type_size
    if fmt.is_quantized:
        with pytest.raises(ValueError, match=f"{fmt.name} .* {fmt.block_size} .* {fmt.block_size + 1}"):
            fmt.row_bytes(fmt.block_size + 1)
