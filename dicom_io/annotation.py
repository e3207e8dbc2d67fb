"""Cells ↔ Microscopy Bulk Simple Annotations (PS3.3 A.87): groups of cells of one type.

Coordinates are 2D, float32, VOLUME: column and row of the total pixel matrix, equal to ``_px``; or
3D, float64: millimetres in the slide's frame of reference, where float32 would lose hundredths of
a pixel. Carried both ways are outlines, types, the probability of the reported type, the
probability that it is a cell at all, and the size; the other columns of the probabilities stay in
the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from highdicom.ann import (
    AnnotationGroup,
    AnnotationGroupGenerationTypeValues,
    Measurements,
    MicroscopyBulkSimpleAnnotations,
)
from highdicom.color import CIELabColor
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from PIL import ImageColor
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.annotation_settings import GROUP_SIZE, CoordinateType, GraphicType
from dicom_io.codes import (
    CELL_PROBABILITY,
    HEIGHT,
    MICROMETRE,
    NO_UNITS,
    PROBABILITY,
    WIDTH,
    cell_category_code,
    cell_type_code,
    cell_type_key,
)
from dicom_io.coordinates import mm_to_px, px_to_mm
from dicom_io.errors import InputError
from dicom_io.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SOFTWARE_VERSION,
    algorithm_identification,
    complete_laterality,
    finish,
    result_uid,
    series_description,
)
from dicom_io.slide import Slide
from dicom_io.source_header import source_header
from dicom_io.z_offset import UM_PER_MM
from models.cell_types import CELL_TYPES
from models.records import Cells, Float32, Float64

SERIES_NUMBER = 9001
Intp = NDArray[np.intp]


def encode_annotation(
    analysis: Analysis,
    graphic_type: GraphicType = "RECTANGLE",
    coordinate_type: CoordinateType = "2D",
    group_size: int = GROUP_SIZE,
) -> Dataset:
    """Write the cells of an analysis as an ANN instance.

    Parameters
    ----------
    analysis
        With at least one cell: an ANN needs a group (PS3.3 C.37.1.2).
    graphic_type
        ``RECTANGLE`` and ``POLYGON`` carry the box, ``POINT`` its centre; the size is always
        there as measurements.
    coordinate_type
        ``2D`` for pixels of the base level, ``3D`` for millimetres on the slide.
    group_size
        Most cells of a group; a type with more has several, from the top of the slide to its
        bottom, so that a viewer can show a part of them.

    Raises
    ------
    InputError
        When there is no cell, or the slide's header lacks an identifier.
    """
    cells = analysis.cells
    if not len(cells):
        raise InputError(
            f"No cell was found on series {analysis.slide.series_uid}: an ANN needs at least one "
            "group, so write the SR alone."
        )
    header = source_header(analysis)
    form = (graphic_type,) if coordinate_type == "2D" else (graphic_type, coordinate_type)
    document = MicroscopyBulkSimpleAnnotations(
        source_images=[header],
        annotation_coordinate_type=coordinate_type,
        pixel_origin_interpretation="VOLUME",
        annotation_groups=[
            _group(analysis, part, number, graphic_type, coordinate_type)
            for number, part in enumerate(_parts(cells, group_size), start=1)
        ],
        series_instance_uid=result_uid(analysis, "ANN", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(analysis, "ANN", "instance", *form),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SERIAL_NUMBER,
        content_label="CELLS",
        content_description="Nucleated cells by type",
        content_creator_name=analysis.signature.name if analysis.signature else None,
        series_description=series_description(analysis, "Cells"),
    )
    complete_laterality(document)
    if analysis.icc_profile:
        document.ICCProfile = analysis.icc_profile
    _refer_to_whole_image(document, header, analysis.slide)
    finish(document, analysis)
    return document


def _refer_to_whole_image(document: Dataset, header: Dataset, slide: Slide) -> None:
    """Refer to a base level in several instances by the UID of the whole.

    An annotation applies to one image (PS3.3 C.37.1.2). Where that is a concatenation, its UID is
    the SOP Instance UID of Concatenation Source (C.7.6.16.2.2.4), by which viewers know it; the
    instances there are stand beside it in the references by series.
    """
    whole = header.get("SOPInstanceUIDOfConcatenationSource")
    if not whole:
        return
    document.ReferencedImageSequence[0].ReferencedSOPInstanceUID = whole
    document.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [
        _reference(header.SOPClassUID, uid) for uid in (whole, *slide.base.instance_uids)
    ]


def _reference(class_uid: str, instance_uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, instance_uid
    return item


@dataclass(frozen=True, slots=True)
class _Part:
    """Cells of one type that form a group: all of them, or the n-th of several pieces."""

    label: int
    rows: Intp
    number: int
    of: int


def _parts(cells: Cells, group_size: int) -> Iterator[_Part]:
    for label in range(len(cells.classes)):
        rows = np.flatnonzero(cells.label == label)
        of = -(-len(rows) // group_size)
        if of > 1:
            rows = rows[np.argsort(cells.box_px[rows, 1], kind="stable")]
        for number, part in enumerate(np.array_split(rows, of) if of else (), start=1):
            yield _Part(label, part, number, of)


def _group(
    analysis: Analysis,
    part: _Part,
    number: int,
    graphic_type: GraphicType,
    coordinate_type: CoordinateType,
) -> AnnotationGroup:
    cells, slide = analysis.cells, analysis.slide
    key = cells.classes[part.label]
    pieces = (str(part.number),) if part.number > 1 else ()
    suffix = f" ({part.number} of {part.of})" if part.of > 1 else ""
    points = _points(cells.box_px[part.rows], graphic_type)
    group = AnnotationGroup(
        number=number,
        uid=result_uid(analysis, "ANN", "group", key, *pieces),
        label=CELL_TYPES[key].name + suffix,
        annotated_property_category=cell_category_code(key),
        annotated_property_type=cell_type_code(key),
        graphic_type=graphic_type,
        graphic_data=list(
            points.astype(np.float32) if coordinate_type == "2D" else _on_the_slide(points, slide)
        ),
        algorithm_type=_generation_type(analysis),
        algorithm_identification=algorithm_identification(analysis),
        measurements=list(_measurements(analysis, part)),
        display_color=CIELabColor.from_rgb(*ImageColor.getrgb(CELL_TYPES[key].colour)[:3]),
    )
    if slide.optical_path.paths > 1:
        group.AnnotationAppliesToAllOpticalPaths = "NO"
        group.ReferencedOpticalPathIdentifier = slide.optical_path.identifier
    return group


def _generation_type(analysis: Analysis) -> AnnotationGroupGenerationTypeValues:
    """How the annotations came about (PS3.3 C.37.1.2, Annotation Group Generation Type).

    All groups of a corrected revision are semi-automatic: a person went through what the algorithm
    found, and left or changed each. Confirming changes no annotation: the confirmed revision
    refers to the instance that was confirmed, which stays what it is, AUTOMATIC.
    """
    types = AnnotationGroupGenerationTypeValues
    return types.SEMIAUTOMATIC if analysis.by_hand else types.AUTOMATIC


def _points(box_px: Float64, graphic_type: GraphicType) -> Float64:
    """Boxes (N, 4) → points (N, P, 2), clockwise from the top left corner (PS3.3 C.37.1.2.1)."""
    x0, y0, x1, y1 = box_px.T
    if graphic_type == "POINT":
        corners = [((x0 + x1) / 2, (y0 + y1) / 2)]
    else:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)


def _on_the_slide(points: Float64, slide: Slide) -> Float64:
    """Points (N, P, 2) in px → (N, P, 3) in mm."""
    return px_to_mm(slide, points.reshape(-1, 2)).reshape(*points.shape[:2], 3)


def _measurements(analysis: Analysis, part: _Part) -> Iterator[Measurements]:
    """Of each cell; probabilities only of those that the model has something to say about.

    A cell that a person typed has a row of zeros, one that a person added a score of zero.
    """
    cells = analysis.cells
    judged = cells.probability[part.rows].any(axis=1)
    found = cells.score[part.rows] > 0
    box = cells.box_px[part.rows]
    size_um = (box[:, 2:] - box[:, :2]) * np.array(analysis.slide.base.spacing_mm) * UM_PER_MM
    for name, values, unit in (
        (
            PROBABILITY,
            np.where(judged, cells.probability[part.rows, part.label], np.nan),
            NO_UNITS,
        ),
        (CELL_PROBABILITY, np.where(found, cells.score[part.rows], np.nan), NO_UNITS),
        (WIDTH, size_um[:, 0], MICROMETRE),
        (HEIGHT, size_um[:, 1], MICROMETRE),
    ):
        if not np.isnan(values).all():
            yield Measurements(name, np.asarray(values, np.float32), unit)


def rows_of_groups(cells: Cells, group_size: int = GROUP_SIZE) -> list[Intp]:
    """Rows of `cells` in the order of the annotations of each group, group 1 first.

    Parameters
    ----------
    cells
        Those that the ANN was written from.
    group_size
        With which it was written.
    """
    return [part.rows for part in _parts(cells, group_size)]


def decode_annotation(document: Dataset, slide: Slide | None = None) -> Cells:
    """Read the cells of an ANN instance with boxes, polygons or points.

    Parameters
    ----------
    document
    slide
        The one that was annotated: needed for 3D coordinates, and for the boxes of points, whose
        sizes are measured in µm.

    Returns
    -------
    cells
        By row, then column, of the box's corner. A polygon's box is its bounding box; a point's
        box is empty and lies at the point where its size is not known. `score` and the
        `probability` of the reported type are 1 where the group does not measure them. Every cell
        has tile 0.

    Raises
    ------
    InputError
        When a group's type or graphic is not known here, or 3D coordinates come without a slide.
    """
    groups = [_decoded_group(document, group, slide) for group in document.AnnotationGroupSequence]
    classes = tuple(dict.fromkeys(group.key for group in groups))
    box = np.concatenate([group.box_px for group in groups])
    label = np.concatenate(
        [np.full(len(group.box_px), classes.index(group.key), np.int32) for group in groups]
    )
    probability = np.zeros((len(box), len(classes)), np.float32)
    probability[np.arange(len(box)), label] = np.concatenate([g.probability for g in groups])
    order = np.lexsort((label, box[:, 0], box[:, 1]))
    return Cells(
        box_px=box[order],
        score=np.concatenate([group.score for group in groups])[order],
        probability=probability[order],
        label=label[order],
        tile=np.zeros(len(box), np.int32),
        classes=classes,
        package_digest=annotation_package_digest(document),
    )


def annotated_types(document: Dataset) -> Mapping[str, int]:
    """Cell type key → how many cells are drawn, as the coordinates themselves say.

    Raises
    ------
    InputError
        When a group's type or graphic is not known here.
    """
    drawn: Counter[str] = Counter()
    for group in document.AnnotationGroupSequence:
        drawn[_type_of(document, group)] += len(_starts(document, group, _stored(document, group)))
    return drawn


@dataclass(frozen=True, slots=True)
class _DecodedGroup:
    key: str
    box_px: Float64
    probability: Float32
    score: Float32


def _decoded_group(document: Dataset, group: Dataset, slide: Slide | None) -> _DecodedGroup:
    box = _boxes(document, group, slide)
    if group.GraphicType == "POINT" and slide is not None:
        box = _sized(box, group, slide)
    return _DecodedGroup(
        _type_of(document, group),
        box,
        _measured(group, PROBABILITY, len(box), 1.0),
        _measured(group, CELL_PROBABILITY, len(box), 1.0),
    )


def _type_of(document: Dataset, group: Dataset) -> str:
    code = group.AnnotationPropertyTypeCodeSequence[0]
    key = cell_type_key(code.CodeValue, code.CodingSchemeDesignator)
    if key is None:
        raise InputError(
            f"ANN {document.SOPInstanceUID}, group {group.AnnotationGroupNumber}: type "
            f"({code.CodeValue}, {code.CodingSchemeDesignator}) is not in the table of cell types."
        )
    return key


def _measured(group: Dataset, name: CodedConcept, cells: int, otherwise: float) -> Float32:
    """Values (N,) of one measurement, `otherwise` where there is none."""
    values = np.full(cells, otherwise, np.float32)
    for item in group.get("MeasurementsSequence", []):
        concept = item.ConceptNameCodeSequence[0]
        if (concept.CodeValue, concept.CodingSchemeDesignator) != (name.value, _scheme(name)):
            continue
        stored = item.MeasurementValuesSequence[0]
        # Values of some annotations only: 1-based numbers (PS3.3 C.37.1.2) made 0-based.
        rows = (
            np.frombuffer(stored.AnnotationIndexList, np.int32) - 1
            if "AnnotationIndexList" in stored
            else slice(None)
        )
        values[rows] = np.frombuffer(stored.FloatingPointValues, np.float32)
    return values


def _scheme(name: CodedConcept) -> str:
    return str(name.CodingSchemeDesignator)


def _sized(box_px: Float64, group: Dataset, slide: Slide) -> Float64:
    """Points' boxes of the size that was measured."""
    sides_um = [_measured(group, side, len(box_px), 0.0) for side in (WIDTH, HEIGHT)]
    half = np.stack(sides_um, axis=1) / (2 * UM_PER_MM * np.array(slide.base.spacing_mm))
    return np.concatenate((box_px[:, :2] - half, box_px[:, 2:] + half), axis=1)


