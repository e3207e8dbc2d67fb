"""The whole way, through the command line: folders, then a real PACS and FHIR server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from pydicom import dcmread

from dicom_io.annotation import decode_annotation
from dicom_io.report_content import decode_report
from tests.fhir_fixture import FhirServer
from tests.mllp_server import mllp_server
from tests.result_folders import results_app
from tests.servers import Orthanc
from tests.smears import Smear, small_smear

RESULT_KEYS = {
    "status",
    "job",
    "ann",
    "seg",
    "sr",
    "report",
    "cells",
    "differential",
    "me_ratio",
    "bytes_read",
    "bytes_needed",
    "bytes_slide",
    "seconds",
    "peak_rss_mb",
    "model",
}


@pytest.fixture
def smear(tmp_path: Path) -> Smear:
    return small_smear(tmp_path)


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_folders_in_folders_out_and_twice_is_once(smear: Smear, tmp_path: Path) -> None:
    code, first, said = smear.analyse("--out", str(tmp_path / "out"))
    assert code == 0, said
    assert first.keys() >= RESULT_KEYS
    assert first["status"] == "completed"
    assert first["cells"] > 10
    row = first["differential"]["segmented_neutrophil"]
    assert row.keys() == {"count", "percent", "low", "high"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "annotations.dcm",
        "differential.png",
        "overview.png",
        "regions.dcm",
        "report.dcm",
        "report.fhir.json",
        "report.hl7",
        "report.pdf",
    ]
    pacs, ehr = files_under(tmp_path / "pacs"), files_under(tmp_path / "ehr")

    code, second, said = smear.analyse("--out", str(tmp_path / "again"))
    assert code == 0, said
    assert {r["status"] for r in second["receipts"]} == {"already there"}
    assert files_under(tmp_path / "pacs") == pacs
    assert files_under(tmp_path / "ehr") == ehr
    assert files_under(tmp_path / "again") == files_under(tmp_path / "out")
    assert [second[kind] for kind in ("ann", "seg", "sr", "report")] == [
        first[kind] for kind in ("ann", "seg", "sr", "report")
    ]
    # What was written is what the node's own DICOMweb service gives.
    client = results_app(smear.work).test_client()
    assert len(client.get("/dicom-web/instances").json) == 3
    for kind, name in (("ann", "annotations"), ("seg", "regions"), ("sr", "report")):
        ((study, series, uid),) = first[kind]
        path = f"/dicom-web/studies/{study}/series/{series}/instances/{uid}"
        answer = client.get(path, headers={"Accept": "application/dicom"})
        assert answer.data == (tmp_path / "out" / f"{name}.dcm").read_bytes()


def test_every_output_and_hl7(
    smear: Smear, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can be asked for, into the archive, and the report to a receiver of HL7 v2."""
    for name, value in {
        "PDF": "true",
        "CAPTURES": "true",
        "PARAMETRIC_MAP": "true",
        "COORDINATES": "3D",
        "CELLS_PER_GROUP": "5",
        "FHIR": "R5",
    }.items():
        monkeypatch.setenv(f"MARROW_NODE__OUTPUT__{name}", value)
    with mllp_server() as receiver:
        code, result, said = smear.analyse("--out", str(tmp_path / "out"), ehr_url=receiver.url())
        assert code == 0, (result, said)
        (message,) = receiver.messages
    assert (tmp_path / "out" / "report.hl7").read_bytes().decode() == message
    kinds = {receipt["kind"]: receipt for receipt in result["receipts"]}
    assert kinds.keys() == {
        "ANN", "SEG", "SR", "PDF", "SC overview", "SC differential", "PM", "ORU^R01",
    }  # fmt: skip
    assert kinds["ORU^R01"]["status"] == "acknowledged"
    assert "cannot be asked" in kinds["ORU^R01"]["note"]
    annotations = dcmread(tmp_path / "out" / "annotations.dcm")
    assert annotations.AnnotationCoordinateType == "3D"
    assert max(g.NumberOfAnnotations for g in annotations.AnnotationGroupSequence) <= 5
    assert annotations.ICCProfile  # of the demonstration slide
    pdf = dcmread(tmp_path / "out" / "report-pdf.dcm")
    length = pdf.EncapsulatedDocumentLength
    assert pdf.EncapsulatedDocument[:length] == (tmp_path / "out" / "report.pdf").read_bytes()
    bundle = json.loads((tmp_path / "out" / "report.fhir.json").read_bytes())
    (provenance,) = (
        entry["resource"]
        for entry in bundle["entry"]
        if entry["resource"]["resourceType"] == "Provenance"
    )
    assert [e for e in provenance["entity"] if e["what"]["display"].startswith("pixels")]


