"""GGUF files that are damaged or made to harm: each is refused with a GGUFError, quickly and in little memory."""

import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    RawTensor,
    array,
    contents,
    gguf_bytes,
    pack,
    pair,
    string,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from naiad.loaders.gguf import MAX_OBJECTS, GGUFError, GGUFFile
from naiad.quant.formats import FORMATS, RETIRED

PAIRS = (
    pair("a.int", INT32, pack("i", -5)),
    pair("a.text", STRING, string("tête")),
    pair("a.words", ARRAY, array(STRING, 2, string("one") + string(""))),
    pair("a.numbers", ARRAY, array(FLOAT32, 3, pack("3f", 1, 2, 3))),
    pair("a.nested", ARRAY, array(ARRAY, 1, array(BOOL, 2, b"\1\0"))),
)
TENSORS = (
    RawTensor("f32", (4, 2), 0, bytes(range(32))),
    RawTensor("q8_0", (32, 2), 8, bytes(range(68))),
    RawTensor("i8", (5,), 24, b"12345"),
)
GOOD = gguf_bytes(*PAIRS, tensors=TENSORS)
DATA_BYTES = 32 + 96 + 32


def alignment(value: int, type_id: int = UINT32) -> bytes:
    return pair("general.alignment", type_id, pack("I", value))


def one(**fields: object) -> bytes:
    """A file with one tensor."""
    return gguf_bytes(*PAIRS, tensors=[RawTensor(**fields)])  # type: ignore[arg-type]


