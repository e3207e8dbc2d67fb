"""Subscriptions and event reports over UPS-RS: PS3.18 §11.10 to §11.13."""

from __future__ import annotations

import pytest
from flask.testing import FlaskClient

from dicom_io.dicom_json import attributes, value, values
from dicom_io.workitem import UPS_PUSH
from node.config import Settings
from node.job_database import open_job_database
from node.web.app import create_app
from node.workitems import FILTERED_WORKLIST, WORKLIST, Workitems
from tests.ups.caller import OWN, STOPPED, Caller, code, events, warning

# Subscribe, unsubscribe, suspend: §11.10 to §11.12 and PS3.4 table CC.2.3-2


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
    with open_job_database(settings) as database:
        create_app(settings, database)  # the service starts again
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
