"""A backup under load, restored on an empty machine: nothing lost, nothing twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from dicom_io.errors import ConfigurationInvalid, DiskFull
from node.backup import _files, back_up, restore_from
from node.config import Settings, load_settings
from node.job import ENDED
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.pipeline import SlideReference
from node.seen_slides import SeenSlides
from node.worklist_database import worklist_database
from node.workplace import Workplace
from tests.copied_slides import copied_slides
from tests.forked import marrow_node, start_marrow_node
from tests.postgresql import running_postgresql, running_server
from tests.servers import Orthanc
from tests.smears import Smear, small_smear

SLIDES = 3


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("backup"))


def config_of(smear: Smear, orthanc: Orthanc, folder: Path, work: Path, database: str) -> Path:
    text = smear.settings(
        work_folder=str(work),
        pacs_url=orthanc.dicomweb_url,
        ehr_url=(folder / "ehr").as_uri(),
        database_url=database,
    ).read_text()
    config = folder / f"{work.name}.toml"
    config.write_text(f"{text}[jobs]\nretries = 3\nretry_wait_s = 0.1\nlease_s = 3.0\n")
    return config


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """URLs of the databases of the old node and of the new one."""
    if request.param == "sqlite":
        yield "", ""
        return
    with running_server() as first, running_server() as second:
        yield first.ask_for("firstword"), second.ask_for("second")


def test_under_load_and_on_to_an_empty_machine(
    smear: Smear, orthanc: Orthanc, databases: tuple[str, str], tmp_path: Path
) -> None:
    slides = [
        SlideReference(*uids, "test")
        for uids in stored_copies(smear, orthanc, tmp_path / "copies", SLIDES)
    ]
    old = config_of(smear, orthanc, tmp_path, tmp_path / "old", databases[0])
    settings = load_settings(old)
    prepare_database(settings)
    place = Workplace.open(settings, lambda progress: None)
    worker = start_marrow_node("--config", str(old), "work", said=tmp_path / "old.log")
    stopped = threading.Event()
    with open_job_queue(settings) as queue:
        jobs = [queue.submit(slide, place, "routine").job for slide in slides]
        load = threading.Thread(target=submitting, args=(queue, place, stopped))
        load.start()
        try:
            wait_for(lambda: completed(queue, jobs) >= 1)
            wait_for(lambda: (queue.get(jobs[1]).progress or place) is not place)
            ended = marrow_node("--config", str(old), "backup", str(tmp_path / "node.tar"))
            assert ended.returncode == 0, ended.stderr
            delivered = [job for job in jobs if queue.get(job).status == "completed"]
        finally:
            stopped.set()
            load.join()
            os.kill(int(worker.pid or 0), signal.SIGKILL)
            worker.join()
    new = config_of(smear, orthanc, tmp_path, tmp_path / "new", databases[1])
    restored = load_settings(new)
    ended = marrow_node("--config", str(new), "restore", str(tmp_path / "node.tar"))
    assert ended.returncode == 0, ended.stderr
    with open_job_queue(restored) as queue:
        seen = {job.job: job for job in queue.list()}
        assert set(jobs) <= set(seen)
        known = [job for job in jobs if seen[job].status == "completed"]
        assert 1 <= len(known) <= len(delivered)
        pending = [job for job in jobs if seen[job].status in ("queued", "running")]
        assert len(known) + len(pending) == SLIDES
        assert pending, "some had not ended when the backup was taken"
        worker = start_marrow_node("--config", str(new), "work", said=tmp_path / "new.log")
        try:
            wait_for(lambda: all(queue.get(job).status in ENDED for job in jobs))
            ends = [queue.get(job) for job in jobs]
        finally:
            worker.terminate()
            worker.join(60)
    assert [job.status for job in ends] == ["completed"] * SLIDES, (
        tmp_path / "new.log"
    ).read_text()
    assert counted(orthanc) == {"ANN": SLIDES, "SEG": SLIDES, "SR": SLIDES, "SM": SLIDES}
    shown = marrow_node("--config", str(new), "show", "--json", known[0])
    assert '"status": "completed"' in shown.stdout
    again = marrow_node("--config", str(new), "restore", str(tmp_path / "node.tar"))
    assert again.returncode == 26, "nothing is overwritten"


def stored_copies(
    smear: Smear, orthanc: Orthanc, folder: Path, number: int
) -> list[tuple[str, str]]:
    from pydicom import dcmread

    uids = []
    for paths in copied_slides(smear.slide.paths, folder, ["20260101"] * number):
        orthanc.add(*paths)
        header = dcmread(paths[0], stop_before_pixels=True)
        uids.append((str(header.StudyInstanceUID), str(header.SeriesInstanceUID)))
    return uids


def submitting(queue: JobQueue, place: Workplace, stopped: threading.Event) -> None:
    """Submit slides that are not there, as fast as the database takes them."""
    number = 0
    while not stopped.wait(0.05):
        number += 1
        queue.submit(SlideReference("1.2", f"1.2.{number}", "load"), place, "batch")


def completed(queue: JobQueue, jobs: list[str]) -> int:
    return sum(queue.get(job).status == "completed" for job in jobs)


def counted(orthanc: Orthanc) -> Counter[str]:
    found: Counter[str] = Counter()
    for series in requests.get(f"{orthanc.rest_url}/series?expand", timeout=30).json():
        modality = series["MainDicomTags"]["Modality"]
        found[modality] += 1 if modality == "SM" else len(series["Instances"])
    return found


def wait_for(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


# What cannot be backed up or restored


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a node that knows something."""
    settings = replace(Settings(), work_folder=tmp_path / "work")
    prepare_database(settings)
    with closing(worklist_database(settings)) as database:
        SeenSlides(database, "here").add("1.2", "1.2.3", "analysed")
    (settings.work_folder / "workers").mkdir()
    (settings.work_folder / "workers" / "worker-3.lock").touch()
    (settings.work_folder / "files" / "ab").mkdir(parents=True)
    (settings.work_folder / "metrics").mkdir()
    (settings.work_folder / "metrics" / "counter.db").touch()
    (settings.work_folder / "tensorrt" / "worker-0").mkdir(parents=True)
    (settings.work_folder / "tensorrt" / "worker-0" / "a.engine").touch()
    return settings