# Name, the file, what the message says (None: the file is good). First the kinds of files of llama.cpp's own
# test-gguf.cpp under their names, then others.
BIG = 2**63 - 64
CASES: list[tuple[str, bytes, str | None]] = [
    ("HEADER_BAD_MAGIC", gguf_bytes(magic=b"FUGG"), r"starts with b'FUGG', expected b'GGUF'"),
    ("HEADER_BAD_VERSION_0", gguf_bytes(version=0), r"version 0, expected one of 2, 3, 4"),
    ("HEADER_BAD_VERSION_1", gguf_bytes(version=1), r"version 1 is no longer supported"),
    ("HEADER_BAD_VERSION_FUTURE", gguf_bytes(version=5), r"version 5, expected one of 2, 3, 4"),
    ("HEADER_BAD_N_TENSORS", gguf_bytes(n_tensors=-1), r"18446744073709551615 tensors and 0 meta.* needs"),
    ("HEADER_BAD_N_KV", gguf_bytes(n_kv=-1), r"0 tensors and 18446744073709551615 metadata pairs needs"),
    ("HEADER_EMPTY", gguf_bytes(), None),
    (
        "KV_BAD_KEY_SIZE",
        gguf_bytes(pack("Q", 2**64 - 1) + PAIRS[0][8:]),
        r"metadata key 0 has 18446744073709551615 bytes, expected at most 65535",
    ),
    ("KV_EMPTY_KEY", gguf_bytes(pair("", INT32, bytes(4))), r"metadata key 0 is empty"),
    ("KV_BAD_TYPE", gguf_bytes(pair("k", 13, bytes(4))), r"'k' has the unknown type 13, expected 0 to 12"),
    ("KV_DUPLICATE_KEY", gguf_bytes(*PAIRS, PAIRS[0]), r"key 'a.int' appears twice"),
    ("KV_BAD_ALIGN", gguf_bytes(*PAIRS, alignment(13)), r"alignment must be a power of two, found 13"),
    ("KV_WRONG_TYPE_ALIGN", gguf_bytes(alignment(32, INT32)), r"must be of type UINT32, found INT32"),
    ("KV_SUCCESS", gguf_bytes(*PAIRS), None),
    ("TENSORS_BAD_NAME_SIZE", one(name="n" * 64), r"name of tensor 0 has 64 bytes, expected at most 63"),
    ("TENSORS_BAD_N_DIMS", one(n_dims=5), r"tensor 't' has 5 dimensions, expected at most 4"),
    ("TENSORS_BAD_SHAPE", one(dims=(-1,)), r"shape \[18446744073709551615\], expected less than 2\*\*63"),
    ("TENSORS_ZERO_DIM", one(dims=(4, 0), data=b""), None),
    ("TENSORS_NE_TOO_BIG", one(dims=(2**33 - 4, 2**33 - 4)), r"shape \[8589934588, 8589934588\], exp"),
    ("TENSORS_NBYTES_TOO_BIG", one(dims=(2**31, 2**30), type_id=27), r"shape .* less than 2\*\*63 bytes"),
    ("TENSORS_NBYTES_PAD_WRAP", one(dims=(4, 2**30 - 1, 2**30 + 1)), r"shape .* less than 2\*\*63 bytes"),
    ("TENSORS_BAD_TYPE", one(type_id=43), r"tensor 't': unknown tensor format id 43"),
    ("TENSORS_BAD_OFFSET", one(offset=-1), r"tensor 't' has offset 18446744073709551615, expected 0"),
    (
        "TENSORS_DUPLICATE_NAME",
        gguf_bytes(tensors=[TENSORS[0], RawTensor("f32")]),
        r"tensor 'f32' appears twice",
    ),
    ("TENSORS_BAD_ALIGN", gguf_bytes(alignment(13), tensors=TENSORS), r"power of two, found 13"),
    (
        "TENSORS_INCONSISTENT_ALIGN",
        gguf_bytes(tensors=TENSORS, alignment=4) + bytes(64),
        r"tensor 'i8' has offset 100, expected 128",
    ),
    ("TENSORS_SUCCESS", GOOD, None),
    ("TENSORS_CUSTOM_ALIGN", gguf_bytes(alignment(1), tensors=TENSORS, alignment=1), None),
    (
        "DATA_NOT_ENOUGH_DATA",
        gguf_bytes(alignment(1), tensors=TENSORS, alignment=1)[:-1],
        r"tensor 'i8' \(I8, shape \[5\]\) needs 5 bytes at offset \d+, but the file has \d+: is it truncated",
    ),
    ("DATA_BAD_ALIGN", gguf_bytes(alignment(0), tensors=TENSORS), r"power of two, found 0"),
    (
        "DATA_INCONSISTENT_ALIGN",
        gguf_bytes(alignment(8), tensors=TENSORS, alignment=4),
        r"tensor 'i8' has offset 100, expected 104",
    ),
    ("DATA_MEM_SIZE_OVERFLOW", one(dims=(BIG,), type_id=24), rf"needs {BIG} bytes at offset \d+, but the"),
    ("DATA_SUCCESS", GOOD + bytes(7), None),
    ("DATA_CUSTOM_ALIGN", gguf_bytes(alignment(256), tensors=TENSORS, alignment=256), None),
    # Below: our own.
    ("empty file", b"", r"not a GGUF file: 0 bytes, the header alone has 24"),
    ("header cut short", GOOD[:23], r"not a GGUF file: 23 bytes"),
    ("endless text", b"GGUF" + b"A" * 1000, r"version 1094795585, expected one of"),
    ("the last tensor's padding missing", GOOD[:-27], None),
    ("key of 65535 bytes", gguf_bytes(pair("k" * 65_535, UINT8, b"\1")), None),
    ("key of 65536 bytes", gguf_bytes(pair("k" * 65_536, UINT8, b"\1")), r"has 65536 bytes, expected at most"),
    ("huge string", gguf_bytes(pair("k", STRING, pack("Q", 2**62))), r"'k' needs 4611686018427387904 bytes"),
    ("huge array of numbers", gguf_bytes(pair("k", ARRAY, array(UINT64, 2**61, b""))), r"'k' needs \d+ bytes"),
    ("huge array of strings", gguf_bytes(pair("k", ARRAY, array(STRING, 2**60, b""))), r"'k' needs \d+ bytes"),
    ("huge array of arrays", gguf_bytes(pair("k", ARRAY, array(ARRAY, 2**60, b""))), r"'k' needs \d+ bytes"),
    (
        "array of an unknown type",
        gguf_bytes(pair("k", ARRAY, array(13, 1, bytes(8)))),
        r"'k' has the unknown element type 13, expected 0 to 12",
    ),
    (
        "string of an array too long",
        gguf_bytes(pair("k", ARRAY, array(STRING, 2, string("ab") + pack("Q", 99)))),
        r"'k': string 1 has 99 bytes, but the file has \d+ left",
    ),
    (
        "array of strings ends early",
        gguf_bytes(pair("k", ARRAY, array(STRING, 2, string("x" * 16))), alignment=1),
        r"'k' has 2 strings, but the file ends after 1",
    ),
    (
        "arrays nested 4 deep",
        gguf_bytes(pair("k", ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(UINT8, 1, b"\1")))))),
        None,
    ),
    ("arrays nested 5 deep", gguf_bytes(pair("k", ARRAY, array(ARRAY, 1, b"") * 4 + array(0, 0, b""))), r"deep"),
    ("arrays nested to the end", gguf_bytes(pair("k", ARRAY, array(ARRAY, 1, b"") * 5000)), r"more than 4 deep"),
    ("alignment is an array", gguf_bytes(pair("general.alignment", ARRAY, array(UINT32, 0, b""))), r"found ARRAY"),
    ("alignment 2**31", gguf_bytes(alignment(2**31)), None),
    ("tensors beyond the padding", gguf_bytes(alignment(2**31), tensors=[RawTensor()]), r"is it truncated"),
    ("rows of broken blocks", one(dims=(33,), type_id=8), r"Q8_0 must be a multiple of 32 weights, found 33"),
    ("a 0-d tensor of blocks", one(dims=(), type_id=8), r"Q8_0 must be a multiple of 32 weights, found 1"),
    ("0-d", one(dims=(), data=bytes(4)), None),
    ("zero and huge dimensions", one(dims=(2**62, 0), data=b""), r"less than 2\*\*63 bytes"),
    ("zero and many dimensions", one(dims=(2**40, 2**40, 0), data=b""), r"less than 2\*\*63 bytes"),
    ("zero and large dimensions", one(dims=(2**30, 2**30, 0), data=b""), None),
    ("name of 63 bytes", one(name="n" * 63), None),
    ("split.count is a string", gguf_bytes(pair("split.count", STRING, string("x" * 9999))), r"found 'x.*x'$"),
    ("split.count is an array", gguf_bytes(pair("split.count", ARRAY, array(INT32, 2, bytes(8)))), r"found array"),
    ("split.count is negative", gguf_bytes(pair("split.count", INT32, pack("i", -1))), r">= 0, found -1"),
    ("split.count is huge", gguf_bytes(pair("split.count", UINT64, b"\xff" * 8)), r"expected at most 99999"),
    ("split.no is missing", gguf_bytes(pair("split.count", INT32, pack("i", 2))), r"split.no must be an int"),
    ("split.count of 1", gguf_bytes(pair("split.count", INT32, pack("i", 1))), None),
    *(
        (f"retired {name}", one(type_id=type_id), rf"tensor 't': tensor format {name} was retired")
        for type_id, name in RETIRED.items()
    ),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some model.gguf"


