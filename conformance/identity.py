"""Whether the documents of one analysis are of one patient, version, time, state and place."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from conformance.fhir_rules import part, parts, resources
from conformance.finding import Fault, Rule
from conformance.general_rules import is_tiled_full
from conformance.geometry import Matrix, matrix_of
from conformance.reading import content, first, items, numbers, text, whole
from conformance.report_rules import name_code
from conformance.result_set import ResultSet, is_slide, kind_of
from conformance.segmentation_rules import pixel_spacing_mm
from dicom_io.codes import REGION_AREA, WITHDRAWN
from models.records import Float64

Json = Mapping[str, Any]
# One analysis is written within this; FHIR carries milliseconds.
SAME_TIME = timedelta(seconds=1)
# Of the area, which the SR gives with six decimals.
SAME_AREA = 1e-3


def _written(results: ResultSet) -> list[Dataset]:
    return [each for each in results.objects if not is_slide(each)]


def _patients(results: ResultSet) -> Iterator[Fault]:
    said = {text(each, "PatientID") for each in results.objects}
    kinds = ", ".join(dict.fromkeys(kind_of(each) for each in results.objects))
    if len(said) > 1:
        yield Fault("PatientID", "The objects have different patient IDs.", kinds)
    for path, subject in _subjects(results):
        if said and str(subject.get("value", "")) not in said:
            yield Fault(
                f"{path}subject", "FHIR and the DICOM objects name different patients.", "FHIR, SR"
            )


def _subjects(results: ResultSet) -> Iterator[tuple[str, Json]]:
    for bundle in results.bundles:
        for kind in ("DiagnosticReport", "Observation"):
            for path, resource in resources(bundle, kind):
                identifier = part(part(resource, "subject"), "identifier")
                if identifier:
                    yield path, identifier


def _versions(results: ResultSet) -> Iterator[Fault]:
    said: dict[tuple[str, str], str] = {}
    for each in _written(results):
        device = (text(each, "Manufacturer"), text(each, "ManufacturerModelName"))
        version = text(each, "SoftwareVersions")
        if said.setdefault(device, version) != version:
            yield Fault(
                "SoftwareVersions",
                "The objects of one device are of different software versions.",
                text(each, "SOPInstanceUID"),
            )


def _times(results: ResultSet) -> Iterator[Fault]:
    reports = [when for each in results.of_kind("SR") if (when := content_time(each)) is not None]
    if len(reports) != 1:
        return
    for bundle in results.bundles:
        for path, report in resources(bundle, "DiagnosticReport"):
            issued = _instant(str(report.get("issued", "")))
            if issued is not None and abs(issued - reports[0]) > SAME_TIME:
                yield Fault(
                    f"{path}issued", "FHIR was issued at another time than the SR.", "FHIR, SR"
                )


def content_time(document: Dataset) -> datetime | None:
    """When an object was written; None where that, or the zone, is not said."""
    stamp = f"{text(document, 'ContentDate')}{text(document, 'ContentTime')[:6]}"
    try:
        return datetime.strptime(
            f"{stamp}{text(document, 'TimezoneOffsetFromUTC')}", "%Y%m%d%H%M%S%z"
        )
    except ValueError:
        return None


def _instant(written: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(written)
    except ValueError:
        return None
    return when.replace(microsecond=0).astimezone(UTC) if when.tzinfo is not None else None


def _states(results: ResultSet) -> Iterator[Fault]:
    reports = list(results.of_kind("SR"))
    flags = {text(each, "VerificationFlag") for each in reports}
    withdrawn = len(reports) == 1 and _is_withdrawn(reports[0])
    for bundle in results.bundles:
        for path, report in resources(bundle, "DiagnosticReport"):
            signed = str(report.get("status")) in {"final", "amended", "corrected", "appended"}
            if flags == {"UNVERIFIED"} and signed:
                yield Fault(
                    f"{path}status",
                    "The DiagnosticReport is final and the SR unverified.",
                    "FHIR, SR",
                )
            if flags == {"VERIFIED"} and str(report.get("status")) in {"partial", "preliminary"}:
                yield Fault(
                    f"{path}status",
                    "The SR is verified and the DiagnosticReport not final.",
                    "FHIR, SR",
                )
            if withdrawn and signed:
                yield Fault(
                    f"{path}status",
                    "The SR says that the result was withdrawn, the DiagnosticReport does not.",
                    "FHIR, SR",
                )


def _is_withdrawn(report: Dataset) -> bool:
    return any(
        _value_of(item) == (WITHDRAWN.value, WITHDRAWN.scheme_designator)
        for _, item in items(report)
    )


def _value_of(item: Dataset) -> tuple[str, str]:
    """(code value, scheme) that a coded content item has as its value."""
    value = first(item, "ConceptCodeSequence")
    return text(value, "CodeValue"), text(value, "CodingSchemeDesignator")


def _regions(results: ResultSet) -> Iterator[Fault]:
    told = [area for each in results.of_kind("SR") for area in _told_areas_mm2(each)]
    base = results.base_level()
    masks = list(results.of_kind("SEG"))
    if len(told) != 1 or len(masks) != 1 or base is None:
        return
    shown = shown_area_mm2(masks[0], base)
    if shown is not None and abs(shown - told[0]) > SAME_AREA * told[0]:
        yield Fault(
            "", f"The SEG shows {shown:.6f} mm², the SR states {told[0]:.6f} mm².", "SEG, SR"
        )


def _told_areas_mm2(report: Dataset) -> Iterator[float]:
    for _, item in items(report):
        if name_code(item) == (REGION_AREA.value, REGION_AREA.scheme_designator):
            for _, value in items(item):
                yield from numbers(value, "NumericValue")


def shown_area_mm2(document: Dataset, base: Dataset) -> float | None:
    """Area on the slide's base level that the first segment shows; None where it is not plain."""
    matrix, glass = matrix_of(document), matrix_of(base)
    mask = _mask(document)
    spacing = pixel_spacing_mm(base)
    if matrix is None or glass is None or mask is None:
        return None
    # The last pixels of a mask may stick out over the slide, so sides are cut at its edge.
    sides = [
        np.diff(_edges_px(matrix, glass, axis).clip(0, glass.size_px[axis])) for axis in (0, 1)
    ]
    return float(sides[1] @ mask @ sides[0]) * spacing[0] * spacing[1]


