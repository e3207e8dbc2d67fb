"""Differential → Comprehensive 3D SR, Measurement Report (PS3.16 TID 1500).

One measurement group (TID 1501) holds everything, in the order of a marrow report: totals, M:E,
one type after the other, then how it was counted. For each cell type four numbers carry the type as
their concept name and say by their derivation (TID 1419) which one they are: number of cells,
percentage of the nucleated differential count, and the bounds of its Wilson 95 % interval. The
percentage carries its reference range (TID 312) and how it lies to it, unless the count does not
suffice. A group or ROI per cell is what TID 1420 would infer the numbers from; a slide has 10⁵ of
them, so the ANN holds them and the report refers to it.

A revision that a person signed is verified, names its observer, and the report before it as
predecessor. One that was withdrawn says so, and holds no number: a receiver that takes numbers
without looking at anything else finds none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    CompositeContentItem,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    ImageContentItem,
    Measurement,
    MeasurementProperties,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    NormalRangeProperties,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SubjectContext,
    SubjectContextSpecimen,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from dicom_io.analysis import Analysis, Signature
from dicom_io.codes import (
    ABNORMALLY_HIGH,
    ABNORMALLY_LOW,
    ALGORITHM_FAMILY,
    ANNOTATIONS,
    BONE_MARROW,
    CELLS,
    CELLS_FOUND,
    CELLS_IN_NDC,
    CHI_SQUARE,
    CHI_SQUARE_LIMIT,
    CONVERGED,
    CONVERGED_AFTER,
    CONVERGENCE,
    COUNT,
    DEMONSTRATION_MODEL,
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
    NO_ERYTHROID_CELLS,
    NO_QUALITY_ISSUE,
    NO_UNITS,
    NORMAL,
    NORMAL_RANGE_HIGH,
    NORMAL_RANGE_LOW,
    NOT_CONVERGED,
    ORIGIN_UNKNOWN,
    PERCENT,
    QUALITY_FINDING,
    RATIO,
    REGION_AREA,
    REGIONS,
    REPORT_TITLE,
    REVIEW_REASON,
    SHARE,
    SQUARE_MM,
    SUFFICIENCY,
    SUFFICIENT,
    TILES,
    TILES_COUNTED,
    WITHDRAWN,
    cell_type_code,
)
from dicom_io.derived_uid import derive_uid
from dicom_io.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SOFTWARE_VERSION,
    finish,
    lasting_uid,
    result_uid,
    series_description,
    zone_of,
)
from dicom_io.report_content import content_items
from dicom_io.segmentation import region_area_mm2
from dicom_io.source_header import source_header
from models.cell_types import CELL_TYPES, ME_REFERENCE, REFERENCE_SOURCE, reading_order
from models.records import Differential

SERIES_NUMBER = 9003


def encode_report(
    analysis: Analysis,
    annotation: Dataset | None,
    segmentation: Dataset | None,
    predecessors: Sequence[Dataset] = (),
) -> Dataset:
    """Write the differential of an analysis as a structured report.

    Parameters
    ----------
    analysis
        Without a signature it is an unreviewed result: unverified and preliminary.
    annotation, segmentation
        The ANN and SEG it refers to; None where the analysis has no cell or no region.
    predecessors
        Reports that this one replaces (PS3.3 C.17.2, Predecessor Documents Sequence).

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    header, signature = source_header(analysis), analysis.signature
    _, series_uid, uid = report_place(analysis)
    content = MeasurementReport(
        observation_context=_context(header, analysis),
        procedure_reported=LIGHT_MICROSCOPY,
        imaging_measurements=[_measurement_group(analysis, annotation, segmentation)],
        title=REPORT_TITLE,
        referenced_images=[header],
    )
    document = Comprehensive3DSR(
        evidence=[each for each in (header, annotation, segmentation) if each is not None],
        content=content[0],
        series_instance_uid=series_uid,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SERIAL_NUMBER,
        is_complete=True,
        is_final=signature is not None,
        is_verified=signature is not None,
        verifying_observer_name=signature.name if signature else None,
        verifying_organization=signature.organization if signature else None,
        previous_versions=list(predecessors) or None,
        series_description=series_description(analysis, "Differential count"),
    )
    if signature is not None:
        stamp = signature.at.astimezone(zone_of(header)).strftime("%Y%m%d%H%M%S")
        document.VerifyingObserverSequence[0].VerificationDateTime = stamp
    finish(document, analysis)
    _settle_items(document, analysis)
    return document


