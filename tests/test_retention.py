"""What the work folder forgets, and what it must not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.misc import is_dicom

from dicom_io.errors import JobNotFound
from node.config import Settings, load_settings
from node.job_database import prepare_database
from node.job_queue import open_job_queue
from node.retention import DAY_S, purge
from node.revisions import keep_first, keep_next, revisions
from node.work_files import WorkFiles, open_work_files
from tests.smears import Smear, small_smear
from tests.test_job_table import arguments, changed


@pytest.fixture
def analysed(tmp_path: Path) -> tuple[Smear, dict[str, Any]]:
    smear = small_smear(tmp_path)
    code, result, said = smear.analyse()
    assert code == 0, said
    return smear, result


def make_old(smear: Smear, days: float) -> None:
    """Let all files of the work folder look as if nobody had touched them since."""
    at = time.time() - days * DAY_S
    for path in smear.work.rglob("*"):
        if path.is_file() and path.name != "jobs.sqlite":
            os.utime(path, (at, at))


def files_of(smear: Smear) -> set[str]:
    return {path.name for path in (smear.work / "files").glob("??/*")}


def purged(smear: Smear, days: float, dry_run: bool = False) -> Any:
    settings = load_settings(smear.settings())
    with open_job_queue(settings) as queue:
        return purge(settings, queue, days, dry_run=dry_run)


def test_what_is_young_stays(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, _ = analysed
    before = files_of(smear)
    make_old(smear, 5)
    said = purged(smear, 6)
    assert (said.results, said.files, said.jobs) == (0, 0, 0)
    assert files_of(smear) == before


def test_what_is_old_goes_and_can_be_made_again(
    analysed: tuple[Smear, dict[str, Any]],
) -> None:
    smear, first = analysed
    make_old(smear, 5)
    would = purged(smear, 4, dry_run=True)
    assert files_of(smear)
    said = purged(smear, 4)
    assert said == would
    assert said.results == 1
    assert said.bytes_freed > 100_000
    assert files_of(smear) == set()
    assert not list((smear.work / "progress").iterdir())
    code, again, told = smear.analyse()
    assert code == 0, told
    assert again["ann"] == first["ann"]
    told = {(each["target"], each["status"]) for each in again["receipts"]}
    assert ("PACS", "stored") not in told  # the archive has the objects, and keeps the first
    assert len(list((smear.folder / "ehr").rglob("DiagnosticReport*"))) == 1


@pytest.fixture
def every_output(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PDF", "CAPTURES", "PARAMETRIC_MAP"):
        monkeypatch.setenv(f"MARROW_NODE__OUTPUT__{name}", "true")


def made_again(smear: Smear) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of a result, and those of another run after the first ones were purged."""
    folder = smear.folder / "out"
    code, first, told = smear.analyse("--out", str(folder / "first"))
    assert code == 0, told
    purged(smear, 0)
    assert files_of(smear) == set()
    code, again, told = smear.analyse("--out", str(folder / "again"))
    assert code == 0, told
    assert {each["status"] for each in first["receipts"] if each["target"] == "PACS"} == {"stored"}
    assert {each["status"] for each in again["receipts"]} == {"already there"}
    one, other = (
        {path.name: path.read_bytes() for path in (folder / name).iterdir()}
        for name in ("first", "again")
    )
    return one, other


@pytest.mark.usefixtures("every_output")
def test_a_result_made_again_is_the_first_byte_for_byte(tmp_path: Path) -> None:
    """Also what holds a time: the PDF, the reports, the message."""
    first, again = made_again(small_smear(tmp_path))
    assert len(first) == 12
    assert [name for name, content in first.items() if again[name] != content] == []


