"""Analysis → FHIR R4 transaction bundle.

The graph: one DiagnosticReport (LOINC 47286-0, status ``partial``: an unreviewed result of an
algorithm) whose ``result`` names a panel Observation and its members: one Observation per cell
type, M:E (11138-5) and cells counted (38257-2), all ``preliminary``. A cell type's Observation is
coded first in the node's own code system (:data:`dicom_io.codes.LOCAL_SYSTEM_URI`, the cell type's
key), then in SNOMED CT; its value is the percentage of the nucleated differential count, and its
components are the count and the bounds of the Wilson 95 % interval. Device is the model package;
Provenance names what was read and written. Patient, specimen, order and study are referred to by
their identifiers and never created. Identifiers derive from the analysis, so that sending again is
harmless.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

from fhir.resources.R4B.bundle import Bundle
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.codes import (
    CELLS_FOUND,
    COUNT,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    LOCAL_SYSTEM_URI,
)
from dicom_io.provenance import MANUFACTURER, result_uid
from models.cell_types import CELL_TYPES, ME_REFERENCE, REFERENCE_SOURCE

Resource = dict[str, Any]

UID_SYSTEM = "urn:ietf:rfc:3986"
LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
UCUM = "http://unitsofmeasure.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
PANEL_CODE = ("47286-0", "Differential panel - Bone marrow")
TOTAL_CODE = ("38257-2", "Total cells counted")
ME_CODE = ("11138-5", "Myeloid cells/Erythroid cells [# Ratio] in Bone marrow")


def report_identifier(analysis: Analysis) -> str:
    """Identifier value of the DiagnosticReport."""
    return _identifier(analysis, "report")["value"]


def build_bundle(
    analysis: Analysis,
    references: Mapping[str, tuple[str, str, str]],
    pictures: Mapping[str, bytes],
) -> Resource:
    """Write an analysis as a transaction.

    Parameters
    ----------
    analysis
    references
        Kind → (study, series, instance UID) of the DICOM objects written: ANN, SEG, SR.
    pictures
        Title → JPEG bytes, put into the report.

    Returns
    -------
    dict
        The Bundle as JSON, checked against the R4 resource definitions. The same analysis gives
        the same JSON.
    """
    device = _device(analysis)
    members = [
        *(_cell_type(analysis, row) for row in range(len(analysis.differential.classes))),
        _me_ratio(analysis),
        _total(analysis),
        _found(analysis),
    ]
    panel = _panel(analysis, members)
    report = _report(analysis, [panel, *members], pictures)
    provenance = _provenance(analysis, report, references)
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            *(_entry(each) for each in (device, *members, panel, report)),
            {
                "fullUrl": _full_url("Provenance", report["identifier"][0]["value"]),
                "resource": provenance,
                "request": {"method": "POST", "url": "Provenance"},
            },
        ],
    }
    Bundle.model_validate(bundle)
    return bundle


def _entry(resource: Resource) -> Resource:
    kind, identifier = resource["resourceType"], resource["identifier"][0]
    # ':' and '|' are tokens' own signs; values are UIDs, so nothing else needs escaping.
    query = f"identifier={identifier['system']}%7C{identifier['value']}"
    return {
        "fullUrl": _full_url(kind, identifier["value"]),
        "resource": resource,
        "request": {"method": "PUT", "url": f"{kind}?{query}"},
    }


def _full_url(kind: str, identifier: str) -> str:
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{kind}|{identifier}')}"


def _identifier(analysis: Analysis, *what: str) -> dict[str, str]:
    return {"system": UID_SYSTEM, "value": f"urn:oid:{result_uid(analysis, 'FHIR', *what)}"}


def _device(analysis: Analysis) -> Resource:
    """The model package; the same for all slides it reads."""
    model = analysis.model
    value = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'marrow-node model {model.digest}')}"
    return {
        "resourceType": "Device",
        "identifier": [{"system": UID_SYSTEM, "value": value}],
        "status": "active",
        "manufacturer": MANUFACTURER,
        "deviceName": [{"name": f"marrow-node, model {model.name}", "type": "model-name"}],
        "version": [
            {"type": {"text": "model version"}, "value": model.version},
            {"type": {"text": "model package SHA-256"}, "value": model.digest},
        ],
        "note": [{"text": model.intended_use}],
    }


def _device_reference(analysis: Analysis) -> Resource:
    return {"reference": _full_url("Device", _device(analysis)["identifier"][0]["value"])}


def _observation(analysis: Analysis, name: str, code: Resource) -> Resource:
    return {
        "resourceType": "Observation",
        "identifier": [_identifier(analysis, "observation", name)],
        "status": "preliminary",
        "category": [_concept(f"{TERMINOLOGY}/observation-category", "laboratory", "Laboratory")],
        "code": code,
        **_context(analysis),
        "issued": _instant(analysis.finished),
        "method": {"text": f"Automated count by {analysis.model.name} {analysis.model.version}"},
        "device": _device_reference(analysis),
    }


def _cell_type(analysis: Analysis, row: int) -> Resource:
    differential = analysis.differential
    key = differential.classes[row]
    cell = CELL_TYPES[key]
    codings = [{"system": LOCAL_SYSTEM_URI, "code": key, "display": cell.name}]
    if cell.snomed:
        codings.append({"system": SNOMED, "code": cell.snomed, "display": cell.snomed_meaning})
    counted = bool(differential.in_ndc[row])
    text = f"{cell.name}, percent of nucleated cells" if counted else f"{cell.name}, number"
    observation = _observation(analysis, key, {"coding": codings, "text": text})
    count = int(differential.count[row])
    components = [_component(COUNT, _cells(count))]
    if not counted:
        return observation | {"valueQuantity": _cells(count), "component": components}
    if not differential.adequate:
        return observation | {"dataAbsentReason": _absent(), "component": components}
    percent = round(100 * float(differential.share[row]), 6)
    low, high = (round(100 * float(bound), 6) for bound in differential.interval[row])
    components += [
        _component(INTERVAL_LOW, _percent(low)),
        _component(INTERVAL_HIGH, _percent(high)),
    ]
    observation |= {"valueQuantity": _percent(percent), "component": components}
    if cell.reference_percent is not None:
        observation |= _against(percent, cell.reference_percent, _percent)
    return observation


def _me_ratio(analysis: Analysis) -> Resource:
    observation = _observation(analysis, "M:E", _loinc(*ME_CODE))
    value = analysis.differential.me_ratio
    if value is None or not analysis.differential.adequate:
        return observation | {"dataAbsentReason": _absent()}
    value = round(value, 6)
    return observation | {"valueQuantity": _ratio(value)} | _against(value, ME_REFERENCE, _ratio)


def _total(analysis: Analysis) -> Resource:
    observation = _observation(analysis, "total", _loinc(*TOTAL_CODE))
    return observation | {"valueQuantity": _cells(analysis.differential.total)}


def _found(analysis: Analysis) -> Resource:
    code = {"coding": [_own(CELLS_FOUND)], "text": CELLS_FOUND.meaning}
    observation = _observation(analysis, "found", code)
    return observation | {"valueQuantity": _cells(analysis.differential.nucleated)}


def _panel(analysis: Analysis, members: list[Resource]) -> Resource:
    observation = _observation(analysis, "panel", _loinc(*PANEL_CODE))
    return observation | {"hasMember": [_reference_to(member) for member in members]}


def _report(analysis: Analysis, results: list[Resource], pictures: Mapping[str, bytes]) -> Resource:
    conclusion = conclusion_text(analysis)
    return {
        "resourceType": "DiagnosticReport",
        "identifier": [_identifier(analysis, "report")],
        "text": {"status": "generated", "div": _narrative(analysis, conclusion)},
        "status": "partial",
        "category": [_concept(f"{TERMINOLOGY}/v2-0074", "LAB", "Laboratory")],
        "code": _loinc(*PANEL_CODE),
        **_listed_specimen(_context(analysis)),
        "issued": _instant(analysis.finished),
        "performer": [{"type": "Organization", "display": MANUFACTURER}],
        "imagingStudy": [
            {
                "type": "ImagingStudy",
                "identifier": {
                    "system": "urn:dicom:uid",
                    "value": f"urn:oid:{analysis.slide.study_uid}",
                },
            }
        ],
        **_order(analysis.slide.header),
        "result": [_reference_to(result) for result in results],
        "conclusion": conclusion,
        **_presented(analysis, pictures),
    }


def _presented(analysis: Analysis, pictures: Mapping[str, bytes]) -> Resource:
    """The pictures; FHIR knows no empty arrays."""
    forms = [
        {
            "contentType": "image/jpeg",
            "title": title,
            "creation": _instant(analysis.finished),
            "data": base64.b64encode(content).decode("ascii"),
        }
        for title, content in pictures.items()
    ]
    return {"presentedForm": forms} if forms else {}


def conclusion_text(analysis: Analysis) -> str:
    """What the report says in words."""
    sentences = ["Unreviewed result of an algorithm."]
    if analysis.model.demonstration:
        sentences.append("Demonstration model, not for clinical use.")
    differential = analysis.differential
    sentences.append(f"{differential.total} cells counted.")
    if differential.adequate and differential.me_ratio is not None:
        sentences.append(f"M:E {differential.me_ratio:.2f}.")
    sentences.extend(f"{reason.rstrip('.').capitalize()}." for reason in differential.reasons)
    return " ".join(sentences)


def _provenance(
    analysis: Analysis, report: Resource, references: Mapping[str, tuple[str, str, str]]
) -> Resource:
    slide = analysis.slide
    read = [("source", "whole slide image", uid) for uid in sorted(slide.source_instances)]
    written = [("derivation", kind, uids[2]) for kind, uids in references.items()]
    return {
        "resourceType": "Provenance",
        "target": [_reference_to(report)],
        "recorded": _instant(analysis.finished),
        "occurredPeriod": {
            "start": _instant(analysis.started),
            "end": _instant(analysis.finished),
        },
        "agent": [
            {
                "type": _concept(
                    f"{TERMINOLOGY}/provenance-participant-type", "assembler", "Assembler"
                ),
                "who": _device_reference(analysis),
            }
        ],
        "entity": [
            {
                "role": role,
                "what": {
                    "identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"},
                    "display": what,
                },
            }
            for role, what, uid in (*read, *written)
        ],
    }


def _context(analysis: Analysis) -> Resource:
    """Subject, specimen and time, as far as the slide's header knows them."""
    header = analysis.slide.header
    context: Resource = {"effectiveDateTime": _acquired(header) or _instant(analysis.finished)}
    patient_id = str(header.get("PatientID", ""))
    if patient_id:
        context["subject"] = {
            "type": "Patient",
            "identifier": _issued_by(patient_id, str(header.get("IssuerOfPatientID", ""))),
        }
    specimens = header.get("SpecimenDescriptionSequence", [])
    if specimens:
        context["specimen"] = {
            "type": "Specimen",
            "identifier": {"value": str(specimens[0].SpecimenIdentifier)},
        }
    return context


