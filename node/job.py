"""A job: one slide with one model, one configuration and one destination, and its tries.

A person's review of a result is a job too, told from others by what was decided.

The identifier is a digest of all that tells one job from another, so that the same slide sent twice
is the same job. Each try is a workflow of DBOS named ``JOB-N``; while the slide is still coming in,
``JOB-N.arrival`` waits for it. A failed job may be tried again; a completed one is not.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dbos import WorkflowStatus

from dicom_io.errors import JobCancelled, SlideProcessDied
from models.errors import MarrowNodeError
from node.config import Settings
from node.exit_codes import error_classes
from node.progress import Progress
from node.rule_settings import Priority

if TYPE_CHECKING:  # commands that only look at jobs need not load what works on them
    from node.pipeline import SlideReference
    from node.workplace import Workplace

ANALYSE = "analyse slide"
ARRIVE = "await slide"
FIND = "find slides"
REVIEW = "review slide"
CALL_BACK = "call back"
# In which they wait.
QUEUE = "slides"
ARRIVALS = "arrivals"
# Of its own: a person who signs does not wait for an analysis to end.
REVIEWS = "reviews"
# Of its own: a receiver that is down for hours keeps no slide from coming in.
CALLBACKS = "callbacks"
ARRIVAL_SUFFIX = ".arrival"
# How the reason of a job begins that nothing but workitems has asked for.
OF_WORKITEM = "workitem "
SEARCH_PREFIX = "search-"
# Between what has ended and the address that is told of it.
CALL_INFIX = ".callback."
ACTIVE = ("PENDING", "ENQUEUED", "DELAYED")

JobStatus = Literal["waiting", "queued", "running", "completed", "failed", "cancelled"]
STATUSES: tuple[JobStatus, ...] = (
    "waiting",
    "queued",
    "running",
    "completed",
    "failed",
    "cancelled",
)
ENDED: tuple[JobStatus, ...] = ("completed", "failed", "cancelled")
# In their order; what has none, a command that somebody waits for, goes before all.
PRIORITIES: tuple[Priority, ...] = ("urgent", "routine", "batch")

_STATUS: dict[str, JobStatus] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "completed",
    "ERROR": "failed",
    "CANCELLED": "cancelled",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
}
_PUT_ASIDE = "Put aside: the workers that took it ended again and again; it can be tried by hand."
CANCELLED = "Cancelled by request; submit or retry it to run it after all."


@dataclass(frozen=True, slots=True)
class Job:
    """One analysis as the queue knows it.

    Attributes
    ----------
    job
        Identifier: digest of slide, model, configuration and destinations.
    tries
        Number of the newest try, which all other fields tell of.
    status
        waiting: the slide is not whole yet.
    study_uid, series_uid
    model
        Name of the model package.
    reason
        What brought the slide here.
    priority
        Empty for commands.
    arrival
        Why the slide was taken as whole; empty where nobody waited for it.
    created_ms, updated_ms
        Unix time in milliseconds, of the newest try.
    progress
        None before the first stage has begun.
    result
        Of a completed job.
    error
        One sentence: why it failed, or why it is tried again later.
    exit_code
        0 completed, else the class of the error; None while it runs.
    """

    job: str
    tries: int
    status: JobStatus
    study_uid: str
    series_uid: str
    model: str
    reason: str
    priority: str
    arrival: str
    created_ms: int
    updated_ms: int
    progress: Progress | None
    result: Mapping[str, Any] | None
    error: str | None
    exit_code: int | None


def identifier(content: object) -> str:
    """Digest of all that tells one job or search from another."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def try_of(workflow_id: str) -> tuple[str, int]:
    """Job and number of the try that a workflow belongs to."""
    job, _, number = workflow_id.removesuffix(ARRIVAL_SUFFIX).rpartition("-")
    return job, int(number)


def arguments_of(status: WorkflowStatus) -> dict[str, Any]:
    """What a workflow was queued with, and what was changed of it since."""
    queued = dict(status.input["args"][0]) if status.input else {}
    return queued | (status.attributes or {})


