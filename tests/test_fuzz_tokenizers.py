"""Random vocabularies of every kind, and random texts: tokens that give the text back, or one short ValueError."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import tokenizer_vocabs as vocabs
from fuzzing import CASES, fuzz, nasty
from tokenizer_vocabs import BYTE, BYTE_TOKENS, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

from naiad.loaders.tokenizer import Tokenizer
from naiad.loaders.tokenizer.pretokenizers import PRE_TOKENIZERS

PRE_NAMES = [row.names[0] for row in PRE_TOKENIZERS]
ALPHABETS = ("ab", "ab \u2581", "a\u0120\u010ab'", "ab<|>\n\r\t ", "aé中😀\u0301\udcff", "0123a. ,!?'s")
KINDS = ("gpt2", "llama", "bert", "t5", "gemma4", "whitespace")
FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")
KEYS = (
    *("model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eot_token_id", "unknown_token_id"),
    *("precompiled_charsmap", "suppress_tokens", "normalizer.lowercase", *FLAGS),
)


def word(rng: random.Random, alphabet: str) -> str:
    length = rng.choice([1, 1, 2, 3, 5, 40, 400])
    return rng.choice(alphabet) * length if rng.random() < 0.2 else "".join(rng.choices(alphabet, k=length))


def vocabulary(rng: random.Random, kind: str, alphabet: str) -> dict[str, Any]:
    words = [*rng.sample(alphabet, min(len(alphabet), 30)), *(word(rng, alphabet) for _ in range(rng.randrange(30)))]
    if rng.random() < 0.3:
        words += ["a" * n for n in range(1, rng.randrange(2, 60))]
    with_bytes = rng.random() < 0.5
    tokens = list(dict.fromkeys(["<unk>", "<s>", "</s>", *(BYTE_TOKENS if with_bytes else []), *words]))
    weights = rng.choice([(9, 1, 1, 1, 1), (1, 3, 1, 5, 1)])
    types = rng.choices([NORMAL, CONTROL, UNUSED, USER_DEFINED, 0], weights, k=len(tokens))
    types[:3] = [UNKNOWN, CONTROL, CONTROL]
    types = [BYTE if token in BYTE_TOKENS else kind for token, kind in zip(tokens, types, strict=True)]
    known = set(tokens)
    merges = [f"{t[:n]} {t[n:]}" for t in words for n in range(1, len(t)) if t[:n] in known and t[n:] in known]
    extra: dict[str, Any] = {"merges": merges[:200]} if kind in ("gpt2", "gemma4", "whitespace") else {}
    extra |= {flag: rng.random() < 0.5 for flag in FLAGS if rng.random() < 0.3}
    if kind == "t5" and rng.random() < 0.5:
        extra["precompiled_charsmap"] = vocabs.precompiled({"a": "b", "ab": rng.choice(["", "x" * 60]), "é": "e"})
    scores = np.array(rng.choices([-1, -2, -3.5, 0, -np.inf, 9e30], k=len(tokens)), np.float32)
    name = rng.choice(["", "phi-3", "modern-bert"])
    pre = rng.choice(PRE_NAMES) if kind == "gpt2" else "gpt-2"
    return vocabs.vocab_kv(
        kind, tokens, types, scores=scores, unknown_token_id=0, bos_token_id=1, eos_token_id=2, pre=pre,
        general__name=name, seperator_token_id=2, **extra,
    )  # fmt: skip


def check(tokenizer: Tokenizer, text: str, parse_special: bool) -> None:
    ids = tokenizer.encode(text, parse_special=parse_special)
    assert all(0 <= token < tokenizer.n_vocab for token in ids)
    bare = tokenizer.encode(text, add_special=False, parse_special=parse_special)
    assert tokenizer.least_tokens(text) <= len(bare) <= len(ids)
    stream = tokenizer.stream()
    assert "".join(map(stream.put, ids)) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("n", CASES)
def test_tokenizers(n: int) -> None:
    def case(rng: random.Random) -> None:
        alphabet = rng.choice(ALPHABETS)
        kv = vocabulary(rng, rng.choice(KINDS), alphabet)
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            kv[f"tokenizer.ggml.{rng.choice(KEYS)}"] = nasty(rng)
        tokenizer, tokens = Tokenizer.from_kv(kv), kv["tokenizer.ggml.tokens"]
        for _ in range(3):
            parts = [word(rng, alphabet), rng.choice(tokens), rng.choice([" ", "\n\n", "x", "<s>"])]
            check(tokenizer, "".join(rng.choices(parts, k=rng.randrange(5))), rng.random() < 0.7)

    fuzz(n, case)
