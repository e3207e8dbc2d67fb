"""A worklist manager for tests, written from PS3.18 §11 and PS3.4 annex CC.

It shares no code with the node. It keeps one list, hands out no lock, refuses every transition that
table CC.1.1-2 refuses, and tells its WebSocket listeners of what table CC.2.4-1 names.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Literal

from flask import Flask, Response, request
from flask_sock import Sock
from werkzeug.serving import make_server

from tests.served import served

Item = dict[str, Any]
STATE, LOCK, UID = "00741000", "00081195", "00080018"
PROGRESS, PERFORMED = "00741002", "00741216"
CANCELLATION = ("00404052", "0074100E")
PERFORMANCE = ("00404028", "00404050", "00404051", "00404019", "00404033")
FINAL = ("COMPLETED", "CANCELED")
GLOBAL = "1.2.840.10008.5.1.4.34.5"


def first(item: Item, tag: str) -> Any:
    held = item.get(tag, {}).get("Value") or [None]
    return held[0]


def element(vr: str, *held: Any) -> Item:
    return {"vr": vr, "Value": list(held)}


def code(code_value: str, scheme: str, meaning: str) -> Item:
    return {
        "00080100": element("SH", code_value),
        "00080102": element("SH", scheme),
        "00080104": element("LO", meaning),
    }


@dataclass
class Step:
    """One workitem, its lock, and what has happened to it."""

    item: Item
    lock: str = ""
    history: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        return str(first(self.item, STATE))


@dataclass
class Manager:
    """The list.

    Attributes
    ----------
    lock_in
        Where an update has to name its Transaction UID: only there it is looked for.
    token
        That a bearer has to show; empty for none.
    refusals
        (what, status) of every refused request.
    down
        While set, every request is answered 503.
    broken
        Workitems of which every request is answered 503.
    """

    lock_in: Literal["address", "dataset"] = "address"
    token: str = ""
    has_events: bool = True
    url: str = ""
    steps: dict[str, Step] = field(default_factory=dict)
    refusals: list[tuple[str, int]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    down: threading.Event = field(default_factory=threading.Event)
    broken: set[str] = field(default_factory=set)
    subscribers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    listeners: dict[str, list[SimpleQueue[Item]]] = field(default_factory=lambda: defaultdict(list))
    guard: threading.RLock = field(default_factory=threading.RLock)

    def schedule(
        self,
        uid: str,
        slides: list[tuple[str, str]],
        *,
        workitem_code: str = "marrow-ndc",
        scheme: str = "99MARROW",
        **more: Item,
    ) -> None:
        """Put a step into the list, as whoever orders it would."""
        slide = "1.2.840.10008.5.1.4.1.1.77.1.6"
        inputs = [
            {
                "0040E020": element("CS", "DICOM"),
                "0020000D": element("UI", study),
                "0020000E": element("UI", series),
                "00081199": element(
                    "SQ",
                    {"00081150": element("UI", slide), "00081155": element("UI", f"{series}.1")},
                ),
            }
            for study, series in slides
        ]
        item = {
            "00080016": element("UI", "1.2.840.10008.5.1.4.34.6.1"),
            UID: element("UI", uid),
            STATE: element("CS", "SCHEDULED"),
            "00741200": element("CS", "HIGH"),
            "00741204": element("LO", "Count marrow cells"),
            "00741202": element("LO", "AI"),
            "00404005": element("DT", "20261126120000"),
            "00404010": element("DT", "20261126120000"),
            "00404041": element("CS", "READY"),
            "00404018": element("SQ", code(workitem_code, scheme, "Count")),
            "00404021": element("SQ", *inputs),
            **{name.removeprefix("t"): each for name, each in more.items()},
        }
        with self.guard:
            self.steps[uid] = Step(item, history=["SCHEDULED"])
            self.tell(uid, 1)

    def tell(self, uid: str, kind: int, **more: Item) -> None:
        """Send an event to everybody who has subscribed to the step or to the list."""
        item = self.steps[uid].item
        report = {
            "00000002": element("UI", "1.2.840.10008.5.1.4.34.6.1"),
            "00001000": element("UI", uid),
            "00001002": element("US", kind),
            **({STATE: item[STATE], "00404041": item["00404041"]} if kind == 1 else {}),
            **more,
        }
        for aetitle, uids in self.subscribers.items():
            if uids & {uid, GLOBAL}:
                for listener in self.listeners[aetitle]:
                    listener.put(report)

    def request_cancel(self, uid: str) -> None:
        """Somebody wishes that a step in progress is canceled."""
        with self.guard:
            self.tell(uid, 2, **{"00741236": element("AE", "DESK")})

    def take_away(self, uid: str) -> None:
        """The manager itself cancels a step in progress, as CC.2.1.3 lets it."""
        with self.guard:
            self.steps[uid].item[STATE] = element("CS", "CANCELED")
            self.steps[uid].history.append("CANCELED by the manager")

    def claim_for(self, uid: str, lock: str) -> None:
        """Another performer gets a step."""
        with self.guard:
            self.steps[uid].lock = lock
            self.steps[uid].item[STATE] = element("CS", "IN PROGRESS")
            self.steps[uid].history.append("IN PROGRESS elsewhere")


class Refused(Exception):
    """The status and the warning of a refusal."""

    def __init__(self, status: int, warning: str = "") -> None:
        super().__init__(warning)
        self.status, self.warning = status, warning


def manager_app(manager: Manager) -> Flask:  # noqa: PLR0915 - one route after the other
    app = Flask("manager")
    sock = Sock(app)

    @app.before_request
    def check() -> Response | None:
        manager.requests.append(f"{request.method} {request.path}")
        if manager.down.is_set() or manager.broken & set(request.path.split("/")):
            return Response(status=503)
        if manager.token and request.headers.get("Authorization") != f"Bearer {manager.token}":
            return Response(status=401)
        return None

    @app.errorhandler(Refused)
    def refused(error: Refused) -> Response:
        manager.refusals.append((f"{request.method} {request.path}", error.status))
        headers = {"Warning": f"299 manager: {error.warning}"} if error.warning else {}
        return Response(status=error.status, headers=headers)

    @app.get("/rs/workitems")
    def search() -> Response:
        wanted = request.args.get("ProcedureStepState")
        offset, limit = int(request.args.get("offset", 0)), int(request.args.get("limit", 100))
        with manager.guard:
            found = [
                {tag: each for tag, each in step.item.items() if tag not in ("00404021",)}
                for step in manager.steps.values()
                if wanted in (None, step.state)
            ][offset : offset + limit]
        return answer(found) if found else Response(status=204)

    @app.get("/rs/workitems/<uid>")
    def retrieve(uid: str) -> Response:
        return answer([step_of(uid).item])

    @app.post("/rs/workitems/<uid>")
    def update(uid: str) -> Response:
        changes = body()
        named = request.query_string.decode() if manager.lock_in == "address" else ""
        held = changes.pop(LOCK, None)
        lock = named if manager.lock_in == "address" else (held or {}).get("Value", [""])[0]
        with manager.guard:
            step = step_of(uid)
            if step.state in FINAL:
                raise Refused(400, "inconsistent")
            if step.state == "IN PROGRESS" and lock != step.lock:
                raise Refused(400, "The target URI did not reference a claimed Workitem.")
            if STATE in changes or UID in changes:
                raise Refused(400)
            step.item.update(changes)
            if PROGRESS in changes:
                told = first(first(changes, PROGRESS), "00741004")
                step.history.append(f"progress {told}")
                manager.tell(uid, 3, **{PROGRESS: changes[PROGRESS]})
        return Response(status=200)

    @app.put("/rs/workitems/<uid>/state")
    def change(uid: str) -> Response:
        asked = body()
        state, lock = first(asked, STATE), first(asked, LOCK)
        with manager.guard:
            step = step_of(uid)
            if not lock:
                raise Refused(400, "The Transaction UID is missing.")
            if step.lock and lock != step.lock:
                raise Refused(409, "The Transaction UID is incorrect.")
            move(step, state)
            step.lock = lock
            step.item[STATE] = element("CS", state)
            step.history.append(state)
            manager.tell(uid, 1)
        return Response(status=200)

    @app.post("/rs/workitems/<uid>/subscribers/<aetitle>")
    def subscribe(uid: str, aetitle: str) -> Response:
        if not manager.has_events:
            raise Refused(403)
        with manager.guard:
            manager.subscribers[aetitle].add(uid)
        return Response(status=201)

    @sock.route("/rs/subscribers/<aetitle>")
    def listen(socket: Any, aetitle: str) -> None:
        reports: SimpleQueue[Item] = SimpleQueue()
        manager.listeners[aetitle].append(reports)
        while socket.connected:
            try:
                socket.send(json.dumps(reports.get(timeout=0.1)))
            except Empty:
                socket.receive(timeout=0)

    def step_of(uid: str) -> Step:
        with manager.guard:
            if uid not in manager.steps:
                raise Refused(404)
            return manager.steps[uid]

    return app


def move(step: Step, state: Any) -> None:
    """Table CC.1.1-2, with the correct Transaction UID."""
    if state not in ("IN PROGRESS", *FINAL):
        raise Refused(400)
    if state == "IN PROGRESS":
        if step.state != "SCHEDULED":
            raise Refused(409, "inconsistent")
        return
    if step.state != "IN PROGRESS":
        raise Refused(409, "inconsistent")
    outer, needed = (PERFORMED, PERFORMANCE) if state == "COMPLETED" else (PROGRESS, CANCELLATION)
    inner = first(step.item, outer) or {}
    if not all(inner.get(tag, {}).get("Value") for tag in needed):
        raise Refused(409, "final state requirements")


def body() -> Item:
    if request.mimetype != "application/dicom+json":
        raise Refused(415)
    (item,) = json.loads(request.get_data())
    return dict(item)


def answer(items: list[Item]) -> Response:
    return Response(json.dumps(items), content_type="application/dicom+json")


@contextmanager
def running_manager(manager: Manager) -> Iterator[Manager]:
    """Serve a list on a free loopback port."""
    server = make_server("127.0.0.1", 0, manager_app(manager), threaded=True)
    with served(server) as origin:
        manager.url = f"{origin}/rs"
        yield manager
