"""Damaged metadata is refused with one clear ValueError; no text takes long, whatever it repeats."""

import re
import time
from typing import Any

import numpy as np
import pytest
import tokenizer_vocabs as vocabs
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.loaders.tokenizer import Tokenizer
from naiad.loaders.tokenizer.pretokenizers import PRE_TOKENIZERS

KV = dict[str, Any]
GOOD: dict[str, KV] = {
    "bpe": vocabs.vocab_kv("gpt2", ["a", "b", "ab", "Ġ"], merges=["a b"], pre="gpt-2", bos_token_id=0, eos_token_id=1),
    "spm": vocabs.spm_kv(0),
    "wpm": vocabs.wpm_kv(),
    "ugm": vocabs.ugm_kv(vocabs.CHARSMAP),
}
N_UGM = len(GOOD["ugm"]["tokenizer.ggml.tokens"])
MISSING = object()


def changed(base: str, **changes: Any) -> KV:
    kv = {**GOOD[base], **{"tokenizer.ggml." + key: value for key, value in changes.items()}}
    return {key: value for key, value in kv.items() if value is not MISSING}


def charsmap(*parts: int | bytes) -> np.ndarray:
    data = b"".join(part if isinstance(part, bytes) else part.to_bytes(4, "little") for part in parts)
    return np.frombuffer(data, np.uint8)


