"""Regions ↔ Segmentation (PS3.3 A.51): binary, tiled, in the slide's frame of reference.

A region is a whole frame of the base level, so one pixel of the mask per frame says all there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from highdicom import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
)
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.analysis import Analysis
from dicom_io.codes import REGION_CATEGORY, REGION_TYPE
from dicom_io.coordinates import px_to_mm
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
from dicom_io.slide import Slide
from dicom_io.source_header import source_header
from dicom_io.z_offset import UM_PER_MM
from models.records import UInt8

SERIES_NUMBER = 9002
TILE_PX = 512


@dataclass(frozen=True, slots=True)
class RegionMask:
    """A decoded segmentation.

    Attributes
    ----------
    mask : (H, W) uint8
        1 inside the regions.
    spacing_mm : (x, y)
    origin_mm : (x, y)
        Slide coordinates of the centre of the top left mask pixel.
    """

    mask: UInt8
    spacing_mm: tuple[float, float]
    origin_mm: tuple[float, float]


def encode_segmentation(analysis: Analysis) -> Dataset:
    """Write the regions of an analysis as a SEG instance, one pixel per frame of the base level.

    Parameters
    ----------
    analysis
        With at least one region.

    Raises
    ------
    InputError
        When the slide's header lacks an identifier.
    """
    slide, header = analysis.slide, source_header(analysis)
    mask = region_mask(analysis)
    measures = PixelMeasuresSequence(
        pixel_spacing=mask_spacing_mm(slide), slice_thickness=slice_thickness_mm(header)
    )
    document = Segmentation(
        source_images=[header],
        pixel_array=mask[None, ..., None],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[
            SegmentDescription(
                segment_number=1,
                segment_label="Regions of interest",
                segmented_property_category=REGION_CATEGORY,
                segmented_property_type=REGION_TYPE,
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm_identification(analysis),
                tracking_uid=result_uid(analysis, "SEG", "tracking"),
                tracking_id="regions of interest",
            )
        ],
        series_instance_uid=result_uid(analysis, "SEG", "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=result_uid(analysis, "SEG", "instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=SOFTWARE_VERSION,
        device_serial_number=SERIAL_NUMBER,
        content_label="REGIONS",
        content_description="Regions in which cells were counted",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        pixel_measures=measures,
        plane_orientation=PlaneOrientationSequence("SLIDE", tuple(slide.orientation)),
        plane_positions=[
            PlanePositionSequence("SLIDE", first_centre(slide), pixel_matrix_position=(1, 1))
        ],
        dimension_organization_type="TILED_FULL",
        tile_pixel_array=True,
        tile_size=(min(mask.shape[0], TILE_PX), min(mask.shape[1], TILE_PX)),
        omit_empty_frames=False,
        series_description=series_description(analysis, "Regions"),
    )
    _derive_generated_uids(analysis, document)
    finish(document, analysis)
    return document


def region_mask(analysis: Analysis) -> UInt8:
    """(rows, columns) of base-level frames, 1 where a region is."""
    width, height = analysis.slide.base.size_px
    tile = np.array(analysis.slide.base.tile_size_px, np.float64)
    columns, rows = np.ceil(np.array([width, height]) / tile).astype(int)
    mask = np.zeros((rows, columns), np.uint8)
    first = np.floor(analysis.regions.box_px[:, :2] / tile).astype(int)
    end = np.ceil(analysis.regions.box_px[:, 2:] / tile).astype(int)
    for (x0, y0), (x1, y1) in zip(first, end, strict=True):
        mask[y0:y1, x0:x1] = 1
    return mask


def region_area_mm2(analysis: Analysis) -> float:
    """Area of the regions on the glass."""
    side = analysis.regions.box_px[:, 2:] - analysis.regions.box_px[:, :2]
    return float(np.prod(side * np.array(analysis.slide.base.spacing_mm), axis=1).sum())


def decode_segmentation(document: Dataset) -> RegionMask:
    """Read the first segment of a binary SEG instance in slide coordinates."""
    segmentation = Segmentation.from_dataset(document)
    mask = segmentation.get_total_pixel_matrix(segment_numbers=[1])[..., 0].astype(np.uint8)
    shared = document.SharedFunctionalGroupsSequence[0]
    row_spacing, column_spacing = shared.PixelMeasuresSequence[0].PixelSpacing
    origin = document.TotalPixelMatrixOriginSequence[0]
    return RegionMask(
        mask=mask,
        spacing_mm=(float(column_spacing), float(row_spacing)),
        origin_mm=(
            float(origin.XOffsetInSlideCoordinateSystem),
            float(origin.YOffsetInSlideCoordinateSystem),
        ),
    )


def mask_spacing_mm(slide: Slide) -> tuple[float, float]:
    """Between rows (y), then between columns (x), as DICOM orders them; a pixel is one frame."""
    (tile_width, tile_height), (spacing_x, spacing_y) = (
        slide.base.tile_size_px,
        slide.base.spacing_mm,
    )
    return spacing_y * tile_height, spacing_x * tile_width


def first_centre(slide: Slide) -> tuple[float, float, float]:
    """Offsets of the centre of the top left mask pixel: x and y in mm, z in µm (C.8.12.6.1).

    highdicom writes them as they are given.
    """
    x, y, z = px_to_mm(slide, np.array([slide.base.tile_size_px], np.float64) / 2)[0].tolist()
    return x, y, z * UM_PER_MM


def slice_thickness_mm(header: Dataset) -> float:
    """The slide's own, or 1 µm where it says nothing: a smear is one cell thick."""
    shared = header.get("SharedFunctionalGroupsSequence")
    measures = shared[0].get("PixelMeasuresSequence") if shared else None
    thickness = measures[0].get("SliceThickness") if measures else None
    return float(thickness) if thickness else 0.001


def _derive_generated_uids(analysis: Analysis, document: Dataset) -> None:
    """Replace the UIDs that the encoder drew at random."""
    organization = result_uid(analysis, "SEG", "dimension organization")
    for item in document.get("DimensionOrganizationSequence", []):
        item.DimensionOrganizationUID = organization
    for item in document.get("DimensionIndexSequence", []):
        item.DimensionOrganizationUID = organization
