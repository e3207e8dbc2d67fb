"""Jobs over HTTP: submit, list, watch, fetch results, try again, cancel."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from cachetools import TTLCache
from flask import Blueprint, Response, jsonify, request, url_for
from werkzeug.exceptions import BadRequest, NotFound, ServiceUnavailable

from models.package import installed_packages
from node.audit import AuditTrail
from node.audited import job_changed, job_submitted, result_read
from node.config import Settings
from node.job import ENDED, STATUSES, Job, JobStatus
from node.job_queue import JobQueue
from node.searches import Searches
from node.stages import FILE_NAMES
from node.web.access import request_user
from node.web.submission import JobRequest, RerunRequest, Submissions, body_of
from node.work_files import open_work_files

PAGE = 50
LONGEST_PAGE = 500
WATCH_S = 0.5
LISTED_S = 0.25
PAGES_KEPT = 64
# Each watcher holds a thread; the others have to stay free for rules that submit.
SHARE_OF_WATCHERS = 0.5
MEDIA_TYPES = {
    ".dcm": "application/dicom",
    ".json": "application/fhir+json",
    ".png": "image/png",
    ".pdf": "application/pdf",
    ".hl7": "x-application/hl7-v2+er7",
}


def jobs_blueprint(
    settings: Settings,
    queue: JobQueue,
    searches: Searches,
    submissions: Submissions,
    trail: AuditTrail,
) -> Blueprint:
    """Routes under ``/jobs``, ``/searches`` and ``/models``."""
    jobs = Blueprint("jobs", __name__)
    listing = Listing(queue)
    watchers = threading.Semaphore(max(1, int(settings.serve.threads * SHARE_OF_WATCHERS)))
    work = open_work_files(settings)

    @jobs.post("/jobs")
    def submit() -> tuple[Response, int, dict[str, str]]:
        wanted: JobRequest = body_of(request, JobRequest)
        submitted = submissions.submit(wanted, request_user().name)
        what = submitted.job.job if submitted.job is not None else submitted.search
        job_submitted(trail, *_who(), wanted.study_uid or "", what)
        if submitted.job is None:
            place = url_for("jobs.search", search=submitted.search)
            content: dict[str, Any] = {"search": submitted.search, "links": {"self": place}}
        else:
            place = url_for("jobs.show", job=submitted.job.job)
            content = summary(submitted.job)
        return jsonify(content), HTTPStatus.ACCEPTED, {"Location": place}

    @jobs.get("/jobs")
    def list_jobs() -> Response:
        limit, offset = _page()
        status = request.args.get("status")
        if status is not None and status not in STATUSES:
            raise BadRequest(f"status is one of {', '.join(STATUSES)}.")
        return Response(listing.page(limit, offset, status), content_type="application/json")

    @jobs.get("/jobs/<job>")
    def show(job: str) -> Response:
        return jsonify(whole(queue.get(job)))

    @jobs.get("/jobs/<job>/events")
    def events(job: str) -> Response:
        queue.get(job)
        if not watchers.acquire(blocking=False):
            raise ServiceUnavailable("Too many watch at a time: ask GET /jobs/{job} instead.")
        answer = Response(_events(queue, job), content_type="text/event-stream")
        answer.call_on_close(watchers.release)
        return answer

    @jobs.get("/jobs/<job>/files/<name>")
    def file(job: str, name: str) -> Response:
        seen = queue.get(job)
        digest = _digest(seen, name)
        result_read(trail, *_who(), seen.study_uid, f"{name} of job {seen.job}")
        answer = Response(work.get(digest), content_type=MEDIA_TYPES[name[name.rindex(".") :]])
        answer.set_etag(digest)
        answer.make_conditional(request)
        return answer

    @jobs.post("/jobs/<job>/retry")
    def retry(job: str) -> tuple[Response, int]:
        queued = queue.retry(job)
        job_changed(trail, *_who(), queued.study_uid, queued.job, "tried again")
        return jsonify(summary(queued)), HTTPStatus.ACCEPTED

    @jobs.post("/jobs/<job>/cancel")
    def cancel(job: str) -> tuple[Response, int]:
        ended = queue.cancel(job)
        job_changed(trail, *_who(), ended.study_uid, ended.job, "cancelled")
        return jsonify(summary(ended)), HTTPStatus.ACCEPTED

    @jobs.post("/jobs/<job>/rerun")
    def rerun(job: str) -> tuple[Response, int]:
        wanted: RerunRequest = body_of(request, RerunRequest)
        queued = submissions.rerun(queue.get(job), wanted.model)
        job_submitted(trail, *_who(), queued.study_uid, queued.job)
        return jsonify(summary(queued)), HTTPStatus.ACCEPTED

    @jobs.get("/searches/<search>")
    def search(search: str) -> Response:
        return jsonify(searches.found(search))

    @jobs.get("/searches")
    def failed_searches() -> Response:
        limit, offset = _page()
        return jsonify({"searches": searches.failed(limit, offset), "offset": offset})

    @jobs.get("/models")
    def models() -> Response:
        return jsonify({"models": _models(settings)})

    return jobs


class Listing:
    """Pages of the list of jobs as JSON, at most :data:`LISTED_S` old.

    Many displays ask for the same page again and again: it is read once for all of them.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._pages: TTLCache[tuple[int, int, str | None], str] = TTLCache(PAGES_KEPT, LISTED_S)
        self._lock = threading.Lock()

    def page(self, limit: int, offset: int, status: JobStatus | None) -> str:
        with self._lock:  # whoever comes meanwhile waits for the same page
            wanted = (limit, offset, status)
            if wanted not in self._pages:
                found = self._queue.list(limit, offset, status)
                self._pages[wanted] = json.dumps(
                    {"jobs": [summary(job) for job in found], "offset": offset}
                )
            return self._pages[wanted]


