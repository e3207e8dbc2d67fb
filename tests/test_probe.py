"""The site probe against a real Orthanc, as it is and behind a proxy that spoils it."""

from __future__ import annotations

import json
import re
import tomllib
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from pydicom import dcmread

from dicom_io.annotation import encode_annotation
from dicom_io.dicom_json import key
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.probe import best_frames_per_request, probe_archive
from dicom_io.probe_frames import FrameCosts
from dicom_io.probe_http import archive_http
from dicom_io.probe_store import _bulk_findings
from dicom_io.probe_study import PATIENT_ID, make_study
from tests.analyses import small_slide, some_analysis
from tests.faulty_proxy import Fault, Proxy
from tests.forked import marrow_node
from tests.loopback_host import Host
from tests.quirky_proxy import Habits, quirky_proxy
from tests.served import served
from tests.servers import Orthanc
from tests.slides import write_slide
from tests.small_slides import write_small_slide

Probed = tuple[int, Mapping[str, Any], str]


@pytest.fixture
def probe(tmp_path: Path) -> Callable[..., Probed]:
    """Runs ``marrow-node probe --json``: exit code, JSON, and all that it said."""

    def run(url: str, *arguments: str, pacs: str = "") -> Probed:
        config = tmp_path / "node.toml"
        config.write_text(f"[pacs]\ntimeout_s = 20.0\n{pacs}\n")
        ended = marrow_node("--config", str(config), "probe", "--json", *arguments, url)
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.returncode, json.loads(ended.stdout or "{}"), ended.stdout + ended.stderr

    return run


def verdicts(probed: Mapping[str, Any]) -> dict[str, str]:
    return {each["name"]: each["verdict"] for each in probed["findings"]}


def instances(orthanc: Orthanc) -> list[str]:
    found: list[str] = requests.get(f"{orthanc.rest_url}/instances", timeout=10).json()
    return found


def add_slide(orthanc: Orthanc, folder: Path) -> None:
    made = write_small_slide(folder)
    orthanc.add(*made.paths)


def test_it_names_the_defect_of_orthanc(
    orthanc: Orthanc, probe: Callable[..., Probed], tmp_path: Path
) -> None:
    _, probed, said = probe(orthanc.dicomweb_url, "--store")
    found = verdicts(probed)
    assert {name for name, verdict in found.items() if verdict == "defect"} >= {
        "bulk.OF",
        "bulk.OL",
    }
    assert re.search(r"OF \(PointCoordinatesData\): metadata give 1 number of 80", said)
    assert "without a BulkDataURI" in said
    for name in ("qido.limit", "qido.offset", "qido.includefield", "wado.rendered"):
        assert found[name] == "yes"
    for kind in ("ANN", "SR"):
        assert (found[f"stow.{kind}"], found[f"returned.{kind}"]) == ("yes", "yes")
    assert found["stow.duplicate"] == "yes"
    # DICOMweb of Orthanc cannot delete: what was left is named, and belongs to no patient.
    assert found["delete"] == "no"
    (study,) = requests.get(f"{orthanc.rest_url}/studies?expand", timeout=10).json()
    assert study["MainDicomTags"]["StudyInstanceUID"] in said
    assert study["PatientMainDicomTags"]["PatientID"] == PATIENT_ID


def test_it_writes_nothing_unasked(
    orthanc: Orthanc, proxy: Proxy, probe: Callable[..., Probed], tmp_path: Path
) -> None:
    add_slide(orthanc, tmp_path / "slide")
    before = instances(orthanc)
    _, probed, said = probe(proxy.url)
    assert {method for method, _ in proxy.requests} == {"GET"}
    assert instances(orthanc) == before
    assert not {name for name in verdicts(probed) if name.startswith(("stow", "delete"))}
    assert "DEMONSTRATION" not in said


def test_an_annotation_that_is_there_already_tells_too(
    orthanc: Orthanc, probe: Callable[..., Probed], tmp_path: Path
) -> None:
    annotation = encode_annotation(some_analysis(small_slide(tmp_path / "slide")))
    with open_pacs(orthanc.dicomweb_url, PacsSettings()) as pacs:
        pacs.store([annotation])
    _, probed, _ = probe(orthanc.dicomweb_url)
    assert verdicts(probed)["bulk.OF"] == "defect"


@pytest.mark.parametrize("encoding", ["jpeg2000", "jpegls", "rle", "raw"])
def test_frames_are_asked_for_as_they_are_stored(
    orthanc: Orthanc, probe: Callable[..., Probed], tmp_path: Path, encoding: str
) -> None:
    """To be asked for JPEG-LS near-lossless, for example, crashes this archive."""
    orthanc.add(*write_slide(tmp_path / "slide", levels=1, encoding=encoding).paths)
    _, probed, said = probe(orthanc.dicomweb_url)
    assert verdicts(probed)["wado.frames.transfer_syntax"] == "yes", said
    assert probed["usable"]
    assert len(instances(orthanc)) == 1  # it still answers