def job_arguments(slide: SlideReference, place: Workplace) -> dict[str, Any]:
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


def sited(settings: Settings, arguments: Mapping[str, Any]) -> Settings:
    """The settings with the addresses and the model that a job was submitted for."""
    return replace(
        settings,
        pacs_url=arguments["pacs_url"],
        results_url=arguments["results_url"],
        ehr_url=arguments["ehr_url"],
        model=replace(settings.model, name=arguments["model"]),
    )


def job_of(status: WorkflowStatus, progress: Progress | None) -> Job:
    """Read a job off the workflow of its newest try."""
    arguments = arguments_of(status)
    job, tries = try_of(status.workflow_id)
    state = _STATUS[status.status]
    error, exit_code = _failure(status, state)
    if exit_code == JobCancelled.exit_code:
        state, error = "cancelled", CANCELLED
    if status.name == ARRIVE and state in ("queued", "running", "completed"):
        state, exit_code = "waiting", None
    return Job(
        job=job,
        tries=tries,
        status=state,
        study_uid=arguments.get("study_uid", ""),
        series_uid=arguments.get("series_uid", ""),
        model=arguments.get("model", ""),
        reason=arguments.get("reason", ""),
        priority=arguments.get("priority") or "",
        arrival=arguments.get("arrival", ""),
        created_ms=status.created_at or 0,
        updated_ms=status.updated_at or 0,
        progress=progress,
        result=status.output if state == "completed" else None,
        error=error or arguments.get("tried_before"),
        exit_code=exit_code,
    )


def submitted_job(job: str, tries: int, arguments: Mapping[str, Any], await_arrival: bool) -> Job:
    """A job as it is at the moment of its submission."""
    now_ms = time.time_ns() // 1_000_000
    return Job(
        job=job,
        tries=tries,
        status="waiting" if await_arrival else "queued",
        study_uid=arguments["study_uid"],
        series_uid=arguments["series_uid"],
        model=arguments["model"],
        reason=arguments["reason"],
        priority=arguments["priority"] or "",
        arrival="",
        created_ms=now_ms,
        updated_ms=now_ms,
        progress=None,
        result=None,
        error=None,
        exit_code=None,
    )


def found_of(status: WorkflowStatus) -> dict[str, Any]:
    """Read a search for slides off its workflow."""
    state = _STATUS[status.status]
    error, _ = _failure(status, state)
    arguments = arguments_of(status)
    found = status.output if state == "completed" and status.output else {}
    return {
        "search": status.workflow_id,
        "status": state,
        "study_uid": arguments.get("study_uid"),
        "series_uid": arguments.get("series_uid"),
        "created_ms": status.created_at or 0,
        "jobs": found.get("jobs", []),
        "decisions": found.get("decisions", []),
        "error": error,
    }


def unexpected(name: str) -> str:
    """What is told of a defect: the name of its error alone, as its words may name a patient."""
    return f"Unexpected failure ({name}); the log has the details."


def news_of(job: Job) -> dict[str, Any]:
    """What is told, to whoever asked for it, of a job that has ended."""
    return {
        "job": job.job,
        "status": job.status,
        "study_uid": job.study_uid,
        "series_uid": job.series_uid,
        # Why earlier tries had failed is no news of one that was completed.
        "error": None if job.status == "completed" else job.error,
    }


def _failure(status: WorkflowStatus, state: JobStatus) -> tuple[str | None, int | None]:
    if state == "completed":
        return None, 0
    if state == "cancelled":
        return CANCELLED, JobCancelled.exit_code
    if state != "failed":
        return None, None
    if status.status == "MAX_RECOVERY_ATTEMPTS_EXCEEDED":
        return _PUT_ASIDE, SlideProcessDied.exit_code
    name = getattr(status.error, "name", type(status.error).__name__)
    known = error_classes().get(name)
    if known is None:
        return unexpected(name), MarrowNodeError.exit_code
    return str(status.error), known.exit_code
