"""Probability of the regions → Parametric Map (PS3.3 A.75): one pixel per frame of the base level.

The pixels lie as those of the SEG (:mod:`dicom_io.segmentation`) and say how sure the localiser was
of each frame that it accepted; frames that were not accepted hold the padding value.
"""

from __future__ import annotations

import numpy as np
from highdicom import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.analysis import Analysis
from dicom_io.codes import NO_UNITS, REGION_PROBABILITY
from dicom_io.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SOFTWARE_VERSION,
    complete_laterality,
    finish,
    result_uid,
    series_description,
)
from dicom_io.segmentation import TILE_PX, first_centre, mask_spacing_mm, slice_thickness_mm
from dicom_io.source_header import source_header
from models.records import Float32

SERIES_NUMBER = 9006
NOT_ACCEPTED = -1.0


def encode_parametric_map(analysis: Analysis) -> Dataset:
    """Write the probabilities of an analysis' regions as a Parametric Map instance.

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    slide, header = analysis.slide, source_header(analysis)
    probability = region_probability(analysis)
    document = ParametricMap(
        source_images=[header],
        pixel_array=probability[None],
        series_instance_uid=result_uid(analysis, "PM", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(analysis, "PM", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SERIAL_NUMBER,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="PROBABILITY",
                lut_explanation="Probability that a frame holds assessable cells",
                unit=NO_UNITS,
                value_range=(0.0, 1.0),
                intercept=0.0,
                slope=1.0,
                quantity_definition=REGION_PROBABILITY,
            )
        ],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_label="PROBABILITY",
        content_description="Probability of the regions in which cells were counted",
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=mask_spacing_mm(slide), slice_thickness=slice_thickness_mm(header)
        ),
        plane_orientation=PlaneOrientationSequence("SLIDE", tuple(slide.orientation)),
        plane_positions=[
            PlanePositionSequence("SLIDE", first_centre(slide), pixel_matrix_position=(1, 1))
        ],
        dimension_organization_type="TILED_FULL",
        tile_pixel_array=True,
        tile_size=tuple(min(side, TILE_PX) for side in probability.shape),
        series_description=series_description(analysis, "Region probability"),
    )
    document.FloatPixelPaddingValue = document.FloatPixelPaddingRangeLimit = NOT_ACCEPTED
    organization = result_uid(analysis, "PM", "dimension organization")
    for item in (
        *document.DimensionOrganizationSequence,
        *document.get("DimensionIndexSequence", []),
    ):
        item.DimensionOrganizationUID = organization
    complete_laterality(document)
    finish(document, analysis)
    return document


def region_probability(analysis: Analysis) -> Float32:
    """(rows, columns) of base-level frames: score of the region there, −1 where there is none."""
    width, height = analysis.slide.base.size_px
    tile = np.array(analysis.slide.base.tile_size_px, np.float64)
    columns, rows = np.ceil(np.array([width, height]) / tile).astype(int)
    probability = np.full((rows, columns), NOT_ACCEPTED, np.float32)
    regions = analysis.regions
    first = np.floor(regions.box_px[:, :2] / tile).astype(int)
    end = np.ceil(regions.box_px[:, 2:] / tile).astype(int)
    for (x0, y0), (x1, y1), score in zip(first, end, regions.score, strict=True):
        covered = probability[y0:y1, x0:x1]
        np.maximum(covered, score, out=covered)
    return probability
