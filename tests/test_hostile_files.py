"""Small files with large contents: opening takes time and memory in proportion to the file, or is refused at once."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_files import ARRAY, STRING, UINT8, RawTensor, array, gguf_bytes, pack, pair, string

from naiad.loaders.gguf import MAX_INNER_ARRAYS, MAX_PAIRS, MAX_TENSORS, GGUFError, GGUFFile
from naiad.loaders.quote import quoted
from naiad.runtime.cli.info import MAX_SHOWN

Run = Callable[[str], tuple[int, str, str]]


def cost(call: Callable[[], object]) -> tuple[float, int]:
    """Seconds of processor time and peak bytes."""
    tracemalloc.start()
    start = time.process_time()
    try:
        call()
        return time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def empty_arrays(n: int) -> bytes:
    return array(0, 0, b"") * n


def nested(depth: int, n: int) -> bytes:
    """n arrays, each in depth - 2 arrays of one."""
    return (array(ARRAY, 1, b"") * (depth - 2) + array(0, 0, b"")) * n


def head(n_tensors: int, n_kv: int, body: bytes) -> bytes:
    return gguf_bytes(n_tensors=n_tensors, n_kv=n_kv, alignment=1) + body + bytes(32)


N = 20_000
# Name: a file whose contents are much smaller than what Python makes of them.
DENSE: dict[str, Callable[[], bytes]] = {
    "strings of two": lambda: gguf_bytes(
        pair("k", ARRAY, array(STRING, N, b"".join(string(f"{i % 97:02}") for i in range(N))))
    ),
    "strings that are not UTF-8": lambda: gguf_bytes(pair("k", ARRAY, array(STRING, N, (pack("Q", 1) + b"\xff") * N))),
    "wide letters": lambda: gguf_bytes(pair("k", ARRAY, array(STRING, N, string("😀") * N))),
    "one wide letter each": lambda: gguf_bytes(pair("k", ARRAY, array(STRING, 50, string("a" * 9999 + "😀") * 50))),
    "numbers": lambda: gguf_bytes(pair("k", ARRAY, array(UINT8, N, bytes(N)))),
    "long keys": lambda: gguf_bytes(*(pair(f"{i}".zfill(65_535), UINT8, b"\1") for i in range(20))),
    "empty arrays": lambda: gguf_bytes(pair("k", ARRAY, array(ARRAY, N, empty_arrays(N)))),
    "nested arrays": lambda: gguf_bytes(pair("k", ARRAY, array(ARRAY, N // 4, nested(4, N // 4)))),
    "pairs": lambda: head(0, N, b"".join(string(f"{i:x}") + pack("IB", 0, 0) for i in range(N))),
    "tensors": lambda: head(N, 0, b"".join(string(f"{i:x}") + pack("IQIQ", 1, 0, 0, 0) for i in range(N))),
}


@pytest.mark.parametrize("data", DENSE.values(), ids=DENSE)
def test_opening_is_proportional_to_the_file(tmp_path: Path, data: Callable[[], bytes]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data())
    size = path.stat().st_size
    seconds, peak = cost(lambda: GGUFFile(path))
    # Objects are counted, so what is above 12 bytes per byte has a bound: see the reader's docstring.
    assert peak < 12 * size + 1200 * N
    assert seconds < 4


# Name: the file's beginning (zeros follow), its size, what is said.
COUNTS = {
    "arrays": (pair("k", ARRAY, array(ARRAY, 2**24 - 1, b"")), 0, "more than 65536 arrays in arrays"),
    "arrays deep inside": (
        pair("k", ARRAY, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, MAX_INNER_ARRAYS, b"")))),
        0,
        "more than 65536 arrays in arrays",
    ),
    "strings": (pair("k", ARRAY, array(STRING, 2**24 + 1, b"")), 0, "more than 16777216 strings"),
    "pairs": (b"", MAX_PAIRS + 1, "65537 metadata pairs, expected at most 65536"),
    "tensors": (b"", -MAX_TENSORS - 1, "131073 tensors, expected at most 131072"),
}


@pytest.mark.parametrize(("body", "count", "message"), COUNTS.values(), ids=COUNTS)
def test_counts_are_refused_before_they_are_read(tmp_path: Path, body: bytes, count: int, message: str) -> None:
    path = tmp_path / "m.gguf"
    body = head(max(-count, 0), max(count, 0), b"") if count else gguf_bytes(body, alignment=1)
    with path.open("wb") as file:
        file.write(body)
        file.truncate(220_000_000)  # sparse

    def opened() -> None:
        with pytest.raises(GGUFError, match=message):
            GGUFFile(path)

    seconds, peak = cost(opened)
    assert seconds < 1 and peak < 1e6


def test_arrays_in_arrays_are_counted_over_all_keys(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    n = MAX_INNER_ARRAYS // 2
    path.write_bytes(gguf_bytes(*(pair(f"k{i}", ARRAY, array(ARRAY, n, empty_arrays(n))) for i in range(2))))
    assert len(GGUFFile(path).kv["k1"]) == n
    path.write_bytes(gguf_bytes(*(pair(f"k{i}", ARRAY, array(ARRAY, n + i, empty_arrays(n + i))) for i in range(2))))
    with pytest.raises(GGUFError, match="'k1': found more than 65536 arrays in arrays"):
        GGUFFile(path)


def test_tensors_are_counted_over_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("naiad.loaders.gguf.MAX_TENSORS", 3)
    for i in range(2):
        split = (pair("split.no", 4, pack("I", i)), pair("split.count", 4, pack("I", 2)))
        tensors = [RawTensor(f"t{i}{j}") for j in range(2)]
        (tmp_path / f"m-{i + 1:05}-of-00002.gguf").write_bytes(gguf_bytes(*split, tensors=tensors))
    with pytest.raises(GGUFError, match="the parts hold more than 3 tensors"):
        GGUFFile(tmp_path / "m-00001-of-00002.gguf")


def test_a_huge_text_is_decoded_only_when_it_is_asked_for(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "m.gguf"
    size = 300_000_000
    with path.open("wb") as file:
        file.write(gguf_bytes(pair("k", STRING, pack("Q", size) + "é😀\x1b".encode() * 9), alignment=1))
        file.truncate(size + 1000)
    file_kv: list[GGUFFile] = []
    assert max(cost(lambda: file_kv.append(GGUFFile(path)))) < 1e6
    assert file_kv[0].kv.beginning("k", 3) == ("é😀\x1b", size)
    seconds, peak = cost(lambda: run(f"info '{path}'"))
    assert seconds < 1 and peak < 5e6
    line = next(line for line in run(f"info '{path}'")[1].splitlines() if line.startswith("  k = "))
    assert line.startswith("  k = 'é😀\\x1bé") and line.endswith(f"... ({size} bytes)") and len(line) < 200


def test_long_texts_are_what_they_were(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    texts = {str(n): "é" * n + "\udcff" for n in (1, 2**15 - 1, 2**15, 2**16)}
    raw = {key: text.encode("utf-8", "surrogateescape") for key, text in texts.items()}
    path.write_bytes(gguf_bytes(*(pair(key, STRING, pack("Q", len(data)) + data) for key, data in raw.items())))
    kv = GGUFFile(path).kv
    assert len(kv) == 4 and list(kv) == list(texts) and str(2**16) in kv
    assert {**kv} == texts == dict(kv.items())
    kv[str(2**16)] = 3
    assert kv.pop(str(2**16)) == 3 and str(2**16) not in kv and kv.get(str(2**15)) == texts[str(2**15)]
    kv = GGUFFile(path).kv
    del kv[str(2**16)]
    assert kv.beginning("1", 2) == (texts["1"], 0) and len(kv) == 3


SHOWN = {
    "text": (pair("k", STRING, string("x" * 9999)), "... (9999 characters)"),
    "texts": (pair("k", ARRAY, array(STRING, 7, string("x" * 9999) * 7)), "x, ..."),
    "texts of quotes": (pair("k", ARRAY, array(STRING, 1, string("\\" * 9999))), "\\"),
    "arrays": (pair("k", ARRAY, array(ARRAY, 1, array(STRING, 9999, string("ab") * 9999))), ", '"),
    "numbers in arrays": (pair("k", ARRAY, array(ARRAY, 1, array(UINT8, 9999, bytes(9999)))), "0, "),
    "key": (pair("k" * 60_000, UINT8, b"\1"), "... (60000 characters) = 1"),
}


@pytest.mark.parametrize(("data", "end"), SHOWN.values(), ids=SHOWN)
def test_info_shows_a_short_piece_of_each_value(tmp_path: Path, run: Run, data: bytes, end: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(data))
    code, out, _ = run(f"info '{path}'")
    line = next(line for line in out.splitlines() if line.lstrip(" '").startswith("k"))
    assert code == 0 and len(line) < 2 * MAX_SHOWN and end in line


def test_errors_quote_a_short_piece() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    values = ["x" * 10**6, b"\0" * 10**6, ["ab" * 999] * 999, {str(i): "x" * 99 for i in range(999)}, 10**9999, deep]
    for value in values:
        assert len(quoted(value)) < 200
    assert [quoted(v) for v in ("ab'", 3, [1, "a"], None, 1.5)] == ['"ab\'"', "3", "[1, 'a']", "None", "1.5"]
