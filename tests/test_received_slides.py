"""Slides that came by C-STORE go some time after their results were delivered, and not before."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from dicom_io.arrival import read_arrival
from dicom_io.receiver import _published_by_nobody_else, instance_path, remove_slide
from node.arrivals import Arrivals
from node.config import Settings, load_settings
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.receive import received_settings
from node.retention import DAY_S, Purged, purge
from tests.forked import marrow_node
from tests.smears import Smear, small_smear
from tests.test_job_table import changed

Receiving = Callable[..., "Received"]


class Received:
    """The folder of a receiver with one slide, and the jobs of a node that reads from it."""

    def __init__(self, smear: Smear, settings: Settings, queue: JobQueue) -> None:
        self.smear, self.settings, self.queue = smear, settings, queue
        for path in (smear.folder / "pacs").rglob("*.dcm"):
            target = instance_path(settings.receive.archive, read_arrival(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    @property
    def images(self) -> list[Path]:
        return self._of("SM")

    @property
    def results(self) -> list[Path]:
        return [path for kind in ("ANN", "SEG", "SR") for path in self._of(kind)]

    def _of(self, modality: str) -> list[Path]:
        found = (self.settings.receive.archive / "studies").rglob("*")
        return [each for each in found if each.is_file() and dcmread(each).Modality == modality]

    def grow_old(self, days: float) -> None:
        """All that lies there came so long ago."""
        at = time.time() - days * DAY_S
        for path in self.settings.receive.archive.rglob("*"):
            if path.is_file():
                os.utime(path, (at, at))

    def job(self, number: int = 1, days: float = 5, status: str = "SUCCESS", **more: Any) -> str:
        """A job that was queued, and has ended, so long ago."""
        slide, name = self.smear.slide, f"{number:016x}"
        arguments = {
            "study_uid": slide.study_uid,
            "series_uid": slide.series_uid,
            "pacs_url": self.settings.receive.archive.as_uri(),
            "results_url": "",
            "ehr_url": "",
            "model": "tiny",
            "reason": "received by C-STORE",
            "priority": "routine",
        }
        self.queue.enqueue(f"{name}-1", arguments | more)
        at = str(int((time.time() - days * DAY_S) * 1000))
        times = {"created_at": at, "updated_at": at}
        if status in ("SUCCESS", "ERROR", "CANCELLED"):
            times["completed_at"] = at
        changed(self.queue, f"{name}-1", status=status, **times)
        return name

    def purged(self, days: float = 4, dry_run: bool = False) -> Purged:
        return purge(self.settings, self.queue, days, dry_run=dry_run)


@pytest.fixture
def received(tmp_path: Path) -> Iterator[Received]:
    smear = small_smear(tmp_path)
    settings = load_settings(smear.settings())
    settings = replace(settings, receive=replace(settings.receive, folder=tmp_path / "received"))
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        yield Received(smear, settings, queue)


def test_it_goes_with_its_job(received: Received) -> None:
    received.grow_old(6)
    received.job()
    size = sum(path.stat().st_size for path in received.images)
    would = received.purged(dry_run=True)
    assert received.images
    assert (would.slides, would.slide_bytes, would.slides_without_job) == (1, size, 0)
    assert received.purged() == would
    assert not list(received.settings.receive.archive.glob("studies/*"))
    assert received.purged().slides == 0


@pytest.mark.parametrize("status", ["ENQUEUED", "PENDING", "DELAYED", "ERROR", "CANCELLED",
                                    "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])  # fmt: skip
@pytest.mark.parametrize("beside", [False, True])
def test_it_stays_for_a_job_that_has_not_delivered(
    received: Received, status: str, beside: bool
) -> None:
    received.grow_old(6)
    received.job(1, status=status)
    if beside:
        received.job(2)
    assert received.purged().slides == 0
    assert received.images


def test_it_stays_while_the_job_ended_lately(received: Received) -> None:
    received.grow_old(6)
    received.job(days=3)
    assert received.purged().slides == 0
    assert received.images


def test_what_came_after_the_job_is_not_analysed(received: Received) -> None:
    received.grow_old(5)
    received.job(days=6)
    assert received.purged().slides == 0
    assert received.images


@pytest.mark.parametrize(
    "other",
    [{"pacs_url": "https://pacs.example/rs"}, {"reason": "review of 1: confirmed"}],
)
def test_a_job_that_read_something_else_has_not_analysed_it(
    received: Received, other: dict[str, str]
) -> None:
    received.grow_old(6)
    received.job(**other)
    assert received.purged().slides == 0
    assert received.images


def test_one_without_a_job_stays_and_is_told_of(received: Received, tmp_path: Path) -> None:
    received.grow_old(500)
    said = received.purged()
    assert (said.slides, said.slides_without_job) == (0, 1)
    assert received.images
    with (tmp_path / "node.toml").open("a") as config:
        config.write(f'[receive]\nfolder = "{tmp_path / "received"}"\n')
    ended = marrow_node("--config", str(tmp_path / "node.toml"), "purge", "--dry-run")
    assert "and 0 received slides (0.0 MB)" in ended.stdout
    assert f"kept 1 old received slides in {tmp_path / 'received' / 'archive'}" in ended.stdout
    ended = marrow_node("--config", str(tmp_path / "node.toml"), "purge", "--dry-run", "--json")
    assert json.loads(ended.stdout)["slides_without_job"] == 1


def test_the_folder_may_be_the_sites_archive(received: Received) -> None:
    received.grow_old(6)
    received.job()
    received.settings = replace(
        received.settings, pacs_url=received.settings.receive.archive.as_uri()
    )
    assert received.purged().slides == 0
    assert received.images


def test_results_in_the_same_folder_stay(tmp_path: Path, received: Received) -> None:
    smear, archive = received.smear, received.settings.receive.archive
    code, _, told = smear.analyse(pacs_url=archive.as_uri())
    assert code == 0, told
    before = received.results
    assert len(before) == 3
    received.grow_old(6)
    received.job()
    (analysed,) = (job for job in received.queue.list() if job.job != f"{1:016x}")
    at = str(int((time.time() - 5 * DAY_S) * 1000))
    changed(received.queue, f"{analysed.job}-1", created_at=at, updated_at=at, completed_at=at)
    assert received.purged().slides == 1
    assert received.results == before
    assert not received.images


def test_an_instance_that_comes_again_meanwhile_is_not_lost(received: Received) -> None:
    """It was published after the slides to go were chosen, before they went."""
    slide, folder = received.smear.slide, received.settings.receive.folder
    received.grow_old(6)
    newest = received.images[0]
    going = threading.Thread(
        target=remove_slide,
        args=(folder, slide.study_uid, slide.series_uid, time.time() - 4 * DAY_S),
    )
    before = len(received.images)
    with _published_by_nobody_else(folder):
        going.start()
        going.join(0.5)
        assert going.is_alive()  # it waits for the receiver
        os.utime(newest)
    going.join(10)
    assert len(received.images) == before


def test_a_purged_slide_that_comes_again_is_waited_for_as_a_whole(tmp_path: Path) -> None:
    smear = small_smear(tmp_path)
    clock = [0.0]
    arrivals = Arrivals(settle_s=1.0, quiet_s=100.0, clock=lambda: clock[0])
    instances = [read_arrival(path) for path in (tmp_path / "pacs").rglob("*.dcm")]
    assert len(instances) > 1

    def complete() -> list[str]:
        clock[0] += 10
        return [series_uid for (_, series_uid), _ in arrivals.complete(())]

    for each in instances:
        arrivals.arrived(each)
    assert complete() == [smear.slide.series_uid]
    arrivals.arrived(instances[0])
    assert complete() == []  # it only came again
    arrivals.began(smear.slide.study_uid, smear.slide.series_uid)
    for each in instances:
        arrivals.arrived(each)
    assert complete() == [smear.slide.series_uid]


def test_settings_of_jobs_are_not_those_of_the_site(received: Received) -> None:
    """The receiver's jobs read from its folder; the site's archive is still another."""
    site = replace(received.settings, pacs_url="https://pacs.example/rs")
    assert received_settings(site).pacs_url == site.receive.archive.as_uri()
    received.settings = site
    received.grow_old(6)
    received.job()
    assert received.purged().slides == 1
