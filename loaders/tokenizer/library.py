"""Calls into the tokenizers library, whose failures must be ValueErrors like ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tokenizers import Tokenizer

T = TypeVar("T")


def guarded(what: str, call: Callable[[], T]) -> T:
    """The call's result; ValueError where the library refuses its arguments or its Rust code panics."""
    try:
        return call()
    except BaseException as error:
        # A panic is no Exception; one comes when a regular expression has stepped back ten million times.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{what}: the tokenizers library says: {error}") from None
        raise


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    longest = max(map(len, texts), default=0)
    encodings = guarded(
        f"cannot tokenise a text of {longest} characters",
        lambda: tokenizer.encode_batch_fast(texts, add_special_tokens=False),
    )
    return [encoding.ids for encoding in encodings]
