"""WordPiece with BERT's normaliser, as llama.cpp has it: word starts carry U+2581, continuations nothing."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from .prefixes import Prefixes
from .remember import remembering
from .unicode import WHITE_SPACE, lower
from .vocab import Vocab

SPACE = "▁"
# The fifth block begins at U+2B920, not U+2B820, in every implementation of BERT's tokenizer.
CHINESE = re.compile(
    "[\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f]"
)
WHITE = re.compile(f"[{WHITE_SPACE}]")


class Normaliser(dict[int, str]):
    """A table for str.translate, filled as letters turn up: a space between words, nothing for what is dropped."""

    def __init__(self, lowercase: bool, strip_accents: bool) -> None:
        self._lowercase, self._strip_accents = lowercase, strip_accents

    def __missing__(self, code: int) -> str:
        self[code] = self._letter(chr(code))
        return self[code]

    def _letter(self, letter: str) -> str:
        if self._strip_accents:
            letter = unicodedata.normalize("NFD", letter)[0]
        if WHITE.match(letter):
            return " "
        category = unicodedata.category(letter)
        if letter in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
            return ""
        if self._strip_accents and category[0] == "M":
            return ""
        word = lower(letter) if self._lowercase else letter
        alone = category[0] == "P" or (letter < "\x7f" and category[0] == "S") or CHINESE.match(letter)
        return f" {word} " if alone else word


class WPM:
    """Encodes the texts between special tokens."""

    def __init__(self, vocab: Vocab) -> None:
        self._ids, self._unknown = vocab.ids, vocab.require("unk")
        self._normaliser = Normaliser(vocab.rules.lowercase, vocab.rules.strip_accents)
        self._prefixes = Prefixes(vocab.tokens)
        self._word_ids = remembering(self._encode_word)

    def encode(self, fragments: Sequence[str | int]) -> list[int]:
        """Token ids of a text that was cut at its special tokens (the integers)."""
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
                continue
            for word in fragment.translate(self._normaliser).split(" "):
                if word:
                    ids.extend(self._word_ids(word))
        return ids

    def kept(self, text: str) -> int:
        return 0  # a word of any length may be the unknown token

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """The longest token, then the longest that continues it, ...; unknown where one is missing."""
        text = SPACE + word
        ids: list[int] = []
        start = 0
        while start < len(text):
            found = self._prefixes.longest(text, start)
            if found < 0:
                return (self._unknown,)
            token = self._prefixes.texts[found]
            ids.append(self._ids[token])
            start += len(token)
        return tuple(ids)
