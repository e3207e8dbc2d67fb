"""FHIR R4 → R5, for the elements that the node's bundle has: one rule for each that changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from node.ehr_records import Resource

FhirVersion = Literal["R4", "R5"]


def as_r5(bundle: Mapping[str, Any]) -> Resource:
    """A transaction of :func:`node.fhir.build_bundle` in R5."""
    return {
        **bundle,
        "entry": [
            {**entry, "resource": _converted(entry["resource"])} for entry in bundle["entry"]
        ],
    }


def _converted(resource: Resource) -> Resource:
    convert = _RULES.get(resource["resourceType"])
    return resource if convert is None else convert(dict(resource))


def _report(report: Resource) -> Resource:
    """`imagingStudy` became `study`; sizes are integer64, which JSON holds as strings."""
    report["study"] = report.pop("imagingStudy")
    if "contained" in report:
        report["contained"] = [_study(each) for each in report["contained"]]
    if "presentedForm" in report:
        report["presentedForm"] = [
            {**form, "size": str(form["size"])} for form in report["presentedForm"]
        ]
    return report


def _study(study: Resource) -> Resource:
    """A modality became a CodeableConcept."""
    series = [{**each, "modality": {"coding": [each["modality"]]}} for each in study["series"]]
    return {**study, "series": series}


def _device(device: Resource) -> Resource:
    """`deviceName` became `name`, whose types are fewer."""
    device["name"] = [
        {"value": each["name"], "type": "user-friendly-name"} for each in device.pop("deviceName")
    ]
    return device


def _provenance(provenance: Resource) -> Resource:
    """The role "derivation" is gone: what was written before the report is a source of it."""
    provenance["entity"] = [
        {**each, "role": "source"} if each["role"] == "derivation" else each
        for each in provenance["entity"]
    ]
    return provenance


_RULES: dict[str, Callable[[Resource], Resource]] = {
    "DiagnosticReport": _report,
    "Device": _device,
    "Provenance": _provenance,
}