def test_lines_that_fit_make_it_fit(orthanc: Orthanc, probe: Callable[..., Probed]) -> None:
    code, probed, _ = probe(orthanc.dicomweb_url, "--store", pacs="frames_per_request = 1")
    assert code == 1
    fitting = tomllib.loads("\n".join(probed["lines"]))["pacs"]
    assert fitting["frames_per_request"] >= 16


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (Fault(path=r"frames/(\d+,){16}", status=400), 1, "frames_per_request = 16"),
        (Fault(path=r"/studies$", status=405), 1, 'results_url = "dimse://'),
        (Fault(path=r"/metadata", status=500), 30, None),
        (Fault(path=r"/(frames|instances/[0-9.]+$)", status=500), 30, None),
        (Fault(path=r"studies\?", status=401), 33, None),
        (Fault(path=r"studies\?", html=True), 37, None),
    ],
)
def test_an_archive_that_can_do_less(
    orthanc: Orthanc,
    proxy: Proxy,
    probe: Callable[..., Probed],
    tmp_path: Path,
    fault: Fault,
    code: int,
    line: str | None,
) -> None:
    orthanc.add(*slide_paths(tmp_path))
    proxy.fault = fault
    ended, probed, said = probe(proxy.url, "--store")
    assert ended == code, said
    assert line is None or line in "\n".join(probed["lines"])
    assert probed == {} or probed["usable"] is (code == 1)


@pytest.mark.parametrize(
    ("habits", "line"),
    [
        (Habits(needed=r"PatientID=\*"), 'search_keys = { PatientID = "*" }'),
        (Habits(needed=r"PatientID=\*", too_wide=200), 'search_keys = { PatientID = "*" }'),
        (Habits(needed="StudyDate="), 'search_keys = { StudyDate = "19000101-" }'),
    ],
)
def test_an_archive_that_answers_no_search_without_a_key(
    orthanc: Orthanc, probe: Callable[..., Probed], tmp_path: Path, habits: Habits, line: str
) -> None:
    add_slide(orthanc, tmp_path / "slide")
    with quirky_proxy(orthanc.dicomweb_url, habits) as proxy:
        code, probed, said = probe(proxy.url)
        assert (code, probed["usable"]) == (1, True), said
        assert verdicts(probed)["qido.without_key"] == "no"
        assert probed["lines"][:2] == ["[pacs]", line]
        _, probed, said = probe(proxy.url, pacs=line)
        assert probed["usable"], said
        assert "qido.without_key" not in verdicts(probed)
        assert line not in probed["lines"]


def test_an_archive_that_knows_no_multipart_is_usable(
    orthanc: Orthanc, probe: Callable[..., Probed], tmp_path: Path
) -> None:
    """As the node reads it."""
    add_slide(orthanc, tmp_path / "slide")
    with quirky_proxy(
        orthanc.dicomweb_url, Habits(most_frames=1, alone=True, instance_alone=True)
    ) as proxy:
        _, probed, said = probe(proxy.url)
    found = verdicts(probed)
    assert (found["wado.frames.transfer_syntax"], found["wado.instance"]) == ("yes", "yes"), said
    assert probed["usable"]


def test_a_slide_is_found_where_series_are_listed_by_study_alone(
    orthanc: Orthanc, proxy: Proxy, probe: Callable[..., Probed], tmp_path: Path
) -> None:
    add_slide(orthanc, tmp_path / "slide")
    proxy.fault = Fault(path=r"^/series\?", status=400)
    _, probed, said = probe(proxy.url)
    assert verdicts(probed)["wado.metadata"] == "yes", said
    assert probed["usable"]


