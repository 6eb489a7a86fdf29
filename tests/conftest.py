"""Fixtures for all tests: where the shared data lies, fixed seeds; and Triton's interpreter where there is no GPU."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Triton reads it when it is imported, so this stands before anything that could import it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import interpreter

from naiad.runtime import cli

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.repair()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The tests' tensors are small: a second thread only waits, on a busy machine for long. Before every test, since a
    model that is loaded with a number of threads sets it for the whole process."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The same random numbers in every run and every order of tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real vocabularies, small models and recorded llama.cpp outputs."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared test data, and {SHARED_DATA} is not there")
    return SHARED_DATA


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str, str]]:
    """Runs a command line: exit code, stdout, stderr."""

    def run(line: str) -> tuple[int, str, str]:
        code = cli.main(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-isa", metavar="NAME", help="as if the processor had nothing better than avx2, say")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--cpu-isa")
    if name is None:
        return
    import llvmlite.binding as llvm

    from naiad.runtime.cpu_kernels.isa import features_for

    try:
        features = features_for(name, llvm.get_host_cpu_features())
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    # Here everybody asks who wants to know.
    llvm.get_host_cpu_features = lambda: llvm.FeatureMap(features)


_POISON = 0x5A5A5A5A


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty gives NaN, so that an output which a kernel does not write is seen."""
    stock = torch.empty

    def empty(*args: object, **kwargs: object) -> torch.Tensor:
        tensor: torch.Tensor = stock(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(
            float("nan") if tensor.is_floating_point() else _POISON >> 8 * (4 - min(4, tensor.itemsize))
        )

    monkeypatch.setattr(torch, "empty", empty)
