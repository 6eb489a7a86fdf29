"""StreamDecoder: whole characters only, and in sum the same text as decode."""

from itertools import pairwise

import pytest
import tokenizer_vocabs as vocabs
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.loaders.tokenizer import Tokenizer
from naiad.loaders.tokenizer.pieces import clean_spaces, settled

VOCABULARIES = {
    "spm": Tokenizer.from_kv(vocabs.spm_kv(0)),
    "spm-no-prefix": Tokenizer.from_kv(vocabs.spm_kv(0, add_space_prefix=False)),
    "bpe": Tokenizer.from_kv(vocabs.bpe_kv("qwen2")),
    "bpe-that-cleans": Tokenizer.from_kv(vocabs.bpe_kv("llama3")),
    "raw-bpe": Tokenizer.from_kv(vocabs.raw_bpe_kv("gemma4")),
    "wpm": Tokenizer.from_kv(vocabs.wpm_kv()),
    "ugm": Tokenizer.from_kv(vocabs.ugm_kv(vocabs.CHARSMAP)),
}
TEXT = st.text(st.sampled_from("ab '?.!,smrevtdl\n▁é中😀") | st.characters(exclude_categories=["Cs"]), max_size=30)


def streamed(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    decoder = tokenizer.stream(**options)
    return [*map(decoder.put, ids), decoder.finish()]


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), raw=st.booleans(), unparse=st.booleans())
def test_stream_is_decode(name: str, data: st.DataObject, raw: bool, unparse: bool) -> None:
    tokenizer = VOCABULARIES[name]
    any_ids = st.lists(st.integers(0, tokenizer.n_vocab - 1), max_size=12)
    ids = data.draw(any_ids | TEXT.map(tokenizer.encode))
    text = tokenizer.decode(ids, raw=raw, unparse_special=unparse)
    assert "".join(streamed(tokenizer, ids, raw=raw, unparse_special=unparse)) == text


@pytest.mark.parametrize("name", ["spm", "bpe", "raw-bpe"])
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_no_half_characters(name: str, text: str) -> None:
    """Text without U+FFFD streams without it, whatever tokens its bytes fall to."""
    tokenizer = VOCABULARIES[name]
    ids = tokenizer.encode(text.replace("\ufffd", ""), add_special=False, parse_special=False)
    assert not any("\ufffd" in piece for piece in streamed(tokenizer, ids, raw=True))


def test_a_character_comes_with_its_last_byte() -> None:
    tokenizer = VOCABULARIES["spm"]
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "é😀".encode()]
    pieces = streamed(tokenizer, [token for token in ids if token is not None] * 2)
    assert pieces == ["", "é", "", "", "", "😀"] * 2 + [""]


def test_an_incomplete_character_is_replaced_once() -> None:
    tokenizer = VOCABULARIES["spm"]
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in "😀".encode()[:3]]
    assert streamed(tokenizer, [token for token in ids if token is not None]) == ["", "", "", "\ufffd"]


def test_only_what_may_change_is_held_back() -> None:
    decoder = VOCABULARIES["bpe-that-cleans"].stream()
    pieces = [decoder.put(token) for letter in "a b 'x 's ." for token in tokens_of(letter)]
    assert pieces == ["a", "", " b", "", "", " 'x", "", "", "'s", "", "."]
    assert decoder.finish() == ""


def tokens_of(letter: str) -> list[int]:
    return VOCABULARIES["bpe-that-cleans"].encode(letter, add_special=False)


@settings(max_examples=400)
@given(st.text("a '?.smrevt", max_size=24), st.lists(st.integers(0, 24), max_size=8))
def test_cleaning_in_parts(text: str, cuts: list[int]) -> None:
    held, out = b"", b""
    edges = [0, *sorted(cuts), len(text)]
    for start, end in pairwise(edges):
        held += text[start:end].encode()
        n = settled(held)
        out, held = out + clean_spaces(held[:n]), held[n:]
    assert out + clean_spaces(held) == clean_spaces(text.encode())


CLEANED = {
    " ?": "?",
    "a  ? b": "a ? b",
    "a ' b": "a'b",
    "a  ' s": "a's",
    "a ' ' b": "a'' b",
    "it 's I 'm we 're I 've": "it's I'm we're I've",
    "don 't I 'd we 'll": "don 't I 'd we 'll",
    "( a . b , c ! )": "( a. b, c! )",
}


@pytest.mark.parametrize(("text", "cleaned"), CLEANED.items(), ids=CLEANED)
def test_clean_spaces(text: str, cleaned: str) -> None:
    assert clean_spaces(text.encode()) == cleaned.encode()
