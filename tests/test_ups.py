"""The node's own worklist over UPS-RS: every transition and status of PS3.18 §11."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import delete
from werkzeug.test import TestResponse

from conformance.capabilities import UPS_STATUSES
from dicom_io.dicom_json import Json, attributes, value, values
from dicom_io.errors import Refusal, WorkitemRefused
from dicom_io.multipart import Multipart
from dicom_io.native_model import from_xml, to_xml
from dicom_io.workitem import TRANSACTION, UPS_PUSH
from node.audit_settings import AuditSettings
from node.claims import Claims
from node.config import Settings
from node.job_queue import open_job_queue
from node.web.access import digest_of
from node.web.app import create_app
from node.web.settings import KeySettings, ServeSettings
from node.web.ups import _ANSWERS, _ANSWERS_TO_UPDATE
from node.workitems import FILTERED_WORKLIST, WORKLIST, Workitems
from node.worklist_database import (
    REPORTS,
    SUBSCRIPTIONS,
    WORKITEMS,
    WORKLIST_SUBSCRIPTIONS,
    WorklistDatabase,
    worklist_database,
)
from tests.postgresql import running_postgresql

LISTS = "/dicom-web/workitems"
JSON, XML = "application/dicom+json", "application/dicom+xml"
OWN, OTHER = "2.25.1001", "2.25.1002"
INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
NOT_CURRENT = "The submitted request is inconsistent with the current state of the Workitem."
UNCLAIMED = "The target URI did not reference a claimed Workitem."
MISSING, INCORRECT = "The Transaction UID is missing.", "The Transaction UID is incorrect."
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


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    keys = {
        role: KeySettings(sha256=digest_of(f"mnk_{role}"), roles=(role,))
        for role in ("submit", "read", "operate", "admin")
    }
    serve = ServeSettings(keys=keys, requests_per_s=100_000)
    return replace(Settings(), work_folder=tmp_path_factory.mktemp("ups"), serve=serve)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[FlaskClient]:
    with open_job_queue(settings) as queue:
        yield create_app(settings, queue).test_client()


@pytest.fixture(scope="module")
def database(settings: Settings) -> WorklistDatabase:
    return worklist_database(settings)


@pytest.fixture
def caller(client: FlaskClient, database: WorklistDatabase) -> Caller:
    """A user agent of a list that is empty."""
    with database.changing() as connection:
        for table in (WORKITEMS, SUBSCRIPTIONS, WORKLIST_SUBSCRIPTIONS, REPORTS):
            connection.execute(delete(table))
    return Caller(client, "admin")


@pytest.fixture
def workitems(database: WorklistDatabase, caller: Caller) -> Workitems:
    """The same list as another process sees it."""
    return Workitems(database, "label")


def warning(answer: TestResponse) -> str:
    agent, _, text = answer.headers.get("Warning", "").partition(": ")
    assert agent in ("", "299 localhost"), answer.headers
    return text


# Create, §11.4


def test_created_is_found_at_its_location(caller: Caller) -> None:
    answer = caller.ask("POST", "?1.2.3", workitem())
    assert (answer.status_code, warning(answer), answer.data) == (201, "", b"")
    assert answer.headers["Location"] == "http://localhost/dicom-web/workitems/1.2.3"
    found = caller.ask("GET", "/1.2.3")
    assert (found.status_code, found.mimetype) == (200, JSON)
    (item,) = found.json
    assert value(item, "SOPClassUID") == UPS_PUSH
    assert value(item, "SOPInstanceUID") == "1.2.3"
    assert value(item, "ScheduledProcedureStepModificationDateTime")
    assert item.items() >= workitem().items()


@pytest.mark.parametrize(
    ("query", "more", "uid"),
    [
        ("?AffectedSOPInstanceUID=1.2.4", {}, "1.2.4"),
        ("?workitem=1.2.5", {}, "1.2.5"),
        ("", {"SOPInstanceUID": "1.2.6"}, "1.2.6"),
        ("", {"AffectedSOPInstanceUID": "1.2.7"}, "1.2.7"),
        ("?1.2.8", {"SOPInstanceUID": "1.2.8"}, "1.2.8"),
    ],
)
def test_the_uid_is_where_editions_put_it(
    caller: Caller, query: str, more: dict[str, str], uid: str
) -> None:
    answer = caller.ask("POST", query, [workitem(**more)])
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"].endswith(f"/{uid}")
    assert value(caller.ask("GET", f"/{uid}").json[0], "SOPInstanceUID") == uid


def test_what_is_filled_in_is_told(caller: Caller) -> None:
    sparse = {tag: each for tag, each in workitem().items() if "Value" in each}
    answer = caller.ask("POST", "?1.2.3", sparse)
    assert answer.status_code == 201
    assert warning(answer) == "The Workitem was created with modifications."
    item = caller.ask("GET", "/1.2.3").json[0]
    assert item.keys() >= workitem().keys()
    caller.ask("POST", "?1.2.4", workitem(WorklistLabel=[]))
    assert value(caller.ask("GET", "/1.2.4").json[0], "WorklistLabel") == "marrow-node"


@pytest.mark.parametrize(
    "keyword",
    [
        "ScheduledProcedureStepPriority",
        "ProcedureStepLabel",
        "ScheduledProcedureStepStartDateTime",
        "InputReadinessState",
        "ProcedureStepState",
    ],
)
def test_a_needed_attribute_that_is_missing_is_named(caller: Caller, keyword: str) -> None:
    answer = caller.ask("POST", "?1.2.3", workitem(**{keyword: []}))
    assert answer.status_code == 400
    assert keyword in answer.json["detail"]
    assert caller.ask("GET", "/1.2.3").status_code == 404


@pytest.mark.filterwarnings("ignore:Invalid value for VR DT")
@pytest.mark.parametrize(
    "more",
    [
        {"ProcedureStepState": "IN PROGRESS"},
        {"ScheduledProcedureStepPriority": "URGENT"},
        {"InputReadinessState": "SOON"},
        {"ScheduledProcedureStepStartDateTime": "tomorrow"},
        {"TransactionUID": OWN},
        {"ProcedureStepProgressInformationSequence": [{}]},
        {"UnifiedProcedureStepPerformedProcedureSequence": [{}]},
        {"SOPInstanceUID": "1.2.9"},
    ],
)
def test_an_attribute_that_must_not_be_so_is_refused(caller: Caller, more: dict[str, Any]) -> None:
    assert caller.ask("POST", "?1.2.3", workitem(**more)).status_code == 400


@pytest.mark.parametrize("query", ["", "?1.2.", "?01.2", "?" + "1." * 40 + "1", "?x"])
def test_a_workitem_needs_a_uid(caller: Caller, query: str) -> None:
    assert caller.ask("POST", query, workitem()).status_code == 400


def test_a_workitem_is_created_once(caller: Caller) -> None:
    uid = caller.create()
    again = caller.ask("POST", f"?{uid}", workitem())
    assert again.status_code == 409
    assert again.content_type == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ("{", JSON, 400),
        ("[]", JSON, 400),
        ("[{}, {}]", JSON, 400),
        ("7", JSON, 400),
        ('{"00741200": 7}', JSON, 400),
        ('{"00741200": {"vr": "DS", "Value": ["x"]}}', JSON, 400),
        ('{"0074120Z": {"vr": "CS", "Value": ["HIGH"]}}', JSON, 400),
        ("{}", "application/dicom+xml", 400),
        ("<NativeDicomModel", "application/dicom+xml", 400),
        ("<NativeDicomModel/>", "application/xml", 415),
        ("--", 'multipart/related; type="application/dicom+xml"', 400),
        ("--a--", 'multipart/related; type="application/dicom+xml"; boundary=a', 400),
        ("{}", "text/plain", 415),
    ],
)
def test_bodies_that_are_no_dataset(
    caller: Caller, client: FlaskClient, body: str, content_type: str, status: int
) -> None:
    headers = {"Authorization": "Bearer mnk_admin"}
    uid = caller.create()
    for method, path in (
        ("POST", "?1.2.3"),
        ("POST", f"/{uid}"),
        ("PUT", f"/{uid}/state"),
        ("POST", f"/{uid}/cancelrequest"),
    ):
        answer = client.open(
            f"{LISTS}{path}", method=method, headers=headers, data=body, content_type=content_type
        )
        assert answer.status_code == status, (method, path, answer.text)


# Retrieve, §11.5


def test_the_lock_is_never_told(caller: Caller) -> None:
    uid = caller.in_state("IN PROGRESS")
    assert caller.ask("POST", f"/{uid}", [attributes(TransactionUID=OWN)]).status_code == 200
    for path in (f"/{uid}", "?includefield=all", "?includefield=TransactionUID"):
        answer = caller.ask("GET", path)
        assert TRANSACTION not in answer.json[0]
        assert OWN not in answer.text


def test_unknown_and_deleted_are_told_apart(caller: Caller, workitems: Workitems) -> None:
    uid = caller.in_state("COMPLETED")
    assert workitems.purge(keep_days=0) == 1
    for gone, status in ((uid, 410), ("9.9", 404)):
        for method, path, body in (
            ("GET", "", None),
            ("POST", "", {}),
            ("PUT", "/state", attributes(ProcedureStepState="IN PROGRESS", TransactionUID=OWN)),
            ("POST", "/cancelrequest", {}),
            ("POST", "/subscribers/AE", None),
            ("DELETE", "/subscribers/AE", None),
        ):
            assert caller.ask(method, f"/{gone}{path}", body).status_code == status, (method, path)
    assert caller.ask("GET", "").status_code == 204
    assert caller.ask("POST", f"?{uid}", workitem()).status_code == 409


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        (JSON, 200),
        ("application/json", 200),
        ("*/*", 200),
        ("text/html, application/*;q=0.5", 200),
        (XML, 200),
        ('multipart/related; type="application/dicom+xml"', 200),
        ("multipart/related; type=application/dicom+xml", 200),
        ("multipart/related", 406),
        ("text/html", 406),
    ],
)
def test_answers_are_json_or_xml(caller: Caller, accept: str, status: int) -> None:
    uid = caller.create()
    for path in (f"/{uid}", ""):
        assert caller.ask("GET", path, headers={"Accept": accept}).status_code == status
    assert caller.ask("GET", f"/{uid}?accept=text/html").status_code == 406
    assert caller.ask("GET", "/x.y").status_code == 400


def test_xml_says_what_json_says(caller: Caller) -> None:
    uid = caller.create()
    sent = to_xml(workitem())
    assert caller.ask("POST", "?2.25.77", sent, content_type=XML).status_code == 201
    (one,) = caller.ask("GET", f"/{uid}").json
    assert from_xml(caller.ask("GET", f"/{uid}", headers={"Accept": XML}).data) == one
    several = caller.ask("GET", "", headers={"Accept": f'multipart/related; type="{XML}"'})
    boundary = several.content_type.rpartition("boundary=")[2]
    parts = list(Multipart(iter([several.data]), boundary, framed=True))
    assert [from_xml(part.content) for part in parts] == caller.ask("GET", "").json
    assert len(parts) == 2
    assert caller.ask("GET", "", headers={"Accept": XML}).status_code == 406


# Update, §11.6


@pytest.mark.parametrize("dialect", ["bare", "transaction-uid", "transaction", "body", "both"])
def test_the_performer_updates_in_every_dialect(caller: Caller, dialect: str) -> None:
    uid = caller.in_state("IN PROGRESS")
    changes = attributes(CommentsOnTheScheduledProcedureStep=dialect)
    query = {"bare": f"?{OWN}", "both": f"?{OWN}", "body": ""}.get(dialect, f"?{dialect}={OWN}")
    if dialect in ("body", "both"):
        changes |= attributes(TransactionUID=OWN)
    answer = caller.ask("POST", f"/{uid}{query}", [changes])
    assert (answer.status_code, answer.data) == (200, b"")
    item = caller.ask("GET", f"/{uid}").json[0]
    assert value(item, "CommentsOnTheScheduledProcedureStep") == dialect


def test_a_scheduled_workitem_is_anybodys_to_update(caller: Caller) -> None:
    uid = caller.create()
    before = caller.ask("GET", f"/{uid}").json[0]
    changes = attributes(ScheduledProcedureStepPriority="HIGH")
    assert caller.ask("POST", f"/{uid}", changes).status_code == 200
    after = caller.ask("GET", f"/{uid}").json[0]
    assert value(after, "ScheduledProcedureStepPriority") == "HIGH"
    changed = "ScheduledProcedureStepModificationDateTime"
    assert value(after, changed) > value(before, changed)


@pytest.mark.parametrize(
    ("state", "transaction", "status", "words"),
    [
        ("SCHEDULED", OWN, 409, UNCLAIMED),
        ("IN PROGRESS", "", 400, UNCLAIMED),
        ("IN PROGRESS", OTHER, 400, UNCLAIMED),
        ("COMPLETED", OWN, 400, NOT_CURRENT),
        ("COMPLETED", "", 400, NOT_CURRENT),
        ("CANCELED", OWN, 400, NOT_CURRENT),
    ],
)
@pytest.mark.parametrize("dialect", ["query", "body"])
def test_refused_updates(
    caller: Caller, state: str, transaction: str, status: int, words: str, dialect: str
) -> None:
    uid = caller.in_state(state)
    changes = attributes(ProcedureStepLabel="other")
    query = f"?{transaction}" if dialect == "query" and transaction else ""
    if dialect == "body" and transaction:
        changes |= attributes(TransactionUID=transaction)
    answer = caller.ask("POST", f"/{uid}{query}", changes)
    assert (answer.status_code, warning(answer)) == (status, words)
    assert value(caller.ask("GET", f"/{uid}").json[0], "ProcedureStepLabel") != "other"


@pytest.mark.parametrize(
    "changes",
    [
        {"ProcedureStepState": "IN PROGRESS"},
        {"SOPInstanceUID": "1.2.9"},
        {"PatientID": "other"},
        {"ReferencedRequestSequence": []},
        {"InputReadinessState": "SOON"},
        {"ProcedureStepLabel": []},
    ],
)
def test_what_an_update_must_not_set(caller: Caller, changes: dict[str, Any]) -> None:
    uid = caller.create()
    before = caller.ask("GET", f"/{uid}").json
    assert caller.ask("POST", f"/{uid}", attributes(**changes)).status_code == 400
    assert caller.ask("GET", f"/{uid}").json == before


def test_two_transactions_in_one_update_are_refused(caller: Caller) -> None:
    uid = caller.in_state("IN PROGRESS")
    changes = attributes(TransactionUID=OTHER)
    assert caller.ask("POST", f"/{uid}?{OWN}", changes).status_code == 400


# Change state, §11.7 and PS3.4 table CC.1.1-2

STATES = ("SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED")
# (state, asked for) → status and warning, with the performer's Transaction UID.
WITH_TRANSACTION = {
    ("SCHEDULED", "IN PROGRESS"): (200, ""),
    ("SCHEDULED", "COMPLETED"): (409, INCONSISTENT),
    ("SCHEDULED", "CANCELED"): (409, INCONSISTENT),
    ("IN PROGRESS", "IN PROGRESS"): (409, INCONSISTENT),
    ("IN PROGRESS", "COMPLETED"): (200, ""),
    ("IN PROGRESS", "CANCELED"): (200, ""),
    ("COMPLETED", "IN PROGRESS"): (409, INCONSISTENT),
    ("COMPLETED", "COMPLETED"): (200, "The UPS is already in the requested state of COMPLETED."),
    ("COMPLETED", "CANCELED"): (409, INCONSISTENT),
    ("CANCELED", "IN PROGRESS"): (409, INCONSISTENT),
    ("CANCELED", "COMPLETED"): (409, INCONSISTENT),
    ("CANCELED", "CANCELED"): (200, "The UPS is already in the requested state of CANCELED."),
    **{(state, "SCHEDULED"): (400, INCONSISTENT) for state in STATES},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("asked", STATES)
def test_every_transition_by_the_performer(caller: Caller, state: str, asked: str) -> None:
    uid = caller.in_state(state)
    if state == "IN PROGRESS" and asked in ("COMPLETED", "CANCELED"):
        end = DONE if asked == "COMPLETED" else STOPPED
        assert caller.ask("POST", f"/{uid}?{OWN}", end).status_code == 200
    answer = caller.change(uid, asked)
    status, words = WITH_TRANSACTION[state, asked]
    assert (answer.status_code, warning(answer)) == (status, words)
    assert caller.state(uid) == (asked if status == 200 else state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("asked", STATES[1:])
def test_every_transition_by_somebody_else(caller: Caller, state: str, asked: str) -> None:
    uid = caller.in_state(state)
    missing = caller.change(uid, asked, None)
    assert (missing.status_code, warning(missing)) == (400, MISSING)
    if state != "SCHEDULED":  # nobody else's yet
        wrong = caller.change(uid, asked, OTHER)
        assert (wrong.status_code, warning(wrong)) == (400, INCORRECT)
    assert caller.state(uid) == state


def test_a_state_that_there_is_not(caller: Caller) -> None:
    uid = caller.create()
    assert caller.change(uid, "CANCELLED").status_code == 400
    assert caller.change(uid, "IN PROGRESS", "no uid").status_code == 400


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELED"])
def test_a_final_state_has_its_requirements(caller: Caller, state: str) -> None:
    """PS3.4 CC.2.5.1.1: each attribute of the final state column, one at a time."""
    uid = caller.in_state("IN PROGRESS")
    refused = caller.change(uid, state)
    assert (refused.status_code, warning(refused)) == (409, INCONSISTENT)
    whole = DONE if state == "COMPLETED" else STOPPED
    ((sequence, element),) = whole.items()
    (step,) = element["Value"]
    for tag in step:
        lacking = {sequence: {"vr": "SQ", "Value": [{k: v for k, v in step.items() if k != tag}]}}
        assert caller.ask("POST", f"/{uid}?{OWN}", lacking).status_code == 200
        assert caller.change(uid, state).status_code == 409, tag
    assert caller.ask("POST", f"/{uid}?{OWN}", whole).status_code == 200
    assert caller.change(uid, state).status_code == 200


def test_of_many_that_claim_one_gets_it(settings: Settings, caller: Caller) -> None:
    uid = caller.create()
    with open_job_queue(settings) as queue:
        app = create_app(settings, queue)

        def claim(number: int) -> int:
            own = Caller(app.test_client(), "operate")
            return own.change(uid, "IN PROGRESS", f"2.25.{number}").status_code

        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(claim, range(2000, 2032)))
    assert sorted(statuses) == [200, *[400] * 31]


def test_the_requester_may_be_in_the_path(caller: Caller) -> None:
    uid = caller.create()
    claim = attributes(ProcedureStepState="IN PROGRESS", TransactionUID=OWN)
    assert caller.ask("PUT", f"/{uid}/state/AE", claim).status_code == 200
    assert caller.state(uid) == "IN PROGRESS"


# Request cancellation, §11.8


def test_a_scheduled_workitem_is_canceled_at_once(caller: Caller, workitems: Workitems) -> None:
    uid = caller.create()
    caller.ask("POST", f"/{uid}/subscribers/WATCH")
    wish = attributes(ReasonForCancellation="wrong patient", ContactDisplayName="Desk")
    answer = caller.ask("POST", f"/{uid}/cancelrequest/DESK", [wish])
    assert (answer.status_code, warning(answer)) == (202, "")
    (progress,) = values(
        caller.ask("GET", f"/{uid}").json[0], "ProcedureStepProgressInformationSequence"
    )
    assert caller.state(uid) == "CANCELED"
    assert value(progress, "ReasonForCancellation") == "wrong patient"
    told = [report for _, report in workitems.reports("WATCH", 0)]
    assert [value(each, "EventTypeID") for each in told] == [1, 2, 1, 1, 3]
    states = [value(each, "ProcedureStepState") for each in told]
    assert [state for state in states if state] == ["SCHEDULED", "IN PROGRESS", "CANCELED"]
    (asked,) = (each for each in told if value(each, "EventTypeID") == 2)
    assert value(asked, "RequestingAE") == "DESK"
    assert value(asked, "ContactDisplayName") == "Desk"


def test_a_performer_who_listens_is_asked(caller: Caller, workitems: Workitems) -> None:
    uid = caller.in_state("IN PROGRESS")
    caller.ask("POST", f"/{uid}/subscribers/PERFORMER")
    assert caller.ask("POST", f"/{uid}/cancelrequest").status_code == 202
    assert caller.state(uid) == "IN PROGRESS"
    assert workitems.cancel_requests() == {uid}
    (_, report) = workitems.reports("PERFORMER", 0)[-1]
    assert value(report, "EventTypeID") == 2
    assert value(report, "RequestingAE") == "admin"


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ("IN PROGRESS", 409, INCONSISTENT),
        ("COMPLETED", 409, INCONSISTENT),
        ("CANCELED", 202, "The UPS is already in the requested state of CANCELED."),
    ],
)
def test_cancellations_that_cannot_be(caller: Caller, state: str, status: int, words: str) -> None:
    uid = caller.in_state(state)
    answer = caller.ask("POST", f"/{uid}/cancelrequest", {})
    assert (answer.status_code, warning(answer)) == (status, words)
    assert caller.state(uid) == state


# Search, §11.9


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", "abc"),
        ("?ProcedureStepState=SCHEDULED", "ab"),
        ("?00741000=IN PROGRESS", "c"),
        ("?ScheduledProcedureStepPriority=HIGH", "a"),
        ("?ProcedureStepLabel=Count*", "bc"),
        ("?ProcedureStepLabel=C?unt [1]", ""),
        ("?ProcedureStepLabel=[[]1]", ""),
        ("?PatientName=DOE^j*", "bc"),
        ("?PatientID=4711&ProcedureStepState=SCHEDULED", "ab"),
        ("?ScheduledProcedureStepStartDateTime=20261125-20261126", "abc"),
        ("?ScheduledProcedureStepStartDateTime=-20261125", ""),
        ("?ScheduledProcedureStepStartDateTime=20261126-", "abc"),
        ("?ScheduledProcedureStepStartDateTime=20261126140000%2B0200-", "abc"),
        ("?ScheduledProcedureStepStartDateTime=20261126140000%2B0100-", ""),
        ("?ScheduledProcedureStepStartDateTime=20261126", "abc"),
        ("?ScheduledWorkitemCodeSequence.CodeValue=count", "a"),
        ("?00404018.00080100=count", "a"),
        ("?ScheduledWorkitemCodeSequence.CodeValue=other", ""),
        ("?SOPInstanceUID=2.25.1,2.25.3", "ac"),
        ("?WorklistLabel=", "abc"),
        ("?limit=2", "ab"),
        ("?limit=2&offset=1", "bc"),
        ("?offset=3", ""),
        ("?fuzzymatching=true&PatientName=doe*", "bc"),
    ],
)
def test_searches(caller: Caller, query: str, found: str) -> None:
    caller.create(
        ScheduledProcedureStepPriority="HIGH",
        ProcedureStepLabel="[1] other",
        PatientName=[{"Alphabetic": "Roe^Richard"}],
        ScheduledWorkitemCodeSequence=[code("count")],
    )
    caller.create()
    caller.in_state("IN PROGRESS")
    answer = caller.ask("GET", query)
    uids = {"2.25.1": "a", "2.25.2": "b", "2.25.3": "c"}
    items = answer.json if answer.status_code != 204 else []
    assert "".join(uids[value(item, "SOPInstanceUID")] for item in items) == found
    further = query in ("?limit=2",)
    assert answer.status_code == (206 if further else 200 if found else 204)
    assert bool(warning(answer)) == (further or "fuzzy" in query)


def test_what_a_search_returns(caller: Caller) -> None:
    caller.create(CommentsOnTheScheduledProcedureStep="urgent")
    plain = caller.ask("GET", "").json[0]
    assert values(plain, "ProcedureStepLabel")
    comment = "CommentsOnTheScheduledProcedureStep"
    assert not values(plain, comment)
    for query in (f"?includefield={comment}", f"?{comment}=ur*", "?includefield=all"):
        assert values(caller.ask("GET", query).json[0], comment) == ["urgent"]


@pytest.mark.parametrize(
    "query",
    ["?NoSuchThing=1", "?limit=x", "?offset=-1", "?PatientID.CodeValue=1", "?includefield=None"],
)
def test_searches_that_cannot_be_understood(caller: Caller, query: str) -> None:
    assert caller.ask("GET", query).status_code == 400


# Subscribe, unsubscribe, suspend: §11.10 to §11.12 and PS3.4 table CC.2.3-2


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


def test_a_single_subscription(caller: Caller, workitems: Workitems) -> None:
    uid, other = caller.create(), caller.create()
    answer = caller.ask("POST", f"/{uid}/subscribers/AE?deletionlock=false")
    assert answer.status_code == 201
    assert answer.headers["Content-Location"] == "ws://localhost/dicom-web/subscribers/AE"
    assert events(workitems) == [(1, uid, "SCHEDULED")]
    caller.change(uid, "IN PROGRESS")
    caller.change(other, "IN PROGRESS")
    assert events(workitems)[1:] == [(1, uid, "IN PROGRESS")]
    assert caller.ask("DELETE", f"/{uid}/subscribers/AE").status_code == 200
    assert caller.ask("DELETE", f"/{uid}/subscribers/AE").status_code == 404
    caller.ask("POST", f"/{uid}?{OWN}", [STOPPED])
    assert len(events(workitems)) == 2


def test_a_subscription_of_the_worklist(caller: Caller, workitems: Workitems) -> None:
    first = caller.create()
    assert caller.ask("POST", f"/{WORKLIST}/subscribers/AE").status_code == 201
    assert events(workitems) == []  # without a lock nothing is told of those that were there
    caller.change(first, "IN PROGRESS")
    second = caller.create()
    assert events(workitems) == [(1, first, "IN PROGRESS"), (1, second, "SCHEDULED")]
    assert caller.ask("POST", f"/{WORKLIST}/subscribers/AE/suspend").status_code == 200
    assert caller.ask("POST", f"/{WORKLIST}/subscribers/AE/suspend").status_code == 404
    caller.create()
    caller.change(second, "IN PROGRESS")
    assert events(workitems)[2:] == [(1, second, "IN PROGRESS")]
    assert caller.ask("DELETE", f"/{WORKLIST}/subscribers/AE").status_code == 200
    assert caller.ask("DELETE", f"/{WORKLIST}/subscribers/AE").status_code == 404
    caller.ask("POST", f"/{first}?{OWN}", [STOPPED])
    assert len(events(workitems)) == 3


def test_a_subscription_of_the_worklist_with_a_lock(caller: Caller, workitems: Workitems) -> None:
    first = caller.create()
    answer = caller.ask("POST", f"/{WORKLIST}/subscribers/AE?deletionlock=true")
    assert (answer.status_code, warning(answer)) == (201, "")
    assert events(workitems) == [(1, first, "SCHEDULED")]
    done = caller.in_state("COMPLETED")
    assert workitems.purge(keep_days=0) == 0
    assert caller.ask("POST", f"/{done}/subscribers/AE?deletionlock=false").status_code == 201
    assert workitems.purge(keep_days=0) == 1
    assert caller.ask("GET", f"/{done}").status_code == 410


@pytest.mark.parametrize(
    "query",
    [
        "filter=ScheduledProcedureStepPriority=HIGH",
        "ScheduledProcedureStepPriority=HIGH",
        "filter=00741200=HIGH,00741204=Count*",
    ],
)
def test_a_filtered_subscription(caller: Caller, workitems: Workitems, query: str) -> None:
    urgent = caller.create(ScheduledProcedureStepPriority="HIGH")
    answer = caller.ask("POST", f"/{FILTERED_WORKLIST}/subscribers/AE?deletionlock=true&{query}")
    assert answer.status_code == 201
    caller.create()
    later = caller.create(ScheduledProcedureStepPriority="HIGH")
    assert events(workitems) == [(1, urgent, "SCHEDULED"), (1, later, "SCHEDULED")]


def test_a_lock_is_not_for_readers(client: FlaskClient, caller: Caller) -> None:
    uid = caller.create()
    reader = Caller(client, "read")
    answer = reader.ask("POST", f"/{uid}/subscribers/AE?deletionlock=true")
    assert (answer.status_code, warning(answer)) == (201, "Deletion Lock not granted.")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", f"/{FILTERED_WORKLIST}/subscribers/AE", 400),
        ("POST", f"/{FILTERED_WORKLIST}/subscribers/AE?filter=NoSuchThing=1", 400),
        ("POST", f"/{FILTERED_WORKLIST}/subscribers/AE?filter=PatientID", 400),
        ("POST", f"/{WORKLIST}/subscribers/AE?filter=PatientID=1", 400),
        ("POST", f"/{WORKLIST}/subscribers/AE?deletionlock=perhaps", 400),
        ("POST", f"/{WORKLIST}/subscribers/{'A' * 17}", 400),
        ("POST", "/2.25.1/subscribers/%20", 400),
        ("POST", "/2.25.1/subscribers/AE/suspend", 400),
        ("POST", "/2.25.99/subscribers/AE", 404),
        ("DELETE", "/2.25.1/subscribers/AE", 404),
        ("POST", f"/{FILTERED_WORKLIST}/subscribers/AE/suspend", 404),
    ],
)
def test_subscriptions_that_cannot_be(caller: Caller, method: str, path: str, status: int) -> None:
    caller.create()
    assert caller.ask(method, path).status_code == status


# Event reports, §11.13 and PS3.4 table CC.2.4-1


def test_every_event(caller: Caller, workitems: Workitems, settings: Settings) -> None:
    caller.ask("POST", f"/{WORKLIST}/subscribers/AE")
    uid = caller.create(ScheduledStationNameCodeSequence=[code("scope")])
    caller.ask("POST", f"/{uid}", attributes(InputReadinessState="INCOMPLETE"))
    caller.ask("POST", f"/{uid}", attributes(ProcedureStepLabel="nobody has to know"))
    human = attributes(
        HumanPerformerCodeSequence=[code("anna")], HumanPerformerOrganization="Hospital"
    )
    caller.ask("POST", f"/{uid}", attributes(ScheduledHumanPerformersSequence=[human]))
    caller.change(uid, "IN PROGRESS")
    step = attributes(ProcedureStepProgress=40.0, ProcedureStepProgressDescription="detect")
    changes = attributes(ProcedureStepProgressInformationSequence=[step])
    caller.ask("POST", f"/{uid}?{OWN}", changes)
    caller.ask("POST", f"/{uid}?{OWN}", changes)  # the same again is no change
    caller.ask("POST", f"/{uid}/cancelrequest")
    reports = [report for _, report in workitems.reports("AE", 0)]
    kinds = [value(report, "EventTypeID") for report in reports]
    assert kinds == [1, 5, 1, 5, 1, 3, 2]
    assert {value(report, "AffectedSOPInstanceUID") for report in reports} == {uid}
    assert {value(report, "AffectedSOPClassUID") for report in reports} == {UPS_PUSH}
    assert [value(reports[at], "InputReadinessState") for at in (0, 2)] == ["READY", "INCOMPLETE"]
    assert value(reports[1], "ScheduledStationNameCodeSequence") == code("scope")
    assert value(reports[3], "HumanPerformerOrganization") == "Hospital"
    assert values(reports[5], "ProcedureStepProgressInformationSequence") == [step]
    with open_job_queue(settings) as queue:
        create_app(settings, queue)  # the service starts again
    (_, restart) = workitems.reports("AE", 0)[-1]
    assert value(restart, "EventTypeID") == 4
    assert value(restart, "SCPStatus") == "RESTARTED"
    assert value(restart, "UnifiedProcedureStepListStatus") == "WARM START"


def test_a_get_is_no_handshake(caller: Caller, client: FlaskClient) -> None:
    headers = {"Authorization": "Bearer mnk_read"}
    for path in ("/dicom-web/subscribers/AE", "/dicom-web/ws/subscribers/AE"):
        answer = client.get(path, headers=headers)
        assert answer.status_code == 426
        assert answer.headers["Upgrade"] == "websocket"


# Access


def test_each_transaction_needs_its_role(client: FlaskClient, caller: Caller) -> None:
    uid = caller.create()
    for method, path, needed in (
        ("POST", "", "submit"),
        ("GET", "", "read"),
        ("GET", f"/{uid}", "read"),
        ("POST", f"/{uid}", "operate"),
        ("PUT", f"/{uid}/state", "operate"),
        ("POST", f"/{uid}/cancelrequest", "operate"),
        ("POST", f"/{uid}/subscribers/AE", "read"),
        ("DELETE", f"/{uid}/subscribers/AE", "read"),
        ("POST", f"/{WORKLIST}/subscribers/AE/suspend", "read"),
    ):
        assert client.open(f"{LISTS}{path}", method=method).status_code == 401
        for role in ("submit", "read", "operate"):
            status = Caller(client, role).ask(method, path).status_code
            assert (status == 403) == (role != needed), (method, path, role, status)


def test_refusals_are_as_the_conformance_statement_has_them() -> None:
    stated = {(each.code, each.meaning) for each in UPS_STATUSES}
    answered = {
        (str(status.value), words)
        for status, words in (*_ANSWERS.values(), *_ANSWERS_TO_UPDATE.values())
    }
    assert answered == stated - {("406", ""), ("415", "")}
    assert set(_ANSWERS) == set(Refusal), "every refusal has its answer"


def test_a_list_in_postgresql(settings: Settings) -> None:
    """The same list where several nodes share a database: of 32 that claim, one gets it."""
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    with running_postgresql() as url:
        database = worklist_database(replace(settings, database_url=url))
        shared, claims = Workitems(database, "label"), Claims(database, "own")
        shared.subscribe(WORKLIST, "AE", True, [])
        shared.create(workitem(), "1.2.3")

        def claim(number: int) -> bool:
            try:
                return shared.change_state("1.2.3", "IN PROGRESS", f"2.25.{number}")
            except WorkitemRefused:
                return False

        with ThreadPoolExecutor(8) as pool:
            won = [number for number, own in enumerate(pool.map(claim, range(32))) if own]
        assert len(won) == 1
        shared.update("1.2.3", DONE, f"2.25.{won[0]}")
        assert shared.change_state("1.2.3", "COMPLETED", f"2.25.{won[0]}")
        assert [state for _, _, state in events(shared)] == [
            "SCHEDULED",
            "IN PROGRESS",
            "COMPLETED",
        ]
        assert shared.purge(keep_days=0) == 0, "it is locked"
        shared.unsubscribe(WORKLIST, "AE")
        assert shared.purge(keep_days=0) == 1
        begun = claims.begin("1.2.4")
        claims.queued("1.2.4", ["job"])
        (kept,) = claims.open()
        assert (kept.transaction_uid, kept.jobs) == (begun.transaction_uid, ("job",))
        claims.end("1.2.4")
        assert claims.open() == []
        database.close()


def test_who_handled_workitems_is_audited(settings: Settings, caller: Caller) -> None:
    audit = AuditSettings(fhir_url="https://audit.example/fhir")
    with open_job_queue(settings) as queue:
        app = create_app(replace(settings, audit=audit), queue)
    audited = Caller(app.test_client(), "admin")
    uid = audited.create()
    audited.ask("GET", f"/{uid}")
    audited.ask("GET", "")
    audited.ask("GET", "/9.9")  # nothing was seen
    audited.change(uid, "IN PROGRESS")
    paths = sorted((settings.work_folder / "audit").rglob("*.json"))
    records = [json.loads(path.read_bytes()) for path in paths]
    assert [(each["event"], each["action"], each["what"]) for each in records] == [
        ("110111", "C", f"workitem {uid}"),
        ("110111", "R", f"workitem {uid}"),
        ("110112", "E", "workitems"),
        ("110111", "U", f"workitem {uid}"),
    ]
    assert {user["id"] for each in records for user in each["users"]} == {"admin"}
