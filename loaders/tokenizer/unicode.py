"""Properties of characters where Python's own notion is not llama.cpp's."""

from __future__ import annotations

# Unicode's White_Space, as the inside of a character class; str.isspace also holds for U+001C to U+001F.
WHITE_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def lower(text: str) -> str:
    """Letter by letter, each to one letter: no final sigma, no dotted i in two parts."""
    return "".join(letter.lower()[0] for letter in text)


def is_text(text: str) -> bool:
    """False for a text with surrogates: bytes of a file that are not UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates, which no encoding has, replaced by U+FFFD."""
    return text if is_text(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