def refused(path: Path) -> str | None:
    """Opens a file and reads all of it: the message of the GGUFError, None if it is good."""
    try:
        with GGUFFile(path) as file:
            contents(file)
    except GGUFError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "data", "message"), CASES, ids=[name for name, _, _ in CASES])
def test_bad_and_good_files(path: Path, name: str, data: bytes, message: str | None) -> None:
    path.write_bytes(data)
    found = refused(path)
    if message is None:
        assert found is None
    else:
        assert found is not None and re.search(message, found)
        assert found.startswith(str(path)) and len(found) < 400


def test_all_of_llama_cpps_kinds_are_there() -> None:
    assert sum(name.isupper() for name, _, _ in CASES) == 34


def test_a_good_file_is_read_right(path: Path) -> None:
    path.write_bytes(GOOD)
    file = GGUFFile(path)
    numbers, nested = file.kv.pop("a.numbers"), file.kv.pop("a.nested")
    assert file.kv == {"a.int": -5, "a.text": "tête", "a.words": ["one", ""]}
    assert numbers.tolist() == [1, 2, 3] and nested[0].tolist() == [True, False]
    assert contents(file) == {
        "f32": ("F32", (2, 4), bytes(range(32))),
        "q8_0": ("Q8_0", (2, 32), bytes(range(68))),
        "i8": ("I8", (5,), b"12345"),
    }