@pytest.mark.usefixtures("every_output")
def test_another_nodes_result_is_the_one_that_counts(tmp_path: Path) -> None:
    """Two nodes were at it at the same time: the slower one's documents become the quicker one's.

    The archive has the documents of one, the work files of the other say another time.
    """
    smear = small_smear(tmp_path)
    folder = tmp_path / "archives"
    shutil.copytree(tmp_path / "pacs", folder / "slower")
    quicker = {"pacs_url": smear.pacs_url}
    code, first, told = smear.analyse("--out", str(tmp_path / "quicker"), **quicker)
    assert code == 0, told
    shutil.move(smear.work, tmp_path / "work of the quicker")
    code, _, told = smear.analyse(pacs_url=(folder / "slower").as_uri())
    assert code == 0, told
    code, again, told = smear.analyse("--out", str(tmp_path / "slower"), **quicker)
    assert code == 0, told
    assert again["sr"] == first["sr"]
    assert {each["status"] for each in again["receipts"] if each["target"] == "PACS"} == {
        "already there"
    }
    for path in (tmp_path / "quicker").iterdir():
        assert (tmp_path / "slower" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("every_output")
def test_the_ehr_is_not_told_of_cells_that_the_archive_does_not_have(tmp_path: Path) -> None:
    """Some hardware counts a little differently each time."""
    smear = small_smear(tmp_path)
    assert smear.analyse()[0] == 0
    (stored,) = (
        path
        for path in (tmp_path / "pacs").rglob("*")
        if path.is_file() and is_dicom(path) and dcmread(path).Modality == "ANN"
    )
    annotation = dcmread(stored)
    points = bytearray(annotation.AnnotationGroupSequence[0].PointCoordinatesData)
    points[0] ^= 1
    annotation.AnnotationGroupSequence[0].PointCoordinatesData = bytes(points)
    annotation.save_as(stored)
    purged(smear, 0)
    shutil.rmtree(tmp_path / "ehr")
    (tmp_path / "ehr").mkdir()
    code, _, told = smear.analyse()
    assert code == 38, told
    assert not list((tmp_path / "ehr").rglob("DiagnosticReport*"))


def test_a_results_files_stay_as_long_as_the_result(
    analysed: tuple[Smear, dict[str, Any]],
) -> None:
    """A file that no result names, such as one of a job that failed, goes."""
    smear, result = analysed
    left = WorkFiles(smear.work / "files").put(b"left behind")
    make_old(smear, 5)
    (named,) = (smear.work / "results").glob("*.json")
    os.utime(named)
    said = purged(smear, 4)
    assert said.results == 0
    assert said.files == 1
    assert left not in files_of(smear)
    assert {Path(path).name for path in result["files"].values()} <= files_of(smear)


def test_a_reviewed_result_is_kept(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, result = analysed
    done = subprocess.run(
        [
            *(sys.executable, "-m", "node", "--config", str(smear.settings())),
            *("review", result["job"], "--confirm", "--revision", "1"),
            *("--by", "Lee^Anna", "--organization", "Hospital"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    make_old(smear, 5)
    before = sorted((smear.work / "results").iterdir())
    assert len(before) == 2
    assert purged(smear, 4).results == 0
    assert sorted((smear.work / "results").iterdir()) == before
    assert {Path(path).name for path in result["files"].values()} <= files_of(smear)


def test_old_jobs_are_forgotten(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, _ = analysed
    said = purged(smear, 0)
    assert said.jobs == 1
    settings = load_settings(smear.settings())
    with open_job_queue(settings) as queue:
        assert queue.list() == []


def test_a_job_that_was_tried_again_keeps_its_first_tries(tmp_path: Path) -> None:
    """A job is looked for from its first try on."""
    settings = replace(Settings(), work_folder=tmp_path)
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        tried_again, ended = f"{1:016x}", f"{2:016x}"
        for number in range(1, 10):
            queue.enqueue(f"{tried_again}-{number}", arguments(1))
        queue.enqueue(f"{ended}-1", arguments(2))
        queue.enqueue(f"{ended}-2", arguments(2))
        for each in [f"{tried_again}-{number}" for number in range(1, 9)] + [
            f"{ended}-1",
            f"{ended}-2",
        ]:
            changed(queue, each, status="ERROR", completed_at="1000")
        assert purge(settings, queue, 1).jobs == 2
        assert queue.get(tried_again).tries == 9
        with pytest.raises(JobNotFound):
            queue.get(ended)
        changed(queue, f"{tried_again}-9", status="ERROR", completed_at="1000")
        assert purge(settings, queue, 1).jobs == 9


@pytest.mark.parametrize("analysis", ["ENQUEUED", "SUCCESS"])
def test_a_slide_that_came_long_ago_keeps_the_first_tries_of_its_job(
    tmp_path: Path, analysis: str
) -> None:
    """Its last arrival is old, the analysis that followed it waits or has just ended."""
    settings = replace(Settings(), work_folder=tmp_path)
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        job = f"{1:016x}"
        for number in (1, 2):
            queue.enqueue(f"{job}-{number}", arguments(1), await_arrival=True)
            changed(queue, f"{job}-{number}.arrival", status="ERROR", completed_at="1000")
        queue.enqueue(f"{job}-2", arguments(1))
        changed(queue, f"{job}-2.arrival", status="SUCCESS")
        changed(queue, f"{job}-2", status=analysis)
        if analysis == "SUCCESS":
            changed(queue, f"{job}-2", completed_at=str(int(time.time() * 1000)))
        assert purge(settings, queue, 1).jobs == 0
        assert queue.get(job).tries == 2
        changed(queue, f"{job}-2", status="SUCCESS", completed_at="1000")
        assert purge(settings, queue, 1).jobs == 3


def test_the_command_tells_what_would_go(analysed: tuple[Smear, dict[str, Any]]) -> None:
    smear, _ = analysed
    make_old(smear, 100)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "node", "--config", str(smear.settings())),
            *("purge", "--days", "90", "--dry-run", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout)["results"] == 1
    assert files_of(smear)


def test_what_another_host_has_reviewed_stays(tmp_path: Path) -> None:
    """Here there is the first revision alone; the review's lies in the storage that hosts share."""
    shared = tmp_path / "shared"
    shared.mkdir()
    settings = replace(Settings(), work_folder=tmp_path / "work", shared_storage=shared.as_uri())
    digest = open_work_files(settings).put(b"of the review")
    identity = "0" * 64
    keep_first(settings, identity, {"revision": 1})
    there = replace(settings, work_folder=tmp_path / "other host")
    keep_next(there, identity, {"revision": 2, "artifacts": {"SR": {"sha256": digest}}})
    prepare_database(settings)
    at = time.time() - 5 * DAY_S
    for path in (tmp_path / "work").rglob("*.json"):
        os.utime(path, (at, at))
    with open_job_queue(settings) as queue:
        said = purge(settings, queue, 4)
    assert said.results == 0
    for each in (settings, there):
        assert [known["revision"] for known in revisions(each, identity)] == [1, 2]
