"""Tensors of GGUF files: every format in both byte orders, views of the mapped file, split files, real files."""

import argparse
import gc
import os
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from conftest import SHARED_DATA
from gguf.scripts import gguf_convert_endian
from gguf_files import INT32, UINT16, UINT32, RawTensor, contents, gguf_bytes, pack, pair, random_tensor

from naiad.loaders.gguf import GGUFError, GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.stored import StoredTensor, swap_bytes
from naiad.quant import formats
from naiad.quant.dequantize import BLOCK_DECODERS, dequantize
from naiad.quant.formats import FORMATS, Format

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (2, 1, 3, 5), (0,), (3, 0), (0, 5), (2, 0, 3)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def plain_bytes(tensor: StoredTensor) -> bytes:
    return bytes(tensor.bytes().numpy().data)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("alignment", [None, 1, 8, 64, 4096])
def test_layout_is_the_handmade_one(path: Path, order: str, alignment: int | None) -> None:
    tensors = [random_tensor(f"t{i}", formats.I8, shape) for i, shape in enumerate(SHAPES)]
    kv = {} if alignment is None else {"general.alignment": alignment}
    write_gguf(path, kv, tensors, byte_order=order)
    pairs = [pair(key, UINT32, pack("I", value, order=order), order) for key, value in kv.items()]
    raw = [RawTensor(t.name, t.shape[::-1], formats.I8.id, plain_bytes(t)) for t in tensors]
    assert path.read_bytes() == gguf_bytes(*pairs, tensors=raw, order=order, alignment=alignment or 32)
    file = GGUFFile(path)
    assert file.alignment == (alignment or 32)
    assert [(t.name, t.shape) for t in file.tensors.values()] == [(t.name, t.shape) for t in tensors]
    for tensor in file.tensors.values():
        assert tensor.bytes().shape == (tensor.shape or (1,)) and tensor.bytes().dtype == torch.uint8


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("fmt", FORMATS, ids=[fmt.name for fmt in FORMATS])
def test_every_format_in_both_byte_orders(path: Path, fmt: Format, order: str, use_mmap: bool) -> None:
    tensor = random_tensor("t", fmt, (3, 2, 2 * fmt.block_size))
    write_gguf(path, {}, [tensor], byte_order=order)
    found = GGUFFile(path, use_mmap=use_mmap).tensors["t"]
    assert (found.format, found.shape, found.n_bytes) == (fmt, tensor.shape, 24 * fmt.type_size // 2)
    assert torch.equal(found.bytes(), tensor.bytes())
    assert (path.read_bytes()[-found.n_bytes - 32 :].find(plain_bytes(tensor)) >= 0) == (
        order == "<" or all(formats.ITEM_BYTES[field.dtype] == 1 for field in fmt.fields)
    )
    if fmt.id in BLOCK_DECODERS:
        expected, decoded = dequantize(tensor.bytes(), fmt), dequantize(found.bytes(), fmt)
        torch.testing.assert_close(decoded, expected, rtol=0, atol=0, equal_nan=True)


def test_byte_order_as_the_package_converts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gguf package's converter, for the formats that it can convert."""
    fmts = [formats.F32, formats.F16, formats.BF16, formats.Q4_0, formats.Q8_0, formats.Q4_K, formats.Q6_K]
    fmts += [formats.MXFP4, formats.NVFP4]
    tensors = [random_tensor(fmt.name, fmt, (2, 2 * fmt.block_size)) for fmt in fmts]
    kv = {"a.text": "text", "a.list": [1, -2], "a.words": ["x", "yy"], "a.number": 0.5}
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    write_gguf(ours, kv, tensors, byte_order=">")
    write_gguf(theirs, kv, tensors)
    monkeypatch.setattr("builtins.input", lambda _: "YES")
    arguments = argparse.Namespace(order="big", dry_run=False)
    gguf_convert_endian.convert_byteorder(gguf.GGUFReader(theirs, "r+"), arguments)
    assert ours.read_bytes() == theirs.read_bytes()


def test_swapping_by_hand() -> None:
    """IQ2_XS has fields of one and of two bytes: d, 32 codes, 8 scales."""
    block = bytes(range(74))
    swapped = [i ^ 1 if i < 66 else i for i in range(74)]
    assert swap_bytes(np.frombuffer(block, np.uint8), formats.IQ2_XS).tolist() == swapped
    words = swap_bytes(np.arange(16, dtype=np.uint8), formats.F64).tolist()
    assert words == [7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8]


@pytest.mark.parametrize("name", ["n" * 63, "é" * 31, "", b"\xff\xfe".decode("utf-8", "surrogateescape")])
def test_any_name(path: Path, name: str) -> None:
    write_gguf(path, {}, [random_tensor(name, formats.F32, (2,))])
    assert list(GGUFFile(path).tensors) == [name]


@pytest.fixture
def small(path: Path) -> Path:
    write_gguf(path, {"k": [1, 2]}, [random_tensor(n, formats.F16, (64, 64), i) for i, n in enumerate("ab")])
    return path


def test_tensors_outlive_the_file(small: Path) -> None:
    expected = contents(GGUFFile(small))["a"][2]
    for use_mmap in (True, False):
        with GGUFFile(small, use_mmap=use_mmap) as file:
            data, tensor = file.tensors["a"].bytes(), file.tensors["a"]
        assert not file.tensors
        del file
        gc.collect()
        assert bytes(data.numpy().data) == plain_bytes(tensor) == expected


def test_mapped_tensors_share_memory_and_copies_do_not(small: Path) -> None:
    for use_mmap in (True, False):
        tensor = GGUFFile(small, use_mmap=use_mmap).tensors["b"]
        assert (tensor.bytes().data_ptr() == tensor.bytes().data_ptr()) == use_mmap


def test_the_file_never_changes(small: Path) -> None:
    before = small.read_bytes()
    data = GGUFFile(small).tensors["a"].bytes()
    data.fill_(7)
    assert data.sum() == 7 * data.numel() and small.read_bytes() == before


@pytest.mark.parametrize("use_mmap", [True, False], ids=["mapped", "read"])
@pytest.mark.parametrize("cut", ["a byte", "in the middle", "all of it"])
def test_a_file_cut_short_after_opening(small: Path, cut: str, use_mmap: bool) -> None:
    """Seen before a mapped page is touched that is not there any more, for which the system ends the process."""
    file, size = GGUFFile(small, use_mmap=use_mmap), small.stat().st_size
    left = {"a byte": size - 1, "in the middle": size // 2, "all of it": 0}[cut]
    os.truncate(small, left)
    message = rf"m\.gguf: the file was cut short while it was loaded, expected {size} bytes, found {left}$"
    for tensor in file.tensors.values():
        with pytest.raises(ValueError, match=message):
            tensor.bytes()


def test_a_file_cut_short_while_it_is_used(small: Path) -> None:
    """What was read in its last page may have been zeros."""
    file = GGUFFile(small)
    tensor = file.tensors["b"]
    kept = tensor.bytes()[0].clone()
    os.truncate(small, small.stat().st_size - 10)
    with pytest.raises(ValueError, match="cut short while it was loaded"):
        file.release(tensor)
    with small.open("ab") as longer:
        longer.write(bytes(1000))
    file.release(tensor)
    assert (tensor.bytes()[0] == kept).all()


@pytest.mark.parametrize("use_mmap", [True, False], ids=["mapped", "read"])
def test_a_file_that_is_replaced(small: Path, use_mmap: bool) -> None:
    """A mapping shows the old one; what is read from a name must not be a mixture of two."""
    file = GGUFFile(small, use_mmap=use_mmap)
    before = contents(file)
    other = small.with_name("other")
    other.write_bytes(bytes(small.stat().st_size))
    other.replace(small)
    if use_mmap:
        assert contents(file) == before
    else:
        with pytest.raises(ValueError, match=r"m\.gguf: the file was replaced by another while it was loaded"):
            contents(file)


def test_a_model_may_be_written_over_itself(small: Path) -> None:
    file = GGUFFile(small)
    before = contents(file)
    write_gguf(small, {"new": 1}, reversed(file.tensors.values()))
    again = GGUFFile(small)
    assert again.kv == {"new": 1} and list(again.tensors) == ["b", "a"] and contents(again) == before


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        GGUFFile(path)


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sparse_file(path: Path, n_weights: int) -> GGUFFile:
    """A file with one tensor that is a hole on the disk."""
    head = gguf_bytes(tensors=[RawTensor("t", (n_weights,), formats.I8.id, b"")])
    path.write_bytes(head)
    try:
        os.truncate(path, len(head) + n_weights)
    except OSError as error:
        pytest.skip(f"the file system has no sparse files of {n_weights} bytes: {error}")
    return GGUFFile(path)


@linux_only
def test_opens_files_larger_than_memory_without_reading_them(path: Path) -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        pytest.skip("this system allows no more mappings than memory")
    before = resident_bytes()
    n_weights = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    data = sparse_file(path, n_weights).tensors["t"].bytes()
    assert data.shape == (n_weights,) and data[-1] == 0
    assert resident_bytes() - before < 2**23


@linux_only
def test_release_frees_memory(path: Path) -> None:
    file = sparse_file(path, 2**25)
    tensor = file.tensors["t"]
    before = resident_bytes()
    assert tensor.bytes().sum() == 0
    assert resident_bytes() - before > 2**24
    file.release(tensor)
    assert resident_bytes() - before < 2**23
    assert tensor.bytes()[:: 2**12].sum() == 0


@pytest.mark.parametrize("use_mmap", [True, False])
def test_released_tensors_can_be_read_again(small: Path, use_mmap: bool) -> None:
    file = GGUFFile(small, use_mmap=use_mmap)
    before = contents(file)
    for tensor in file.tensors.values():
        file.release(tensor)
    assert contents(file) == before


@pytest.fixture
def split(tmp_path: Path) -> list[Path]:
    tensors = [random_tensor(f"t{i}", formats.Q4_0, (2 * i, 32), i) for i in range(6)]
    return write_gguf(tmp_path / "m.gguf", {"a": 1, "general.alignment": 64}, tensors, max_part_bytes=200)


def test_split_and_joined(split: list[Path], tmp_path: Path) -> None:
    assert [path.name for path in split] == [f"m-0000{i}-of-00004.gguf" for i in (1, 2, 3, 4)]
    assert sorted(tmp_path.iterdir()) == split
    file = GGUFFile(split[0])
    assert list(file.tensors) == [f"t{i}" for i in range(6)]
    assert [len(gguf.GGUFReader(path).tensors) for path in split] == [3, 1, 1, 1]
    for tensor in file.tensors.values():
        file.release(tensor)
    whole = tmp_path / "whole.gguf"
    assert write_gguf(whole, file.kv, file.tensors.values(), kv_types=file.kv_types) == [whole]
    joined = GGUFFile(whole)
    assert joined.kv == {"a": 1, "general.alignment": 64} and contents(joined) == contents(file)
    again = write_gguf(tmp_path / "m.gguf", joined.kv, joined.tensors.values(), max_part_bytes=200)
    assert [p.name for p in again] == [p.name for p in split] and contents(GGUFFile(again[0])) == contents(file)


def test_no_first_part_before_all_are_written(tmp_path: Path) -> None:
    def fails() -> torch.Tensor:
        raise OSError("the disk is gone")

    good = random_tensor("good", formats.F32, (8,))
    with pytest.raises(OSError, match="the disk is gone"):
        tensors = [StoredTensor("bad", formats.F32, (8,), fails), good]
        write_gguf(tmp_path / "m.gguf", {}, tensors, max_part_bytes=32)
    assert [path.name for path in tmp_path.iterdir()] == ["m-00002-of-00002.gguf"]


def part(number: int, *, count: int = 3, total: int = 3, name: str | None = None, version: int = 3) -> bytes:
    pairs = [
        pair("split.no", UINT16, pack("H", number)),
        pair("split.count", UINT16, pack("H", count)),
        pair("split.tensors.count", INT32, pack("i", total)),
    ]
    return gguf_bytes(*pairs, tensors=[RawTensor(name or f"t{number}")], version=version)


@pytest.mark.parametrize("order", "<>")
def test_split_by_the_package(tmp_path: Path, order: str) -> None:
    endian = gguf.GGUFEndian.BIG if order == ">" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2, endianess=endian)
    arrays = {f"t{i}": np.arange(i * 5, dtype=np.float32) for i in range(1, 6)}
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / ONE)
    assert file.kv["general.architecture"] == "llama"
    assert {name: plain_bytes(t) for name, t in file.tensors.items()} == {n: a.tobytes() for n, a in arrays.items()}


