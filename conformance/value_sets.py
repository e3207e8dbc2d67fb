"""Enumerated values of PS3.3: attribute → what it may be, and where that stands."""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    MicroscopyBulkSimpleAnnotationsStorage,
    ParametricMapStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)

REPORTS: tuple[str, ...] = (
    BasicTextSRStorage,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
)
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"  # not in pydicom 3.0
SEGMENTATIONS: tuple[str, ...] = (SegmentationStorage, LABEL_MAP)


@dataclass(frozen=True, slots=True)
class Enumerated:
    """What an attribute may be.

    Attributes
    ----------
    values
    source
        Section of the standard.
    only
        SOP classes that it holds for; empty for all.
    number
        Which of several values, counted from 1; 0 for each of them.
    """

    values: frozenset[str]
    source: str
    only: tuple[str, ...] = ()
    number: int = 0


def _one_of(values: str, source: str, only: tuple[str, ...] = (), number: int = 0) -> Enumerated:
    return Enumerated(frozenset(values.split("|")), f"PS3.3 {source}", only, number)


_ANN: tuple[str, ...] = (MicroscopyBulkSimpleAnnotationsStorage,)
_SLIDE: tuple[str, ...] = (VLWholeSlideMicroscopyImageStorage,)
ENUMERATED: dict[str, tuple[Enumerated, ...]] = {
    "AnnotationAppliesToAllOpticalPaths": (_one_of("YES|NO", "C.37.1.2"),),
    "AnnotationAppliesToAllZPlanes": (_one_of("YES|NO", "C.37.1.2"),),
    "AnnotationCoordinateType": (_one_of("2D|3D", "C.37.1.2"),),
    "AnnotationGroupGenerationType": (_one_of("AUTOMATIC|SEMIAUTOMATIC|MANUAL", "C.37.1.2"),),
    "BurnedInAnnotation": (_one_of("YES|NO", "C.7.6.1"),),
    "CompletionFlag": (_one_of("PARTIAL|COMPLETE", "C.17.2"),),
    "ContinuityOfContent": (_one_of("SEPARATE|CONTINUOUS", "C.18.8"),),
    "DimensionOrganizationType": (_one_of("3D|3D_TEMPORAL|TILED_FULL|TILED_SPARSE", "C.7.6.17"),),
    "GraphicType": (
        _one_of("POINT|POLYLINE|POLYGON|ELLIPSE|RECTANGLE", "C.37.1.2", _ANN),
        _one_of(
            "POINT|MULTIPOINT|POLYLINE|CIRCLE|ELLIPSE|POLYGON|ELLIPSOID",
            "C.18.6 and C.18.9",
            REPORTS,
        ),
    ),
    "ImageType": (
        _one_of("ORIGINAL|DERIVED", "C.8.12.4.1.1", _SLIDE, 1),
        _one_of("PRIMARY", "C.8.12.4.1.1", _SLIDE, 2),
        _one_of("VOLUME|LABEL|OVERVIEW|THUMBNAIL", "C.8.12.4.1.1", _SLIDE, 3),
        _one_of("NONE|RESAMPLED", "C.8.12.4.1.1", _SLIDE, 4),
        _one_of("DERIVED", "C.8.20.2", SEGMENTATIONS, 1),
        _one_of("PRIMARY", "C.8.20.2", SEGMENTATIONS, 2),
    ),
    "LossyImageCompression": (_one_of("00|01", "C.7.6.1.1.5"),),
    "Modality": (
        _one_of("ANN", "C.37.1.1", _ANN),
        _one_of("SM", "C.8.12.3", _SLIDE),
        _one_of("SR", "C.17.1", REPORTS),
        _one_of("SEG", "C.8.20.1", SEGMENTATIONS),
    ),
    "PatientSex": (_one_of("M|F|O", "C.7.1.1"),),
    "PixelOriginInterpretation": (_one_of("FRAME|VOLUME", "C.37.1.2 and C.18.6"),),
    "PreliminaryFlag": (_one_of("PRELIMINARY|FINAL", "C.17.2"),),
    "RelationshipType": (
        _one_of(
            "CONTAINS|HAS OBS CONTEXT|HAS ACQ CONTEXT|HAS CONCEPT MOD|HAS PROPERTIES|"
            "INFERRED FROM|SELECTED FROM",
            "C.17.3.2.4",
        ),
    ),
    "SegmentAlgorithmType": (_one_of("AUTOMATIC|SEMIAUTOMATIC|MANUAL", "C.8.20.2"),),
    "SegmentationFractionalType": (_one_of("PROBABILITY|OCCUPANCY", "C.8.20.2"),),
    "SegmentationType": (_one_of("BINARY|FRACTIONAL|LABELMAP", "C.8.20.2", SEGMENTATIONS),),
    "SegmentsOverlap": (_one_of("YES|UNDEFINED|NO", "C.8.20.2"),),
    "SpecimenLabelInImage": (_one_of("YES|NO", "C.8.12.4"),),
    "VerificationFlag": (_one_of("UNVERIFIED|VERIFIED", "C.17.2"),),
    "VolumetricProperties": (_one_of("VOLUME|SAMPLED|DISTORTED|MIXED", "C.8.16.2.1.2"),),
}

# Sequences in which one item is allowed (PS3.3, in the description of each).
SINGLE_ITEM = frozenset(
    {
        "AnnotationPropertyCategoryCodeSequence",
        "AnnotationPropertyTypeCodeSequence",
        "ConceptCodeSequence",
        "ConceptNameCodeSequence",
        "ContentTemplateSequence",
        "MeasuredValueSequence",
        "MeasurementUnitsCodeSequence",
        "NumericValueQualifierCodeSequence",
        "PixelMeasuresSequence",
        "PlaneOrientationSequence",
        "SegmentedPropertyCategoryCodeSequence",
        "SegmentedPropertyTypeCodeSequence",
        "SharedFunctionalGroupsSequence",
        "TotalPixelMatrixOriginSequence",
        "WholeSlideMicroscopyImageFrameTypeSequence",
    }
)
# SOP class → kind of object, as the kit's rules are sorted.
KINDS: dict[str, str] = {
    str(uid): kind
    for kind, sop_classes in (
        ("ANN", _ANN),
        ("SM", _SLIDE),
        ("PM", (ParametricMapStorage,)),
        ("PDF", (EncapsulatedPDFStorage,)),
        ("SR", REPORTS),
        ("SEG", SEGMENTATIONS),
    )
    for uid in sop_classes
}
