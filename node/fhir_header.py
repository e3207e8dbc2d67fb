"""What a slide's header says about patient, specimen, order and time, in FHIR.

All are referred to by identifier, and named as people read them. What the header does not say, or
not in a way that FHIR can carry, is left out: nothing is made up.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from pydicom.dataset import Dataset

from dicom_io.source_header import text_of

Resource = dict[str, Any]

_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
_URI = re.compile(r"(urn|https?):[^\s]+")
_ISO_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]*))+")
_ZONE = re.compile(r"[+-](0[0-9]|1[0-4])[0-5][0-9]")


def context_of(header: Dataset) -> Resource:
    """``subject``, ``specimen`` and ``effectiveDateTime`` of an Observation."""
    context: Resource = _effective(header)
    patient_id = text_of(header, "PatientID")
    if patient_id:
        context["subject"] = {"type": "Patient", "identifier": _patient(patient_id, header)}
        name = display_name(text_of(header, "PatientName"))
        if name:
            context["subject"]["display"] = name
    specimens = header.get("SpecimenDescriptionSequence") or [Dataset()]
    specimen_id = text_of(specimens[0], "SpecimenIdentifier")
    if specimen_id:
        context["specimen"] = {"type": "Specimen", "identifier": {"value": specimen_id}}
        description = text_of(specimens[0], "SpecimenShortDescription")
        if description:
            context["specimen"]["display"] = description
    return context


def display_name(name: str) -> str:
    """A person name (PS3.5 6.2.1) as people read it, every group of letters that it has.

    ``"Yamada^Tarou=山田^太郎=やまだ^たろう"`` → ``"Yamada, Tarou (山田, 太郎; やまだ, たろう)"``.
    """
    said = []
    for group in name.split("="):
        family, *others = (part.strip() for part in group.split("^"))
        said.append(", ".join(filter(None, (family, " ".join(filter(None, others))))))
    first, *more = [group for group in said if group] or [""]
    return f"{first} ({'; '.join(more)})" if more else first


def report_context_of(header: Dataset) -> Resource:
    """The same of a DiagnosticReport, which may have several specimens, and its order."""
    context = context_of(header)
    if "specimen" in context:
        context["specimen"] = [context["specimen"]]
    accession = text_of(header, "AccessionNumber")
    if accession:
        kind = {
            "coding": [{"system": f"{_TERMINOLOGY}/v2-0203", "code": "ACSN"}],
            "text": "Accession number",
        }
        context["basedOn"] = [
            {"type": "ServiceRequest", "identifier": {"type": kind, "value": accession}}
        ]
    return context


def _patient(patient_id: str, header: Dataset) -> Resource:
    """An identifier; an issuer that is no URI is named as assigner."""
    issuer = text_of(header, "IssuerOfPatientID")
    for qualifiers in header.get("IssuerOfPatientIDQualifiersSequence") or []:
        oid = text_of(qualifiers, "UniversalEntityID")
        if text_of(qualifiers, "UniversalEntityIDType") == "ISO" and _ISO_OID.fullmatch(oid):
            return {"system": f"urn:oid:{oid}", "value": patient_id}
    if _URI.fullmatch(issuer):
        return {"system": issuer, "value": patient_id}
    return {"value": patient_id} | ({"assigner": {"display": issuer}} if issuer else {})


def _effective(header: Dataset) -> Resource:
    """When the slide was scanned: with a time of day only where its zone is known."""
    stamp = text_of(header, "AcquisitionDateTime") or text_of(header, "StudyDate")
    zone = stamp[-5:] if _ZONE.fullmatch(stamp[-5:]) else text_of(header, "TimezoneOffsetFromUTC")
    day = _parsed(stamp[:8], "%Y%m%d")
    moment = _parsed(stamp[:14], "%Y%m%d%H%M%S")
    if day is None:  # said to be unknown, because US Core asks for it
        return {"_effectiveDateTime": {"extension": [{"url": _ABSENT, "valueCode": "unknown"}]}}
    if moment is None or not _ZONE.fullmatch(zone):
        return {"effectiveDateTime": f"{day:%Y-%m-%d}"}
    return {"effectiveDateTime": f"{moment:%Y-%m-%dT%H:%M:%S}{zone[:3]}:{zone[3:]}"}


def _parsed(stamp: str, pattern: str) -> datetime | None:
    whole = {"%Y%m%d": 8, "%Y%m%d%H%M%S": 14}[pattern]
    if len(stamp) != whole or not stamp.isdigit():
        return None
    try:
        return datetime.strptime(stamp, pattern)
    except ValueError:
        return None
