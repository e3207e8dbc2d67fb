"""Whoever waits for a job is told of its end, however it ends, and once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, update

from node.config import ModelSettings, Settings
from node.job import CALL_BACK, CALLBACKS, Job
from node.job_database import prepare_database
from node.job_news import JobNews
from node.job_queue import JobQueue, open_job_queue
from node.job_table import _ROWS
from node.pipeline import SlideReference
from node.searches import Searches
from node.workplace import Workplace
from tests.postgresql import MISSING_POSTGRESQL, postgresql_missing, running_postgresql
from tests.tiny_package import tiny_package

FIRST, SECOND = "http://localhost:1/a", "http://localhost:1/b"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def settings(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("callbacks")
    package = tiny_package(folder / "packages" / "tiny")
    model = replace(ModelSettings(), name=package.name, folders=(package.parent,))
    settings = replace(Settings(), work_folder=folder / "work", model=model)
    if request.param == "sqlite":
        yield settings
        return
    if postgresql_missing():
        pytest.skip(MISSING_POSTGRESQL)
    with running_postgresql() as url:
        yield replace(settings, database_url=url)


@pytest.fixture(scope="module")
def queue(settings: Settings) -> Iterator[JobQueue]:
    prepare_database(settings)
    with open_job_queue(settings) as opened:
        yield opened


@pytest.fixture
def slide(request: pytest.FixtureRequest) -> SlideReference:
    number = "".join(str(ord(letter)) for letter in request.node.name[:20])
    return SlideReference("1.2.3", f"1.2.3.{number}"[:64], "a rule")


@pytest.fixture
def place(settings: Settings) -> Workplace:
    return Workplace.open(settings, lambda progress: None)


def submit(queue: JobQueue, slide: SlideReference, place: Workplace, url: str, **more: Any) -> Job:
    return queue.submit(slide, place, "routine", url, **more)


def told_of(queue: JobQueue) -> JobNews:
    return JobNews(queue._database)


def news(queue: JobQueue, job: Job) -> dict[tuple[str, str], str]:
    """By the try that a call is of and its address: what is told."""
    told_of(queue).tell_ended()
    told_of(queue).tell_ended()
    told: dict[tuple[str, str], str] = {}
    for workflow in queue._workflows.listed(name=CALL_BACK):
        assert workflow.queue_name == CALLBACKS, "a receiver that is down keeps no slide waiting"
        (call,) = workflow.input["args"]
        if call["told"]["job"] == job.job:
            try_id = workflow.workflow_id.partition(".")[0]
            told[try_id.removeprefix(f"{job.job}-"), call["url"]] = call["told"]["status"]
    return told


def becomes(queue: JobQueue, job: Job, number: int, state: str) -> None:
    moved(queue, f"{job.job}-{number}", state)


def moved(queue: JobQueue, workflow: str, state: str) -> None:
    """As DBOS would note it."""
    assert queue._database.table is not None
    this = _ROWS.c.workflow_uuid == workflow
    with queue._database.table._engine.begin() as connection:
        connection.execute(update(_ROWS).where(this).values(status=state))


@pytest.mark.parametrize("state", ["ENQUEUED", "PENDING"])
@pytest.mark.parametrize("arrives", [False, True])
def test_of_a_cancelled_job(
    queue: JobQueue, slide: SlideReference, place: Workplace, state: str, arrives: bool
) -> None:
    """Also of one that is at work, whose worker could not tell of it."""
    slide = replace(slide, series_uid=f"1.2.4.{len(state)}.{int(arrives)}")
    job = submit(queue, slide, place, FIRST, await_arrival=arrives)
    if not arrives:
        becomes(queue, job, 1, state)
    assert news(queue, job) == {}
    queue.cancel(job.job)
    assert news(queue, job) == {("1", FIRST): "cancelled"}


@pytest.mark.parametrize("state", ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_of_a_failed_job_and_again_of_a_try_by_hand(
    queue: JobQueue, slide: SlideReference, place: Workplace, state: str
) -> None:
    slide = replace(slide, series_uid=f"1.2.5.{len(state)}")
    job = submit(queue, slide, place, FIRST)
    assert submit(queue, slide, place, SECOND).job == job.job, "it joins the first one"
    becomes(queue, job, 1, state)
    first = {("1", FIRST): "failed", ("1", SECOND): "failed"}
    assert news(queue, job) == first
    queue.retry(job.job)
    assert news(queue, job) == first
    becomes(queue, job, 2, "SUCCESS")
    assert news(queue, job) == first | {
        ("2", FIRST): "completed",
        ("2", SECOND): "completed",
    }


def test_not_of_a_try_that_another_one_follows(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    job = submit(queue, slide, place, FIRST)
    (workflow,) = queue._workflows.tries(job.job)
    queue.enqueue(f"{job.job}-2", workflow.input["args"][0], delay_s=600.0)
    becomes(queue, job, 1, "ERROR")
    assert news(queue, job) == {}
    becomes(queue, job, 2, "SUCCESS")
    assert news(queue, job) == {("2", FIRST): "completed"}


def test_not_of_what_had_failed_before_somebody_asked(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    job = submit(queue, slide, place, "")
    becomes(queue, job, 1, "ERROR")
    assert submit(queue, slide, place, FIRST).tries == 2
    assert news(queue, job) == {}
    becomes(queue, job, 2, "SUCCESS")
    assert news(queue, job) == {("2", FIRST): "completed"}


def test_once_who_asks_again_or_at_the_same_time_or_late(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    def ask(number: int) -> Job:
        return submit(queue, slide, place, (FIRST, SECOND)[number % 2])

    with ThreadPoolExecutor(8) as pool:
        (job,) = {each.job: each for each in pool.map(ask, range(16))}.values()
    becomes(queue, job, 1, "SUCCESS")
    both = {("1", FIRST): "completed", ("1", SECOND): "completed"}
    assert news(queue, job) == both
    submit(queue, slide, place, f"{FIRST}/late")
    assert news(queue, job) == both | {("1", f"{FIRST}/late"): "completed"}
    submit(queue, slide, place, FIRST)
    assert news(queue, job) == both | {("1", f"{FIRST}/late"): "completed"}


def calls(queue: JobQueue, job: Job) -> list[str]:
    """Identifiers of those of a job, in their order."""
    found = queue._workflows.listed(name=CALL_BACK)
    return sorted(each.workflow_id for each in found if each.workflow_id.startswith(job.job))


def test_again_of_the_same_end_after_a_call_that_failed_for_good(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    """The receiver was away for longer than calls are tried; who asks twice is told once."""
    job = submit(queue, slide, place, FIRST)
    becomes(queue, job, 1, "SUCCESS")
    assert news(queue, job) == {("1", FIRST): "completed"}
    for state in ("ENQUEUED", "PENDING", "SUCCESS"):
        moved(queue, calls(queue, job)[-1], state)
        submit(queue, slide, place, FIRST)
        assert len(news(queue, job)) == len(calls(queue, job)) == 1
    for failed in (1, 2, 3):
        moved(queue, calls(queue, job)[-1], "ERROR")
        assert news(queue, job) == {("1", FIRST): "completed"}
        assert len(calls(queue, job)) == failed, "nobody has asked again"
        for _ in range(2):
            submit(queue, slide, place, FIRST)
            assert news(queue, job) == {("1", FIRST): "completed"}
        assert len(calls(queue, job)) == failed + 1


def test_of_a_job_that_an_older_node_has_queued(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    """It kept the address with the job."""
    job = submit(queue, slide, place, "")
    (workflow,) = queue._workflows.tries(job.job)
    older = workflow.input["args"][0] | {"callback": FIRST}
    queue.forget([workflow.workflow_id])
    queue.enqueue(f"{job.job}-1", older)
    told_of(queue).adopt_callbacks()
    queue.cancel(job.job)
    assert news(queue, job) == {("1", FIRST): "cancelled"}


def test_what_is_forgotten_leaves_nothing(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    """But of who was not told yet."""
    job = submit(queue, slide, place, FIRST)
    queue.cancel(job.job)
    told = news(queue, job)
    submit(queue, slide, place, SECOND)
    queue.forget([f"{job.job}-1"])
    becomes(queue, job, 2, "ERROR")
    queue.retry(job.job)
    becomes(queue, job, 3, "SUCCESS")
    assert news(queue, job) == told | {("3", SECOND): "completed"}


def test_a_call_that_is_forgotten_leaves_its_job_told(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    """All who were told of a job's end are told of the next, however old the first call is."""
    job = submit(queue, slide, place, FIRST)
    becomes(queue, job, 1, "ERROR")
    assert news(queue, job) == {("1", FIRST): "failed"}
    queue.forget(calls(queue, job))
    queue.retry(job.job)
    becomes(queue, job, 2, "SUCCESS")
    assert news(queue, job) == {("2", FIRST): "completed"}


