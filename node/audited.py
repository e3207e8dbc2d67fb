"""Which events of the node become records of the audit trail."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydicom import dcmread

from models.errors import MarrowNodeError
from node.audit import AuditTrail, audited_now
from node.audit_messages import AuditRecord
from node.config import Settings
from node.review import Review
from node.stages import FILE_NAMES
from node.work_files import open_work_files

log = logging.getLogger(__name__)

MOST_ADDRESSES = 1000
_NODE: dict[str, Any] = {"id": "marrow-node", "requestor": True}
_SOURCE, _DESTINATION, _APPLICATION = "110153", "110152", "110150"


def audit_trail(settings: Settings) -> AuditTrail:
    return AuditTrail(settings.audit, audit_folder(settings))


def audit_folder(settings: Settings) -> Path:
    """Where records wait."""
    return settings.work_folder / "audit"


@contextmanager
def application_audited(settings: Settings, name: str) -> Iterator[None]:
    """Record that a process starts, and that it stops."""
    trail = audit_trail(settings)

    def record(kind: str) -> None:
        user = {"id": f"marrow-node {name}", "role": _APPLICATION, "requestor": False}
        trail.record(AuditRecord("110100", "E", audited_now(), [user], kind=kind))

    record("110120")
    try:
        yield
    finally:
        record("110121")


class RefusedLogins:
    """Records credentials that were not known; not the credentials.

    Anybody may send such requests, and each record is a file until it is sent: of an address the
    first is recorded, and what follows within a minute as one, with their number.
    """

    def __init__(self, trail: AuditTrail, together_s: float = 60.0) -> None:
        self._trail, self._together_s = trail, together_s
        self._further: dict[str, int] = {}
        self._lock = threading.Lock()

    def saw(self, address: str) -> None:
        """Record, or count, a refusal."""
        with self._lock:
            if address not in self._further and len(self._further) >= MOST_ADDRESSES:
                address = ""  # together, however many there are
            if address in self._further:
                self._further[address] += 1
                return
            if not self._further:
                timer = threading.Timer(self._together_s, self._record_further)
                timer.daemon = True
                timer.start()
            self._further[address] = 0
        self._record(address, "")

    def _record_further(self) -> None:
        with self._lock:
            counted, self._further = self._further, {}
        try:
            for address, number in counted.items():
                if number:
                    self._record(address, f"{number} further within {self._together_s:g} s")
        except MarrowNodeError as error:
            log.error("Refused credentials could not be recorded: %s", error)

    def _record(self, address: str, description: str) -> None:
        user = {"id": "unknown", "requestor": True, "address": address}
        self._trail.record(
            AuditRecord(
                "110114",
                "E",
                audited_now(),
                [user],
                kind="110122",
                outcome="4",
                outcome_description=description,
            )
        )


def job_submitted(trail: AuditTrail, user: str, address: str, study_uid: str, job: str) -> None:
    """Record that somebody had a slide analysed."""
    who = {"id": user, "requestor": True, "address": address}
    trail.record(
        AuditRecord("110111", "C", audited_now(), [who], study_uid=study_uid, what=f"job {job}")
    )


def job_changed(
    trail: AuditTrail, user: str, address: str, study_uid: str, job: str, change: str
) -> None:
    """Record that somebody had a job tried again, or cancelled."""
    who = {"id": user, "requestor": True, "address": address}
    what = f"job {job}, {change}"
    trail.record(AuditRecord("110111", "U", audited_now(), [who], study_uid=study_uid, what=what))


def results_searched(trail: AuditTrail, user: str, address: str, query: str) -> None:
    """Record that somebody searched for results, and for which."""
    who = {"id": user, "requestor": True, "address": address}
    trail.record(AuditRecord("110112", "E", audited_now(), [who], query=query))


def result_read(trail: AuditTrail, user: str, address: str, study_uid: str, what: str) -> None:
    """Record that somebody read a result."""
    who = {"id": user, "requestor": True, "address": address}
    trail.record(AuditRecord("110103", "R", audited_now(), [who], study_uid=study_uid, what=what))


# Requests of the worklist that hold or change what is known of a patient → event and action.
_WORKITEM_EVENTS = {
    "ups.create": ("110111", "C"),
    "ups.retrieve": ("110111", "R"),
    "ups.update": ("110111", "U"),
    "ups.change_state": ("110111", "U"),
    "ups.request_cancel": ("110111", "U"),
    "ups.search": ("110112", "E"),
}


def workitem_handled(trail: AuditTrail, user: str, address: str, endpoint: str, uid: str) -> None:
    """Record that somebody created, read, changed or searched for workitems."""
    if endpoint not in _WORKITEM_EVENTS:
        return
    event, action = _WORKITEM_EVENTS[endpoint]
    who = {"id": user, "requestor": True, "address": address}
    what = f"workitem {uid}" if uid else "workitems"
    trail.record(AuditRecord(event, action, audited_now(), [who], what=what))


def slide_analysed(settings: Settings, result: Mapping[str, Any]) -> None:
    """Record that a slide was read from the archive, and what was stored there and in the EHR."""
    trail = audit_trail(settings)
    about, classes = _about(settings, result)
    trail.record(
        about(
            "110104",
            "R",
            audited_now(),
            [
                {"id": _host(settings.pacs_url), "role": _SOURCE, "requestor": False},
                _NODE | {"role": _DESTINATION},
            ],
        )
    )
    _delivered(settings, result, about, classes)


def result_reviewed(settings: Settings, review: Review, result: Mapping[str, Any]) -> None:
    """Record that a person decided on a result, and what was stored there and in the EHR."""
    about, classes = _about(settings, result)
    audit_trail(settings).record(
        about(
            "110111",
            "U",
            audited_now(),
            [{"id": review.name, "requestor": True}],
            what=f"revision {result['revision']} of DiagnosticReport {result['report']}, "
            f"{review.decision}",
        )
    )
    _delivered(settings, result, about, classes)


def _about(
    settings: Settings, result: Mapping[str, Any]
) -> tuple[Callable[..., AuditRecord], dict[str, int]]:
    """Records about a result's study and patient, and how many objects it has of each class."""
    report, classes = _stored(settings, result)
    return (
        partial(
            AuditRecord,
            study_uid=str(report.StudyInstanceUID),
            patient_id=str(report.PatientID or ""),
        ),
        classes,
    )


