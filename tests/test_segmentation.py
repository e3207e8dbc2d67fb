"""Regions go into a SEG on the slide's own grid and come out again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_io.analysis import Analysis
from dicom_io.coordinates import px_to_mm
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.segmentation import (
    decode_segmentation,
    encode_segmentation,
    region_area_mm2,
    region_mask,
)
from dicom_io.slide import Slide, open_slide
from dicom_io.source_header import source_header
from models.records import Regions
from node.outputs import to_bytes
from tests.analyses import small_slide, some_analysis
from tests.slides import write_slide
from tests.validators import dciodvfy, written

# highdicom places the segment number where dciodvfy's table of tiled segmentations has none.
KNOWN = "SegmentIdentificationSequence"


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return some_analysis(small_slide(tmp_path_factory.mktemp("slide")), cells=20)


def _opened(folder: Path, **how: object) -> Slide:
    made = write_slide(folder, **how)  # type: ignore[arg-type]
    with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
        return open_slide(pacs, made.study_uid, made.series_uid)


def _expected_mask(analysis: Analysis) -> np.ndarray:
    """The slow, obvious twin: a frame is in when its centre is in a region."""
    width, height = analysis.slide.base.size_px
    tile_width, tile_height = analysis.slide.base.tile_size_px
    rows, columns = -(-height // tile_height), -(-width // tile_width)
    mask = np.zeros((rows, columns), np.uint8)
    for row in range(rows):
        for column in range(columns):
            x, y = column * tile_width + 0.5, row * tile_height + 0.5
            for x0, y0, x1, y1 in analysis.regions.box_px:
                mask[row, column] |= x0 <= x < x1 and y0 <= y < y1
    return mask


def test_mask_comes_back_as_it_went_in(analysis: Analysis, tmp_path: Path) -> None:
    document = dcmread(written(encode_segmentation(analysis), tmp_path / "seg.dcm"))
    mask = decode_segmentation(document).mask
    assert np.array_equal(mask, _expected_mask(analysis))
    assert 0 < mask.sum() < mask.size


@pytest.mark.parametrize("orientation", [(0, -1, 0, -1, 0, 0), (1, 0, 0, 0, 1, 0)])
def test_mask_lies_where_the_regions_lie(tmp_path: Path, orientation: tuple[int, ...]) -> None:
    """Corners of mask pixels in slide millimetres, as highdicom computes them from the SEG."""
    slide = _opened(tmp_path / "slide", tile_px=(64, 48), orientation=orientation)
    analysis = some_analysis(slide, cells=5)
    document = encode_segmentation(analysis)
    transformer = highdicom.spatial.ImageToReferenceTransformer.for_image(
        document, for_total_pixel_matrix=True
    )
    corners = np.array([[0, 0], [3, 2], [5, 0]], np.float64)
    frames_px = corners * np.array(slide.base.tile_size_px)
    # highdicom's image coordinates have (0, 0) at the corner of the first pixel, as _px.
    assert np.allclose(transformer(corners), px_to_mm(slide, frames_px), atol=1e-6)


def test_it_shares_study_and_frame_of_reference(analysis: Analysis) -> None:
    document, slide = encode_segmentation(analysis), analysis.slide
    assert document.StudyInstanceUID == slide.study_uid
    assert document.FrameOfReferenceUID == slide.frame_of_reference_uid
    assert document.DimensionOrganizationType == "TILED_FULL"
    assert document.SegmentationType == "BINARY"
    assert document.PatientID == slide.header.PatientID


def test_validator_finds_no_error(analysis: Analysis, tmp_path: Path) -> None:
    found = dciodvfy(written(encode_segmentation(analysis), tmp_path / "seg.dcm"))
    assert [line for line in found if KNOWN not in line or line.startswith("Error")] == []


def test_sparse_slide_without_an_origin(tmp_path: Path) -> None:
    slide = _opened(
        tmp_path / "slide",
        organization="TILED_SPARSE",
        origin_mm=None,
        leave_out=lambda column, row: (column + row) % 3 == 0,
    )
    analysis = some_analysis(slide, cells=5)
    assert np.array_equal(
        decode_segmentation(encode_segmentation(analysis)).mask, _expected_mask(analysis)
    )


def test_mask_lies_at_the_height_of_the_slide(tmp_path: Path) -> None:
    """In µm, as the slide says it: only x and y are in mm there."""

    def lift(ds: Dataset, level: int) -> None:
        ds.TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = 12.5

    analysis = some_analysis(_opened(tmp_path / "slide", change=lift), cells=5)
    (origin,) = encode_segmentation(analysis).TotalPixelMatrixOriginSequence
    assert origin.ZOffsetInSlideCoordinateSystem == 12.5
    (copied,) = source_header(analysis).TotalPixelMatrixOriginSequence
    assert copied.ZOffsetInSlideCoordinateSystem == 12.5


def test_region_cut_by_the_border_counts_its_frame(analysis: Analysis) -> None:
    """Boxes of the last column end at the slide, not at the frame."""
    width, _ = analysis.slide.base.size_px
    tile = analysis.slide.base.tile_size_px[0]
    box = np.array([[(width - 1) // tile * tile, 0, width - 0.5, tile]], np.float64)
    one = replace(analysis, regions=Regions(box, np.ones(1, np.float32), "accepted frame"))
    mask = region_mask(one)
    assert mask[0, -1] == 1
    assert mask.sum() == 1


def test_area_is_on_the_glass(analysis: Analysis) -> None:
    box = np.array([[0, 0, 400, 200]], np.float64)
    one = replace(analysis, regions=Regions(box, np.ones(1, np.float32), "accepted frame"))
    x, y = analysis.slide.base.spacing_mm
    assert region_area_mm2(one) == pytest.approx(400 * x * 200 * y)


def test_same_analysis_gives_the_same_bytes(analysis: Analysis) -> None:
    assert to_bytes(encode_segmentation(analysis)) == to_bytes(encode_segmentation(analysis))


def test_it_stays_small(analysis: Analysis) -> None:
    assert len(to_bytes(encode_segmentation(analysis))) < 20_000
