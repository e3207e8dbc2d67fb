"""Nothing lost, nothing twice: fixed fault schedules, and workers of two hosts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from dbos import DBOS, DBOSPortableJSONSerializer
from dbos._serialization import deserialize_exception, serialize_exception
from sqlalchemy import create_engine, update

from dicom_io.errors import CallbackFailed, ConfigurationInvalid, PacsBusy, PacsReadBackDiffers
from node.config import JobSettings, Settings, load_settings
from node.exit_codes import FENCED
from node.job import ENDED, Job
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.jobs import WORKFLOWS
from node.lease import WORKERS, Roll, held_lease
from node.steps import Steps, still_ours
from tests.archive_habits import CHANGES, HARMFUL, REPEATS, Change
from tests.faults.run import play, run, submit
from tests.faults.schedule import UPGRADE, Event, Moment, schedule_of
from tests.faults.sentence import violations
from tests.faults.world import UNDISTURBED, World, world
from tests.faulty_proxy import Fault
from tests.forked import start_marrow_node
from tests.postgresql import running_postgresql
from tests.test_job_table import arguments, changed

SEEDS = range(1, 11)
SLOW_SEEDS = range(11, 71)
LEASE_S = 4.0
LONGEST_S = 120.0
EHR_TRANSACTION = 6  # row of the schedule's requests


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("faults")) as running:
        yield running


@pytest.fixture
def postgresql() -> Iterator[str]:
    with running_postgresql() as url:
        yield url


def keeps_the_promise(servers: World, seed: int, folder: Path) -> None:
    missing = servers.missing(schedule_of(seed))
    if missing:
        pytest.skip(missing)
    outcome = run(servers, seed, folder / "run")
    assert not outcome.violations, (
        f"replay with: make faults SEEDS={seed}..{seed}\n{outcome.told}\n{outcome.said}"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_after_faults_one_set_of_results_or_a_failed_job(
    servers: World, seed: int, tmp_path: Path
) -> None:
    keeps_the_promise(servers, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW_SEEDS)
def test_after_more_faults(servers: World, seed: int, tmp_path: Path) -> None:
    keeps_the_promise(servers, seed, tmp_path)


def test_a_failure_that_was_recorded_before_a_kill_is_still_one_that_may_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What DBOS gives back of a recorded error is of its own class, which says nothing of that."""
    serializer = DBOSPortableJSONSerializer()
    text, kind = serialize_exception(PacsBusy("The PACS is busy: wait."), None, serializer)

    def replayed(options: object, stage: object) -> dict[str, object]:
        raise deserialize_exception(text, kind, serializer)

    monkeypatch.setattr(DBOS, "run_step", replayed)
    with pytest.raises(PacsBusy, match="wait") as raised:
        Steps(still_ours).step("open", dict)
    assert raised.value.transient


def test_a_patient_step_asks_whether_the_job_is_still_ours_before_each_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DBOS, "run_step", lambda options, stage: stage())
    happened: list[str] = []

    def fails_once() -> dict[str, object]:
        happened.append("told")
        if happened.count("told") == 1:
            raise CallbackFailed("The callback got no answer: check that it runs.")
        return {"done": True}

    def refused() -> dict[str, object]:
        happened.append("told")
        raise ConfigurationInvalid("The callback's origin is not configured: add it.")

    def lost() -> None:
        raise InterruptedError

    settings = JobSettings(retries=2, retry_wait_s=0.01)
    steps = Steps(lambda: happened.append("asked"))
    assert steps.patient("post", fails_once, settings) == {"done": True}
    # The last time before DBOS records the outcome.
    assert happened == ["asked", "told", "asked", "told", "asked"]
    with pytest.raises(ConfigurationInvalid):
        steps.patient("post", refused, settings)
    assert happened.count("told") == 3
    with pytest.raises(InterruptedError):
        Steps(lost).patient("post", fails_once, settings)
    assert happened.count("told") == 3


