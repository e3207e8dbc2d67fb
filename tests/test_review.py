"""Reviews in a real archive and a real FHIR server: chains, and the history of what was told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from pydicom import dcmread
from pydicom.dataset import Dataset

from conformance.check import check
from conformance.result_set import ResultSet
from dicom_io.annotation import annotated_types
from dicom_io.pacs import open_pacs
from dicom_io.report_content import decode_report
from node.config import load_settings
from tests.fhir_fixture import FhirServer
from tests.reviews import RETYPE_ONE, Node, Result, edited_annotation
from tests.servers import Orthanc
from tests.smears import small_smear
from tests.validators import dciodvfy, dsrdump, written


@pytest.fixture
def servers(orthanc: Orthanc, fhir_server: FhirServer, tmp_path: Path) -> Node:
    """With a real archive, and a real FHIR server that knows the patient."""
    smear = small_smear(tmp_path)
    orthanc.add(*smear.slide.paths)
    settings = load_settings(smear.settings(), {})
    patient = {
        "resourceType": "Patient",
        "identifier": [{"system": "urn:test:mrn", "value": "DEMO-MARROW-1"}],
    }
    requests.post(f"{fhir_server.url}/Patient", json=patient, timeout=10).raise_for_status()
    ehr = replace(settings.ehr, patient_system="urn:test:mrn")
    output = replace(settings.output, pdf=True, captures=True)
    return Node(
        smear,
        replace(
            settings,
            pacs_url=orthanc.dicomweb_url,
            ehr_url=fhir_server.url,
            ehr=ehr,
            output=output,
        ),
    )


def reports_of_the_patient(server: FhirServer) -> list[dict[str, Any]]:
    (patient,) = found(server, "Patient?identifier=urn:test:mrn|DEMO-MARROW-1")
    return found(server, f"DiagnosticReport?subject=Patient/{patient['id']}")


def found(server: FhirServer, query: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{server.url}/{query}", timeout=10).json()
    return [entry["resource"] for entry in answer.get("entry", [])]


def history(server: FhirServer, reference: str) -> list[str]:
    """Status of every version, oldest first."""
    versions = found(server, f"{reference}/_history")
    ordered = sorted(versions, key=lambda each: str(each["meta"]["lastUpdated"]))
    return [each["status"] for each in ordered]


def test_confirmed_corrected_withdrawn(
    servers: Node, fhir_server: FhirServer, tmp_path: Path
) -> None:
    node = servers
    first = node.analyse()
    assert (first["revision"], first["standing"]) == (1, "unreviewed")
    (report,) = reports_of_the_patient(fhir_server)
    resources = [f"DiagnosticReport/{report['id']}", *(r["reference"] for r in report["result"])]

    confirmed = node.review(first, 1, "confirmed")
    assert (confirmed["revision"], confirmed["standing"]) == (2, "final")
    assert confirmed["ann"] == first["ann"]
    assert confirmed["seg"] == first["seg"]
    assert confirmed["sr"] != first["sr"]
    assert confirmed["differential"] == first["differential"]

    before = node.fetched(node.revisions(first)[1])["ANN"]
    edited = edited_annotation(node, before)
    corrected = node.review(first, 2, "corrected", annotation_uid=str(edited.SOPInstanceUID))
    assert (corrected["revision"], corrected["standing"]) == (3, "corrected")
    counts = {key: row["count"] for key, row in corrected["differential"].items() if row["count"]}
    assert counts == dict(annotated_types(edited))
    assert corrected["cells"] == first["cells"]
    assert node.revisions(first)[2]["review"]["changes"] == {"retyped": 1, "deleted": 1, "added": 1}

    withdrawn = node.review(first, 3, "withdrawn", reason="Slide of another patient")
    assert (withdrawn["revision"], withdrawn["standing"]) == (4, "withdrawn")
    assert withdrawn["differential"] == {}

    _chain_leads_back(node, first, tmp_path)
    _every_revision_conforms(node, first, tmp_path)
    _annotations_of_both_are_there(node, first)

    # One report and the same resources, through all that was decided.
    (same,) = reports_of_the_patient(fhir_server)
    assert same["id"] == report["id"]
    assert history(fhir_server, resources[0]) == [
        "partial",
        "final",
        "corrected",
        "entered-in-error",
    ]
    for reference in resources[1:]:
        assert history(fhir_server, reference) == [
            "preliminary",
            "final",
            "corrected",
            "entered-in-error",
        ]
    provenances = found(fhir_server, f"Provenance?target={resources[0]}")
    people = [
        agent["who"]["display"]
        for each in provenances
        for agent in each["agent"]
        if agent["type"]["coding"][0]["code"] == "verifier"
    ]
    assert len(provenances) == 4
    assert people == ["Lee, Anna Dr."] * 3
    named = {e["what"]["identifier"]["value"] for p in provenances for e in p["entity"]}
    assert f"urn:oid:{edited.SOPInstanceUID}" in named


def _chain_leads_back(node: Node, result: Result, folder: Path) -> None:
    """From the newest report by predecessors to the first, each found in the archive by its UID."""
    uids = [each["artifacts"]["SR"]["uid"] for each in node.revisions(result)]
    with open_pacs(node.settings.pacs_url, node.settings.pacs) as pacs:
        artifact = node.revisions(result)[-1]["artifacts"]["SR"]
        place = (artifact["study_uid"], artifact["series_uid"], artifact["uid"])
        walked = []
        while place is not None:
            document = pacs.retrieve_instance(*place)
            walked.append(str(document.SOPInstanceUID))
            place = _predecessor(document)
            if place is None:
                assert (document.VerificationFlag, document.PreliminaryFlag) == (
                    "UNVERIFIED",
                    "PRELIMINARY",
                )
                continue
            (observer,) = document.VerifyingObserverSequence
            assert document.VerificationFlag == "VERIFIED"
            assert str(observer.VerifyingObserverName) == "Lee^Anna^^Dr."
            assert observer.VerifyingOrganization == "Haematology"
    assert walked == uids[::-1]


def _predecessor(document: Dataset) -> tuple[str, str, str] | None:
    for study in document.get("PredecessorDocumentsSequence", []):
        (series,) = study.ReferencedSeriesSequence
        (instance,) = series.ReferencedSOPSequence
        return (
            study.StudyInstanceUID,
            series.SeriesInstanceUID,
            instance.ReferencedSOPInstanceUID,
        )
    return None


def _every_revision_conforms(node: Node, result: Result, folder: Path) -> None:
    """By the kit, alone and all together, by dicom3tools, and by DCMTK."""
    levels = [dcmread(path, stop_before_pixels=True) for path in node.smear.slide.paths]
    everything: dict[str, Dataset] = {}
    kinds = []
    for written_ in node.revisions(result):
        documents = node.fetched(written_)
        kinds.append(set(documents))
        everything |= {str(each.SOPInstanceUID): each for each in documents.values()}
        bundle = json.loads(
            (
                node.settings.work_folder
                / "files"
                / written_["artifacts"]["FHIR"]["sha256"][:2]
                / written_["artifacts"]["FHIR"]["sha256"]
            ).read_bytes()
        )
        checked = check(ResultSet((*documents.values(), *levels), (bundle,)))
        assert checked.findings == (), written_["revision"]
    assert check(ResultSet((*everything.values(), *levels), (bundle,))).findings == ()
    assert kinds == [
        {"ANN", "SEG", "SR", "PDF", "SC overview", "SC differential"},
        {"ANN", "SEG", "SR", "PDF", "SC overview", "SC differential"},
        {"ANN", "SEG", "SR", "PDF", "SC overview", "SC differential"},
        {"SR", "PDF"},
    ]
    for uid, document in everything.items():
        path = written(document, folder / f"{uid}.dcm")
        assert [line for line in dciodvfy(path) if line.startswith("Error")] == []
        if document.Modality == "SR":
            assert dsrdump(path)[1] == ""


def _annotations_of_both_are_there(node: Node, result: Result) -> None:
    first, confirmed, corrected, withdrawn = map(node.fetched, node.revisions(result))
    types = [
        {group.AnnotationGroupGenerationType for group in each["ANN"].AnnotationGroupSequence}
        for each in (first, confirmed, corrected)
    ]
    assert types == [{"AUTOMATIC"}, {"AUTOMATIC"}, {"SEMIAUTOMATIC"}]
    assert confirmed["ANN"].SOPInstanceUID == first["ANN"].SOPInstanceUID
    assert corrected["ANN"].SOPInstanceUID != first["ANN"].SOPInstanceUID
    assert str(corrected["ANN"].ContentCreatorName) == "Lee^Anna^^Dr."
    assert decode_report(withdrawn["SR"]).withdrawn


def test_a_first_review_that_corrects_makes_it_final(
    servers: Node, fhir_server: FhirServer
) -> None:
    """R4: corrected is a change of what was final."""
    first = servers.analyse()
    reviewed = servers.review(first, 1, "corrected", corrections=RETYPE_ONE)
    assert reviewed["standing"] == "final"
    (report,) = reports_of_the_patient(fhir_server)
    assert history(fhir_server, f"DiagnosticReport/{report['id']}") == ["partial", "final"]
    assert reviewed["differential"]["plasma_cell"]["count"] == 1
    groups = servers.fetched(servers.revisions(first)[1])["ANN"].AnnotationGroupSequence
    assert {each.AnnotationGroupGenerationType for each in groups} == {"SEMIAUTOMATIC"}


def test_an_analysis_asked_for_again_does_not_undo_a_review(
    servers: Node, orthanc: Orthanc, fhir_server: FhirServer
) -> None:
    # A PDF tells when it was made: made anew it is another file.
    output = replace(servers.settings.output, pdf=False)
    servers = replace(servers, settings=replace(servers.settings, output=output))
    first = servers.analyse()
    servers.review(first, 1, "confirmed")
    corrected = servers.review(first, 2, "corrected", corrections=RETYPE_ONE)
    (report,) = reports_of_the_patient(fhir_server)
    count = instances(orthanc)
    again = servers.analyse()
    assert (again["revision"], again["sr"]) == (3, corrected["sr"])
    assert {each["status"] for each in again["receipts"]} == {"already there"}
    assert reports_of_the_patient(fhir_server) == [report]
    assert instances(orthanc) == count
    # Also where the work files are gone, and the archive is asked for what it has.
    for path in (servers.settings.work_folder / "files").rglob("*"):
        if path.is_file():
            path.unlink()
    anew = servers.analyse()
    assert anew["revision"] == 1
    assert {each["status"] for each in anew["receipts"]} == {"already there"}
    assert reports_of_the_patient(fhir_server) == [report]
    assert instances(orthanc) == count


def instances(orthanc: Orthanc) -> int:
    answer = requests.get(f"{orthanc.rest_url}/statistics", timeout=10).json()
    return int(answer["CountInstances"])


def test_a_late_delivery_of_an_older_revision_changes_nothing(
    servers: Node, fhir_server: FhirServer
) -> None:
    """The second revision comes again after the third, for example after a crash."""
    first = servers.analyse()
    servers.review(first, 1, "confirmed")
    servers.review(first, 2, "corrected", corrections=RETYPE_ONE)
    (report,) = reports_of_the_patient(fhir_server)
    late = servers.review(first, 1, "confirmed")
    assert (late["revision"], late["standing"]) == (2, "final")
    assert reports_of_the_patient(fhir_server) == [report]
