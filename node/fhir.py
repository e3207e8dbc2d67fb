"""Analysis → FHIR R4 transaction bundle.

The graph: one DiagnosticReport (LOINC 47286-0) whose ``result`` names a panel Observation and its
members: one Observation per cell type, M:E (11138-5), cells counted (38257-2) and cells found.
Unreviewed, the report is ``partial`` and they are ``preliminary``; a review changes the status of
these same resources (:data:`STATUSES`). A cell type's Observation is coded first in the node's own
code system (:data:`dicom_io.codes.LOCAL_SYSTEM_URI`), then in SNOMED CT, then
in LOINC where a site asks for it; its value is the percentage of the nucleated differential count,
and its components are the count and the bounds of the Wilson 95 % interval, each coded in the
node's own code system (``count``, ``wilson-95-low``, ``wilson-95-high``). Device is the model
package; Provenance names what was read and written, by UID and by digest. Patient, specimen, order
and study are referred to by their identifiers and never created; the report contains an
ImagingStudy that lists the series and instances, for an EHR that has none. Identifiers derive from
the analysis, not from its revision, so that sending again is harmless and a review updates. Where
HL7's "DICOM SR to FHIR Resource Mapping" speaks, it is followed: the panel is the measurement
group, carries its tracking UID and finding site, and every Observation is part of the study.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from html import escape

from fhir.resources.bundle import Bundle as BundleR5
from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle
from highdicom.sr import CodedConcept
from pydantic import ValidationError

from dicom_io.analysis import Analysis, Signature, Standing
from dicom_io.codes import (
    BONE_MARROW,
    CELLS_FOUND,
    COUNT,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    LOCAL_SYSTEM_URI,
)
from dicom_io.errors import InputError
from dicom_io.provenance import MANUFACTURER, lasting_uid
from dicom_io.report import tracking_uid
from models.cell_types import CELL_TYPES, ME_REFERENCE, REFERENCE_SOURCE, reading_order
from node.ehr_records import UID_SYSTEM, Resource
from node.fhir_header import context_of, display_name, report_context_of
from node.fhir_r5 import FhirVersion, as_r5
from node.fhir_study import contained_study

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
UCUM = "http://unitsofmeasure.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
PANEL_CODE = ("47286-0", "Differential panel - Bone marrow")
TOTAL_CODE = ("38257-2", "Total cells counted")
# Why a value is not given: code and display of data-absent-reason, and in words.
_TOO_FEW = ("not-performed", "Not Performed", "insufficient for a differential count")
_NO_ERYTHROID = ("not-applicable", "Not Applicable", "no erythroid cell was counted")
_PERFORMER = {"type": "Organization", "display": MANUFACTURER}
_DICOM_IDENTIFIER_TYPE = "http://hl7.org/fhir/uv/dicom-sr/CodeSystem/dicom-identifier-type"
# Standing → status of the DiagnosticReport and of its Observations. R4's diagnostic-report-status:
# "corrected" is said of what was "final" before, so a first review that corrects makes it "final";
# an Observation is corrected with its panel, for each percentage rests on the whole count.
STATUSES: Mapping[Standing, tuple[str, str]] = {
    "unreviewed": ("partial", "preliminary"),
    "final": ("final", "final"),
    "corrected": ("corrected", "corrected"),
    "withdrawn": ("entered-in-error", "entered-in-error"),
}
# Found by their names when a value of theirs is first checked.
_CHECKED_BY = (
    *("Device", "DiagnosticReport", "ImagingStudy", "Observation", "Provenance"),
    *("Annotation", "Attachment", "CodeableConcept", "Coding", "Identifier", "Narrative"),
    *("Period", "Quantity", "Reference"),
)
_DECIDED = {"confirmed": "Confirmed", "corrected": "Corrected", "withdrawn": "Withdrawn"}
ME_CODE = ("11138-5", "Myeloid cells/Erythroid cells [# Ratio] in Bone marrow")


def load_classes() -> None:
    """Load the classes of R4 that reports are checked by, which the first one would wait for."""
    for name in _CHECKED_BY:
        get_fhir_model_class(name)


def report_identifier(analysis: Analysis) -> str:
    """Identifier value of the DiagnosticReport."""
    return _identifier(analysis, "report")["value"]


def build_bundle(
    analysis: Analysis,
    references: Mapping[str, tuple[str, str, str]],
    pictures: Mapping[str, bytes],
    loinc: bool = False,
    pdf: bytes = b"",
    version: FhirVersion = "R4",
    sources: Mapping[str, str] | None = None,
) -> Resource:
    """Write an analysis as a transaction.

    Parameters
    ----------
    analysis
    references
        Kind → (study, series, instance UID) of the DICOM objects written: ANN, SEG, SR.
    pictures
        Title → JPEG bytes, put into the report.
    loinc
        Put a cell type's LOINC term beside its other codes. Most of these terms say "by manual
        count", so only a site that maps them so should ask for it.
    pdf
        The report as a file, put before the pictures.
    version
        Of FHIR.
    sources
        What a reviewer's correction was made from: instance UID → what it is.

    Returns
    -------
    dict
        The Bundle as JSON, checked against the resource definitions of its version. The same
        analysis gives the same JSON.

    Raises
    ------
    InputError
        When the slide's header holds what FHIR cannot carry.
    """
    device = _device(analysis)
    members = [
        *(_cell_type(analysis, row, loinc) for row in reading_order(analysis.differential.classes)),
        _me_ratio(analysis),
        _total(analysis),
        _found(analysis),
    ]
    panel = _panel(analysis, members)
    report = _report(analysis, [panel, *members], pictures, pdf)
    study = contained_study(analysis, references)
    if study is not None:
        report |= {"contained": [study]}
        report["imagingStudy"][0]["reference"] = f"#{study['id']}"
    provenance = _provenance(analysis, report, references, sources or {})
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
    if version == "R5":
        bundle = as_r5(bundle)
    _check(bundle, analysis, version)
    return bundle


def _check(bundle: Resource, analysis: Analysis, version: FhirVersion) -> None:
    try:
        (Bundle if version == "R4" else BundleR5).model_validate(bundle)
    except ValidationError as error:
        # Named by its place: the error's own words quote the header.
        _, number, _, *path = error.errors(include_input=False)[0]["loc"]
        resource = bundle["entry"][number]["resource"]["resourceType"]
        raise InputError(
            f"The header of series {analysis.slide.series_uid} gives "
            f"{'.'.join(map(str, (resource, *path)))} a value that FHIR cannot carry: correct "
            "the slide's metadata in the archive."
        ) from None


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
    return {"system": UID_SYSTEM, "value": f"urn:oid:{lasting_uid(analysis, 'FHIR', *what)}"}


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
        "status": STATUSES[analysis.standing][1],
        "category": [_concept(f"{TERMINOLOGY}/observation-category", "laboratory", "Laboratory")],
        "code": code,
        **context_of(analysis.slide.header),
        "partOf": [_study_reference(analysis)],
        "issued": _instant(analysis.issued),
        "performer": [_PERFORMER],
        "method": {"text": f"Automated count by {analysis.model.name} {analysis.model.version}"},
        "device": _device_reference(analysis),
    }


def _cell_type(analysis: Analysis, row: int, loinc: bool) -> Resource:
    differential = analysis.differential
    key = differential.classes[row]
    cell = CELL_TYPES[key]
    counted = bool(differential.in_ndc[row])
    codings = [{"system": LOCAL_SYSTEM_URI, "code": cell.code, "display": cell.name}]
    if cell.snomed:
        codings.append({"system": SNOMED, "code": cell.snomed, "display": cell.snomed_meaning})
    if loinc and counted and cell.loinc:  # LOINC's terms are shares, not numbers
        codings.append({"system": LOINC, "code": cell.loinc})
    text = f"{cell.name}, percent of nucleated cells" if counted else f"{cell.name}, number"
    observation = _observation(analysis, key, {"coding": codings, "text": text})
    count = int(differential.count[row])
    components = [_component(COUNT, _cells(count))]
    if not counted:
        return observation | {"valueQuantity": _cells(count), "component": components}
    if not differential.adequate:
        return observation | {"dataAbsentReason": _absent(*_TOO_FEW), "component": components}
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
    if not analysis.differential.adequate:
        return observation | {"dataAbsentReason": _absent(*_TOO_FEW)}
    if value is None:
        return observation | {"dataAbsentReason": _absent(*_NO_ERYTHROID)}
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
    observation["identifier"].append(
        {
            "type": _concept(_DICOM_IDENTIFIER_TYPE, "observation-uid", "Observation UID"),
            "system": "urn:dicom:uid",
            "value": f"urn:oid:{tracking_uid(analysis)}",
        }
    )
    return observation | {
        "bodySite": _concept(SNOMED, BONE_MARROW.value, BONE_MARROW.meaning),
        "hasMember": [_reference_to(member) for member in members],
    }


def _report(
    analysis: Analysis, results: list[Resource], pictures: Mapping[str, bytes], pdf: bytes
) -> Resource:
    conclusion = conclusion_text(analysis)
    return {
        "resourceType": "DiagnosticReport",
        "identifier": [_identifier(analysis, "report")],
        "text": {"status": "generated", "div": _narrative(analysis, conclusion)},
        "status": STATUSES[analysis.standing][0],
        "category": [_concept(f"{TERMINOLOGY}/v2-0074", "LAB", "Laboratory")],
        "code": _loinc(*PANEL_CODE),
        **report_context_of(analysis.slide.header),
        "issued": _instant(analysis.issued),
        "performer": [_PERFORMER],
        **_interpreter(analysis),
        "imagingStudy": [_study_reference(analysis)],
        "result": [_reference_to(result) for result in results],
        "conclusion": conclusion,
        **_presented(analysis, pictures, pdf),
    }


def _interpreter(analysis: Analysis) -> Resource:
    """The person responsible for the conclusions, by name: the EHR's Practitioner is not known."""
    if analysis.signature is None:
        return {}
    return {"resultsInterpreter": [_practitioner(analysis.signature)]}


