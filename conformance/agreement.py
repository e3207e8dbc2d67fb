"""Do ANN, SR and FHIR say the same? Reconciliation asks this before a job is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydicom.dataset import Dataset

from dicom_io.annotation import decode_annotation
from dicom_io.codes import (
    CELLS_FOUND,
    CELLS_IN_NDC,
    COUNT,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    LOCAL_SYSTEM_URI,
    ME_RATIO,
)
from dicom_io.report import ReportContent, decode_report

# Documents carry percentages to six decimals.
TOLERANCE = 2e-6


@dataclass(frozen=True, slots=True)
class Finding:
    """One disagreement.

    Attributes
    ----------
    rule
        Stable identifier.
    severity
    object
        The documents concerned.
    sentence
        What differs, for people.
    """

    rule: str
    severity: Literal["error", "warning"]
    object: str
    sentence: str


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
    return [
        *_annotation_against_report(annotation, said),
        *_fhir_against_report(resources, said),
        *_identity(annotation, said, resources),
    ]


def _annotation_against_report(
    annotation: Dataset | None, said: ReportContent
) -> Iterator[Finding]:
    drawn: Counter[str] = Counter()
    if annotation is not None:
        cells = decode_annotation(annotation)
        drawn.update(cells.classes[label] for label in cells.label)
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
    for code, number, what in (
        (CELLS_IN_NDC.value, said.total, "cells counted"),
        (CELLS_FOUND.value, said.nucleated, "nucleated cells found"),
        (ME_RATIO.value, said.me_ratio, "M:E"),
    ):
        yield from _same_number(observations.get(code), number, what)


def _percentages(
    key: str, observation: Mapping[str, Any], parts: Mapping[str, float], said: ReportContent
) -> Iterator[Finding]:
    value = observation.get("valueQuantity", {})
    if value.get("code") != "%":
        return
    told = (value["value"], parts.get(INTERVAL_LOW.value), parts.get(INTERVAL_HIGH.value))
    reported = said.percentages.get(key)
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


def _same_number(
    observation: Mapping[str, Any] | None, number: float | None, what: str
) -> Iterator[Finding]:
    if observation is None:
        yield _error("agree-total-fhir-sr", "FHIR, SR", f"FHIR has no Observation of {what}.")
        return
    if "dataAbsentReason" in observation:
        return
    value = float(observation["valueQuantity"]["value"])
    if number is None or abs(value - number) > TOLERANCE:
        yield _error("agree-total-fhir-sr", "FHIR, SR", f"FHIR gives {value} {what}, SR {number}.")


def _identity(
    annotation: Dataset | None, said: ReportContent, resources: list[Mapping[str, Any]]
) -> Iterator[Finding]:
    studies = {
        study["identifier"]["value"].removeprefix("urn:oid:")
        for resource in resources
        if resource["resourceType"] == "DiagnosticReport"
        for study in resource.get("imagingStudy", [])
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
    digests = {
        version["value"]
        for resource in resources
        if resource["resourceType"] == "Device"
        for version in resource.get("version", [])
        if "SHA-256" in version.get("type", {}).get("text", "")
    }
    if annotation is not None:
        digests.add(decode_annotation(annotation).package_digest)
    if digests != {said.model_digest}:
        yield _error(
            "agree-model",
            "ANN, SR, FHIR",
            f"The SR names model package {said.model_digest}, the others {sorted(digests)}.",
        )


def _observations(resources: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Observations by their first coding: a cell type's key, or a LOINC code."""
    return {
        resource["code"]["coding"][0]["code"]: resource
        for resource in resources
        if resource["resourceType"] == "Observation"
    }


def _components(observation: Mapping[str, Any]) -> dict[str, float]:
    return {
        coding["code"]: component["valueQuantity"]["value"]
        for component in observation.get("component", [])
        for coding in component["code"]["coding"]
        if coding["system"] == LOCAL_SYSTEM_URI
    }


def _error(rule: str, where: str, sentence: str) -> Finding:
    return Finding(rule, "error", where, sentence)
