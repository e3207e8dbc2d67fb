"""The durable job: each stage of the way is a step that is never done twice.

DBOS keeps every step's small JSON result in a database (SQLite in the work folder by default). A
process that is killed at any moment leaves the job pending; the next process that opens the work
folder goes on after the last finished step. Nothing is pickled: the serializer is JSON.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import uuid4

from dbos import DBOS, DBOSPortableJSONSerializer

from dicom_io.errors import JobCancelled, SlideProcessDied, WorkFileMissing
from models.errors import MarrowNodeError
from node import review_stages, stages
from node.at_work import AtWork
from node.audited import result_reviewed, slide_analysed
from node.callback import call_back
from node.config import Settings
from node.device import check_device
from node.documents import load_ahead
from node.earlier_tries import as_begun
from node.intake import await_whole
from node.job import (
    ANALYSE,
    ARRIVAL_SUFFIX,
    ARRIVALS,
    ARRIVE,
    CALL_BACK,
    CALLBACKS,
    ENDED,
    FIND,
    QUEUE,
    REVIEW,
    REVIEWS,
    Job,
    sited,
    try_of,
)
from node.job_database import (
    APPLICATION,
    database_errors,
    database_url,
    open_job_database,
    poll_s,
    pool,
    prepare_database,
)
from node.job_news import JobNews
from node.job_places import analysis_place, check_unchanged, review_place
from node.job_queue import JobQueue, progress_file, retry_delay_s
from node.lease import beating, held_lease
from node.log import telling_of, where_raised
from node.metrics import count_failure, count_given_up, count_result
from node.pipeline import SlideReference, Step, analyse
from node.progress import Progress
from node.recovery import LOOK_S, executor, recover_dead, recover_from
from node.repeated import repeated
from node.review import Review, review_from
from node.review_way import review_result
from node.slide_process import SlideProcesses, Work, slide_processes
from node.slide_search import queue_slides
from node.steps import Steps, still_ours
from node.work_lock import host_name, lock_folder, take_worker
from node.workplace import Workplace

log = logging.getLogger(__name__)

# Not that of the node: the next version finishes the jobs of this one, which DBOS would else leave
# to workers of the same version. A job whose steps are others by then fails visibly.
WORKFLOWS = "1"
# Steps that depend on model, settings and version; those after them deliver what these have made.
_MAKING = ("localise", "detect", "count", "write")
ARRIVALS_AT_A_TIME = CALLBACKS_AT_A_TIME = 16
# Many may wait there, and each look at the queue reads them all.
ARRIVALS_POLL_S = 0.5
# Nothing here waits for what DBOS notifies of, for which it would wake a hundred times a second.
NOTIFY_S = 1.0
WATCH_S = 0.1
DBOS_KEEPS = 2
# The database has the moment when a try is due by the clock of whoever queued it: turned back by an
# hour, that clock would let it wait an hour longer.
DELAYS_LOOK_S = 5.0
ENDS_LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that works on the jobs of a work folder. Made by :func:`open_worker`.

    Attributes
    ----------
    jobs
    """

    jobs: JobQueue
    _stop: Callable[[], None] = field(default=lambda: None, repr=False)
    _at_work: AtWork = field(default_factory=AtWork, repr=False)

    def submit(self, slide: SlideReference, place: Workplace) -> str:
        """Queue a slide, or join the job that is already at it. Returns the job's identifier."""
        return self.jobs.submit(slide, place, again=True).job

    def wait(self, job: str, watch: Callable[[Progress], None]) -> Job:
        """Wait until a job has ended, telling `watch` of its progress meanwhile."""
        while (seen := self.jobs.get(job)).status not in ENDED:
            if seen.progress is not None:
                watch(seen.progress)
            time.sleep(WATCH_S)
        return seen

    def drain(self, seconds: float) -> bool:
        """Begin nothing more, and finish slides and reviews that are at work.

        Nothing further is recorded then, and this process has to end: what was not finished, the
        next worker goes on with.

        Returns
        -------
        bool
            Whether all were finished in time.
        """
        self._stop()
        end_s = time.monotonic() + seconds
        while self._at_work.count and time.monotonic() < end_s:
            time.sleep(WATCH_S)
        return self._at_work.leave()


