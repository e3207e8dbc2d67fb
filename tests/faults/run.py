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
from pathlib import Path

from node.config import Settings, load_settings
from node.job import ENDED, Job
from node.job_queue import JobQueue, open_job_queue
from node.pipeline import SlideReference
from node.workplace import Workplace
from tests.faults.schedule import REQUESTS, STAGES, Event, Moment, schedule_of
from tests.faults.sentence import violations
from tests.faults.world import Worker, World
from tests.faulty_proxy import Fault, Proxy

LOOK_S = 0.002
LONGEST_S = 300.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one schedule.

    Attributes
    ----------
    seed
    faults
        Kinds, in the order of the schedule.
    told
        The same in words.
    happened
        Which of them came about: a job may be over before.
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


def run(world: World, seed: int, folder: Path) -> Outcome:
    """Run one schedule; the faults are over before what a failed job has left is tried again."""
    events = schedule_of(seed)
    config = world.fresh(folder)
    settings = load_settings(config)
    worker = Worker(config, folder)
    begin = time.monotonic()
    with open_job_queue(settings) as queue:
        try:
            job = submit(queue, settings, world)
            with _faults(world, worker, events, folder) as happened:
                ended = _ended(queue, worker, job)
            seconds = time.monotonic() - begin
            wrong = violations(world, settings, ended)
            if not wrong and ended.status == "failed":
                wrong = _tried_again(world, settings, queue, worker, job)
        finally:
            worker.stop()
    return Outcome(
        seed,
        tuple(event.kind for event in events),
        tuple(event.told for event in events),
        tuple(happened),
        ended.status,
        ended.exit_code or 0,
        ended.tries,
        worker.starts,
        round(seconds, 2),
        tuple(wrong),
        worker.said if wrong else "",
    )


def submit(queue: JobQueue, settings: Settings, world: World) -> str:
    slide = world.smear.slide
    place = Workplace.open(settings, lambda progress: None)
    reference = SlideReference(slide.study_uid, slide.series_uid, "fault injection")
    return queue.submit(reference, place, "routine").job


def _ended(queue: JobQueue, worker: Worker, job: str) -> Job:
    """Keep the worker alive until the job has ended, as the service does."""
    end = time.monotonic() + LONGEST_S
    while (seen := queue.get(job)).status not in ENDED and time.monotonic() < end:
        worker.look()
        time.sleep(0.05)
    return seen


def _tried_again(
    world: World, settings: Settings, queue: JobQueue, worker: Worker, job: str
) -> list[str]:
    """What is wrong after a failed job was tried again without a fault."""
    queue.retry(job)
    ended = _ended(queue, worker, job)
    wrong = violations(world, settings, ended)
    if ended.status != "completed":
        wrong.append(f"tried again without a fault, the job is {ended.status}: {ended.error}")
    return wrong