ONE, TWO, THREE = (f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3))
PARTS = {ONE: part(0), TWO: part(1), THREE: part(2)}
SPLITS: list[tuple[str, dict[str, bytes], str | None]] = [
    ("good", PARTS, None),
    ("versions may differ", {**PARTS, TWO: part(1, version=2)}, None),
    ("no tensor count", {**PARTS, ONE: part(0).replace(b"split.tensors.count", b"split.tensors.xxxxx")}, None),
    ("missing part", {ONE: part(0), THREE: part(2)}, r"00001-of-00003.gguf: part 2 of 3 is missing, expected .*2-of"),
    ("swapped parts", {ONE: part(0), TWO: part(2), THREE: part(1)}, rf"{TWO}: expected part 2 of 3, found part 3 of 3"),
    ("twice the same part", {**PARTS, THREE: part(1)}, rf"{THREE}: expected part 3 of 3, found part 2 of 3"),
    ("part of another model", {**PARTS, TWO: part(1, count=4)}, r"expected part 2 of 3, found part 2 of 4"),
    ("part that is a whole model", {**PARTS, TWO: gguf_bytes()}, rf"{TWO}: split.no must be an integer .* None"),
    ("part that is none", {**PARTS, TWO: b"GGUF"}, rf"{TWO}: not a GGUF file"),
    ("later part in the first's place", {**PARTS, ONE: part(1)}, r"is part 2 of 3 of a split model; open the first"),
    ("wrong count for its name", {ONE: part(0, count=2)}, r"first of 2 parts, so its name must end in -00001-of-00002"),
    ("fewer tensors than all", {**PARTS, ONE: part(0, total=4)}, r"the parts hold 3 tensors, expected 4"),
    ("negative count", {**PARTS, ONE: part(0, total=-1)}, r"split.tensors.count must be an integer >= 0, found -1"),
    ("tensor twice", {**PARTS, THREE: part(2, name="t0")}, rf"{THREE}: tensor 't0' is also in another part"),
]


