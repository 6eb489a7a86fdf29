"""Byte-pair encoding by the tokenizers library, set up to merge as llama.cpp does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import PreTokenizer as LibraryPreTokenizer
from tokenizers.pre_tokenizers import Sequence as Steps

from ..quote import quoted
from .byte_letters import LETTERS
from .carried import library_steps
from .kv import KV, read_strings
from .library import encode_texts, guarded
from .pretokenizers import PreTokenizer
from .unicode import WHITE_SPACE, is_text, lower
from .vocab import PREFIX, Vocab

MERGES_KEY = PREFIX + "merges"


class BPE:
    """Encodes the texts between special tokens. Thread-safe, like the library's tokenizer."""

    def __init__(self, vocab: Vocab, kv: KV) -> None:
        assert vocab.pre is not None
        pre = self._pre = vocab.pre
        self._ids = vocab.ids
        self._escape_spaces = vocab.rules.escape_spaces
        self._lowercase = vocab.rules.lowercase
        self._drop_spaces = vocab.model == "whitespace"
        # A letter that is no token stands between its neighbours, so that they do not merge, and is dropped after.
        self._unknown = len(vocab.tokens)
        self._tokenizer = Tokenizer(_model(vocab, pre, _merges(kv, vocab)))
        self._tokenizer.pre_tokenizer = _steps(pre)
        self._dropped = bytes(byte for byte, letter in enumerate(LETTERS) if letter not in vocab.ids)
        self._may_drop = pre.raw_utf8 or bool(self._dropped)
        self._single = {text for text in vocab.ids if len(text) == 1 and text != " "} if pre.raw_utf8 else set()

    def encode(self, fragments: Sequence[str | int]) -> list[int]:
        """Token ids of a text that was cut at its special tokens (the integers)."""
        parts = [part for fragment in fragments for part in self._parts(fragment)]
        encoded = iter(self._encode_texts([part for part in parts if isinstance(part, str)]))
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(next(encoded))
        return ids

    def kept(self, text: str) -> int:
        if self._pre.carried:
            return 0  # its steps may drop any part of a text
        if self._drop_spaces:
            return 0  # and letters become others
        if self._pre.raw_utf8:
            # Letters that are no tokens may be dropped, and a space may become one.
            return sum(map(self._single.__contains__, text))
        return len(text.encode().translate(None, self._dropped))

    def _parts(self, fragment: str | int) -> Iterator[str | int]:
        """The rules that the library's own steps cannot express."""
        if isinstance(fragment, int):
            yield fragment
            return
        text = fragment.replace(" ", "▁") if self._escape_spaces else fragment
        if self._drop_spaces:
            words = re.findall(rf"[^{WHITE_SPACE}]+", text)
            yield from (lower(word) if self._lowercase else word for word in words)
        elif self._pre.newline_tokens:
            # Every run of newlines is a word of its own, so cutting here changes nothing else.
            for piece in re.findall(r"\n+|[^\n]+", text):
                yield self._ids.get(piece, piece) if piece[0] == "\n" else piece
        else:
            yield text

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        encoded = encode_texts(self._tokenizer, texts)
        return [[i for i in ids if i != self._unknown] for ids in encoded] if self._may_drop else encoded


def _steps(pre: PreTokenizer) -> LibraryPreTokenizer:
    if pre.carried:
        return library_steps(pre.carried)
    splits = [Split(Regex(pattern), "isolated") for pattern in pre.splits]
    return Steps(splits if pre.raw_utf8 else [*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


def _merges(kv: KV, vocab: Vocab) -> list[tuple[str, str]]:
    merges = read_strings(kv, MERGES_KEY)
    if merges is None:
        if vocab.pre and "kimi-k2" in vocab.pre.names:
            return []
        raise ValueError(f"{MERGES_KEY} is missing: a {vocab.model!r} tokenizer needs it")
    # Of equal merges the first counts; the library would take the last.
    merges = list(dict.fromkeys(merges))
    # One split of everything is twice as fast as one per merge.
    parts = " ".join(merges).split(" ") if merges else []
    if len(parts) != 2 * len(merges):
        bad = next(merge for merge in merges if merge.count(" ") != 1)
        raise ValueError(f"{MERGES_KEY} has {quoted(bad)}, expected two tokens with a space between")
    return list(zip(parts[::2], parts[1::2], strict=True))


def _model(vocab: Vocab, pre: PreTokenizer, merges: list[tuple[str, str]]) -> models.BPE:
    letters = dict(vocab.ids)
    # More than one letter long, and not made by a merge: it stands for no text.
    unknown = "\0\0"
    while unknown in letters:
        unknown += "\0"
    letters[unknown] = len(vocab.tokens)
    if not is_text("".join(vocab.tokens)):
        # Tokens that are not UTF-8 match no text.
        letters = {text: token for text, token in letters.items() if is_text(text)}
        merges = [merge for merge in merges if is_text("".join(merge))]
    options = {"unk_token": unknown, "byte_fallback": pre.raw_utf8, "ignore_merges": pre.ignore_merges}
    try:
        return guarded("bad vocabulary", lambda: models.BPE(letters, merges, **options))
    except ValueError:
        _check_merges(merges, vocab)
        raise


def _check_merges(merges: list[tuple[str, str]], vocab: Vocab) -> None:
    for left, right in merges:
        for text in (left, right, left + right):
            if text not in vocab.ids:
                raise ValueError(f"{MERGES_KEY} has {quoted(left + ' ' + right)}, but {quoted(text)} is not a token")
