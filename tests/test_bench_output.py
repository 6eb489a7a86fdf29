"""llama-bench's formats, with figures and lines from its README."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest
from fake_engine import FakeModel

from naiad.runtime.cli import bench
from naiad.runtime.cli.bench_output import FIELDS, FORMATS, Markdown, Result, mean_ns, stddev, stddev_ns
from naiad.runtime.cli.timing import Case

# Two tests from llama-bench's README, with what it computes of the samples.
README = [
    (
        Case(512, 0, 0),
        (74601900, 71632900, 71745200, 71952700, 70745500),
        [("avg_ns", "72135640"), ("stddev_ns", "1453752"), ("avg_ts", "7100.002165"), ("stddev_ts", "140.341520"),
         ("samples_ns", "[ 74601900, 71632900, 71745200, 71952700, 70745500 ]"),
         ("samples_ts", "[ 6863.1, 7147.55, 7136.37, 7115.79, 7237.21 ]")],
        "7100.00 ± 140.34",
    ),
    (
        Case(0, 128, 0),
        (1075361300, 1065089400, 1071761200, 1081934900, 1089692600),
        [("avg_ns", "1076767880"), ("stddev_ns", "9449585"), ("avg_ts", "118.881588"), ("stddev_ts", "1.041811"),
         ("samples_ns", "[ 1075361300, 1065089400, 1071761200, 1081934900, 1089692600 ]"),
         ("samples_ts", "[ 119.03, 120.178, 119.43, 118.307, 117.464 ]")],
        "118.88 ± 1.04",
    ),
]  # fmt: skip
README_FIELDS = [
    '"model_filename": "models/qwen2.gguf"',
    '"model_type": "qwen2 7B Q4_K - Medium"',
    '"model_size": 4677120000',
    '"model_n_params": 7615616512',
    '"type_k": "f16"',
    '"type_v": "f16"',
    '"n_gpu_layers": -1',
    '"flash_attn": -1',
    '"devices": "auto"',
]
# llama-bench's fields that mean something here, in its order.
THEIRS = (
    "cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch n_ubatch n_threads type_k "
    "type_v n_gpu_layers flash_attn devices n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts"
)


def result(case: Case, samples: Sequence[int], **changes: Any) -> Result:
    setting = bench.Setting(None, None, None, "int8", 512, None, None, "auto", None)
    sizes = {"n_prompt": case.n_prompt, "n_gen": case.n_gen, "n_depth": case.n_depth}
    values = {**bench.describe(FakeModel(), setting), **sizes, **changes}
    return Result(**values, test_time="2025-04-24T11:58:50Z", samples_ns=tuple(samples))


def printed(name: str, results: Sequence[Result], columns: Sequence[str] = ("n_gpu_layers",)) -> str:
    parts: list[str] = []
    printer = Markdown(parts.append, columns, "naiad") if name == "md" else FORMATS[name](parts.append)
    printer.begin()
    for one in results:
        printer.test(one)
    printer.end()
    return "".join(parts)


@pytest.mark.parametrize(("case", "samples", "expected", "shown"), README)
def test_json_has_llama_benchs_fields_and_figures(
    case: Case, samples: Sequence[int], expected: list[tuple[str, str]], shown: str
) -> None:
    text = printed("json", [result(case, samples)])
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    for entry in (*README_FIELDS, *(f'"{name}": {value}' for name, value in expected)):
        assert entry in lines
    assert text.startswith('[\n  {\n    "cpu_info": ') and text.endswith("\n  }\n]\n")
    assert shown in printed("md", [result(case, samples)])


def test_fields_are_llama_benchs_and_then_our_own() -> None:
    assert " ".join(FIELDS).startswith(THEIRS + " ")
    assert FIELDS[len(THEIRS.split()) :] == ["route", "weights", "naiad_version", "torch_version"]


TABLE = """\
| model                          |       size |     params | backend    | ngl |            test |                  t/s |
| ------------------------------ | ---------: | ---------: | ---------- | --: | --------------: | -------------------: |
| qwen2 7B Q4_K - Medium         |   4.36 GiB |     7.62 B | CUDA       |  -1 |           pp512 |     7100.00 ± 140.34 |
| qwen2 7B Q4_K - Medium         |   4.36 GiB |     7.62 B | CUDA       |  -1 |           tg128 |        118.88 ± 1.04 |
| qwen2 7B Q4_K - Medium         |   4.36 GiB |     7.62 B | CUDA       |  -1 |    pp512 @ d512 |     7100.00 ± 140.34 |
| qwen2 7B Q4_K - Medium         |   3.00 MiB |     4.46 M | CUDA       |  -1 | pp512+tg128 @ d512 |        594.41 ± 5.21 |

build: naiad
"""  # noqa: E501


def test_markdown_is_laid_out_as_llama_benchs() -> None:
    """As in its README (-d 0,512); a test's name that is too long for its column widens it."""
    results = [
        result(Case(512, 0, 0), README[0][1], backends="CUDA"),
        result(Case(0, 128, 0), README[1][1], backends="CUDA"),
        result(Case(512, 0, 512), README[0][1], backends="CUDA"),
        result(Case(512, 128, 512), README[1][1], backends="CUDA", model_size=3 * 2**20, model_n_params=4459264),
    ]
    assert printed("md", results) == TABLE


def test_every_format_says_the_same() -> None:
    quoted = 'a "model" of O\'Brien\n'
    results = [result(case, samples, model_filename=quoted) for case, samples, *_ in README]
    listed = json.loads(printed("json", results))
    assert [json.loads(line) for line in printed("jsonl", results).splitlines()] == listed
    rows = list(csv.DictReader(printed("csv", results).splitlines(keepends=True)))
    base = sqlite3.connect(":memory:")
    base.executescript(printed("sql", results))
    cursor = base.execute("SELECT * FROM llama_bench")
    assert [column for column, *_ in cursor.description] == FIELDS
    for row, stored, one in zip(rows, cursor, listed, strict=True):
        assert list(row) == FIELDS
        assert one["model_filename"] == quoted
        for name, found in zip(FIELDS, stored, strict=True):
            assert found == one[name] and type(found)(row[name]) == found


def test_spread_of_samples() -> None:
    assert (mean_ns([5]), stddev_ns([5]), stddev([5.0])) == (5, 0, 0.0)
    assert (mean_ns([1, 2]), stddev_ns([10, 10, 10]), round(stddev([0.1] * 9), 6)) == (1, 0, 0.0)
    # Squares of this size overflow 64 bits.
    assert (mean_ns([10**11, 3 * 10**11]), stddev_ns([10**11, 3 * 10**11])) == (2 * 10**11, 141421356237)


MODEL_TYPES: list[tuple[dict[str, Any], int, str]] = [
    ({"general.architecture": "llama", "general.file_type": 7}, 8030261248, "llama 8.0B Q8_0"),
    ({"general.architecture": "llama", "general.file_type": 0}, 260032, "llama 260K all F32"),
    ({"general.architecture": "phi3", "general.file_type": 10**9}, 134515008, "phi3 135M"),
    ({"general.architecture": "gemma3", "general.size_label": "x" * 99}, 26 * 10**9, "gemma3 26B"),
    ({"general.architecture": "qwen3", "general.size_label": "0.6B", "general.file_type": 18}, 1, "qwen3 0.6B Q6_K"),
    ({}, 0, "0.0K"),
]


@pytest.mark.parametrize(("kv", "n_parameters", "expected"), MODEL_TYPES)
def test_model_types(kv: dict[str, Any], n_parameters: int, expected: str) -> None:
    assert bench.model_type(kv, n_parameters) == expected