def _practitioner(signature: Signature) -> Resource:
    return {"type": "Practitioner", "display": display_name(signature.name)}


def _study_reference(analysis: Analysis) -> Resource:
    identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{analysis.slide.study_uid}"}
    return {"type": "ImagingStudy", "identifier": identifier}


def _presented(analysis: Analysis, pictures: Mapping[str, bytes], pdf: bytes) -> Resource:
    """The PDF, then the pictures; FHIR knows no empty arrays."""
    files = [("report", "application/pdf", pdf)] if pdf else []
    files += [(title, "image/jpeg", content) for title, content in pictures.items()]
    forms = [
        {
            "contentType": media_type,
            "title": title,
            "creation": _instant(analysis.issued),
            "data": base64.b64encode(content).decode("ascii"),
            "size": len(content),
            "hash": base64.b64encode(
                hashlib.sha1(content, usedforsecurity=False).digest()
            ).decode(),
        }
        for title, media_type, content in files
    ]
    return {"presentedForm": forms} if forms else {}


def conclusion_text(analysis: Analysis) -> str:
    """What the report says in words."""
    sentences = [_review_in_words(analysis)]
    if analysis.model.demonstration:
        sentences.append("Demonstration model, not for clinical use.")
    if analysis.standing == "withdrawn":
        return " ".join(sentences)
    differential = analysis.differential
    sentences.append(f"{differential.total} cells counted.")
    if differential.adequate and differential.me_ratio is not None:
        sentences.append(f"M:E {differential.me_ratio:.2f}.")
    sentences.extend(
        f"{reason[:1].upper()}{reason[1:].rstrip('.')}." for reason in differential.reasons
    )
    return " ".join(sentences)


