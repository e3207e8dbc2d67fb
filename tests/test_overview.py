"""The small picture of a whole slide: as one tile shows it, in bounded memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dicom_io.frame_sample import sampled_frames
from dicom_io.frames import read_tiles
from dicom_io.overview import PIECE_PX, read_overview
from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from dicom_io.slide_settings import ReadSettings
from models.records import UInt8
from node.pictures import OVERVIEW_PX
from node.views import busiest_field_px, read_field
from tests.analyses import some_analysis
from tests.conftest import QUICK
from tests.large_slides import SERIES, STUDY, TILE_PX, large_slide
from tests.slides import picture, write_slide

LONGEST_PX = 1600
ALL = 10**6
PINK = (225, 200, 215)


def as_one_tile(pacs: Pacs, slide: Slide) -> UInt8:
    width, height = slide.base.size_px
    scale = max(1.0, max(width, height) / LONGEST_PX)
    box_px = np.array([[0.0, 0, width, height]])
    (tiles,) = read_tiles(pacs, slide, box_px, slide.base.um_per_px * scale)
    rgb: UInt8 = tiles.rgb[0]
    return rgb


@pytest.mark.parametrize(
    ("size_px", "scales"),
    [
        ((500, 380), (1, 2, 4)),  # smaller than the picture
        ((2601, 1903), (1, 2, 4)),
        ((3220, 1001), (1, 2)),  # a level that is given as it is stored
        ((6400, 640), (1,)),  # the most that is one piece
    ],
)
def test_ordinary_slide_is_shown_as_one_tile_shows_it(
    tmp_path: Path, size_px: tuple[int, int], scales: tuple[float, ...]
) -> None:
    written = write_slide(tmp_path, size_px=size_px, tile_px=(256, 256), scales=scales)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        overview = read_overview(pacs, slide, LONGEST_PX, ALL, ReadSettings())
        assert max(overview.shape) <= LONGEST_PX
        assert np.array_equal(overview, as_one_tile(pacs, slide))


def test_what_is_not_stored_is_white(tmp_path: Path) -> None:
    written = write_slide(
        tmp_path,
        size_px=(2600, 1900),
        levels=1,
        tile_px=(256, 256),
        organization="TILED_SPARSE",
        leave_out=lambda column, row: (column + row) % 3 == 0,
    )
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        overview = read_overview(pacs, slide, LONGEST_PX, ALL, ReadSettings())
        assert (overview[:150, :150] == 255).all()
        assert np.array_equal(overview, as_one_tile(pacs, slide))


def test_pieces_fit_together(tmp_path: Path) -> None:
    """Only the filter's edge shows, and only where two pieces meet."""
    width = 2 * PIECE_PX + 1000
    written = write_slide(tmp_path, rgb=picture(width, 700), tile_px=(256, 256), levels=1)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        overview = read_overview(pacs, slide, LONGEST_PX, ALL, ReadSettings())
        off = np.abs(overview.astype(int) - as_one_tile(pacs, slide))
    seams = [534, LONGEST_PX - 534]  # of three pieces
    near = np.abs(np.arange(LONGEST_PX)[:, None] - np.array(seams)).min(axis=1) <= 1
    assert off[:, ~near].max() <= 1
    assert off.mean() < 0.1


def test_slide_without_low_level_takes_little_memory() -> None:
    """10 240 × 10 240 px of one level are 315 MB as one tile."""
    with (
        large_slide(40, 40, "TILED_FULL") as url,
        open_pacs(url, PacsSettings()) as pacs,
    ):
        slide = open_slide(pacs, STUDY, SERIES)
        tracemalloc.start()
        try:
            overview = read_overview(pacs, slide, LONGEST_PX, 40 * 40, ReadSettings())
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert overview.shape == (LONGEST_PX, LONGEST_PX, 3)
    assert np.abs(overview.astype(int) - PINK).max() <= 2
    assert peak_bytes < 5120 * 5120 * 5


def test_views_of_a_slide_without_low_level_read_a_sample() -> None:
    """51 200 × 51 200 px in 40 000 frames: as one tile 8 GB."""
    columns, most = 200, 400
    with (
        large_slide(columns, columns, "TILED_FULL") as url,
        open_pacs(url, PacsSettings()) as pacs,
    ):
        slide = open_slide(pacs, STUDY, SERIES)
        analysis = some_analysis(slide, cells=50)
        before = pacs.frames_read
        tracemalloc.start()
        try:
            overview = read_overview(pacs, slide, OVERVIEW_PX, most, ReadSettings())
            field_px = busiest_field_px(analysis)
            assert field_px is not None
            field = read_field(pacs, slide, field_px, ReadSettings())
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        of_field = np.prod([side // TILE_PX + 2 for side in field.shape[:2]])
        assert most / 4 <= pacs.frames_read - before <= most + of_field
    assert peak_bytes < 60 * 2**20
    shown = overview.min(axis=2) < 250
    assert 0.25 < shown.mean() * columns**2 / most <= 1.5
    quarters = [shown[y : y + 800, x : x + 800].mean() for y in (0, 800) for x in (0, 800)]
    assert min(quarters) > 0.7 * max(quarters)


def test_sample_lies_where_it_belongs(tmp_path: Path) -> None:
    written = write_slide(tmp_path, size_px=(4000, 3000), tile_px=(128, 128), levels=1)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        overview = read_overview(pacs, slide, LONGEST_PX, 60, ReadSettings())
        whole = as_one_tile(pacs, slide).astype(int)
    sample = sampled_frames(slide, slide.base.um_per_px, 60)
    assert sample is not None
    unread = np.ones(overview.shape[:2], np.bool_)
    for box in sample.box_px / (4000 / LONGEST_PX):
        x0, y0, x1, y1 = np.rint(box).astype(int)
        inner = np.s_[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2]
        assert np.abs(overview[inner] - whole[inner]).max() <= 1
        unread[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
    assert unread.mean() > 0.5
    assert (overview[unread] == 255).all()


def test_level_that_serves_is_read_whole(tmp_path: Path) -> None:
    """Frames of the base level do not count where a lower one is shown."""
    written = write_slide(tmp_path, size_px=(4000, 3000), tile_px=(128, 128), scales=(1, 2))
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        low = replace(slide, levels=slide.levels[:1])
        assert sampled_frames(low, low.base.um_per_px, 16 * 12) is not None
        overview = read_overview(pacs, slide, LONGEST_PX, 16 * 12, ReadSettings())
        assert np.array_equal(overview, as_one_tile(pacs, slide))