def test_a_clock_that_is_turned_back_does_not_let_a_try_wait(tmp_path: Path) -> None:
    settings = replace(Settings(), work_folder=tmp_path)
    settings = replace(settings, jobs=replace(settings.jobs, retry_wait_s=30.0))
    prepare_database(settings)

    def left_s(queue: JobQueue) -> dict[str, float]:
        return {
            workflow.workflow_id: (workflow.delay_until_epoch_ms or 0) / 1000 - time.time()
            for workflow in queue._workflows.listed(status="DELAYED")
        }

    with open_job_queue(settings) as queue:
        # As an hour later by the clock then; and one that waits as long as it should.
        queue.enqueue("late-2", {"failures": 1}, delay_s=3600 + 30.0)
        queue.enqueue("due-3", {"failures": 2}, delay_s=59.0)
        queue.shorten_delays()
        left = left_s(queue)
    assert 25 < left["late-2"] <= 30
    assert 50 < left["due-3"] <= 59


def test_all_follows_from_the_seed() -> None:
    assert [schedule_of(seed) for seed in range(100)] == [schedule_of(seed) for seed in range(100)]
    schedules = [schedule_of(seed) for seed in range(1000)]
    kinds = {event.kind for schedule in schedules for event in schedule.events}
    # Resets, statuses, not stored or with a warning, slow, half, twice; token; worker and upgrade,
    # servers, full disk, clock, database.
    assert len(kinds) == 4 + 7 + 3 + 1 + 2 + 2 + 1 + 3 + 4 + 1 + 2 + 3
    assert {schedule.repeat for schedule in schedules} == set(REPEATS)
    assert {schedule.change for schedule in schedules} == set(CHANGES)
    assert {schedule.hosts for schedule in schedules if schedule.database == "PostgreSQL"} == {1, 2}
    assert {schedule.hosts for schedule in schedules if schedule.database == "SQLite"} == {1}


@pytest.mark.parametrize("change", CHANGES[1:])
def test_an_archive_that_changes_what_it_stores(
    servers: World, tmp_path: Path, change: Change
) -> None:
    """Another spelling of a name is let pass; all else fails before the EHR is told."""
    outcome = play(servers, replace(UNDISTURBED, change=change), tmp_path / "run")
    assert not outcome.violations, outcome.said
    failed = change in HARMFUL
    assert (outcome.status, outcome.error) == (
        ("failed", PacsReadBackDiffers.exit_code) if failed else ("completed", 0)
    )


@pytest.mark.parametrize(("step", "error"), [(2, ConfigurationInvalid.exit_code), (5, 0)])
def test_an_upgrade_delivers_what_the_version_before_has_written(
    servers: World, tmp_path: Path, step: int, error: int
) -> None:
    """What was not written yet fails, is submitted again, and is then there once too."""
    upgrade = Event(UPGRADE, Moment("step", step, 0, 0.0))
    outcome = play(servers, replace(UNDISTURBED, events=(upgrade,)), tmp_path / "run")
    assert not outcome.violations, outcome.said
    assert outcome.happened == (True,)
    assert outcome.error == error


def test_a_try_after_an_upgrade_delivers_what_an_earlier_one_has_written(
    servers: World, tmp_path: Path
) -> None:
    """Its results were in the archive when the EHR refused them; other ones would be there too."""
    refused = Event("status 503", Moment("request", EHR_TRANSACTION, 0, 0.0), 12, 503)
    upgrade = Event(UPGRADE, Moment("request", EHR_TRANSACTION, 1, 0.0))
    outcome = play(servers, replace(UNDISTURBED, events=(upgrade, refused)), tmp_path / "run")
    assert not outcome.violations, outcome.said
    assert outcome.happened == (True, True)
    assert (outcome.status, outcome.tries > 1) == ("completed", True)


