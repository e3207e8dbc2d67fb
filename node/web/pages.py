"""Pages for people: the worklist, and one slide's page. They are whole without JavaScript."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.exceptions import BadRequest, NotFound
from werkzeug.wrappers import Response

from models.cell_types import CELL_TYPES, ME_REFERENCE, REFERENCE_SOURCE, reading_order
from models.package import installed_packages
from node.audit import AuditTrail
from node.audited import job_changed, job_submitted, result_read
from node.config import Settings
from node.job import ENDED, STATUSES, Job
from node.job_queue import JobQueue
from node.searches import Searches
from node.stages import FILE_NAMES
from node.web.access import request_user
from node.web.submission import Submissions

PAGE = 50
REFRESH_S = 5
# Above the worklist a failed search is news until the weekend is over; the list keeps it.
NEWS_S = 3 * 86_400.0


def pages_blueprint(
    settings: Settings,
    queue: JobQueue,
    searches: Searches,
    submissions: Submissions,
    trail: AuditTrail,
) -> Blueprint:
    """Routes ``/`` and ``/slides/JOB``."""
    pages = Blueprint("pages", __name__)
    pages.app_template_filter("moment")(_moment)
    pages.app_template_filter("person_name")(_person_name)

    @pages.get("/")
    def worklist() -> str:
        status = request.args.get("status") or None
        number = request.args.get("page", "1")
        if status not in (None, *STATUSES) or not number.isdigit() or not 1 <= int(number) < 10**6:
            raise BadRequest("The address asks for a state or a page that there is not.")
        page = int(number)
        found = queue.list(PAGE + 1, (page - 1) * PAGE, status)
        return render_template(
            "worklist.html",
            jobs=found[:PAGE],
            page=page,
            more=len(found) > PAGE,
            # Slides that may have no job: they stand above the jobs that failed.
            searches=searches.failed(PAGE) if status == "failed" and page == 1 else [],
            searches_failed=status is None
            and bool(searches.failed(1, since_s=time.time() - NEWS_S)),
            status=status,
            statuses=STATUSES,
            paused=queue.paused,
            refresh_s=REFRESH_S if request.args.get("refresh") != "off" else None,
            user=request_user(),
        )

    @pages.get("/slides/<job>")
    def slide(job: str) -> str:
        seen = queue.get(job)
        if seen.result is not None:
            user, address = request_user().name, request.remote_addr or ""
            result_read(trail, user, address, seen.study_uid, f"page of job {seen.job}")
        return render_template(
            "slide.html",
            job=seen,
            rows=_rows(seen),
            me_reference=ME_REFERENCE,
            reference_source=REFERENCE_SOURCE,
            objects=_objects(seen),
            names=FILE_NAMES,
            models=[each.manifest.name for each in installed_packages(settings.model.folders)],
            ended=seen.status in ENDED,
            refresh_s=None if seen.status in ENDED else REFRESH_S,
            user=request_user(),
        )

    @pages.post("/slides/<job>/<action>")
    def act(job: str, action: str) -> Response:
        user, address = request_user().name, request.remote_addr or ""
        if action == "retry":
            shown = queue.retry(job)
            job_changed(trail, user, address, shown.study_uid, shown.job, "tried again")
        elif action == "cancel":
            shown = queue.cancel(job)
            job_changed(trail, user, address, shown.study_uid, shown.job, "cancelled")
        elif action == "rerun":
            shown = submissions.rerun(queue.get(job), request.form.get("model", ""))
            job_submitted(trail, user, address, shown.study_uid, shown.job)
        else:
            raise NotFound("There is no such action.")
        return redirect(url_for("pages.slide", job=shown.job), 303)

    return pages


def _rows(job: Job) -> list[dict[str, Any]]:
    """The differential in a report's order, with reference ranges."""
    if job.result is None:
        return []
    differential = job.result["differential"]
    keys = list(differential)
    ordered = [keys[row] for row in reading_order(tuple(keys))]
    return [
        differential[key]
        | {
            "name": CELL_TYPES[key].name,
            "reference": CELL_TYPES[key].reference_percent,
        }
        for key in ordered
    ]


def _objects(job: Job) -> list[tuple[str, str]]:
    """Kind and SOP Instance UID of what is in the archive."""
    if job.result is None:
        return []
    return [(kind.upper(), uids[2]) for kind in ("ann", "seg", "sr") for uids in job.result[kind]]


def _person_name(value: str) -> str:
    """As people write a name that DICOM writes Family^Given^Middle^Prefix^Suffix (PS3.5 6.2.1)."""
    family, given, middle, prefix, suffix = [
        *value.split("=", maxsplit=1)[0].split("^"),
        "",
        "",
        "",
        "",
    ][:5]
    return " ".join(filter(None, (prefix, given, middle, family, suffix)))


def _moment(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
