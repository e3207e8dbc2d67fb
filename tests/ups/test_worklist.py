"""Who may do what to the node's worklist, what it answers, where it lies, and who is told."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from flask.testing import FlaskClient

from conformance.statuses import UPS_STATUSES
from dicom_io.errors import Refusal, WorkitemRefused
from node.audit_settings import AuditSettings
from node.claims import Claims
from node.config import Settings
from node.job_database import open_job_database
from node.web.app import create_app
from node.web.ups import _ANSWERS, _ANSWERS_TO_UPDATE
from node.workitems import WORKLIST, Workitems
from node.worklist_database import worklist_database
from tests.postgresql import running_postgresql
from tests.ups.caller import DONE, LISTS, Caller, events, workitem


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
    with open_job_database(settings) as database:
        app = create_app(replace(settings, audit=audit), database)
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
