"""Analysis → FHIR R4 bundle."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle

from dicom_io.analysis import Analysis
from dicom_io.slide import Slide
from node.fhir import build_bundle, report_identifier
from tests.analyses import small_slide, some_analysis

REFERENCES = {"ANN": ("1.2", "1.2.3", "1.2.3.4"), "SR": ("1.2", "1.2.4", "1.2.4.5")}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide") / "pacs")


def bundle_of(analysis: Analysis) -> dict[str, Any]:
    return build_bundle(analysis, REFERENCES, {"overview": b"picture"})


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    found = [entry["resource"] for entry in bundle["entry"]]
    return [each for each in found if each["resourceType"] == kind]


def test_it_is_r4_and_the_same_every_time(slide: Slide) -> None:
    analysis = some_analysis(slide)
    bundle = bundle_of(analysis)
    Bundle.model_validate(bundle)
    assert json.dumps(bundle) == json.dumps(bundle_of(analysis))


def test_the_report_is_partial_and_says_what_it_is(slide: Slide) -> None:
    (report,) = resources(bundle_of(some_analysis(slide)), "DiagnosticReport")
    assert report["status"] == "partial"
    assert report["code"]["coding"][0]["code"] == "47286-0"
    assert "Unreviewed" in report["conclusion"]
    assert "not for clinical use" in report["conclusion"]
    assert report["imagingStudy"][0]["identifier"]["value"] == f"urn:oid:{slide.study_uid}"
    assert len(report["result"]) == len(resources(bundle_of(some_analysis(slide)), "Observation"))


def test_every_type_is_there_and_zero_is_sent_as_zero(slide: Slide) -> None:
    analysis = some_analysis(slide)
    differential = analysis.differential
    observations = {
        each["code"]["coding"][0]["code"]: each
        for each in resources(bundle_of(analysis), "Observation")
    }
    for row, key in enumerate(differential.classes):
        component = observations[key]["component"][0]
        assert component["valueQuantity"]["value"] == differential.count[row]
        assert observations[key]["status"] == "preliminary"
    myelocyte = observations["myelocyte"]
    assert myelocyte["valueQuantity"]["code"] == "%"
    assert myelocyte["referenceRange"][0]["text"]


def test_too_few_cells_give_no_percentages(slide: Slide) -> None:
    observations = resources(bundle_of(some_analysis(slide, cells=40)), "Observation")
    assert not [o for o in observations if o.get("valueQuantity", {}).get("code") == "%"]
    assert len([o for o in observations if "dataAbsentReason" in o]) >= 10


def test_another_revision_is_another_report(slide: Slide) -> None:
    analysis = some_analysis(slide)
    assert report_identifier(analysis) != report_identifier(replace(analysis, revision=2))


def test_a_patient_without_an_id_is_not_invented(slide: Slide) -> None:
    header = deepcopy(slide.header)
    header.PatientID = ""
    analysis = some_analysis(replace(slide, header=header))
    assert "subject" not in resources(bundle_of(analysis), "DiagnosticReport")[0]
