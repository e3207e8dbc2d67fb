"""UPS-RS origin server: the node's own worklist (PS3.18 §11), under ``/dicom-web``.

Requests name attributes as DICOM JSON. A Transaction UID is taken from where an edition of the
standard or another implementation puts it: of an update, from the address (``?1.2.3`` or
``?transaction-uid=1.2.3``) or from the dataset; of a change of state, from the dataset. A further
``/{requester}`` after ``state`` and ``cancelrequest``, which some user agents add, names who asks.
"""

from __future__ import annotations

import json
import threading
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, g, request, url_for
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server
from werkzeug.exceptions import BadRequest

from dicom_io.dicom_json import value
from dicom_io.errors import Refusal, WorkitemRefused
from dicom_io.workitem_search import search_of
from node.audit import AuditTrail
from node.audited import workitem_handled
from node.config import Settings
from node.web.access import request_user
from node.web.representation import DICOM_JSON, BodyInvalid, representation, sent_datasets
from node.workitems import FILTERED_WORKLIST, LONGEST_TITLE, Workitems

PREFIX = "/dicom-web"
LOOK_S = 0.2
# Each open connection holds a thread; the others have to stay free.
SHARE_OF_LISTENERS = 0.25

_INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
_UNCLAIMED = "The target URI did not reference a claimed Workitem."
_NOT_CURRENT = "The submitted request is inconsistent with the current state of the Workitem."
_LITERAL = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
# Why a worklist refuses → status and warning, PS3.18 §11.4 to §11.12.
_ANSWERS: dict[Refusal, tuple[HTTPStatus, str]] = {
    Refusal.DUPLICATE: (HTTPStatus.CONFLICT, ""),
    Refusal.INVALID: (HTTPStatus.BAD_REQUEST, ""),
    Refusal.CREATED_IN_STATE: (HTTPStatus.BAD_REQUEST, ""),
    Refusal.INAPPROPRIATE: (HTTPStatus.BAD_REQUEST, ""),
    Refusal.UNKNOWN: (HTTPStatus.NOT_FOUND, ""),
    Refusal.NOT_SUBSCRIBED: (HTTPStatus.NOT_FOUND, ""),
    Refusal.DELETED: (HTTPStatus.GONE, ""),
    Refusal.TRANSACTION_MISSING: (HTTPStatus.BAD_REQUEST, "The Transaction UID is missing."),
    Refusal.TRANSACTION_WRONG: (HTTPStatus.BAD_REQUEST, "The Transaction UID is incorrect."),
    Refusal.NOT_SCHEDULABLE: (HTTPStatus.BAD_REQUEST, _INCONSISTENT),
    Refusal.ENDED: (HTTPStatus.CONFLICT, _INCONSISTENT),
    Refusal.CLAIMED: (HTTPStatus.CONFLICT, _INCONSISTENT),
    Refusal.NOT_FINAL: (HTTPStatus.CONFLICT, _INCONSISTENT),
    Refusal.NOT_CLAIMED: (HTTPStatus.CONFLICT, _INCONSISTENT),
    Refusal.COMPLETED: (HTTPStatus.CONFLICT, _INCONSISTENT),
    Refusal.PERFORMER_ABSENT: (HTTPStatus.CONFLICT, _INCONSISTENT),
}
# An update has words of its own, and its own status for a workitem that has ended (§11.6).
_ANSWERS_TO_UPDATE: dict[Refusal, tuple[HTTPStatus, str]] = {
    Refusal.INVALID: (HTTPStatus.BAD_REQUEST, _NOT_CURRENT),
    Refusal.ENDED: (HTTPStatus.BAD_REQUEST, _NOT_CURRENT),
    Refusal.NOT_CLAIMED: (HTTPStatus.CONFLICT, _UNCLAIMED),
    Refusal.TRANSACTION_MISSING: (HTTPStatus.BAD_REQUEST, _UNCLAIMED),
    Refusal.TRANSACTION_WRONG: (HTTPStatus.BAD_REQUEST, _UNCLAIMED),
}


