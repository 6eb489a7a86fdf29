"""Checkpoints that cut text into words in ways of their own: the tokens are those of the tokenizers library."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from naiad.loaders.gguf import GGUFFile
from naiad.loaders.gguf_write import write_gguf
from naiad.loaders.hf.tokenizer import tokenizer_kv
from naiad.loaders.tokenizer import Tokenizer

EMBEDDED = "tokenizer.huggingface.json"
TEXTS = (
    "Hello world, it's 12345 times  MORE\n\n than we'Ve seen!? \n\tfoo_bar(x) == 3.14; can't YOU'RE 1st x²  \r\n end  ",
    "L'été naïve Straße \u01c4\u01c5 \u0130stanbul cafe\u0301 \ufb01ne",
    "привет мир \u03b1\u03b2\u03b3 \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u0661\u0662\u0663",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0967\u0968 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \uc548\ub155 12\u4e07",
    "你好世界\uff0cこんにちは カタカナ",
    "🚀🎉 👨\u200d👩\u200d👧 x\u00a0y\u3000z \u2028 \u2167 \u00bd",
    "1 22 333 4444 55555 666666 7_000_000 0x1F 3e-7\n\n\n  9\r\r\n\t\t8",
    " ",
    "\n",
    "a",
    "   leading and trailing   ",
)
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
BEHAVIORS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def steps(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


CASES: dict[str, dict[str, Any]] = {
    "bytes alone": BYTES,
    "a space before": {**GPT2, "add_prefix_space": True},
    "a space before, no words": {**BYTES, "add_prefix_space": True},
    "digits together": steps({"type": "Digits", "individual_digits": False}, GPT2),
    "ascii digits": steps(split("[0-9]"), GPT2),
    "digits in threes": steps(split(r"\d{1,3}(?=(?:\d{3})*\b)"), BYTES),
    "falcon": steps({"type": "Punctuation", "behavior": "Contiguous"}, GPT2, split("[0-9][0-9][0-9]")),
    "words in sequences": steps(steps(split(r"\p{Han}+")), steps(split(rf"{CONTRACTION}|\s?\p{{L}}+|\p{{N}}"), BYTES)),
    "a letter": steps(
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithNext", "invert": False}, BYTES
    ),
    "letters behind bytes": steps(BYTES, split("\u0120")),
    "whitespace": steps({"type": "Whitespace"}, BYTES),
    "whitespace alone": steps({"type": "WhitespaceSplit"}, BYTES),
    "scripts": steps({"type": "UnicodeScripts"}, BYTES),
    "bert": steps({"type": "BertPreTokenizer"}, BYTES),
    "underscores": steps({"type": "CharDelimiterSplit", "delimiter": "_"}, BYTES),
    "fives": steps({"type": "FixedLength", "length": 5}, BYTES),
    **{f"marks {b}": steps({"type": "Punctuation", "behavior": b}, GPT2) for b in BEHAVIORS},
    **{f"words {b}": steps(split(r"\p{L}+", b), BYTES) for b in BEHAVIORS},
    **{f"no words {b}": steps(split(r"\p{L}+", b, True), BYTES) for b in BEHAVIORS},
}


def cut_by(folder: Path, cut: Any, **model: Any) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
    """A folder's metadata with another pre-tokenizer, and the library's tokenizer."""
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    found["pre_tokenizer"] = cut
    found["model"].update(model)
    path.write_text(json.dumps(found))
    return tokenizer_kv(folder, "qwen2", 1024), tokenizers.Tokenizer.from_file(str(path))


def check(kv: dict[str, Any], reference: tokenizers.Tokenizer) -> None:
    ours = Tokenizer.from_kv(kv)
    for text in TEXTS:
        expected = reference.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special=False) == expected, text


@pytest.fixture
def folder(shared_data: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((shared_data / "tiny" / "qwen2" / name).read_text())
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    return tmp_path


@pytest.mark.parametrize("cut", CASES.values(), ids=CASES)
def test_cuts_without_a_name(cut: dict[str, Any], folder: Path) -> None:
    kv, reference = cut_by(folder, cut)
    assert kv["tokenizer.ggml.pre"] == "huggingface" and kv[EMBEDDED] == (folder / "tokenizer.json").read_text()
    check(kv, reference)


def test_any_steps_together(folder: Path) -> None:
    """Steps of all kinds in any number and order."""
    rng, parts = random.Random(0), [step for cut in CASES.values() for step in cut.get("pretokenizers", [])]
    for _ in range(25):
        kv, reference = cut_by(folder, steps(*rng.sample(parts, rng.randint(1, 4)), BYTES))
        check(kv, reference)


def test_whole_words_that_are_tokens(folder: Path) -> None:
    kv, reference = cut_by(folder, CASES["digits together"], ignore_merges=True)
    check(kv, reference)


def test_named_cuts_stay_named(folder: Path) -> None:
    kv, reference = cut_by(folder, GPT2)
    assert kv["tokenizer.ggml.pre"] == "gpt-2" and EMBEDDED not in kv
    check(kv, reference)


@pytest.mark.parametrize("cut", [CASES["falcon"], CASES["a space before"]], ids=["falcon", "a space before"])
def test_the_same_tokens_from_a_gguf_file(cut: dict[str, Any], folder: Path) -> None:
    kv, reference = cut_by(folder, cut)
    write_gguf(folder / "m.gguf", {"general.architecture": "qwen2", **kv}, [])
    with GGUFFile(folder / "m.gguf") as file:
        written = dict(file.kv)
    check(written, reference)
    # The whole tokenizer.json is enough, and says how words are cut where nothing else does.
    del written["tokenizer.ggml.pre"]
    check(written, reference)
    check({EMBEDDED: kv[EMBEDDED]}, reference)


def test_special_tokens_are_found_first(folder: Path) -> None:
    kv, reference = cut_by(folder, CASES["a space before"])
    text = "<|im_start|>user\nhi<|im_end|>x<|endoftext|>"
    expected = reference.encode(text, add_special_tokens=False).ids
    assert Tokenizer.from_kv(kv).encode(text, add_special=False) == expected


BAD: dict[str, tuple[Any, str]] = {
    "expression": (steps(split("(["), BYTES), "bad pre-tokenizer: the tokenizers library says"),
    "behaviour": (steps(split("a", "Lost"), BYTES), "bad pre-tokenizer"),
    "fields": (steps({"type": "Split"}, BYTES), "bad pre-tokenizer"),
    "half a letter": (steps(split("\ud800"), BYTES), "bad pre-tokenizer"),
    "length": (steps(split("a" * 300_000), BYTES), "has 300[0-9]{3} letters, expected at most 262144"),
    "none": (None, "its pre-tokenizer has a step None, expected some of"),
}


@pytest.mark.parametrize(("cut", "message"), BAD.values(), ids=BAD)
def test_bad_cuts(cut: Any, message: str, folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "pre_tokenizer": cut}))
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.from_kv(tokenizer_kv(folder, "qwen2", 1024))
    assert len(str(error.value)) < 500


def test_an_expression_that_does_not_end(folder: Path) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "pre_tokenizer": steps(split("(?:a|aa)+$"), BYTES)}))
    tokenizer = Tokenizer.from_kv(tokenizer_kv(folder, "qwen2", 1024))
    with pytest.raises(ValueError, match="cannot tokenise a text of 41 characters"):
        tokenizer.encode("a" * 40 + "!")
    assert tokenizer.encode("hello")


def test_a_carried_name_needs_what_it_names(folder: Path) -> None:
    kv, _ = cut_by(folder, CASES["falcon"])
    for broken, message in (
        ({k: v for k, v in kv.items() if k != EMBEDDED}, "tokenizer.ggml.pre 'huggingface' is not supported"),
        ({**kv, EMBEDDED: 5}, f"{EMBEDDED} should be a string"),
        ({**kv, EMBEDDED: "{"}, f"{EMBEDDED} is not valid JSON"),
        ({**kv, EMBEDDED: "{}"}, f"{EMBEDDED}: its pre-tokenizer has a step None"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokenizer.from_kv(broken)


def test_no_least_number_of_tokens_where_text_may_be_dropped(folder: Path) -> None:
    kv, _ = cut_by(folder, CASES["words Removed"])
    tokenizer = Tokenizer.from_kv(kv)
    assert tokenizer.encode("words" * 1000, add_special=False) == [] and tokenizer.least_tokens("words" * 1000) == 0