def test_connections_that_are_measured_stay_open(
    orthanc: Orthanc, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_slide(orthanc, tmp_path / "slide")
    probed = probe_archive(orthanc.dicomweb_url, PacsSettings(), None, lambda finding: None)
    assert "wado.connections" in {each.name for each in probed.findings}
    assert "Connection pool is full" not in caplog.text


def slide_paths(folder: Path) -> list[Path]:
    make_study(folder / "study")
    return [folder / "study" / "slide.dcm"]


def test_what_is_no_archive(probe: Callable[..., Probed], tmp_path: Path) -> None:
    assert probe(tmp_path.as_uri())[0] == 26
    assert probe("http://127.0.0.1:9/dicom-web")[0] == 31


def test_each_service_is_asked_at_its_own_address(
    orthanc: Orthanc, proxy: Proxy, probe: Callable[..., Probed], tmp_path: Path
) -> None:
    add_slide(orthanc, tmp_path / "slide")
    retrieve = f'retrieve_url = "{proxy.url}"'
    _, probed, said = probe(orthanc.dicomweb_url, pacs=retrieve)
    assert probed["usable"], said
    assert proxy.requests
    assert all("/instances/" in path or "/metadata" in path for _, path in proxy.requests)
    proxy.fault = Fault(path="/metadata", status=500)
    assert probe(orthanc.dicomweb_url, pacs=retrieve)[0] == 30
    proxy.requests.clear()
    _, probed, _ = probe(orthanc.dicomweb_url, "--store", pacs=f'store_url = "{proxy.url}"')
    assert {method for method, _ in proxy.requests} == {"POST"}
    assert verdicts(probed)["stow.SM"] == "yes"


def test_bulk_data_elsewhere_is_not_followed() -> None:
    http = archive_http("http://127.0.0.1:9/dicom-web", PacsSettings()).retrieve
    for uri in (
        "http://127.0.0.1:10/bulk",
        "https://127.0.0.1:9/bulk",
        "//elsewhere.example/bulk",
        "http://[/bulk",
    ):
        assert http.ask_uri(uri, "*/*") is None
    assert http.ask_uri("../bulk/1", "*/*") is not None


def test_bulk_data_of_a_further_host_is_followed_without_credentials(
    host: Host, elsewhere: Host
) -> None:
    settings = PacsSettings(further_hosts=(elsewhere.url,), headers={"X-Api-Key": "key"})
    http = archive_http(host.url, settings).retrieve
    for status in (200, 403):
        elsewhere.answer = lambda path, status=status: (status, {}, b"bulk")
        answer = http.ask_uri(f"{elsewhere.url}/bulk/1", "*/*")
        assert answer is not None
        assert (answer.status, answer.body) == (status, b"bulk")
    assert "x-api-key" not in elsewhere.last
    assert host.requests == []


@pytest.mark.parametrize("inline", ["AAA", "\u00e4", 5, None, ["AA=="]])
def test_inline_data_that_is_damaged_is_a_defect(inline: object) -> None:
    coordinates = {"vr": "OF", "InlineBinary": inline}
    groups = [{key("PointCoordinatesData"): coordinates}]
    metadata = {key("AnnotationGroupSequence"): {"vr": "SQ", "Value": groups}}
    http = archive_http("http://127.0.0.1:9/dicom-web", PacsSettings()).retrieve
    (found,) = _bulk_findings(http, metadata, None)
    assert (found.name, found.verdict) == ("bulk.OF", "defect")
    assert "not base64" in found.sentence


PIECE = bytes(2**20)
PIECES = 200


@contextmanager
def archive_of_a_large_instance() -> Iterator[tuple[str, list[int]]]:
    """Knows no ranges; gives its URL, and the pieces that were taken of each answer."""
    taken: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", 'multipart/related; boundary="x"')
            self.end_headers()
            taken.append(0)
            with suppress(OSError):
                self.wfile.write(b"--x\r\nContent-Type: application/dicom\r\n\r\n")
                self.wfile.write(bytes(128) + b"DICM")
                while taken[-1] < PIECES:
                    self.wfile.write(PIECE)
                    taken[-1] += 1
                self.wfile.write(b"\r\n--x--")

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with served(HTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, taken


def test_a_large_instance_is_counted_and_not_kept() -> None:
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
    with archive_of_a_large_instance() as (url, taken):
        http = archive_http(url, PacsSettings()).retrieve
        tracemalloc.start()
        try:
            weighed = http.weigh("studies/1/series/2/instances/3", accept)
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        head = http.ask_head("studies/1/series/2/instances/3", {"Range": "bytes=0-99"})
    assert weighed.is_dicom
    assert weighed.answer.status == head.status == 200
    assert len(PIECE) * PIECES < weighed.n_bytes < len(PIECE) * PIECES + 1000
    assert most_bytes < 10 * len(PIECE)
    assert taken[0] == PIECES
    assert taken[1] < PIECES // 2  # what lies in the buffers of two sockets


def test_the_test_study_is_nobody(tmp_path: Path) -> None:
    for dataset in make_study(tmp_path).values():
        assert (dataset.PatientName, dataset.PatientID) == ("MARROW-NODE^PROBE", PATIENT_ID)
    assert len(dcmread(tmp_path / "slide.dcm").PixelData) < 5_000_000


@pytest.mark.parametrize(
    ("request_s", "frame_s", "expected"),
    [(1.1, 0.0002, 2048), (0.001, 0.0002, 64), (0.0, 0.001, 1), (0.1, 0.0, 2048)],
)
def test_requests_are_as_large_as_pays(request_s: float, frame_s: float, expected: int) -> None:
    costs = FrameCosts(2048, True, request_s, frame_s, {1: 100.0, 4: 390.0, 8: 400.0})
    assert best_frames_per_request(costs) == expected
    assert costs.knee == 4