def _delivered(
    settings: Settings,
    result: Mapping[str, Any],
    about: Callable[..., AuditRecord],
    classes: dict[str, int],
) -> None:
    trail = audit_trail(settings)
    pacs = _host(settings.results_url or settings.pacs_url)
    trail.record(
        about(
            "110104",
            "C",
            audited_now(),
            [
                _NODE | {"role": _SOURCE},
                {"id": pacs, "role": _DESTINATION, "requestor": False},
            ],
            sop_classes=classes,
        )
    )
    trail.record(
        about(
            "110106",
            "C",
            audited_now(),
            [
                _NODE | {"role": _SOURCE},
                {"id": _host(settings.ehr_url), "role": _DESTINATION, "requestor": False},
            ],
            what=f"DiagnosticReport {result['report']}",
        )
    )


def _stored(settings: Settings, result: Mapping[str, Any]) -> tuple[Any, dict[str, int]]:
    """The report, and how many objects of each SOP Class were stored."""
    work = open_work_files(settings)
    kinds = [kind for kind in result["files"] if FILE_NAMES[kind].endswith(".dcm")]
    tags = ["SOPClassUID", "StudyInstanceUID", "PatientID"]
    headers = {
        kind: dcmread(
            BytesIO(work.get(Path(result["files"][kind]).name)),
            stop_before_pixels=True,
            specific_tags=list(tags),
        )
        for kind in kinds
    }
    classes = Counter(str(header.SOPClassUID) for header in headers.values())
    return headers["SR"], dict(classes)


def _host(url: str) -> str:
    return urlsplit(url).netloc or "folder"
