"""Vocabularies and texts made to be slow: long tokens, many tokens, all of them alike; and what makes them fast."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizer_vocabs as vocabs
from tokenizer_vocabs import CONTROL, NORMAL, UNKNOWN, USER_DEFINED

from naiad.loaders.tokenizer import Tokenizer
from naiad.loaders.tokenizer.eog import Attr
from naiad.loaders.tokenizer.prefixes import Prefixes
from naiad.loaders.tokenizer.special import SPACE, SpecialTokens
from naiad.loaders.tokenizer.ugm import _pieces, _search
from naiad.loaders.tokenizer.viterbi import Viterbi
from naiad.loaders.tokenizer.vocab import Vocab

KV = dict[str, Any]


def random_texts(rng: random.Random, alphabet: str, n: int, length: int) -> list[str]:
    return list({"".join(rng.choices(alphabet, k=rng.randint(1, length))) for _ in range(n)})


@pytest.mark.parametrize("seed", range(60))
def test_prefixes(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = ("ab", "abc\u00e9\U0001f600")[seed % 2]
    texts = random_texts(rng, alphabet, rng.randint(1, 25), rng.choice([2, 5, 150]))
    texts = list({*texts, *("a" * k for k in range(1, rng.choice([1, 2, 80])))})
    prefixes = Prefixes(texts)
    assert prefixes.texts == sorted(texts)
    text = "".join(rng.choices(alphabet, k=30)) + "a" * rng.choice([0, 5, 200]) + rng.choice(texts) + "b"
    for start in range(0, len(text) + 1, max(1, len(text) // 9)):
        found = prefixes.longest(text, start)
        fitting = [t for t in texts if text.startswith(t, start)]
        assert (prefixes.texts[found] if found >= 0 else "") == max(fitting, key=len, default="")
        limit = rng.choice([1, 3, 31, 33, 255])
        agreeing = [n for t in texts for n in range(min(len(t), limit) + 1) if text.startswith(t[:n], start)]
        assert prefixes.agreement(text, start, limit) == (max(agreeing) if start < len(text) else 0)
        i, length = rng.randrange(len(texts)), rng.randint(0, 40)
        shorter = [t for t in texts if prefixes.texts[i].startswith(t) and len(t) <= length]
        found = prefixes.shorter(i, length)
        assert (prefixes.texts[found] if found >= 0 else "") == max(shorter, key=len, default="")


def split_slowly(tokens: Sequence[str], attrs: Sequence[int], text: str) -> list[str | int]:
    """One token after another, the longest first, in what the ones before have left over."""
    fragments: list[str | int] = [text] if text else []
    for token in sorted(range(len(tokens)), key=lambda t: -len(tokens[t].encode())):
        out: list[str | int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                out.append(fragment)
                continue
            parts = fragment.split(tokens[token])
            for i, part in enumerate(parts):
                if i > 0:
                    out.append(token)
                    part = part.lstrip(SPACE) if attrs[token] & Attr.RSTRIP else part
                if i < len(parts) - 1 and attrs[token] & Attr.LSTRIP:
                    part = part.rstrip(SPACE)
                if part:
                    out.append(part)
        fragments = out
    return fragments


@pytest.mark.parametrize("seed", range(300))
def test_special_tokens_are_found_as_one_after_another(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = rng.choice(["ab", "ab ", "ab \n", "ab\u00e9<", "abcdefghijklmnopqrstuv "])
    tokens = random_texts(rng, alphabet, rng.randint(1, 12), rng.choice([2, 4, 8]))
    kinds = [Attr.NORMAL, Attr.CONTROL, Attr.USER_DEFINED, Attr.CONTROL | Attr.LSTRIP, Attr.USER_DEFINED | Attr.RSTRIP]
    attrs = [int(rng.choice([*kinds, kinds[2] | kinds[3] | kinds[4]])) for _ in tokens]
    finder = SpecialTokens(SimpleNamespace(tokens=tokens, attrs=attrs))  # type: ignore[arg-type]
    for _ in range(9):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 40)))
        for parse_special in (True, False):
            hidden = 0 if parse_special else Attr.CONTROL | Attr.UNKNOWN
            found = [t for t, attr in enumerate(attrs) if not attr & (Attr.NORMAL | hidden)]
            slow = split_slowly([tokens[t] for t in found], [attrs[t] for t in found], text)
            expected = [found[part] if isinstance(part, int) else part for part in slow]
            assert finder.split(text, parse_special) == expected, (tokens, attrs, text)


@pytest.mark.parametrize("seed", range(8))
def test_the_search_for_long_tokens_is_the_library_s(seed: int) -> None:
    rng = random.Random(seed)
    tokens = ["<unk>", *random_texts(rng, "abc\u00e9\u2581", 40, 5)]
    types = [UNKNOWN, *(rng.choice([NORMAL, NORMAL, USER_DEFINED, vocabs.UNUSED]) for _ in tokens[1:])]
    scores = np.array([rng.choice([-1, -2.5, -3, 0, -9, -np.inf]) for _ in tokens], np.float32)
    vocab = Vocab.from_kv(vocabs.vocab_kv("t5", tokens, types, scores=scores, unknown_token_id=0))
    library, ours = _search(vocab), Viterbi(_pieces(vocab), 0).encode
    for _ in range(30):
        text = "".join(rng.choices("abc\u00e9x\u2581", k=rng.randint(0, 30)))
        assert library(text) == ours(text), (tokens, text)


FRAME = (["<unk>", "<s>", "</s>"], [UNKNOWN, CONTROL, CONTROL])
IDS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "seperator_token_id": 2}


def frame(model: str, tokens: Sequence[str], kind: int = NORMAL, **extra: Any) -> KV:
    texts, types = [*FRAME[0], *tokens], [*FRAME[1], *[kind] * len(tokens)]
    scores = -np.arange(len(texts), dtype=np.float32)
    return vocabs.vocab_kv(model, texts, types, scores=scores, **IDS, **extra)


def bpe(tokens: Sequence[str], merges: Sequence[str], kind: int = NORMAL) -> KV:
    letters = [chr(code) for code in range(33, 127)]
    texts = [*letters, *tokens]
    types = [NORMAL] * len(letters) + [kind] * len(tokens)
    return vocabs.vocab_kv("gpt2", texts, types, merges=list(merges), pre="gpt-2")


def chain(n: int) -> list[str]:
    return ["a" * k for k in range(1, n + 1)]


def numbered(n: int, length: int) -> list[str]:
    return [f"{i:06}".ljust(length, "x") for i in range(n)]


A = "a" * 100_000
B = ["b", "\u2581", "\u2581a"]
# What took minutes or gigabytes, and its neighbours.
SLOW: dict[str, Callable[[], tuple[KV, str]]] = {
    "wpm: a token of 50,000": lambda: (frame("bert", ["a", *B, "a" * 50_000]), A),
    "wpm: nearly a token of 50,000": lambda: (frame("bert", ["a", *B, "a" * 50_000 + "b"]), A),
    "wpm: 3,000 lengths": lambda: (frame("bert", [*chain(3000), *B]), "ab" * 50_000),
    "wpm: nearly 3,000 lengths": lambda: (frame("bert", ["a", *B, *(t + "b" for t in chain(3000))]), A),
    "ugm: a token of 50,000": lambda: (frame("t5", ["a", *B, "a" * 50_000 + "b"]), A),
    "ugm: 1,000 lengths": lambda: (frame("t5", [*chain(1000), *B]), A),
    "ugm: user-defined": lambda: (frame("t5", numbered(20_000, 255), USER_DEFINED), "000001x" * 14_000),
    "ugm: one user-defined of 50,000": lambda: (frame("t5", ["a" * 50_000 + "b"], USER_DEFINED), A),
    "spm: 3,000 lengths": lambda: (frame("llama", chain(3000)), A),
    "spm: doublings": lambda: (frame("llama", ["a" * 2**k for k in range(16)]), A),
    "spm: user-defined": lambda: (frame("llama", numbered(50_000, 100), USER_DEFINED), "000001x" * 14_000),
    "spm: all user-defined there": lambda: (
        frame("llama", numbered(30_000, 6), USER_DEFINED),
        "".join(numbered(30_000, 6)),
    ),
    "spm: user-defined of all lengths": lambda: (frame("llama", chain(3000), USER_DEFINED), "b" + A),
    "spm: nearly a user-defined of 50,000": lambda: (frame("llama", ["a" * 50_000 + "b"], USER_DEFINED), A),
    "bpe: 3,000 lengths": lambda: (bpe(chain(3000)[1:], ["a " + t for t in chain(2999)]), A),
    "bpe: doublings": lambda: (
        bpe(["a" * 2**k for k in range(1, 16)], ["a" * 2**k + " " + "a" * 2**k for k in range(15)]),
        A,
    ),
    "bpe: user-defined": lambda: (bpe(numbered(50_000, 100), [], USER_DEFINED), "000001x" * 14_000),
    "bpe: control tokens of one letter each": lambda: (
        bpe([chr(0x4E00 + i) for i in range(20_000)], [], CONTROL),
        "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(100_000)),
    ),
}


@pytest.mark.parametrize("n", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", SLOW.values(), ids=SLOW)
def test_long_tokens_and_texts(case: Callable[[], tuple[KV, str]], n: int) -> None:
    """A second for 100,000 letters, 2 s where the text nearly is a token of 50,000 at each place."""
    kv, text = case()
    text = text[:n]
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer = Tokenizer.from_kv(kv)
    ids = tokenizer.encode(text)
    assert time.process_time() - start < 1.5 + 6e-5 * n
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes
    assert tokenizer.least_tokens(text) <= len(ids)


def test_tokens_beyond_all_measure_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens has a token of 65537 characters, expected at most 65536"):
        Tokenizer.from_kv(frame("llama", ["a" * 65_537]))
    assert Tokenizer.from_kv(frame("llama", ["a" * 65_536])).n_vocab == 4


def test_letters_that_stand_for_no_byte() -> None:
    """Each gives a mark with the token in it, which would be quadratic for a long token."""
    tokenizer = Tokenizer.from_kv(bpe(["\u4e2d\u4e2d", "\u4e2d" * 60_000], []))
    assert tokenizer.token_to_piece(94).decode() == "[UNK_BYTE_0xe4b8ad\u4e2d\u4e2d]" * 2
    assert len(tokenizer.token_to_piece(95)) == 60_000 * len("[UNK_BYTE_0xe4b8ad]")


@pytest.mark.parametrize("name", vocabs.cases())
def test_the_least_number_of_tokens_is_never_more_than_there_are(name: str) -> None:
    kv, texts = vocabs.cases()[name]
    tokenizer = Tokenizer.from_kv(kv)
    rng = random.Random(0)
    special = ["<|mark|>", "<s>", "</s>", "<unk>", "<mask>", "ababab", " \t ", "\0", "\ud800", "e\u0301"]
    for _ in range(150):
        text = "".join(rng.choices([*texts, *special], k=rng.randint(0, 6)))
        for parse_special in (True, False):
            ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert tokenizer.least_tokens(text) <= len(ids), text


def test_the_least_number_of_tokens_of_ordinary_text() -> None:
    """It is of use: a twentieth of what there are, at the worst, for tokens that are not much longer than words."""
    words = ["a" * k for k in (1, 2, 8, 16)]
    for kv in (frame("llama", words), frame("t5", words), bpe(words[1:], ["a a"])):
        assert Tokenizer.from_kv(kv).least_tokens("a" * 160_000) == 10_000
