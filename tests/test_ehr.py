"""The EHR: folder and real server, each asked before anything is sent again."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from dicom_io.analysis import Analysis
from dicom_io.errors import ConfigurationInvalid, EhrAnswerInvalid
from dicom_io.slide import Slide
from node.ehr import EhrSettings, open_ehr
from node.fhir import build_bundle, report_identifier
from tests.analyses import small_slide, some_analysis
from tests.fhir_fixture import FhirServer


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide") / "pacs")


@pytest.fixture(params=["folder", "server"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return (tmp_path / "ehr").as_uri()
    server: FhirServer = request.getfixturevalue("fhir_server")
    return server.url


def fresh(slide: Slide, revision: int) -> Analysis:
    return replace(some_analysis(slide), revision=revision)


def test_twice_is_once(slide: Slide, url: str) -> None:
    analysis = fresh(slide, 101)
    bundle = build_bundle(analysis, {}, {})
    ehr = open_ehr(url, EhrSettings())
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


def test_one_copy_on_the_server(slide: Slide, fhir_server: FhirServer) -> None:
    analysis = fresh(slide, 102)
    bundle = build_bundle(analysis, {}, {})
    for _ in range(2):
        open_ehr(fhir_server.url, EhrSettings()).deliver(bundle)
    for entry in bundle["entry"][:-1]:
        resource = entry["resource"]
        identifier = resource["identifier"][0]
        found = requests.get(
            f"{fhir_server.url}/{resource['resourceType']}",
            params={"identifier": f"{identifier['system']}|{identifier['value']}"},
            timeout=10,
        ).json()
        assert len(found["entry"]) == 1


def test_the_servers_own_patient_is_referred_to(slide: Slide, fhir_server: FhirServer) -> None:
    header = deepcopy(slide.header)
    header.PatientID, header.IssuerOfPatientID = "A+1 & 2", "urn:test:hospital"
    patient = requests.post(
        f"{fhir_server.url}/Patient",
        json={
            "resourceType": "Patient",
            "identifier": [{"system": "urn:test:hospital", "value": "A+1 & 2"}],
        },
        timeout=10,
    ).json()
    analysis = fresh(replace(slide, header=header), 103)
    ehr = open_ehr(fhir_server.url, EhrSettings())
    ehr.deliver(build_bundle(analysis, {}, {}))
    report = ehr.read_report(report_identifier(analysis))[0]
    assert report["subject"]["reference"] == f"Patient/{patient['id']}"


def test_a_report_that_is_not_there(url: str) -> None:
    with pytest.raises(EhrAnswerInvalid, match=r"urn:oid:1\.2\.3"):
        open_ehr(url, EhrSettings()).read_report("urn:oid:1.2.3")


def test_an_address_must_be_one() -> None:
    with pytest.raises(ConfigurationInvalid, match="ftp://x"):
        open_ehr("ftp://x", EhrSettings())
