"""Agreement of ANN, SR and FHIR: silent when they agree, naming what differs when not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from pydicom.dataset import Dataset

from conformance.agreement import Finding, check_agreement, check_standing
from dicom_io.analysis import Analysis
from dicom_io.codes import CELLS_FOUND, CELLS_IN_NDC, ME_RATIO
from dicom_io.slide import Slide
from node.fhir import build_bundle
from node.outputs import encode_documents
from tests.analyses import signed, small_slide, some_analysis

Documents = tuple[dict[str, Dataset], dict[str, Any]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def made(slide: Slide) -> Documents:
    return _documents(some_analysis(slide))


@pytest.fixture
def documents(made: Documents) -> Documents:
    """Documents that a test may break."""
    return copy.deepcopy(made)


def _documents(analysis: Analysis) -> Documents:
    dicom = encode_documents(analysis)
    uids = {
        kind: (d.StudyInstanceUID, d.SeriesInstanceUID, d.SOPInstanceUID)
        for kind, d in dicom.items()
    }
    return dicom, build_bundle(analysis, uids, {})


def _check(documents: Documents) -> list[Finding]:
    dicom, bundle = documents
    return check_agreement(dicom.get("ANN"), dicom["SR"], bundle)


def _observation(bundle: dict[str, Any], code: str) -> dict[str, Any]:
    (found,) = (
        entry["resource"]
        for entry in bundle["entry"]
        if entry["resource"]["resourceType"] == "Observation"
        and entry["resource"]["code"]["coding"][0]["code"] == code
    )
    observation: dict[str, Any] = found
    return observation


def _number(report: Dataset, code: str, unit: str) -> Dataset:
    """Measured value of the first number named `code` in `unit`."""
    pending = [report]
    while pending:
        for item in pending.pop(0).get("ContentSequence", []):
            pending.append(item)
            if item.ValueType != "NUM" or item.ConceptNameCodeSequence[0].CodeValue != code:
                continue
            value = item.MeasuredValueSequence[0]
            if value.MeasurementUnitsCodeSequence[0].CodeValue == unit:
                return value
    raise LookupError(code)


@pytest.mark.parametrize("cells", [600, 40, 1, 0])
def test_documents_of_one_analysis_agree(slide: Slide, cells: int) -> None:
    assert _check(_documents(some_analysis(slide, cells))) == []


def _cell_moved_to_another_type(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    sequence = dicom["ANN"].AnnotationGroupSequence
    first, second = (group.AnnotationPropertyTypeCodeSequence[0] for group in sequence[:2])
    first.CodeValue, second.CodeValue = second.CodeValue, first.CodeValue


def _fhir_count(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    _observation(bundle, "myelocyte")["component"][0]["valueQuantity"]["value"] += 1


def _fhir_percent(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    _observation(bundle, "promyelocyte")["valueQuantity"]["value"] += 0.01


def _fhir_bound(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    _observation(bundle, "promyelocyte")["component"][2]["valueQuantity"]["value"] -= 0.01


def _fhir_percent_left_out(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    del _observation(bundle, "promyelocyte")["valueQuantity"]


def _fhir_observation_left_out(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    gone = _observation(bundle, "proerythroblast")
    bundle["entry"] = [entry for entry in bundle["entry"] if entry["resource"] != gone]


def _fhir_type_that_nobody_counted(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    extra = copy.deepcopy(_observation(bundle, "proerythroblast"))
    extra["code"]["coding"][0]["code"] = "monocyte"
    bundle["entry"].append({"resource": extra})


def _fhir_ratio(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    _observation(bundle, ME_RATIO.value)["valueQuantity"]["value"] *= 2


def _fhir_ratio_withheld(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    observation = _observation(bundle, ME_RATIO.value)
    del observation["valueQuantity"]
    observation["dataAbsentReason"] = {"text": "unknown"}


def _fhir_total(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    _observation(bundle, CELLS_IN_NDC.value)["valueQuantity"]["value"] -= 1


def _sr_count(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    _number(dicom["SR"], "113334004", "{cells}").NumericValue = 1


def _sr_found(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    _number(dicom["SR"], CELLS_FOUND.value, "{cells}").NumericValue = 601


def _ann_of_another_study(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    dicom["ANN"].StudyInstanceUID = "1.2.3"


def _fhir_of_another_study(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    for entry in bundle["entry"]:
        for study in entry["resource"].get("imagingStudy", []):
            study["identifier"]["value"] = "urn:oid:1.2.3"


def _ann_of_another_patient(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    dicom["ANN"].PatientID = "SOMEBODY-ELSE"


def _fhir_of_another_model(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    device = bundle["entry"][0]["resource"]
    device["version"][1]["value"] = "00" * 32


def _ann_missing(dicom: dict[str, Dataset], bundle: dict[str, Any]) -> None:
    del dicom["ANN"]


@pytest.mark.parametrize(
    ("fault", "rule", "named"),
    [
        (_cell_moved_to_another_type, "agree-count-ann-sr", "myeloblast"),
        (_fhir_count, "agree-count-fhir-sr", "myelocyte"),
        (_fhir_percent, "agree-percent-fhir-sr", "promyelocyte"),
        (_fhir_bound, "agree-percent-fhir-sr", "promyelocyte"),
        (_fhir_percent_left_out, "agree-percent-fhir-sr", "promyelocyte"),
        (_fhir_observation_left_out, "agree-type-fhir-sr", "proerythroblast"),
        (_fhir_type_that_nobody_counted, "agree-type-fhir-sr", "monocyte"),
        (_fhir_ratio, "agree-total-fhir-sr", "M:E"),
        (_fhir_ratio_withheld, "agree-total-fhir-sr", "M:E"),
        (_fhir_total, "agree-total-fhir-sr", "cells counted"),
        (_sr_count, "agree-count-ann-sr", "orthochromatic_erythroblast"),
        (_sr_count, "agree-count-fhir-sr", "orthochromatic_erythroblast"),
        (_sr_found, "agree-total-fhir-sr", "nucleated cells found"),
        (_ann_of_another_study, "agree-study", "1.2.3"),
        (_fhir_of_another_study, "agree-study", "1.2.3"),
        (_ann_of_another_patient, "agree-patient", "patient"),
        (_fhir_of_another_model, "agree-model", "0000"),
        (_ann_missing, "agree-count-ann-sr", "myeloblast"),
    ],
)
def test_one_fault_is_named(
    documents: Documents,
    fault: Callable[[dict[str, Dataset], dict[str, Any]], None],
    rule: str,
    named: str,
) -> None:
    fault(*documents)
    found = [finding for finding in _check(documents) if finding.rule == rule]
    assert any(named in finding.sentence for finding in found), _check(documents)
    assert all(finding.severity == "error" for finding in found)


@pytest.mark.parametrize(
    ("decision", "standing"),
    [("confirmed", "final"), ("corrected", "corrected"), ("withdrawn", "withdrawn")],
)
def test_standing_is_one_or_named(slide: Slide, decision: Any, standing: Any) -> None:
    """Each revision agrees with its own report, and with no other's, whose counts are the same."""
    analysis = some_analysis(slide)
    reviewed = signed(analysis, decision, standing)
    (before, partial), (after, decided) = _documents(analysis), _documents(reviewed)
    for sr, fhir in ((before["SR"], partial), (after["SR"], decided)):
        assert check_standing(sr, fhir) == []
    assert check_agreement(after.get("ANN"), after["SR"], decided) == []
    for sr, fhir in ((before["SR"], decided), (after["SR"], partial)):
        found = check_standing(sr, fhir)
        assert {each.rule for each in found} == {"agree-status"}
        assert len(found) == 1 + len(decided["entry"]) - 3  # the report and each Observation


def test_patient_is_not_named_in_a_finding(documents: Documents) -> None:
    _ann_of_another_patient(*documents)
    assert not any("SOMEBODY" in finding.sentence for finding in _check(documents))