def _boxes(document: Dataset, group: Dataset, slide: Slide | None) -> Float64:
    stored = _stored(document, group)
    starts = _starts(document, group, stored)
    if document.AnnotationCoordinateType == "3D":
        if slide is None:
            raise InputError(
                f"ANN {document.SOPInstanceUID} holds 3D coordinates: read it with the slide that "
                "it annotates, whose geometry they need."
            )
        stored = mm_to_px(slide, stored)
    low = np.minimum.reduceat(stored, starts, axis=0)
    return np.concatenate((low, np.maximum.reduceat(stored, starts, axis=0)), axis=1)


def _stored(document: Dataset, group: Dataset) -> Float64:
    """Points as they are stored, (P, 2) px or (P, 3) mm."""
    doubles = "DoublePointCoordinatesData" in group
    data = group.DoublePointCoordinatesData if doubles else group.PointCoordinatesData
    numbers = np.frombuffer(data, np.float64 if doubles else np.float32).astype(np.float64)
    if document.AnnotationCoordinateType == "2D":
        return numbers.reshape(-1, 2)
    if "CommonZCoordinateValue" not in group:
        return numbers.reshape(-1, 3)
    flat = numbers.reshape(-1, 2)
    return np.concatenate((flat, np.full((len(flat), 1), group.CommonZCoordinateValue)), axis=1)