@contextmanager
def open_worker(settings: Settings) -> Iterator[Worker]:
    """Join a work folder as a worker, and finish what dead workers left.

    Parameters
    ----------
    settings

    Raises
    ------
    InferenceFailed
        When the GPU that is asked for does not work.
    DiskFull
        When the work folder or its database cannot be written.
    """
    check_device(settings.model)
    folder = lock_folder(settings)
    with ExitStack() as held, database_errors(settings):
        # Before the lock and all connections, which processes of slides must not have.
        slides = held.enter_context(slide_processes(settings.budget, _slide_work(settings)))
        name, lock = take_worker(folder)
        held.enter_context(lock)
        prepare_database(settings)
        lease = None
        if settings.database_url:
            lease = held.enter_context(held_lease(settings, f"{host_name(settings)}.{name}"))
        own = executor(name, uuid4().hex[:8]) if lease is None else lease.executor
        # One for all that this worker asks and queues: each has connections of its own.
        database = held.enter_context(open_job_database(settings))
        jobs, news = JobQueue(database), JobNews(database)
        dbos = DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": database_url(settings),
                "serializer": DBOSPortableJSONSerializer(),
                "executor_id": own,
                "application_version": WORKFLOWS,
                "log_level": "CRITICAL",
                "db_engine_kwargs": pool(settings, DBOS_KEEPS),
                "notification_listener_polling_interval_sec": poll_s(settings),
                "notification_coalesce_sec": NOTIFY_S,
            }
        )
        at_work = AtWork()
        still_held = still_ours if lease is None else lease.check

        def check() -> None:
            at_work.check()
            still_held()

        def stop() -> None:
            # As DBOS does before it waits for workflows; it would wait for all arrivals too.
            for event in dbos.background_thread_stop_events:
                event.set()

        news.adopt_callbacks()
        _register(settings, jobs, Steps(check), slides, at_work)
        try:
            DBOS.launch()
            # Not updated: it may be paused, or resumed in this very moment.
            DBOS.register_queue(
                QUEUE,
                worker_concurrency=1,
                polling_interval_sec=poll_s(settings),
                on_conflict="never_update",
            )
            DBOS.register_queue(
                ARRIVALS,
                worker_concurrency=ARRIVALS_AT_A_TIME,
                polling_interval_sec=max(ARRIVALS_POLL_S, poll_s(settings)),
            )
            DBOS.register_queue(
                CALLBACKS,
                worker_concurrency=CALLBACKS_AT_A_TIME,
                polling_interval_sec=max(ARRIVALS_POLL_S, poll_s(settings)),
            )
            DBOS.register_queue(
                REVIEWS, worker_concurrency=1, polling_interval_sec=poll_s(settings)
            )
            with ExitStack() as watching:
                recover = DBOS._recover_pending_workflows
                if lease is None:
                    look = partial(recover_dead, jobs, recover, folder, own)
                    watching.enter_context(repeated(look, LOOK_S, "recovery"))
                else:
                    give = partial(recover_from, jobs, recover)
                    watching.enter_context(beating(lease, jobs.executors, give))
                watching.enter_context(repeated(jobs.shorten_delays, DELAYS_LOOK_S, "delays"))
                watching.enter_context(repeated(news.tell_ended, ENDS_LOOK_S, "callbacks"))
                yield Worker(jobs, stop, at_work)
        finally:
            DBOS.destroy()


def _slide_work(settings: Settings) -> Work:
    """What the processes of slides do."""
    return Work(
        {ANALYSE: partial(analysis_place, settings), REVIEW: partial(review_place, settings)},
        (
            stages.open_,
            stages.localise,
            stages.detect,
            stages.count,
            stages.write,
            review_stages.open_review,
            review_stages.correct,
            review_stages.write,
        ),
        load_ahead,
    )


def _register(
    settings: Settings, jobs: JobQueue, steps: Steps, slides: SlideProcesses, at_work: AtWork
) -> None:
    @DBOS.workflow(name=ANALYSE)
    def analyse_slide(arguments: dict[str, Any]) -> Any:
        with at_work.one_more(), _try(settings, jobs, steps, arguments) as try_id:
            report = steps.report_to(progress_file(settings, try_id).report)
            place = analysis_place(settings, arguments, report)
            step = _going_on(place, jobs, steps, arguments, try_id)
            with slides.process(ANALYSE, arguments, report, try_id) as apart:
                result = analyse(replace(place, apart=apart), _slide(arguments), step)
            count_result(result)
            steps.step("audit", lambda: _audited(settings, arguments, result))
            return dict(result)

    @DBOS.workflow(name=REVIEW)
    def review_slide(arguments: dict[str, Any]) -> Any:
        with at_work.one_more(), _try(settings, jobs, steps, arguments) as try_id:
            report = steps.report_to(progress_file(settings, try_id).report)
            place = review_place(settings, arguments, report)
            review = review_from(arguments["review"])
            with slides.process(REVIEW, arguments, report, try_id) as apart:
                place = replace(place, apart=apart)
                result = review_result(place, arguments["identity"], review, steps.timed)
            steps.step("audit", lambda: _reviewed(place.settings, review, result))
            return dict(result)

    @DBOS.workflow(name=ARRIVE)
    def await_slide(arguments: dict[str, Any]) -> Any:
        with _try(settings, jobs, steps, arguments) as try_id:
            arrived = await_whole(
                sited(settings, arguments), _slide(arguments), steps.step, steps.sleep
            )
            steps.step("queue", lambda: _queued(jobs, try_id, arguments | arrived))
            return arrived

    @DBOS.workflow(name=FIND)
    def find(arguments: dict[str, Any]) -> Any:
        with _heard(arguments.get("study_uid") or "", lambda _: count_given_up("search")):
            return queue_slides(settings, jobs, steps, arguments)

    @DBOS.workflow(name=CALL_BACK)
    def tell(arguments: dict[str, Any]) -> Any:
        def post() -> dict[str, Any]:
            call_back(arguments["url"], arguments["told"], settings.serve)
            return {}

        study_uid = arguments["told"].get("study_uid") or ""
        with _heard(study_uid, lambda _: count_given_up("call")):
            return steps.patient("post", post, settings.jobs)


