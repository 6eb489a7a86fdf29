"""What goes out: control sequences that are written out, streams that are closed, full or left by their readers."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.stored import StoredTensor
from naiad.runtime import cli
from naiad.runtime.cli.screen import Screen
from naiad.runtime.demo import demo_model

Run = Callable[[str], tuple[int, str, str]]


class Stream(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def screened(pieces: list[str], *, terminal: bool, **options: bool) -> str:
    stream = Stream(terminal=terminal)
    screen = Screen(stream, **options)
    for piece in pieces:
        assert screen.write(piece) == len(piece)
        screen.flush()
    screen.settle()
    return stream.getvalue()


RED, RESET = "\x1b[31m", "\x1b[0m"
# What a model writes, and what a terminal gets of it.
WRITTEN = [
    ("plain\ttext\n", "plain\ttext\n"),
    (f"{RED}red{RESET}\n", f"{RED}red{RESET}\n"),
    (f"{RED}red", f"{RED}red{RESET}"),
    ("\x1b[1;38;5;8mx\x1b[m", "\x1b[1;38;5;8mx\x1b[m"),
    ("\x1b[2Jx", "\\x1b[2Jx"),
    ("\x1b]0;title\x07x", "\\x1b]0;title\\x07x"),
    ("\x1b]8;;http://x\x1b\\\\", "\\x1b]8;;http://x\\x1b\\\\"),
    ("\x1bP1$r\x1b_G\x1b^x\x1bXx", "\\x1bP1$r\\x1b_G\\x1b^x\\x1bXx"),
    ("\x1bc\x1b7\x1b(0", "\\x1bc\\x1b7\\x1b(0"),
    ("\x9b2J\x9d0;t\x9c\x90\x85", "\\x9b2J\\x9d0;t\\x9c\\x90\\x85"),
    ("\x1b[?25l\x1b[>4m\x1b[31 m", "\\x1b[?25l\\x1b[>4m\\x1b[31 m"),
    ("\x1b[" + "1;" * 40 + "m", "\\x1b[" + "1;" * 40 + "m"),
    ("\x1b\x1b[31mx\x1b[", "\\x1b\x1b[31mx\\x1b[\x1b[0m"),
    ("\x1b", "\\x1b"),
    ("a\rb\r\nc\x08\x00\x7f", "a\\rb\r\nc\\x08\\x00\\x7f"),
    ("\u202eevil\u202c \u2067שלום\u2069 e\u0301", "\\u202eevil\\u202c \u2067שלום\u2069 e\u0301"),
]


@pytest.mark.parametrize(("text", "expected"), WRITTEN, ids=[repr(row[0])[:20] for row in WRITTEN])
def test_a_terminal_is_not_steered(text: str, expected: str) -> None:
    for n in (1, 2, 3, 5, 100):
        pieces = [text[i : i + n] for i in range(0, len(text), n)]
        assert screened(pieces, terminal=True) == expected


@given(st.lists(st.text("a\x1b[]0;2JmH\r\n\x07\x9b")), st.booleans())
def test_only_colours_begin_with_escape(pieces: list[str], terminal: bool) -> None:
    out = screened(pieces, terminal=terminal)
    assert out == screened(["".join(pieces)], terminal=terminal)
    assert not set(out.split("\x1b[")[0]) & set("\x1b\x9b")
    for part in out.split("\x1b")[1:]:
        assert part[0] == "[" and part[1:].lstrip("0123456789;")[:1] == "m"


def test_a_pipe_keeps_lone_controls_and_a_progress_bar_its_line() -> None:
    assert screened(["a\rb\x0c\x1b[31m\x1b[2J\x9b"], terminal=False) == "a\rb\x0c\x1b[31m\\x1b[2J\\x9b\x1b[0m"
    assert screened(["50%\r", "60%\r"], terminal=True, messages=True) == "50%\r60%\r"


EVIL = "\x1b]0;evil\x07\x1b[2J\x9bH"


def test_a_file_cannot_write_to_the_terminal(run: Run, tmp_path: Path) -> None:
    """Keys, values, names of tensors, errors, -v, pieces of tokens, templates, and what the model says."""
    source = GGUFFile(demo_model())
    norm = source.tensors["output_norm.weight"]
    tokens = list(source.kv["tokenizer.ggml.tokens"])
    marked = [token if i < 300 else token + "\x1b[H" for i, token in enumerate(tokens)]
    changes: list[tuple[dict[str, Any], list[StoredTensor], list[str]]] = [
        ({"x." + EVIL + "\nx": EVIL, "general.name": EVIL}, [], ["info", "run -p x -n 1 -v"]),
        ({}, [StoredTensor("t" + EVIL, norm.format, norm.shape, norm.read)], ["info --tensors", "run -p x"]),
        ({"tokenizer.chat_template": "{{ raise_exception('" + EVIL + "') }}"}, [], ["run -p x -n 1"]),
        ({"tokenizer.ggml.tokens": marked}, [], ["run -p x -n 9 -no-cnv", "tokenize -p 'What sound does'"]),
    ]
    for kv, tensors, commands in changes:
        path = tmp_path / "m.gguf"
        kinds = {key: kind for key, kind in source.kv_types.items() if key not in kv}
        write_gguf(path, {**dict(source.kv), **kv}, [*source.tensors.values(), *tensors], kv_types=kinds)
        for command in commands:
            _, out, err = run(f"{command} -m {path}")
            assert out + err
            assert not set(out + err) & set("\x1b\x9b\x07")


class Broken(io.StringIO):
    """A stream on which writing, or what comes after some writes, fails."""

    def __init__(self, error: OSError, n: int = 0) -> None:
        super().__init__()
        self.error, self.n = error, n

    def write(self, text: str) -> int:
        self.n -= 1
        if self.n < 0:
            raise self.error
        return super().write(text)


FULL, GONE = OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")
COMMANDS = ["--help", "run --help", "info", "tokenize -p hello", "run -p Hello -n 2 -no-cnv", "run -p Hello -n 2"]


@pytest.mark.parametrize("command", COMMANDS)
def test_stdout_that_is_full_closed_or_left(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in (0, 1):
        monkeypatch.setattr(sys, "stdout", Broken(FULL, n))
        assert cli.main(command.split()) in (1, int(n == 0))
        assert capsys.readouterr().err.splitlines()[-1] == "error: [Errno 28] No space left on device"
        monkeypatch.setattr(sys, "stdout", Broken(GONE, n))
        assert cli.main(command.split()) == 0
        assert "rror" not in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(command.split()) == 1
    assert capsys.readouterr().err == "error: stdout is closed\n"


@pytest.mark.parametrize("stderr", [None, Broken(FULL), Broken(GONE)], ids=["closed", "full", "left"])
def test_stderr_is_not_needed(
    stderr: Broken | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "-p", "What sound does a cow make?", "--temp", "0", "-c", "256", "-v"]
    assert cli.main(arguments) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stderr", stderr)
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == expected
    assert cli.main(["run", "--fly"]) == 1
    assert cli.main([]) == 1


@pytest.mark.parametrize("command", ["run", "tokenize --stdin", "run -p Hello -cnv -n 2"])
def test_stdin_that_is_closed_is_one_error(command: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run(command)
    assert (code, err.splitlines()[-1]) == (1, "error: stdin is closed")
    assert run("tokenize -p hello --ids")[0] == 0


ERRORS: list[tuple[BaseException, int, str]] = [
    (MemoryError(), 1, "error: out of memory\n"),
    (MemoryError("4 GiB"), 1, "error: 4 GiB\n"),
    (torch.OutOfMemoryError("CUDA out of memory"), 1, "error: CUDA out of memory\n"),
    (ImportError("libx.so: cannot open"), 1, "error: libx.so: cannot open\n"),
    (OSError(), 1, "error: OSError\n"),
    (ValueError(f"token {EVIL}\r"), 1, "error: token \\x1b]0;evil\\x07\\x1b[2J\\x9bH\\r\n"),
    (KeyboardInterrupt(), 130, "\n"),
]


@pytest.mark.parametrize(("error", "code", "message"), ERRORS, ids=[repr(row[0])[:20] for row in ERRORS])
def test_errors_are_one_line(
    error: BaseException, code: int, message: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object) -> None:
        raise error

    monkeypatch.setattr("naiad.runtime.cli.info.open_model", fail)
    assert run("info") == (code, "", message)


SHELL = [
    ("{naiad} run -p Hello -n 2 --temp 0 2>&- | wc -c", 0),
    ("{naiad} info > /dev/full", 1),
    ("{naiad} --help >&-", 1),
]


@pytest.mark.parametrize(("command", "code"), SHELL, ids=[row[0] for row in SHELL])
def test_real_streams(command: str, code: int) -> None:
    line = command.format(naiad=f"{sys.executable} -m naiad")
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert result.stdout != "0\n"
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr


def test_ctrl_c_while_importing_leaves_quietly(tmp_path: Path) -> None:
    """As slow a library as can be, in which an interrupt becomes another error."""
    (tmp_path / "numpy.py").write_text(
        "import os, time\nprint('here', flush=True)\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise SystemError('lost')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "naiad", "bench"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == b"\n"
    assert process.returncode == 130