def test_a_doubled_or_missing_object_is_a_violation(servers: World, tmp_path: Path) -> None:
    """The check itself: it sees what is there too often, and what is not there."""
    settings = servers.fresh(tmp_path / "run").settings
    with open_job_queue(settings) as queue:
        job = submit(queue, settings, servers)
        seen = queue.get(job)
        done = replace(seen, status="completed", result={"report": "", "ann": []}, exit_code=0)
        assert "no ANN is there" in violations(servers, settings, done)
        assert violations(servers, settings, seen) == ["the job is queued"]
        silent = replace(seen, status="failed", error=None, exit_code=1)
        assert violations(servers, settings, silent) == ["the failed job does not say why"]


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A job that host a had begun, and host b took: see :func:`taken_over`."""

    first: BaseProcess
    ended: Job
    settings: Settings
    queue: JobQueue


@contextmanager
def taken_over(
    servers: World,
    postgresql: str,
    folder: Path,
    number: signal.Signals,
    *,
    alone: bool,
    storage: str = "",
) -> Iterator[TakenOver]:
    """Send host a a signal after its first STOW, and let host b end the job."""
    configs = {
        host: host_config(servers, postgresql, folder, host, alone=alone, storage=storage)
        for host in "ab"
    }
    settings = load_settings(configs["b"])
    prepare_database(settings)
    struck = threading.Event()
    processes: list[BaseProcess] = []

    def start(host: str) -> None:
        command = ("--verbose", "--config", str(configs[host]), "work")
        processes.append(start_marrow_node(*command, said=folder / f"{host}.log"))

    def strike() -> None:
        os.kill(int(processes[0].pid or 0), number)
        struck.set()

    start("a")
    servers.pacs_proxy.faults.append(Fault("/studies$", "POST", times=1, obeyed=strike))
    servers.pacs_proxy.requests.clear()
    servers.ehr_proxy.requests.clear()
    try:
        with open_job_queue(settings) as queue:
            job = submit(queue, settings, servers)
            wait_for(struck.is_set)
            start("b")
            yield TakenOver(processes[0], end_of(queue, job), settings, queue)
    finally:
        for process in processes:
            process.kill()
            process.join(10)


def test_a_worker_that_was_thought_dead_delivers_nothing_more(
    servers: World, postgresql: str, tmp_path: Path
) -> None:
    """Stop host a after its first STOW; host b finishes the job; then let a go on."""
    with taken_over(servers, postgresql, tmp_path, signal.SIGSTOP, alone=False) as taken:
        assert taken.ended.status == "completed", taken.ended
        os.kill(int(taken.first.pid or 0), signal.SIGCONT)
        taken.first.join(30)
        assert taken.first.exitcode == FENCED, (tmp_path / "a.log").read_text()
        assert violations(servers, taken.settings, taken.queue.get(taken.ended.job)) == []
    sent = [path for method, path in servers.pacs_proxy.requests if method == "POST"]
    assert len(sent) == 3
    assert servers.ehr_proxy.requests.count(("POST", "/DiagnosticReport")) == 1


def test_a_host_with_storage_of_its_own_begins_anothers_slide_again(
    servers: World, postgresql: str, tmp_path: Path
) -> None:
    """Kill host a after its first STOW: host b has none of its files, and delivers once."""
    with taken_over(servers, postgresql, tmp_path, signal.SIGKILL, alone=True) as taken:
        said = (tmp_path / "b.log").read_text()
        assert (taken.ended.status, taken.ended.tries) == ("completed", 2), f"{taken.ended} {said}"
        assert "another host has it" in said
        assert violations(servers, taken.settings, taken.ended) == []
    sent = [path for method, path in servers.pacs_proxy.requests if method == "POST"]
    assert len(sent) == 3


def test_hosts_with_a_shared_storage_finish_each_others_slides(
    servers: World, postgresql: str, tmp_path: Path
) -> None:
    """Kill host a after its first STOW: host b, whose folder is its own, reads no slide again."""
    storage = (tmp_path / "storage").as_uri()
    with taken_over(
        servers, postgresql, tmp_path, signal.SIGKILL, alone=True, storage=storage
    ) as taken:
        said = (tmp_path / "b.log").read_text()
        assert (taken.ended.status, taken.ended.tries) == ("completed", 1), f"{taken.ended} {said}"
        assert "is read in optical path" not in said
        assert violations(servers, taken.settings, taken.ended) == []
    sent = [path for method, path in servers.pacs_proxy.requests if method == "POST"]
    assert len(sent) == 3


def test_a_killed_host_loses_its_jobs_once(postgresql: str, tmp_path: Path) -> None:
    settings = replace(Settings(), work_folder=tmp_path, database_url=postgresql)
    settings = replace(settings, jobs=replace(settings.jobs, lease_s=LEASE_S))
    recovered: list[str] = []
    roll = Roll(settings)
    assert roll.living() == 0
    with (
        held_lease(settings, "a.worker-0") as first,
        held_lease(settings, "b.worker-0") as second,
        held_lease(settings, "c.worker-0") as third,
    ):
        second.bury(recovered.extend)
        assert recovered == []
        assert roll.living() == 3
        time.sleep(LEASE_S + 0.1)
        for lease in (second, third):
            lease.beat()
        assert roll.living() == 2
        for lease in (second, third, second):
            lease.bury(recovered.extend)
        assert recovered == [first.executor]
    with held_lease(settings, "c.worker-0") as again:
        again.bury(recovered.extend)
        # One that ended by itself is not waited for, nor is an earlier start of the same worker.
        assert sorted(recovered[1:]) == sorted([second.executor, third.executor])
        assert again.executor != third.executor


def test_a_job_that_a_buried_worker_took_at_last_goes_to_others(
    postgresql: str, tmp_path: Path
) -> None:
    """It was cut off for longer than a lease, and claimed a job before it found that out."""
    settings = replace(Settings(), work_folder=tmp_path, database_url=postgresql)
    prepare_database(settings)
    recovered: list[list[str]] = []
    with (
        open_job_queue(settings) as queue,
        held_lease(settings, "a.worker-0") as cut_off,
        held_lease(settings, "b.worker-0") as living,
        held_lease(settings, "c.worker-0") as third,
    ):
        for number, who in enumerate((cut_off, living, third)):
            queue.enqueue(f"{number:016x}-1", arguments(number))
            changed(queue, f"{number:016x}-1", status="PENDING", executor_id=who.executor)
        living.adopt(queue.executors, recovered.append)
        assert recovered == []
        cut_off.give_up()  # as one that was silent for a lease
        third.bury(lambda dead: changed(queue, f"{0:016x}-1", status="ENQUEUED"))
        changed(queue, f"{0:016x}-1", status="PENDING")
        living.bury(recovered.append)
        assert recovered == []
        living.adopt(queue.executors, recovered.append)
        assert recovered == [[cut_off.executor]]


def test_a_worker_finishes_what_one_that_is_long_gone_has_taken(
    servers: World, postgresql: str, tmp_path: Path
) -> None:
    config = host_config(servers, postgresql, tmp_path, "b")
    settings = load_settings(config)
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        job = submit(queue, settings, servers)
        gone = {"executor_id": "a.worker-0.77", "application_version": WORKFLOWS}
        changed(queue, f"{job}-1", status="PENDING", **gone)
        process = start_marrow_node("--config", str(config), "work", said=tmp_path / "b.log")
        try:
            ended = end_of(queue, job)
        finally:
            process.kill()
            process.join(10)
        assert (ended.status, ended.tries) == ("completed", 1), (tmp_path / "b.log").read_text()
        assert violations(servers, settings, ended) == []


def test_neither_a_clock_nor_an_absent_database_makes_a_worker_dead(
    postgresql: str, tmp_path: Path
) -> None:
    settings = replace(Settings(), work_folder=tmp_path, database_url=postgresql)
    settings = replace(settings, jobs=replace(settings.jobs, lease_s=LEASE_S))
    recovered: list[str] = []
    url = postgresql.replace("postgresql://", "postgresql+psycopg://")
    with held_lease(settings, "a.worker-0"), held_lease(settings, "b.worker-0") as second:
        second.bury(recovered.extend)
        engine = create_engine(url)
        with engine.begin() as connection:  # as the beats stand where the server's clock jumped
            connection.execute(update(WORKERS).values(seen_s=WORKERS.c.seen_s - 3600))
        engine.dispose()
        second.bury(recovered.extend)
        time.sleep(LEASE_S + 0.1)
        second.look_anew()
        second.bury(recovered.extend)
        assert recovered == []


def host_config(
    servers: World,
    database_url: str,
    folder: Path,
    host: str,
    *,
    alone: bool = False,
    storage: str = "",
) -> Path:
    """Settings of a host whose folder is its own; `alone`, no file is shared with other hosts.

    Parameters
    ----------
    storage
        URL of what hosts share beside their folders.
    """
    work = folder / host
    servers.fresh(work)
    for shared in () if alone else ("files", "results", "progress"):
        (folder / shared).mkdir(exist_ok=True)
        (work / shared).symlink_to(folder / shared)
    text = servers.smear.settings(
        work_folder=str(work),
        database_url=database_url,
        shared_storage=storage,
        pacs_url=servers.pacs_proxy.url,
        ehr_url=servers.ehr_proxy.url,
    ).read_text()
    config = work / "node.toml"
    config.write_text(f'{text}[jobs]\nhost = "{host}"\nlease_s = {LEASE_S}\nretry_wait_s = 0.5\n')
    return config


def wait_for(holds: object, seconds: float = LONGEST_S) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def end_of(queue: JobQueue, job: str) -> Job:
    wait_for(lambda: queue.get(job).status in ENDED)
    return queue.get(job)