def _starts(document: Dataset, group: Dataset, points: Float64) -> Intp:
    """Index of the first point of each annotation."""
    graphic_type = group.GraphicType
    if graphic_type in ("POINT", "RECTANGLE"):
        return np.arange(0, len(points), 1 if graphic_type == "POINT" else 4, dtype=np.intp)
    if graphic_type == "POLYGON":
        # 1-based index of the first *value* of each polygon (PS3.3 C.37.1.2): made 0-based points.
        values = 2 if "CommonZCoordinateValue" in group else points.shape[1]
        first = np.frombuffer(group.LongPrimitivePointIndexList, np.int32)
        return (first.astype(np.intp) - 1) // values
    raise InputError(
        f"ANN {document.SOPInstanceUID}, group {group.AnnotationGroupNumber}: graphic type "
        f"{graphic_type} has no box: use RECTANGLE, POLYGON or POINT."
    )


def annotation_package_digest(document: Dataset) -> str:
    """SHA-256 of the model package, empty where the annotation does not say it."""
    identification = document.AnnotationGroupSequence[0].get(
        "AnnotationGroupAlgorithmIdentificationSequence"
    )
    return _package_digest(identification[0]) if identification else ""


def _package_digest(identification: Dataset) -> str:
    for parameter in str(identification.get("AlgorithmParameters", "")).split(","):
        name, _, value = parameter.partition("=")
        if name.strip() == "package_sha256":
            return value.strip()
    return ""