def test_a_fresh_node_makes_the_same_objects(smear: Smear, tmp_path: Path) -> None:
    """Coordinates and UIDs do not depend on the work folder or the moment."""
    smear.analyse("--out", str(tmp_path / "first"))
    other = small_smear(tmp_path / "other")
    _, result, _ = other.analyse("--out", str(tmp_path / "second"))
    mine, theirs = (dcmread(tmp_path / n / "annotations.dcm") for n in ("first", "second"))
    assert mine.SOPInstanceUID == theirs.SOPInstanceUID == result["ann"][0][2]
    assert [g.PointCoordinatesData for g in mine.AnnotationGroupSequence] == [
        g.PointCoordinatesData for g in theirs.AnnotationGroupSequence
    ]


def test_over_http_killed_three_times_one_set_of_results(
    smear: Smear, orthanc: Orthanc, fhir_server: FhirServer
) -> None:
    orthanc.add(*smear.slide.paths)
    addresses = {"pacs_url": orthanc.dicomweb_url, "ehr_url": fhir_server.url}
    killed = [
        stage
        for stage in ("detect", "write", "deliver to EHR")
        if smear.killed_at(stage, smear.command(**addresses))
    ]
    assert killed == ["detect", "write", "deliver to EHR"]
    code, result, said = smear.analyse(**addresses)
    assert code == 0, (result, said)

    modalities = [
        tags["ModalitiesInStudy"] if "ModalitiesInStudy" in tags else tags["Modality"]
        for tags in (
            requests.get(f"{orthanc.rest_url}/series/{series}", timeout=10).json()["MainDicomTags"]
            for series in requests.get(f"{orthanc.rest_url}/series", timeout=10).json()
        )
    ]
    assert sorted(modalities) == ["ANN", "SEG", "SM", "SR"]
    instances = requests.get(f"{orthanc.rest_url}/statistics", timeout=10).json()["CountInstances"]
    assert instances == len(smear.slide.paths) + 3
    identifier = f"urn:ietf:rfc:3986|{result['report']}"
    found = requests.get(
        f"{fhir_server.url}/DiagnosticReport", params={"identifier": identifier}, timeout=10
    ).json()
    assert len(found["entry"]) == 1
    report = found["entry"][0]["resource"]
    assert report["status"] == "partial"
    counts = fhir_counts(fhir_server, report)
    assert counts == {key: row["count"] for key, row in result["differential"].items()}


def fhir_counts(server: FhirServer, report: dict[str, Any]) -> dict[str, int]:
    counts = {}
    for result in report["result"]:
        observation = requests.get(f"{server.url}/{result['reference']}", timeout=10).json()
        for component in observation.get("component", []):
            if component["code"]["coding"][0]["code"] == "count":
                key = observation["code"]["coding"][0]["code"]
                counts[key] = component["valueQuantity"]["value"]
    return counts


def test_documents_say_the_same(smear: Smear, tmp_path: Path) -> None:
    _, result, _ = smear.analyse("--out", str(tmp_path / "out"))
    cells = decode_annotation(dcmread(tmp_path / "out" / "annotations.dcm"))
    said = decode_report(dcmread(tmp_path / "out" / "report.dcm"))
    drawn = {key: int(np.sum(cells.label == row)) for row, key in enumerate(cells.classes)}
    assert len(cells) == result["cells"]
    for key, row in result["differential"].items():
        assert row["count"] == said.counts[key] == drawn.get(key, 0)
        if row["percent"] is not None:
            assert said.percentages[key] == pytest.approx(
                (row["percent"], row["low"], row["high"]), abs=2e-6
            )
    assert said.model_digest == result["model"]["digest"]
