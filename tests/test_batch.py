"""``marrow-node batch``: a real archive is analysed again, with kills in between, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from dicom_io import pacs as pacs_module
from dicom_io.search import Search
from node.config import load_settings
from node.job_database import prepare_database
from node.job_queue import open_job_queue
from tests.copied_slides import copied_slides
from tests.faulty_proxy import Fault, Proxy, faulty_proxy
from tests.forked import marrow_node, start_marrow_node
from tests.servers import MISSING_ORTHANC, Orthanc, orthanc_missing, running_orthanc
from tests.smears import Smear, small_smear

DATES = ("20190101", "20200101", "20200601", "20201231", "20210101", "")
OF_2020 = "StudyDate=20200101-20201231"


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def filled(smear: Smear, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive with six slides."""
    if orthanc_missing():
        pytest.skip(MISSING_ORTHANC)
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        copies = copied_slides(smear.slide.paths, smear.folder / "copies", DATES)
        server.add(*(path for slide in copies for path in slide))
        yield server


@pytest.fixture
def archive(filled: Orthanc) -> Iterator[Proxy]:
    """The archive behind a proxy, without results."""
    for series in requests.get(f"{filled.rest_url}/series?expand", timeout=30).json():
        if series["MainDicomTags"]["Modality"] != "SM":
            requests.delete(f"{filled.rest_url}/series/{series['ID']}", timeout=30)
    with faulty_proxy(filled.dicomweb_url, keep_host=True) as running:
        yield running


def config_of(smear: Smear, archive: Proxy, folder: Path, tables: str = "") -> str:
    path = smear.settings(
        work_folder=str(folder / "work"),
        pacs_url=archive.url,
        ehr_url=(folder / "ehr").as_uri(),
    )
    config = folder / "node.toml"
    config.write_text(f"{path.read_text()}[jobs]\nretries = 1\nretry_wait_s = 0.2\n{tables}")
    return str(config)


def anns_by_study(filled: Orthanc) -> Counter[str]:
    found: Counter[str] = Counter()
    for series in requests.get(f"{filled.rest_url}/series?expand", timeout=30).json():
        if series["MainDicomTags"]["Modality"] == "ANN":
            found[series["ParentStudy"]] += len(series["Instances"])
    return found


def test_a_killed_batch_goes_on_and_queues_nothing_twice(
    smear: Smear, filled: Orthanc, archive: Proxy, tmp_path: Path
) -> None:
    config = config_of(smear, archive, tmp_path, "[batch]\nat_a_time = 1\n")
    settings = load_settings(Path(config))
    prepare_database(settings)
    worker = start_marrow_node("--config", config, "work", said=tmp_path / "worker.log")
    killed = 0
    try:
        with open_job_queue(settings) as queue:
            for wanted in (1, 2):
                process = start_marrow_node(
                    "--config", config, "batch", OF_2020, said=tmp_path / f"{wanted}.log"
                )
                end = time.monotonic() + 90
                while len(queue.list()) < wanted:
                    assert time.monotonic() < end, (tmp_path / f"{wanted}.log").read_text()
                    time.sleep(0.01)
                assert process.pid
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
            ended = marrow_node("--config", config, "batch", "--json", OF_2020)
            assert ended.returncode == 0, ended.stderr
            jobs = queue.list()
            again = marrow_node("--config", config, "batch", "--json", OF_2020)
            assert queue.list() == jobs
    finally:
        worker.terminate()
        worker.join(30)
    told = json.loads(ended.stdout)
    assert (told["studies"], told["queued"], told["jobs"]) == (3, 3, {"completed": 3})
    assert json.loads(again.stdout) == told
    assert killed == 2
    assert len(jobs) == len({job.series_uid for job in jobs}) == 3
    assert {(job.tries, job.priority) for job in jobs} == {(1, "batch")}
    assert anns_by_study(filled) == Counter(dict.fromkeys(anns_by_study(filled), 1))
    assert len(anns_by_study(filled)) == 3


def test_a_dry_run_lists_what_the_query_finds_and_queues_nothing(
    smear: Smear, archive: Proxy, tmp_path: Path
) -> None:
    rules = '[[rules]]\nname = "second"\naccession_numbers = ["COPY-2", "COPY-3"]\n'
    config = config_of(smear, archive, tmp_path, rules)
    ended = marrow_node("--config", config, "batch", "--dry-run", "--json", OF_2020)
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["analyse"], len(told["slides"])) == (0, 2, 3)
    (other,) = (slide for slide in told["slides"] if not slide["analyse"])
    assert "accession number" in other["why"]
    assert not (tmp_path / "work" / "jobs.sqlite").exists()