def ups_blueprint(settings: Settings, workitems: Workitems, trail: AuditTrail) -> Blueprint:
    """Routes ``/dicom-web/workitems`` and the WebSocket ``/dicom-web/subscribers``."""
    ups = Blueprint("ups", __name__, url_prefix=PREFIX)
    _add_workitems(ups, settings, workitems)
    _add_subscriptions(ups, settings, workitems)
    _add_events(ups, settings, workitems)

    @ups.after_request
    def _record(answer: Response) -> Response:
        """Record who handled which workitem."""
        if answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
            made = answer.headers.get("Location", "").rpartition("/")[2]
            uid = made or (request.view_args or {}).get("uid", "")
            who, address = request_user().name, request.remote_addr or ""
            workitem_handled(trail, who, address, str(request.endpoint), uid)
        return answer

    workitems.tell_restart()
    return ups


def refusal_answer(error: WorkitemRefused) -> tuple[HTTPStatus, dict[str, str]]:
    """Status and headers of a refused request."""
    answers = _ANSWERS | (_ANSWERS_TO_UPDATE if request.endpoint == "ups.update" else {})
    status, warning = answers[error.why]
    return status, {"Warning": _warning(warning)} if warning else {}


def _add_workitems(ups: Blueprint, settings: Settings, workitems: Workitems) -> None:
    @ups.post("/workitems")
    def create() -> Response:
        named = _bare("AffectedSOPInstanceUID", "workitem")
        uid, modified = workitems.create(_dataset(), named)
        place = _address(settings, url_for("ups.retrieve", uid=uid))
        warning = "The Workitem was created with modifications." if modified else ""
        answer = _told(HTTPStatus.CREATED, warning)
        answer.headers.update({"Location": place, "Content-Location": place})
        return answer

    @ups.get("/workitems")
    def search() -> Response:
        taken = representation()
        wanted = search_of((name, each) for name, each in request.args.items(multi=True))
        found = workitems.search(wanted)
        if not found.items:
            return Response(status=HTTPStatus.NO_CONTENT)
        status = HTTPStatus.PARTIAL_CONTENT if found.further else HTTPStatus.OK
        answer = taken.answer(found.items, status)
        if wanted.fuzzy:
            answer.headers.add("Warning", _warning(_LITERAL))
        if found.further:
            more = f"There are {found.further} additional results that can be requested"
            answer.headers.add("Warning", _warning(more))
        return answer

    @ups.get("/workitems/<uid>")
    def retrieve(uid: str) -> Response:
        return representation().answer([workitems.retrieve(uid)])

    @ups.post("/workitems/<uid>")
    def update(uid: str) -> Response:
        workitems.update(uid, _dataset(), _bare("transaction-uid", "transaction", "TransactionUID"))
        return Response(status=HTTPStatus.OK, content_type=DICOM_JSON)

    @ups.put("/workitems/<uid>/state")
    @ups.put("/workitems/<uid>/state/<requester>")
    def change_state(uid: str, requester: str = "") -> Response:
        asked = _dataset()
        state = str(value(asked, "ProcedureStepState") or "")
        transaction = str(value(asked, "TransactionUID") or "")
        changed = workitems.change_state(uid, state, transaction)
        already = f"The UPS is already in the requested state of {state}."
        return _told(HTTPStatus.OK, "" if changed else already)

    @ups.post("/workitems/<uid>/cancelrequest")
    @ups.post("/workitems/<uid>/cancelrequest/<requester>")
    def request_cancel(uid: str, requester: str = "") -> Response:
        wanted = _dataset() if request.content_length else {}
        who = (requester or request_user().name)[:LONGEST_TITLE]
        open_still = workitems.request_cancel(uid, wanted, who)
        already = "The UPS is already in the requested state of CANCELED."
        return _told(HTTPStatus.ACCEPTED, "" if open_still else already)


def _add_subscriptions(ups: Blueprint, settings: Settings, workitems: Workitems) -> None:
    @ups.post("/workitems/<uid>/subscribers/<aetitle>")
    def subscribe(uid: str, aetitle: str) -> Response:
        wished = request.args.get("deletionlock", "false")
        if wished not in ("true", "false"):
            raise BadRequest("deletionlock is true or false.")
        # A lock keeps workitems for as long as it lasts: not for those who may only read.
        locked = wished == "true" and request_user().may("operate")
        workitems.subscribe(uid, aetitle, locked, _filters(uid))
        refused = wished == "true" and not locked
        answer = _told(HTTPStatus.CREATED, "Deletion Lock not granted." if refused else "")
        place = _address(settings, url_for("ups.upgrade", aetitle=aetitle))
        answer.headers["Content-Location"] = f"ws{place.removeprefix('http')}"
        return answer

    @ups.delete("/workitems/<uid>/subscribers/<aetitle>")
    def unsubscribe(uid: str, aetitle: str) -> Response:
        workitems.unsubscribe(uid, aetitle)
        return Response(status=HTTPStatus.OK)

    @ups.post("/workitems/<uid>/subscribers/<aetitle>/suspend")
    def suspend(uid: str, aetitle: str) -> Response:
        workitems.suspend(uid, aetitle)
        return Response(status=HTTPStatus.OK)


