"""Fixtures for all tests: where the shared data lies, fixed seeds."""

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tests' tensors are small: a second thread only waits, on a busy machine for long."""
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
