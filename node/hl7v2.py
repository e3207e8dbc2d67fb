"""The report as an HL7 v2.5.1 ORU^R01, for EHRs that take no FHIR.

Numbers, codes, ranges and flags are those of the FHIR bundle, read from it, so that both say the
same. One OBR is the panel; each Observation is an OBX, its components follow it under a sub-ID of
the same number (OBX-4 ``3``, ``3.1``, ``3.2``). An unreviewed result has the status P (preliminary,
HL7 table 0085), a reviewed one F, one that was corrected after it was final C, and a withdrawn one
deletes what was sent (D; its OBR has C, for table 0123 knows no D); a value that is not given has X
and its reason in a note. The PDF is the last OBX (data type ED). The message control ID derives
from the report and its revision, so that a receiver recognises a message that comes twice.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.codes import DOCUMENT_TITLE, LOCAL_SCHEME, LOCAL_SYSTEM_URI
from dicom_io.provenance import MODEL_NAME
from dicom_io.source_header import source_header, text_of
from node.ehr_records import Resource, report_in

MEDIA_TYPE = "x-application/hl7-v2+er7"
# HL7 table 0396 (coding systems).
_SCHEMES = {
    "http://loinc.org": "LN",
    "http://snomed.info/sct": "SCT",
    "http://unitsofmeasure.org": "UCUM",
    LOCAL_SYSTEM_URI: LOCAL_SCHEME,
}
# FHIR status → HL7 table 0085 (OBX-11); a report of status partial is preliminary there.
_STATUS = {
    "registered": "I",
    "partial": "P",
    "preliminary": "P",
    "final": "F",
    "amended": "C",
    "corrected": "C",
    "entered-in-error": "D",
}
_DELETED = ("entered-in-error",)
# HL7 table 0123 (OBR-25) has no code for deletion, which is a correction to results.
_REPORT_STATUS = _STATUS | {"entered-in-error": "C"}
# Representation of a name (table 0465) by the group of letters of a DICOM name.
_NAME_GROUPS = ("A", "I", "P")
# In the order in which they have to be replaced.
_ESCAPES = (("\\", "\\E\\"), ("|", "\\F\\"), ("^", "\\S\\"), ("~", "\\R\\"), ("&", "\\T\\"))

Parts = Sequence[str | Sequence[str]]


def encode_oru(analysis: Analysis, bundle: Mapping[str, Any], pdf: bytes) -> str:
    """Write a report as one message, segments ended by carriage returns.

    Parameters
    ----------
    analysis
    bundle
        What :func:`node.fhir.build_bundle` made of it.
    pdf
        The report as a file; empty for none.

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    header = source_header(analysis)
    report = report_in(bundle)["resource"]
    stamp = _stamp(analysis.issued)
    segments = [
        _message_header(report, analysis.revision, stamp),
        _patient(header),
        _order(header, report, stamp),
        *_notes(report.get("conclusion", "")),
        *_numbered(
            [
                *_observations(_results(bundle, report), stamp),
                *_files(analysis, pdf, _STATUS[report["status"]], stamp),
            ]
        ),
    ]
    return "".join(f"{segment}\r" for segment in segments)


def _numbered(segments: Sequence[str]) -> Iterator[str]:
    """Set IDs of the OBX among `segments`, which are written without."""
    number = 0
    for segment in segments:
        if segment.startswith("OBX|"):
            number += 1
            yield f"OBX|{number}|{segment.removeprefix('OBX|')}"
        else:
            yield segment


def control_id(report: Mapping[str, Any], revision: int) -> str:
    """Message control ID: 20 signs (MSH-10 of v2.5.1) for a report, its status and revision."""
    told = f"{report['identifier'][0]['value']}|{report['status']}|{revision}"
    return base64.b32encode(hashlib.sha256(told.encode()).digest()).decode("ascii")[:20]


def _message_header(report: Resource, revision: int, stamp: str) -> str:
    fields: Parts = [
        MODEL_NAME.upper(), "", "", "", stamp, "", ("ORU", "R01", "ORU_R01"),
        control_id(report, revision),
        "P", "2.5.1", "", "", "AL", "NE", "", "UNICODE UTF-8",
    ]  # fmt: skip
    return f"MSH|^~\\&|{_joined(fields)}"


def _patient(header: Dataset) -> str:
    issuer = text_of(header, "IssuerOfPatientID")
    number = (text_of(header, "PatientID"), "", "", issuer, "MR")
    sex = text_of(header, "PatientSex")
    fields = [
        "PID", "1", "", _component(number) if number[0] else "", "",
        "~".join(map(_component, _names(text_of(header, "PatientName")))), "",
        _escaped(text_of(header, "PatientBirthDate")), _escaped(sex),
    ]  # fmt: skip
    return "|".join(fields).rstrip("|")


