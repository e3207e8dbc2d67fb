"""What a differential's SR says (PS3.16 TID 1500): read back, compared, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_io.codes import (
    CELLS_FOUND,
    CELLS_IN_NDC,
    COUNT,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    ME_RATIO,
    QUALITY_FINDING,
    REGIONS,
    SHARE,
    SUFFICIENCY,
    SUFFICIENT,
    WITHDRAWN,
    cell_type_key,
)
from dicom_io.errors import InputError


@dataclass(frozen=True, slots=True)
class ReportContent:
    """What a report says.

    Attributes
    ----------
    study_uid, series_uid
        Of the slide.
    model_name, model_version, model_digest
    counts
        Cell type key → cells.
    percentages
        Cell type key → (percent of the NDC, low, high); types outside the NDC are not there.
    total, nucleated
        Cells in the NDC; with the unclassified ones.
    me_ratio
    adequate
    verification
        VerificationFlag.
    withdrawn
        Whether a person withdrew the result; then no number is there.
    """

    study_uid: str
    series_uid: str
    model_name: str
    model_version: str
    model_digest: str
    counts: Mapping[str, int]
    percentages: Mapping[str, tuple[float, float, float]]
    total: int
    nucleated: int
    me_ratio: float | None
    adequate: bool
    verification: str
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class ReportItem:
    """What one content item says.

    Attributes
    ----------
    value_type
    name
        Scheme and code of its concept; empty for items without one.
    said
        Number, code, text, UID or referenced SOP Instance UID; empty for names of persons and
        times, which archives spell in their own way.
    """

    value_type: str
    name: str
    said: str | float


def decode_report(document: Dataset) -> ReportContent:
    """Read a report of this node.

    Raises
    ------
    InputError
        When it is not one: the error names what is missing.
    """
    items = list(content_items(document))
    numbers = {_concept(item)[0]: item for item in items if item.ValueType == "NUM"}
    evaluations = {_concept(item)[0]: item for item in items if item.ValueType == "CODE"}
    withdrawn = _says(evaluations.get(QUALITY_FINDING.value), WITHDRAWN)
    texts = [(_concept(item)[0], str(item.TextValue)) for item in items if item.ValueType == "TEXT"]
    counts, percentages = _decoded_types(items)
    slide = _library_image(document, items)
    for code in (CELLS_IN_NDC, CELLS_FOUND):
        if code.value not in numbers and not withdrawn:
            raise InputError(
                f"SR {document.SOPInstanceUID} has no item {code.meaning}: "
                "it is not a differential count of this node."
            )
    return ReportContent(
        study_uid=slide[0],
        series_uid=slide[1],
        model_name=_text_of(texts, codes.DCM.AlgorithmName.value),
        model_version=_text_of(texts, codes.DCM.AlgorithmVersion.value),
        model_digest=_parameter(texts, "package_sha256"),
        counts=counts,
        percentages=percentages,
        total=int(_number(numbers, CELLS_IN_NDC) or 0),
        nucleated=int(_number(numbers, CELLS_FOUND) or 0),
        me_ratio=_number(numbers, ME_RATIO),
        adequate=_says(evaluations.get(SUFFICIENCY.value), SUFFICIENT),
        verification=str(document.VerificationFlag),
        withdrawn=withdrawn,
    )


def report_items(document: Dataset) -> list[ReportItem]:
    """Every content item of a report, in its order."""
    return [
        ReportItem(str(item.ValueType), ":".join(_concept(item)[::-1]).strip(":"), _said(item))
        for item in content_items(document)
    ]


def report_times(document: Dataset) -> tuple[datetime, datetime] | None:
    """(started, issued) of the analysis or review that a report of this node is of.

    Returns
    -------
    tuple or None
        UTC; None where the header does not say them.
    """
    zone = document.get("TimezoneOffsetFromUTC", "")
    stamps = (
        f"{document.get(f'{what}Date', '')}{document.get(f'{what}Time', '')}{zone}"
        for what in ("Series", "Content")
    )
    try:
        started, issued = (datetime.strptime(stamp, "%Y%m%d%H%M%S.%f%z") for stamp in stamps)
    except ValueError:
        return None
    return started.astimezone(UTC), issued.astimezone(UTC)


def content_items(container: Dataset) -> Iterator[Dataset]:
    """Every content item below one, or of a document, depth first."""
    for item in container.get("ContentSequence", []):
        yield item
        yield from content_items(item)


def _said(item: Dataset) -> str | float:
    if item.get("MeasuredValueSequence"):
        return _value(item)
    if item.get("ConceptCodeSequence"):
        return str(item.ConceptCodeSequence[0].CodeValue)
    if item.get("ReferencedSOPSequence"):
        return str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    return str(item.get("UID") or item.get("TextValue") or "").strip()


def _says(item: Dataset | None, code: CodedConcept) -> bool:
    return item is not None and bool(item.ConceptCodeSequence[0].CodeValue == code.value)


def _number(numbers: Mapping[str, Dataset], code: CodedConcept) -> float | None:
    return _value(numbers[code.value]) if code.value in numbers else None


def _decoded_types(
    items: list[Dataset],
) -> tuple[dict[str, int], dict[str, tuple[float, float, float]]]:
    numbers: dict[str, dict[str, float]] = {}
    for item in items:
        key = cell_type_key(*_concept(item)) if item.ValueType == "NUM" else None
        derivations = [
            child.ConceptCodeSequence[0].CodeValue
            for child in item.get("ContentSequence", [])
            if child.ValueType == "CODE" and _concept(child)[0] == codes.DCM.Derivation.value
        ]
        if key is not None and derivations:
            numbers.setdefault(key, {})[derivations[0]] = _value(item)
    counts = {key: int(row[COUNT.value]) for key, row in numbers.items() if COUNT.value in row}
    percentages = {
        key: (row[SHARE.value], row[INTERVAL_LOW.value], row[INTERVAL_HIGH.value])
        for key, row in numbers.items()
        if {SHARE.value, INTERVAL_LOW.value, INTERVAL_HIGH.value} <= row.keys()
    }
    return counts, percentages


def _concept(item: Dataset) -> tuple[str, str]:
    """(code value, scheme) of an item's name; empty for items without one."""
    name = item.get("ConceptNameCodeSequence")
    return (name[0].CodeValue, name[0].CodingSchemeDesignator) if name else ("", "")


def _value(item: Dataset) -> float:
    return float(item.MeasuredValueSequence[0].NumericValue)


def _text_of(texts: list[tuple[str, str]], code: str) -> str:
    return next((value for name, value in texts if name == code), "")


def _parameter(texts: list[tuple[str, str]], name: str) -> str:
    prefix = f"{name}="
    return next((v.removeprefix(prefix) for _, v in texts if v.startswith(prefix)), "")


def _library_image(document: Dataset, items: list[Dataset]) -> tuple[str, str]:
    """(study UID, series UID) of the slide: the evidence that holds the image library's image."""
    images = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in items
        if item.ValueType == "IMAGE" and _concept(item)[0] != REGIONS.value
    }
    for keyword in (
        "CurrentRequestedProcedureEvidenceSequence",
        "PertinentOtherEvidenceSequence",
    ):
        for study in document.get(keyword, []):
            for series in study.ReferencedSeriesSequence:
                for sop in series.ReferencedSOPSequence:
                    if sop.ReferencedSOPInstanceUID in images:
                        return study.StudyInstanceUID, series.SeriesInstanceUID
    raise InputError(f"SR {document.SOPInstanceUID} names no slide in its evidence.")
