"""Tiles many times coarser than the level they are read from: the same pixels, in little memory."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dicom_io import tile_pixels
from dicom_io.frames import read_tiles
from dicom_io.pacs import open_pacs
from dicom_io.slide import Slide, open_slide
from dicom_io.slide_settings import ReadSettings
from tests.conftest import QUICK
from tests.large_slides import TILE_PX, large_slide
from tests.scattered_slides import Placed, pasted, write_scattered
from tests.slides import UInt8, picture, stored_pixels, write_slide

UM_PER_PX = 0.25
SIZE_PX = (1500, 1300)
WHOLE = ReadSettings()
# Windows so small that a tile is read in parts.
IN_PARTS = ReadSettings(window_bytes=60_000)


def at_once(
    rgb: UInt8, stored: np.ndarray, box: tuple[float, ...], times: float
) -> tuple[np.ndarray, np.ndarray]:
    """A tile from one canvas with all it shows; white, and not valid, where nothing is stored."""
    width, height = (round((box[axis + 2] - box[axis]) / times) for axis in (0, 1))
    left, top = math.floor(box[0]), math.floor(box[1])
    right, bottom = math.ceil(box[0] + width * times), math.ceil(box[1] + height * times)
    canvas = np.full((bottom - top, right - left, 3), 255, np.uint8)
    known = np.zeros(canvas.shape[:2], np.bool_)
    inside = np.s_[max(top, 0) : bottom, max(left, 0) : right]
    shown = rgb[inside]
    target = np.s_[max(-top, 0) :, max(-left, 0) :]
    canvas[target][: shown.shape[0], : shown.shape[1]] = shown
    known[target][: shown.shape[0], : shown.shape[1]] = stored[inside]
    x, y = box[0] - left, box[1] - top
    whole = times == round(times)
    resized = Image.fromarray(canvas).resize(
        (width, height),
        Image.Resampling.BOX if whole else Image.Resampling.HAMMING,
        box=(x, y, *np.minimum((x + width * times, y + height * times), canvas.shape[1::-1])),
    )
    columns = np.floor(x + (np.arange(width) + 0.5) * times).astype(int)
    rows = np.floor(y + (np.arange(height) + 0.5) * times).astype(int)
    valid = known[np.ix_(rows, columns)]
    return np.where(valid[..., None], np.array(resized), 255), valid


@pytest.mark.parametrize("times", [1.6, 2.0, 3.3, 8.0, 16.0])
@pytest.mark.parametrize("settings", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
def test_bands_and_parts_meet_without_a_seam(
    tmp_path: Path, times: float, settings: ReadSettings
) -> None:
    written = write_slide(
        tmp_path,
        rgb=picture(*SIZE_PX),
        tile_px=(96, 80),
        levels=1,
        organization="TILED_SPARSE",
        leave_out=lambda column, row: (column + 2 * row) % 7 == 0,
    )
    rgb, stored = stored_pixels(*written.paths)
    side = times * math.floor(1200 / times)
    corners = [(0, 0), (33.37, 20.29), (-100, -70), (500, 300), (40, 50)]
    box_px = np.array([[x, y, x + side, y + side] for x, y in corners])
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        batches = list(
            read_tiles(pacs, slide, box_px, times * UM_PER_PX, batch_size=3, settings=settings)
        )
    assert [len(batch.rgb) for batch in batches] == [3, 2]
    assert np.array_equal(np.concatenate([b.origin_px for b in batches]), box_px[:, :2])
    found = np.concatenate([b.rgb for b in batches]).astype(int)
    known = np.concatenate([b.valid for b in batches])
    for box, tile, valid in zip(box_px.tolist(), found, known, strict=True):
        expected, where = at_once(rgb, stored, tuple(box), times)
        assert np.array_equal(valid, where)
        assert np.abs(tile - expected).max() <= 1


@pytest.mark.parametrize("settings", [WHOLE, IN_PARTS], ids=["whole", "in parts"])
def test_frames_that_overlap_are_shown_coarse(tmp_path: Path, settings: ReadSettings) -> None:
    """What lies over what must not depend on the band in which a frame begins."""
    placed = [Placed(x, y) for y in range(0, 380, 37) for x in range(0, 500, 50)]
    order = np.random.default_rng(2).permutation(len(placed))
    written = write_scattered(tmp_path, [[placed[i] for i in order]])
    rgb, stored = pasted(*written.paths)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        box = (10.0, 5.0, 490.0, 377.0)
        (tiles,) = read_tiles(pacs, slide, np.array([box]), 3 * UM_PER_PX, settings=settings)
    expected, _ = at_once(rgb, stored, box, 3.0)
    assert np.abs(tiles.rgb[0] - expected).max() <= 1
    assert tiles.valid.all()


def opened(folder: Path, read: Callable[[Any, Slide], None]) -> None:
    written = write_slide(folder, rgb=picture(*SIZE_PX), tile_px=(96, 80), levels=1)
    with open_pacs(f"file://{folder}", QUICK) as pacs:
        read(pacs, open_slide(pacs, written.study_uid, written.series_uid))


def test_a_frame_of_many_bands_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_pixels, "BAND_PX", 40 * 1440)  # half a frame high

    def read(pacs: Any, slide: Slide) -> None:
        before = pacs.budget.pixels_decoded
        list(read_tiles(pacs, slide, np.array([[0, 0, 1440, 1280.0]]), 1.6 * UM_PER_PX))
        assert (pacs.budget.pixels_decoded - before) / (96 * 80) == 15 * 16

    opened(tmp_path, read)


def test_pixels_do_not_depend_on_how_many_tiles_are_read_together(tmp_path: Path) -> None:
    corner = np.array([(x, y) for y in (0, 300, 600) for x in (0, 350, 700)], np.float64)
    box_px = np.hstack([corner, corner + 640])

    def read(pacs: Any, slide: Slide) -> None:
        few = ReadSettings(window_bytes=400_000)  # two tiles
        one, other = (
            list(read_tiles(pacs, slide, box_px, 2 * UM_PER_PX, batch_size=4, settings=settings))
            for settings in (WHOLE, few)
        )
        assert [len(batch.rgb) for batch in other] == [4, 4, 1]
        for batch, same in zip(one, other, strict=True):
            assert np.array_equal(batch.rgb, same.rgb)
            assert np.array_equal(batch.valid, same.valid)
            assert np.array_equal(batch.origin_px, same.origin_px)

    opened(tmp_path, read)


def test_stopping_early_ends_the_reading_in_parts(tmp_path: Path) -> None:
    def read(pacs: Any, slide: Slide) -> None:
        box_px = np.array([[0, 0, 1280, 1280.0]] * 20)
        tiles = read_tiles(pacs, slide, box_px, 4 * UM_PER_PX, batch_size=1, settings=IN_PARTS)
        next(tiles)
        tiles.close()
        read_before = pacs.frames_read
        list(read_tiles(pacs, slide, np.array([[0, 0, 96, 80.0]]), UM_PER_PX))
        assert pacs.frames_read == read_before + 1

    opened(tmp_path, read)


@pytest.mark.parametrize(
    ("times", "tiles", "threads"), [(8, 8, 0), (16, 4, 0), (16, 4, 17)], ids=str
)
def test_memory_stays_small_whatever_a_tile_shows(times: int, tiles: int, threads: int) -> None:
    """One canvas of 640 px at a sixteenth of the resolution takes 840 MB until it is resampled."""
    noise = np.random.default_rng(1).integers(-14, 15, (TILE_PX, TILE_PX, 3))
    frame = (picture(TILE_PX, TILE_PX) + noise).clip(0, 255).astype(np.uint8)
    with large_slide(100, 100, "TILED_FULL", rgb=frame) as url:
        command = [sys.executable, "-m", "tests.coarse_reading", url]
        command += [str(number) for number in (times, tiles, threads)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    grown_mb = float(ended.stdout)
    print(f"{times} times coarser, {threads} threads: {grown_mb:.0f} MB")
    assert grown_mb < 300
