"""px ↔ mm against highdicom's transformers and hand-read values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from highdicom.spatial import ImageToReferenceTransformer

from dicom_io.coordinates import mm_to_px, px_to_mm
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from tests.slides import write_slide

POINTS = np.array([[0.5, 0.5], [0.0, 0.0], [499.5, 379.5], [123.25, 77.75]])
TURNED = (np.cos(0.3), np.sin(0.3), 0.0, -np.sin(0.3), np.cos(0.3), 0.0)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    folder: Path = tmp_path_factory.mktemp("slide")
    written = write_slide(folder, levels=1)
    with open_pacs(f"file://{folder}", PacsSettings()) as pacs:
        return open_slide(pacs, written.study_uid, written.series_uid)


def test_centre_of_the_first_pixel_is_the_origin(slide: Slide) -> None:
    assert px_to_mm(slide, np.array([[0.5, 0.5]])).tolist() == [[20.0, 40.0, 0.0]]


def test_usual_orientation_by_hand(slide: Slide) -> None:
    # (0, −1, 0, −1, 0, 0): columns grow along −y, rows along −x, 0.00025 mm a pixel.
    found = px_to_mm(slide, np.array([[4.5, 8.5]]))
    assert np.allclose(found, [[20.0 - 8 * 0.00025, 40.0 - 4 * 0.00025, 0.0]], atol=1e-12)


@pytest.mark.parametrize(
    "orientation", [(0, -1, 0, -1, 0, 0), (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), TURNED]
)
def test_agrees_with_highdicom(slide: Slide, orientation: tuple[float, ...]) -> None:
    turned = dataclasses.replace(
        slide,
        orientation=np.array(orientation, np.float64),
        levels=(dataclasses.replace(slide.base, spacing_mm=(0.0002, 0.0003)),),
    )
    transformer = ImageToReferenceTransformer(
        image_position=turned.origin_mm,
        image_orientation=turned.orientation,
        pixel_spacing=(0.0003, 0.0002),  # between rows, between columns
    )
    expected = transformer(POINTS)
    assert np.allclose(px_to_mm(turned, POINTS), expected, atol=1e-9)
    assert np.allclose(mm_to_px(turned, expected), POINTS, atol=1e-6)
    assert np.allclose(mm_to_px(turned, expected[:, :2]), POINTS, atol=1e-6)
