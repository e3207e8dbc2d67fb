"""Cells ↔ Microscopy Bulk Simple Annotations (PS3.3 A.87): one group per cell type found.

Coordinates are 2D, float32, VOLUME: column and row of the total pixel matrix, equal to ``_px``.
Carried both ways are boxes, types and the probability of the reported type; other columns of the
probabilities and the score stay in the node.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from highdicom.ann import (
    AnnotationGroup,
    AnnotationGroupGenerationTypeValues,
    Measurements,
    MicroscopyBulkSimpleAnnotations,
)
from highdicom.color import CIELabColor
from PIL import ImageColor
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.codes import (
    NO_UNITS,
    PROBABILITY,
    cell_category_code,
    cell_type_code,
    cell_type_key,
)
from dicom_io.errors import InputError
from dicom_io.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SOFTWARE_VERSION,
    algorithm_identification,
    finish,
    result_uid,
    series_description,
)
from dicom_io.source_header import source_header
from models.cell_types import CELL_TYPES
from models.records import Cells, Float32, Float64

GraphicType = Literal["RECTANGLE", "POLYGON", "POINT"]
SERIES_NUMBER = 9001


def encode_annotation(analysis: Analysis, graphic_type: GraphicType = "RECTANGLE") -> Dataset:
    """Write the cells of an analysis as an ANN instance.

    Parameters
    ----------
    analysis
        With at least one cell: an ANN needs a group (PS3.3 C.37.1.2).
    graphic_type
        ``RECTANGLE`` and ``POLYGON`` carry the box, ``POINT`` its centre only.

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
    found = [label for label in range(len(cells.classes)) if (cells.label == label).any()]
    header = source_header(analysis)
    document = MicroscopyBulkSimpleAnnotations(
        source_images=[header],
        annotation_coordinate_type="2D",
        pixel_origin_interpretation="VOLUME",
        annotation_groups=[
            _group(analysis, label, number, graphic_type)
            for number, label in enumerate(found, start=1)
        ],
        series_instance_uid=result_uid(analysis, "ANN", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(analysis, "ANN", "instance", graphic_type),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SERIAL_NUMBER,
        content_label="CELLS",
        content_description="Nucleated cells by type",
        content_creator_name=None,
        series_description=series_description(analysis, "Cells"),
    )
    if "SpecimenDescriptionSequence" not in document:
        # Type 2C (PS3.3 C.7.3.1): present and empty where nobody said what was examined; a
        # specimen has no side.
        document.Laterality = ""
    finish(document, analysis)
    return document


def _group(
    analysis: Analysis, label: int, number: int, graphic_type: GraphicType
) -> AnnotationGroup:
    cells = analysis.cells
    key = cells.classes[label]
    rows = np.flatnonzero(cells.label == label)
    return AnnotationGroup(
        number=number,
        uid=result_uid(analysis, "ANN", "group", key),
        label=CELL_TYPES[key].name,
        annotated_property_category=cell_category_code(key),
        annotated_property_type=cell_type_code(key),
        graphic_type=graphic_type,
        graphic_data=list(_points(cells.box_px[rows], graphic_type)),
        algorithm_type=AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_identification(analysis),
        measurements=[
            Measurements(PROBABILITY, cells.probability[rows, label].astype(np.float32), NO_UNITS)
        ],
        display_color=CIELabColor.from_rgb(*ImageColor.getrgb(CELL_TYPES[key].colour)[:3]),
    )


def _points(box_px: Float64, graphic_type: GraphicType) -> Float32:
    """Boxes (N, 4) → points (N, P, 2), clockwise from the top left corner (PS3.3 C.37.1.2.1)."""
    x0, y0, x1, y1 = box_px.T
    if graphic_type == "POINT":
        corners = [((x0 + x1) / 2, (y0 + y1) / 2)]
    else:
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return np.stack([np.stack(corner, axis=1) for corner in corners], axis=1).astype(np.float32)


def decode_annotation(document: Dataset) -> Cells:
    """Read the cells of an ANN instance with 2D boxes, polygons or points.

    Returns
    -------
    cells
        By row, then column, of the box's corner. A polygon's box is its bounding box; a point's
        box is empty and lies at the point. `score` is 1, and `probability` holds that of the
        reported type (1 where the group has none). Every cell has tile 0.

    Raises
    ------
    InputError
        When coordinates are not 2D, or a group's type or graphic is not known here.
    """
    if document.get("AnnotationCoordinateType") != "2D":
        raise InputError(
            f"ANN {document.SOPInstanceUID} does not hold 2D coordinates: export it as 2D."
        )
    groups = [_decoded_group(document, group) for group in document.AnnotationGroupSequence]
    classes = tuple(dict.fromkeys(key for key, _, _ in groups))
    box = np.concatenate([box for _, box, _ in groups])
    label = np.concatenate(
        [np.full(len(box), classes.index(key), np.int32) for key, box, _ in groups]
    )
    certainty = np.concatenate([probability for _, _, probability in groups])
    order = np.lexsort((label, box[:, 0], box[:, 1]))
    probability = np.zeros((len(box), len(classes)), np.float32)
    probability[np.arange(len(box)), label] = certainty
    identification = document.AnnotationGroupSequence[0].get(
        "AnnotationGroupAlgorithmIdentificationSequence"
    )
    return Cells(
        box_px=box[order],
        score=np.ones(len(box), np.float32),
        probability=probability[order],
        label=label[order],
        tile=np.zeros(len(box), np.int32),
        classes=classes,
        package_digest=_package_digest(identification[0]) if identification else "",
    )


def _decoded_group(document: Dataset, group: Dataset) -> tuple[str, Float64, Float32]:
    """(cell type key, boxes (N, 4), probability of that type (N,))."""
    code = group.AnnotationPropertyTypeCodeSequence[0]
    key = cell_type_key(code.CodeValue, code.CodingSchemeDesignator)
    if key is None:
        raise InputError(
            f"ANN {document.SOPInstanceUID}, group {group.AnnotationGroupNumber}: type "
            f"({code.CodeValue}, {code.CodingSchemeDesignator}) is not in the table of cell types."
        )
    box = _boxes(document, group)
    measurements = [
        item
        for item in group.get("MeasurementsSequence", [])
        if item.ConceptNameCodeSequence[0].CodeValue == PROBABILITY.value
    ]
    if not measurements:
        return key, box, np.ones(len(box), np.float32)
    stored = measurements[0].MeasurementValuesSequence[0]
    values = np.frombuffer(stored.FloatingPointValues, np.float32)
    if "AnnotationIndexList" not in stored:
        return key, box, values
    # Values of some annotations only: 1-based numbers (PS3.3 C.37.1.2) made 0-based.
    probability = np.ones(len(box), np.float32)
    probability[np.frombuffer(stored.AnnotationIndexList, np.int32) - 1] = values
    return key, box, probability


def _boxes(document: Dataset, group: Dataset) -> Float64:
    doubles = "DoublePointCoordinatesData" in group
    stored = group.DoublePointCoordinatesData if doubles else group.PointCoordinatesData
    points = np.frombuffer(stored, np.float64 if doubles else np.float32).reshape(-1, 2)
    points = points.astype(np.float64)
    graphic_type = group.GraphicType
    if graphic_type == "POINT":
        return np.concatenate((points, points), axis=1)
    if graphic_type == "RECTANGLE":
        starts = np.arange(0, len(points), 4, dtype=np.int32)
    elif graphic_type == "POLYGON":
        # 1-based index of the first *value* of each polygon (PS3.3 C.37.1.2): made 0-based points.
        starts = (np.frombuffer(group.LongPrimitivePointIndexList, np.int32) - 1) // 2
    else:
        raise InputError(
            f"ANN {document.SOPInstanceUID}, group {group.AnnotationGroupNumber}: graphic type "
            f"{graphic_type} has no box: use RECTANGLE, POLYGON or POINT."
        )
    low = np.minimum.reduceat(points, starts, axis=0)
    return np.concatenate((low, np.maximum.reduceat(points, starts, axis=0)), axis=1)


def _package_digest(identification: Dataset) -> str:
    for parameter in str(identification.get("AlgorithmParameters", "")).split(","):
        name, _, value = parameter.partition("=")
        if name.strip() == "package_sha256":
            return value.strip()
    return ""
