"""A search that fails is seen, and what stands against one slide keeps no other from its job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import date
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from dicom_io.errors import PacsBusy
from dicom_io.pacs import open_pacs
from dicom_io.search import Search
from node.config import load_settings
from node.job_database import prepare_database
from node.job_queue import open_job_queue
from node.poll import ArchiveLooks
from node.rule_settings import RuleSettings
from node.worklist_database import worklist_database
from tests.copied_slides import copied_slides
from tests.faulty_proxy import Answer, Fault, Proxy, faulty_proxy
from tests.served import served
from tests.servers import MISSING_ORTHANC, Orthanc, orthanc_missing, running_orthanc
from tests.service import Service, awaited, running_service
from tests.smears import Smear, small_smear

RULES = '[[rules]]\nname = "slides"\nmodality = "SM"\n'
QUIET_S = 4.0
GONE = "/gone"


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if orthanc_missing():
        pytest.skip(MISSING_ORTHANC)
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="module")
def archive(orthanc: Orthanc) -> Iterator[Proxy]:
    with faulty_proxy(orthanc.dicomweb_url, keep_host=True) as running:
        yield running


@pytest.fixture(scope="module")
def told() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An origin that is told, and what."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != GONE:
                bodies.append(body)
            self.send_response(410 if self.path == GONE else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as origin:
        yield origin, bodies


@pytest.fixture(scope="module")
def service(
    smear: Smear, archive: Proxy, told: tuple[str, list[dict[str, Any]]]
) -> Iterator[Service]:
    tables = {
        "jobs": {"look_s": 0.2, "quiet_s": QUIET_S},
        "serve": {"callbacks": [told[0]]},
    }
    with running_service(smear, tables, RULES, pacs_url=archive.url) as running:
        yield running


def ended(service: Service, search: str) -> Any:
    def look() -> Any:
        found = service.get(f"/searches/{search}")
        return found if found["status"] in ("completed", "failed") else None

    return awaited(look)


def uids(paths: list[Path]) -> tuple[str, str]:
    header = dcmread(paths[0], stop_before_pixels=True)
    return str(header.StudyInstanceUID), str(header.SeriesInstanceUID)


def test_a_rule_may_tell_before_the_archive_lists(
    service: Service, orthanc: Orthanc, smear: Smear
) -> None:
    slide = smear.slide
    search = service.submit(study_uid=slide.study_uid, series_uid=slide.series_uid)["search"]
    awaited(lambda: service.get(f"/searches/{search}")["status"] == "running")
    time.sleep(QUIET_S / 4)
    orthanc.add(*slide.paths)
    found = ended(service, search)
    (job,) = found["jobs"]
    assert found["status"] == "completed"
    assert service.ended(job)["status"] == "completed"


def test_a_search_that_fails_is_told_logged_counted_and_shown(
    service: Service, told: tuple[str, list[dict[str, Any]]]
) -> None:
    origin, bodies = told
    search = service.submit(accession_number="NONE", callback=f"{origin}/done")["search"]
    found = ended(service, search)
    assert found["status"] == "failed"
    assert "did not" in found["error"] or "no study" in found["error"]
    awaited(lambda: bodies)
    assert [(body["search"], body["status"]) for body in bodies] == [(search, "failed")]
    assert bodies[0]["error"] == found["error"]
    assert [each["search"] for each in service.get("/searches")["searches"]] == [search]
    assert found["error"] in unescape(service.ask("GET", "/?status=failed").text)
    assert "Searches for slides have failed" in service.ask("GET", "/").text
    (line,) = (line for line in service.log.read_text().splitlines() if search in line)
    assert found["error"] in line
    counted = service.ask("GET", "/metrics").text
    assert 'marrow_node_given_up_total{what="search"} 1.0' in counted
    assert "marrow_node_failures_total{" not in counted, "it was no job"


def test_what_stands_against_one_slide_is_said_and_the_other_is_queued(
    service: Service, orthanc: Orthanc, archive: Proxy, smear: Smear, tmp_path: Path
) -> None:
    good, bad = copied_slides(smear.slide.paths, tmp_path, ["20200101", "20200102"])
    (_, wanted), (_, refused) = uids(good), uids(bad)
    for path in (*good, *bad):
        dataset = dcmread(path)
        dataset.StudyInstanceUID, dataset.AccessionNumber = "1.2.3.9", "BOTH"
        dataset.save_as(path)
    orthanc.add(*good, *bad)
    archive.faults = [Fault(rf"/series/{refused}/metadata", "GET", status=403)]
    try:
        found = ended(service, service.submit(study_uid="1.2.3.9")["search"])
    finally:
        archive.faults = []
    assert found["status"] == "failed"
    (job,) = found["jobs"]
    assert service.get(f"/jobs/{job}")["series_uid"] == wanted
    decided = {each["series_uid"]: each for each in found["decisions"]}
    assert decided[wanted]["analyse"]
    assert not decided[refused]["analyse"]
    assert decided[refused]["why"] == found["error"]
    assert f"Series {refused} is in no job" in service.log.read_text()


def test_slides_that_are_listed_and_not_given_are_waited_for_together(
    service: Service, orthanc: Orthanc, archive: Proxy, smear: Smear, tmp_path: Path
) -> None:
    """Not one after the other: a study has many."""
    # The first ones are those of other tests.
    slides = copied_slides(smear.slide.paths, tmp_path, ["20190101"] * 10)[6:]
    for path in (path for slide in slides for path in slide):
        dataset = dcmread(path)
        dataset.StudyInstanceUID = "1.2.3.10"
        dataset.save_as(path)
    orthanc.add(*(path for slide in slides for path in slide))
    nothing = Answer(200, {"Content-Type": "application/dicom+json"}, b"[]")
    metadata = r"/studies/1\.2\.3\.10/series/[^/]+/metadata"
    archive.faults = [Fault(metadata, "GET", habit=lambda request, forward: nothing)]
    begun = time.monotonic()
    try:
        found = ended(service, service.submit(study_uid="1.2.3.10")["search"])
    finally:
        archive.faults = []
    assert QUIET_S <= time.monotonic() - begun < 3 * QUIET_S
    assert found["status"] == "failed"
    assert len({each["series_uid"] for each in found["decisions"]}) == len(slides)


def test_who_asks_after_the_end_is_told_too_and_a_call_that_fails_is_logged(
    service: Service, told: tuple[str, list[dict[str, Any]]], smear: Smear
) -> None:
    slide, (origin, bodies) = smear.slide, told
    before = len(bodies)
    for path in (GONE, "/late"):
        service.submit(
            study_uid=slide.study_uid, series_uid=slide.series_uid, callback=f"{origin}{path}"
        )
    awaited(lambda: len(bodies) > before)
    assert (bodies[-1]["status"], bodies[-1]["series_uid"]) == ("completed", slide.series_uid)
    awaited(lambda: "was answered 410" in service.log.read_text())
    awaited(lambda: 'given_up_total{what="call"} 1.0' in service.ask("GET", "/metrics").text)


def test_a_job_that_is_not_tried_again_is_counted_as_such(
    service: Service, orthanc: Orthanc, archive: Proxy, smear: Smear, tmp_path: Path
) -> None:
    """Also where what its last try has met may pass."""

    def given_up() -> float:
        text = service.ask("GET", "/metrics").text
        (line,) = (each for each in text.splitlines() if 'given_up_total{what="job"}' in each)
        return float(line.rpartition(" ")[2])

    *_, slide = copied_slides(smear.slide.paths, tmp_path, ["20190101"] * 11)
    orthanc.add(*slide)
    study, series = uids(slide)
    before = given_up()
    archive.faults = [Fault(r"/frames/", "GET", status=503)]
    try:
        (job,) = ended(service, service.submit(study_uid=study)["search"])["jobs"]
        failed = service.ended(job)
    finally:
        archive.faults = []
    assert (failed["status"], failed["series_uid"]) == ("failed", series)
    assert given_up() == before + 1
    assert 'transient="true"' in service.ask("GET", "/metrics").text


def test_polling_passes_over_what_the_archive_never_has_time_for(
    orthanc: Orthanc, archive: Proxy, smear: Smear, tmp_path: Path
) -> None:
    """One study, or one slide; the next look asks again, a year later too."""
    # The first two copies are in the archive already, under another study.
    slides = copied_slides(smear.slide.paths, tmp_path / "slides", ["20210601"] * 6)[2:]
    orthanc.add(*(path for slide in slides for path in slide))
    config = load_settings(smear.settings(pacs_url=archive.url), {})
    settings = replace(
        config,
        work_folder=tmp_path / "work",
        pacs=replace(config.pacs, retries=0),
        rules=(RuleSettings("all"),),
    )
    with open_pacs(archive.url, settings.pacs) as pacs:
        search = Search("studies", {"StudyDate": "20210601-"})
        first, second, *others = pacs.search_slide_studies(search)
    prepare_database(settings)
    with closing(worklist_database(settings)) as database, open_job_queue(settings) as queue:
        looks = ArchiveLooks(settings, database, queue, lambda: date(2021, 6, 2))
        archive.faults = [
            Fault(rf"/studies/{first}/series(\?|$)", "GET", status=503),
            Fault(rf"/studies/{second}/series/[^/]+/metadata", "GET", status=503),
        ]
        try:
            with pytest.raises(PacsBusy):
                looks.look()
            assert {job.study_uid for job in queue.list()} == set(others)
        finally:
            archive.faults = []
        ArchiveLooks(settings, database, queue, lambda: date(2022, 6, 2)).look()
        assert {job.study_uid for job in queue.list()} == {first, second, *others}
        assert looks._unread() == []


def test_what_cannot_be_read_is_no_archive_that_is_away(
    orthanc: Orthanc, archive: Proxy, smear: Smear, tmp_path: Path
) -> None:
    """Asked for one after the other, studies of an older look open the circuit breaker."""
    # Copies of other numbers are in the archive already.
    slides = copied_slides(smear.slide.paths, tmp_path / "slides", ["20220601"] * 17)[11:]
    orthanc.add(*(path for slide in slides for path in slide))
    config = load_settings(smear.settings(pacs_url=archive.url), {})
    pacs = replace(config.pacs, retries=0, breaker_failures=2, breaker_wait_s=0.1)
    settings = replace(config, work_folder=tmp_path / "work", pacs=pacs)
    settings = replace(settings, rules=(RuleSettings("all"),))
    with open_pacs(archive.url, settings.pacs) as opened:
        found = list(opened.search_slide_studies(Search("studies", {"StudyDate": "20220601-"})))
    mine = {str(dcmread(slide[0], stop_before_pixels=True).StudyInstanceUID) for slide in slides}
    ours = [study for study in found if study in mine]  # beside those of other tests
    bad, good = ours[::2], ours[1::2]
    prepare_database(settings)
    with closing(worklist_database(settings)) as database, open_job_queue(settings) as queue:
        archive.faults = [
            Fault(rf"/studies/{study}/series(\?|$)", "GET", status=503) for study in bad
        ]
        try:
            with pytest.raises(PacsBusy):
                ArchiveLooks(settings, database, queue, lambda: date(2022, 6, 2)).look()
            later = ArchiveLooks(settings, database, queue, lambda: date(2023, 6, 2))
            for _ in range(2):
                with pytest.raises(PacsBusy):
                    later.look()
                assert later._unread() == sorted(bad)
                time.sleep(0.2)
            assert {job.study_uid for job in queue.list()} & mine == set(good)
        finally:
            archive.faults = []
        time.sleep(0.2)
        later.look()
        assert {job.study_uid for job in queue.list()} >= mine
