"""The web service: one Flask application, made of the blueprints beside this file.

Access is checked before every request (:mod:`node.web.access`), failures become problem documents
(RFC 9457) here, and nothing else in the service catches an error. No route analyses: it asks the
job database, and workers do the work.
"""

from __future__ import annotations

import logging
import secrets
import time
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import urlsplit

from flask import Flask, Response, g, jsonify, request
from flask_wtf import CSRFProtect
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from dicom_io.errors import (
    ConfigurationInvalid,
    InputError,
    JobNotFound,
    JobRefused,
    ResourceError,
    WorkitemRefused,
)
from dicom_io.pacs_settings import hidden
from models.errors import MarrowNodeError, ModelError, ReviewInvalid, ReviewRefused
from node.audit import AuditTrail
from node.audited import RefusedLogins, audit_trail, result_read, results_searched
from node.config import Settings
from node.job_database import JobDatabase
from node.job_queue import JobQueue
from node.metrics import count_request
from node.result_store import ResultStore
from node.searches import Searches
from node.web.access import Access, check_table
from node.web.dicomweb import dicomweb_blueprint
from node.web.health import health_blueprint
from node.web.jobs import jobs_blueprint
from node.web.login import login_blueprint
from node.web.openapi import openapi_blueprint
from node.web.pages import pages_blueprint
from node.web.review import review_blueprint
from node.web.submission import Submissions
from node.web.ups import refusal_answer, ups_blueprint
from node.workitems import Workitems
from node.worklist_database import worklist_database

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
PING_S = 25
# The first that fits.
_STATUS: tuple[tuple[type[MarrowNodeError], HTTPStatus], ...] = (
    (JobNotFound, HTTPStatus.NOT_FOUND),
    (ReviewInvalid, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ReviewRefused, HTTPStatus.CONFLICT),
    (JobRefused, HTTPStatus.CONFLICT),
    (ConfigurationInvalid, HTTPStatus.BAD_REQUEST),
    (InputError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ModelError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ResourceError, HTTPStatus.SERVICE_UNAVAILABLE),
    (MarrowNodeError, HTTPStatus.BAD_GATEWAY),
)
# A part is a reading too: the first byte of a range can be the first of the object.
_READ = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
_SAFE = ("GET", "HEAD", "OPTIONS")
# Pages load from the service alone, and no other page shows them in a frame.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def create_app(settings: Settings, database: JobDatabase) -> Flask:
    """Make the service.

    Parameters
    ----------
    settings
    database
        Open for as long as the service runs.

    Raises
    ------
    ConfigurationInvalid
        The settings of [serve] contradict themselves.
    """
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=_session_secret(settings),
        MAX_CONTENT_LENGTH=settings.serve.max_body_bytes,
        # Lax: the provider sends browsers back here; forms have tokens of their own.
        SESSION_COOKIE_SAMESITE="Lax",
        PERMANENT_SESSION_LIFETIME=timedelta(hours=settings.serve.session_hours),
        SESSION_COOKIE_SECURE=_is_https(settings),
        # Only requests whose credentials a browser adds by itself need a token: see _before.
        WTF_CSRF_CHECK_DEFAULT=False,
        WTF_CSRF_TIME_LIMIT=None,
        # An event connection whose other side is gone is noticed.
        SOCK_SERVER_OPTIONS={"ping_interval": PING_S},
    )
    forms = CSRFProtect(app)
    trail = audit_trail(settings)
    access = Access(settings.serve, RefusedLogins(trail).saw)
    queue, searches = JobQueue(database), Searches(database)
    submissions = Submissions(settings, queue, searches)
    app.register_blueprint(health_blueprint(settings, queue, trail))
    app.register_blueprint(openapi_blueprint(settings))
    app.register_blueprint(jobs_blueprint(settings, queue, searches, submissions, trail))
    app.register_blueprint(pages_blueprint(settings, queue, searches, submissions, trail))
    results = ResultStore(settings.work_folder)
    serve = settings.serve
    app.register_blueprint(dicomweb_blueprint(results, serve.public_url, serve.viewer_origins))
    app.register_blueprint(review_blueprint(settings, queue, trail))
    workitems = Workitems(worklist_database(settings), settings.ups.worklist_label)
    app.register_blueprint(ups_blueprint(settings, workitems, trail))
    app.register_blueprint(login_blueprint(app, settings.serve))
    check_table(app)

    @app.before_request
    def _before() -> AnyResponse | None:
        g.began_s = time.monotonic()
        elsewhere = access.check()
        if elsewhere is not None:
            return elsewhere
        user = g.get("user")
        if user is not None and user.ambient and request.method not in _SAFE:
            forms.protect()
        return None

    @app.after_request
    def _after(answer: Response) -> Response:
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        if settings.serve.certificate is not None:
            answer.headers["Strict-Transport-Security"] = "max-age=31536000"
        _audit(trail, answer)
        seconds = time.monotonic() - g.get("began_s", time.monotonic())
        count_request(request.endpoint or "none", request.method, answer.status_code, seconds)
        return answer

    app.register_error_handler(HTTPException, _http_problem)
    app.register_error_handler(MarrowNodeError, _problem)
    app.register_error_handler(Exception, _defect)
    return app


def _audit(trail: AuditTrail, answer: Response) -> None:
    """Record who searched for results or read them over DICOMweb; a preflight is nobody's."""
    user, study = g.get("user"), (request.view_args or {}).get("study")
    was_read = request.blueprint == "dicomweb" and answer.status_code in _READ
    if user is None or not was_read:
        return
    if request.endpoint == "dicomweb.search":
        results_searched(trail, user.name, request.remote_addr or "", request.full_path)
    elif study:
        result_read(trail, user.name, request.remote_addr or "", study, "DICOMweb")


def _http_problem(error: HTTPException) -> Response:
    """A fault of the request, as Werkzeug found it."""
    answer = error.get_response()
    if error.code is None or error.code < HTTPStatus.BAD_REQUEST:
        return Response(answer.get_data(), error.code, answer.headers)
    return _document(error.code, error.name, error.description or "", answer.headers)


def _problem(error: MarrowNodeError) -> Response:
    if isinstance(error, WorkitemRefused):
        refusal, headers = refusal_answer(error)
        return _document(refusal, type(error).__name__, str(error), headers)
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s %s: %s", request.method, request.endpoint, error)
    return _document(status, type(error).__name__, str(error))


def _defect(error: Exception) -> Response:
    # Its words may quote a patient's data: the log has class and place, the answer neither.
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "unknown"
    log.error("Unexpected %s at %s in %s", type(error).__name__, where, request.endpoint)
    return _document(
        HTTPStatus.INTERNAL_SERVER_ERROR, "Defect", "A defect of the node; its log has the place."
    )


def _document(status: int, title: str, detail: str, headers: object = None) -> Response:
    answer = jsonify({"type": "about:blank", "title": title, "status": status, "detail": detail})
    answer.status_code = status
    answer.content_type = PROBLEM
    for name in ("WWW-Authenticate", "Retry-After", "Allow", "Content-Range", "Warning"):
        if headers is not None and name in headers:  # type: ignore[operator]
            answer.headers[name] = headers[name]  # type: ignore[index]
    return answer


def _session_secret(settings: Settings) -> str:
    named = settings.serve.session_secret
    return hidden(named) if named else secrets.token_hex(32)


def _is_https(settings: Settings) -> bool:
    serve = settings.serve
    return serve.certificate is not None or urlsplit(serve.public_url).scheme == "https"
