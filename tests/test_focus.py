"""The sharpest plane of each region, on a stack whose sharp plane is known everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from dicom_io.focus import in_focus
from dicom_io.frames import read_tiles
from dicom_io.pacs import open_pacs
from dicom_io.slide import open_slide
from dicom_io.slide_settings import SlideSettings
from models.records import Regions
from tests.conftest import QUICK
from tests.layered_slides import SIZE_PX, Layer, write_layers
from tests.slides import picture

SHARPEST = SlideSettings(focal_plane="sharpest")
BLOCK_PX = 8 * 64


def stack(width: int, height: int) -> tuple[list[Layer], np.ndarray]:
    """Three planes: the left block is sharp in the first, the right one in the third."""
    sharp = np.tile(picture(256, height), (1, -(-width // 256), 1))[:, :width]
    blurred = ndimage.gaussian_filter(sharp, (2, 2, 0))
    left = np.arange(width)[None, :, None] < BLOCK_PX
    planes = [np.where(left, sharp, blurred), blurred, np.where(left, blurred, sharp)]
    return [Layer("1", 0.002 * n, rgb) for n, rgb in enumerate(planes)], sharp


def test_each_block_is_shown_in_its_sharpest_plane(tmp_path: Path) -> None:
    planes, sharp = stack(1000, SIZE_PX[1])
    written = write_layers(tmp_path, [planes])
    box_px = np.array([[64, 48, 128, 96], [640, 48, 704, 96.0]])
    regions = Regions(box_px, np.ones(2, np.float32), "test")
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        focused = in_focus(pacs, slide, regions, SHARPEST)
        (tiles,) = read_tiles(pacs, focused, np.array([[0, 0, 1000, SIZE_PX[1]]]), 0.25)
        assert pacs.frames_read < 3 * 12 + 80
        assert in_focus(pacs, slide, regions, SlideSettings(focal_plane="middle")) is slide
    assert np.array_equal(tiles.rgb[0], sharp)
    assert focused.focal_plane == "of 3 the sharpest in each block of 8 × 8 tiles"


def test_one_plane_is_left_alone(tmp_path: Path) -> None:
    planes, _ = stack(*SIZE_PX)
    written = write_layers(tmp_path, [planes[:1]])
    regions = Regions(np.array([[0, 0, 64, 48.0]]), np.ones(1, np.float32), "test")
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        read = pacs.frames_read
        assert in_focus(pacs, slide, regions, SHARPEST) is slide
        assert pacs.frames_read == read
