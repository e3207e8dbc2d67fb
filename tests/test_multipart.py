"""Multipart answers: every way to write one, cut one and spoil one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_io.multipart import (
    AnswerTooLarge,
    Multipart,
    MultipartInvalid,
    MultipartTruncated,
    Part,
    media_type,
)

BOUNDARY = "b-o"


def written(contents: list[bytes], lengths: bool = True, end: bytes = b"\r\n--b-o--\r\n") -> bytes:
    body = b""
    for content in contents:
        length = b"Content-Length: %d\r\n" % len(content) if lengths else b""
        head = b"--b-o\r\nContent-Type: image/jpeg\r\n" + length + b"\r\n"
        body += (b"\r\n" if body else b"") + head + content
    return body + end


def chunks(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))


def contents(body: bytes, size: int = 7, framed: bool = True) -> list[bytes]:
    return [part.content for part in Multipart(chunks(body, size), BOUNDARY, framed)]


# Bytes that look like delimiters without being one.
payloads = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.lists(st.sampled_from([b"\r\n", b"--", b"-", b"b-o", b"--b-", b"x"])).map(b"".join),
    ).filter(lambda content: b"--b-o" not in content),
    max_size=5,
)


@given(payloads, st.booleans(), st.integers(1, 60), st.booleans())
def test_what_was_written_is_read(
    parts: list[bytes], lengths: bool, size: int, framed: bool
) -> None:
    body = written(parts, lengths) if parts else b"--b-o--"
    assert contents(body, size, framed) == parts


@given(payloads, st.booleans(), st.integers(1, 60), st.data())
def test_cut_anywhere_gives_the_whole_parts_and_says_so(
    parts: list[bytes], lengths: bool, size: int, data: st.DataObject
) -> None:
    body = written(parts, lengths, end=b"\r\n--b-o--")
    cut = data.draw(st.integers(0, len(body) - 1))
    received: list[bytes] = []
    with pytest.raises(MultipartInvalid) if cut else contextlib.nullcontext():
        for part in Multipart(chunks(body[:cut], size), BOUNDARY, framed=False):
            received.append(part.content)
    assert received == parts[: len(received)]


@given(st.binary(max_size=300), st.integers(1, 60), st.booleans())
@settings(max_examples=300)
def test_rubbish_is_one_error(rubbish: bytes, size: int, framed: bool) -> None:
    for body in (rubbish, b"--b-o\r\n" + rubbish, b"--b-o\r\nContent-Length: 9\r\n\r\n" + rubbish):
        with contextlib.suppress(MultipartInvalid):
            list(Multipart(chunks(body, size), BOUNDARY, framed))


@pytest.mark.parametrize(
    "body",
    [
        b"preamble\r\n" + written([b"one", b"two"]),
        written([b"one", b"two"], end=b"\r\n--b-o--"),
        written([b"one", b"two"], end=b"--b-o--"),
        written([b"one", b"two"], lengths=False, end=b"--b-o--"),
        written([b"one", b"two"], end=b""),
        written([b"one", b"two"], end=b"\r\n"),
        written([b"one", b"two"], lengths=False, end=b""),
        written([b"one", b"two"]) + b"epilogue\r\n--b-o\r\n\r\nnot a part",
        written([b"one", b"two"]).replace(b"Length: 3", b"Length: 2"),
        written([b"one", b"two"]).replace(b"Length: 3", b"Length: 300"),
        written([b"one", b"two"]).replace(b"Length: 3", b"Length: -1"),
        b"--b-o\r\n\r\none\r\n--b-o \t\r\nX: y\r\n\r\ntwo\r\n--b-o--",
    ],
)
def test_odd_but_whole(body: bytes) -> None:
    for size in (1, 5, 1000):
        assert contents(body, size) == [b"one", b"two"]


def test_headers_are_read() -> None:
    body = b"--b-o\r\nContent-LOCATION:  /frames/3 \r\nX:a:b\r\n\r\none\r\n--b-o--"
    (part,) = Multipart(iter([body]), BOUNDARY, True)
    assert part == Part({"content-location": "/frames/3", "x": "a:b"}, b"one")


def test_missing_end_is_a_cut_unless_http_says_otherwise() -> None:
    body = written([b"one", b"two"], lengths=False, end=b"")
    with pytest.raises(MultipartTruncated):
        contents(body, framed=False)
    with pytest.raises(MultipartTruncated):
        contents(written([b"one", b"two"])[:-14], framed=True)  # shorter than its length says


@pytest.mark.parametrize("body", [b"no part at all", b"--b-o" + b"x" * 100_000])
def test_no_part(body: bytes) -> None:
    with pytest.raises(MultipartInvalid):
        contents(body, 1000)


def test_large_parts_come_in_pieces() -> None:
    content = bytes(range(256)) * 400
    streams = Multipart(chunks(written([content], lengths=False), 1000), BOUNDARY, True).streams()
    _, pieces = next(streams)
    sizes = [len(piece) for piece in pieces]
    assert sum(sizes) == len(content)
    assert max(sizes) < 1100


@pytest.mark.parametrize("size", [7, 1000])
@pytest.mark.parametrize("lengths", [True, False])
def test_a_part_may_have_so_many_bytes_and_no_more(size: int, lengths: bool) -> None:
    for most_bytes in (100, 99):
        body = chunks(written([b"one", bytes(100), b"two"], lengths), size)
        parts = iter(Multipart(body, BOUNDARY, True, most_bytes))
        assert next(parts).content == b"one"
        if most_bytes == 100:
            assert [part.content for part in parts] == [bytes(100), b"two"]
        else:
            with pytest.raises(AnswerTooLarge):
                next(parts)


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ('multipart/related; type="image/jpeg"; boundary="a b/c"', "a b/c"),
        ("Multipart/Related;boundary=abc;type=image/jpeg", "abc"),
        ("multipart/related; boundary='x'", "'x'"),
        ("multipart/related", None),
    ],
)
def test_media_type(header: str, boundary: str | None) -> None:
    kind, parameters = media_type(header)
    assert kind == "multipart/related"
    assert parameters.get("boundary") == boundary


def test_media_type_of_nothing_is_no_error() -> None:
    assert media_type("")[0] == "text/plain"
    assert media_type("a\r\nb: c")[0] == "text/plain"
