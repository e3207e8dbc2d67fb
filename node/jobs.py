"""The durable job: each stage of the way is a step that is never done twice.

DBOS keeps every step's small JSON result in a database (SQLite in the work folder by default). A
process that is killed at any moment leaves the job pending; the next process that opens the work
folder goes on after the last finished step. Nothing is pickled: the serializer is JSON.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, SetWorkflowID, WorkflowStatus
from sqlalchemy.exc import SQLAlchemyError

from dicom_io.errors import ConfigurationInvalid, DiskFull
from models.errors import MarrowNodeError
from node import __version__
from node.config import Settings
from node.exit_codes import error_classes
from node.pipeline import SlideReference, analyse
from node.progress import Progress, ProgressFile
from node.work_lock import dead_workers, take_worker
from node.workplace import Workplace

QUEUE = "slides"
WORKFLOW = "analyse slide"
POLL_S = 0.1
ACTIVE = ("PENDING", "ENQUEUED", "DELAYED")

JobStatus = Literal["queued", "running", "completed", "failed"]
_STATUS: dict[str, JobStatus] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "completed",
    "ERROR": "failed",
    "CANCELLED": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
}


@dataclass(frozen=True, slots=True)
class Job:
    """One analysis as the queue knows it.

    Attributes
    ----------
    job
        Identifier: digest of slide, model, configuration and destinations, and number of the try.
    status
    study_uid, series_uid
    model
        Name of the model package.
    created_ms, updated_ms
        Unix time in milliseconds.
    progress
        None before the first stage has begun.
    result
        Of a completed job.
    error
        One sentence, of a failed job.
    exit_code
        0 completed, else the class of the error; None while it runs.
    """

    job: str
    status: JobStatus
    study_uid: str
    series_uid: str
    model: str
    created_ms: int
    updated_ms: int
    progress: Progress | None
    result: Mapping[str, Any] | None
    error: str | None
    exit_code: int | None


class Jobs:
    """The jobs of one work folder, to look at.

    Parameters
    ----------
    settings
    list_workflows
        Of DBOS in a worker, of a DBOS client elsewhere.
    """

    def __init__(
        self, settings: Settings, list_workflows: Callable[..., list[WorkflowStatus]]
    ) -> None:
        self._settings = settings
        self._list_workflows = list_workflows

    def get(self, job: str) -> Job:
        """Look a job up.

        Raises
        ------
        ConfigurationInvalid
            When this work folder has no such job.
        """
        found = self._list_workflows(workflow_ids=[job])
        if not found:
            raise ConfigurationInvalid(
                f"Job {job} is not known in {self._settings.work_folder}: "
                "'marrow-node jobs' lists those that are."
            )
        return self._job(found[0])

    def list(self) -> list[Job]:
        """All jobs, newest first."""
        return [self._job(status) for status in self._list_workflows(name=WORKFLOW, sort_desc=True)]

    def progress(self, job: str) -> Progress | None:
        return ProgressFile(self._settings.work_folder / "progress", job).read()

    def _job(self, status: WorkflowStatus) -> Job:
        arguments = status.input["args"][0] if status.input else {}
        error, exit_code = _failure(status)
        return Job(
            job=status.workflow_id,
            status=_STATUS[status.status],
            study_uid=arguments.get("study_uid", ""),
            series_uid=arguments.get("series_uid", ""),
            model=arguments.get("model", ""),
            created_ms=status.created_at or 0,
            updated_ms=status.updated_at or 0,
            progress=self.progress(status.workflow_id),
            result=status.output if status.status == "SUCCESS" else None,
            error=error,
            exit_code=exit_code,
        )


class Worker:
    """A process that works on the jobs of a work folder. Made by :func:`open_worker`."""

    def __init__(self, settings: Settings, workflow: Callable[[dict[str, Any]], Any]) -> None:
        self._workflow = workflow
        self.jobs = Jobs(settings, DBOS.list_workflows)

    def submit(self, slide: SlideReference, place: Workplace) -> str:
        """Queue a slide, or join the job that is already at it. Returns the job's identifier."""
        arguments = _arguments(slide, place)
        name = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:16]
        tries = DBOS.list_workflows(workflow_id_prefix=name, sort_desc=True)
        if tries and tries[0].status in ACTIVE:
            return tries[0].workflow_id
        job = f"{name}-{len(tries) + 1}"
        with SetWorkflowID(job):
            DBOS.enqueue_workflow(QUEUE, self._workflow, arguments | {"reason": slide.reason})
        return job

    def wait(self, job: str, watch: Callable[[Progress], None]) -> Job:
        """Wait until a job has ended, telling `watch` of its progress meanwhile."""
        while (seen := self.jobs.get(job)).status in ("queued", "running"):
            if seen.progress is not None:
                watch(seen.progress)
            time.sleep(POLL_S)
        return seen