def _names(name: str) -> Iterator[Sequence[str]]:
    """XPN of each group of a DICOM name: family, given, middle, suffix, prefix."""
    for group, letters in zip(name.split("="), _NAME_GROUPS, strict=False):
        parts = [part.strip() for part in group.split("^")]
        family, given, middle, prefix, suffix = (parts + [""] * 5)[:5]
        if any(parts):
            yield family, given, middle, suffix, prefix, "", "L", letters


def _order(header: Dataset, report: Resource, stamp: str) -> str:
    code = _coded(report["code"])
    scanned = str(report.get("effectiveDateTime", ""))
    return "OBR|" + _joined(
        [
            "1", "", (report["identifier"][0]["value"].removeprefix("urn:oid:"), MODEL_NAME), code,
            "", "", _fhir_stamp(scanned), "", "", "", "", "", "", "",
            "", "", "", text_of(header, "AccessionNumber"), "", "", "", stamp, "", "LAB",
            _REPORT_STATUS[report["status"]],
        ]
    )  # fmt: skip


def _results(bundle: Mapping[str, Any], report: Resource) -> Iterator[Resource]:
    """The Observations that hold a value, in the order of the report."""
    found = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    for result in report["result"]:
        observation = found[result["reference"]]
        if "hasMember" not in observation:
            yield observation


def _observations(results: Iterator[Resource], stamp: str) -> Iterator[str]:
    for number, observation in enumerate(results, start=1):
        yield _value(str(number), observation, observation["status"], stamp)
        yield from _notes(observation.get("dataAbsentReason", {}).get("text", ""))
        for part, component in enumerate(observation.get("component", []), start=1):
            yield _value(f"{number}.{part}", component, observation["status"], stamp)


def _value(sub_id: str, observed: Resource, status: str, stamp: str) -> str:
    quantity = observed.get("valueQuantity")
    unit = (quantity["code"], quantity["unit"], "UCUM") if quantity else ""
    return "OBX|" + _joined(
        [
            "NM", _coded(observed["code"]), sub_id,
            _number(quantity["value"]) if quantity else "", unit, _range(observed), _flag(observed),
            "", "", _STATUS[status] if quantity or status in _DELETED else "X", "", "", stamp,
        ]
    )  # fmt: skip


def _range(observed: Resource) -> str:
    for limits in observed.get("referenceRange", []):
        return f"{_number(limits['low']['value'])}-{_number(limits['high']['value'])}"
    return ""


def _flag(observed: Resource) -> str:
    for interpretation in observed.get("interpretation", []):
        return str(interpretation["coding"][0]["code"])
    return ""


def _number(value: float) -> str:
    """Without exponent, which NM does not know."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _files(analysis: Analysis, pdf: bytes, status: str, stamp: str) -> Iterator[str]:
    study = ("113014", "DICOM Study", "DCM")
    uid = analysis.slide.study_uid
    yield "OBX|" + _joined(["ST", study, "", uid, *[""] * 5, status, "", "", stamp])
    if pdf:
        title = (DOCUMENT_TITLE.value, DOCUMENT_TITLE.meaning, "LN")
        data = (MODEL_NAME, "AP", "PDF", "Base64", base64.b64encode(pdf).decode("ascii"))
        yield "OBX|" + _joined(["ED", title, "", data, *[""] * 5, status, "", "", stamp])


def _notes(text: str) -> Iterator[str]:
    if text:
        yield "NTE|" + _joined(["1", "L", text])


def _coded(concept: Resource) -> Sequence[str]:
    """CWE: the first two codings."""
    told: list[str] = []
    for coding in concept["coding"][:2]:
        display = coding.get("display") or concept.get("text", "")
        told += [coding["code"], display, _SCHEMES[coding["system"]]]
    return told


def _joined(fields: Parts) -> str:
    return "|".join(
        _escaped(field) if isinstance(field, str) else _component(field) for field in fields
    ).rstrip("|")


def _component(parts: Sequence[str]) -> str:
    return "^".join(map(_escaped, parts)).rstrip("^")


def _escaped(text: str) -> str:
    """Delimiters as v2 escapes them (2.7.1); line ends become blanks, for they end segments."""
    for sign, escape in _ESCAPES:
        text = text.replace(sign, escape)
    return " ".join(text.splitlines())


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y%m%d%H%M%S") + "+0000"


def _fhir_stamp(text: str) -> str:
    """``2026-07-04T10:11:12+02:00`` → ``20260704101112+0200``."""
    day, _, moment = text.partition("T")
    return day.replace("-", "") + moment.replace(":", "")
