"""Do ANN, SR and FHIR say the same? Reconciliation asks this before a job is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from pydicom.dataset import Dataset

from conformance.finding import Finding
from dicom_io.annotation import annotated_types, annotation_package_digest
from dicom_io.codes import (
    CELLS_FOUND,
    CELLS_IN_NDC,
    COUNT,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    LOCAL_SCHEME,
    LOCAL_SYSTEM_URI,
    ME_RATIO,
    cell_type_key,
)
from dicom_io.report_content import ReportContent, decode_report
from dicom_io.source_header import text_of
from models.cell_types import CELL_TYPES

# Documents carry percentages to six decimals.
TOLERANCE = 2e-6
SOURCE = "this kit"


def check_agreement(
    annotation: Dataset | None, report: Dataset, fhir: Mapping[str, Any]
) -> list[Finding]:
    """Compare the documents of one analysis.

    Parameters
    ----------
    annotation
        None where no cell was found.
    report
    fhir
        Bundle of the DiagnosticReport, its Observations and its Device.

    Raises
    ------
    InputError
        When a document cannot be read at all.
    """
    said = decode_report(report)
    resources = [entry["resource"] for entry in fhir.get("entry", [])]
    # A withdrawn report holds no number; FHIR keeps its own, in error by their status.
    counted = (
        []
        if said.withdrawn
        else [
            *_annotation_against_report(annotation, said),
            *_fhir_against_report(resources, said),
        ]
    )
    return [
        *counted,
        *_identity(annotation, report, said, resources),
    ]


def check_standing(report: Dataset, fhir: Mapping[str, Any]) -> list[Finding]:
    """Compare how far the documents of one revision say that they have come.

    Parameters
    ----------
    report
        SR of this node.
    fhir
        Bundle of the DiagnosticReport and its Observations.

    Returns
    -------
    list
        Findings where an unverified SR stands beside a result that FHIR gives as reviewed, a
        verified one beside an unreviewed, or where only one of them says it was withdrawn.
    """
    said = decode_report(report)
    resources = [entry["resource"] for entry in fhir.get("entry", [])]
    return [
        _error(
            "agree-status",
            "FHIR, SR",
            f"The SR is {said.verification}{', withdrawn' if said.withdrawn else ''}, and the "
            f"{resource['resourceType']} in FHIR has the status {resource.get('status')}.",
        )
        for resource in resources
        if resource["resourceType"] in {"DiagnosticReport", "Observation"}
        and _reviewed(str(resource.get("status")))
        != (said.verification == "VERIFIED", said.withdrawn)
    ]


def check_subject(report: Dataset, fhir: Mapping[str, Any]) -> list[Finding]:
    """Compare whom the SR and FHIR are about, by the patient's identifier.

    Parameters
    ----------
    report
        SR of this node.
    fhir
        Bundle of the DiagnosticReport and its Observations. A server that keeps a reference alone
        cannot be compared.
    """
    resources = [entry["resource"] for entry in fhir.get("entry", [])]
    return [
        _error(
            "agree-patient",
            "FHIR, SR",
            f"The {resource['resourceType']} in FHIR is about another patient than the SR.",
        )
        for resource in resources
        if "value" in (identifier := resource.get("subject", {}).get("identifier", {}))
        and identifier["value"] != text_of(report, "PatientID")
    ]


def _reviewed(status: str) -> tuple[bool, bool]:
    """Whether a FHIR status means reviewed by a person, and whether withdrawn."""
    return status not in {"registered", "partial", "preliminary"}, status == "entered-in-error"


def _annotation_against_report(
    annotation: Dataset | None, said: ReportContent
) -> Iterator[Finding]:
    drawn: Counter[str] = Counter()
    if annotation is not None:
        drawn.update(annotated_types(annotation))
    for key in sorted({*drawn, *said.counts}):
        if drawn[key] != said.counts.get(key, 0):
            yield _error(
                "agree-count-ann-sr",
                "ANN, SR",
                f"ANN draws {drawn[key]} cells of type {key}, SR counts {said.counts.get(key, 0)}.",
            )


def _fhir_against_report(
    resources: list[Mapping[str, Any]], said: ReportContent
) -> Iterator[Finding]:
    observations = _observations(resources)
    for key, count in said.counts.items():
        observation = observations.get(key)
        if observation is None:
            yield _error(
                "agree-type-fhir-sr", "FHIR, SR", f"SR counts {key}, FHIR has no Observation of it."
            )
            continue
        parts = _components(observation)
        if parts.get(COUNT.value) != count:
            yield _error(
                "agree-count-fhir-sr",
                "FHIR, SR",
                f"FHIR counts {parts.get(COUNT.value)} cells of type {key}, SR {count}.",
            )
        yield from _percentages(key, observation, parts, said)
    for key in sorted((observations.keys() & CELL_TYPES.keys()) - said.counts.keys()):
        yield _error(
            "agree-type-fhir-sr", "FHIR, SR", f"FHIR has an Observation of {key}, SR counts none."
        )
    for code, number, what in (
        (CELLS_IN_NDC.value, said.total, "cells counted"),
        (CELLS_FOUND.value, said.nucleated, "nucleated cells found"),
        (ME_RATIO.value, said.me_ratio, "M:E"),
    ):
        yield from _same_number(observations.get(code), number, what, said.adequate)


def _percentages(
    key: str, observation: Mapping[str, Any], parts: Mapping[str, float], said: ReportContent
) -> Iterator[Finding]:
    reported = said.percentages.get(key)
    if _withheld(observation, said.adequate):
        return
    value = observation.get("valueQuantity", {})
    if value.get("code") != "%" and reported is None:
        return
    share = value.get("value") if value.get("code") == "%" else None
    told = (share, parts.get(INTERVAL_LOW.value), parts.get(INTERVAL_HIGH.value))
    same = reported is not None and all(
        a is not None and abs(float(a) - b) <= TOLERANCE
        for a, b in zip(told, reported, strict=True)
    )
    if not same:
        yield _error(
            "agree-percent-fhir-sr",
            "FHIR, SR",
            f"FHIR gives {told} percent (low, high) for {key}, SR gives {reported}.",
        )


def _withheld(observation: Mapping[str, Any], adequate: bool) -> bool:
    """FHIR gives no percentage and no ratio of a count that does not suffice for them."""
    return "dataAbsentReason" in observation and not adequate


def _same_number(
    observation: Mapping[str, Any] | None, number: float | None, what: str, adequate: bool
) -> Iterator[Finding]:
    if observation is None:
        yield _error("agree-total-fhir-sr", "FHIR, SR", f"FHIR has no Observation of {what}.")
        return
    if _withheld(observation, adequate):
        return
    quantity = observation.get("valueQuantity")
    value = None if quantity is None else float(quantity["value"])
    if value is None and number is None:
        return
    if value is None or number is None or abs(value - number) > TOLERANCE:
        yield _error("agree-total-fhir-sr", "FHIR, SR", f"FHIR gives {value} {what}, SR {number}.")


def _identity(
    annotation: Dataset | None,
    report: Dataset,
    said: ReportContent,
    resources: list[Mapping[str, Any]],
) -> Iterator[Finding]:
    studies = {
        study["identifier"]["value"].removeprefix("urn:oid:")
        for resource in resources
        if resource["resourceType"] == "DiagnosticReport"
        for study in resource.get("imagingStudy") or resource.get("study", [])  # R4; R5
        if "identifier" in study
    }
    if annotation is not None:
        studies.add(str(annotation.StudyInstanceUID))
    if studies != {said.study_uid}:
        yield _error(
            "agree-study",
            "ANN, SR, FHIR",
            f"The SR is about study {said.study_uid}, the others about {sorted(studies)}.",
        )
    if annotation is not None:
        patients = [str(document.get("PatientID", "")) for document in (annotation, report)]
        if patients[0] != patients[1]:
            yield _error("agree-patient", "ANN, SR", "ANN and SR have different patient IDs.")
    digests = {
        version["value"]
        for resource in resources
        if resource["resourceType"] == "Device"
        for version in resource.get("version", [])
        if "SHA-256" in version.get("type", {}).get("text", "")
    }
    if annotation is not None:
        digests.add(annotation_package_digest(annotation))
    if digests != {said.model_digest}:
        yield _error(
            "agree-model",
            "ANN, SR, FHIR",
            f"The SR names model package {said.model_digest}, the others {sorted(digests)}.",
        )


def _observations(resources: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Observations by their first coding: a cell type's key, or a LOINC code."""
    return {
        cell_type_key(code, LOCAL_SCHEME) or code: resource
        for resource in resources
        if resource["resourceType"] == "Observation"
        for code in [resource["code"]["coding"][0]["code"]]
    }


def _components(observation: Mapping[str, Any]) -> dict[str, float]:
    return {
        coding["code"]: component["valueQuantity"]["value"]
        for component in observation.get("component", [])
        for coding in component["code"]["coding"]
        if coding["system"] == LOCAL_SYSTEM_URI
    }


def _error(rule: str, where: str, sentence: str) -> Finding:
    return Finding(rule, "error", where, sentence, source=SOURCE)
