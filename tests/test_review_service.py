"""Reviews over HTTP, and by the form on a job's page: roles, who signs, conflicts, forgery."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from models.errors import ReviewInvalid
from node.config import Settings
from node.web.access import digest_of
from node.web.openapi import openapi_document
from node.web.review import corrections_of
from tests.servers import free_port
from tests.service import Service, key_of, running_service
from tests.smears import small_smear

NOBODY = "mnk_a-key-that-names-no-person"
CONFIRM = {"revision": 1, "decision": "confirmed"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    smear = small_smear(tmp_path_factory.mktemp("service"))
    nobody = {"sha256": digest_of(NOBODY), "roles": ["sign", "read"]}
    reader = {
        "sha256": digest_of("mnk_anna"),
        "roles": ["sign", "read"],
        "person": "Lee^Anna^^Dr.",
        "organization": "Hospital",
    }
    # Nobody takes the audit records, so that they can be looked at where they wait.
    tables = {
        "serve.keys.nobody": nobody,
        "serve.keys.anna": reader,
        "audit": {"fhir_url": f"http://127.0.0.1:{free_port()}/fhir"},
    }
    with running_service(smear, tables) as running:
        yield running


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    """A slide that was analysed."""
    job = service.submit_slide()
    ended = service.ended(job)
    assert ended["status"] == "completed", ended
    return job


def review(service: Service, job: str, role: str = "sign", **body: Any) -> requests.Response:
    return service.ask("POST", f"/jobs/{job}/review", role, json=body)


def known(service: Service, job: str) -> list[dict[str, Any]]:
    answer = service.ask("GET", f"/jobs/{job}/revisions", "read")
    assert answer.ok, answer.text
    listed: list[dict[str, Any]] = answer.json()["revisions"]
    return listed


def page(service: Service, job: str) -> requests.Response:
    return requests.get(f"{service.url}/slides/{job}", auth=("anna", "mnk_anna"), timeout=30)


def test_bad_requests_are_named_and_change_nothing(service: Service, job: str) -> None:
    for body, status, said in (
        ({}, 400, "revision"),
        ({**CONFIRM, "name": "Somebody^Else"}, 400, "name"),
        ({**CONFIRM, "decision": "approved"}, 400, "decision"),
        ({**CONFIRM, "revision": "1"}, 400, "revision"),
        ({**CONFIRM, "corrections": {"moved": []}}, 400, "moved"),
        ({**CONFIRM, "annotation_uid": "1.2"}, 422, "only a correction"),
        ({**CONFIRM, "decision": "withdrawn"}, 422, "has a reason"),
        ({**CONFIRM, "revision": 2}, 409, "no revision 2"),
    ):
        answer = review(service, job, **body)
        assert answer.status_code == status, (body, answer.text)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert said in answer.json()["detail"]
    assert review(service, "none", **CONFIRM).status_code == 404
    waiting = service.submit(study_uid="1.2.3", series_uid="1.2.3.9")["job"]
    unfinished = review(service, waiting, **CONFIRM)
    assert unfinished.status_code == 409
    assert "no result" in unfinished.json()["detail"]
    assert [each["standing"] for each in known(service, job)] == ["unreviewed"]


def test_only_who_signs_may_and_by_name(service: Service, job: str) -> None:
    for role in ("submit", "read", "operate"):
        assert review(service, job, role, **CONFIRM).status_code == 403
    nameless = requests.post(
        f"{service.url}/jobs/{job}/review",
        json=CONFIRM,
        headers={"Authorization": f"Bearer {NOBODY}"},
        timeout=30,
    )
    assert nameless.status_code == 403
    assert "names no person" in nameless.json()["detail"]
    assert len(known(service, job)) == 1


def test_confirmed_by_request_then_by_form_corrected_and_withdrawn(
    service: Service, job: str
) -> None:
    answer = review(service, job, **CONFIRM)
    assert answer.status_code == 202, answer.text
    confirmed = answer.json()["job"]
    assert answer.headers["Location"] == f"/jobs/{confirmed}"
    assert confirmed != job
    ended = service.ended(confirmed)
    assert ended["status"] == "completed", ended
    assert (ended["result"]["revision"], ended["result"]["standing"]) == (2, "final")
    assert ended["reason"] == f"review of {job}: confirmed"
    assert review(service, job, **CONFIRM).json()["job"] == confirmed  # the same decision

    stale = review(service, job, revision=1, decision="withdrawn", reason="x")
    assert stale.status_code == 409
    assert "revision 2 is there" in stale.json()["detail"]

    old = page(service, job).text
    assert "Revision 2 has replaced it" in old
    assert "csrf_token" not in old  # what was not seen cannot be decided on
    corrected = by_form(
        service, confirmed, revision="2", decision="corrected", cells="1 1 plasma_cell\n"
    )
    result = service.ended(corrected)["result"]
    assert (result["revision"], result["standing"]) == (3, "corrected")
    assert result["differential"]["plasma_cell"]["count"] == 1

    withdrawn = by_form(
        service, corrected, revision="3", decision="withdrawn", reason="<b>Wrong</b> slide"
    )
    assert service.ended(withdrawn)["result"]["standing"] == "withdrawn"
    shown = page(service, withdrawn).text
    assert "&lt;b&gt;Wrong&lt;/b&gt; slide" in shown
    assert "csrf_token" not in shown

    listed = known(service, job)
    assert [each["standing"] for each in listed] == [
        "unreviewed",
        "final",
        "corrected",
        "withdrawn",
    ]
    assert [each["name"] for each in listed] == [None, *["Lee^Anna^^Dr."] * 3]
    assert listed[2]["changes"] == {"retyped": 1, "deleted": 0, "added": 0}
    assert listed[0]["objects"]["ann"] == listed[1]["objects"]["ann"]
    assert listed[1]["objects"]["ann"] != listed[2]["objects"]["ann"]
    assert listed[3]["objects"].keys() == {"sr"}
    assert known(service, withdrawn) == listed
    audited = " ".join(path.read_text() for path in (service.smear.work / "audit").rglob("*.json"))
    for number, decision in ((2, "confirmed"), (3, "corrected"), (4, "withdrawn")):
        assert re.search(rf"revision {number} of DiagnosticReport \S+, {decision}", audited)
    assert "Lee^Anna^^Dr." in audited
    for shown_job in (job, confirmed, corrected, withdrawn):
        assert "This result was withdrawn by Dr. Anna Lee" in page(service, shown_job).text


def by_form(service: Service, job: str, **fields: str) -> str:
    """As a browser does it: load the page, send the form with its token; the next job."""
    with requests.Session() as browser:
        browser.auth = ("anna", "mnk_anna")
        address = f"{service.url}/slides/{job}"
        shown = browser.get(address, timeout=30).text
        assert "You sign as Dr. Anna Lee (Hospital)" in shown
        forged = browser.post(f"{address}/review", data=fields, timeout=30, allow_redirects=False)
        assert forged.status_code == 400
        token = re.search(r'name="csrf_token" value="([^"]+)"', shown)
        assert token is not None
        answer = browser.post(
            f"{address}/review",
            data={**fields, "csrf_token": token[1]},
            timeout=30,
            allow_redirects=False,
        )
        assert answer.status_code == 303, answer.text
        return answer.headers["Location"].rpartition("/")[2]


def test_a_form_that_says_nothing_is_refused(service: Service, job: str) -> None:
    for fields, said in (
        ({}, "names no revision"),
        ({"revision": "0", "decision": "confirmed"}, "names no revision"),
        ({"revision": "²", "decision": "confirmed"}, "names no revision"),
        ({"revision": "1", "decision": "maybe"}, "no decision"),
        ({"revision": "1", "decision": "corrected", "cells": "1 1"}, "Line 1"),
    ):
        answer = service.ask("POST", f"/slides/{job}/review", "sign", data=fields)
        assert answer.status_code == 422, answer.text
        assert said in answer.json()["detail"]


def test_an_administrator_who_is_nobody_sees_why_not(service: Service, job: str) -> None:
    answer = requests.get(f"{service.url}/slides/{job}", auth=("nobody", NOBODY), timeout=30)
    assert answer.status_code == 200
    assert "csrf_token" not in answer.text
    assert key_of("sign") not in answer.text


def test_lines_of_the_form() -> None:
    read = corrections_of(
        "3 17 myelocyte\n\n3 18 delete\nat 10.5 20 blast\nat 1 2 delete\nadd 1 2 3 4 basophil\n"
    ).as_json()
    named = {"group": None, "index": None, "at_px": None, "type": None}
    assert list(read["retyped"]) == [
        named | {"group": 3, "index": 17, "type": "myelocyte"},
        named | {"at_px": (10.5, 20.0), "type": "blast"},
    ]
    assert list(read["deleted"]) == [
        named | {"group": 3, "index": 18},
        named | {"at_px": (1.0, 2.0)},
    ]
    assert list(read["added"]) == [{"box_px": (1.0, 2.0, 3.0, 4.0), "type": "basophil"}]
    for line in ("", "x"), ("x y z",), ("add 1 2 3 blast",), ("at 1 blast",), ("1 blast",):
        with pytest.raises(ReviewInvalid, match=f"Line {len(line)} "):
            corrections_of("\n".join(line))


def test_the_document_names_every_part_of_a_review() -> None:
    document = openapi_document(Settings())
    schemas = document["components"]["schemas"]
    named = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert named <= schemas.keys()
    assert {"ReviewRequest", "Corrections", "NamedCell", "AddedCell"} <= schemas.keys()
    assert "name" not in schemas["ReviewRequest"]["properties"]
