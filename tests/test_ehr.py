"""The EHR: folder and real server, each asked before anything is sent again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from dicom_io.analysis import Analysis
from dicom_io.errors import (
    ConfigurationInvalid,
    EhrAnswerInvalid,
    EhrError,
    EhrRefused,
    EhrUnauthorized,
    EhrUnreachable,
)
from dicom_io.slide import Slide
from node.ehr import EhrSettings, open_ehr
from node.fhir import build_bundle, report_identifier
from tests.analyses import small_slide, some_analysis
from tests.faulty_proxy import Answer, Fault, Forward, Proxy, Request, faulty_proxy
from tests.fhir_fixture import FhirServer

QUICK = EhrSettings(timeout_s=5, retries=2, retry_wait_s=0.01)
PATIENT_ID = "A+1 & 2"
HOSPITAL = "urn:test:hospital"
Bundle = dict[str, Any]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide") / "pacs")


@pytest.fixture(params=["folder", "server"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return (tmp_path / "ehr").as_uri()
    server: FhirServer = request.getfixturevalue("fhir_server")
    return server.url


@pytest.fixture
def ehr_proxy(fhir_server: FhirServer) -> Iterator[Proxy]:
    """A proxy that fails as told, in front of the FHIR server."""
    with faulty_proxy(fhir_server.url) as running:
        yield running


def fresh(slide: Slide, number: int) -> Analysis:
    """An analysis that no other test delivers."""
    return replace(some_analysis(slide), configuration_digest=f"{number:064x}")


def of_patient(slide: Slide, patient_id: str, issuer: str) -> Slide:
    header = deepcopy(slide.header)
    header.PatientID, header.IssuerOfPatientID = patient_id, issuer
    return replace(slide, header=header)


def copies(server: FhirServer, bundle: Bundle) -> set[int]:
    """How often the server has the resources of a bundle."""
    counts = set()
    for entry in bundle["entry"][:-1]:
        resource = entry["resource"]
        identifier = resource["identifier"][0]
        token = f"{identifier['system']}|{identifier['value']}"
        found = search(server, resource["resourceType"], identifier=token)
        counts.add(len(found))
        if resource["resourceType"] == "DiagnosticReport":
            about = f"DiagnosticReport/{found[0]['id']}"
            counts.add(len(search(server, "Provenance", target=about)))
    return counts


def search(server: FhirServer, kind: str, **query: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{server.url}/{kind}", params=query, timeout=10).json()
    return [entry["resource"] for entry in answer.get("entry", [])]


def test_twice_is_once(slide: Slide, url: str) -> None:
    analysis = fresh(slide, 101)
    bundle = build_bundle(analysis, {}, {})
    ehr = open_ehr(url, QUICK)
    first = Counter(each.status for each in ehr.deliver(bundle))
    assert first["created"] >= len(bundle["entry"]) - 1
    again = Counter(each.status for each in ehr.deliver(bundle))
    assert again == {"already there": len(bundle["entry"])}
    report, *others = ehr.read_report(report_identifier(analysis))
    assert report["resourceType"] == "DiagnosticReport"
    assert Counter(each["resourceType"] for each in others) == {
        "Observation": len(report["result"]),
        "Device": 1,
    }


def test_what_is_read_back_is_what_was_sent(slide: Slide, url: str) -> None:
    analysis = fresh(slide, 102)
    bundle = build_bundle(analysis, {}, {"overview": b"picture"})
    ehr = open_ehr(url, QUICK)
    ehr.deliver(bundle)
    sent = {e["resource"]["identifier"][0]["value"]: e["resource"] for e in bundle["entry"][:-1]}
    for returned in ehr.read_report(report_identifier(analysis)):
        ours = sent.pop(returned["identifier"][0]["value"])
        for name in ("status", "code", "valueQuantity", "component", "presentedForm", "version"):
            assert returned.get(name) == ours.get(name)
    assert not sent


def test_a_change_is_an_update_of_the_same_resource(slide: Slide, url: str) -> None:
    analysis = fresh(slide, 103)
    ehr = open_ehr(url, QUICK)
    ehr.deliver(build_bundle(analysis, {}, {}))
    changed = ehr.deliver(build_bundle(analysis, {}, {"overview": b"picture"}))
    assert [each.resource_type for each in changed if each.status == "updated"] == [
        "DiagnosticReport"
    ]
    assert "created" not in {each.status for each in changed}


@pytest.mark.parametrize("status", ["final", "amended", "corrected", "entered-in-error"])
def test_what_a_person_decided_is_not_undone(slide: Slide, url: str, status: str) -> None:
    analysis = fresh(slide, sum(map(ord, status)))
    bundle = build_bundle(analysis, {}, {})
    ehr = open_ehr(url, QUICK)
    ehr.deliver(bundle)
    signed = deepcopy(bundle)
    signed["entry"][-2]["resource"]["status"] = status
    assert "updated" in {each.status for each in ehr.deliver(signed)}
    assert {each.status for each in ehr.deliver(bundle)} == {"already there"}
    assert ehr.read_report(report_identifier(analysis))[0]["status"] == status


def test_one_copy_on_the_server(slide: Slide, fhir_server: FhirServer) -> None:
    bundle = build_bundle(fresh(slide, 104), {}, {})
    for _ in range(2):
        open_ehr(fhir_server.url, QUICK).deliver(bundle)
    assert copies(fhir_server, bundle) == {1}


@pytest.mark.parametrize("kind", ["Device", "Observation", "DiagnosticReport", "Provenance"])
def test_an_answer_that_is_lost_makes_no_second_copy(
    slide: Slide, fhir_server: FhirServer, ehr_proxy: Proxy, kind: str
) -> None:
    analysis = fresh(slide, 200 + len(kind))
    analysis = replace(analysis, model=replace(analysis.model, digest=f"{len(kind):064x}"))
    bundle = build_bundle(analysis, {}, {})
    ehr_proxy.fault = Fault(path=f"/{kind}$", cut=True, times=1)
    open_ehr(ehr_proxy.url, QUICK).deliver(bundle)
    assert ehr_proxy.fault.times == 0
    assert copies(fhir_server, bundle) == {1}


def small(bundle: Bundle) -> Bundle:
    """The panel alone: few enough entries for this server to take them as a transaction."""
    *_, panel, report, provenance = deepcopy(bundle["entry"])
    del panel["resource"]["hasMember"]
    report["resource"]["result"] = report["resource"]["result"][:1]
    return bundle | {"entry": [deepcopy(bundle["entry"][0]), panel, report, provenance]}


@pytest.mark.parametrize("lost", [False, True])
def test_a_transaction(slide: Slide, fhir_server: FhirServer, ehr_proxy: Proxy, lost: bool) -> None:
    analysis = fresh(slide, 110 + lost)
    bundle = small(build_bundle(analysis, {}, {}))
    if lost:
        ehr_proxy.fault = Fault(path="^/$", cut=True, times=1)
    ehr = open_ehr(ehr_proxy.url, QUICK)
    receipts = ehr.deliver(bundle)
    assert {each.status for each in receipts} <= {"created", "updated", "already there"}
    assert {path for method, path in ehr_proxy.requests if method != "GET"} == {"/"}
    assert copies(fhir_server, bundle) == {1}
    with_picture = deepcopy(bundle)
    with_picture["entry"][2]["resource"]["conclusion"] = "Another."
    ehr.deliver(with_picture)
    assert ehr.read_report(report_identifier(analysis))[0]["conclusion"] == "Another."
    assert copies(fhir_server, bundle) == {1}


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("overtaken_at", [1, 2, 4])
@pytest.mark.parametrize("as_transaction", [False, True])
def test_one_that_is_sent_late_undoes_nothing(
    slide: Slide, fhir_server: FhirServer, as_transaction: bool, overtaken_at: int, was_there: bool
) -> None:
    """Between the last look and the request another worker delivers, and a person signs."""
    bundle = build_bundle(fresh(slide, 120 + 10 * overtaken_at + was_there), {}, {})
    if as_transaction:
        bundle = small(bundle)
    other = open_ehr(fhir_server.url, QUICK)
    if was_there:
        earlier = deepcopy(bundle)
        earlier["entry"][-2]["resource"]["conclusion"] = "An earlier one."
        other.deliver(earlier)
    signed = deepcopy(bundle)
    for entry in signed["entry"]:
        if entry["resource"].get("status") in ("partial", "preliminary"):
            entry["resource"]["status"] = "final"
    sent = 0

    def sending() -> None:
        nonlocal sent
        sent += 1
        if sent == overtaken_at:
            other.deliver(bundle)
            other.deliver(signed)

    open_ehr(fhir_server.url, QUICK).deliver(bundle, sending)
    if sent < overtaken_at:  # nothing more was to be sent
        other.deliver(signed)
    found = [
        each
        for entry in signed["entry"][:-1]
        for each in search(
            fhir_server,
            entry["resource"]["resourceType"],
            identifier="|".join(
                entry["resource"]["identifier"][0][name] for name in ("system", "value")
            ),
        )
    ]
    assert len(found) == len(signed["entry"]) - 1
    assert {each["status"] for each in found if "result" in each or "code" in each} == {"final"}


def test_the_servers_own_patient_is_referred_to(slide: Slide, fhir_server: FhirServer) -> None:
    patient = register(fhir_server, HOSPITAL, PATIENT_ID)
    analysis = fresh(of_patient(slide, PATIENT_ID, HOSPITAL), 105)
    ehr = open_ehr(fhir_server.url, replace(QUICK, patient_required=True))
    ehr.deliver(build_bundle(analysis, {}, {}))
    report, observation, *_ = ehr.read_report(report_identifier(analysis))
    assert report["subject"]["reference"] == f"Patient/{patient}"
    assert observation["subject"] == report["subject"]


def register(server: FhirServer, system: str, value: str) -> str:
    body = {"resourceType": "Patient", "identifier": [{"system": system, "value": value}]}
    answer = requests.post(f"{server.url}/Patient", json=body, timeout=10).json()
    return str(answer["id"])


def test_the_same_number_of_another_issuer_is_another_patient(
    slide: Slide, fhir_server: FhirServer
) -> None:
    register(fhir_server, "urn:test:insurance", "777")
    analysis = fresh(of_patient(slide, "777", "HOSPITAL A"), 106)
    ehr = open_ehr(fhir_server.url, QUICK)
    ehr.deliver(build_bundle(analysis, {}, {}))
    subject = ehr.read_report(report_identifier(analysis))[0]["subject"]
    assert "reference" not in subject
    assert subject["identifier"] == {"value": "777", "assigner": {"display": "HOSPITAL A"}}


def test_a_site_names_the_system_of_its_patient_ids(slide: Slide, fhir_server: FhirServer) -> None:
    patient = register(fhir_server, "urn:test:mrn", "778")
    analysis = fresh(of_patient(slide, "778", "HOSPITAL A"), 107)
    ehr = open_ehr(fhir_server.url, replace(QUICK, patient_system="urn:test:mrn"))
    ehr.deliver(build_bundle(analysis, {}, {}))
    subject = ehr.read_report(report_identifier(analysis))[0]["subject"]
    assert subject["reference"] == f"Patient/{patient}"


def lenient(request: Request, forward: Forward) -> Answer:
    """A server that leaves out search parameters it does not know, as R4 3.1.1.3 lets it."""
    return forward(replace(request, path=request.path.partition("?")[0]))


def test_what_a_lenient_search_gives_is_not_taken_for_ours(
    slide: Slide, fhir_server: FhirServer, ehr_proxy: Proxy
) -> None:
    others = fresh(of_patient(slide, "780", HOSPITAL), 151)
    open_ehr(fhir_server.url, QUICK).deliver(build_bundle(others, {}, {}))
    kinds = ("DiagnosticReport", "Observation", "Device")
    before = {kind: search(fhir_server, kind, _count="1000") for kind in kinds}
    ehr_proxy.fault = Fault(path=r"\?identifier=", habit=lenient)
    ours = fresh(of_patient(slide, "781", HOSPITAL), 152)
    ours = replace(ours, model=replace(ours.model, digest=f"{152:064x}"))
    with pytest.raises(EhrAnswerInvalid, match="search by identifier") as caught:
        open_ehr(ehr_proxy.url, QUICK).deliver(build_bundle(ours, {}, {}))
    assert "781" not in str(caught.value)
    assert {kind: search(fhir_server, kind, _count="1000") for kind in kinds} == before
    with pytest.raises(EhrAnswerInvalid, match="search by identifier"):
        open_ehr(ehr_proxy.url, QUICK).read_report(report_identifier(ours))


def test_a_patient_is_referred_to_by_identifier_only(
    slide: Slide, fhir_server: FhirServer, ehr_proxy: Proxy
) -> None:
    register(fhir_server, HOSPITAL, "782")
    ehr_proxy.fault = Fault(path=r"/Patient\?", habit=lenient)
    analysis = fresh(of_patient(slide, "783", HOSPITAL), 153)
    ehr = open_ehr(ehr_proxy.url, QUICK)
    ehr.deliver(build_bundle(analysis, {}, {}))
    assert "reference" not in ehr.read_report(report_identifier(analysis))[0]["subject"]
    with pytest.raises(EhrRefused, match="0 Patients"):
        open_ehr(ehr_proxy.url, replace(QUICK, patient_required=True)).deliver(
            build_bundle(analysis, {}, {})
        )


@pytest.mark.parametrize(
    ("system", "value"),
    [("urn:oid:1.2.3", "784"), ("1.2.3", " 784"), ("URN:OID:1.2.3", "784 ")],
)
def test_a_patients_identifier_may_be_spelt_otherwise(
    slide: Slide, fhir_server: FhirServer, ehr_proxy: Proxy, system: str, value: str
) -> None:
    """The server found it by its own rules, and shows it as it was registered."""
    patient = register(fhir_server, system, value)
    ehr_proxy.fault = Fault(path=r"/Patient\?", habit=lenient)
    analysis = fresh(of_patient(slide, "784", "1.2.3"), 154)
    ehr = open_ehr(ehr_proxy.url, replace(QUICK, patient_system="urn:oid:1.2.3"))
    ehr.deliver(build_bundle(analysis, {}, {}))
    subject = ehr.read_report(report_identifier(analysis))[0]["subject"]
    assert subject["reference"] == f"Patient/{patient}"


def test_an_unknown_patient_may_be_refused_but_is_never_made(
    slide: Slide, fhir_server: FhirServer
) -> None:
    bundle = build_bundle(fresh(of_patient(slide, "SECRET-9", HOSPITAL), 108), {}, {})
    with pytest.raises(EhrRefused, match=r"0 Patients .* register") as caught:
        open_ehr(fhir_server.url, replace(QUICK, patient_required=True)).deliver(bundle)
    assert "SECRET-9" not in str(caught.value)
    open_ehr(fhir_server.url, QUICK).deliver(bundle)
    assert not search(fhir_server, "Patient", identifier=f"{HOSPITAL}|SECRET-9")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=401), EhrUnauthorized),
        (Fault(path="/Observation$", status=403), EhrUnauthorized),
        (Fault(path="/Observation$", status=422), EhrRefused),
        (Fault(status=302), EhrAnswerInvalid),
        (Fault(html=True), EhrAnswerInvalid),
        (Fault(body=b"[1, 2]"), EhrAnswerInvalid),
        (Fault(status=429), EhrUnreachable),
        (Fault(path="^/$", status=500), EhrUnreachable),
        (Fault(delay_s=1.5), EhrUnreachable),
        (Fault(trickle_s=5), EhrUnreachable),
    ],
)
def test_a_server_that_fails(
    slide: Slide, ehr_proxy: Proxy, fault: Fault, error: type[EhrError]
) -> None:
    bundle = build_bundle(fresh(of_patient(slide, "SECRET-9", HOSPITAL), 109), {}, {})
    ehr_proxy.fault = fault
    settings = replace(QUICK, timeout_s=1, retries=1)
    with pytest.raises(EhrError, match=r"127\.0\.0\.1.*:.*\.$") as caught:
        open_ehr(ehr_proxy.url, settings).deliver(bundle)
    assert type(caught.value) is error
    assert "SECRET-9" not in str(caught.value)


def test_a_server_that_is_down() -> None:
    with pytest.raises(EhrUnreachable, match=r"127\.0\.0\.1.*check that it runs"):
        open_ehr("http://127.0.0.1:9/fhir", QUICK).read_report("urn:oid:1.2.3")


@pytest.mark.parametrize("path", ["/Device", "/Observation$", "/DiagnosticReport$", "^/$"])
def test_a_failure_that_passes(
    slide: Slide, fhir_server: FhirServer, ehr_proxy: Proxy, path: str
) -> None:
    bundle = build_bundle(fresh(slide, 300 + len(path)), {}, {})
    ehr_proxy.fault = Fault(path=path, status=500, times=1)
    open_ehr(ehr_proxy.url, QUICK).deliver(bundle)
    assert ehr_proxy.fault.times == 0
    assert copies(fhir_server, bundle) == {1}


def test_a_refusal_is_told_without_its_free_text(slide: Slide, ehr_proxy: Proxy) -> None:
    issue = {
        "severity": "error",
        "code": "business-rule",
        "details": {"coding": [{"code": "MSG_PARAM_INVALID"}], "text": "SECRET-9 is unknown"},
        "diagnostics": "Patient Jane Doe, SECRET-9",
        "expression": ["Observation.subject"],
    }
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    ehr_proxy.fault = Fault("/Observation$", status=422, body=json.dumps(outcome).encode())
    with pytest.raises(EhrRefused) as caught:
        open_ehr(ehr_proxy.url, QUICK).deliver(build_bundle(fresh(slide, 112), {}, {}))
    said = str(caught.value)
    assert "business-rule MSG_PARAM_INVALID Observation.subject" in said
    assert "Doe" not in said
    assert "SECRET-9" not in said


def test_the_server_says_what_is_wrong(slide: Slide, fhir_server: FhirServer) -> None:
    bundle = build_bundle(fresh(slide, 113), {}, {})
    del bundle["entry"][-2]["resource"]["status"]
    with pytest.raises(EhrRefused, match=r"DiagnosticReport\.status"):
        open_ehr(fhir_server.url, QUICK).deliver(bundle)


def test_an_outcome_beside_the_matches_is_no_match(slide: Slide, ehr_proxy: Proxy) -> None:
    hint = {"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}}
    answer = {"resourceType": "Bundle", "type": "searchset", "entry": [hint]}
    ehr_proxy.fault = Fault(path=r"/DiagnosticReport\?", body=json.dumps(answer).encode())
    with pytest.raises(EhrAnswerInvalid, match="0 DiagnosticReports"):
        open_ehr(ehr_proxy.url, QUICK).read_report("urn:oid:1.2.3")


def test_a_report_that_is_not_there(url: str) -> None:
    with pytest.raises(EhrAnswerInvalid, match=r"urn:oid:1\.2\.3"):
        open_ehr(url, QUICK).read_report("urn:oid:1.2.3")


def test_a_folder_that_is_none(slide: Slide, tmp_path: Path) -> None:
    (tmp_path / "ehr").write_text("a file")
    with pytest.raises(EhrUnreachable, match="cannot be used"):
        open_ehr((tmp_path / "ehr").as_uri(), QUICK).deliver(build_bundle(fresh(slide, 1), {}, {}))


@pytest.mark.parametrize(
    ("reference", "said"),
    [("../../outside", "outside it"), ("Observation/none", "cannot be read")],
)
def test_a_folder_that_was_tampered_with(
    slide: Slide, tmp_path: Path, reference: str, said: str
) -> None:
    analysis = fresh(slide, 1)
    ehr = open_ehr((tmp_path / "ehr").as_uri(), QUICK)
    ehr.deliver(build_bundle(analysis, {}, {}))
    (path,) = (tmp_path / "ehr" / "DiagnosticReport").iterdir()
    path.write_text(
        json.dumps(json.loads(path.read_bytes()) | {"result": [{"reference": reference}]})
    )
    with pytest.raises(EhrAnswerInvalid, match=said):
        ehr.read_report(report_identifier(analysis))


def test_no_patient_data_in_the_names_of_files(slide: Slide, tmp_path: Path) -> None:
    analysis = fresh(of_patient(slide, "SECRET-9", "x"), 1)
    open_ehr((tmp_path / "ehr").as_uri(), QUICK).deliver(build_bundle(analysis, {}, {}))
    names = [str(path) for path in (tmp_path / "ehr").rglob("*")]
    assert len(names) > 10
    assert not [name for name in names if "SECRET" in name]


@pytest.mark.parametrize("url", ["ftp://x", "http://[::1/fhir"])
def test_an_address_must_be_one(url: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=re.escape(url)):
        open_ehr(url, QUICK)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Παπαδόπουλος^Άννα", "Παπαδόπουλος, Άννα"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou (山田, 太郎; やまだ, たろう)"),
        ("قباني^لنزار", "قباني, لنزار"),
    ],
)
def test_a_name_comes_back_in_its_own_letters(slide: Slide, url: str, name: str, said: str) -> None:
    header = deepcopy(slide.header)
    header.PatientName = name
    analysis = fresh(replace(slide, header=header), 140 + len(name))
    ehr = open_ehr(url, QUICK)
    ehr.deliver(build_bundle(analysis, {}, {}))
    report = ehr.read_report(report_identifier(analysis))[0]
    assert report["subject"]["display"] == said


def test_a_correction_is_one_report_of_the_patient(slide: Slide, fhir_server: FhirServer) -> None:
    """Sent, sent again, corrected by a person, and found by the patient: one report."""
    analysis = fresh(of_patient(slide, "C-1", HOSPITAL), 150)
    patient = requests.post(
        f"{fhir_server.url}/Patient",
        json={
            "resourceType": "Patient",
            "identifier": [{"system": HOSPITAL, "value": "C-1"}],
        },
        timeout=10,
    ).json()["id"]
    ehr, bundle = open_ehr(fhir_server.url, QUICK), build_bundle(analysis, {}, {}, pdf=b"%PDF")
    ehr.deliver(bundle)
    ehr.deliver(bundle)
    corrected = deepcopy(bundle)
    for entry in corrected["entry"]:
        if entry["resource"]["resourceType"] == "DiagnosticReport":
            entry["resource"] |= {"status": "corrected", "conclusion": "Corrected by Dr. Lee."}
        elif entry["resource"]["resourceType"] == "Observation":
            entry["resource"]["status"] = "corrected"
    ehr.deliver(corrected)
    (report,) = search(fhir_server, "DiagnosticReport", subject=f"Patient/{patient}")
    assert (report["status"], report["conclusion"]) == ("corrected", "Corrected by Dr. Lee.")
    assert report["contained"][0]["resourceType"] == "ImagingStudy"
    observations = search(fhir_server, "Observation", subject=f"Patient/{patient}", _count="100")
    assert len(observations) == len(report["result"])
    assert {each["status"] for each in observations} == {"corrected"}
