"""Where requests may go and what they carry there; how often they are tried, and how long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pybreaker
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io import pacs_http
from dicom_io.errors import (
    PacsAnswerInvalid,
    PacsBusy,
    PacsError,
    PacsRefused,
    PacsTimeout,
    PacsUnreachable,
)
from dicom_io.pacs import InstanceReference, Pacs, PacsSettings, open_pacs
from tests.loopback_host import Answer, Host, running_host
from tests.servers import Orthanc
from tests.slides import write_slide

QUICK = PacsSettings(timeout_s=5, retries=1, retry_wait_s=0.01)
SECRETS = {"authorization", "x-api-key", "cookie"}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> PacsSettings:
    """Settings with every kind of thing that must not be shown to others."""
    monkeypatch.setenv("MARROW_TOKEN", "top-secret")
    return replace(
        QUICK,
        bearer_token="env:MARROW_TOKEN",  # noqa: S106
        headers={"X-Api-Key": "key", "X-Site": "here"},
    )


def redirect_to(url: str) -> Callable[[str], Answer]:
    def answer(path: str) -> Answer:
        return 302, {"Location": url + path, "Set-Cookie": "session=secret"}, b""

    return answer


def search(pacs: Pacs) -> list[dict[str, Any]]:
    return pacs.search_instances("1.2", "1.3")


def test_redirect_to_a_host_nobody_configured_is_not_followed(
    host: Host, elsewhere: Host, known: PacsSettings
) -> None:
    host.answer = redirect_to(f"{elsewhere.url}/taken?key=abc")
    with open_pacs(host.url, known) as pacs, pytest.raises(PacsRefused) as caught:
        search(pacs)
    assert elsewhere.requests == []
    assert elsewhere.url in str(caught.value)
    assert "key=abc" not in str(caught.value)
    assert not caught.value.transient


def test_redirect_to_a_further_host_carries_nothing_secret(
    host: Host,
    elsewhere: Host,
    known: PacsSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    host.answer = redirect_to(elsewhere.url)
    settings = replace(known, further_hosts=(elsewhere.url,))
    with open_pacs(host.url, settings) as pacs:
        assert search(pacs) == []
    assert host.last["authorization"] == "Bearer top-secret"
    assert host.last["x-api-key"] == "key"
    assert not SECRETS & set(elsewhere.last)
    assert "x-site" not in elsewhere.last
    assert elsewhere.last["host"] == elsewhere.url.removeprefix("http://")


def test_redirect_within_the_archive_is_followed_with_credentials(
    host: Host, known: PacsSettings
) -> None:
    def moved(path: str) -> Answer:
        if path.startswith("/new"):
            return 200, {}, b"[]"
        return 307, {"Location": "/new" + path}, b""

    host.answer = moved
    with open_pacs(host.url, known) as pacs:
        assert search(pacs) == []
    assert host.last["authorization"] == "Bearer top-secret"


def test_redirect_in_a_circle_ends(host: Host) -> None:
    host.answer = redirect_to(host.url)
    with open_pacs(host.url, QUICK) as pacs, pytest.raises(PacsAnswerInvalid, match="circle"):
        search(pacs)


def test_results_are_never_redirected_to_a_further_host(
    host: Host, elsewhere: Host, tmp_path: Path
) -> None:
    host.answer = lambda path: (307, {"Location": elsewhere.url + path}, b"")
    result = dcmread(write_slide(tmp_path, levels=1).paths[0])
    settings = replace(QUICK, further_hosts=(elsewhere.url,))
    with open_pacs(host.url, settings) as pacs, pytest.raises(PacsRefused):
        pacs.store([result])
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "uri",
    ["{0}/bulk?key=abc", "http://127.0.0.1/bulk", "file:///etc/passwd", "//127.0.0.2/bulk",
     "ftp://127.0.0.1/x", "http://a@{1}/bulk", "{0}@evil.example/bulk"],
)  # fmt: skip
def test_bulk_data_elsewhere_is_not_fetched(
    host: Host, elsewhere: Host, known: PacsSettings, uri: str
) -> None:
    address = uri.format(elsewhere.url, elsewhere.url.removeprefix("http://"))
    with open_pacs(host.url, known) as pacs, pytest.raises(PacsError) as caught:
        pacs.bulk_data(address)
    assert elsewhere.requests == host.requests == []
    assert type(caught.value) is PacsRefused
    assert "key=abc" not in str(caught.value)


def test_bulk_data_of_a_further_host_is_fetched_without_credentials(
    host: Host, elsewhere: Host, known: PacsSettings
) -> None:
    elsewhere.answer = lambda path: (
        200,
        {"Content-Type": "multipart/related; boundary=x"},
        b"--x\r\n\r\nprofile\r\n--x--",
    )
    settings = replace(known, further_hosts=(elsewhere.url,))
    with open_pacs(host.url, settings) as pacs:
        assert pacs.bulk_data(f"{elsewhere.url}/bulk/1") == b"profile"
    assert not SECRETS & set(elsewhere.last)


def test_relative_bulk_data_counts_from_the_retrieve_service(
    host: Host, elsewhere: Host, known: PacsSettings
) -> None:
    elsewhere.answer = lambda path: (
        200, {"Content-Type": "application/octet-stream"}, path.encode()
    )  # fmt: skip
    settings = replace(known, retrieve_url=f"{elsewhere.url}/some/wado")
    with open_pacs(host.url, settings) as pacs:
        assert pacs.bulk_data("studies/1.2/bulk/3") == b"/some/wado/studies/1.2/bulk/3"
        assert pacs.bulk_data("/other/3") == b"/other/3"
    assert elsewhere.last["authorization"] == "Bearer top-secret"


@pytest.mark.parametrize("refusal", [400, 406, 415])
def test_bulk_data_come_from_an_archive_that_knows_no_multipart(host: Host, refusal: int) -> None:
    def answer(path: str) -> Answer:
        if host.last["accept"] != "application/octet-stream":
            return refusal, {}, b""
        return 200, {"Content-Type": "application/octet-stream"}, b"profile"

    host.answer = answer
    with open_pacs(host.url, PacsSettings(retries=0)) as pacs:
        assert pacs.bulk_data("bulk/1") == b"profile"


def test_profile_from_a_real_archive(orthanc: Orthanc, tmp_path: Path) -> None:
    profile = bytes(range(256)) * 8

    def colour(ds: Dataset, level: int) -> None:
        path = Dataset()
        path.ICCProfile = profile
        ds.OpticalPathSequence = [path]

    written = write_slide(tmp_path, levels=1, change=colour)
    orthanc.add(*written.paths)
    with open_pacs(orthanc.dicomweb_url, QUICK) as pacs:
        (header,) = pacs.series_metadata(written.study_uid, written.series_uid)
        (path,) = header["00480105"]["Value"]
        assert pacs.bulk_data(path["00282000"]["BulkDataURI"]) == profile


def test_services_on_hosts_and_paths_of_their_own(
    host: Host, known: PacsSettings, tmp_path: Path
) -> None:
    result = dcmread(write_slide(tmp_path, levels=1).paths[0])
    with ExitStack() as stack:
        query, retrieve, store = (stack.enter_context(running_host()) for _ in range(3))
        settings = replace(
            known,
            query_url=f"{query.url}/q/rs/",
            retrieve_url=f"{retrieve.url}/wado",
            store_url=f"{store.url}/a/b/stow",
        )
        pacs = stack.enter_context(open_pacs(f"{host.url}/rs", settings))
        search(pacs)
        pacs.series_metadata("1.2", "1.3")
        with pytest.raises(PacsError):
            pacs.store([result])
        told = [server.requests[0][:2] for server in (query, retrieve, store)]
        for server in (query, retrieve, store):
            assert server.last["authorization"] == "Bearer top-secret"
            assert server.last["host"] == server.url.removeprefix("http://")
    assert told[0] == ("GET", "/q/rs/studies/1.2/series/1.3/instances")
    assert told[1] == ("GET", "/wado/studies/1.2/series/1.3/metadata")
    assert told[2] == ("POST", "/a/b/stow/studies")
    assert host.requests == []


def test_user_agent_is_a_setting(host: Host) -> None:
    with open_pacs(host.url, replace(QUICK, user_agent="viewer/3")) as pacs:
        search(pacs)
    assert host.last["user-agent"] == "viewer/3"


@pytest.mark.parametrize(
    ("retry_after", "error"), [("0", None), ("1", None), ("3600", PacsBusy), ("x", None)]
)
def test_retry_after_is_honoured(
    host: Host, retry_after: str, error: type[PacsError] | None
) -> None:
    times: list[float] = []

    def answer(path: str) -> Answer:
        times.append(time.monotonic())
        busy = len(times) == 1
        return (429, {"Retry-After": retry_after}, b"") if busy else (200, {}, b"[]")

    host.answer = answer
    with open_pacs(host.url, QUICK) as pacs:
        if error is not None:
            with pytest.raises(error):
                search(pacs)
            assert len(times) == 1
            return
        assert search(pacs) == []
    assert len(times) == 2
    assert times[1] - times[0] >= (1 if retry_after == "1" else 0)


@pytest.fixture
def waits_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited between attempts."""
    waited: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=waited.append))
    return waited