@contextmanager
def _faults(
    world: World, worker: Worker, events: tuple[Event, ...], folder: Path
) -> Iterator[list[bool]]:
    """Let the events happen, each in its time; at the end all is as before."""
    over = threading.Event()
    happened = [False] * len(events)
    threads = [
        threading.Thread(target=_happen, args=(world, worker, event, folder, over, happened, n))
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
        for proxy in (world.pacs_proxy, world.ehr_proxy):
            proxy.faults.clear()


def _happen(
    world: World,
    worker: Worker,
    event: Event,
    folder: Path,
    over: threading.Event,
    happened: list[bool],
    number: int,
) -> None:
    def note() -> None:
        happened[number] = True

    if event.kind in HITS:
        struck = _struck(world, worker, event, folder, over, note)
        if struck:
            HITS[event.kind][1](world, worker, event)
    else:
        proxy, fault = _request_fault(world, event, note)
        proxy.faults.append(fault)


def _request_fault(world: World, event: Event, note: Callable[[], None]) -> tuple[Proxy, Fault]:
    proxy, fault = _touching(world, event.at)
    fault.times, fault.met = event.times, note
    if event.kind.startswith("reset "):
        fault.reset = event.kind.removeprefix("reset ")  # type: ignore[assignment]
    elif event.status:
        fault.status = event.status
    elif event.kind == "slow trickle":
        fault.trickle_s = event.seconds
    else:
        fault.twice = True
    return proxy, fault


def _touching(world: World, moment: Moment) -> tuple[Proxy, Fault]:
    side, _, method, path = REQUESTS[moment.which]
    proxy = world.pacs_proxy if side == "PACS" else world.ehr_proxy
    return proxy, Fault(path=path, method=method, skip=moment.skip)


def _struck(
    world: World,
    worker: Worker,
    event: Event,
    folder: Path,
    over: threading.Event,
    note: Callable[[], None],
) -> bool:
    """Wait for the moment, and strike; False where the job was over before."""
    moment, strike = event.at, HITS[event.kind][0]

    def hit() -> None:
        note()
        strike(world, worker, event)

    if moment.occasion in ("request", "answer"):
        proxy, fault = _touching(world, moment)
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
    reached = _steps if moment.occasion == "step" else _stages
    while not reached(folder, moment):
        if over.wait(LOOK_S):
            return False
    time.sleep(moment.later_s)
    hit()
    return True


def _steps(folder: Path, moment: Moment) -> bool:
    """Whether so many steps were recorded."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/jobs.sqlite?mode=ro", uri=True)) as database:
            ((count,),) = database.execute("SELECT COUNT(*) FROM operation_outputs")
    except sqlite3.OperationalError:  # just being written
        return False
    return int(count) >= moment.which


def _stages(folder: Path, moment: Moment) -> bool:
    """Whether the stage, or a later one, is at work."""
    for path in (folder / "progress").glob("*.json"):
        try:
            stage = json.loads(path.read_bytes())["stage"]
        except FileNotFoundError:  # replaced between listing and reading
            continue
        return STAGES.index(stage) >= moment.which
    return False


def _kill_worker(world: World, worker: Worker, event: Event) -> None:
    worker.kill(event.seconds)


def _stop_worker(world: World, worker: Worker, event: Event) -> None:
    worker.signal(signal.SIGSTOP)


def _go_on_worker(world: World, worker: Worker, event: Event) -> None:
    time.sleep(event.seconds)
    worker.signal(signal.SIGCONT)


def _fill_disk(world: World, worker: Worker, event: Event) -> None:
    worker.limit_files(event.bytes_left)


def _free_disk(world: World, worker: Worker, event: Event) -> None:
    time.sleep(event.seconds)
    worker.limit_files(-1)


def _kill_pacs(world: World, worker: Worker, event: Event) -> None:
    os.kill(world.orthanc.pid, signal.SIGKILL)


def _start_pacs(world: World, worker: Worker, event: Event) -> None:
    world.archive.start_again(event.seconds)


def _stop_server(world: World, worker: Worker, event: Event) -> None:
    os.kill(_pid(world, event), signal.SIGSTOP)


def _go_on_server(world: World, worker: Worker, event: Event) -> None:
    time.sleep(event.seconds)
    os.kill(_pid(world, event), signal.SIGCONT)


def _pid(world: World, event: Event) -> int:
    return world.orthanc.pid if event.kind.endswith("PACS") else world.ehr.pid


def _nothing(world: World, worker: Worker, event: Event) -> None:
    """What was killed is started again by others."""


# Kind of event → what strikes, and what mends it again.
Hit = Callable[[World, Worker, Event], None]
HITS: dict[str, tuple[Hit, Hit]] = {
    "kill worker": (_kill_worker, _nothing),
    "stop worker": (_stop_worker, _go_on_worker),
    "disk full": (_fill_disk, _free_disk),
    "kill PACS": (_kill_pacs, _start_pacs),
    "stop PACS": (_stop_server, _go_on_server),
    "stop EHR": (_stop_server, _go_on_server),
}
