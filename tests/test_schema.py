"""An older node's database is brought up to date at start, and its jobs go on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from dicom_io.errors import ConfigurationInvalid
from node.config import Settings, load_settings
from node.job import ENDED, job_arguments
from node.job_database import prepare_database
from node.job_queue import open_job_queue
from node.pipeline import SlideReference
from node.seen_slides import SeenSlides
from node.worklist_database import UPGRADES, worklist_database
from node.workplace import Workplace
from tests.forked import marrow_node, start_marrow_node
from tests.postgresql import MISSING_POSTGRESQL, postgresql_missing, running_postgresql
from tests.smears import Smear, small_smear

# As the tables were before versions were counted: no index on times, no series seen.
VERSION_1 = (
    "CREATE TABLE workitems (uid VARCHAR(64) PRIMARY KEY, state VARCHAR(16) NOT NULL,"
    " transaction_uid VARCHAR(64) NOT NULL, item TEXT NOT NULL, own BOOLEAN NOT NULL,"
    " cancel BOOLEAN NOT NULL, created_s FLOAT NOT NULL, updated_s FLOAT NOT NULL)",
    "CREATE INDEX ix_workitems_state ON workitems (state)",
    "CREATE TABLE cursors (source VARCHAR(256) PRIMARY KEY, place TEXT NOT NULL)",
    "INSERT INTO workitems VALUES ('1.2.3', 'SCHEDULED', '', '{}', true, false, 1.0, 1.0)",
    "INSERT INTO cursors VALUES ('https://pacs.example', '2026-11-01')",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    here = replace(Settings(), work_folder=tmp_path)
    if request.param == "sqlite":
        yield here
        return
    if postgresql_missing():
        pytest.skip(MISSING_POSTGRESQL)
    with running_postgresql() as url:
        yield replace(here, database_url=url)


def engine_of(settings: Settings) -> Engine:
    if not settings.database_url:
        return create_engine(f"sqlite:///{settings.work_folder}/worklist.sqlite")
    return create_engine(settings.database_url.replace("postgresql", "postgresql+psycopg", 1))


def execute(settings: Settings, *statements: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    with closing(engine_of(settings).connect()) as connection, connection.begin():
        for statement in statements:
            answer = connection.execute(text(statement))
            if answer.returns_rows:
                rows += [tuple(row) for row in answer]
    connection.engine.dispose()
    return rows


def shape(settings: Settings) -> Mapping[str, Any]:
    engine = engine_of(settings)
    seen = inspect(engine)
    tables = {
        table: (
            sorted((column["name"], str(column["type"])) for column in seen.get_columns(table)),
            sorted(str(index["name"]) for index in seen.get_indexes(table)),
        )
        for table in seen.get_table_names()
    }
    engine.dispose()
    return tables


def test_an_older_database_becomes_what_a_new_one_is(settings: Settings, tmp_path: Path) -> None:
    execute(settings, *VERSION_1)
    with closing(worklist_database(settings)) as database:
        SeenSlides(database, "x" * 300).add("1.2", "1.2.3", "seen")
    assert execute(settings, "SELECT uid, state FROM workitems") == [("1.2.3", "SCHEDULED")]
    assert execute(settings, "SELECT place FROM cursors") == [("2026-11-01",)]
    execute(settings, "INSERT INTO cursors VALUES ('LONG', 'z')".replace("LONG", "y" * 500))
    upgraded = shape(settings)
    assert execute(settings, "SELECT version FROM node_schema") == [(1 + len(UPGRADES),)]
    for table in upgraded:
        execute(settings, f"DROP TABLE {table}")
    with closing(worklist_database(settings)):
        pass
    fresh = shape(settings)
    if settings.database_url:
        assert upgraded == fresh
    else:  # SQLite keeps the length that a column was declared with, and holds nobody to it
        assert {name: of[1] for name, of in upgraded.items()} == {
            name: of[1] for name, of in fresh.items()
        }


def test_again_and_from_several_processes_at_once(settings: Settings) -> None:
    execute(settings, *VERSION_1)
    failed: list[BaseException] = []

    def start() -> None:
        try:
            worklist_database(settings).close()
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(execute(settings, "SELECT * FROM node_schema")) == 1


def test_a_later_database_is_refused_in_one_sentence(settings: Settings) -> None:
    worklist_database(settings).close()
    execute(settings, "UPDATE node_schema SET version = 99")
    before = shape(settings)
    with pytest.raises(ConfigurationInvalid, match="later version of the node") as raised:
        worklist_database(settings)
    assert "99" in str(raised.value)
    assert shape(settings) == before


def test_an_upgrade_that_fails_leaves_the_older_database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(connection: Any) -> None:
        connection.execute(text("DROP TABLE cursors"))
        raise RuntimeError

    execute(settings, *VERSION_1)
    monkeypatch.setattr("node.worklist_database.UPGRADES", (*UPGRADES, fails))
    with pytest.raises(RuntimeError):
        worklist_database(settings)
    assert set(shape(settings)) == {"workitems", "cursors"}
    assert execute(settings, "SELECT place FROM cursors") == [("2026-11-01",)]


# Jobs in flight


def test_jobs_of_an_older_node_go_on(tmp_path: Path) -> None:
    """One was begun and killed, one only waits; both have the arguments of an older version."""
    smear = small_smear(tmp_path)
    config = smear.settings(pacs_url=smear.pacs_url, ehr_url=smear.ehr_url)
    settings = load_settings(config)
    prepare_database(settings)
    place = Workplace.open(settings, lambda progress: None)
    slide = SlideReference(smear.slide.study_uid, smear.slide.series_uid, "test")
    known = job_arguments(slide, place)
    older = {"reason": "test", "priority": "routine", "callback": ""}
    waits = known | older | {"configuration_digest": "0" * 64, "ehr_url": f"{smear.ehr_url}-2"}
    with open_job_queue(settings) as queue:
        queue.enqueue("a" * 16 + "-1", known | older)
        killed_in(config, smear, "detect")
        assert queue.get("a" * 16).status == "running"
        queue.enqueue("b" * 16 + "-1", waits)
        forget_what_an_older_version_did_not_record(settings)
        with closing(sqlite3.connect(settings.work_folder / "worklist.sqlite")) as database:
            for statement in VERSION_1:
                database.execute(statement)
            database.commit()
        worker = start_marrow_node("--config", str(config), "work", said=tmp_path / "log")
        try:
            end = time.monotonic() + 120
            while any(queue.get(job * 16).status not in ENDED for job in "ab"):
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
            ends = [queue.get(job * 16) for job in "ab"]
        finally:
            worker.terminate()
            worker.join(60)
    assert [(job.status, job.tries) for job in ends] == [("completed", 1)] * 2, ends
    first, second = (job.result or {} for job in ends)
    assert first["identity"] == second["identity"], "of today's configuration"
    (work,) = (job.job for job in ends if job.job.startswith("a"))
    shown = marrow_node("--config", str(config), "show", "--json", work)
    assert json.loads(shown.stdout)["status"] == "completed"


def killed_in(config: Path, smear: Smear, stage: str) -> None:
    worker = start_marrow_node("--config", str(config), "work", said=smear.folder / "killed.log")
    end = time.monotonic() + 120
    while not any(
        f'"{stage}"' in path.read_text() for path in (smear.work / "progress").glob("*.json")
    ):
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(int(worker.pid or 0), signal.SIGKILL)
    worker.join()


def forget_what_an_older_version_did_not_record(settings: Settings) -> None:
    """Take the digests out of the recorded step."""
    with closing(sqlite3.connect(settings.work_folder / "jobs.sqlite")) as database:
        ((recorded,),) = database.execute(
            "SELECT output FROM operation_outputs WHERE function_name = 'open'"
        ).fetchall()
        step = json.loads(recorded)
        for name in ("package_digest", "configuration_digest"):
            assert step.pop(name)
        database.execute(
            "UPDATE operation_outputs SET output = ? WHERE function_name = 'open'",
            (json.dumps(step),),
        )
        database.commit()


def test_what_has_begun_does_not_go_on_with_other_settings(tmp_path: Path) -> None:
    smear = small_smear(tmp_path)
    config = smear.settings(pacs_url=smear.pacs_url, ehr_url=smear.ehr_url)
    settings = load_settings(config)
    prepare_database(settings)
    place = Workplace.open(settings, lambda progress: None)
    slide = SlideReference(smear.slide.study_uid, smear.slide.series_uid, "test")
    with open_job_queue(settings) as queue:
        job = queue.submit(slide, place).job
        killed_in(config, smear, "detect")
        config.write_text(config.read_text() + "[output]\npdf = true\n")
        worker = start_marrow_node("--config", str(config), "work", said=tmp_path / "log")
        try:
            end = time.monotonic() + 60
            while queue.get(job).status not in ENDED:
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
            failed = queue.get(job)
            assert (failed.status, failed.exit_code) == ("failed", 26)
            assert "had begun" in str(failed.error)
            queue.retry(job)
            end = time.monotonic() + 90
            while queue.get(job).status not in ENDED:
                assert time.monotonic() < end, (tmp_path / "log").read_text()
                time.sleep(0.1)
            assert queue.get(job).status == "completed"
        finally:
            worker.terminate()
            worker.join(60)