def test_nobody_waits_for_what_was_forgotten(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    assert queue._database.callbacks is not None
    job = submit(queue, slide, place, FIRST)
    search = Searches(queue._database).begin({"study_uid": "1.2.3", "callback": FIRST}, place)
    becomes(queue, job, 1, "ERROR")
    queue.enqueue(f"{job.job}-2", arguments_of(queue, job))
    queue.forget([f"{job.job}-1"])
    assert told_of(queue).is_awaited(job.job), "a try is left"
    queue.forget([f"{job.job}-2", search])
    assert not {job.job, search} & {each.awaited for each in queue._database.callbacks.open()}


def test_one_who_waits_costs_no_look_at_all_that_wait(
    queue: JobQueue, slide: SlideReference, place: Workplace
) -> None:
    """Who waits is found by what they wait for, also by later tries and beside others."""
    assert queue._database.table is not None
    jobs = [
        submit(queue, replace(slide, series_uid=f"1.2.6.{n}"), place, FIRST, await_arrival=n == 1)
        for n in range(3)
    ]
    submit(queue, replace(slide, series_uid="1.2.6.9"), place, "")
    becomes(queue, jobs[2], 1, "ERROR")
    for number in range(2, 7):
        queue.enqueue(f"{jobs[2].job}-{number}", arguments_of(queue, jobs[2]))
        if number < 6:
            becomes(queue, jobs[2], number, "ERROR")
    asked: list[str] = []

    def hear(*said: Any) -> None:
        asked.append(said[2])

    event.listen(queue._database.table._engine, "before_cursor_execute", hear)
    try:
        told_of(queue).tell_ended()
    finally:
        event.remove(queue._database.table._engine, "before_cursor_execute", hear)
    ids = [each.job for each in jobs]
    assert queue._workflows.unended_of(dict.fromkeys(ids, 1)) == set(ids)
    looks = [each for each in asked if "workflow_status" in each]
    assert looks
    assert all("workflow_uuid IN" in each for each in looks)


def arguments_of(queue: JobQueue, job: Job) -> dict[str, Any]:
    """What a job was queued with."""
    workflow = queue._workflows.tries(job.job)[0]
    return dict(workflow.input["args"][0])