PATIENT = PacsSettings(retries=3, retry_wait_s=10)


@pytest.mark.parametrize("retry_after", ["", "0", "9", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_waits_are_doubled_with_jitter_and_no_archive_shortens_them(
    host: Host, waits_s: list[float], retry_after: str
) -> None:
    host.answer = lambda path: (503, {"Retry-After": retry_after}, b"")
    with open_pacs(host.url, PATIENT) as pacs, pytest.raises(PacsBusy):
        search(pacs)
    assert [wait_s // 10 for wait_s in waits_s] == [1, 2, 4]
    assert all(0 < wait_s % 10 < 5 for wait_s in waits_s)


def test_those_whom_an_archive_turned_away_together_do_not_come_again_together(
    host: Host, waits_s: list[float]
) -> None:
    host.answer = lambda path: (503, {"Retry-After": "50"}, b"")
    with open_pacs(host.url, PATIENT) as pacs, pytest.raises(PacsBusy):
        search(pacs)
    assert len(set(waits_s)) == 3
    assert all(50 <= wait_s < 55 for wait_s in waits_s)


def test_retry_after_may_be_a_date(host: Host) -> None:
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    host.answer = lambda path: (503, {"Retry-After": past}, b"")
    with open_pacs(host.url, QUICK) as pacs, pytest.raises(PacsBusy) as caught:
        search(pacs)
    assert caught.value.retry_after_s == 0
    assert len(host.requests) == 2


def test_host_that_keeps_failing_is_left_alone(host: Host) -> None:
    host.answer = lambda path: (500, {}, b"")
    settings = replace(QUICK, retries=0, breaker_failures=3, breaker_wait_s=0.3)
    with open_pacs(host.url, settings) as pacs, open_pacs(host.url, settings) as another:
        for _ in range(3):
            with pytest.raises(PacsBusy):
                search(pacs)
        for one in (pacs, another):
            with pytest.raises(PacsUnreachable, match="left alone") as caught:
                search(one)
            assert caught.value.transient
        assert len(host.requests) == 3
        time.sleep(0.35)
        host.answer = lambda path: (200, {}, b"[]")
        assert search(pacs) == search(another) == []


def test_a_clock_that_is_turned_back_does_not_leave_a_host_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AnHourAgo(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) - timedelta(hours=1)

    host.answer = lambda path: (500, {}, b"")
    settings = replace(QUICK, retries=0, breaker_failures=3, breaker_wait_s=0.3)
    with open_pacs(host.url, settings) as pacs:
        for _ in range(3):
            with pytest.raises(PacsBusy):
                search(pacs)
        for module in (pybreaker, pacs_http):
            monkeypatch.setattr(module, "datetime", AnHourAgo)
        with pytest.raises(PacsUnreachable, match="left alone"):
            search(pacs)
        time.sleep(0.35)
        host.answer = lambda path: (200, {}, b"[]")
        assert search(pacs) == []


def test_refusals_do_not_open_the_breaker(host: Host) -> None:
    host.answer = lambda path: (404, {}, b"")
    settings = replace(QUICK, breaker_failures=2)
    with open_pacs(host.url, settings) as pacs:
        for _ in range(5):
            with pytest.raises(PacsError, match="404"):
                search(pacs)


def test_slide_has_a_deadline(orthanc: Orthanc, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    orthanc.add(*written.paths)
    uids = dcmread(written.paths[0], stop_before_pixels=True)
    settings = replace(QUICK, slide_deadline_s=0.0)
    reference = InstanceReference(written.study_uid, written.series_uid, uids.SOPInstanceUID)
    with (
        open_pacs(orthanc.dicomweb_url, settings) as pacs,
        pytest.raises(PacsTimeout, match=written.series_uid),
    ):
        list(pacs.frames(reference, range(48)))


@pytest.mark.parametrize("where", ["head", "body"])
def test_answer_that_trickles_is_cut(where: str) -> None:
    """A byte every 50 ms never meets a timeout of half a second; the deadline meets it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
                body = b"Content-Length: 100000\r\n\r\n["
                connection.sendall(head + (body if where == "body" else b"X: "))
                while not done.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        settings = replace(QUICK, retries=0, timeout_s=0.5, request_deadline_s=0.4)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with open_pacs(url, settings) as pacs, pytest.raises(PacsTimeout):
            search(pacs)
        done.set()
        thread.join(5)
    assert not thread.is_alive()