def test_truncated_anywhere(path: Path) -> None:
    for n_bytes in range(len(GOOD)):
        path.write_bytes(GOOD[:n_bytes])
        assert (refused(path) is None) == (n_bytes >= len(GOOD) - 27), n_bytes


@pytest.mark.parametrize("order", "<>")
def test_any_bit_wrong(path: Path, order: str) -> None:
    """Every bit of the header flipped, one at a time."""
    big = gguf_bytes(pair("k", ARRAY, array(UINT8, 1, b"a", ">"), ">"), tensors=TENSORS, order=">")
    good = GOOD if order == "<" else big
    path.write_bytes(good)
    assert refused(path) is None
    messages = []
    for i in range(len(good) - DATA_BYTES):
        for bit in range(8):
            path.write_bytes(good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :])
            messages.append(refused(path))
    assert messages.count(None) < len(messages) / 2


def test_any_byte_wrong_in_little_memory(path: Path) -> None:
    """Every byte of the header at its extremes: no size that a file claims is believed."""
    tracemalloc.start()
    for i in range(len(GOOD) - DATA_BYTES):
        for byte in (0x00, 0x7F, 0xFF):
            path.write_bytes(GOOD[:i] + bytes([byte]) + GOOD[i + 1 :])
            refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_many_objects_are_refused_before_they_are_made(path: Path) -> None:
    """A file of zeros (sparse, so it costs nothing) claims more empty strings, or arrays, than any model has."""
    for element in (STRING, ARRAY):
        head = gguf_bytes(pair("k", ARRAY, array(element, MAX_OBJECTS + 1, b"")), alignment=1)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + 12 * (MAX_OBJECTS + 1))
        tracemalloc.start()
        message = refused(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert message is not None and "more than 16777216 strings or arrays" in message
        assert peak < 1e6


FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@FUZZ
@given(version=st.sampled_from([2, 3, 4]), order=st.sampled_from("<>"), tail=st.binary(max_size=300))
def test_random_bytes_after_the_version(path: Path, version: int, order: str, tail: bytes) -> None:
    path.write_bytes(b"GGUF" + struct.pack(order + "I", version) + tail)
    refused(path)


@FUZZ
@given(n_kv=st.integers(0, 3), n_tensors=st.integers(0, 3), tail=st.binary(min_size=60, max_size=300))
def test_random_bytes_after_the_header(path: Path, n_kv: int, n_tensors: int, tail: bytes) -> None:
    path.write_bytes(gguf_bytes(n_kv=n_kv, n_tensors=n_tensors, alignment=1) + tail)
    refused(path)


@FUZZ
@given(st.data())
def test_random_mutations(path: Path, data: st.DataObject) -> None:
    """Pieces cut out, doubled, overwritten by random bytes or by sizes that tempt."""
    mutated = bytearray(GOOD)
    sizes = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]).map(lambda n: pack("Q", n))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(4, len(GOOD)))
        stop = start + data.draw(st.integers(0, 32))
        piece = data.draw(st.one_of(st.binary(max_size=16), sizes, st.just(bytes(mutated[start:stop]) * 2)))
        mutated[start:stop] = piece
    path.write_bytes(mutated)
    refused(path)


@FUZZ
@given(
    dims=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1)), max_size=4),
    fmt=st.sampled_from(FORMATS),
)
def test_any_shape(path: Path, dims: list[int], fmt: object) -> None:
    path.write_bytes(one(dims=tuple(dims), type_id=fmt.id))  # type: ignore[attr-defined]
    message = refused(path)
    if message is None:
        (tensor,) = GGUFFile(path).tensors.values()
        assert tensor.n_elements == np.prod(dims, dtype=object) and tensor.n_bytes <= 64