def _edges_px(matrix: Matrix, glass: Matrix, axis: int) -> Float64:
    """Where the mask's columns (axis 0) or rows (axis 1) begin and end in the slide's pixels."""
    corners = np.zeros((matrix.size_px[axis] + 1, 2))
    corners[:, axis] = np.arange(len(corners))
    return glass.to_px(matrix.to_mm(corners))[:, axis]


def _mask(document: Dataset) -> Float64 | None:
    """(H, W) of the first segment of a plainly stored, binary, full segmentation."""
    syntax = getattr(getattr(document, "file_meta", None), "TransferSyntaxUID", None)
    sizes = [
        whole(document, keyword)
        for keyword in ("TotalPixelMatrixRows", "TotalPixelMatrixColumns", "Rows", "Columns")
    ]
    plain = syntax == ExplicitVRLittleEndian and text(document, "SegmentationType") == "BINARY"
    if not plain or not all(sizes) or not is_tiled_full(document):
        return None
    height, width, rows, columns = (size or 1 for size in sizes)
    down, across = -(-height // rows), -(-width // columns)
    stored = np.frombuffer(content(document, "PixelData"), np.uint8)
    bits = np.unpackbits(stored, bitorder="little")[: down * across * rows * columns]
    if len(bits) < down * across * rows * columns or whole(document, "BitsAllocated") != 1:
        return None
    tiles = bits.reshape(down, across, rows, columns).swapaxes(1, 2)
    return tiles.reshape(down * rows, across * columns)[:height, :width].astype(np.float64)


def _named_objects(results: ResultSet) -> Iterator[Fault]:
    known = {text(each, "SOPInstanceUID") for each in results.objects}
    written = {text(each, "SOPInstanceUID") for each in _written(results)}
    for bundle in results.bundles:
        named = set()
        for path, provenance in resources(bundle, "Provenance"):
            for number, entity in enumerate(parts(provenance, "entity")):
                uid = _dicom_uid(entity)
                named.add(uid)
                if entity.get("role") == "derivation" and uid and uid not in known and written:
                    yield Fault(
                        f"{path}entity[{number}]",
                        f"Provenance names instance {uid}, which is not in the set.",
                        "FHIR, SR",
                    )


def _pdfs(results: ResultSet) -> Iterator[Fault]:
    """One file, if it lies in both; what it says in words is not read."""
    stored = {
        _without_padding(content(each, "EncapsulatedDocument")) for each in results.of_kind("PDF")
    }
    for bundle in results.bundles:
        for path, report in resources(bundle, "DiagnosticReport"):
            for number, form in enumerate(parts(report, "presentedForm")):
                if form.get("contentType") != "application/pdf" or not stored:
                    continue
                if _decoded(form) not in stored:
                    yield Fault(
                        f"{path}presentedForm[{number}]",
                        "The PDF in FHIR is not the one that is stored in the archive.",
                        "FHIR, PDF",
                    )


def _decoded(form: Json) -> bytes:
    try:
        return _without_padding(base64.b64decode(str(form.get("data", "")), validate=True))
    except ValueError:
        return b""


def _without_padding(document: bytes) -> bytes:
    """DICOM values have even lengths; a PDF ends in a line of its own anyhow."""
    return document.rstrip(b"\0\r\n")


def _dicom_uid(entity: Json) -> str:
    identifier = part(part(entity, "what"), "identifier")
    if identifier.get("system") != "urn:dicom:uid":
        return ""
    return str(identifier.get("value", "")).removeprefix("urn:oid:")


IDENTITY_RULES: tuple[Rule[ResultSet], ...] = (
    Rule("agree-patient", "error", "this kit", "One patient.", _patients),
    Rule("agree-version", "error", "this kit", "One software version a device.", _versions),
    Rule("agree-time", "error", "this kit", "One time.", _times),
    Rule("agree-status", "error", "FHIR R4 diagnostic-report-status", "One state.", _states),
    Rule("agree-regions", "error", "this kit", "One area.", _regions),
    Rule("agree-pdf", "error", "this kit", "One PDF.", _pdfs),
    Rule("agree-objects", "error", "this kit", "FHIR names these objects.", _named_objects),
)
