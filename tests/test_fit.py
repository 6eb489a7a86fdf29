"""naiad fit: the flags that it prints can be followed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import torch

from naiad.loaders.open import open_model
from naiad.runtime.cli import fit
from naiad.runtime.cli.model_options import load_llm
from naiad.runtime.demo import demo_model
from naiad.runtime.llm import LLM
from naiad.runtime.model import ModelOptions, has_cpu_kernels

Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def flags(run: Run) -> Callable[[str], dict[str, Any]]:
    """What `naiad fit` prints, as a command's parser reads it."""

    def flags(line: str) -> dict[str, Any]:
        code, out, err = run(f"fit {line}")
        assert code == 0 and out.count("\n") == 1 and err.startswith("MiB ")
        return fit.PARSER.parse(shlex.split(out), {})

    return flags


def test_fit_prints_flags_that_load(flags: Callable[[str], dict[str, Any]]) -> None:
    found = flags("-dev cpu -np 3 -b 64 -ctk q8_0")
    assert (found["ctx_size"], found["n_gpu_layers"], found["batch_size"], found["parallel"]) == (512, 0, 64, 3)
    assert (found["cache_type_k"], found["cache_type_v"]) == ("q8_0", None)
    with LLM(n_ctx=found["ctx_size"], n_gpu_layers=found["n_gpu_layers"], device="cpu", max_seqs=3) as llm:
        assert llm.memory.n_ctx == 512


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-c 100 -b 64 -np 3",
        "-ctk q8_0",
        "--route exact",
        "--route exact --dequantize off -ctv f16",
        "--dequantize on --no-mmap",
        "--weight-type bf16 -fa off -cram 1",
    ],
)
def test_what_fits_is_what_runs(line: str) -> None:
    """The same decisions: types of the cache, forms of the weights, pages."""
    values = fit.PARSER.parse(shlex.split("-dev cpu " + line), {})
    found, _ = fit._fitted(open_model(demo_model()), values)
    with load_llm(values) as llm:
        assert (llm.memory.options, llm.memory.groups) == (found.options, found.groups)
        assert [(d.device, d.weights, d.mapped, d.cache, d.workspace) for d in llm.memory.devices] == [
            (d.device, d.weights, d.mapped, d.cache, d.workspace) for d in found.devices
        ]


def test_keys_and_values_are_planned_as_the_layers_keep_them(run: Run) -> None:
    kernels = has_cpu_kernels(ModelOptions())
    for line, kind in (
        ("-dev cpu", "f16" if kernels else "f32"),
        ("-dev cpu --route exact", "f32"),
        ("-dev cpu -ctk q4_0", "q4_0"),
    ):
        assert f"(keys {kind}, " in run(f"fit {line}")[2], line
    if not torch.cuda.is_available():
        # Layers that are left on the CPU run on its kernels, whose cache all share.
        for n_gpu, kind in ((6, "bf16"), (2, "f16" if kernels else "f32")):
            assert f"(keys {kind}, " in run(f"fit -dev cuda:0 --memory 1100 -ngl {n_gpu}")[2], n_gpu


# --memory with -ngl and -c as asked for -> -c and -ngl as printed. The demo model has 5 layers and the output.
FITS = [
    ("--memory 1100", 512, 6),
    ("--memory 1100 -ngl 2", 512, 2),
    ("--memory 1100 -c 100", 100, 6),
    ("--memory 1029 -c 8000", 8000, 0),
    ("--memory 1100 -c 8000", 8000, 6),
    ("--memory 100 -fitt 0", 512, 6),
    ("--memory 100", 512, 0),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
@pytest.mark.parametrize(("line", "n_ctx", "n_gpu"), FITS)
def test_fit_for_a_gpu_that_is_not_here(
    flags: Callable[[str], dict[str, Any]], line: str, n_ctx: int, n_gpu: int
) -> None:
    found = flags(f"-dev cuda:0 {line}")
    assert (found["ctx_size"], found["n_gpu_layers"]) == (n_ctx, n_gpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
def test_fit_takes_as_many_layers_as_fit_and_fails_where_their_number_is_asked_for(
    flags: Callable[[str], dict[str, Any]], run: Run
) -> None:
    line = "-dev cuda:0 --memory 1040 -c 8000"
    n_gpu = flags(line)["n_gpu_layers"]
    assert 0 < n_gpu < 6
    for n in range(7):
        code, out, err = run(f"fit {line} -ngl {n}")
        assert (code, bool(out)) == ((0, True) if n <= n_gpu else (1, False))
        assert n <= n_gpu or f"-ngl {n_gpu}" in err
    found = re.search(r"-c (\d+)", err)
    for memory in range(1026, 1046, 2):
        n_gpu = flags(f"-dev cuda:0 --memory {memory} -c 8000")["n_gpu_layers"]
        assert n_gpu == 6 or run(f"fit -dev cuda:0 --memory {memory} -c 8000 -ngl {n_gpu + 1}")[0] == 1
    assert found and flags(f"-dev cuda:0 --memory 1040 -ngl 6 -c {found[1]}")["ctx_size"] == int(found[1])


ERRORS = [
    ("fit --memory 0", "error: --memory: expected an integer from 1 to "),
    ("fit -m missing.gguf", "error: missing.gguf: no such file\n"),
    ("fit -hff x", "error: --hf-file needs --hf-repo\n"),
    ("fit --memory 3 -dev cpu", "error: a context of 512 tokens does not fit: cpu has 3 MiB free, and it takes "),
]


@pytest.mark.parametrize(("line", "message"), ERRORS, ids=[line for line, _ in ERRORS])
def test_errors_are_one_message_and_exit_code_1(run: Run, line: str, message: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (1, "") and err.startswith(message) and "Traceback" not in err