# Name: which good metadata, what is changed, what the message says.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no-model": ("bpe", {"model": MISSING}, "tokenizer.ggml.model is missing; supported: bert, "),
    "model-number": ("bpe", {"model": 3}, "tokenizer.ggml.model should be a string, found int 3"),
    "model-rwkv": ("bpe", {"model": "rwkv"}, "tokenizer model 'rwkv' is not supported; supported: bert, "),
    "model-plamo2": ("bpe", {"model": "plamo2"}, "'plamo2' is not supported"),
    "model-none": ("bpe", {"model": "none"}, "'none' is not supported"),
    "model-no-vocab": ("bpe", {"model": "no_vocab"}, "'no_vocab' is not supported"),
    "pre-unknown": ("bpe", {"pre": "klingon"}, "tokenizer.ggml.pre 'klingon' is not supported; supported: a.x-4.0"),
    "pre-number": ("bpe", {"pre": 1}, "tokenizer.ggml.pre should be a string"),
    "no-tokens": ("spm", {"tokens": MISSING}, "tokenizer.ggml.tokens is missing"),
    "empty-tokens": ("bpe", {"tokens": []}, "tokenizer.ggml.tokens is empty"),
    "tokens-text": ("bpe", {"tokens": "abc"}, "tokenizer.ggml.tokens should be an array of strings, found str"),
    "tokens-numbers": ("bpe", {"tokens": np.arange(4)}, "should be an array of strings, found ndarray"),
    "tokens-mixed": ("bpe", {"tokens": ["a", 1]}, "should be an array of strings"),
    "tokens-bytes": ("bpe", {"tokens": [b"a", b"b"]}, "should be an array of strings"),
    "duplicate-token": ("bpe", {"tokens": ["a", "b", "ab", "a"]}, "has the token 'a' 2 times"),
    "short-types": ("bpe", {"token_type": np.ones(3, np.int32)}, "token_type has 3 entries, expected 4"),
    "long-types": ("bpe", {"token_type": np.ones(5, np.int32)}, "token_type has 5 entries, expected 4"),
    "float-types": ("bpe", {"token_type": np.ones(4)}, "token_type should be an array of integers"),
    "text-types": ("bpe", {"token_type": ["1"] * 4}, "token_type should be an array of integers"),
    "scalar-types": ("bpe", {"token_type": 1}, "token_type should be an array of integers, found int 1"),
    "flat-types": ("bpe", {"token_type": np.ones((2, 2), np.int32)}, "token_type should be an array"),
    "short-scores": ("bpe", {"scores": np.zeros(2)}, "scores has 2 entries, expected 4"),
    "text-scores": ("bpe", {"scores": ["1"] * 4}, "scores should be an array of numbers"),
    "nan-scores": ("bpe", {"scores": np.array([0, np.nan, 0, 0])}, "not a number, at token 1"),
    "no-merges": ("bpe", {"merges": MISSING}, "tokenizer.ggml.merges is missing: a 'gpt2' tokenizer needs it"),
    "merges-numbers": ("bpe", {"merges": np.arange(3)}, "merges should be an array of strings"),
    "merge-of-one": ("bpe", {"merges": ["ab"]}, "merges has 'ab', expected two tokens with a space between"),
    "merge-of-three": ("bpe", {"merges": ["a b a"]}, "merges has 'a b a', expected two tokens"),
    "merges-of-one-and-three": ("bpe", {"merges": ["a", "a b a"]}, "merges has 'a a', but 'aa' is not a token"),
    "empty-merge": ("bpe", {"merges": [""]}, "merges has '', expected two tokens"),
    "merge-of-unknown": ("bpe", {"merges": ["a c"]}, "merges has 'a c', but 'c' is not a token"),
    "merge-to-unknown": ("bpe", {"merges": ["a b", "b a"]}, "merges has 'b a', but 'ba' is not a token"),
    "merge-with-space": ("bpe", {"merges": [" b"]}, "merges has ' b', but '' is not a token"),
    "bos-text": ("bpe", {"bos_token_id": "a"}, "bos_token_id should be an integer, found str 'a'"),
    "bos-bool": ("bpe", {"bos_token_id": True}, "bos_token_id should be an integer, found bool True"),
    "bos-float": ("bpe", {"eos_token_id": 1.0}, "eos_token_id should be an integer"),
    "add-bos-number": ("bpe", {"add_bos_token": 1}, "add_bos_token should be a boolean, found int 1"),
    "prefix-text": ("spm", {"add_space_prefix": "yes"}, "add_space_prefix should be a boolean"),
    "suppress-text": ("bpe", {"suppress_tokens": ["a"]}, "suppress_tokens should be an array of integers"),
    "byte-token": (
        "bpe",
        {"token_type": np.array([1, 6, 1, 1])},
        "token 1 is a byte token, so its text should be <0x00> to <0xFF>, found 'b'",
    ),
    "wpm-without-unknown": (
        "wpm",
        {"tokens": ["a", "b"], "token_type": MISSING, "unknown_token_id": MISSING},
        "a 'bert' tokenizer needs the special token tokenizer.ggml.unknown_token_id",
    ),
    "ugm-without-unknown": (
        "ugm",
        {"tokens": ["a", "b"], "token_type": MISSING, "scores": MISSING, "unknown_token_id": 2},
        "a 't5' tokenizer needs the special token tokenizer.ggml.unknown_token_id",
    ),
    "charsmap-text": ("ugm", {"precompiled_charsmap": "abc"}, "precompiled_charsmap should be an array of integers"),
    "charsmap-empty": ("ugm", {"precompiled_charsmap": charsmap()}, "precompiled_charsmap has 0 bytes"),
    "charsmap-short": ("ugm", {"precompiled_charsmap": charsmap(b"\1")}, "precompiled_charsmap has 1 bytes"),
    "charsmap-length": ("ugm", {"precompiled_charsmap": charsmap(8, 0, 0)}, "of which it says that 8 are its index"),
    "charsmap-no-index": ("ugm", {"precompiled_charsmap": charsmap(0, b"x")}, "of which it says that 0"),
}  # fmt: skip


