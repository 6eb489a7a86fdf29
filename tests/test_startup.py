"""What commands import: those that only read files do without torch, whose import takes two seconds."""

import ast
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import startup

from naiad.quant.cache_types import CACHE_TYPES
from naiad.runtime import cli
from naiad.runtime.cli import COMMANDS
from naiad.runtime.cli.importing import keeping
from naiad.runtime.model import WEIGHT_DTYPES

ROOT = Path(__file__).parents[1]
# Runs command lines in one process; prints which of these packages came with each.
PROGRAM = """
import contextlib, io, json, sys
from naiad.runtime import cli
found = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = cli.main(line)
    found[" ".join(line)] = code, sorted({"torch", "numba", "transformers", "huggingface_hub"} & sys.modules.keys())
print(json.dumps(found))
"""


def test_commands_that_only_read_import_no_torch(shared_data: Path) -> None:
    vocabulary = str(shared_data / "vocab" / "ggml-vocab-phi-3.gguf")
    lines = [["--version"], ["--help"], *([command, "--help"] for command in COMMANDS), ["run", "--version"], ["info"]]
    lines += [["tokenize", "-m", vocabulary, "-p", "Hello"], ["info", str(shared_data / "models" / "stories260K-hf")]]
    command = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {" ".join(line): [0, []] for line in lines}


def test_what_is_kept_is_collected_again_when_a_program_goes_on() -> None:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with keeping():
            assert not gc.isenabled()
        assert not gc.isenabled(), "who had switched it off keeps it so"
        gc.enable()
        with pytest.raises(KeyError), keeping():
            raise KeyError
        assert gc.isenabled() and gc.get_freeze_count()
        cli.main(["--version"])
        assert not gc.get_freeze_count()
    finally:
        gc.enable() if was_enabled else gc.disable()


def test_unknown_types_are_refused_by_names_that_are_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-ctk", "q9"]) == 1
    assert ", ".join(CACHE_TYPES) in capsys.readouterr().err
    assert cli.main(["run", "--weight-type", "f8"]) == 1
    assert ", ".join(WEIGHT_DTYPES) in capsys.readouterr().err


def test_readers_and_options_import_torch_only_where_it_is_asked_for() -> None:
    """Inside functions, or for type checkers."""
    for file in [*(ROOT / "loaders").rglob("*.py"), *(ROOT / "runtime" / "cli").rglob("*.py")]:
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert "torch" not in {name.partition(".")[0] for name in names}, file


def test_processes_are_timed_to_their_end_or_to_the_first_token() -> None:
    slow = "import time; print('token', flush=True); time.sleep(1)"
    found = startup.measured(dict.fromkeys(("run", startup.FIRST_TOKEN), (sys.executable, "-S", "-c", slow)), 1)
    assert found[startup.FIRST_TOKEN][0][0] < 1 <= found["run"][0][0]
    with pytest.raises(RuntimeError, match="ended with 3"):
        startup.seconds("run", (sys.executable, "-c", "raise SystemExit(3)"))
