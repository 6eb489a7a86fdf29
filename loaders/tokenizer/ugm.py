"""SentencePiece's unigram model: the normaliser here, the Viterbi search by the tokenizers library, or viterbi.py where
tokens are long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer, models

from .eog import NORMAL, UNUSED, USER_DEFINED
from .kv import KV, read_numbers
from .library import encode_texts, guarded
from .prefixes import Prefixes
from .unicode import is_text
from .viterbi import Viterbi
from .vocab import PREFIX, Vocab

SPACE = "▁"
CHARSMAP_KEY = PREFIX + "precompiled_charsmap"
# Real maps have keys of up to 18 bytes and replacements of up to 33; a hostile one must not blow a text up.
MAX_KEY = 255
MAX_REPLACEMENT = 63
N_REMEMBERED = 1 << 16
# What the library is given: its tree takes 280 times the bytes of all tokens, and a text as many steps per letter as
# the longest token has bytes. The largest real vocabularies have two million bytes and tokens of less than a hundred.
LIBRARY_BYTES = 3 * 2**20
LIBRARY_TOKEN_BYTES = 256


class UGM:
    """Encodes the texts between special tokens."""

    def __init__(self, vocab: Vocab, kv: KV) -> None:
        self._space_prefix, self._merge_spaces = vocab.rules.add_space_prefix, vocab.rules.remove_extra_spaces
        self._search = _search(vocab)
        matched = NORMAL | USER_DEFINED | UNUSED
        self._letters = {
            text for text, kind in zip(vocab.tokens, vocab.types, strict=True) if len(text) == 1 and kind & matched
        } - {" "}
        blob = read_numbers(kv, CHARSMAP_KEY, "iu")
        self._charsmap = None if blob is None else Charsmap(blob.astype("uint8").tobytes())
        # Text that begins a user-defined token is not normalised, whether or not the rest of the token follows.
        user = [text for text, attr in zip(vocab.tokens, vocab.types, strict=True) if attr & USER_DEFINED]
        self._protected = Prefixes(user) if user else None

    def encode(self, fragments: Sequence[str | int]) -> list[int]:
        """Token ids of a text that was cut at its special tokens (the integers)."""
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            elif text := self._with_spaces(self._normalise(fragment)):
                ids.extend(self._search(text))
        return ids

    def kept(self, text: str) -> int:
        """Letters that are tokens, for others may be one unknown token together; a map may do away with any."""
        return 0 if self._charsmap else sum(map(self._letters.__contains__, text))

    def _normalise(self, text: str) -> str:
        if not self._protected and not self._charsmap:
            return text
        out: list[str] = []
        start = 0
        while start < len(text):
            end = start + (self._protected.agreement(text, start, MAX_KEY) if self._protected else 0)
            replacement: str | None = None
            if end == start and self._charsmap:
                end, replacement = self._charsmap.longest_match(text, start)
            end = max(end, start + 1)
            out.append(text[start:end] if replacement is None else replacement)
            start = end
        return "".join(out)

    def _with_spaces(self, text: str) -> str:
        if self._merge_spaces:
            return "".join(SPACE + word for word in text.split(" ") if word)
        if self._space_prefix:
            # In front of the first letter, after the spaces that the text begins with.
            words = text.lstrip(" ")
            text = " " * (len(text) - len(words) + 1) + words if words else text
        return text.replace(" ", SPACE)


class Charsmap:
    """SentencePiece's precompiled map from byte sequences to replacements.

    A 32-bit length, a double-array trie of that many bytes (Darts' units, XOR-compressed: Kanda 2018), then the
    replacements, each ended by a zero byte.
    """

    def __init__(self, blob: bytes) -> None:
        n_bytes = int.from_bytes(blob[:4], "little")
        if len(blob) < 4 or n_bytes < 4 or n_bytes + 4 >= len(blob):
            raise ValueError(f"{CHARSMAP_KEY} has {len(blob)} bytes, of which it says that {n_bytes} are its index")
        self._units = memoryview(np.frombuffer(blob, "<u4", n_bytes // 4, 4).astype("=u4").tobytes()).cast("I")
        self._replacements = blob[4 + n_bytes :]
        self._root = _base(self._units[0])
        self._step = lru_cache(N_REMEMBERED)(self._walk)

    def longest_match(self, text: str, start: int) -> tuple[int, str | None]:
        """Where the longest key that begins at `start` ends, and what it becomes; (start, None) without one."""
        node = self._root
        best: tuple[int, str | None] = (start, None)
        for end in range(start, min(len(text), start + MAX_KEY)):
            step = self._step(node, text[end])
            if step is None:
                break
            node, replacement = step
            if replacement is not None:
                best = (end + 1, replacement)
        return best

    def _walk(self, node: int, letter: str) -> tuple[int, str | None] | None:
        """From a node along the bytes of one letter: the node there and, where a key ends, its replacement."""
        unit = 0
        for byte in letter.encode():
            node ^= byte
            unit = self._unit(node)
            if byte == 0 or unit & 0x800000FF != byte:
                return None
            node ^= _base(unit)
        is_key_end = unit >> 8 & 1
        return node, self._replacement(self._unit(node) & 0x7FFFFFFF) if is_key_end else None

    def _unit(self, node: int) -> int:
        if node >= len(self._units):
            raise ValueError(f"{CHARSMAP_KEY} points to entry {node} of an index of {len(self._units)}")
        return self._units[node]

    def _replacement(self, offset: int) -> str:
        end = self._replacements.find(b"\0", offset, offset + MAX_REPLACEMENT + 1)
        if end < 0:
            raise ValueError(f"{CHARSMAP_KEY} has no replacement of up to {MAX_REPLACEMENT} bytes at {offset}")
        return self._replacements[offset:end].decode("utf-8", "replace")


def _base(unit: int) -> int:
    return (unit >> 10 << ((unit & 0x200) >> 6)) & 0xFFFFFFFF


def _search(vocab: Vocab) -> Callable[[str], list[int]]:
    """A normalised text's tokens."""
    pieces, unknown = _pieces(vocab), vocab.require("unk")
    sizes = [len(text.encode()) for text, _ in pieces]
    if sum(sizes) > LIBRARY_BYTES or max(sizes) > LIBRARY_TOKEN_BYTES:
        return Viterbi(pieces, unknown).encode
    tokenizer = Tokenizer(guarded("bad vocabulary", lambda: models.Unigram(pieces, unknown, False)))
    return lambda text: encode_texts(tokenizer, [text])[0]


def _pieces(vocab: Vocab) -> list[tuple[str, float]]:
    """Tokens that text cannot become stand in it as something that no normalised text contains: a space."""
    normal = [s for s, attr in zip(vocab.scores, vocab.types, strict=True) if attr & NORMAL]
    # The unknown token's score is ten below the lowest of the vocabulary, for which only normal tokens count.
    highest = max(normal, default=0.0)
    pieces: list[tuple[str, float]] = []
    matched = NORMAL | USER_DEFINED | UNUSED
    for token, text in enumerate(vocab.tokens):
        if not vocab.types[token] & matched or not is_text(text):
            pieces.append((f" {token}", highest))
        else:
            user_defined = vocab.attrs[token] & USER_DEFINED
            pieces.append((text, 0.0 if user_defined else vocab.scores[token]))
    return pieces
