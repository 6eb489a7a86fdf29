"""Sampling on the command line: what the flags become."""

from __future__ import annotations

import math
from typing import Any

import pytest

from naiad.runtime.cli.options import Parser, UsageError
from naiad.runtime.cli.run import PARSER as RUN_PARSER
from naiad.runtime.cli.sampling_options import SAMPLING_OPTIONS, sampling_params
from naiad.runtime.sampling import SamplingParams

PARSER = Parser("test", "", SAMPLING_OPTIONS)


def parsed(*arguments: str, base: SamplingParams | None = None, environment: dict[str, str] | None = None) -> Any:
    return sampling_params(PARSER.parse(arguments, environment or {}), base or SamplingParams())


FLAGS: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (["--temp", "0.3", "--top-k", "-1"], {"temperature": 0.3, "top_k": -1}),
    (["-n", "7", "-s", "5"], {"max_tokens": 7, "seed": 5}),
    (["--dynatemp-range", "0.5", "--dynatemp-exp", "2"], {"dynatemp_range": 0.5, "dynatemp_exponent": 2.0}),
    (["--typical", "0.9", "--top-nsigma", "1.5"], {"typical_p": 0.9, "top_n_sigma": 1.5}),
    (["--mirostat", "2"], {"mirostat": 2}),
    (["--mirostat-lr", "0.2", "--mirostat-ent", "4"], {"mirostat_eta": 0.2, "mirostat_tau": 4.0}),
    (["--samplers", "top-k;temp"], {"samplers": ("top_k", "temperature")}),
    (["--sampling-seq", "kt"], {"samplers": ("top_k", "temperature")}),
    (["-l", "15+1.5,16-inf,3-2"], {"logit_bias": {15: 1.5, 16: -math.inf, 3: -2.0}}),
    (["-l", "300+1e-2"], {"logit_bias": {300: 0.01}}),
    (["-l", "300-1e+2,5--2, 6 + .5"], {"logit_bias": {300: -100.0, 5: 2.0, 6: 0.5}}),
    (["-l", "300+0x1p4,7-INF"], {"logit_bias": {300: 16.0, 7: -math.inf}}),
    (["-l", "300+1", "-l", "300+2", "-l", "5-inf"], {"logit_bias": {300: 3.0, 5: -math.inf}}),
    (["-r", r"\xe2\x82\xac", "-r", "\udce2\udc82\\xac", "-r", "\udcff"], {"stop": ("€", "€", "\ufffd")}),
    (["--dry-sequence-breaker", r"\xc3\xa9"], {"dry_sequence_breakers": ("é",)}),
    (["--dry-multiplier", "0.8"], {"dry_multiplier": 0.8}),
    (["--dry-sequence-breaker", "\\n"], {"dry_sequence_breakers": ("\n",)}),
    (["--dry-sequence-breaker", "a", "--dry-sequence-breaker", "b"], {"dry_sequence_breakers": ("a", "b")}),
    (["--dry-sequence-breaker", "none"], {"dry_sequence_breakers": ()}),
    (["-r", "User:", "-r", "\\n"], {"stop": ("User:", "\n")}),
    (["--ignore-eos"], {"ignore_eos": True}),
]


@pytest.mark.parametrize(("arguments", "expected"), FLAGS, ids=[" ".join(row[0]) for row in FLAGS])
def test_flags(arguments: list[str], expected: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert parsed(*arguments) == SamplingParams(**expected)
    assert capsys.readouterr().err == ""


def test_flags_win_over_the_environment_and_that_over_the_file() -> None:
    file = SamplingParams(temperature=0.1, top_k=3, top_p=0.5)
    found = parsed("--temp", "0.9", base=file, environment={"LLAMA_ARG_TEMPERATURE": "0.4", "LLAMA_ARG_TOP_K": "8"})
    assert found == SamplingParams(temperature=0.9, top_k=8, top_p=0.5)


BAD = [
    ("-l", "15"),
    ("-l", "+1"),
    ("-l", "15+x"),
    ("-l", "15+nan"),
    ("-l", "15+1,"),
    ("-l", "1e2+1"),
    ("-l", "15 1"),
    ("--samplers", "best"),
    ("--sampling-seq", "kz"),
    ("--mirostat", "3"),
    ("--xtc-probability", "1.5"),
    ("--temp", "nan"),
    ("--adaptive-decay", "1"),
]


@pytest.mark.parametrize(("flag", "value"), BAD)
def test_impossible_values_name_the_flag(flag: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag}: "):
        parsed(flag, value)


def test_no_escape_is_for_stop_texts_and_breakers_too() -> None:
    values = RUN_PARSER.parse(["--no-escape", "-r", r"\n", "--dry-sequence-breaker", r"\x41", "-r", "\udcc3x"], {})
    params = sampling_params(values)
    assert params.stop == (r"\n", "\ufffdx")
    assert params.dry_sequence_breakers == (r"\x41",)