def _listed_specimen(context: Resource) -> Resource:
    """A report may have several specimens, an observation one."""
    return context | ({"specimen": [context["specimen"]]} if "specimen" in context else {})


def _issued_by(value: str, issuer: str) -> dict[str, Any]:
    """An identifier; an issuer that is no URI is named as assigner."""
    if ":" in issuer:
        return {"system": issuer, "value": value}
    return {"value": value} | ({"assigner": {"display": issuer}} if issuer else {})


def _order(header: Dataset) -> Resource:
    accession = str(header.get("AccessionNumber", ""))
    if not accession:
        return {}
    kind = _concept(f"{TERMINOLOGY}/v2-0203", "ACSN", "Accession ID")
    return {
        "basedOn": [{"type": "ServiceRequest", "identifier": {"type": kind, "value": accession}}]
    }


def _acquired(header: Dataset) -> str:
    """When the slide was scanned: with a time of day only where its zone is known."""
    stamp = str(header.get("AcquisitionDateTime", "")) or str(header.get("StudyDate", ""))
    if len(stamp) < 8 or not stamp[:8].isdigit():
        return ""
    date = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}"
    zone = str(header.get("TimezoneOffsetFromUTC", ""))
    if len(stamp) >= 14 and stamp[8:14].isdigit() and len(zone) == 5:
        return f"{date}T{stamp[8:10]}:{stamp[10:12]}:{stamp[12:14]}{zone[:3]}:{zone[3:]}"
    return date


