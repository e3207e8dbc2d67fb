"""Jobs of a worker that died, where they cannot be queued anew at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dicom_io.errors import DiskFull
from node.config import Settings
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.recovery import executor, recover_dead
from node.work_lock import take_worker
from tests.test_job_table import arguments, changed

JOB = f"{1:016x}-1"


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobQueue]:
    """One job, which a worker has taken."""
    settings = replace(Settings(), work_folder=tmp_path)
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        queue.enqueue(JOB, arguments(1))
        yield queue


def taken_by(jobs: JobQueue, who: str) -> None:
    changed(jobs, JOB, status="PENDING", executor_id=who)


def test_what_could_not_be_queued_is_queued_later(jobs: JobQueue, tmp_path: Path) -> None:
    name, lock = take_worker(tmp_path)
    taken_by(jobs, executor(name, "earlier"))
    asked: list[list[str]] = []

    def recover(executors: list[str]) -> None:
        asked.append(executors)
        if len(asked) > 1:  # the first time nothing could be written
            changed(jobs, JOB, status="ENQUEUED")

    look = partial(recover_dead, jobs, recover, tmp_path, executor(name, "now"))
    with lock:
        with pytest.raises(DiskFull, match="free space"):
            look()
        look()
        look()
    assert asked == [["worker-0.earlier"]] * 2


@pytest.mark.parametrize("who", ["worker-0.now", "worker-1.now"])
def test_the_jobs_of_the_living_are_theirs(jobs: JobQueue, tmp_path: Path, who: str) -> None:
    (name, lock), (_, other) = take_worker(tmp_path), take_worker(tmp_path)
    taken_by(jobs, who)
    with lock, other:
        own = executor(name, "now")
        recover_dead(jobs, lambda dead: pytest.fail(str(dead)), tmp_path, own)


@pytest.mark.parametrize("who", ["worker-0", "worker-1.then", "worker-1"])
def test_the_jobs_of_the_dead_are_found(jobs: JobQueue, tmp_path: Path, who: str) -> None:
    """Those of a version that did not tell one start of a worker from another, too."""
    name, lock = take_worker(tmp_path)
    _, other = take_worker(tmp_path)
    other.close()
    taken_by(jobs, who)
    found: list[str] = []

    def recover(executors: list[str]) -> None:
        found.extend(executors)
        changed(jobs, JOB, status="ENQUEUED")

    with lock:
        recover_dead(jobs, recover, tmp_path, executor(name, "now"))
    assert found == [who]