@pytest.mark.parametrize(("base", "changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(base: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Tokenizer.from_kv(changed(base, **changes))


def unit(label: int, offset: int, is_key: bool = False) -> int:
    return label | is_key << 8 | offset << 10


# Indices that lead astray only when a text takes that way: here "a" does.
STRAY = {
    "outside": (charsmap(4, unit(0, 5000), b"x\0"), "points to entry"),
    "no-replacement": (charsmap(1024, unit(0, 0), *[unit(ord("a"), 0, True)] * 255, b"x"), "has no replacement"),
}


@pytest.mark.parametrize(("blob", "message"), STRAY.values(), ids=STRAY)
def test_stray_charsmap(blob: np.ndarray, message: str) -> None:
    tokenizer = Tokenizer.from_kv(changed("ugm", precompiled_charsmap=blob))
    with pytest.raises(ValueError, match=message):
        tokenizer.encode("aaa")


def test_ids_outside_the_vocabulary_fall_back() -> None:
    """As in llama.cpp, for files with 4294967295 for "none" are in use: the model's default, where that fits."""
    tokenizer = Tokenizer.from_kv(changed("spm", bos_token_id=2**32 - 1, eos_token_id=-1, padding_token_id=10**9))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    assert Tokenizer.from_kv(changed("bpe", bos_token_id=4)).bos_id is None


def test_odd_but_usable() -> None:
    empty = Tokenizer.from_kv(changed("bpe", tokens=["a", "b", "ab", ""]))
    assert empty.token_text(3) == "[EMPTY_3]"
    not_utf8 = Tokenizer.from_kv(changed("bpe", tokens=["a", "b", "ab", "\udcff"]))
    assert not_utf8.encode("ab", add_special=False) == [2]
    twice = Tokenizer.from_kv(changed("bpe", tokens=["a", "b", "ab", "ba"], merges=["a b", "b a", "a b"]))
    assert twice.encode("aba", add_special=False) == [2, 0], "the first of two equal merges counts"
    partial = Tokenizer.from_kv(changed("bpe"))
    assert partial.encode("acb ab", add_special=False) == [0, 1, 3, 2], "a letter without a token is dropped"
    no_bos = Tokenizer.from_kv(changed("bpe", bos_token_id=99, add_bos_token=True))
    assert not no_bos.add_bos and no_bos.encode("a") == [0]


@pytest.mark.parametrize("token", [-1, N_UGM, 2**40])
def test_ids_that_are_no_tokens(token: int) -> None:
    tokenizer = Tokenizer.from_kv(GOOD["ugm"])
    for call in (
        lambda: tokenizer.decode([1, token]),
        lambda: tokenizer.stream().put(token),
        lambda: tokenizer.token_to_piece(token),
        lambda: tokenizer.token_text(token),
        lambda: tokenizer.is_control(token),
    ):
        with pytest.raises(ValueError, match=f"token {token} is outside the vocabulary of {N_UGM}"):
            call()


VALUES = st.one_of(
    st.none().map(lambda _: MISSING),
    st.integers(-(2**63), 2**64),
    st.booleans(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.text(max_size=3), max_size=6),
    st.lists(st.integers(-3, 300), max_size=6).map(lambda x: np.array(x, np.int32)),
    st.lists(st.floats(width=32), max_size=6).map(lambda x: np.array(x, np.float32)),
    st.binary(max_size=40).map(lambda x: np.frombuffer(x, np.uint8)),
)
KEYS = sorted({key for kv in GOOD.values() for key in kv} | {"tokenizer.ggml.add_bos_token", "general.name"})


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(GOOD)), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2), st.text(max_size=8))
def test_any_metadata(base: str, changes: KV, text: str) -> None:
    """Works or raises ValueError, when opened or when used."""
    kv = {key: value for key, value in {**GOOD[base], **changes}.items() if value is not MISSING}
    try:
        tokenizer = Tokenizer.from_kv(kv)
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
    except ValueError:
        return
    assert all(0 <= token < tokenizer.n_vocab for token in ids)


def seconds(tokenizer: Tokenizer, text: str) -> float:
    start = time.process_time()
    tokenizer.encode(text)
    return time.process_time() - start


@pytest.mark.parametrize("repeated", ["a", " ", "=", "a ", "é", "\u0301", "<|mark|>"])
@pytest.mark.parametrize("kind", ["spm", "wpm", "ugm"])
def test_long_repetitions(kind: str, repeated: str) -> None:
    text = repeated * (100_000 // len(repeated))
    assert seconds(Tokenizer.from_kv(GOOD[kind]), text) < 4


@pytest.mark.parametrize("name", [row.names[-1] for row in PRE_TOKENIZERS])
def test_long_repetitions_of_each_pre_tokenizer(name: str) -> None:
    """Spaces and digits are what the expressions look ahead over. Processor time: a tenth of it is usual, and an
    expression that looks again from every letter takes two to twenty times as much.
    """
    raw = next(row.raw_utf8 for row in PRE_TOKENIZERS if name in row.names)
    tokenizer = Tokenizer.from_kv(vocabs.pre_kv(name, raw))
    assert seconds(tokenizer, " " * 500_000 + "1") < 2.5
    assert seconds(tokenizer, "1" * 200_000) < 4
