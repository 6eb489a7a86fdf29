"""GGUF files written here are read back unchanged, by us and by the gguf package, and the package's by us."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    array,
    gguf_bytes,
    pair,
    random_tensor,
)

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.stored import StoredTensor
from naiad.quant import formats
from naiad.quant.formats import FORMATS

NOT_UTF8 = b"\xff\xfe token \x80".decode("utf-8", "surrogateescape")
NUMBERS: dict[int, list[float]] = {
    UINT8: [0, 255],
    INT8: [-128, 0, 127],
    UINT16: [0, 65_535],
    INT16: [-32_768, 32_767],
    UINT32: [0, 2**32 - 1],
    INT32: [-(2**31), 2**31 - 1],
    FLOAT32: [0.0, -1.5, 3.4028234663852886e38, 2**-149, math.inf],
    BOOL: [True, False, True],
    UINT64: [0, 2**64 - 1],
    INT64: [-(2**63), 2**63 - 1],
    FLOAT64: [0.1, -math.inf, 5e-324, 1.7976931348623157e308],
}
CODES = dict(zip(NUMBERS, "BbHhIif?Qqd", strict=True))
STRINGS = ["", "plain", "Grüße, 世界 🦙", "with\0zero", "▁a" * 1000]

# Key, type, value: every type, and arrays of every type, empty ones too.
METADATA: list[tuple[str, int | tuple[int, int], Any]] = [
    *((f"scalar.{kind}.{i}", kind, v) for kind, values in NUMBERS.items() for i, v in enumerate(values)),
    *((f"string.{i}", STRING, text) for i, text in enumerate(STRINGS)),
    *((f"array.{kind}", (ARRAY, kind), np.array(v, CODES[kind])) for kind, v in NUMBERS.items()),
    *((f"empty.{kind}", (ARRAY, kind), np.array([], CODES[kind])) for kind in NUMBERS),
    ("array.strings", (ARRAY, STRING), STRINGS),
    ("empty.strings", (ARRAY, STRING), []),
    ("Schlüssel", STRING, "a key may be any text"),
]
# What the package's reader or writer cannot do.
OUR_METADATA: list[tuple[str, int | tuple[int, int], Any]] = [
    ("not.utf8", STRING, NOT_UTF8),
    ("array.not.utf8", (ARRAY, STRING), [NOT_UTF8, ""]),
    ("empty.nested", (ARRAY, ARRAY), []),
    ("nested.numbers", (ARRAY, ARRAY), [np.array([1, 2], "h"), np.array([], "d"), np.array([True])]),
    ("nested.strings", (ARRAY, ARRAY), [["a"], [], [NOT_UTF8, "b"]]),
    ("nested.deep", (ARRAY, ARRAY), [[[np.array([7], "B")]], [["x"]]]),
    ("not.a.number", FLOAT32, math.nan),
]


def same(a: Any, b: Any) -> bool:
    """Whether two metadata values are equal, types of arrays included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize(("version", "order"), [(2, "<"), (3, "<"), (3, ">"), (4, "<"), (4, ">")])
def test_metadata_round_trip(tmp_path: Path, version: int, order: str) -> None:
    metadata = METADATA + OUR_METADATA
    kv, types = {key: v for key, _, v in metadata}, {key: kind for key, kind, _ in metadata}
    path = tmp_path / "m.gguf"
    assert write_gguf(path, kv, [], kv_types=types, version=version, byte_order=order) == [path]
    file = GGUFFile(path)
    assert (file.version, file.byte_order, file.kv_types) == (version, order, types)
    assert list(file.kv) == list(kv)
    assert [key for key in kv if not same(kv[key], file.kv[key])] == []
    again = tmp_path / "again.gguf"
    write_gguf(again, file.kv, [], kv_types=file.kv_types, version=version, byte_order=order)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("order", "<>")
def test_the_package_reads_what_we_write(tmp_path: Path, order: str) -> None:
    path = tmp_path / "m.gguf"
    # The package gives Q8_1, which no file holds, a size that ggml gave up.
    known = {int(kind) for kind in gguf.GGMLQuantizationType} - {formats.Q8_1.id}
    tensors = [random_tensor(fmt.name, fmt, (3, fmt.block_size)) for fmt in FORMATS if fmt.id in known]
    kv, types = {key: v for key, _, v in METADATA}, {key: kind for key, kind, _ in METADATA}
    write_gguf(path, kv, tensors, kv_types=types, byte_order=order)
    reader = gguf.GGUFReader(path)
    for key, kind, value in METADATA:
        field = reader.fields[key]
        if isinstance(kind, tuple):
            assert field.types[1:] == ([gguf.GGUFValueType(kind[1])] if len(value) else [])
            assert field.contents() == (value.tolist() if isinstance(value, np.ndarray) else value), key
        else:
            assert field.types == [gguf.GGUFValueType(kind)]
            assert field.contents() == value, key
    for theirs, ours in zip(reader.tensors, tensors, strict=True):
        assert (theirs.name, int(theirs.tensor_type), theirs.n_bytes) == (ours.name, ours.format.id, ours.n_bytes)
        assert tuple(reversed(theirs.shape.tolist())) == ours.shape
        assert theirs.data_offset % 32 == 0
        if order == "<":
            assert theirs.data.tobytes() == bytes(ours.bytes().numpy().data)