def _going_on(
    place: Workplace, jobs: JobQueue, steps: Steps, arguments: Mapping[str, Any], try_id: str
) -> Step:
    """Steps of an analysis, of which nothing is made with other settings than it has begun with.

    What was written before an upgrade of the node, its model or its settings is delivered as it is,
    by this try or an earlier one: parts of it may have been delivered before.
    """
    begun = dict(arguments)  # an earlier version recorded nothing of it when the slide was opened

    def step(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        def checked() -> dict[str, Any]:
            if name in _MAKING:
                check_unchanged(place, begun, try_id)
            done = stage()
            return as_begun(place, jobs, done, try_id) if name == "open" else done

        done = steps.timed(name, checked)
        if name == "open":
            begun.update(done)
        return done

    return step


def _audited(
    settings: Settings, arguments: Mapping[str, Any], result: Mapping[str, Any]
) -> dict[str, Any]:
    slide_analysed(sited(settings, arguments), result)
    return {}


def _reviewed(settings: Settings, review: Review, result: Mapping[str, Any]) -> dict[str, Any]:
    result_reviewed(settings, review, result)
    return {}


def _queued(
    jobs: JobQueue,
    try_id: str,
    arguments: Mapping[str, Any],
    await_arrival: bool = False,
    delay_s: float = 0.0,
) -> dict[str, Any]:
    changed = jobs.changed(DBOS.workflow_id or "")
    jobs.enqueue(try_id, {**arguments, **changed}, await_arrival, delay_s)
    return {}


@contextmanager
def _try(
    settings: Settings, jobs: JobQueue, steps: Steps, arguments: Mapping[str, Any]
) -> Iterator[str]:
    """One try of a job, which is tried again later if its failure may pass."""
    try_id = (DBOS.workflow_id or "").removesuffix(ARRIVAL_SUFFIX)
    try:
        with _heard(arguments["study_uid"]):
            try:
                yield try_id
            except SlideProcessDied as died:
                aside = _put_aside(settings, arguments, died)
                if aside is died:
                    raise
                raise aside from died
    except JobCancelled:
        raise
    except MarrowNodeError as error:
        if not _tried_later(settings, jobs, steps, try_id, arguments, error):
            count_given_up("job")
        raise
    except Exception:
        count_given_up("job")
        raise


@contextmanager
def _heard(study_uid: str, counted: Callable[[Exception], None] = count_failure) -> Iterator[None]:
    """A failure of a workflow is counted, and stands in the log."""
    with telling_of((DBOS.workflow_id or "").removesuffix(ARRIVAL_SUFFIX), study_uid):
        try:
            yield
        except MarrowNodeError as error:
            counted(error)
            log.warning("%s", error)
            raise
        except Exception as error:
            counted(error)
            log.error("Unexpected failure: %s", where_raised(error))
            raise


def _put_aside(
    settings: Settings, arguments: Mapping[str, Any], error: SlideProcessDied
) -> SlideProcessDied:
    """The error as it is, unless its slide has ended too many processes."""
    deaths = int(arguments.get("deaths", 0)) + 1
    most = settings.budget.deaths
    if deaths < most or not arguments.get("priority"):
        return error
    return SlideProcessDied(
        f"Put aside after {deaths} processes ended that read the slide (budget.deaths): {error} "
        "It can be tried again by hand."
    )


def _tried_later(
    settings: Settings,
    jobs: JobQueue,
    steps: Steps,
    try_id: str,
    arguments: Mapping[str, Any],
    error: MarrowNodeError,
) -> bool:
    """Queue the next try where there is one.

    Commands, for whom somebody waits, have none, unless it was another host's worker that took
    their review: the host that has the result may take it next.
    """
    died = isinstance(error, SlideProcessDied)
    failures = int(arguments.get("failures", 0)) + (not died)
    deaths = int(arguments.get("deaths", 0)) + died
    elsewhere = "review" in arguments and isinstance(error, WorkFileMissing)
    if not error.transient or not (arguments.get("priority") or elsewhere):
        return False
    if failures > settings.jobs.retries or (died and deaths >= settings.budget.deaths):
        return False
    job, number = try_of(try_id)
    counts = {"failures": failures, "deaths": deaths}
    later = {**arguments, **counts, "tried_before": str(error)}
    delay_s = retry_delay_s(settings, failures + deaths)
    arrives = (DBOS.workflow_id or "").endswith(ARRIVAL_SUFFIX)
    next_try = f"{job}-{number + 1}"
    steps.step("try later", lambda: _queued(jobs, next_try, later, arrives, delay_s))
    return True


def _slide(arguments: Mapping[str, Any]) -> SlideReference:
    return SlideReference(
        arguments["study_uid"], arguments["series_uid"], arguments.get("reason", "")
    )
