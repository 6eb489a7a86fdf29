"""Text from tokens that arrive one at a time."""

from __future__ import annotations

import codecs

from .pieces import Pieces, clean_spaces, settled


class StreamDecoder:
    """Made by Tokenizer.stream(). What put and finish return, joined, is decode of all the tokens.

    A character whose bytes are split over tokens is held back until it is whole, and so is a space that the next
    token may take away.
    """

    def __init__(self, pieces: Pieces, special: bool, drop_space: bool, clean: bool) -> None:
        self._pieces, self._special = pieces, special
        self._drop_space, self._clean = drop_space, clean
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""

    def put(self, token: int) -> str:
        """The text that this token completes; often all of its own, sometimes none."""
        piece = self._pieces(token, self._special)
        if self._drop_space:
            piece = piece.removeprefix(b" ")
            self._drop_space = False
        if not self._clean:
            return self._decoder.decode(piece)
        text = self._held + piece
        end = settled(text)
        self._held = text[end:]
        return self._decoder.decode(clean_spaces(text[:end]))

    def finish(self) -> str:
        """The rest; a character that stayed incomplete becomes U+FFFD."""
        rest, self._held = clean_spaces(self._held), b""
        return self._decoder.decode(rest, final=True)