@pytest.mark.parametrize("order", "<>")
def test_we_read_what_the_package_writes(tmp_path: Path, order: str) -> None:
    path = tmp_path / "m.gguf"
    endian = gguf.GGUFEndian.BIG if order == ">" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    metadata = [m for m in METADATA if not (isinstance(m[1], tuple) and len(m[2]) == 0)]
    for key, kind, value in metadata:
        if isinstance(kind, tuple):
            values = value.tolist() if isinstance(value, np.ndarray) else value
            writer.add_key_value(key, values, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType(kind[1]))
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType(kind))
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(-100, 100, (2, 3, 4)).astype(name)
        for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64")
    }
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GGUFFile(path)
    assert file.byte_order == order and file.kv.pop("general.architecture") == "llama"
    assert file.kv.keys() == {key for key, _, _ in metadata}
    for key, kind, value in metadata:
        assert file.kv_types[key] == kind and same(file.kv[key], value), key
    for name, values in arrays.items():
        tensor = file.tensors[name]
        assert tensor.shape == (2, 3, 4) and tensor.n_elements == 24
        assert bytes(tensor.bytes().numpy().data) == values.tobytes()


def test_any_byte_but_zero_is_true(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(pair("one", BOOL, b"\2"), pair("many", ARRAY, array(BOOL, 3, b"\xff\0\2"))))
    kv = GGUFFile(path).kv
    assert kv["one"] is True and kv["many"].tobytes() == b"\1\0\1"


GUESSES = [
    (5, UINT32),
    (2**32, UINT64),
    (-1, INT32),
    (-(2**40), INT64),
    (True, BOOL),
    (0.5, FLOAT32),
    ("text", STRING),
    (np.float64(0.5), FLOAT64),
    (np.int16(5), INT16),
    ([], (ARRAY, STRING)),
    ([True, False], (ARRAY, BOOL)),
    ([1, 2**31], (ARRAY, INT64)),
    ([1, 2**63], (ARRAY, UINT64)),
    ([1, 2.5], (ARRAY, FLOAT32)),
    (("a", "b"), (ARRAY, STRING)),
    ([[1], [2.5]], (ARRAY, ARRAY)),
    (np.zeros((2, 2), "i"), (ARRAY, ARRAY)),
    (np.zeros(2, "Q"), (ARRAY, UINT64)),
]


@pytest.mark.parametrize(("value", "kind"), GUESSES, ids=[repr(value)[:40] for value, _ in GUESSES])
def test_guessed_metadata_types(tmp_path: Path, value: Any, kind: int | tuple[int, int]) -> None:
    write_gguf(tmp_path / "m.gguf", {"key": value}, [])
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.kv_types == {"key": kind}
    found = file.kv["key"]
    assert (np.array(found).tolist() if isinstance(kind, tuple) else found) == np.array(value).tolist()


NO_TENSOR = random_tensor("t", formats.F32, (1,))
BAD_WRITES: list[tuple[str, dict[str, Any], str]] = [
    ("none", {"kv": {"k": None}}, r"'k': cannot write None: GGUF has no type for NoneType"),
    ("bytes", {"kv": {"k": b"raw"}}, r"no type for bytes"),
    ("mixed list", {"kv": {"k": [1, "a"]}}, r"one array cannot hold UINT32 and STRING"),
    ("bool among numbers", {"kv": {"k": [1, True]}}, r"one array cannot hold UINT32 and BOOL"),
    ("65 bits", {"kv": {"k": 2**64}}, r"no integers of more than 64 bits"),
    ("too large for its type", {"kv": {"k": 256}, "kv_types": {"k": UINT8}}, r"cannot write 256: expected UINT8"),
    ("too large in a list", {"kv": {"k": [2**31]}, "kv_types": {"k": (ARRAY, INT32)}}, r"expected INT32"),
    ("too large for float32", {"kv": {"k": 1e39}}, r"expected FLOAT32"),
    ("a number for a string", {"kv": {"k": 5}, "kv_types": {"k": STRING}}, r"expected a str, found int"),
    ("a string for a list", {"kv": {"k": "abc"}, "kv_types": {"k": (ARRAY, STRING)}}, r"expected a list"),
    ("fractions as integers", {"kv": {"k": np.ones(2)}, "kv_types": {"k": (ARRAY, INT32)}}, r"expected INT32"),
    ("unknown type", {"kv": {"k": 1}, "kv_types": {"k": 13}}, r"unknown type 13"),
    ("a lone surrogate", {"kv": {"k": "\ud800"}}, r"'k': cannot write '\\ud800'"),
    ("empty key", {"kv": {"": 1}}, r"must have 1 to 65535 bytes"),
    ("alignment", {"kv": {"general.alignment": 48}}, r"power of two below 2\*\*32, found 48"),
    ("alignment text", {"kv": {"general.alignment": "32"}}, r"power of two below 2\*\*32, found '32'"),
    ("version", {"version": 1}, r"cannot write GGUF version 1, expected one of \(2, 3, 4\)"),
    ("byte order", {"byte_order": "big"}, r"byte order must be '<' or '>', found 'big'"),
    ("big endian v2", {"version": 2, "byte_order": ">"}, r"version 2 is little endian"),
    ("long name", {"tensors": [random_tensor("é" * 32, formats.F32, (1,))]}, r"has more than 63 bytes"),
    ("five dimensions", {"tensors": [random_tensor("t", formats.F32, (1,) * 5)]}, r"5 dimensions, expected at"),
    ("double name", {"tensors": [NO_TENSOR, NO_TENSOR]}, r"'t' appears twice"),
    ("broken rows", {"tensors": [StoredTensor("t", formats.Q8_0, (33,), NO_TENSOR.read)]}, r"multiple of 32"),
]


@pytest.mark.parametrize(("arguments", "message"), [b[1:] for b in BAD_WRITES], ids=[b[0] for b in BAD_WRITES])
def test_refuses_to_write(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "m.gguf", **{"kv": {}, "tensors": [], **arguments})
    assert list(tmp_path.iterdir()) == []