@contextmanager
def open_job_list(settings: Settings) -> Iterator[Jobs]:
    """Look at the jobs of a work folder without working on them.

    Raises
    ------
    DiskFull
        When the job database cannot be read.
    """
    with _database_errors(settings):
        if not settings.database_url and not _sqlite_file(settings).exists():
            yield Jobs(settings, lambda **_: [])
            return
        client = DBOSClient(
            system_database_url=_database_url(settings), serializer=DBOSPortableJSONSerializer()
        )
        try:
            yield Jobs(settings, client.list_workflows)
        finally:
            client.destroy()


@contextmanager
def open_worker(settings: Settings) -> Iterator[Worker]:
    """Join a work folder as a worker, and finish what dead workers left.

    Parameters
    ----------
    settings

    Raises
    ------
    DiskFull
        When the work folder or its database cannot be written.
    """
    worker, lock = take_worker(settings.work_folder / "workers")
    with _database_errors(settings), lock:
        DBOS(
            config={
                "name": "marrow-node",
                "system_database_url": _database_url(settings),
                "serializer": DBOSPortableJSONSerializer(),
                "executor_id": worker,
                "application_version": __version__,
                "log_level": "CRITICAL",
                "notification_listener_polling_interval_sec": POLL_S,
            }
        )
        workflow = _register(settings)
        try:
            DBOS.launch()
            DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=POLL_S)
            DBOS._recover_pending_workflows(dead_workers(settings.work_folder / "workers", worker))
            yield Worker(settings, workflow)
        finally:
            DBOS.destroy()


@contextmanager
def _database_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise DiskFull(
            f"The job database of {settings.work_folder} cannot be used "
            f"({type(error.__cause__ or error).__name__}): free space there, "
            "or set database_url or work_folder to another place."
        ) from error


def _register(settings: Settings) -> Callable[[dict[str, Any]], Any]:
    @DBOS.workflow(name=WORKFLOW)
    def workflow(arguments: dict[str, Any]) -> Any:
        job = DBOS.workflow_id or ""
        place = _workplace(settings, arguments, job)
        slide = SlideReference(
            arguments["study_uid"], arguments["series_uid"], arguments.get("reason", "")
        )
        return dict(analyse(place, slide, lambda name, stage: DBOS.run_step({"name": name}, stage)))

    return workflow


def _arguments(slide: SlideReference, place: Workplace) -> dict[str, Any]:
    """All that tells one job from another; what is not here must not change a result."""
    return {
        "study_uid": slide.study_uid,
        "series_uid": slide.series_uid,
        "model": place.package.manifest.name,
        "package_digest": place.package.digest,
        "configuration_digest": place.configuration_digest,
        "pacs_url": place.settings.pacs_url,
        "results_url": place.settings.results_url,
        "ehr_url": place.settings.ehr_url,
    }


def _workplace(settings: Settings, arguments: Mapping[str, Any], job: str) -> Workplace:
    """The workplace a job was submitted for.

    Raises
    ------
    ConfigurationInvalid
        When the settings or the model package have changed since then.
    """
    place = Workplace.open(
        replace(
            settings,
            pacs_url=arguments["pacs_url"],
            results_url=arguments["results_url"],
            ehr_url=arguments["ehr_url"],
            model=replace(settings.model, name=arguments["model"]),
        ),
        ProgressFile(settings.work_folder / "progress", job).report,
    )
    slide = SlideReference(arguments["study_uid"], arguments["series_uid"], "")
    if _arguments(slide, place) != {k: v for k, v in arguments.items() if k != "reason"}:
        raise ConfigurationInvalid(
            f"The model package or the settings changed since job {job} was submitted: "
            "submit the slide again."
        )
    return place


def _failure(status: WorkflowStatus) -> tuple[str | None, int | None]:
    if status.status == "SUCCESS":
        return None, 0
    if _STATUS[status.status] != "failed":
        return None, None
    name = getattr(status.error, "name", type(status.error).__name__)
    known = error_classes().get(name)
    if known is None:
        return f"Unexpected failure ({name}); the log has the details.", MarrowNodeError.exit_code
    return str(status.error), known.exit_code


def _sqlite_file(settings: Settings) -> Path:
    return (settings.work_folder / "jobs.sqlite").absolute()


def _database_url(settings: Settings) -> str:
    return settings.database_url or f"sqlite:///{_sqlite_file(settings)}"
