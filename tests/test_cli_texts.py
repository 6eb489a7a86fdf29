"""Text that comes in: escapes as bytes, byte order marks, bytes that are no text, lines from a pipe."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naiad.runtime.cli import texts
from naiad.runtime.cli.texts import Lines, argument_text, decoded, process_escapes, read_text

Run = Callable[[str], tuple[int, str, str]]
ESCAPES = [
    (r"a\nb", "a\nb"),
    (r"\t\r\'\"\\", "\t\r'\"\\"),
    (r"\\n", r"\n"),
    (r"\\x41", r"\x41"),
    (r"\x41\x4a", "AJ"),
    (r"\xg1 \q", r"\xg1 \q"),
    ("end\\", "end\\"),
    (r"\x4", r"\x4"),
    (r"\x4\n", "\\x4\n"),
    (r"\xE2\x82\xac", "€"),
    (r"\xf0\x9f\x98\x82!", "😂!"),
    (r"\xc3é", "\ufffdé"),
    (r"\xff\xfe", "\ufffd\ufffd"),
    (r"\x00\x1b", "\0\x1b"),
    ("\udcc3\\xa9", "é"),
    ("\ud800\\x41", "?A"),
]


@pytest.mark.parametrize(("text", "expected"), ESCAPES)
def test_escapes(text: str, expected: str) -> None:
    assert process_escapes(text) == expected


@given(st.text())
def test_text_without_backslashes_stays(text: str) -> None:
    text = text.replace("\\", "")
    assert process_escapes(text) == argument_text(text, escape=False)


TEXT = "Grüße, 中 😀\r\nan\0d\n"
FILES = [
    (TEXT.encode(), TEXT),
    (b"\xef\xbb\xbf" + TEXT.encode(), TEXT),
    (TEXT.encode("utf-16"), TEXT),
    (b"\xfe\xff" + TEXT.encode("utf-16-be"), TEXT),
    (TEXT.encode("utf-32"), TEXT),
    (b"caf\xe9 \xc3", "caf\ufffd \ufffd"),
    (b"\xff\xfea\0b", "a\ufffd"),
    (b"\xff\xfe\0\xd8a\0", "\ufffda"),
    (b"\xef\xbb", "\ufffd"),
    (b"", ""),
]


@pytest.mark.parametrize(("data", "text"), FILES, ids=[repr(row[0][:8]) for row in FILES])
def test_files_of_any_bytes(data: bytes, text: str, tmp_path: Path) -> None:
    assert decoded(data) == text
    path = tmp_path / "text"
    path.write_bytes(data)
    assert read_text(path) == text
    for n in (1, 2, 3, 5, len(data) + 1):
        assert _all(Lines(Trickle(data, n))) == _split(text)


class Trickle(io.BytesIO):
    """A stream that gives n bytes at a time."""

    def __init__(self, data: bytes, n: int) -> None:
        super().__init__(data)
        self.n = n

    def read1(self, size: int | None = -1, /) -> bytes:
        return self.read(self.n)


def _all(lines: Lines) -> list[str]:
    return list(iter(lines.read, None))


def _split(text: str) -> list[str]:
    parts = text.split("\n")
    return [part.removesuffix("\r") for part in (parts if parts[-1] else parts[:-1])]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_line_comes_with_its_end(encoding: str) -> None:
    """Whoever writes one waits for the answer before the next."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as pen:
        lines = Lines(stream)
        found: list[str | None] = []
        data = "Hi\nHo\n".encode(encoding)
        pen.write(data[: data.index(b"o")])
        reader = threading.Thread(target=lambda: found.append(lines.read()), daemon=True)
        reader.start()
        reader.join(20)
        assert found == ["Hi"]


def test_an_interrupt_loses_no_line() -> None:
    class Interrupted(Trickle):
        def read1(self, size: int | None = -1, /) -> bytes:
            self.n += 1
            if self.n % 3 == 0:
                raise KeyboardInterrupt
            return super().read1(size)

    lines = Lines(Interrupted(b"one\ntwo and more\nthree", 0))
    found: list[str | None] = []
    while not found or found[-1] is not None:
        try:
            found.append(lines.read())
        except KeyboardInterrupt:
            continue
    assert found == ["one", "two and more", "three", None]


def test_what_has_no_end_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(texts, "MAX_BYTES", 100)
    lines = Lines(Trickle(b"a" * 5000 + b"\nb\n", 7))
    assert [len(line) for line in _all(lines)] == [100, 1]
    assert sum(map(len, lines._parts)) <= 200
    (tmp_path / "long").write_bytes(b"a" * 101)
    with pytest.raises(ValueError, match="long: expected a text of at most 0 MiB, found more"):
        read_text(tmp_path / "long")


@pytest.mark.parametrize("data", [row[0] for row in FILES if row[0]], ids=repr)
def test_run_and_tokenize_read_a_file_alike(data: bytes, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"One " + data if data[:1] not in b"\xff\xfe\xef" else data)
    code, out, _ = run(f"tokenize -f {path} --ids --no-escape")
    n = len(json.loads(out)) - read_text(path).endswith("\n")
    code_of_run, _, err = run(f"run -f {path} --no-escape -no-cnv -n 1 --temp 0 -c 128")
    assert (code, code_of_run) == (0, 0)
    assert f"[ Prompt: {n} tokens" in err


def test_a_chat_goes_on_after_bytes_that_are_no_text(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes("What sound does a cow make?".encode("utf-16"))
    question = b"What sound does a cow make?\n"
    for data in (
        b"caf\xe9 \0 \xed\xa0\x80\n" + question,
        b"\xef\xbb\xbf" + question,
        question.decode().encode("utf-16"),
        b"/read " + str(tmp_path).encode() + b"\n/read ~nobody-here/x\n/read a\0b\n" + question,
        b"/read " + str(tmp_path / "note").encode() + b"\n\xa0\n",
    ):
        with io.TextIOWrapper(io.BytesIO(data), encoding="ascii", errors="strict") as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            code, out, err = run("run --temp 0 -c 256 -n 24")
        assert code == 0
        assert "moos" in out or data.endswith(b"\xa0\n")
        assert err.count("error: ") == data.count(b"/read") - data.count(b"note")


def test_what_is_said_of_a_long_line_is_short(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with io.TextIOWrapper(io.BytesIO(b"/" + b"x" * 10**6 + b"\n/read " + b"y" * 10**6 + b"\n")) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        code, out, err = run("run -c 64")
    assert (code, out) == (0, "")
    assert "is not a command" in err and "File name too long" in err
    assert len(err) < 1000
