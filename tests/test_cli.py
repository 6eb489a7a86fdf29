"""The commands as their users call them: exit codes, what goes to stdout, what to stderr, errors, the chat."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from naiad.runtime.cli import main
from naiad.runtime.demo import demo_model


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command."""
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_greedy_continuation_is_llama_cpps(capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    recorded = json.loads((shared_data / "recorded.json").read_text())["files"]
    name = "models/stories260K-f32.gguf"
    for prompt, text in recorded[name]["greedy"].items():
        code, out, err = run(
            capsys, "run", "-m", str(shared_data / name), "-p", prompt, "-n", "64", "--temp", "0", "-no-cnv"
        )
        assert (code, out.rstrip("\n")) == (0, (prompt + text).rstrip("\n"))
        assert re.search(r"\[ Prompt: \d+ tokens, [\d.]+ t/s \| Generation: 64 tokens, [\d.]+ t/s \]", err)


def test_the_demo_model_answers_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "run", "-p", "What sound does a cow make?", "--temp", "0", "-c", "256")
    assert code == 0
    assert "moos" in out
    assert "Generation" in err and "Generation" not in out


def test_prompt_from_a_file_with_a_system_prompt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("What sound does a cow make?\n")
    arguments = ["--temp", "0", "-sys", "You are a helpful assistant.", "-n", "40"]
    assert "moos" in run(capsys, "run", "-f", str(tmp_path / "p.txt"), *arguments)[1]


def test_seed_fixes_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "-p", "Tell me a story.", "-n", "24", "--temp", "1.5"]
    first, again, other = (run(capsys, *arguments, "-s", s)[1] for s in ("1", "1", "2"))
    assert first == again != other


def test_verbose_says_what_runs_where(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = run(capsys, "run", "-p", "Hi", "-n", "2", "-v", "-dev", "cpu", "--dequantize", "off")
    assert "device: cpu" in err and "parameters" in err and "weights: as stored" in err and "device" not in out


@pytest.mark.parametrize("extra", [["--no-mmap"], ["-fa", "off"], ["--dequantize", "off"], ["-b", "3"], ["-t", "1"]])
def test_ways_of_running_give_the_same_text(capsys: pytest.CaptureFixture[str], extra: list[str]) -> None:
    arguments = ["run", "-p", "Once upon a time", "-no-cnv", "--temp", "0", "-n", "16"]
    assert run(capsys, *arguments)[1] == run(capsys, *arguments, *extra)[1]


def test_display_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "-p", r"Once\tupon", "-no-cnv", "--temp", "0", "-n", "4"]
    shown = run(capsys, *arguments)[1]
    assert shown.startswith("Once\tupon")
    assert shown == "Once\tupon" + run(capsys, *arguments, "--no-display-prompt")[1]


def test_version_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["run", "--version"]):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (0, "")
        assert re.fullmatch(r"naiad \d+\.\d+\.\d+\n", err)
    code, out, _ = run(capsys, "run", "--list-devices")
    assert code == 0 and "cpu: CPU" in out


def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "-h"], ["tokenize", "--help"], ["info", "-h"]):
        code, out, err = run(capsys, *arguments)
        assert code == 0 and out.startswith("usage: naiad") and err == ""


ERRORS = [
    ([], "usage: naiad"),
    (["fly"], "error: invalid command: fly"),
    (["run", "--fly"], "error: invalid argument: --fly\nto show complete usage, run with -h"),
    (["run", "-m", "missing.gguf", "-p", "x"], "error: missing.gguf: no such file"),
    (["run", "-m", __file__, "-p", "x"], f'error: {__file__}: not a GGUF file: it starts with b\'"""T\''),
    (["run", "-p", "x", "--chat-template", "fancy"], "error: "),
    (["run", "-p", "word " * 600, "-c", "64"], "error: the prompt has"),
    (["run", "-no-cnv"], "error: -no-cnv needs a prompt"),
    (["run", "-f", "missing.txt"], "error: "),
    (["run", "--cpu-isa", "mmx", "-p", "x"], "error: expected an instruction set of avx512vnni"),
    (["run", "-dev", "tpu", "-p", "x"], "error: device 'tpu' is not here, found: "),
    (["run", "-hff", "x.gguf", "-p", "x"], "error: --hf-file needs --hf-repo"),
    (["run", "-hf", "nonsense", "-p", "x"], "error: expected a repository as user/model"),
    (["tokenize"], "error: must specify one of: --stdin, --file or --prompt"),
    (["info", "missing.gguf"], "error: missing.gguf: no such file"),
    (["info", "a", "b"], "error: invalid argument: b"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), ERRORS, ids=lambda v: " ".join(v)[:30] if isinstance(v, list) else None
)
def test_errors_are_one_message_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(message)
    assert "Traceback" not in err