def test_pages_of_an_archive_are_read_to_the_end(
    archive: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacs_module, "STUDIES_PER_PAGE", 4)
    with pacs_module.open_pacs(archive.url, pacs_module.PacsSettings()) as pacs:
        everything = list(pacs.search_slide_studies(Search("studies", {"PatientID": "*"})))
        assert len(everything) == len(set(everything)) == 6
        some = Search("studies", {"StudyDate": "20200101-20201231"})
        assert len(list(pacs.search_slide_studies(some))) == 3
    pages = [path for _, path in archive.requests if "limit=4" in path]
    whole = [path for _, path in archive.requests if "limit=" not in path]
    # Orthanc gives nothing after the first page of four: all is asked for, once.
    assert (len(pages), len(whole)) == (2 + 2, 1)


def test_an_archive_that_is_down_is_waited_for_and_limits_are_kept(
    smear: Smear, archive: Proxy, tmp_path: Path
) -> None:
    """Three slides at 3 600 in an hour take two seconds at least; the search fails at first."""
    tables = "[batch]\nat_a_time = 9\nslides_per_hour = 3600\n"
    config = config_of(smear, archive, tmp_path, tables)
    settings = load_settings(Path(config))
    prepare_database(settings)
    archive.faults += [Fault(r"/studies\?", "GET", status=503, times=4)]
    process = start_marrow_node("--config", config, "batch", OF_2020, said=tmp_path / "batch.log")
    try:
        end = time.monotonic() + 90
        jobs = []
        while len(jobs) < 3:
            assert time.monotonic() < end, (tmp_path / "batch.log").read_text()
            time.sleep(0.1)
            with open_job_queue(settings) as queue:
                jobs = queue.list()
        begun = sorted(job.created_ms for job in jobs)
        assert {job.status for job in jobs} == {"queued"}
        assert begun[2] - begun[0] >= 1900
        os.kill(int(process.pid or 0), signal.SIGTERM)
        process.join(30)
        said = (tmp_path / "batch.log").read_text()
        assert process.exitcode == 64, said
        assert "Give the same command again" in said
        assert "no worker runs" in said
        assert "waits, and asks again" in said
    finally:
        process.kill()
        process.join(10)


def test_a_slide_that_fails_is_named_and_decides_the_exit_code(
    smear: Smear, archive: Proxy, tmp_path: Path
) -> None:
    config = config_of(smear, archive, tmp_path)
    archive.faults += [Fault(r"/metadata", "GET", body=b"[]")]
    worker = start_marrow_node("--config", config, "work", said=tmp_path / "worker.log")
    try:
        ended = marrow_node("--config", config, "batch", "--json", "AccessionNumber=COPY-2")
    finally:
        worker.terminate()
        worker.join(30)
    told = json.loads(ended.stdout)
    assert told["jobs"] == {"failed": 1}
    (failed,) = told["failed"]
    assert ended.returncode == 21, failed


def test_a_slide_that_the_archive_never_has_time_for_keeps_no_other_back(
    smear: Smear, archive: Proxy, tmp_path: Path
) -> None:
    """Nor does a study; both are asked about again when the same command is given again."""
    config = config_of(smear, archive, tmp_path, '[[rules]]\nname = "all"\n')
    with pacs_module.open_pacs(archive.url, pacs_module.PacsSettings()) as pacs:
        some = Search("studies", {"StudyDate": "20200101-20201231"})
        first, second, third = pacs.search_slide_studies(some)
    archive.faults += [
        Fault(rf"/studies/{first}/series(\?|$)", "GET", status=503),
        Fault(rf"/studies/{second}/series/[^/]+/metadata", "GET", status=503),
    ]
    worker = start_marrow_node("--config", config, "work", said=tmp_path / "worker.log")
    try:
        ended = marrow_node("--config", config, "batch", "--json", OF_2020)
        told = json.loads(ended.stdout)
        assert (told["queued"], told["not_readable"], ended.returncode) == (1, 2, 1), ended.stderr
        with open_job_queue(load_settings(Path(config))) as queue:
            assert [job.study_uid for job in queue.list()] == [third]
        archive.faults.clear()
        again = marrow_node("--config", config, "batch", "--json", OF_2020)
        told = json.loads(again.stdout)
        assert (told["queued"], told["not_readable"], again.returncode) == (3, 0, 0), again.stderr
    finally:
        worker.terminate()
        worker.join(30)


@pytest.mark.parametrize("query", ["StudyDate", "StudyDate=yesterday", "Modality=SM", "limit=3"])
def test_a_query_that_cannot_be_searched_for_is_refused(query: str, tmp_path: Path) -> None:
    ended = marrow_node("--work", str(tmp_path / "work"), "batch", query)
    assert ended.returncode == 26
    assert not (tmp_path / "work").exists()
