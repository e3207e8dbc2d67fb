"""Answers that do not end, or are far longer than what was asked for can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dicom_io import pacs as pacs_module
from dicom_io import pacs_http
from dicom_io.errors import (
    EhrAnswerInvalid,
    EhrError,
    EhrRefused,
    EhrUnauthorized,
    EhrUnreachable,
    PacsAnswerInvalid,
    PacsBusy,
    PacsError,
    PacsRefused,
)
from dicom_io.frames import read_tiles
from dicom_io.pacs import InstanceReference, Pacs, open_pacs
from dicom_io.read_budget import BESIDE_PIXELS_BYTES
from dicom_io.slide import open_slide
from node import ehr_http
from node.ehr_http import FHIR_JSON, FhirHttp
from node.ehr_records import EhrSettings
from tests.conftest import QUICK
from tests.faulty_proxy import Fault, Proxy
from tests.loopback_host import Host
from tests.served import served
from tests.servers import Orthanc
from tests.slides import write_slide
from tests.test_frames import boxes

REFERENCE = InstanceReference("1.2", "1.3", "1.4")
PIECE = b" " * 2**16
# Where nobody stops it, so that a test fails and does not fill memory.
END_BYTES = 256 * 2**20
MB = 2**20
# What lies in the buffers of two sockets may have been sent and not taken.
UNDERWAY_BYTES = 32 * MB


@dataclass
class Endless:
    """An archive whose answers do not end.

    Attributes
    ----------
    url
    sent
        Bytes of each answer.
    """

    url: str = ""
    sent: list[int] = field(default_factory=list)


@contextmanager
def endless_archive(status: int, headers: dict[str, str], begin: bytes) -> Iterator[Endless]:
    archive = Endless()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = 0
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(begin)
                while sent < END_BYTES:
                    self.wfile.write(PIECE)
                    sent += len(PIECE)
            archive.sent.append(sent)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as archive.url:
        yield archive


@pytest.mark.parametrize(
    ("headers", "begin"),
    [
        ({"Content-Type": "multipart/related; boundary=x"}, b"--x\r\n\r\n"),
        ({"Content-Type": "image/jpeg", "Content-Length": str(2**40)}, b"\xff\xd8\xff"),
    ],
)
def test_a_frame_that_does_not_end(headers: dict[str, str], begin: bytes) -> None:
    with endless_archive(200, headers, begin) as archive:
        with open_pacs(archive.url, QUICK) as pacs, pytest.raises(PacsAnswerInvalid) as caught:
            list(pacs.frames(REFERENCE, [0], most_bytes=MB))
        assert not caught.value.transient
    assert "more for frames 1 to 1 of instance 1.4 than" in str(caught.value)
    assert len(archive.sent) == 1
    assert archive.sent[0] < MB + UNDERWAY_BYTES


def test_a_tile_is_not_longer_than_its_pixels_allow(
    proxy: Proxy, orthanc: Orthanc, tmp_path: Path
) -> None:
    written = write_slide(tmp_path, levels=1)
    orthanc.add(*written.paths)
    with open_pacs(proxy.url, QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        width, height = slide.base.tile_size_px
        most_bytes = 4 * 3 * width * height + BESIDE_PIXELS_BYTES

        def read(n_bytes: int) -> int:
            def padded(index: int, payload: bytes) -> bytes:
                return payload.ljust(n_bytes, b"\0") if index == 0 else payload

            proxy.fault = Fault(path="/frames/", part=padded)
            return len(list(read_tiles(pacs, slide, boxes((0, 0)), 0.25)))

        assert read(most_bytes) == 1
        with pytest.raises(PacsAnswerInvalid, match=r"more for frames 1 to .* of instance"):
            read(most_bytes + 1)


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (Pacs.series_metadata_bytes, "the metadata of series 1.3"),
        (Pacs.search_instances, "the search for series 1.3"),
    ],
)
def test_metadata_that_do_not_end(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[Pacs, str, str], object], what: str
) -> None:
    monkeypatch.setattr(pacs_module, "MOST_METADATA_BYTES", MB)
    monkeypatch.setattr(pacs_http, "MOST_ANSWER_BYTES", MB)
    headers = {"Content-Type": "application/dicom+json"}
    with endless_archive(200, headers, b"[") as archive:
        with open_pacs(archive.url, QUICK) as pacs, pytest.raises(PacsAnswerInvalid) as caught:
            ask(pacs, "1.2", "1.3")
        assert not caught.value.transient
    assert f"more for {what} than" in str(caught.value)
    assert len(archive.sent) == 1
    assert archive.sent[0] < MB + UNDERWAY_BYTES


@pytest.mark.parametrize(
    ("status", "error"), [(400, PacsRefused), (409, PacsRefused), (503, PacsBusy)]
)
def test_an_error_that_does_not_end_is_told_by_its_status(
    status: int, error: type[PacsError]
) -> None:
    headers = {"Content-Type": "application/dicom+json"}
    endless = endless_archive(status, headers, b'{"00081198":')
    with endless as archive, open_pacs(archive.url, QUICK) as pacs:
        for ask in (pacs.search_instances, pacs.series_metadata_bytes):
            with pytest.raises(error, match=f"status {status}") as caught:
                ask("1.2", "1.3")
            assert type(caught.value) is error
            assert caught.value.status == status
    assert max(archive.sent) < MB + UNDERWAY_BYTES


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_answer_of_an_ehr_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(ehr_http, "MOST_ANSWER_BYTES", MB)
    with endless_archive(200, {"Content-Type": FHIR_JSON}, b"[") as ehr:
        http = FhirHttp(ehr.url, EhrSettings())
        with pytest.raises(EhrAnswerInvalid) as caught:
            http.ask(method, "Patient?identifier=a|b", {} if method == "POST" else None)
        assert not caught.value.transient
    assert "127.0.0.1 answered a Patient with more than 1 MB" in str(caught.value)
    assert len(ehr.sent) == 1
    assert ehr.sent[0] < MB + UNDERWAY_BYTES


@pytest.mark.parametrize(("status", "error"), [(403, EhrUnauthorized), (503, EhrUnreachable)])
def test_an_error_of_an_ehr_that_does_not_end_is_told_by_its_status(
    status: int, error: type[EhrError]
) -> None:
    with (
        endless_archive(status, {"Content-Type": FHIR_JSON}, b'{"issue":') as ehr,
        pytest.raises(error, match=f"answered {status}"),
    ):
        FhirHttp(ehr.url, EhrSettings()).ask("GET", "Patient?identifier=a|b")
    assert ehr.sent[0] < MB + UNDERWAY_BYTES


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_of_an_ehr_that_is_nested_without_end(host: Host, status: int) -> None:
    host.answer = lambda path: (status, {}, b"[" * 500_000)
    error = EhrAnswerInvalid if status == 200 else EhrRefused
    with pytest.raises(error):
        FhirHttp(host.url, EhrSettings()).ask("GET", "Patient?identifier=a|b")


def test_an_error_that_is_nested_without_end_has_no_dataset(host: Host) -> None:
    host.answer = lambda path: (409, {}, b"[" * 500_000)
    with open_pacs(host.url, QUICK) as pacs, pytest.raises(PacsRefused, match="status 409"):
        pacs.search_instances("1.2", "1.3")