def _review_in_words(analysis: Analysis) -> str:
    signature = analysis.signature
    if signature is None:
        return "Unreviewed result of an algorithm."
    said = f"{_DECIDED[signature.decision]} by {display_name(signature.name)}"
    said += f" ({signature.organization})" if signature.organization else ""
    said += f", {signature.at:%Y-%m-%d %H:%M} UTC"
    return f"{said}: {signature.reason.rstrip('.')}." if signature.reason else f"{said}."


def _provenance(
    analysis: Analysis,
    report: Resource,
    references: Mapping[str, tuple[str, str, str]],
    sources: Mapping[str, str],
) -> Resource:
    slide = analysis.slide
    dicom = [("source", "whole slide image", uid) for uid in sorted(slide.source_instances)]
    dicom += [("source", what, uid) for uid, what in sources.items()]
    dicom += [("derivation", kind, uids[2]) for kind, uids in references.items()]
    digests = [
        (
            "source",
            "pixels searched for cells, in the order of reading",
            analysis.pixels_sha256,
        ),
        ("source", "model package", analysis.model.digest),
        ("source", "configuration", analysis.configuration_digest),
    ]
    entities = [
        _entity(role, what, {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"})
        for role, what, uid in dicom
    ] + [
        _entity(role, what, {"system": UID_SYSTEM, "value": named_information(digest)})
        for role, what, digest in digests
        if digest
    ]
    return {
        "resourceType": "Provenance",
        "target": [_reference_to(report)],
        "recorded": _instant(analysis.issued),
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
            },
            *_verifier(analysis.signature),
        ],
        "entity": entities,
    }


