"""The command-line parser: llama.cpp's rules, in a table."""

from pathlib import Path
from typing import Any

import pytest

from naiad.runtime.cli.options import Option, Parser, UsageError, integer, number, one_of
from naiad.runtime.cli.run import PARSER

ACCEPTED: list[tuple[list[str], dict[str, Any]]] = [
    ([], {"ctx_size": 0, "batch_size": 512, "parallel": 1, "cache_ram": 0, "flash_attn": "auto", "temperature": None}),
    (["-m", "x.gguf"], {"model": "x.gguf"}),
    (["--n_gpu_layers", "3"], {"n_gpu_layers": 3}),
    (["-ngl", "all"], {"n_gpu_layers": None}),
    (["-ngl", "auto"], {"n_gpu_layers": None}),
    (["--gpu-layers", "0"], {"n_gpu_layers": 0}),
    (["-n", "-1"], {"n_predict": -1}),
    (["-n", "-2"], {"n_predict": -1}),
    (["-ngl", "-1"], {"n_gpu_layers": None}),
    (["-ngl", "ALL"], {"n_gpu_layers": None}),
    *((["-fa", word], {"flash_attn": "on"}) for word in ("1", "true", "enabled", "on", "True")),
    *((["-fa", word], {"flash_attn": "off"}) for word in ("0", "false", "disabled", "off")),
    *((["-fa", word], {"flash_attn": "auto"}) for word in ("-1", "auto")),
    (["--dequantize", "0"], {"dequantize": "off"}),
    (["--cpu-strict", "1", "--cpu-strict-batch", "off"], {"cpu_strict": True, "cpu_strict_batch": False}),
    (["-c", "+64", "-t", " 3 "], {"ctx_size": 64, "threads": 3}),
    (["--temp", "5e-1", "--top-p", ".5", "--min-p", "0x1p-3"], {"temperature": 0.5, "top_p": 0.5, "min_p": 0.125}),
    (["-p", "-starts with a dash"], {"prompt": "-starts with a dash"}),
    (["-p", ""], {"prompt": ""}),
    (["--temp", "0"], {"temperature": 0.0}),
    (["--temp", "-1"], {"temperature": -1.0}),
    (["-s", "4294967295"], {"seed": 4294967295}),
    (["-fa", "ON"], {"flash_attn": "on"}),
    (["-cnv"], {"conversation": True}),
    (["-no-cnv"], {"conversation": False}),
    (["--no-conversation"], {"conversation": False}),
    (["--no-mmap"], {"mmap": False}),
    (["--no_mmap"], {"mmap": False}),
    (["-f", "a.txt"], {"file": Path("a.txt")}),
    (["-hf", "u/m:Q8_0", "-hff", "x"], {"hf_repo": "u/m:Q8_0", "hf_file": "x"}),
    (["-st", "--ignore-eos", "-v"], {"single_turn": True, "ignore_eos": True, "verbose": True}),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), ACCEPTED, ids=lambda v: " ".join(v) if isinstance(v, list) else None
)
def test_accepted(arguments: list[str], expected: dict[str, Any]) -> None:
    values = PARSER.parse(arguments, {})
    assert {key: values[key] for key in expected} == expected


REFUSED = [
    (["--nonsense"], "invalid argument: --nonsense"),
    (["--model=x"], "invalid argument: --model=x"),
    (["--mod", "x"], "invalid argument: --mod"),
    (["loose"], "invalid argument: loose"),
    (["-m"], "-m needs a value: FILE"),
    (["-n", "many"], "-n: expected an integer, found 'many'"),
    (["-n", "-3"], "-n: expected an integer from -2"),
    (["-n", "9" * 5000], "-n: expected an integer, found '9999"),
    (["--temp", "1e999"], "--temp: expected a number from"),
    (["--temp", ""], "--temp: expected a number, found ''"),
    (["-fa", "2"], "-fa: expected one of on, off, auto, found '2'"),
    (["--cpu-strict", "perhaps"], "--cpu-strict: expected on or off, 1 or 0, found 'perhaps'"),
    (["-c", "-1"], "-c: expected an integer from 0"),
    (["-t", "513"], "-t: expected an integer from -2147483648 to 512"),
    (["-ngl", "most"], "-ngl: expected an integer, found 'most'"),
    (["--temp", "hot"], "--temp: expected a number, found 'hot'"),
    (["--temp", "nan"], "--temp: expected a number"),
    (["--top-p", "-0.1"], "--top-p: expected a number from 0"),
    (["--min-p", "2"], "--min-p: expected a number"),
    (["--repeat-penalty", "0"], "--repeat-penalty: expected a number"),
    (["-s", "4294967296"], "-s: expected an integer from -1 to 4294967295"),
    (["-fa", "maybe"], "-fa: expected one of on, off, auto, found 'maybe'"),
    (["-fa"], "-fa needs a value"),
    (["--dequantize", "some"], "--dequantize: expected one of on, off, auto"),
    (["--weight-type", "q4_0"], "--weight-type: expected one of auto, f32, bf16, f16"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else None)
def test_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        PARSER.parse(arguments, {})
    assert str(error.value).startswith(message)


def test_environment_is_overridden_by_the_command_line() -> None:
    environment = {"LLAMA_ARG_CTX_SIZE": "128", "LLAMA_ARG_THREADS": "3"}
    values = PARSER.parse(["-c", "64"], environment)
    assert (values["ctx_size"], values["threads"]) == (64, 3)
    with pytest.raises(UsageError, match="LLAMA_ARG_CTX_SIZE: expected an integer, found 'big'"):
        PARSER.parse([], {"LLAMA_ARG_CTX_SIZE": "big"})


def test_switches_in_the_environment() -> None:
    parser = Parser("x", "", [Option(("--fast",), "", env="FAST")])
    assert parser.parse([], {"FAST": "on"})["fast"] is True
    assert parser.parse([], {"FAST": "0"})["fast"] is False
    with pytest.raises(UsageError, match="FAST must be on or off, found 'perhaps'"):
        parser.parse([], {"FAST": "perhaps"})


def test_the_last_of_two_counts_and_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    assert PARSER.parse(["-c", "1", "--ctx-size", "2"], {})["ctx_size"] == 2
    assert "--ctx-size is given more than once" in capsys.readouterr().err


def test_usage_lists_every_option() -> None:
    usage = PARSER.usage()
    for option in PARSER.options:
        assert all(name in usage for name in (*option.names, *option.off))


def test_converters() -> None:
    assert integer(0, 5)("5") == 5
    assert number(0, 1)("1e-3") == 0.001
    assert one_of("a", "b")("B") == "b"


def test_what_follows_a_number_is_passed_over_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    values = PARSER.parse(["-c", "4096,", "--temp", "0.5f", "-n", "1e3"], {"LLAMA_ARG_THREADS": "2x"})
    assert [values[key] for key in ("ctx_size", "temperature", "n_predict", "threads")] == [4096, 0.5, 1, 2]
    err = capsys.readouterr().err
    assert "'4096,' is read as 4096" in err and "'1e3' is read as 1" in err and "'2x' is read as 2" in err


def test_words_of_the_environment() -> None:
    values = PARSER.parse([], {"LLAMA_ARG_FLASH_ATTN": "enabled", "LLAMA_ARG_N_GPU_LAYERS": "-2"})
    assert (values["flash_attn"], values["n_gpu_layers"]) == ("on", None)
    with pytest.raises(UsageError, match=r"LLAMA_ARG_FLASH_ATTN: .*, found 'x{57}\.\.\.'"):
        PARSER.parse([], {"LLAMA_ARG_FLASH_ATTN": "x" * 300})
