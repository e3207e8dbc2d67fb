"""Where jobs go that are submitted by a request, without a service."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from node.config import ModelSettings, Settings
from node.job import CALL_BACK
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.jobs import open_worker
from node.pipeline import SlideReference
from node.receive import _submitted
from node.searches import Searches
from node.turns import BAND
from node.web.submission import Submissions
from node.workplace import Workplace
from tests.tiny_package import tiny_package

SLIDE = SlideReference("1.2.3", "1.2.3.4", "a rule")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    package = tiny_package(tmp_path / "packages" / "tiny")
    model = replace(ModelSettings(), name=package.name, folders=(package.parent,))
    return replace(Settings(), work_folder=tmp_path / "work", model=model)


@pytest.fixture
def queue(settings: Settings) -> Iterator[JobQueue]:
    prepare_database(settings)
    with open_job_queue(settings) as opened:
        yield opened


def test_another_model_goes_where_the_first_one_went(settings: Settings, queue: JobQueue) -> None:
    """Not to the node's own archive and EHR: a rule had sent that slide's results elsewhere."""
    elsewhere = replace(
        settings,
        pacs_url="file:///received",
        results_url="https://b.example/dicom-web",
        ehr_url="https://b.example/fhir",
    )
    place = Workplace.open(elsewhere, lambda progress: None)
    first = queue.submit(SLIDE, place, "urgent", site="B")
    again = Submissions(settings, queue, Searches(queue._database)).rerun(first, "demo-smear")
    assert again.job != first.job
    assert again.model == "demo-smear"
    at = queue.settings_of(again.job)
    assert (at.pacs_url, at.results_url, at.ehr_url) == (
        elsewhere.pacs_url,
        elsewhere.results_url,
        elsewhere.ehr_url,
    )
    assert queue.site_of(again.job) == "B"


def test_a_completed_job_runs_again_with_its_own_model(settings: Settings, queue: JobQueue) -> None:
    """For an archive that has lost its results; with another model nothing runs twice."""
    place = Workplace.open(settings, lambda progress: None)
    submissions = Submissions(settings, queue, Searches(queue._database))
    first = queue.submit(SLIDE, place, "urgent")
    other = submissions.rerun(first, "demo-smear")
    assert queue._database.table is not None
    with queue._database.table._engine.begin() as connection:
        connection.execute(text("UPDATE workflow_status SET status = 'SUCCESS'"))
    again = submissions.rerun(queue.get(first.job), settings.model.name)
    assert (again.job, again.tries, again.status) == (first.job, 2, "queued")
    assert submissions.rerun(first, "demo-smear").tries == other.tries == 1


def test_a_job_that_is_joined_goes_by_the_better_priority(
    settings: Settings, queue: JobQueue
) -> None:
    """While it waits, and when it is tried again."""
    place = Workplace.open(settings, lambda progress: None)
    first, second, third = (replace(SLIDE, series_uid=f"1.2.3.{number}") for number in range(3))
    jobs = {slide: queue.submit(slide, place, "batch").job for slide in (first, second)}
    jobs[third] = queue.submit(third, place, "routine").job
    assert _order(queue) == [jobs[third], jobs[first], jobs[second]]
    assert queue.submit(second, place, "urgent").priority == "urgent"
    assert _order(queue) == [jobs[second], jobs[third], jobs[first]]
    assert queue.submit(second, place, "batch").priority == "urgent", "none is put back"
    queue.cancel(jobs[second])
    queue.retry(jobs[second])
    assert queue.get(jobs[second]).priority == "urgent"
    assert _order(queue) == [jobs[second], jobs[third], jobs[first]]
    assert queue.submit(first, place).priority == "urgent", "a command, for which somebody waits"


def _order(queue: JobQueue) -> list[str]:
    """In which jobs are taken."""
    assert queue._database.table is not None
    query = "SELECT workflow_uuid FROM workflow_status WHERE status = 'ENQUEUED' ORDER BY priority"
    with queue._database.table._engine.connect() as connection:
        return [each.partition("-")[0] for each in connection.execute(text(query)).scalars()]


def test_a_slide_that_is_still_coming_in_is_analysed_by_the_better_priority(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, joined = threading.Event(), threading.Event()

    def whole(*_: object) -> dict[str, str]:
        looks.set()
        assert joined.wait(30)
        return {"arrival": "whole"}

    monkeypatch.setattr("node.jobs.await_whole", whole)
    place = Workplace.open(settings, lambda progress: None)
    with open_worker(settings) as worker:
        queue = worker.jobs
        queue.pause()
        job = queue.submit(SLIDE, place, "batch", await_arrival=True)
        assert looks.wait(30)
        queue.submit(SLIDE, place, "urgent", await_arrival=True)
        joined.set()
        end = time.monotonic() + 30
        while (seen := queue.get(job.job)).status == "waiting":
            assert time.monotonic() < end
            time.sleep(0.1)
        (waits,) = queue._workflows.listed(workflow_ids=[f"{job.job}-1"])
    assert (seen.status, seen.priority) == ("queued", "urgent")
    assert (waits.priority or 0) < BAND, "the first band"


def test_what_was_received_is_tried_again(settings: Settings, queue: JobQueue) -> None:
    """Only what somebody waits for has no priority, and one try."""
    place = Workplace.open(settings, lambda progress: None)
    assert queue.get(_submitted(queue, place, SLIDE)).priority == "routine"


def test_who_waits_for_a_job_is_told_of_a_defect(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an error that nobody foresaw, its kind: what it says may be about the patient."""

    def fails(*_: object) -> None:
        raise LookupError("Doe^Jane")

    monkeypatch.setattr("node.jobs.await_whole", fails)
    place = Workplace.open(settings, lambda progress: None)
    with open_worker(settings) as worker:
        queue = worker.jobs
        queue.submit(SLIDE, place, "routine", "http://localhost:1/", await_arrival=True)
        end = time.monotonic() + 30
        while not (calls := queue._workflows.listed(name=CALL_BACK)):
            assert time.monotonic() < end
            time.sleep(0.1)
    (call,) = calls[0].input["args"]
    assert call["told"]["status"] == "failed"
    assert "LookupError" in call["told"]["error"]
    assert "Doe" not in str(call)
