"""Differential ↔ Comprehensive 3D SR, Measurement Report (PS3.16 TID 1500).

One measurement group (TID 1501) holds everything. For each cell type four numbers carry the type as
their concept name and say by their derivation which one they are: number of cells, percentage of
the nucleated differential count, and the bounds of its Wilson 95 % interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    CompositeContentItem,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_io.analysis import Analysis
from dicom_io.codes import (
    ALGORITHM_FAMILY,
    ANNOTATIONS,
    BONE_MARROW,
    CELLS,
    CELLS_FOUND,
    CELLS_IN_NDC,
    CHI_SQUARE,
    CONVERGED,
    CONVERGENCE,
    COUNT,
    FINDING,
    INSUFFICIENCY_REASON,
    INSUFFICIENT,
    INTENDED_USE,
    INTERVAL_HIGH,
    INTERVAL_LOW,
    LIGHT_MICROSCOPY,
    ME_DENOMINATOR,
    ME_NUMERATOR,
    ME_RATIO,
    NO_UNITS,
    NOT_CONVERGED,
    PERCENT,
    RATIO,
    REGION_AREA,
    REGIONS,
    REPORT_TITLE,
    SHARE,
    SQUARE_MM,
    SUFFICIENCY,
    SUFFICIENT,
    TILES,
    TILES_COUNTED,
    cell_type_code,
    cell_type_key,
)
from dicom_io.derived_uid import derive_uid
from dicom_io.errors import InputError
from dicom_io.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SOFTWARE_VERSION,
    finish,
    result_uid,
    series_description,
)
from dicom_io.segmentation import region_area_mm2
from dicom_io.source_header import source_header

SERIES_NUMBER = 9003


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


def encode_report(
    analysis: Analysis, annotation: Dataset | None, segmentation: Dataset | None
) -> Dataset:
    """Write the differential of an analysis as a structured report.

    Parameters
    ----------
    analysis
    annotation, segmentation
        The ANN and SEG it refers to; None where the analysis has no cell or no region.

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    header = source_header(analysis)
    content = MeasurementReport(
        observation_context=_observer(analysis),
        procedure_reported=LIGHT_MICROSCOPY,
        imaging_measurements=[_measurement_group(analysis, annotation, segmentation)],
        title=REPORT_TITLE,
        referenced_images=[header],
    )
    document = Comprehensive3DSR(
        evidence=[each for each in (header, annotation, segmentation) if each is not None],
        content=content[0],
        series_instance_uid=result_uid(analysis, "SR", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(analysis, "SR", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SERIAL_NUMBER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        series_description=series_description(analysis, "Differential count"),
    )
    finish(document, analysis)
    _settle_items(document, analysis)
    return document


def _observer(analysis: Analysis) -> ObservationContext:
    """The node as device observer (PS3.16 TID 1004)."""
    device = DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", MODEL_NAME),
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=SERIAL_NUMBER,
    )
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        )
    )


def _measurement_group(
    analysis: Analysis, annotation: Dataset | None, segmentation: Dataset | None
) -> MeasurementsAndQualitativeEvaluations:
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=result_uid(analysis, "SR", "tracking"), identifier="differential count"
        ),
        finding_type=FINDING,
        algorithm_id=AlgorithmIdentification(
            name=analysis.model.name,
            version=analysis.model.version,
            family=ALGORITHM_FAMILY,
            manufacturer=MANUFACTURER,
            parameters=[
                f"package_sha256={analysis.model.digest}",
                f"configuration_sha256={analysis.configuration_digest}",
            ],
        ),
        finding_sites=[FindingSite(BONE_MARROW)],
        measurements=[*_totals(analysis), *_by_type(analysis)],
        qualitative_evaluations=list(_evaluations(analysis)),
    )
    group[0].ContentSequence.extend(_texts(analysis))
    group[0].ContentSequence.extend(_references(annotation, segmentation))
    return group


def _totals(analysis: Analysis) -> Iterator[Measurement]:
    differential = analysis.differential
    yield Measurement(CELLS_IN_NDC, differential.total, CELLS)
    yield Measurement(CELLS_FOUND, differential.nucleated, CELLS)
    yield Measurement(TILES_COUNTED, differential.tiles, TILES)
    yield Measurement(REGION_AREA, _rounded(region_area_mm2(analysis)), SQUARE_MM)
    if differential.me_ratio is not None:
        yield Measurement(ME_RATIO, _rounded(differential.me_ratio), RATIO)
    if len(differential.chi_square):
        yield Measurement(CHI_SQUARE, _rounded(float(differential.chi_square[-1])), NO_UNITS)


