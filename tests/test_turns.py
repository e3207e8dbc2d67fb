"""Who goes first: urgent before routine before batch, and sites by turns; pause, resume, drain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import psycopg
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from dicom_io.demonstration import DemonstrationSlide
from node.config import Settings, load_settings
from node.job import ENDED, Priority
from node.job_database import prepare_database
from node.job_queue import JobQueue, open_job_queue
from node.pipeline import SlideReference
from node.turns import BAND, SLOTS, Waiting, number_of, slot_of
from node.workplace import Workplace
from tests.faulty_proxy import Fault, Proxy, faulty_proxy
from tests.forked import marrow_node, start_marrow_node
from tests.postgresql import MISSING_POSTGRESQL, postgresql_missing, running_postgresql
from tests.servers import Orthanc
from tests.service import running_service
from tests.smears import Smear, small_smear

SITES = ("north", "south", "east")


def queued(waiting: list[int], band: int, site: str) -> int:
    """The number of one more slide, by looking at all that wait."""

    def look(first: int, behind: int, slot: int) -> Waiting:
        inside = [number for number in waiting if first <= number < behind]
        own = [number for number in inside if number % SLOTS == slot]
        return Waiting(min(inside, default=None), max(own, default=None))

    return number_of(band, site, look)


@trials(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines may be busy
@given(st.lists(st.tuples(st.sampled_from(SITES), st.booleans()), max_size=200))
@example([("north", True), *[("south", True), ("south", False)] * 20])  # its slot is the lower one
def test_who_waits_is_overtaken_at_most_twice_by_each_other_site(
    events: list[tuple[str, bool]],
) -> None:
    """A slide that waits first in its site's line goes after at most two of each other site."""
    waiting: list[int] = []
    site_of = {slot_of(site): site for site in SITES}
    overtaken: dict[str, list[str]] = {site: [] for site in SITES}
    for site, comes in events:
        if comes:
            waiting.append(queued(waiting, 1, site))
            assert waiting.count(waiting[-1]) == 1
        elif waiting:
            taken = min(waiting)
            waiting.remove(taken)
            served = site_of[taken % SLOTS]
            overtaken[served] = []
            for other in SITES:
                if any(site_of[number % SLOTS] == other for number in waiting):
                    if other != served:
                        overtaken[other].append(served)
                        assert overtaken[other].count(served) <= 2, events
                else:
                    overtaken[other] = []


