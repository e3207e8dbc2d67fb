"""Where jobs go that are submitted by a request, without a service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from node.config import ModelSettings, Settings
from node.job import CALL_BACK
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.jobs import open_worker
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