def summary(job: Job) -> dict[str, Any]:
    """A job as lists show it."""
    progress = job.progress
    return {
        "job": job.job,
        "status": job.status,
        "tries": job.tries,
        "study_uid": job.study_uid,
        "series_uid": job.series_uid,
        "model": job.model,
        "priority": job.priority,
        "reason": job.reason,
        "arrival": job.arrival,
        "stage": progress.stage if progress else None,
        "percent": 100.0 if job.status == "completed" else progress.percent if progress else 0.0,
        "cells": job.result["cells"] if job.result else progress.cells if progress else 0,
        "created_ms": job.created_ms,
        "updated_ms": job.updated_ms,
        "error": job.error,
        "exit_code": job.exit_code,
        "links": {
            "self": url_for("jobs.show", job=job.job),
            "page": url_for("pages.slide", job=job.job),
        },
    }


def whole(job: Job) -> dict[str, Any]:
    """A job with its result; files by address instead of their place on the disk."""
    if job.result is None:
        return summary(job) | {"result": None}
    result = dict(job.result)
    result["files"] = {
        kind: url_for("jobs.file", job=job.job, name=FILE_NAMES[kind]) for kind in result["files"]
    }
    return summary(job) | {"result": result}


def _digest(job: Job, name: str) -> str:
    """Under which a file of the job's result lies in the work folder."""
    kinds = [kind for kind, known in FILE_NAMES.items() if known == name]
    if job.result is None or not kinds or kinds[0] not in job.result["files"]:
        raise NotFound("The job has no such file.")
    return str(job.result["files"][kinds[0]].rpartition("/")[2])


def _models(settings: Settings) -> list[dict[str, Any]]:
    """The installed packages, as a client chooses from them."""
    return [
        {
            "name": package.manifest.name,
            "version": package.manifest.version,
            "digest": package.digest,
            "demonstration": package.manifest.demonstration,
            "intended_use": package.manifest.intended_use,
        }
        for package in installed_packages(settings.model.folders)
    ]


def _who() -> tuple[str, str]:
    """Name and address of whoever asks, for the audit trail."""
    return request_user().name, request.remote_addr or ""


def _page() -> tuple[int, int]:
    """Limit and offset that the query asks for."""
    try:
        limit = int(request.args.get("limit", PAGE))
        offset = int(request.args.get("offset", 0))
    except ValueError:
        limit, offset = -1, -1
    if not 1 <= limit <= LONGEST_PAGE or not 0 <= offset <= 1_000_000_000:
        raise BadRequest(f"limit is a number from 1 to {LONGEST_PAGE}, offset one from 0.")
    return limit, offset


def _events(queue: JobQueue, job: str) -> Iterator[str]:
    """Server-sent events: the job's state whenever it has changed, until it has ended."""
    told = ""
    while True:
        seen = queue.get(job)
        state = json.dumps(
            {
                "job": seen.job,
                "status": seen.status,
                "stage": seen.progress.stage if seen.progress else None,
                "percent": seen.progress.percent if seen.progress else 0.0,
                "cells": seen.progress.cells if seen.progress else 0,
                "error": seen.error,
            }
        )
        yield f"event: job\ndata: {state}\n\n" if state != told else ": still here\n\n"
        told = state
        if seen.status in ENDED:
            return
        time.sleep(WATCH_S)