def _add_events(ups: Blueprint, settings: Settings, workitems: Workitems) -> None:
    sockets = Sock()
    home = urlsplit(settings.serve.public_url).netloc
    listeners = threading.Semaphore(max(1, int(settings.serve.threads * SHARE_OF_LISTENERS)))

    @ups.get("/ws/subscribers/<aetitle>")
    @ups.get("/subscribers/<aetitle>")
    def upgrade(aetitle: str) -> Response:
        """Answer requests for an event connection that are no WebSocket handshake."""
        return Response(status=HTTPStatus.UPGRADE_REQUIRED, headers={"Upgrade": "websocket"})

    # The second as PS3.18 had it until 2018.
    for endpoint, place in (("listen", ""), ("listen_as_before", "/ws")):

        @sockets.route(  # type: ignore[untyped-decorator]
            f"{place}/subscribers/<aetitle>", bp=ups, endpoint=endpoint
        )
        def listen(socket: Server, aetitle: str) -> None:
            _serve(listeners, workitems, socket, aetitle, home)


def _serve(
    listeners: threading.Semaphore, workitems: Workitems, socket: Server, aetitle: str, home: str
) -> None:
    """Send event reports until the other side goes."""
    origin = urlsplit(request.headers.get("Origin", "")).netloc
    if request_user().ambient and origin not in ("", request.host, home):
        # A page from elsewhere, for which the browser has added the credentials.
        socket.close(1008, "This page may not listen.")  # RFC 6455 §7.4, policy violation
        return
    if not listeners.acquire(blocking=False):
        socket.close(1013, "Too many listen at a time.")  # RFC 6455 §7.4, try again later
        return
    try:
        _send_reports(workitems, socket, aetitle)
    except ConnectionClosed:
        pass
    finally:
        listeners.release()
        g.began_s = time.monotonic()  # how long somebody listened is no answer's time


def _send_reports(workitems: Workitems, socket: Server, aetitle: str) -> None:
    first = workitems.first_report(aetitle)
    while True:
        due = workitems.reports(aetitle, first)
        for _, report in due:
            socket.send(json.dumps(report))
        if due:
            workitems.sent([number for number, _ in due])
            first = due[-1][0] + 1
        # Nothing is expected from there; this waits, and notices when the other side goes.
        socket.receive(timeout=LOOK_S)


def _address(settings: Settings, path: str) -> str:
    """As user agents reach it, also where a proxy stands in front."""
    return (settings.serve.public_url or request.host_url).rstrip("/") + path


def _dataset() -> Any:
    """The one dataset of a request's body."""
    try:
        sent = sent_datasets()
    except BodyInvalid as error:
        raise WorkitemRefused(str(error)) from error
    if len(sent) != 1:
        raise WorkitemRefused("The body has to hold one dataset.")
    return sent[0]


def _bare(*names: str) -> str:
    """A UID in the address: as a parameter of one of these names, or alone (``?1.2.3``)."""
    for name in names:
        if name in request.args:
            return request.args[name]
    query = request.query_string.decode("ascii", "replace")
    return query if query and "=" not in query and "&" not in query else ""


def _filters(uid: str) -> list[str]:
    """The filter of a subscription, or keys as in a search."""
    given = request.args.getlist("filter")
    keys = [
        f"{name}={each}"
        for name, each in request.args.items(multi=True)
        if name not in ("filter", "deletionlock", "accept", "charset")
    ]
    return given + (keys if uid == FILTERED_WORKLIST else [])


def _told(status: HTTPStatus, warning: str) -> Response:
    answer = Response(status=status)
    if warning:
        answer.headers["Warning"] = _warning(warning)
    return answer


def _warning(sentence: str) -> str:
    """RFC 7234 §5.5 with the words of PS3.18; the agent is the service's host."""
    return f"299 {request.host}: {sentence}"