def _against(value: float, limits: tuple[float, float], quantity: Any) -> Resource:
    """Reference range and how the value lies to it."""
    low, high = limits
    code, display = (
        ("L", "Low") if value < low else ("H", "High") if value > high else ("N", "Normal")
    )
    return {
        "referenceRange": [
            {"low": quantity(low), "high": quantity(high), "text": REFERENCE_SOURCE}
        ],
        "interpretation": [_concept(f"{TERMINOLOGY}/v3-ObservationInterpretation", code, display)],
    }


def _narrative(analysis: Analysis, conclusion: str) -> str:
    differential = analysis.differential
    rows = []
    for row, key in enumerate(differential.classes):
        percent = ""
        if differential.in_ndc[row] and differential.adequate:
            low, high = 100 * differential.interval[row]
            percent = f"{100 * differential.share[row]:.1f} % ({low:.1f} to {high:.1f})"
        rows.append(
            f"<tr><td>{escape(CELL_TYPES[key].name)}</td><td>{int(differential.count[row])}</td>"
            f"<td>{percent}</td></tr>"
        )
    return (
        '<div xmlns="http://www.w3.org/1999/xhtml">'
        f"<p>{escape(conclusion)}</p>"
        "<table><thead><tr><th>Cell</th><th>Count</th><th>Percent of nucleated cells "
        "(95 % interval)</th></tr></thead><tbody>" + "".join(rows) + "</tbody></table></div>"
    )


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _reference_to(resource: Resource) -> Resource:
    identifier = resource["identifier"][0]["value"]
    return {"reference": _full_url(resource["resourceType"], identifier)}


def _concept(system: str, code: str, display: str) -> Resource:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def _loinc(code: str, display: str) -> Resource:
    return _concept(LOINC, code, display) | {"text": display}


def _own(code: CodedConcept) -> dict[str, str]:
    return {"system": LOCAL_SYSTEM_URI, "code": code.value, "display": code.meaning}


def _component(code: CodedConcept, quantity: Resource) -> Resource:
    return {"code": {"coding": [_own(code)]}, "valueQuantity": quantity}


def _absent() -> Resource:
    """Too few cells: a percentage would mislead."""
    return _concept(f"{TERMINOLOGY}/data-absent-reason", "not-performed", "Not Performed") | {
        "text": "insufficient for a differential count"
    }


def _percent(value: float) -> Resource:
    return {"value": value, "unit": "%", "system": UCUM, "code": "%"}


def _cells(value: int) -> Resource:
    return {"value": value, "unit": "cells", "system": UCUM, "code": "{cells}"}


def _ratio(value: float) -> Resource:
    return {"value": value, "unit": "ratio", "system": UCUM, "code": "{ratio}"}