def _by_type(analysis: Analysis) -> Iterator[Measurement]:
    differential = analysis.differential
    for row, key in enumerate(differential.classes):
        name = cell_type_code(key)
        yield Measurement(name, int(differential.count[row]), CELLS, derivation=COUNT)
        if not differential.in_ndc[row] or not differential.total:
            continue
        low, high = differential.interval[row]
        for derivation, share in (
            (SHARE, differential.share[row]),
            (INTERVAL_LOW, low),
            (INTERVAL_HIGH, high),
        ):
            yield Measurement(name, _rounded(100 * float(share)), PERCENT, derivation=derivation)


def _evaluations(analysis: Analysis) -> Iterator[QualitativeEvaluation]:
    differential = analysis.differential
    yield QualitativeEvaluation(SUFFICIENCY, SUFFICIENT if differential.adequate else INSUFFICIENT)
    converged = differential.converged_after is not None
    yield QualitativeEvaluation(CONVERGENCE, CONVERGED if converged else NOT_CONVERGED)
    for name, members in (
        (ME_NUMERATOR, differential.me_numerator),
        (ME_DENOMINATOR, differential.me_denominator),
    ):
        for key in members:
            yield QualitativeEvaluation(name, cell_type_code(key))


def _texts(analysis: Analysis) -> Iterator[TextContentItem]:
    yield _text(INTENDED_USE, analysis.model.intended_use)
    if analysis.model.demonstration:
        yield _text(INTENDED_USE, "Demonstration model, not for clinical use.")
    for reason in analysis.differential.reasons:
        yield _text(INSUFFICIENCY_REASON, reason)


def _text(name: CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name, value, RelationshipTypeValues.CONTAINS)


def _references(annotation: Dataset | None, segmentation: Dataset | None) -> Iterator[Dataset]:
    if annotation is not None:
        yield CompositeContentItem(
            name=ANNOTATIONS,
            referenced_sop_class_uid=annotation.SOPClassUID,
            referenced_sop_instance_uid=annotation.SOPInstanceUID,
            relationship_type=RelationshipTypeValues.CONTAINS,
        )
    if segmentation is not None:
        yield ImageContentItem(
            name=REGIONS,
            referenced_sop_class_uid=segmentation.SOPClassUID,
            referenced_sop_instance_uid=segmentation.SOPInstanceUID,
            relationship_type=RelationshipTypeValues.CONTAINS,
        )


def _rounded(value: float) -> float:
    """To six decimals: a decimal string holds 16 characters (PS3.5 6.2)."""
    return round(value, 6)


def _settle_items(document: Dataset, analysis: Analysis) -> None:
    """The analysis' time instead of the moment of encoding; whole numbers without decimals."""
    stamp = analysis.finished.strftime("%Y%m%d%H%M%S")
    for item in _items(document):
        if "ObservationDateTime" in item:
            item.ObservationDateTime = stamp
        for measured in item.get("MeasuredValueSequence", []):
            if float(measured.NumericValue).is_integer():
                measured.NumericValue = str(int(measured.NumericValue))


def _items(container: Dataset) -> Iterator[Dataset]:
    for item in container.get("ContentSequence", []):
        yield item
        yield from _items(item)


def decode_report(document: Dataset) -> ReportContent:
    """Read a report of this node.

    Raises
    ------
    InputError
        When it is not one: the error names what is missing.
    """
    items = list(_items(document))
    numbers = {_concept(item)[0]: item for item in items if item.ValueType == "NUM"}
    evaluations = {_concept(item)[0]: item for item in items if item.ValueType == "CODE"}
    texts = [(_concept(item)[0], str(item.TextValue)) for item in items if item.ValueType == "TEXT"]
    counts, percentages = _decoded_types(items)
    slide = _library_image(document, items)
    for code in (CELLS_IN_NDC, CELLS_FOUND):
        if code.value not in numbers:
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
        total=int(_value(numbers[CELLS_IN_NDC.value])),
        nucleated=int(_value(numbers[CELLS_FOUND.value])),
        me_ratio=_value(numbers[ME_RATIO.value]) if ME_RATIO.value in numbers else None,
        adequate=SUFFICIENCY.value in evaluations
        and evaluations[SUFFICIENCY.value].ConceptCodeSequence[0].CodeValue == SUFFICIENT.value,
        verification=str(document.VerificationFlag),
    )


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