def report_place(analysis: Analysis) -> tuple[UID, UID, UID]:
    """(study, series, instance) UIDs of the report of an analysis."""
    return (
        UID(analysis.slide.study_uid),
        result_uid(analysis, "SR", "series"),
        result_uid(analysis, "SR", "instance"),
    )


def tracking_uid(analysis: Analysis) -> UID:
    """Tracking UID of the measurement group: that of one finding in all its revisions."""
    return lasting_uid(analysis, "SR", "tracking")


def _context(header: Dataset, analysis: Analysis) -> ObservationContext:
    """The node as device observer (PS3.16 TID 1004), the specimen as subject (TID 1009).

    Who changed cells observed too (TID 1003); who only verified is named in the header.
    """
    device = DeviceObserverIdentifyingAttributes(
        uid=derive_uid("device", MODEL_NAME),
        name=MODEL_NAME,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=SERIAL_NUMBER,
    )
    return ObservationContext(
        observer_person_context=_person(analysis.signature) if analysis.by_hand else None,
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device, observer_identifying_attributes=device
        ),
        subject_context=_subject(header),
    )


def _person(signature: Signature | None) -> ObserverContext | None:
    if signature is None:
        return None
    return ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=PersonObserverIdentifyingAttributes(
            name=signature.name, organization_name=signature.organization
        ),
    )


def _subject(header: Dataset) -> SubjectContext | None:
    """The slide's only specimen; several are not told apart by a count of the whole slide."""
    specimens = header.get("SpecimenDescriptionSequence") or []
    if len(specimens) != 1:
        return None
    return SubjectContext(
        subject_class=codes.DCM.Specimen,
        subject_class_specific_context=SubjectContextSpecimen(
            uid=specimens[0].SpecimenUID,
            identifier=specimens[0].SpecimenIdentifier,
            container_identifier=header.ContainerIdentifier,
        ),
    )


def _measurement_group(
    analysis: Analysis, annotation: Dataset | None, segmentation: Dataset | None
) -> MeasurementsAndQualitativeEvaluations:
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=tracking_uid(analysis), identifier="differential count"
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
        measurements=_measured(analysis),
        qualitative_evaluations=list(_evaluations(analysis)),
    )
    group[0].ContentSequence.extend(_texts(analysis))
    group[0].ContentSequence.extend(_references(annotation, segmentation))
    return group


def _measured(analysis: Analysis) -> list[Measurement]:
    if analysis.standing == "withdrawn":
        return []
    return [*_totals(analysis), *_by_type(analysis), *_counting(analysis)]


def _totals(analysis: Analysis) -> Iterator[Measurement]:
    differential = analysis.differential
    yield Measurement(CELLS_IN_NDC, differential.total, CELLS)
    yield Measurement(CELLS_FOUND, differential.nucleated, CELLS)
    if differential.me_ratio is not None:
        properties = _against(differential, differential.me_ratio, ME_REFERENCE, RATIO)
        value = _rounded(differential.me_ratio)
        yield Measurement(ME_RATIO, value, RATIO, properties=properties)


def _by_type(analysis: Analysis) -> Iterator[Measurement]:
    differential = analysis.differential
    for row in reading_order(differential.classes):
        key = differential.classes[row]
        name = cell_type_code(key)
        yield Measurement(name, int(differential.count[row]), CELLS, derivation=COUNT)
        if not differential.in_ndc[row] or not differential.total:
            continue
        low, high = (100 * float(bound) for bound in differential.interval[row])
        percent = 100 * float(differential.share[row])
        limits = CELL_TYPES[key].reference_percent
        properties = _against(differential, percent, limits, PERCENT)
        yield Measurement(name, _rounded(percent), PERCENT, derivation=SHARE, properties=properties)
        yield Measurement(name, _rounded(low), PERCENT, derivation=INTERVAL_LOW)
        yield Measurement(name, _rounded(high), PERCENT, derivation=INTERVAL_HIGH)


