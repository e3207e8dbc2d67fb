"""Workitems over UPS-RS: every transition and status of PS3.18 §11.4 to §11.9."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask.testing import FlaskClient

from dicom_io.dicom_json import attributes, value, values
from dicom_io.multipart import Multipart
from dicom_io.native_model import from_xml, to_xml
from dicom_io.workitem import TRANSACTION, UPS_PUSH
from node.config import Settings
from node.job_database import open_job_database
from node.web.app import create_app
from node.workitems import Workitems
from tests.ups.caller import DONE, JSON, LISTS, OWN, STOPPED, Caller, code, warning, workitem

XML = "application/dicom+xml"
OTHER = "2.25.1002"
INCONSISTENT = "The submitted request is inconsistent with the state of the UPS Instance."
NOT_CURRENT = "The submitted request is inconsistent with the current state of the Workitem."
UNCLAIMED = "The target URI did not reference a claimed Workitem."
MISSING, INCORRECT = "The Transaction UID is missing.", "The Transaction UID is incorrect."


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
    with open_job_database(settings) as database:
        app = create_app(settings, database)

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
