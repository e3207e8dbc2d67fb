"""The queue of jobs, as every process sees it: submit, look, cancel, try again.

Web pages, commands and workers all go through the job database (SQLite in the work folder, or
PostgreSQL); none of them needs to be the process that works.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from dbos import EnqueueOptions, WorkflowStatus

from dicom_io.errors import JobNotFound, JobRefused, SharedStorageUnreachable
from models.errors import ReviewRefused
from node.config import Settings
from node.job import (
    ACTIVE,
    ANALYSE,
    ARRIVAL_SUFFIX,
    ARRIVALS,
    ARRIVE,
    ENDED,
    OF_WORKITEM,
    PRIORITIES,
    QUEUE,
    REVIEW,
    REVIEWS,
    Job,
    JobStatus,
    arguments_of,
    identifier,
    job_arguments,
    job_of,
    sited,
    submitted_job,
    try_of,
)
from node.job_database import JobDatabase, database_errors, open_job_database, poll_s
from node.job_news import JobNews
from node.job_workflows import Workflows, state_of
from node.progress import ProgressFile
from node.revisions import find_seen, revisions
from node.rule_settings import Priority
from node.turns import Waiting, number_of

if TYPE_CHECKING:  # commands that only look at jobs need not load what works on them
    from node.pipeline import SlideReference
    from node.review import Review
    from node.workplace import Workplace

log = logging.getLogger(__name__)

_QUEUES = {ANALYSE: QUEUE, ARRIVE: ARRIVALS, REVIEW: REVIEWS}
# Hosts need not agree better than that on what time it is.
CLOCKS_AGREE_S = 1.0
# What a review takes over from the job that it is about.
_PLACE = ("study_uid", "series_uid", "model", "pacs_url", "results_url", "ehr_url")


class JobQueue:
    """The jobs of one work folder. Opened by :func:`open_job_queue`.

    Parameters
    ----------
    database
    """

    def __init__(self, database: JobDatabase) -> None:
        self._database, self._settings = database, database.settings
        self._workflows, self._news = Workflows(database), JobNews(database)

    def submit(
        self,
        slide: SlideReference,
        place: Workplace,
        priority: Priority | None = None,
        callback: str = "",
        *,
        again: bool = False,
        await_arrival: bool = False,
        site: str = "",
    ) -> Job:
        """Queue a slide, or join the job that is already at it.

        Parameters
        ----------
        slide
        place
            Model and configuration.
        priority
            None goes before all others. A job that is joined goes by the better of two.
        callback
            Address that is told when the job has ended; also where it is joined, or had ended.
        again
            Whether a completed job runs anew; its stored results are then compared with what the
            archive and the EHR have, and delivered where they are missing. One whose result was
            withdrawn runs anew once without: its slide may have changed.
        await_arrival
            Whether to wait until the slide is whole.
        site
            Whose slide it is: sites take turns. Empty for the archive that it is in.
        """
        arguments = job_arguments(slide, place)
        name = identifier(arguments)
        newest = self._workflows.newest(name)
        if newest is not None and self._suffices(newest, again):
            self._share(newest, slide.reason)
            self._news.ask(name, callback, try_of(newest.workflow_id)[1])
            if newest.status in ACTIVE and self._hurry(newest, priority or PRIORITIES[0]):
                return self.get(name)
            return self._job(newest)
        extra = {"reason": slide.reason, "priority": priority, "site": site}
        number = 1 if newest is None else try_of(newest.workflow_id)[1] + 1
        self.enqueue(f"{name}-{number}", arguments | extra, await_arrival)
        self._news.ask(name, callback, number)
        log.info("Series %s: job %s was submitted.", slide.series_uid, name)
        return submitted_job(name, number, arguments | extra, await_arrival)

    def _suffices(self, workflow: WorkflowStatus, again: bool) -> bool:
        """Whether a job that is at work, or is done, is what somebody asks for."""
        done = workflow.status == "SUCCESS" and not again
        return workflow.status in ACTIVE or (done and not self._was_withdrawn(workflow))

    def _was_withdrawn(self, workflow: WorkflowStatus) -> bool:
        """Whether a person has withdrawn what a completed job had found, since it ran."""
        result = self._job(workflow).result
        if result is None or "identity" not in result or result.get("standing") == "withdrawn":
            return False
        try:
            known = revisions(self._settings, result["identity"])
        except SharedStorageUnreachable:
            return False  # nobody waits for a storage to be told that a job is done
        return bool(known) and known[-1].get("standing") == "withdrawn"

    def _share(self, workflow: WorkflowStatus, reason: str) -> None:
        """Note that not a workitem alone has asked for a job, which is canceled with it."""
        begun = str(arguments_of(workflow).get("reason"))
        if (
            workflow.status not in ACTIVE
            or not begun.startswith(OF_WORKITEM)
            or reason.startswith(OF_WORKITEM)
        ):
            return
        with self._database.changing() as client:
            client.update_workflow_attributes(workflow.workflow_id, {"reason": reason}, merge=True)

    def _hurry(self, workflow: WorkflowStatus, priority: Priority) -> bool:
        """Let a job, and its later tries, go by a priority if it is better than its own."""
        arguments = arguments_of(workflow)
        own: Priority | None = arguments.get("priority")
        table = self._database.table
        if table is None or not own or PRIORITIES.index(own) <= PRIORITIES.index(priority):
            return False
        with self._database.changing() as client:
            client.update_workflow_attributes(
                workflow.workflow_id, {"priority": priority}, merge=True
            )
            number = self._number(workflow.name, priority, arguments)
            table.move(workflow.workflow_id, number)
        return True

    def review(self, job: str, review: Review, priority: Priority | None = None) -> Job:
        """Queue a review of a job's result, or join the job of the same review.

        Parameters
        ----------
        job
            Of an analysis or of an earlier review; the revision goes where that one went.
        review
        priority
            None goes before all others.

        Raises
        ------
        JobNotFound
        ReviewRefused
            The job has no result, or the revision cannot be reviewed.
        """
        workflow = self._newest(job)
        seen = self._job(workflow)
        if seen.result is None or "identity" not in seen.result:
            raise ReviewRefused(
                f"Job {job} has no result that could be reviewed: analyse the slide, and wait "
                "until it is completed."
            )
        told = arguments_of(workflow)
        arguments = {name: told[name] for name in _PLACE} | {"identity": seen.result["identity"]}
        name = identifier([arguments, review.digest])
        newest = self._workflows.newest(name)
        if newest is not None and newest.status in (*ACTIVE, "SUCCESS"):
            return self._job(newest)
        find_seen(self._settings, seen.result["identity"], review)
        extra = {
            "review": review.as_json(),
            "reason": f"review of {seen.job}: {review.decision}",
            "priority": priority,
        }
        number = 1 if newest is None else try_of(newest.workflow_id)[1] + 1
        self.enqueue(f"{name}-{number}", arguments | extra)
        return self.get(name)

    def retry(self, job: str) -> Job:
        """Try a failed or cancelled job again; all who were told of its end are told of the next.

        Raises
        ------
        JobNotFound
        JobRefused
            It has not failed.
        """
        newest = self._newest(job)
        seen = self._job(newest)
        if seen.status not in ("failed", "cancelled"):
            raise JobRefused(
                f"Job {job} is {seen.status}: only a failed or cancelled job can be tried again."
            )
        told = ("tried_before", "failures", "deaths", "arrival", "callback")
        before = arguments_of(newest)
        arguments = {k: v for k, v in before.items() if k not in told}
        number = seen.tries + 1
        self.enqueue(f"{seen.job}-{number}", arguments, newest.name == ARRIVE)
        self._news.ask_again(seen.job, number)
        # Of an older version of the node.
        self._news.ask(seen.job, before.get("callback", ""), number)
        return self.get(job)

    def cancel(self, job: str) -> Job:
        """Stop a job: at once while it waits, else at its next report of progress.

        Raises
        ------
        JobNotFound
        JobRefused
            It has ended.
        """
        seen = self.get(job)
        if seen.status in ENDED:
            raise JobRefused(f"Job {job} is {seen.status}: there is nothing to cancel.")
        for workflow in self._workflows.tries(seen.job):
            if workflow.status not in ACTIVE:
                continue
            with self._database.changing() as client:
                client.cancel_workflow(workflow.workflow_id)
            progress_file(self._settings, workflow.workflow_id).cancel()
        return self.get(job)

    def enqueue(
        self,
        try_id: str,
        arguments: Mapping[str, Any],
        await_arrival: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        """Queue one try of a job; the same identifier twice is one try."""
        priority: Priority | None = arguments.get("priority")
        workflow = ARRIVE if await_arrival else REVIEW if "review" in arguments else ANALYSE
        options: EnqueueOptions = {
            "workflow_name": workflow,
            "queue_name": _QUEUES[workflow],
            "workflow_id": try_id + (ARRIVAL_SUFFIX if await_arrival else ""),
        }
        if delay_s:
            options["delay_seconds"] = delay_s
        with self._database.changing() as client:
            if priority:
                options["priority"] = self._number(workflow, priority, arguments)
            client.enqueue(options, dict(arguments))

    def _number(self, workflow: str, priority: Priority, arguments: Mapping[str, Any]) -> int:
        """Of a slide in its queue."""
        site = arguments.get("site") or arguments["pacs_url"]
        waiting = partial(self._waiting, _QUEUES[workflow])
        return number_of(PRIORITIES.index(priority), site, waiting)

    def _waiting(self, queue: str, first: int, behind: int, slot: int) -> Waiting:
        table = self._database.table
        if table is None:
            return Waiting(None, None)
        return table.waiting(queue, first, behind, slot)

    def get(self, job: str) -> Job:
        """Look a job up, or one of its tries by ``JOB-N``.

        Raises
        ------
        JobNotFound
            When this work folder has no such job.
        """
        return self._job(self._newest(job))

    def settings_of(self, job: str) -> Settings:
        """The settings with the addresses that a job reads from and delivers to.

        Raises
        ------
        JobNotFound
        """
        return sited(self._settings, arguments_of(self._newest(job)))

    def site_of(self, job: str) -> str:
        """Whose slide a job's is; empty for the archive that it is in.

        Raises
        ------
        JobNotFound
        """
        return str(arguments_of(self._newest(job)).get("site") or "")

    def list(
        self, limit: int | None = None, offset: int = 0, status: JobStatus | None = None
    ) -> list[Job]:
        """Jobs by their newest try, newest first."""
        found: list[Job] = []
        last = None if limit is None else offset + limit
        for workflow in self._workflows.newest_of_each(status):
            job = self._job(workflow)
            if status is None or job.status == status:
                found.append(job)
            if last is not None and len(found) >= last:
                break
        return found[offset:last]

    def counts(self) -> dict[JobStatus, int]:
        """How many jobs are in each state that has not ended."""
        counted: dict[JobStatus, int] = {"waiting": 0, "queued": 0, "running": 0}
        for row in self._workflows.unended():
            counted[state_of(row)] += 1
        return counted

    def put_aside(self) -> int:
        """How many tries are run no more, as every worker that took them died."""
        table = self._database.table
        if table is None:
            return 0
        with database_errors(self._settings):
            return table.put_aside(_QUEUES)

    def oldest_active_ms(self) -> int | None:
        """When the job that waits or runs longest was submitted (Unix time, milliseconds)."""
        return min((row.created_ms for row in self._workflows.unended()), default=None)

    @property
    def paused(self) -> bool:
        """Whether no worker begins another slide."""
        client = self._database.client
        if client is None:
            return False
        with database_errors(self._settings):
            queue = client.retrieve_queue(QUEUE)
            return queue is not None and queue.worker_concurrency == 0

    def pause(self) -> None:
        """Let no worker begin another slide until :meth:`resume`; those at work are finished."""
        self._take_at_a_time(0)

    def resume(self) -> None:
        """Let workers go on."""
        self._take_at_a_time(1)

    def _take_at_a_time(self, slides: int) -> None:
        with self._database.changing() as client:
            client.register_queue(
                QUEUE,
                worker_concurrency=slides,
                polling_interval_sec=poll_s(self._settings),
                on_conflict="never_update",
            )
            queue = client.retrieve_queue(QUEUE)
            if queue is not None:
                queue.set_worker_concurrency(slides)

    def changed(self, workflow_id: str) -> dict[str, Any]:
        """What was changed of a workflow's arguments since it was queued."""
        (workflow,) = self._workflows.listed(workflow_ids=[workflow_id], load_output=False)
        return dict(workflow.attributes or {})

    def written_by_earlier(self, try_id: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """How the newest earlier try that has written results opened the slide, and what it wrote.

        None if none has. The `identity` of how it opened is that of the results.
        """
        job, number = try_of(try_id)
        for earlier in range(number - 1, 0, -1):
            made = self._workflows.outputs(f"{job}-{earlier}")
            opened: dict[str, Any] | None = made.get("open")
            written = None if opened is None else opened.get("written") or made.get("write")
            if opened is not None and written is not None:
                return opened, written
        return None

    def shorten_delays(self) -> None:
        """Let tries that wait for longer than they were told to wait for that long from now on."""
        now_ms = time.time() * 1000
        for workflow in self._workflows.delayed():
            arguments = arguments_of(workflow)
            failures = int(arguments.get("failures", 0)) + int(arguments.get("deaths", 0))
            delay_s = retry_delay_s(self._settings, failures)
            left_s = ((workflow.delay_until_epoch_ms or 0) - now_ms) / 1000
            if left_s > delay_s + CLOCKS_AGREE_S:
                log.warning("The clock went back: %s is not let wait.", workflow.workflow_id)
                with self._database.changing() as client:
                    client.set_workflow_delay(workflow.workflow_id, delay_seconds=delay_s)

    def executors(self) -> set[str]:
        """Workers that have jobs at work, each from one start to its end, as DBOS knows them."""
        table = self._database.table
        if table is None:
            return set()
        with database_errors(self._settings):
            return table.executors()

    def ended_before(self, unix_s: float) -> Sequence[str]:
        """Searches, calls, and tries and arrivals of jobs without a later try, that ended before.

        Without its first tries a job would not be known.
        """
        return self._workflows.ended_before(unix_s)

    def forget(self, workflow_ids: Sequence[str]) -> None:
        """Delete what :meth:`ended_before` named."""
        if not workflow_ids:
            return
        self._news.forget(workflow_ids)
        with self._database.changing() as client:
            client.delete_workflows(list(workflow_ids))

    def _newest(self, job: str) -> WorkflowStatus:
        found = self._workflows.newest(job)
        if found is None:
            raise JobNotFound(
                f"Job {job} is not known here: 'marrow-node jobs' lists those that are."
            )
        return found

    def _job(self, workflow: WorkflowStatus) -> Job:
        if workflow.status in ("ENQUEUED", "DELAYED"):
            return job_of(workflow, None)
        return job_of(workflow, progress_file(self._settings, workflow.workflow_id).read())


def retry_delay_s(settings: Settings, failures: int) -> float:
    """Seconds before the try that follows so many failures."""
    return settings.jobs.retry_wait_s * 2.0 ** (failures - 1)


def progress_file(settings: Settings, workflow_id: str) -> ProgressFile:
    """Where a try and its arrival tell how far they are."""
    try_id = workflow_id.removesuffix(ARRIVAL_SUFFIX)
    return ProgressFile(settings.work_folder / "progress", try_id)


@contextmanager
def open_job_queue(settings: Settings) -> Iterator[JobQueue]:
    """Open the queue of a database that a worker has made; without one there is nothing to see.

    Raises
    ------
    DiskFull
        When the job database cannot be read.
    """
    with open_job_database(settings) as database:
        yield JobQueue(database)
