"""Looking at jobs costs the same however many have ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    MetaData,
    Table,
    event,
    insert,
    literal_column,
    select,
    text,
    update,
)

from dicom_io.errors import DiskFull, JobNotFound
from node.config import Settings
from node.job import ANALYSE, ARRIVE, FIND, REVIEW
from node.job_database import prepare_database
from node.job_news import JobNews
from node.job_queue import JobQueue, open_job_queue
from node.searches import Searches
from tests.postgresql import MISSING_POSTGRESQL, postgresql_missing, running_postgresql

ENDED_JOBS = 2000


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    """Three jobs that wait, one whose first try has failed, and many that have ended."""
    with crowded(replace(Settings(), work_folder=tmp_path)) as opened:
        yield opened


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def same_queue(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JobQueue]:
    """One of them for all questions about how it is looked at."""
    settings = replace(Settings(), work_folder=tmp_path_factory.mktemp("jobs"))
    if request.param == "sqlite":
        with crowded(settings) as opened:
            yield opened
        return
    if postgresql_missing():
        pytest.skip(MISSING_POSTGRESQL)
    with running_postgresql() as url, crowded(replace(settings, database_url=url)) as opened:
        yield opened


@contextmanager
def crowded(settings: Settings) -> Iterator[JobQueue]:
    prepare_database(settings)
    with open_job_queue(settings) as opened:
        for number in range(3):
            opened.enqueue(f"{number:016x}-1", arguments(number))
        opened.enqueue(f"{7:016x}-1", arguments(7))
        state_of(opened, f"{7:016x}-1", "ERROR")
        opened.enqueue(f"{7:016x}-2", arguments(7))
        opened.enqueue(f"{8:016x}-1", arguments(8))
        JobNews(opened._database).ask(f"{8:016x}", "http://localhost:1/", 1)
        state_of(opened, f"{8:016x}-1", "ERROR")
        many_ended(opened)
        yield opened


def arguments(number: int) -> dict[str, Any]:
    return {
        "study_uid": "1.2.3",
        "series_uid": f"1.2.3.{number}",
        "pacs_url": "https://pacs/dicom-web",
        "priority": "routine",
    }


def engine_of(queue: JobQueue) -> Engine:
    assert queue._database.table is not None
    return queue._database.table._engine


def table_of(queue: JobQueue) -> Table:
    engine = engine_of(queue)
    schema = "dbos" if engine.dialect.name == "postgresql" else None
    return Table("workflow_status", MetaData(), schema=schema, autoload_with=engine)


def changed(queue: JobQueue, workflow: str, **values: str) -> None:
    table = table_of(queue)
    with engine_of(queue).begin() as connection:
        connection.execute(update(table).where(table.c.workflow_uuid == workflow).values(values))


def state_of(queue: JobQueue, workflow: str, state: str) -> None:
    changed(queue, workflow, status=state)


def many_ended(queue: JobQueue) -> None:
    """Copies of the failed one that have completed; the planner of PostgreSQL is told of them."""
    table = table_of(queue)
    with engine_of(queue).begin() as connection:
        failed = select(table).where(table.c.workflow_uuid == f"{8:016x}-1")
        kept = dict(connection.execute(failed).mappings().one())
        completed = [
            kept | {"workflow_uuid": f"{number:016x}-1", "status": "SUCCESS"}
            for number in range(100, 100 + ENDED_JOBS)
        ]
        connection.execute(insert(table), completed)
    with engine_of(queue).connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("ANALYZE"))


LOOKS = {
    "a job": lambda queue: queue.get(f"{2:016x}"),
    "a try": lambda queue: queue.get(f"{2:016x}-1"),
    "what waits": lambda queue: queue.list(50, status="queued"),
    "what runs": lambda queue: queue.list(50, status="running"),
    "what failed": lambda queue: queue.list(50, status="failed"),
    "the newest": lambda queue: queue.list(50),
    "how many": lambda queue: queue.counts(),
    "who works": lambda queue: queue.executors(),
    "how long": lambda queue: queue.oldest_active_ms(),
    "delays": lambda queue: queue.shorten_delays(),
    "who is told": lambda queue: JobNews(queue._database).tell_ended(),
    "searches that failed": lambda queue: Searches(queue._database).failed(50),
    "news of searches": lambda queue: Searches(queue._database).failed(1, since_s=time.time() - 60),
    "a submission": lambda queue: queue.enqueue(f"{9:016x}-1", arguments(9)),
    "a retry": lambda queue: queue.retry(f"{8:016x}"),
    "a cancellation": lambda queue: queue.cancel(f"{1:016x}"),
}


@pytest.mark.parametrize("what", LOOKS)
def test_no_look_reads_all_jobs_that_have_ended(same_queue: JobQueue, what: str) -> None:
    queue = same_queue
    client = queue._database.client
    assert client is not None
    engines = (engine_of(queue), client._sys_db.engine)
    asked: list[tuple[str, Any]] = []

    def hear(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement.lstrip().upper().startswith("SELECT"):
            asked.append((statement, parameters))

    for engine in engines:
        event.listen(engine, "before_cursor_execute", hear)
    LOOKS[what](queue)
    for engine in engines:
        event.remove(engine, "before_cursor_execute", hear)
    assert asked
    plans = [plan(engines[0], *each) for each in asked]
    assert not [each for each in plans if reads_all(each)], plans


def plan(engine: Engine, statement: str, parameters: Any) -> str:
    explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"{explain} {statement}", parameters)
        return "\n".join(" ".join(map(str, row)) for row in rows)


def reads_all(plan: str) -> bool:
    lines = [line.strip() for line in plan.splitlines()]
    return any(
        ("SCAN workflow_status" in line and "INDEX" not in line)
        or "Seq Scan on workflow_status" in line
        for line in lines
    )


def test_a_plan_that_reads_all_is_told(same_queue: JobQueue) -> None:
    """The check itself."""
    table = table_of(same_queue)
    everything = select(table).where(table.c.name == literal_column("'x'"))
    engine = engine_of(same_queue)
    assert reads_all(plan(engine, str(everything.compile(engine)), ()))


def test_what_is_listed(queue: JobQueue) -> None:
    assert {job.job for job in queue.list(status="queued")} == {
        f"{number:016x}" for number in (0, 1, 2, 7)
    }
    assert [job.job for job in queue.list(status="failed")] == [f"{8:016x}"]
    assert queue.list(status="running") == queue.list(status="waiting") == []
    assert len(queue.list(limit=60, status="completed")) == 60
    assert queue.counts() == {"waiting": 0, "queued": 4, "running": 0}
    assert queue.get(f"{7:016x}").tries == 2
    assert queue.get(f"{7:016x}-1").status == "failed"


def test_a_job_with_many_tries_is_found_by_its_newest(queue: JobQueue) -> None:
    for number in range(2, 71):
        queue.enqueue(f"{8:016x}-{number}", arguments(8))
        if number < 70:
            state_of(queue, f"{8:016x}-{number}", "ERROR")
    assert queue.get(f"{8:016x}").tries == 70
    assert [job.job for job in queue.list(status="failed")] == []


def test_what_waits_for_its_slide(queue: JobQueue) -> None:
    queue.enqueue(f"{9:016x}-1", arguments(9), await_arrival=True)
    assert [job.job for job in queue.list(status="waiting")] == [f"{9:016x}"]
    assert queue.counts()["waiting"] == 1
    state_of(queue, f"{9:016x}-1.arrival", "ERROR")
    assert f"{9:016x}" in [job.job for job in queue.list(status="failed")]
    queue.enqueue(f"{9:016x}-1", arguments(9))
    assert f"{9:016x}" not in [job.job for job in queue.list(status="failed")]


def test_failed_searches_are_listed_and_are_news_for_a_while(queue: JobQueue) -> None:
    """Newest first, of all that have failed in whatever kind; no more is read than is wanted."""
    names = [f"search-{number}" for number in range(4)]
    now_ms = int(time.time() * 1000)
    table = table_of(queue)
    with engine_of(queue).begin() as connection:
        failed = select(table).where(table.c.workflow_uuid == f"{8:016x}-1")
        kept = dict(connection.execute(failed).mappings().one())
        searches = [
            kept | {"workflow_uuid": name, "name": FIND, "created_at": now_ms - number * 60_000}
            for number, name in enumerate(names)
        ]
        connection.execute(insert(table), searches)
    state_of(queue, names[1], "SUCCESS")
    searches = Searches(queue._database)

    def listed(*which: int, since_s: float = 0.0) -> list[str]:
        return [each["search"] for each in searches.failed(*which, since_s=since_s)]

    assert listed(50) == [names[0], names[2], names[3]]
    assert listed(1, 1) == [names[2]]
    assert listed(50, since_s=now_ms / 1000 - 150) == [names[0], names[2]]
    assert listed(1, since_s=now_ms / 1000 + 1) == []
    assert [job.job for job in queue.list(status="failed")] == [f"{8:016x}"]


def test_a_cancellation_that_cannot_be_written_says_what_to_do(queue: JobQueue) -> None:
    with engine_of(queue).begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER full BEFORE UPDATE ON workflow_status"
                " BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        )
    with pytest.raises(DiskFull, match="free space"):
        queue.cancel(f"{0:016x}")


def test_an_unknown_job_is_said_to_be_unknown(queue: JobQueue) -> None:
    with pytest.raises(JobNotFound):
        queue.get("0123456789abcdef")


def test_jobs_in_which_workers_died_are_counted(same_queue: JobQueue) -> None:
    """Not those that failed in another way, nor a search."""
    table = same_queue._database.table
    assert table is not None
    jobs = (ANALYSE, ARRIVE, REVIEW)
    assert table.put_aside(jobs) == 0
    for number in (21, 22):
        same_queue.enqueue(f"{number:016x}-1", arguments(number))
        state_of(same_queue, f"{number:016x}-1", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
    try:
        assert table.put_aside(jobs) == 2
        assert table.put_aside((FIND,)) == 0
    finally:
        same_queue.forget([f"{number:016x}-1" for number in (21, 22)])