def _verifier(signature: Signature | None) -> list[Resource]:
    """Who reviewed, for whom."""
    if signature is None:
        return []
    kind = _concept(f"{TERMINOLOGY}/provenance-participant-type", "verifier", "Verifier")
    agent = {"type": kind, "who": _practitioner(signature)}
    if signature.organization:
        agent["onBehalfOf"] = {"type": "Organization", "display": signature.organization}
    return [agent]


def _entity(role: str, what: str, identifier: Resource) -> Resource:
    return {"role": role, "what": {"identifier": identifier, "display": what}}


def named_information(sha256: str) -> str:
    """A digest (hex) as a URI (RFC 6920)."""
    value = base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode("ascii").rstrip("=")
    return f"ni:///sha-256;{value}"


def _against(
    value: float, limits: tuple[float, float], quantity: Callable[[float], Resource]
) -> Resource:
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
    """The report in words and one table, complete without any other element.

    Of a withdrawn one the words alone: nobody should read its numbers.
    """
    if analysis.standing == "withdrawn":
        return (
            '<div xmlns="http://www.w3.org/1999/xhtml">'
            f"<p>{escape(PANEL_CODE[1])}</p><p>{escape(conclusion)}</p></div>"
        )
    differential = analysis.differential
    rows = [_narrative_row(analysis, row) for row in reading_order(differential.classes)]
    rows.append(("Cells in the count", str(differential.total), "", "", ""))
    rows.append(("Nucleated cells found", str(differential.nucleated), "", "", ""))
    ratio = differential.me_ratio
    if differential.adequate and ratio is not None:
        limits = f"{ME_REFERENCE[0]:g} to {ME_REFERENCE[1]:g}"
        rows.append(("M:E ratio", f"{ratio:.2f}", "", limits, _in_words(ratio, ME_REFERENCE)))
    table = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    heads = ("Cell", "Cells", "Percent (95 % interval)", "Reference", "")
    return (
        '<div xmlns="http://www.w3.org/1999/xhtml">'
        f"<p>{escape(PANEL_CODE[1])}</p><p>{escape(conclusion)}</p>"
        "<table><thead><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr></thead>"
        f"<tbody>{table}</tbody></table>"
        f"<p>Percent of the nucleated cells in the count. Reference ranges: "
        f"{escape(REFERENCE_SOURCE)}.</p>"
        f"<p>Model {escape(analysis.model.name)} {escape(analysis.model.version)}: "
        f"{escape(analysis.model.intended_use)}</p></div>"
    )


def _narrative_row(analysis: Analysis, row: int) -> tuple[str, str, str, str, str]:
    differential = analysis.differential
    cell, count = CELL_TYPES[differential.classes[row]], str(int(differential.count[row]))
    if not differential.in_ndc[row] or not differential.adequate:
        return cell.name, count, "", "", ""
    percent = 100 * float(differential.share[row])
    low, high = 100 * differential.interval[row]
    said = f"{percent:.1f} % ({low:.1f} to {high:.1f})"
    limits = cell.reference_percent
    if limits is None:
        return cell.name, count, said, "", ""
    return cell.name, count, said, f"{limits[0]:g} to {limits[1]:g}", _in_words(percent, limits)


def _in_words(value: float, limits: tuple[float, float]) -> str:
    return "low" if value < limits[0] else "high" if value > limits[1] else ""


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


def _absent(code: str, display: str, why: str) -> Resource:
    return _concept(f"{TERMINOLOGY}/data-absent-reason", code, display) | {"text": why}


def _percent(value: float) -> Resource:
    return {"value": value, "unit": "%", "system": UCUM, "code": "%"}


def _cells(value: int) -> Resource:
    return {"value": value, "unit": "cells", "system": UCUM, "code": "{cells}"}


def _ratio(value: float) -> Resource:
    return {"value": value, "unit": "ratio", "system": UCUM, "code": "{ratio}"}