def test_bands_do_not_mix() -> None:
    waiting: list[int] = []
    for _ in range(1000):
        for band in (0, 1, 2):
            waiting.append(queued(waiting, band, "north"))
    assert min(waiting) > 0
    assert max(waiting) < 2**31
    ordered = sorted(waiting)
    assert [number // BAND for number in ordered] == [0] * 1000 + [1] * 1000 + [2] * 1000


# Through the queue and a real worker


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("turns"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield ""
        return
    if postgresql_missing():
        pytest.skip(MISSING_POSTGRESQL)
    with running_postgresql() as url:
        yield url


def config_of(smear: Smear, folder: Path, tables: str = "", **lines: str) -> Path:
    where = {"pacs_url": smear.pacs_url, "ehr_url": (folder / "ehr").as_uri()}
    lines = where | {"work_folder": str(folder / "work")} | lines
    config = folder / "node.toml"
    config.write_text(smear.settings(**lines).read_text() + tables)
    return config


@contextmanager
def working(config: Path, log: Path) -> Iterator[BaseProcess]:
    worker = start_marrow_node("--verbose", "--config", str(config), "work", said=log)
    try:
        yield worker
    finally:
        worker.kill()
        worker.join(10)


def submit(queue: JobQueue, settings: Settings, name: str, site: str, priority: Priority) -> str:
    """Queue a slide that is not there: it fails as soon as its turn has come."""
    place = Workplace.open(settings, lambda progress: None)
    number = "".join(str(ord(letter)) for letter in name)
    slide = SlideReference("1.2", f"1.2.{number}", name)
    return queue.submit(slide, place, priority, site=site).job


def wait_for(holds: object, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def test_a_site_that_sends_many_does_not_keep_another_waiting(
    smear: Smear, database: str, tmp_path: Path
) -> None:
    config = config_of(smear, tmp_path, database_url=database)
    settings = load_settings(config)
    prepare_database(settings)
    log = tmp_path / "worker.log"
    with open_job_queue(settings) as queue:
        jobs = [submit(queue, settings, f"a{n}", "north", "routine") for n in range(8)]
        jobs += [submit(queue, settings, f"b{n}", "south", "routine") for n in range(3)]
        jobs += [submit(queue, settings, f"c{n}", "south", "batch") for n in range(2)]
        jobs += [submit(queue, settings, f"u{n}", "north", "urgent") for n in range(2)]
        with working(config, log):
            wait_for(lambda: all(queue.get(job).status in ENDED for job in jobs), log)
        # By the log: the database's times are whole seconds apart.
        order = [
            queue.get(line.partition("[")[2].partition("-")[0]).reason
            for line in log.read_text().splitlines()
            if "WARNING node.jobs" in line
        ]
    assert order[:2] == ["u0", "u1"]
    assert order[-2:] == ["c0", "c1"]
    routine = order[2:-2]
    assert [name for name in routine if name[0] == "b"] == ["b0", "b1", "b2"]
    assert [name for name in routine if name[0] == "a"] == [f"a{n}" for n in range(8)]
    assert {name[0] for name in routine[:2]} == {name[0] for name in routine[2:4]} == {"a", "b"}
    assert {name[0] for name in routine[4:6]} == {"a", "b"}


@pytest.mark.skipif(postgresql_missing(), reason=MISSING_POSTGRESQL)
def test_a_worker_keeps_six_connections_to_postgresql(smear: Smear, tmp_path: Path) -> None:
    """Of 100 that it takes if nobody has told it otherwise: twelve workers once had them all."""
    log = tmp_path / "worker.log"
    with running_postgresql() as url, psycopg.connect(url, autocommit=True) as looking:
        config = config_of(smear, tmp_path, database_url=url)
        settings = load_settings(config)
        prepare_database(settings)

        def connections() -> int:
            query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            row = looking.execute(query).fetchone()
            assert row is not None
            return int(row[0]) - 1  # that which asks

        with working(config, log):
            with open_job_queue(settings) as queue:
                jobs = [submit(queue, settings, f"a{n}", "north", "routine") for n in range(8)]
                wait_for(lambda: all(queue.get(job).status in ENDED for job in jobs), log)
            seen = []
            for _ in range(100):
                time.sleep(0.05)
                seen.append(connections())
    assert 4 <= min(seen) <= 6
    # One that more than two threads need at once is closed when it is not needed any more.
    assert sorted(seen)[len(seen) // 2] <= 7


def test_a_paused_node_begins_nothing_until_it_is_resumed(
    smear: Smear, database: str, tmp_path: Path
) -> None:
    config = config_of(smear, tmp_path, database_url=database)
    settings = load_settings(config)
    log = tmp_path / "worker.log"

    def told(*command: str) -> str:
        ended = marrow_node("--config", str(config), *command)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert told("pause", "--wait") == "paused\n", "also before there was a worker"
    with open_job_queue(settings) as queue:
        job = submit(queue, settings, "a", "north", "urgent")
        for _ in range(2):
            with working(config, log):
                time.sleep(4)
                assert queue.get(job).status == "queued", "also after a worker is started again"
        refused = marrow_node(
            "--config", str(config), "analyse", smear.slide.study_uid, smear.slide.series_uid
        )
        assert refused.returncode == 28
        assert "resume" in refused.stderr
        with working(config, log):
            assert told("resume") == "resumed\n"
            wait_for(lambda: queue.get(job).status in ENDED, log)


def test_pages_and_readiness_tell_that_it_is_paused(tmp_path: Path) -> None:
    smear = small_smear(tmp_path)
    with running_service(smear) as service:
        config = str(service.config)
        for command, paused in (("pause", True), ("resume", False)):
            assert marrow_node("--config", config, command).returncode == 0
            answer = service.ask("GET", "/readyz", None)
            assert (answer.status_code, answer.json()["paused"]) == (200, paused)
            page = service.ask("GET", "/").text
            assert ("Paused: no further slide is begun" in page) == paused
            metrics = service.ask("GET", "/metrics").text
            assert f"marrow_node_paused {float(paused)}" in metrics


@pytest.fixture
def proxy(orthanc: Orthanc) -> Iterator[Proxy]:
    with faulty_proxy(orthanc.dicomweb_url, keep_host=True) as running:
        yield running


@pytest.mark.parametrize("drain_s", [60, 0])
def test_a_worker_that_is_told_to_end_finishes_its_slide_if_it_has_the_time(
    smear: Smear, orthanc: Orthanc, proxy: Proxy, tmp_path: Path, drain_s: int
) -> None:
    orthanc.add(*smear.slide.paths)
    config = config_of(smear, tmp_path, f"[jobs]\ndrain_s = {drain_s}\n", pacs_url=proxy.url)
    settings = load_settings(config)
    prepare_database(settings)
    log = tmp_path / "worker.log"
    told: list[float] = []
    place = Workplace.open(settings, lambda progress: None)
    slide = SlideReference(smear.slide.study_uid, smear.slide.series_uid, "test")
    with open_job_queue(settings) as queue, working(config, log) as worker:

        def end_it() -> None:
            if not told:
                told.append(time.monotonic())
                os.kill(int(worker.pid or 0), signal.SIGTERM)

        proxy.faults.append(Fault("/frames", "GET", met=end_it, delay_s=0.5, times=1))
        job = queue.submit(slide, place, "routine").job
        later = submit(queue, settings, "later", "north", "batch")
        worker.join(90)
        assert worker.exitcode == 0, log.read_text()
        assert queue.get(later).status == "queued", "nothing more is begun"
        seen = queue.get(job)
        if drain_s:
            assert (seen.status, seen.tries) == ("completed", 1), log.read_text()
            assert "in the middle of a slide" not in log.read_text()
            return
        assert seen.status == "running"
        assert "in the middle of a slide" in log.read_text()
        with working(config, tmp_path / "next.log"):
            wait_for(lambda: queue.get(job).status in ENDED, tmp_path / "next.log")
        seen = queue.get(job)
        assert (seen.status, seen.tries) == ("completed", 1), "it goes on, and is not a new try"
        assert json.dumps(seen.result)


def analysis(config: Path, slide: DemonstrationSlide) -> list[str]:
    return ["--config", str(config), "analyse", slide.study_uid, slide.series_uid]


def interrupted(config: Path, slide: DemonstrationSlide) -> bool:
    """Whether an analysis ended by an interruption in the middle, and not because it was done."""
    command = [sys.executable, "-m", "node", *analysis(config, slide)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = load_settings(config).work_folder / "progress"
    end = time.monotonic() + 120
    while not any('"localise"' in path.read_text() for path in progress.glob("*.json")):
        assert time.monotonic() < end
        time.sleep(0.002)
    children = process.children(recursive=True)
    for child in children:
        child.suspend()  # the slide would be done before a busy machine hears of the interruption
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.resume()
    return bool(process.wait(60) != 0)


def test_a_command_that_is_interrupted_leaves_its_job_to_the_next_one(
    smear: Smear, tmp_path: Path
) -> None:
    def configs() -> Iterator[Path]:
        for number in range(9):
            (folder := tmp_path / str(number)).mkdir()
            yield config_of(smear, folder)

    # A busy machine may be done with the slide before it is interrupted.
    config = next(each for each in configs() if interrupted(each, smear.slide))
    command = analysis(config, smear.slide)
    with open_job_queue(load_settings(config)) as queue:
        (job,) = queue.list()
        assert (job.status, job.error) == ("running", None), "not failed by its process' end"
        assert marrow_node(*command).returncode == 0
        (job,) = queue.list()
        assert (job.status, job.tries) == ("completed", 1)
