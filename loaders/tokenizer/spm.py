"""SentencePiece's BPE: joins the neighbours whose concatenation is the token of the highest score.

The tokenizers library cannot express it: its merges have a fixed order among themselves, here equal scores go to
the leftmost pair, whichever way the token is cut. Words that no token reaches across are merged apart and
remembered, so ordinary text costs one look-up per word.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence

from .remember import remembering
from .vocab import Vocab

SPACE = "▁"


class SPM:
    """Encodes the texts between special tokens."""

    def __init__(self, vocab: Vocab) -> None:
        self._ids, self._scores = vocab.ids, vocab.scores
        self._add_space_prefix = vocab.rules.add_space_prefix
        self._byte_ids = [_byte_id(vocab, byte) for byte in range(256)]
        self._word_start = _word_start(vocab.tokens)
        self._word_ids = remembering(self._encode_word)

    def encode(self, fragments: Sequence[str | int]) -> list[int]:
        """Token ids of a text that was cut at its special tokens (the integers)."""
        ids: list[int] = []
        after_special = True
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
                after_special = True
                continue
            text = " " + fragment if self._add_space_prefix and after_special else fragment
            after_special = False
            for word in self._word_start.split(text.replace(" ", SPACE)):
                ids.extend(self._word_ids(word))
        return ids

    def kept(self, text: str) -> int:
        return len(text)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        ids: list[int] = []
        for symbol in self._merge(word):
            token = self._ids.get(symbol)
            if token is None:
                ids.extend(self._byte_ids[byte] for byte in symbol.encode())
            else:
                ids.append(token)
        return tuple(ids)

    def _merge(self, word: str) -> list[str]:
        """The word's letters, joined until no neighbours form a token. O(n log n)."""
        ids, scores = self._ids, self._scores
        symbols = list(word)
        after = list(range(1, len(symbols) + 1))
        before = list(range(-1, len(symbols) - 1))
        # (-score, left symbol, right symbol, length): the highest score first, of equals the leftmost.
        queue = [
            (-scores[token], i, i + 1, 2)
            for i, pair in enumerate(map(str.__add__, symbols, symbols[1:]))
            if (token := ids.get(pair)) is not None
        ]
        heapq.heapify(queue)
        while queue:
            _, left, right, length = heapq.heappop(queue)
            a, b = symbols[left], symbols[right]
            if not a or not b or len(a) + len(b) != length:
                continue  # one of the two has been joined to something else since
            joined = symbols[left] = a + b
            symbols[right] = ""
            follower, leader = after[right], before[left]
            after[left] = follower
            if follower < len(symbols):
                before[follower] = left
                token = ids.get(joined + symbols[follower])
                if token is not None:
                    heapq.heappush(queue, (-scores[token], left, follower, length + len(symbols[follower])))
            if leader >= 0:
                token = ids.get(symbols[leader] + joined)
                if token is not None:
                    heapq.heappush(queue, (-scores[token], leader, left, length + len(symbols[leader])))
        return [symbol for symbol in symbols if symbol]


def _byte_id(vocab: Vocab, byte: int) -> int:
    """The token for a byte of a letter that is no token: <0x41>, else the bare byte, else the unknown token."""
    bare = bytes([byte]).decode("utf-8", "surrogateescape")
    token = vocab.ids.get(f"<0x{byte:02X}>", vocab.ids.get(bare))
    return vocab.require("unk") if token is None else token


def _word_start(tokens: list[str]) -> re.Pattern[str]:
    """Matches, with no width, before each U+2581 that no token has behind the letter that stands there."""
    spaced = (token for token in tokens if SPACE in token[1:])
    inside = {token[i - 1] for token in spaced for i in range(1, len(token)) if token[i] == SPACE}
    follows = f"(?<![{''.join(map(re.escape, sorted(inside)))}])" if inside else ""
    return re.compile(rf"(?<!\A){follows}(?={SPACE})")
