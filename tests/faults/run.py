"""One run: a job, the faults of its schedule, and whether the promise was kept."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import psycopg

from dicom_io.errors import ConfigurationInvalid, DiskFull
from node.config import Settings
from node.job import ENDED, Job
from node.job_queue import JobQueue, open_job_queue
from node.pipeline import SlideReference
from node.workplace import Workplace
from tests.archive_habits import HARMFUL, REPEATS, ArchiveHabits, document_in, stow_answer
from tests.faults.schedule import (
    CLOCK_STEP_S,
    REQUESTS,
    STAGES,
    TOKEN,
    UPGRADE,
    VERSION,
    Event,
    Moment,
    Schedule,
    schedule_of,
)
from tests.faults.sentence import violations
from tests.faults.world import NEXT_VERSION, Lasting, Site, Worker, World
from tests.faulty_proxy import Answer, Fault, Forward, Proxy, Request
from tests.fhir_fixture import FhirServer
from tests.servers import Orthanc

LOOK_S = 0.002
JOB_LOOK_S = 0.2
DATABASE_LOOK_S = 0.02
LONGEST_S = 300.0
# One that was thought dead and goes on ends within that time, or does harm.
FENCED_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one schedule.

    Attributes
    ----------
    seed
    version
        Of what seeds mean.
    faults
        Kinds: habits of the archive, the database, then faults in the order of the schedule.
    told
        The schedule in words.
    happened
        Which of the kinds came about: a job may be over before.
    status
        Of the job, once it had ended.
    error
        Class of the error, by its exit code; 0 completed.
    tries
    starts
        Of the worker.
    seconds
    violations
    said
        By the workers, where something was violated.
    """

    seed: int
    version: int
    faults: tuple[str, ...]
    told: tuple[str, ...]
    happened: tuple[bool, ...]
    status: str
    error: int
    tries: int
    starts: int
    seconds: float
    violations: tuple[str, ...]
    said: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What faults happen to.

    Attributes
    ----------
    world
    site
    workers
        One of each host; what hits a worker hits the first, which takes the job.
    habits
        Of the archive.
    """

    world: World
    site: Site
    workers: tuple[Worker, ...]
    habits: ArchiveHabits


def run(world: World, seed: int, folder: Path) -> Outcome:
    """Run the schedule of a seed."""
    return play(world, schedule_of(seed), folder, seed)


def play(world: World, schedule: Schedule, folder: Path, seed: int = 0) -> Outcome:
    """Run one schedule; the faults are over before what a failed job has left is tried again."""
    scene = _scene(world, schedule, folder)
    begin = time.monotonic()
    with open_job_queue(scene.site.settings) as queue:
        try:
            job = submit(queue, scene.site.settings, world)
            with _faults(scene, schedule.events, folder) as happened:
                ended = _ended(queue, scene, job)
            if schedule.hosts > 1:
                time.sleep(FENCED_WITHIN_S)
            seconds = time.monotonic() - begin
            harmed = scene.habits.change if scene.habits.change in scene.habits.met else ""
            wrong = violations(world, scene.site.settings, ended, harmed in HARMFUL)
            met = set(scene.habits.met)
            if not wrong and ended.status == "failed":
                wrong = _tried_again(scene, queue, job)
        finally:
            for worker in scene.workers:
                worker.stop()
    kinds = _kinds(schedule, met, happened)
    return Outcome(
        seed,
        VERSION,
        tuple(kind for kind, _ in kinds),
        schedule.told,
        tuple(came for _, came in kinds),
        ended.status,
        ended.exit_code or 0,
        ended.tries,
        sum(worker.starts for worker in scene.workers),
        round(seconds, 2),
        tuple(wrong),
        "\n".join(worker.said for worker in scene.workers) if wrong else "",
    )


def _scene(world: World, schedule: Schedule, folder: Path) -> Scene:
    site = world.fresh(folder, schedule)
    habits = ArchiveHabits(schedule.repeat, schedule.shown_after_s, schedule.change)

    def habit(request: Request, forward: Forward) -> Answer:
        return habits.answer(request, forward, world.orthanc.rest_url)

    world.pacs_proxy.habit = habit
    clock = {}
    if schedule.needs_clock:
        clock = {"LD_PRELOAD": str(world.clock), "CLOCK_OFFSET_FILE": str(site.clock)}
    workers = tuple(Worker(config, dict(clock)) for config in site.configs)
    return Scene(world, site, workers, habits)


def _kinds(schedule: Schedule, met: set[str], happened: list[bool]) -> list[tuple[str, bool]]:
    """Kind → whether it came about."""
    habits: list[str] = [schedule.change] if schedule.change else []
    habits += ["shows objects later"] if schedule.shown_after_s else []
    # What an archive does with a repeat shows where there was one.
    habits += [schedule.repeat] if schedule.repeat in met and schedule.repeat != REPEATS[0] else []
    kinds = [(f"archive {habit}", habit in met) for habit in habits]
    if schedule.database == "PostgreSQL":
        kinds.append((f"PostgreSQL, {schedule.hosts} host{'s' * (schedule.hosts > 1)}", True))
    faults = [event.kind for event in schedule.events]
    return [*kinds, *zip(faults, happened, strict=True)]


def submit(queue: JobQueue, settings: Settings, world: World) -> str:
    slide = world.smear.slide
    place = Workplace.open(settings, lambda progress: None)
    reference = SlideReference(slide.study_uid, slide.series_uid, "fault injection")
    return queue.submit(reference, place, "routine").job


def _ended(queue: JobQueue, scene: Scene, job: str) -> Job:
    """Keep the workers alive until the job has ended, as the service does."""
    end = time.monotonic() + LONGEST_S
    first, *others = scene.workers
    while True:
        seen = _looked_up(queue, job)
        if seen is not None and (seen.status in ENDED or time.monotonic() > end):
            return seen
        first.look()
        if seen is not None and seen.status != "queued":
            for worker in others:
                worker.look()
        time.sleep(JOB_LOOK_S)


def _looked_up(queue: JobQueue, job: str) -> Job | None:
    """None while the database is away."""
    try:
        return queue.get(job)
    except DiskFull:
        return None


def _tried_again(scene: Scene, queue: JobQueue, job: str) -> list[str]:
    """What is wrong after a failed job was tried again without a fault."""
    scene.habits.over(scene.world.orthanc)
    scene.site.turn_clock(0)
    queue.retry(job)
    ended = _ended(queue, scene, job)
    if ended.exit_code == ConfigurationInvalid.exit_code:
        # As its sentence says: what another version has not made, this one makes anew.
        with mock.patch("node.workplace.__version__", NEXT_VERSION):
            again = submit(queue, scene.site.settings, scene.world)
        ended = _ended(queue, scene, again)
    wrong = violations(scene.world, scene.site.settings, ended)
    if ended.status != "completed":
        wrong.append(f"tried again without a fault, the job is {ended.status}: {ended.error}")
    return wrong


@contextmanager
def _faults(scene: Scene, events: tuple[Event, ...], folder: Path) -> Iterator[list[bool]]:
    """Let the events happen, each in its time; at the end all is as before."""
    over = threading.Event()
    happened = [False] * len(events)
    threads = [
        threading.Thread(target=_happen, args=(scene, event, folder, over, happened, n))
        for n, event in enumerate(events)
    ]
    for thread in threads:
        thread.start()
    try:
        yield happened
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for proxy in (scene.world.pacs_proxy, scene.world.ehr_proxy):
            proxy.faults.clear()


def _happen(
    scene: Scene,
    event: Event,
    folder: Path,
    over: threading.Event,
    happened: list[bool],
    number: int,
) -> None:
    def note() -> None:
        happened[number] = True

    if event.kind in HITS:
        struck = _struck(scene, event, folder, over, note)
        if struck:
            HITS[event.kind][1](scene, event)
    else:
        proxy, fault = _request_fault(scene.world, event, note)
        proxy.faults.append(fault)


def _request_fault(world: World, event: Event, note: Callable[[], None]) -> tuple[Proxy, Fault]:
    proxy, fault = _touching(world, event.at)
    fault.times, fault.met = event.times, note
    if event.kind.startswith("reset "):
        fault.reset = event.kind.removeprefix("reset ")  # type: ignore[assignment]
    elif event.kind.startswith("not stored"):
        fault.habit = partial(_not_stored, event)
    elif event.kind == "stored with a warning":
        fault.habit = _stored_with_a_warning
    elif event.status:
        fault.status = event.status
    elif event.kind == "slow trickle":
        fault.trickle_s = event.seconds
    elif event.kind == "half answer, closed":
        fault.cut = True
    elif event.kind == "half answer as whole":
        fault.habit = partial(_half, proxy)
    elif event.kind == "request twice":
        fault.twice = True
    elif event.kind == "answer twice":
        fault.told_twice = True
    elif event.kind == TOKEN:
        fault.asked = world.tokens.expire_all
    else:
        raise ValueError(event.kind)
    return proxy, fault


def _not_stored(event: Event, request: Request, forward: Forward) -> Answer:
    uid = str(document_in(request).SOPInstanceUID)
    return stow_answer(uid, event.status, failure=event.reason)


def _stored_with_a_warning(request: Request, forward: Forward) -> Answer:
    answer = forward(request)
    uid = str(document_in(request).SOPInstanceUID)
    return stow_answer(uid, 202, warning=0xB007) if answer.status == 200 else answer


def _half(proxy: Proxy, request: Request, forward: Forward) -> Answer:
    answer = (proxy.habit or _passed_on)(request, forward)
    return Answer(answer.status, answer.headers, answer.content[: len(answer.content) // 2])


def _passed_on(request: Request, forward: Forward) -> Answer:
    return forward(request)


def _touching(world: World, moment: Moment) -> tuple[Proxy, Fault]:
    side, _, method, path = REQUESTS[moment.which]
    proxy = world.pacs_proxy if side == "PACS" else world.ehr_proxy
    return proxy, Fault(path=path, method=method, skip=moment.skip)


def _struck(
    scene: Scene,
    event: Event,
    folder: Path,
    over: threading.Event,
    note: Callable[[], None],
) -> bool:
    """Wait for the moment, and strike; False where the job was over before."""
    moment, strike = event.at, HITS[event.kind][0]

    def hit() -> None:
        note()
        strike(scene, event)

    if moment.occasion in ("request", "answer"):
        proxy, fault = _touching(scene.world, moment)
        fault.times = 1
        struck = threading.Event()

        def now() -> None:
            hit()
            struck.set()

        if moment.occasion == "request":
            fault.asked = now
        else:
            fault.obeyed = now
        proxy.faults.append(fault)
        while not struck.wait(LOOK_S):
            if over.is_set():
                return struck.is_set()
        return True
    reached = _stages if moment.occasion == "stage" else _steps(scene.site.settings)
    pause_s = DATABASE_LOOK_S if scene.site.settings.database_url else LOOK_S
    while not reached(folder, moment):
        if over.wait(pause_s):
            return False
    time.sleep(moment.later_s)
    hit()
    return True


def _steps(settings: Settings) -> Callable[[Path, Moment], bool]:
    """Whether so many steps were recorded."""
    recorded = _recorded_there if settings.database_url else _recorded_here
    return lambda folder, moment: recorded(settings) >= moment.which


def _recorded_here(settings: Settings) -> int:
    file = f"file:{settings.work_folder}/jobs.sqlite?mode=ro"
    try:
        with closing(sqlite3.connect(file, uri=True)) as database:
            ((count,),) = database.execute("SELECT COUNT(*) FROM operation_outputs")
    except sqlite3.OperationalError:  # just being written
        return 0
    return int(count)


def _recorded_there(settings: Settings) -> int:
    try:
        with psycopg.connect(settings.database_url, connect_timeout=1) as database:
            rows = database.execute("SELECT COUNT(*) FROM dbos.operation_outputs").fetchall()
    except psycopg.OperationalError:  # it is away
        return 0
    return int(rows[0][0])


def _stages(folder: Path, moment: Moment) -> bool:
    """Whether the stage, or a later one, is at work."""
    for path in (folder / "progress").glob("*.json"):
        try:
            stage = json.loads(path.read_bytes())["stage"]
        except FileNotFoundError:  # replaced between listing and reading
            continue
        return STAGES.index(stage) >= moment.which
    return False


def _kill_worker(scene: Scene, event: Event) -> None:
    scene.workers[0].kill(event.seconds)


def _stop_worker(scene: Scene, event: Event) -> None:
    scene.workers[0].signal(signal.SIGSTOP)


def _go_on_worker(scene: Scene, event: Event) -> None:
    time.sleep(event.seconds)
    scene.workers[0].signal(signal.SIGCONT)


def _upgrade(scene: Scene, event: Event) -> None:
    """From now on each host runs the next version."""
    for worker in scene.workers:
        path = os.pathsep.join([str(scene.world.next_version), str(Path.cwd())])
        worker.environment["PYTHONPATH"] = path
        # Else the folder in which it starts is searched first, and what an installation left there.
        worker.environment["PYTHONSAFEPATH"] = "1"
        worker.kill()


def _turn_clock(scene: Scene, event: Event) -> None:
    scene.site.turn_clock(CLOCK_STEP_S if event.kind == "clock forward" else -CLOCK_STEP_S)


def _fill_disk(scene: Scene, event: Event) -> None:
    scene.workers[0].limit_files(event.bytes_left)


def _free_disk(scene: Scene, event: Event) -> None:
    time.sleep(event.seconds)
    scene.workers[0].limit_files(-1)


def _kill_server(scene: Scene, event: Event) -> None:
    _server(scene.world, event).kill()


def _start_server(scene: Scene, event: Event) -> None:
    _server(scene.world, event).start_again(event.seconds)


def _stop_server(scene: Scene, event: Event) -> None:
    _server(scene.world, event).signal(signal.SIGSTOP)


def _go_on_server(scene: Scene, event: Event) -> None:
    time.sleep(event.seconds)
    _server(scene.world, event).signal(signal.SIGCONT)


def _server(world: World, event: Event) -> Lasting[Orthanc] | Lasting[FhirServer]:
    return world.archive if event.kind.endswith("PACS") else world.records


def _hit_database(scene: Scene, event: Event) -> None:
    server = scene.world.postgresql
    assert server is not None
    server.down.acquire()  # of two hits the second waits until it runs again
    if event.kind == "kill database":
        server.kill()
    elif event.kind == "restart database":
        server.stop()
    else:
        server.signal(signal.SIGSTOP)


def _mend_database(scene: Scene, event: Event) -> None:
    server = scene.world.postgresql
    assert server is not None
    time.sleep(event.seconds)
    if event.kind == "stop database":
        server.signal(signal.SIGCONT)
    else:
        server.start()
    server.down.release()


def _nothing(scene: Scene, event: Event) -> None:
    """What was killed is started again by others; what was turned stays so."""


# Kind of event → what strikes, and what mends it again.
Hit = Callable[[Scene, Event], None]
HITS: dict[str, tuple[Hit, Hit]] = {
    "kill worker": (_kill_worker, _nothing),
    "stop worker": (_stop_worker, _go_on_worker),
    UPGRADE: (_upgrade, _nothing),
    "clock forward": (_turn_clock, _nothing),
    "clock back": (_turn_clock, _nothing),
    "disk full": (_fill_disk, _free_disk),
    "kill PACS": (_kill_server, _start_server),
    "kill EHR": (_kill_server, _start_server),
    "stop PACS": (_stop_server, _go_on_server),
    "stop EHR": (_stop_server, _go_on_server),
    "kill database": (_hit_database, _mend_database),
    "stop database": (_hit_database, _mend_database),
    "restart database": (_hit_database, _mend_database),
}
