"""multipart/related answers, read as they come (PS3.18 §8.6.1.2.1, RFC 2046 §5.1).

Parts are found by their delimiter; a Content-Length in a part only saves the search where it is
right. A preamble, a missing CRLF around the last delimiter and text after it do no harm.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import Message
from typing import NamedTuple

import requests

MOST_HEADER_BYTES = 2**16
BLANK_LINE = b"\r\n\r\n"


class MultipartInvalid(ValueError):
    """The body is not what its Content-Type says."""


class MultipartTruncated(MultipartInvalid):
    """The body ends in the middle of a part; the parts before it were whole."""


class AnswerTooLarge(ValueError):
    """More bytes came than what was asked for can have."""


class Part(NamedTuple):
    """One part: its headers, names in lower case, and its bytes."""

    headers: Mapping[str, str]
    content: bytes


@functools.lru_cache(maxsize=256)  # the same few, once for every part
def media_type(content_type: str) -> tuple[str, Mapping[str, str]]:
    """Media type in lower case and its parameters, unquoted, of a Content-Type header."""
    message = Message()
    message["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    parameters = message.get_params(failobj=[], unquote=True)[1:]
    return message.get_content_type(), {name.lower(): value for name, value in parameters}


class Multipart:
    """The parts of one body.

    Parameters
    ----------
    chunks
        The body as it comes.
    boundary
        From the Content-Type, unquoted.
    framed
        Whether HTTP itself tells where the body ends (Content-Length or chunks): then a body
        without its last delimiter was sent that way, and not cut.
    most_bytes
        Of one part that is given whole; the bytes of :meth:`streams` are whoever's who reads them.

    Raises
    ------
    MultipartInvalid
        While it is read; MultipartTruncated where only the end is missing.
    AnswerTooLarge
        While it is read.
    """

    def __init__(
        self, chunks: Iterator[bytes], boundary: str, framed: bool, most_bytes: int = sys.maxsize
    ) -> None:
        if not boundary:
            raise MultipartInvalid("the multipart answer has no boundary")
        self._chunks = filter(None, chunks)
        self._delimiter = b"--" + boundary.encode("latin-1", "replace")
        self._framed = framed
        self._most_bytes = most_bytes
        self._buffer = b""
        self._at = 0  # everything before is done with
        self._ended = False
        self._cut = False

    def __iter__(self) -> Iterator[Part]:
        for headers, length in self._heads():
            found = self._next_delimiter(length, 0)
            if found is None:
                yield Part(headers, joined(self._pieces(length), self._most_bytes))
            else:
                end, after = found
                content, self._at = self._buffer[self._at : end], after
                yield Part(headers, joined([content], self._most_bytes))

    def streams(self) -> Iterator[tuple[Mapping[str, str], Iterator[memoryview]]]:
        """Each part's headers and its bytes in pieces, to be used up before the next part."""
        for headers, length in self._heads():
            yield headers, self._pieces(length)

    def _heads(self) -> Iterator[tuple[Mapping[str, str], int | None]]:
        """Each part's headers and its Content-Length; its bytes are to be used up in between."""
        for _ in self._pieces(None, preamble=True):
            pass
        while not self._ended and not self._closed():
            headers = self._headers()
            length = headers.get("content-length", "")
            yield headers, int(length) if length.isdecimal() else None
        if self._cut:
            raise MultipartTruncated("the answer ends after a part, without its last delimiter")
        for _ in self._chunks:
            pass  # an epilogue; read to its end, so that the connection can be used again

    def _closed(self) -> bool:
        return self._buffer.startswith(b"--", self._at)

    def _headers(self) -> dict[str, str]:
        while (end := self._buffer.find(BLANK_LINE, self._at)) < 0:
            if len(self._buffer) - self._at > MOST_HEADER_BYTES:
                raise MultipartInvalid("the head of a part does not end")
            if not self._more():
                raise MultipartTruncated("the answer ends in the head of a part")
        lines = self._buffer[self._at : end].decode("latin-1").split("\r\n")
        self._at = end + len(BLANK_LINE)
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        return headers

    def _pieces(self, length: int | None, preamble: bool = False) -> Iterator[memoryview]:
        """Bytes up to the next delimiter, which is passed over."""
        hold = len(self._delimiter) + 4  # a delimiter, its CRLF and what follows it
        taken = 0
        while (found := self._next_delimiter(length, taken)) is None:
            cut = max(self._at, len(self._buffer) - hold)
            if cut > self._at:
                taken += cut - self._at
                yield memoryview(self._buffer)[self._at : cut]
                self._at = cut
            if not self._more():
                yield from self._unended(length, taken, preamble)
                return
        end, after = found
        yield memoryview(self._buffer)[self._at : end]
        self._at = after

    def _unended(self, length: int | None, taken: int, preamble: bool) -> Iterator[memoryview]:
        rest = self._buffer[self._at :]
        self._ended = True
        if preamble:
            if taken or rest:
                raise MultipartInvalid("the multipart answer has no part")
            return
        if length is not None and taken + len(rest) >= length:
            rest = rest[: max(length - taken, 0)]
            self._cut = not self._framed
        elif not self._framed or length is not None or self._delimiter in rest:
            raise MultipartTruncated("the answer ends in the middle of a part")
        yield memoryview(rest.removesuffix(b"\r\n") if length is None else rest)

    def _next_delimiter(self, length: int | None, taken: int) -> tuple[int, int] | None:
        """(end of content, position after the delimiter), if it has come already."""
        buffer, delimiter = self._buffer, self._delimiter
        if length is not None and length >= taken:
            end = self._at + length - taken
            if buffer.startswith(b"\r\n" + delimiter, end):
                after = end + 2 + len(delimiter)
                if len(buffer) >= after + 2:
                    return end, after
        at = buffer.find(delimiter, self._at)
        while at >= 0 and at + len(delimiter) + 2 <= len(buffer):
            after = at + len(delimiter)
            own_line = at == self._at or buffer[at - 2 : at] == b"\r\n"
            follows = buffer[after : after + 2]
            if follows == b"--" or (own_line and follows[:1] in b"\r \t"):
                before = at - 2 if buffer[at - 2 : at] == b"\r\n" else at
                return max(self._at, before), after
            at = buffer.find(delimiter, at + 1)
        return None

    def _more(self) -> bool:
        chunk = next(self._chunks, b"")
        if not chunk:
            return False
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return True


def joined(pieces: Iterable[bytes | memoryview], most_bytes: int) -> bytes:
    """All pieces in one.

    Raises
    ------
    AnswerTooLarge
        They are longer than that; no further ones are asked for then.
    """
    held: list[bytes | memoryview] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > most_bytes:
            raise AnswerTooLarge(f"more than {most_bytes} bytes came")
        held.append(piece)
    return b"".join(held)


def is_framed(response: requests.Response) -> bool:
    """Whether HTTP itself tells where the body ends."""
    return "Content-Length" in response.headers or bool(response.raw.chunked)


def chunks_of(read1: Callable[[int], bytes], size: int = 2**18) -> Iterator[bytes]:
    """What `read1` gives, as it comes, until it gives nothing."""
    return iter(lambda: read1(size), b"")
