"""Where jobs go that are submitted by a request, without a service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.config import ModelSettings, Settings
from node.job_database import prepare_database
from node.job_queue import ARRIVALS, JobQueue, open_job_queue
from node.jobs import _try
from node.pipeline import SlideReference
from node.receive import _submitted
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
    again = Submissions(settings, queue).rerun(first, "demo-smear")
    assert again.job != first.job
    assert again.model == "demo-smear"
    at = queue.settings_of(again.job)
    assert (at.pacs_url, at.results_url, at.ehr_url) == (
        elsewhere.pacs_url,
        elsewhere.results_url,
        elsewhere.ehr_url,
    )
    assert queue.site_of(again.job) == "B"


def test_what_was_received_is_tried_again(settings: Settings, queue: JobQueue) -> None:
    """Only what somebody waits for has no priority, and one try."""
    place = Workplace.open(settings, lambda progress: None)
    assert queue.get(_submitted(queue, place, SLIDE)).priority == "routine"


def test_who_is_not_there_to_be_told_keeps_no_slide_waiting(queue: JobQueue) -> None:
    queue.call_back("0-1", "http://localhost:1/", {})
    client = queue._open_client()
    (told,) = client.list_workflows(workflow_ids=["0-1.callback"])
    assert told.queue_name not in (None, ARRIVALS)


def test_who_waits_for_a_job_is_told_that_it_was_cancelled(
    settings: Settings, queue: JobQueue
) -> None:
    place = Workplace.open(settings, lambda progress: None)
    for number, arrives in enumerate((False, True)):
        slide = replace(SLIDE, series_uid=f"1.2.3.{number}")
        url = "http://localhost:1/"
        job = queue.submit(slide, place, "routine", url, await_arrival=arrives)
        queue.cancel(job.job)
        (told,) = queue._open_client().list_workflows(workflow_ids=[f"{job.job}-1.callback"])
        (arguments,) = told.input["args"]
        assert arguments["url"] == url
        assert arguments["told"]["status"] == "cancelled"
        assert arguments["told"]["series_uid"] == slide.series_uid


def test_who_waits_for_a_job_is_told_of_a_defect(
    settings: Settings, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an error that nobody foresaw, its kind: what it says may be about the patient."""
    monkeypatch.setattr("node.jobs.DBOS", SimpleNamespace(workflow_id="0-1"))
    steps: Any = SimpleNamespace(step=lambda name, queued: queued())
    arguments = {"study_uid": "1.2.3", "series_uid": "1.2.3.4", "callback": "http://localhost:1/"}
    with pytest.raises(LookupError), _try(settings, queue, steps, arguments):
        raise LookupError("Doe^Jane")
    (told,) = queue._open_client().list_workflows(workflow_ids=["0-1.callback"])
    (queued,) = told.input["args"]
    assert queued["told"]["status"] == "failed"
    assert "LookupError" in queued["told"]["error"]
    assert "Doe" not in str(queued)
