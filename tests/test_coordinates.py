"""px ↔ mm against highdicom's transformers and hand-read values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from highdicom.spatial import ImageToReferenceTransformer

from dicom_io.coordinates import mm_to_px, px_to_mm
from dicom_io.frames import read_tiles
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


MIRRORED = (0, -1, 0, 1, 0, 0)


@pytest.mark.parametrize(
    "orientation", [(0, -1, 0, -1, 0, 0), (-1, 0, 0, 0, -1, 0), MIRRORED, TURNED]
)
def test_box_drawn_at_a_known_cell_lands_on_it(
    tmp_path: Path, orientation: tuple[float, ...]
) -> None:
    """Cells are painted by their place on the glass; what is read there must be the cell."""
    spacing_mm, size_px = 0.00025, (500, 380)
    axes = np.array(orientation, np.float64).reshape(2, 3)
    # Three cells at known pixels of this orientation, but painted by millimetres alone.
    cells_mm = (
        np.array([20.0, 40.0])
        + np.array([[80, 60], [300, 90], [410, 330]]) * spacing_mm @ (axes[:, :2])
    )
    columns, rows = np.meshgrid(np.arange(size_px[0]), np.arange(size_px[1]))
    glass_mm = np.array([20.0, 40.0]) + spacing_mm * (
        columns[..., None] * axes[0, :2] + rows[..., None] * axes[1, :2]
    )
    rgb = np.full((*size_px[::-1], 3), 240, np.uint8)
    for cell in cells_mm:
        rgb[np.hypot(*np.moveaxis(glass_mm - cell, 2, 0)) < 10 * spacing_mm] = (90, 40, 120)
    written = write_slide(tmp_path, rgb=rgb, scales=(1, 2), orientation=orientation, encoding="raw")
    with open_pacs(f"file://{tmp_path}", PacsSettings()) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        for cell_mm, centre_px in zip(cells_mm, mm_to_px(slide, cells_mm), strict=True):
            for um_per_px in (0.25, 0.5):
                box_px = np.concatenate([centre_px - 16, centre_px + 16])[None]
                (tiles,) = read_tiles(pacs, slide, box_px, um_per_px)
                dark = np.argwhere(tiles.rgb[0, ..., 1] < 140)[:, ::-1] + 0.5
                assert len(dark) > 50
                found_px = tiles.origin_px[0] + dark.mean(axis=0) * tiles.px_per_tile_px
                assert np.abs(found_px - centre_px).max() < 0.5
                found_mm = px_to_mm(slide, found_px[None])[0, :2]
                assert np.hypot(*(found_mm - cell_mm)) < spacing_mm