@pytest.mark.parametrize(("files", "message"), [s[1:] for s in SPLITS], ids=[s[0] for s in SPLITS])
def test_split_files(tmp_path: Path, files: dict[str, bytes], message: str | None) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    if message is None:
        assert list(GGUFFile(tmp_path / ONE).tensors) == ["t0", "t1", "t2"]
    else:
        with pytest.raises(GGUFError, match=message):
            GGUFFile(tmp_path / ONE)


@pytest.mark.parametrize("name", ["m.gguf", "m-1-of-3.gguf", "m-00002-of-00003.gguf", "m-00001-of-00003.bin"])
def test_a_split_model_needs_its_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(part(0))
    with pytest.raises(GGUFError, match=r"its name must end in -00001-of-00003\.gguf"):
        GGUFFile(tmp_path / name)


FILES = sorted(SHARED_DATA.rglob("*.gguf"))


@pytest.mark.parametrize("name", [str(file.relative_to(SHARED_DATA)) for file in FILES] or ["*.gguf"])
def test_rewriting_a_real_file_copies_its_bytes(shared_data: Path, path: Path, name: str) -> None:
    file = GGUFFile(shared_data / name)
    write_gguf(path, file.kv, file.tensors.values(), kv_types=file.kv_types, version=file.version)
    copy, original = path.read_bytes(), (shared_data / name).read_bytes()
    # llama.cpp's converter does not pad a file that has only metadata.
    assert copy == original + bytes(-len(original) % 32)


def test_opens_a_large_vocabulary_quickly(shared_data: Path) -> None:
    start = time.perf_counter()
    file = GGUFFile(shared_data / "vocab" / "ggml-vocab-llama-bpe.gguf")
    assert len(file.kv["tokenizer.ggml.tokens"]) == 128_256 and len(file.kv["tokenizer.ggml.merges"]) == 280_147
    assert time.perf_counter() - start < 2