def _against(
    differential: Differential,
    value: float,
    limits: tuple[float, float] | None,
    unit: CodedConcept,
) -> MeasurementProperties | None:
    """Reference range and how a value lies to it; None where the count does not suffice."""
    if limits is None or not differential.adequate:
        return None
    low, high = limits
    return MeasurementProperties(
        normality=ABNORMALLY_LOW if value < low else ABNORMALLY_HIGH if value > high else NORMAL,
        normal_range_properties=NormalRangeProperties(
            values=[
                NumContentItem(
                    name, limit, unit, relationship_type=RelationshipTypeValues.HAS_PROPERTIES
                )
                for name, limit in ((NORMAL_RANGE_LOW, low), (NORMAL_RANGE_HIGH, high))
            ],
            authority=REFERENCE_SOURCE,
        ),
    )


def _counting(analysis: Analysis) -> Iterator[Measurement]:
    differential = analysis.differential
    yield Measurement(TILES_COUNTED, differential.tiles, TILES)
    yield Measurement(REGION_AREA, _rounded(region_area_mm2(analysis)), SQUARE_MM)
    if len(differential.chi_square):
        yield Measurement(CHI_SQUARE, _rounded(float(differential.chi_square[-1])), NO_UNITS)
    yield Measurement(CHI_SQUARE_LIMIT, differential.chi_square_threshold, NO_UNITS)
    if differential.converged_after is not None:
        yield Measurement(CONVERGED_AFTER, differential.converged_after, TILES)


def _evaluations(analysis: Analysis) -> Iterator[QualitativeEvaluation]:
    if analysis.standing == "withdrawn":
        yield QualitativeEvaluation(QUALITY_FINDING, WITHDRAWN)
        return
    differential = analysis.differential
    yield QualitativeEvaluation(SUFFICIENCY, SUFFICIENT if differential.adequate else INSUFFICIENT)
    converged = differential.converged_after is not None
    yield QualitativeEvaluation(CONVERGENCE, CONVERGED if converged else NOT_CONVERGED)
    for finding in _quality_findings(analysis) or (NO_QUALITY_ISSUE,):
        yield QualitativeEvaluation(QUALITY_FINDING, finding)
    for name, members in (
        (ME_NUMERATOR, differential.me_numerator),
        (ME_DENOMINATOR, differential.me_denominator),
    ):
        for key in members:
            yield QualitativeEvaluation(name, cell_type_code(key))


def _quality_findings(analysis: Analysis) -> tuple[CodedConcept, ...]:
    """What a reader has to know before trusting the numbers."""
    differential = analysis.differential
    said = {
        INSUFFICIENT: not differential.adequate,
        NOT_CONVERGED: differential.converged_after is None,
        NO_ERYTHROID_CELLS: differential.me_ratio is None,
        DEMONSTRATION_MODEL: analysis.model.demonstration,
        ORIGIN_UNKNOWN: "TotalPixelMatrixOriginSequence" not in analysis.slide.header,
    }
    return tuple(finding for finding, holds in said.items() if holds)


def _texts(analysis: Analysis) -> Iterator[TextContentItem]:
    if analysis.signature is not None and analysis.signature.reason:
        yield _text(REVIEW_REASON, analysis.signature.reason)
    yield _text(INTENDED_USE, analysis.model.intended_use)
    if analysis.model.demonstration:
        yield _text(INTENDED_USE, "Demonstration model, not for clinical use.")
    if analysis.standing != "withdrawn":  # the reasons hold numbers
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
    zone = zone_of(analysis.slide.header)
    stamp = analysis.finished.astimezone(zone).strftime("%Y%m%d%H%M%S")
    for item in content_items(document):
        if "ObservationDateTime" in item:
            item.ObservationDateTime = stamp
        for measured in item.get("MeasuredValueSequence", []):
            if float(measured.NumericValue).is_integer():
                measured.NumericValue = str(int(measured.NumericValue))
