"""The safetensors reader: what the library wrote comes back, damaged and hostile files are refused by name."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from naiad.loaders.hf.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def file_bytes(header: Any, data: bytes = bytes(24), n_header: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if n_header is None else n_header).to_bytes(8, "little") + raw + data


def entry(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize("use_mmap", [True, False], ids=["mmap", "read"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_the_library_wrote(dtype: str, use_mmap: bool, tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5),
        "empty": torch.randn(0, 4),
        "scalar": torch.randn(()),
        "b.weight": torch.randn(7),
    }
    tensors = {name: values.to(DTYPES[dtype]) for name, values in tensors.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors", use_mmap=use_mmap)
    assert file.entries.keys() == tensors.keys()
    for name, values in tensors.items():
        assert file.entries[name].format.name == dtype
        assert file.entries[name].shape == tuple(values.shape)
        file.release(name)
        assert torch.equal(torch.from_numpy(file.read(name)), values.flatten().view(torch.uint8))


def test_other_dtypes_are_refused_only_when_used(tmp_path: Path) -> None:
    save_file({"ids": torch.arange(3), "a": torch.randn(2)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.entries["a"].format.name == "F32"
    with pytest.raises(ValueError, match="dtype I64 is not supported, expected one of F32, F16, BF16"):
        _ = file.entries["ids"].format


def test_a_file_cut_short_while_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(20)}, path)
    file = SafetensorsFile(path, use_mmap=False)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        file.read("a")


TWO = {"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(shape=(4,), offsets=(8, 24))}
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "short": (bytes(7), "7 bytes"),
    "header-longer-than-file": (file_bytes({"a": entry()}, n_header=10**6), "claims 1000000 bytes"),
    "header-of-2**64": (file_bytes({"a": entry()}, n_header=2**64 - 1), "claims 18446744073709551615 bytes"),
    "header-empty": (file_bytes(b""), "not valid JSON"),
    "header-no-json": (file_bytes(b"{'a'"), "not valid JSON"),
    "header-no-object": (file_bytes([1, 2]), "must be a JSON object, found list"),
    "header-no-utf8": (file_bytes(b'{"\xff": 1}'), "not valid JSON"),
    "header-deep": (file_bytes(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "header-twice": (file_bytes(b'{"a": {}, "a": {}}'), "'a' appears twice"),
    "header-nan": (file_bytes(b'{"a": NaN}'), "NaN"),
    "header-digits": (file_bytes(b'{"a": ' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "entry-number": (file_bytes({"a": 3}), "'a' must have dtype, shape and data_offsets"),
    "entry-incomplete": (file_bytes({"a": {"dtype": "F32", "shape": [1]}}), "'a' must have"),
    "dtype-number": (file_bytes({"a": entry(dtype=3)}), "'a' has the dtype 3"),
    "dtype-other": (file_bytes({"a": entry(dtype="F16")}), "'a' .F16.* cannot have 24 bytes"),
    "shape-text": (file_bytes({"a": entry(shape="23")}), "'a' has shape 23"),
    "shape-float": (file_bytes({"a": entry(shape=[2.0, 3.0])}), "'a' has shape"),
    "shape-bool": (file_bytes({"a": entry(shape=[True, 6])}), "'a' has shape"),
    "shape-negative": (file_bytes({"a": entry(shape=[-2, -3])}), "'a' has shape"),
    "shape-huge": (file_bytes({"a": entry(shape=[2**62, 2**62])}), r"less than 2\*\*60 elements"),
    "shape-huge-times-zero": (file_bytes({"a": entry(shape=[0, 2**62], offsets=[0, 0])}, b""), r"less than 2\*\*60"),
    "shape-long": (file_bytes({"a": entry(shape=[1] * 5000)}), "at most 8 sizes"),
    "shape-wrong": (file_bytes({"a": entry(shape=[7])}), "'a' .* cannot have 24 bytes"),
    "offsets-one": (file_bytes({"a": entry(offsets=[24])}), "'a' has data_offsets"),
    "offsets-backwards": (file_bytes({"a": entry(offsets=[24, 0])}), "'a' has data_offsets"),
    "offsets-negative": (file_bytes({"a": entry(offsets=[-24, 0])}), "'a' has data_offsets"),
    "offsets-huge": (file_bytes({"a": entry(offsets=[2**63, 2**63 + 24])}), "'a' has data_offsets"),
    "offsets-outside": (file_bytes({"a": entry(offsets=[24, 48])}), "'a' starts at byte"),
    "truncated": (file_bytes({"a": entry()}, bytes(23)), "is it truncated"),
    "longer": (file_bytes({"a": entry()}, bytes(25)), "the tensors end at byte"),
    "gap": (file_bytes({**TWO, "b": entry(shape=(2,), offsets=(16, 24))}), "'b' starts at byte"),
    "overlap": (file_bytes({**TWO, "b": entry(shape=(5,), offsets=(4, 24))}), "'b' starts at byte"),
}


@pytest.mark.parametrize(("raw", "message"), BAD.values(), ids=BAD)
def test_bad_file(raw: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    start = time.process_time()
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        SafetensorsFile(path)
    assert time.process_time() - start < 1


def test_a_sparse_file_of_a_huge_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER_BYTES)
    with pytest.raises(ValueError, match=f"at most {MAX_HEADER_BYTES} fit"):
        SafetensorsFile(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    raw = file_bytes(TWO)
    for n in range(len(raw)):
        path.write_bytes(raw[:n])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            SafetensorsFile(path)
