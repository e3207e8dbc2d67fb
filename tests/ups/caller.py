"""A user agent of the node's own worklist, and workitems that it may send."""

from __future__ import annotations

import json
from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from dicom_io.dicom_json import Json, attributes, value
from node.workitems import Workitems

LISTS = "/dicom-web/workitems"
JSON = "application/dicom+json"
OWN = "2.25.1001"
# Of type 2 at N-CREATE.
EMPTY = (
    "ScheduledProcessingParametersSequence",
    "ScheduledStationNameCodeSequence",
    "ScheduledStationClassCodeSequence",
    "ScheduledStationGeographicLocationCodeSequence",
    "ScheduledWorkitemCodeSequence",
    "CommentsOnTheScheduledProcedureStep",
    "InputInformationSequence",
    "PatientBirthDate",
    "PatientSex",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "ReferencedRequestSequence",
    "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
)


def workitem(**more: Any) -> Json:
    """A dataset that can be created: what PS3.4 table CC.2.5-3 asks for at N-CREATE."""
    needed: dict[str, Any] = {
        "ScheduledProcedureStepPriority": "MEDIUM",
        "ProcedureStepLabel": "Count marrow cells",
        "WorklistLabel": "haematology",
        "ScheduledProcedureStepStartDateTime": "20261126120000",
        "InputReadinessState": "READY",
        "ProcedureStepState": "SCHEDULED",
        "PatientName": [{"Alphabetic": "Doe^Jane"}],
        "PatientID": "4711",
        **{keyword: [] for keyword in EMPTY},
    }
    return attributes(**{**needed, **more})


def code(meaning: str) -> Json:
    return attributes(CodeValue=meaning[:16], CodingSchemeDesignator="99T", CodeMeaning=meaning)


DONE = attributes(
    UnifiedProcedureStepPerformedProcedureSequence=[
        attributes(
            PerformedStationNameCodeSequence=[code("station")],
            PerformedProcedureStepStartDateTime="20261126120000",
            PerformedProcedureStepEndDateTime="20261126120100",
            PerformedWorkitemCodeSequence=[code("work")],
            OutputInformationSequence=[attributes(StudyInstanceUID="1.2")],
        )
    ]
)
STOPPED = attributes(
    ProcedureStepProgressInformationSequence=[
        attributes(
            ProcedureStepCancellationDateTime="20261126120100",
            ProcedureStepDiscontinuationReasonCodeSequence=[code("reason")],
        )
    ]
)


class Caller:
    """A user agent with the key of one role."""

    def __init__(self, client: FlaskClient, role: str) -> None:
        self._client, self._role = client, role
        self._made = 0

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer mnk_{self._role}"} | more.pop("headers", {})
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body)
            more |= {"data": data, "content_type": more.get("content_type", JSON)}
        return self._client.open(f"{LISTS}{path}", method=method, headers=headers, **more)

    def create(self, **more: Any) -> str:
        self._made += 1
        uid = f"2.25.{self._made}"
        answer = self.ask("POST", f"?{uid}", [workitem(**more)])
        assert answer.status_code == 201, answer.text
        return uid

    def change(self, uid: str, state: str, transaction: str | None = OWN) -> TestResponse:
        named = attributes(TransactionUID=transaction) if transaction else {}
        return self.ask("PUT", f"/{uid}/state", [attributes(ProcedureStepState=state) | named])

    def in_state(self, state: str, **more: Any) -> str:
        """A new workitem that has gone all the way to a state; its performer is OWN."""
        uid = self.create(**more)
        if state != "SCHEDULED":
            assert self.change(uid, "IN PROGRESS").status_code == 200
        if state in ("COMPLETED", "CANCELED"):
            end = DONE if state == "COMPLETED" else STOPPED
            assert self.ask("POST", f"/{uid}?{OWN}", [end]).status_code == 200
            assert self.change(uid, state).status_code == 200
        return uid

    def state(self, uid: str) -> str:
        return str(value(self.ask("GET", f"/{uid}").json[0], "ProcedureStepState"))


def warning(answer: TestResponse) -> str:
    agent, _, text = answer.headers.get("Warning", "").partition(": ")
    assert agent in ("", "299 localhost"), answer.headers
    return text


def events(workitems: Workitems, aetitle: str = "AE") -> list[tuple[int, str, str]]:
    """(type, workitem, state) of all reports for an AE."""
    return [
        (
            value(each, "EventTypeID"),
            value(each, "AffectedSOPInstanceUID"),
            value(each, "ProcedureStepState") or "",
        )
        for _, each in workitems.reports(aetitle, 0)
    ]
