"""Text that comes in: files, standard input and arguments of any bytes, as text. None of them is refused."""

from __future__ import annotations

import codecs
import re
import sys
from pathlib import Path
from typing import BinaryIO

# Longer than any context holds; what has no end, /dev/zero or a pipe, must not fill the memory.
MAX_BYTES = 2**26
# The longer of two marks that begin alike comes first.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CHUNK = 2**16


def decoded(data: bytes) -> str:
    """The text of a whole file: in the encoding of its byte order mark, UTF-8 without one; U+FFFD for what is wrong."""
    encoding, n_mark = _encoding(data)
    return data[n_mark:].decode(encoding, "replace")


def _encoding(data: bytes) -> tuple[str, int]:
    """How a text that begins like this is encoded, and the length of its mark."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    return "utf-8", 0


def read_text(path: Path) -> str:
    """A file's text, its line ends as they are. OSError; ValueError for one of more than MAX_BYTES."""
    with path.open("rb") as file:
        return decoded(_bounded(file, str(path)))


def read_stdin() -> str:
    """All of standard input, as a file's text."""
    return decoded(_bounded(_stdin(), "stdin"))


def stdin_lines() -> Lines:
    """The lines of standard input."""
    return Lines(_stdin())


def _stdin() -> BinaryIO:
    if sys.stdin is None:
        raise OSError("stdin is closed")
    return sys.stdin.buffer


def _bounded(stream: BinaryIO, name: str) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name}: expected a text of at most {MAX_BYTES // 2**20} MiB, found more")
    return data


class Lines:
    """A stream's lines as they come, without their ends. One of more than MAX_BYTES characters is cut there."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self._decoder: codecs.IncrementalDecoder | None = None
        self._parts, self._n, self._ended = [""], 0, False

    def read(self) -> str | None:
        """The next line, None after the last. What interrupts it loses nothing."""
        while "\n" not in self._parts[-1] and not self._ended:
            more = self._more()
            if self._n > MAX_BYTES:
                # Of a line without an end no more is kept than of any other.
                self._parts[-1] = more
            else:
                self._parts.append(more)
                self._n += len(more)
        last, end, rest = self._parts.pop().partition("\n")
        line = "".join(self._parts) + last
        self._parts, self._n = [rest], len(rest)
        return line.removesuffix("\r")[:MAX_BYTES] if line or end else None

    def _more(self) -> str:
        data = _some(self.stream) if self._decoder is not None else _beginning(self.stream)
        self._ended = not data
        if self._decoder is None:
            encoding, n_mark = _encoding(data)
            self._decoder = codecs.getincrementaldecoder(encoding)("replace")
            data = data[n_mark:]
        return self._decoder.decode(data, final=self._ended)


def _beginning(stream: BinaryIO) -> bytes:
    """The first bytes that come; more of them while they may still become a mark."""
    data = _some(stream)
    while any(len(data) < len(mark) and mark.startswith(data) for mark, _ in MARKS) and data:
        more = _some(stream)
        if not more:
            break
        data += more
    return data


def _some(stream: BinaryIO) -> bytes:
    """What there is, at least a byte; nothing at the end."""
    read1 = getattr(stream, "read1", None)
    data: bytes = stream.read(CHUNK) if read1 is None else read1(CHUNK)
    return data


_ESCAPE = re.compile(rb"\\(?:([nrt'\"\\])|x([0-9A-Fa-f]{2}))")
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def process_escapes(text: str) -> str:
    r"""\n, \r, \t, \', \", \\ and \xHH, a byte, become what they stand for; other backslashes stay, as in llama.cpp.

    Bytes make characters together: "\xe2\x82\xac" is a euro sign. What is not UTF-8 becomes U+FFFD.
    """

    def replace(match: re.Match[bytes]) -> bytes:
        letter, digits = match[1], match[2]
        return bytes([int(digits, 16)]) if letter is None else _LETTERS.get(letter, letter)

    return _ESCAPE.sub(replace, _bytes(text)).decode("utf-8", "replace")


def argument_text(text: str, *, escape: bool) -> str:
    """The text of an argument, in which Python marks bytes that are no characters."""
    return process_escapes(text) if escape else _bytes(text).decode("utf-8", "replace")


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # Half a surrogate pair, which stands for no byte.
        return text.encode("utf-8", "replace")
