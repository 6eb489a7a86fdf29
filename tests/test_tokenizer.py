"""Tokenizers give llama.cpp's answers: on its own test files, and recorded for small vocabularies of our own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizer_vocabs as vocabs

from naiad.loaders.tokenizer import Tokenizer
from naiad.loaders.tokenizer.pretokenizers import PRE_TOKENIZERS

VOCABS = ("bert-bge", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2")
SPM_VOCABS = ("llama-spm", "phi-3")
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("tokenizer.json").read_text())
CASES = vocabs.cases()


@pytest.fixture(scope="session")
def shared_vocab(shared_data: Path) -> Callable[[str], Tokenizer]:
    """Opens each of the shared vocabularies once."""
    opened: dict[str, Tokenizer] = {}

    def open_vocab(name: str) -> Tokenizer:
        if name not in opened:
            opened[name] = Tokenizer.from_gguf(shared_data / f"vocab/ggml-vocab-{name}.gguf")
        return opened[name]

    return open_vocab


@pytest.mark.parametrize("name", VOCABS)
def test_llama_cpp_cases(name: str, shared_vocab: Callable[[str], Tokenizer], shared_data: Path) -> None:
    path = shared_data / f"vocab/ggml-vocab-{name}.gguf"
    texts = path.with_name(path.name + ".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_name(path.name + ".out").read_text().split("\n")
    assert len(texts) >= 46 and len(lines) == len(texts)
    tokenizer = shared_vocab(name)
    for number, (text, line) in enumerate(zip(texts, lines, strict=True)):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(word) for word in line.split()], f"case {number}: {text!r}"


@pytest.mark.parametrize("name", VOCABS)
def test_tokens_round_trip(name: str, shared_vocab: Callable[[str], Tokenizer]) -> None:
    """The text of a token encodes to tokens of the same text, special tokens to themselves.

    Every token of the vocabularies up to 70 000, every seventh of the larger ones and all of their last thousand.
    """
    if name == "bert-bge":
        pytest.skip("BERT's normaliser changes the text")
    tokenizer = shared_vocab(name)
    n = tokenizer.n_vocab
    for token in [*range(0, n - 1000, 1 if n < 70_000 else 7), *range(n - 1000, n)]:
        piece = tokenizer.token_to_piece(token)
        try:
            text = piece.decode()
        except UnicodeDecodeError:
            continue
        ids = tokenizer.encode(text, add_special=False)
        if tokenizer.is_control(token):
            assert ids == [token], f"token {token}: {text!r}"
        # SPM vocabularies put a space in front of text and take it away again; the others have `raw` for no change.
        assert tokenizer.decode(ids, raw=name not in SPM_VOCABS) == text, f"token {token}: {text!r}"


def answer_matches(tokenizer: Tokenizer, texts: Any, answer: dict[str, Any]) -> None:
    for i, text in enumerate(texts):
        ids, decoded = answer["ids"][i], answer["text"][i]
        plain = answer["plain"].get(str(i), ids)
        bare = answer["bare"].get(str(i), decoded)
        assert tokenizer.encode(text) == ids, f"{text!r} with special tokens"
        assert tokenizer.encode(text, add_special=False, parse_special=False) == plain, repr(text)
        assert tokenizer.decode(ids) == decoded, f"decode of {text!r}"
        assert tokenizer.decode(ids, remove_special=True, unparse_special=False) == bare, f"bare {text!r}"


@pytest.mark.parametrize("name", [name for row in PRE_TOKENIZERS for name in row.names])
def test_pre_tokenizer(name: str) -> None:
    raw = next(row.raw_utf8 for row in PRE_TOKENIZERS if name in row.names)
    answer = RECORDED["pre_answers"][RECORDED["pre"][name]]
    answer_matches(Tokenizer.from_kv(vocabs.pre_kv(name, raw)), vocabs.TEXTS, answer)


def test_no_recorded_pre_tokenizer_is_missing() -> None:
    assert set(RECORDED["pre"]) == {name for row in PRE_TOKENIZERS for name in row.names}
    assert len(RECORDED["pre"]) == 92


@pytest.mark.parametrize("name", CASES)
def test_other_vocabularies(name: str) -> None:
    kv, texts = CASES[name]
    answer_matches(Tokenizer.from_kv(kv), texts, RECORDED["cases"][name])


@pytest.mark.parametrize("name", vocabs.EOG_TABLE)
def test_end_of_generation(name: str) -> None:
    texts, types, extra = vocabs.EOG_TABLE[name]
    tokenizer = Tokenizer.from_kv(vocabs.eog_kv(texts, types, **extra))
    assert sorted(map(tokenizer.token_text, tokenizer.eog_ids)) == RECORDED["eog"][name]["eog"]
    control = [tokenizer.token_text(i) for i in range(tokenizer.n_vocab) if tokenizer.is_control(i)]
    assert sorted(control) == RECORDED["eog"][name]["control"]


def test_special_ids(shared_vocab: Callable[[str], Tokenizer]) -> None:
    llama = shared_vocab("llama-bpe")
    assert (llama.n_vocab, llama.bos_id, llama.eos_id, llama.eot_id) == (128256, 128000, 128001, 128009)
    assert (llama.add_bos, llama.add_eos, llama.unk_id) == (True, False, None)
    assert llama.eog_ids == {128001, 128009}
    bert = shared_vocab("bert-bge")
    assert (bert.bos_id, bert.sep_id, bert.mask_id, bert.unk_id) == (101, 102, 103, 100)
    assert bert.encode("") == [101, 102]
    assert llama.token_id("<|eot_id|>") == 128009 and llama.token_id("no such token") is None
    assert llama.token_text(128009) == "<|eot_id|>"


def test_a_bos_in_the_text_is_a_second_one(shared_vocab: Callable[[str], Tokenizer]) -> None:
    spm = shared_vocab("llama-spm")
    assert spm.encode("<s>a") == [1, 1, 263]
    assert spm.encode("<s>a", add_special=False) == [1, 263]
    assert spm.encode("<s>a", add_special=False, parse_special=False)[:3] == [529, 29879, 29958]


def test_raw_decoding_keeps_what_a_continuation_needs(shared_vocab: Callable[[str], Tokenizer]) -> None:
    spm, bpe = shared_vocab("llama-spm"), shared_vocab("llama-bpe")
    assert spm.decode(spm.encode("once upon", add_special=False)) == "once upon"
    assert spm.decode(spm.encode("once upon", add_special=False), raw=True) == " once upon"
    ids = bpe.encode("x = a . b ' c 's", add_special=False)
    assert bpe.decode(ids) == "x = a. b'c's"
    assert bpe.decode(ids, raw=True) == "x = a . b ' c 's"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00", "\ude00\ud83d"])
def test_lone_surrogates_are_replaced(text: str, shared_vocab: Callable[[str], Tokenizer]) -> None:
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for name in ("gpt-2", "llama-spm", "bert-bge"):
        assert shared_vocab(name).encode(text) == shared_vocab(name).encode(expected)
    assert shared_vocab("gpt-2").decode(shared_vocab("gpt-2").encode(text)) == expected