def elsewhere(settings: Settings) -> Settings:
    return replace(settings, work_folder=settings.work_folder.parent / "new")


def test_what_was_seen_and_which_workers_there_were_is_restored(
    settings: Settings, tmp_path: Path
) -> None:
    made = back_up(settings, tmp_path / "node.tar")
    new = elsewhere(settings)
    assert restore_from(new, tmp_path / "node.tar") == made
    with closing(worklist_database(new)) as database:
        assert ("1.2", "1.2.3") in SeenSlides(database, "here")
    # Their unfinished jobs are found by the locks that nobody holds.
    assert (new.work_folder / "workers" / "worker-3.lock").exists()
    assert not (new.work_folder / "metrics").exists()
    assert not (new.work_folder / "tensorrt").exists(), "engines are of the old host's GPU"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "node.tar", "work"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_part_of_a_backup_is_refused(settings: Settings, tmp_path: Path, share: float) -> None:
    file = tmp_path / "node.tar"
    back_up(settings, file)
    content = file.read_bytes().rstrip(b"\0")
    file.write_bytes(content[: int(len(content) * share)])
    new = elsewhere(settings)
    with pytest.raises(ConfigurationInvalid, match="not a whole backup"):
        restore_from(new, file)
    assert not list(new.work_folder.iterdir()), "nothing half is left"


def test_a_damaged_work_file_is_named(settings: Settings, tmp_path: Path) -> None:
    (settings.work_folder / "files" / "ab" / ("ab" * 32)).write_bytes(b"other content")
    back_up(settings, tmp_path / "node.tar")
    with pytest.raises(ConfigurationInvalid, match="abab"):
        restore_from(elsewhere(settings), tmp_path / "node.tar")


def test_a_damaged_database_is_named(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "node.tar"
    back_up(settings, file)
    with tarfile.open(file) as archive:
        at = archive.getmember("jobs.sqlite").offset_data
    content = bytearray(file.read_bytes())
    content[at + 100 : at + 4000] = bytes(3900)
    file.write_bytes(content)
    with pytest.raises(ConfigurationInvalid, match=r"jobs\.sqlite"):
        restore_from(elsewhere(settings), file)


def test_nothing_is_overwritten(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, tmp_path / "node.tar")
    with pytest.raises(ConfigurationInvalid, match="not empty"):
        restore_from(settings, tmp_path / "node.tar")


def test_another_kind_of_database_is_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(settings, tmp_path / "node.tar")
    with running_postgresql() as url:
        new = replace(elsewhere(settings), database_url=url)
        with pytest.raises(ConfigurationInvalid, match="sqlite database"):
            restore_from(new, tmp_path / "node.tar")


def test_a_node_that_never_worked_and_a_place_that_is_not_there(
    settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationInvalid, match="No job"):
        back_up(elsewhere(settings), tmp_path / "node.tar")
    with pytest.raises(DiskFull, match="nowhere"):
        back_up(settings, tmp_path / "nowhere" / "node.tar")


def test_a_copy_is_whole_while_others_write(settings: Settings, tmp_path: Path) -> None:
    """Rows that are written two by two are there two by two, in every copy."""
    file = settings.work_folder / "jobs.sqlite"
    stopped = threading.Event()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE pairs (number INTEGER)")

    def write() -> None:
        with closing(sqlite3.connect(file, timeout=30)) as database:
            number = 0
            while not stopped.is_set():
                with database:
                    database.executemany("INSERT INTO pairs VALUES (?)", [(number,), (number,)])
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    counts = []
    try:
        for number in range(5):
            back_up(settings, tmp_path / f"{number}.tar")
            new = replace(settings, work_folder=tmp_path / f"new-{number}")
            restore_from(new, tmp_path / f"{number}.tar")
            with closing(sqlite3.connect(new.work_folder / "jobs.sqlite")) as database:
                rows = Counter(row for (row,) in database.execute("SELECT number FROM pairs"))
            assert set(rows.values()) <= {2}
            counts.append(len(rows))
    finally:
        stopped.set()
        writer.join()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_results_are_copied_before_the_files_that_they_name(tmp_path: Path) -> None:
    """What is written meanwhile is then whole: its files were there before it."""
    for name in ("files/ab/abc", "progress/1", "results/0.json", "audit/fhir/1.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [name for _, name in _files(tmp_path, ())]
    assert names[0] == "results/0.json"
    assert len(names) == 4