TOKENIZE = [
    (["--ids"], "[1, 403, 407, 261, 378]\n"),
    (["--ids", "--no-bos"], "[403, 407, 261, 378]\n"),
    (["--ids", "--show-count"], "[1, 403, 407, 261, 378]\nTotal number of tokens: 5\n"),
    ([], "     1 -> '<s>'\n   403 -> ' Once'\n   407 -> ' upon'\n   261 -> ' a'\n   378 -> ' time'\n"),
]


@pytest.mark.parametrize(("flags", "expected"), TOKENIZE, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_tokenize(capsys: pytest.CaptureFixture[str], shared_data: Path, flags: list[str], expected: str) -> None:
    model = str(shared_data / "models" / "stories260K-f32.gguf")
    assert run(capsys, "tokenize", "-m", model, "-p", "Once upon a time", *flags)[:2] == (0, expected)


def test_tokenize_special_tokens_and_files(
    capsys: pytest.CaptureFixture[str], shared_data: Path, tmp_path: Path
) -> None:
    model = ["-m", str(shared_data / "models" / "stories260K-f32.gguf"), "--ids"]
    file = tmp_path / "text"
    file.write_text("Once</s>")
    parsed = json.loads(run(capsys, "tokenize", *model, "-f", str(file))[1])
    plain = json.loads(run(capsys, "tokenize", *model, "-f", str(file), "--no-parse-special")[1])
    assert parsed[-1] == 2 and 2 not in plain


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", str(demo_model()), "--tensors")
    assert code == 0
    for part in ("GGUF version 3", "general.architecture = 'llama'", "Q8_0", "token_embd.weight", "bits per weight"):
        assert part in out


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m naiad info | head -1"
    result = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def chat(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str
) -> tuple[str, str]:
    """A chat whose input comes from a pipe."""
    read, write = os.pipe()
    os.write(write, text.encode())
    os.close(write)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, err = run(capsys, "run", "--temp", "0", "-c", "256", "-n", "40", *arguments)
    assert code == 0
    return out, err


def test_chat_from_a_pipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note = tmp_path / "note"
    note.write_text("What sound does a cow make?")
    out, err = chat(
        capsys,
        monkeypatch,
        f"/help\n\nWhat sound does a cow make?\n/regen\n/clear\n/regen\n/dance\n/read {note}\n/read nothere\n",
    )
    assert out.count("moos") == 2
    for part in (
        "/regen",
        "forgotten",
        "no message to answer again",
        "/dance is not a command",
        "goes with your next",
        "error: ",
    ):
        assert part in err


def test_a_message_that_does_not_fit_is_dropped_and_the_chat_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = chat(capsys, monkeypatch, "word " * 400 + "\nWhat sound does a cow make?\n")
    assert "error: the prompt has" in err
    assert "moos" in out


def test_single_turn_and_conversation_after_a_prompt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "What sound does a cow make?"
    assert chat(capsys, monkeypatch, f"{question}\n{question}\n", "-st")[0].count("moos") == 1
    assert chat(capsys, monkeypatch, f"{question}\n", "-p", question)[0].count("moos") == 1
    assert chat(capsys, monkeypatch, f"{question}\n", "-p", question, "-cnv")[0].count("moos") == 2


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command: str, home: Path) -> None:
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, {**os.environ, "HOME": str(home), "TERM": "xterm"})
        self.seen = ""

    def expect(self, text: str, seconds: float = 60) -> None:
        """Reads until the text appears; what came before it is forgotten."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.file], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not appear in {self.seen!r}"
            self.seen += os.read(self.file, 4096).decode("utf-8", "replace")
        self.seen = self.seen.partition(text)[2]

    def send(self, text: str) -> None:
        os.write(self.file, text.encode())

    def wait(self) -> int:
        """The exit code; what the program still writes is read, so that it cannot block."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
            if select.select([self.file], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.file, 4096).decode("utf-8", "replace")
                except OSError:
                    time.sleep(0.1)
        raise AssertionError("the program does not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.file)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    # A home of its own for the history, but not for compiled kernels.
    (Path.home() / ".cache").mkdir(exist_ok=True)
    (tmp_path / ".cache").symlink_to(Path.home() / ".cache")
    terminal = Terminal(sys.executable, "-m", "naiad", "run", "--temp", "0", "--ignore-eos", home=tmp_path)
    yield terminal
    terminal.close()


def test_interactive_chat(terminal: Terminal, tmp_path: Path) -> None:
    """Line editing, history on disk, Ctrl-C that stops an answer, twice that leaves."""
    terminal.expect("/help for the commands")
    terminal.expect(">")
    terminal.send("What sound does a dog make?\x01\x0b")  # typed, then to the beginning and cut
    terminal.send("What sound does a cow make?\r")
    terminal.expect("moos")
    terminal.send("\x03")  # --ignore-eos: it would talk until the context is full
    terminal.expect("(stopped)")
    terminal.expect(">")
    terminal.send("\x03")
    terminal.expect("Ctrl-C again to leave")
    terminal.expect(">")
    terminal.send("\x03")
    assert terminal.wait() == 130
    assert "+What sound does a cow make?" in (tmp_path / ".local/state/naiad/history").read_text()
