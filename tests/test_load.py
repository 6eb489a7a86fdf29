"""What opening and running a model may cost, in fresh processes."""

import sys
from pathlib import Path

import pytest
from load import opening, peak_memory
from random_model import Shape, write_random_model

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


def test_a_large_vocabulary_opens_quickly(shared_data: Path) -> None:
    """128k tokens and 280k merges, tokenizer built: under 2 s. The best of three, as machines are busy."""
    read, build, _ = opening(str(shared_data / "vocab" / "ggml-vocab-llama-bpe.gguf"), 3)
    assert min(a + b for a, b in zip(read, build, strict=True)) < 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """About 90 million weights: decoded, 170 MiB in bfloat16."""
    path = tmp_path_factory.mktemp("model") / "random.gguf"
    write_random_model(str(path), Shape(8, 1024, 2816, 8, 4, True), "q4_k_m")
    return str(path)


@linux
@pytest.mark.parametrize("dequantize", [pytest.param("on", marks=pytest.mark.slow), "off"])
def test_running_takes_weights_cache_and_400_mib(model: str, dequantize: str) -> None:
    memory = peak_memory(model, dequantize)
    assert memory["weights"] > 40 * MIB
    assert memory["peak"] < memory["weights"] + memory["cache"] + 400 * MIB, memory
