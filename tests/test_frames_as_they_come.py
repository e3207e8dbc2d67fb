"""Frames are given on while the rest of their answer is still on its way, where that is safe."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dicom_io.errors import PacsAnswerInvalid
from dicom_io.frame_requests import GIVEN_TOGETHER
from dicom_io.pacs import InstanceReference, open_pacs
from tests.conftest import QUICK
from tests.served import served

COUNT = 3 * GIVEN_TOGETHER
REFERENCE = InstanceReference("1.2", "1.3", "1.4")
FRAMES = [b"frame %d" % number for number in range(1, COUNT + 1)]
SETTINGS = replace(QUICK, frames_per_request=COUNT)

Label = Callable[[int], str]


def labelled(number: int) -> str:
    return f"Content-Location: http://archive/instances/1.4/frames/{number}\r\n"


def counted_from_nought(number: int) -> str:
    return labelled(number - 1)


def unlabelled(number: int) -> str:
    return ""


@contextmanager
def halting_archive(label: Label, goes_on: threading.Event, cut: bool = False) -> Iterator[str]:
    """Sends two thirds of an answer, and the rest when `goes_on` is set; or closes there, once."""
    cuts = [True] if cut else []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = [int(number) for number in self.path.rpartition("/")[2].split(",")]
            parts = [
                f"--x\r\n{label(number)}\r\n".encode() + FRAMES[number - 1] + b"\r\n"
                for number in asked
            ]
            self.send_response(200)
            self.send_header("Content-Type", "multipart/related; boundary=x")
            self.end_headers()
            half = 2 * len(parts) // 3
            self.wfile.write(b"".join(parts[:half]) + b"--x\r\n"[: 5 if cuts else 0])
            self.wfile.flush()
            if cuts:
                cuts.pop()
                return
            goes_on.wait(4)
            self.wfile.write(b"".join(parts[half:]) + b"--x--")

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        try:
            yield url
        finally:
            goes_on.set()


def test_labelled_frames_are_given_before_the_answer_ends() -> None:
    goes_on = threading.Event()
    with halting_archive(labelled, goes_on) as url, open_pacs(url, SETTINGS) as pacs:
        coming = pacs.frames(REFERENCE, range(COUNT))
        first = [next(coming) for _ in range(GIVEN_TOGETHER)]
        assert not goes_on.is_set()
        goes_on.set()
        assert [*first, *coming] == FRAMES
        assert pacs.frames_read == COUNT


@pytest.mark.parametrize("label", [unlabelled, counted_from_nought])
def test_frames_without_a_sure_number_wait_for_the_count(label: Label) -> None:
    """Only then is it known that none was left out, and what the labels are worth."""
    goes_on = threading.Event()
    with halting_archive(label, goes_on) as url, open_pacs(url, SETTINGS) as pacs:
        threading.Timer(0.3, goes_on.set).start()
        coming = pacs.frames(REFERENCE, range(COUNT))
        first = next(coming)
        assert goes_on.is_set()
        assert [first, *coming] == FRAMES


def test_after_a_cut_no_frame_is_given_twice() -> None:
    goes_on = threading.Event()
    goes_on.set()
    archive = halting_archive(labelled, goes_on, cut=True)
    with archive as url, open_pacs(url, SETTINGS) as pacs:
        assert list(pacs.frames(REFERENCE, range(COUNT))) == FRAMES
        assert pacs.frames_read == COUNT
        assert sum(pacs.faults.values()) == 1


def test_frame_that_comes_in_its_turn_and_again_otherwise_is_refused() -> None:
    """Its first bytes were given on already, so the reading must fail and not go on."""
    goes_on = threading.Event()
    goes_on.set()

    def first_again(number: int) -> str:
        return labelled(1 if number == COUNT else number)  # with the bytes of the last

    with (
        halting_archive(first_again, goes_on) as url,
        open_pacs(url, SETTINGS) as pacs,
        pytest.raises(PacsAnswerInvalid, match=r"gave frame 1 of instance .* twice"),
    ):
        list(pacs.frames(REFERENCE, range(COUNT)))
