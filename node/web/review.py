"""Review over HTTP and by a plain form: confirm, correct, withdraw a result; see its revisions.

Who decides is who asks: name and organization come from the credentials, never from a body.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from flask import Blueprint, Response, jsonify, redirect, request, url_for
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response as AnyResponse

from dicom_io.analysis import Decision
from models.cell_types import CELL_TYPES
from models.errors import ReviewInvalid
from node.audit import AuditTrail
from node.audited import job_submitted
from node.config import Settings
from node.delivery import now_utc
from node.job import Job
from node.job_queue import JobQueue
from node.review import MOST_REASON, Corrections, Review, review_from
from node.revisions import revisions
from node.web.access import request_user
from node.web.jobs import summary
from node.web.submission import body_of


def _integral(value: object) -> object:
    """1.0 is an integer in JSON Schema."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@checked_dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class ReviewRequest:
    """Body of ``POST /jobs/{job}/review``.

    Attributes
    ----------
    revision
        The one that was looked at.
    decision
    reason
        Why; a withdrawal needs one.
    annotation_uid
        Of a correction: SOP Instance UID of the edited ANN in the archive.
    corrections
        Of a correction, instead: single cells.
    """

    revision: Annotated[int, Field(ge=1), BeforeValidator(_integral)]
    decision: Decision
    reason: Annotated[str, Field(max_length=MOST_REASON)] = ""
    annotation_uid: Annotated[str, Field(max_length=64)] = ""
    corrections: Corrections | None = None


def review_blueprint(settings: Settings, queue: JobQueue, trail: AuditTrail) -> Blueprint:
    """Routes below ``/jobs/JOB`` and ``/slides/JOB``, and what the form on a job's page shows."""
    review = Blueprint("review", __name__)

    def shown(job: Job) -> list[dict[str, Any]]:
        """The revisions of a job's result."""
        if job.result is None or "identity" not in job.result:
            return []
        known = revisions(settings, job.result["identity"])
        return [_revision(written) for written in known]

    def queued_of(job: str, wanted: ReviewRequest) -> Job:
        queued = queue.review(job, _signed(wanted), "urgent")
        who, address = request_user().name, request.remote_addr or ""
        job_submitted(trail, who, address, queued.study_uid, queued.job)
        return queued

    @review.app_context_processor
    def _for_templates() -> dict[str, Any]:
        return {"revisions_of": shown, "cell_types": CELL_TYPES}

    @review.post("/jobs/<job>/review")
    def submit(job: str) -> tuple[Response, int, dict[str, str]]:
        wanted: ReviewRequest = body_of(request, ReviewRequest)
        queued = queued_of(job, wanted)
        place = url_for("jobs.show", job=queued.job)
        return jsonify(summary(queued)), HTTPStatus.ACCEPTED, {"Location": place}

    @review.get("/jobs/<job>/revisions")
    def list_revisions(job: str) -> Response:
        return jsonify({"revisions": shown(queue.get(job))})

    @review.post("/slides/<job>/review")
    def decide(job: str) -> AnyResponse:
        form = request.form
        lines = form.get("cells", "").strip()
        wanted = ReviewRequest(
            revision=_number(form.get("revision", "")),
            decision=_decision(form.get("decision", "")),
            reason=form.get("reason", "").strip()[:MOST_REASON],
            annotation_uid=form.get("annotation_uid", "").strip()[:64],
            corrections=corrections_of(lines) if lines else None,
        )
        queued = queued_of(job, wanted)
        return redirect(url_for("pages.slide", job=queued.job), HTTPStatus.SEE_OTHER)

    return review


def _signed(wanted: ReviewRequest) -> Review:
    """The review, by the person who asks.

    Raises
    ------
    Forbidden
        The credentials name no person or no organization.
    """
    user = request_user()
    if not user.person or not user.organization:
        raise Forbidden(
            f"{user.name} names no person or no organization, so nobody would have signed: set "
            "person and organization of the key, or the claims of the tokens."
        )
    return review_from(
        {
            "revision": wanted.revision,
            "decision": wanted.decision,
            "name": user.person,
            "organization": user.organization,
            "at": now_utc(),
            "reason": wanted.reason,
            "annotation_uid": wanted.annotation_uid,
            "corrections": wanted.corrections.as_json() if wanted.corrections else None,
        }
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
        raise ReviewInvalid("The form names no revision: load the page again.")
    return int(text)


def _decision(text: str) -> Decision:
    decisions: dict[str, Decision] = {
        "confirmed": "confirmed",
        "corrected": "corrected",
        "withdrawn": "withdrawn",
    }
    if text not in decisions:
        raise ReviewInvalid("The form says no decision: confirm, correct or withdraw.")
    return decisions[text]


def corrections_of(lines: str) -> Corrections:
    """Corrections as a person writes them into the form, one a line.

    ``GROUP INDEX TYPE`` gives a cell a type, ``GROUP INDEX delete`` takes it out; ``at X Y`` names
    it by a place instead; ``add X0 Y0 X1 Y1 TYPE`` puts one in. Places are px of the base level.

    Raises
    ------
    ReviewInvalid
        A line is none of these; the error names its number.
    """
    changes: dict[str, list[dict[str, Any]]] = {"retyped": [], "deleted": [], "added": []}
    for number, line in enumerate(lines.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            kind, change = _change(words)
        except (ValueError, IndexError):
            raise ReviewInvalid(
                f"Line {number} of the corrections is none of GROUP INDEX TYPE, GROUP INDEX "
                "delete, at X Y TYPE, at X Y delete, add X0 Y0 X1 Y1 TYPE."
            ) from None
        changes[kind].append(change)
    return Corrections.from_json(changes)


def _change(words: list[str]) -> tuple[str, dict[str, Any]]:
    *place, what = words
    if place[0] == "add":
        x0, y0, x1, y1 = map(float, place[1:])
        return "added", {"box_px": [x0, y0, x1, y1], "type": what}
    if place[0] == "at":
        x, y = map(float, place[1:])
        named: dict[str, Any] = {"at_px": [x, y]}
    else:
        group, index = map(int, place)
        named = {"group": group, "index": index}
    return ("deleted", named) if what == "delete" else ("retyped", named | {"type": what})


def _revision(written: dict[str, Any]) -> dict[str, Any]:
    """A revision as lists show it."""
    artifacts, review = written["artifacts"], written.get("review", {})
    return {
        "revision": written["revision"],
        "standing": written["standing"],
        "issued": written["issued"],
        "decision": review.get("decision"),
        "name": review.get("name"),
        "organization": review.get("organization"),
        "reason": review.get("reason"),
        "changes": review.get("changes", {}),
        "objects": {
            kind.lower(): artifacts[kind]["uid"]
            for kind in ("ANN", "SEG", "SR")
            if kind in artifacts
        },
    }
