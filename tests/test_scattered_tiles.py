"""Sparse frames that lie off the grid, also over one another: pixels equal those of pasting all."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_io.errors import SlideGeometryInvalid, SlideTooLarge
from dicom_io.focus import in_focus
from dicom_io.frames import bytes_of_regions, bytes_slide, read_tiles
from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from dicom_io.slide import open_slide
from dicom_io.slide_settings import SlideSettings
from dicom_io.tile_layout import Scattered
from models.records import Regions
from tests.conftest import QUICK
from tests.large_slides import SERIES, STUDY, TILE_PX, large_slide
from tests.scattered_slides import SIZE_PX, UM_PER_PX, Placed, pasted, write_scattered
from tests.slides import WrittenSlide

Archive = Callable[[WrittenSlide | None], Pacs]
BOX_PX = np.array(
    [
        [0, 0, 150, 150],
        [-40, 300, 110, 450],
        [420, 10, 570, 160],
        [201, 99, 351, 249],
        [64, 48, 214, 198],
        [9000, 9000, 9150, 9150.0],
    ]
)


def grid(step_x: int, step_y: int, from_x: int = 0, from_y: int = 0) -> list[Placed]:
    return [
        Placed(x, y)
        for y in range(from_y, SIZE_PX[1], step_y)
        for x in range(from_x, SIZE_PX[0], step_x)
    ]


def anywhere(count: int) -> list[Placed]:
    corner = np.random.default_rng(4).integers(0, SIZE_PX, (count, 2)).tolist()
    return [Placed(x, y) for x, y in corner]


LAYOUTS = {
    "shifted": [grid(64, 48, 5, 7)],
    "apart": [grid(80, 60)],
    "overlapping": [grid(50, 40)],
    "overlapping, backwards": [grid(50, 40)[::-1]],
    "one row off": [grid(64, 48)[:30] + [Placed(f.left + 3, f.top) for f in grid(64, 48)[30:]]],
    "anywhere": [anywhere(90)],
    "in parts": [anywhere(90)[:40], anywhere(90)[40:]],
    "one": [[Placed(100, 100), Placed(163, 101)]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_are_those_of_all_frames_pasted(
    archive: Archive, tmp_path: Path, layout: str
) -> None:
    written = write_scattered(tmp_path, LAYOUTS[layout])
    rgb, stored = pasted(*written.paths)
    around = np.pad(rgb, ((200, 200), (200, 200), (0, 0)), constant_values=255)
    known = np.pad(stored, 200)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    (tiles,) = read_tiles(pacs, slide, BOX_PX, UM_PER_PX)
    for index, (x, y) in enumerate(BOX_PX[:-1, :2].astype(int) + 200):
        here = np.s_[y : y + 150, x : x + 150]
        assert np.array_equal(tiles.rgb[index], around[here])
        assert np.array_equal(tiles.valid[index], known[here])
    assert not tiles.valid[-1].any()


def test_jpeg_frames_overlap(archive: Archive, tmp_path: Path) -> None:
    written = write_scattered(tmp_path, LAYOUTS["overlapping"], encoding="jpeg")
    rgb, stored = pasted(*written.paths)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    (tiles,) = read_tiles(pacs, slide, np.array([[0, 0, *SIZE_PX]]), UM_PER_PX)
    assert np.array_equal(tiles.rgb[0], rgb)
    assert stored.all()
    assert tiles.valid.all()


def test_frame_that_a_tile_shows_alone_is_found_among_others(
    archive: Archive, tmp_path: Path
) -> None:
    """The box of one frame is decoded straight into its tile; a later one lies over a part."""
    written = write_scattered(tmp_path, [[Placed(70, 50), Placed(300, 200), Placed(320, 210)]])
    rgb, _ = pasted(*written.paths)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    box_px = np.array([[70, 50, 134, 98], [300, 200, 364, 248.0]])
    (tiles,) = read_tiles(pacs, slide, box_px, UM_PER_PX)
    assert np.array_equal(tiles.rgb[0], rgb[50:98, 70:134])
    assert np.array_equal(tiles.rgb[1], rgb[200:248, 300:364])


def test_coarser_pixels_are_those_of_the_pasted_level(archive: Archive, tmp_path: Path) -> None:
    written = write_scattered(tmp_path, LAYOUTS["overlapping"])
    rgb, _ = pasted(*written.paths)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    (tiles,) = read_tiles(pacs, slide, np.array([[40, 20, 440, 340.0]]), 4 * UM_PER_PX)
    expected = Image.fromarray(rgb[20:340, 40:440]).resize((100, 80), Image.Resampling.BOX)
    assert np.abs(tiles.rgb[0].astype(int) - np.array(expected)).max() <= 1


@pytest.mark.parametrize("numbers", [(1, 2), (2, 1)])
def test_instances_lie_over_one_another_by_their_numbers(
    archive: Archive, tmp_path: Path, numbers: tuple[int, int]
) -> None:
    """Not by the order in which an archive lists them."""
    written = write_scattered(tmp_path, [grid(60, 44), grid(60, 44, 9, 5)], numbers=numbers)
    rgb, _ = pasted(*sorted(written.paths, key=lambda p: numbers[written.paths.index(p)]))
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    (tiles,) = read_tiles(pacs, slide, np.array([[0, 0, *SIZE_PX]]), UM_PER_PX)
    assert np.array_equal(tiles.rgb[0], rgb)


def test_only_frames_near_the_regions_are_read_and_counted(
    archive: Archive, tmp_path: Path
) -> None:
    placed = grid(64, 48, 5, 7)
    written = write_scattered(tmp_path, [placed])
    rgb, _ = pasted(*written.paths)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    within = Regions(np.array([[128, 96, 192, 144.0]]), np.ones(1, np.float32), "test")
    before, bytes_before = pacs.frames_read, pacs.bytes_read
    (tiles,) = read_tiles(pacs, slide, np.array([[64, 48, 364, 248.0]]), UM_PER_PX, within=within)
    assert pacs.frames_read - before == 4  # those that touch the region
    assert np.array_equal(tiles.rgb[0][48:96, 64:128], rgb[96:144, 128:192])
    assert (tiles.rgb[0][~tiles.valid[0]] == 255).all()
    frame_bytes = (pacs.bytes_read - bytes_before) / 4
    assert bytes_of_regions(pacs, slide, within, UM_PER_PX) == pytest.approx(4 * frame_bytes, 0.3)
    assert bytes_slide(pacs, slide) == 64 * 48 * 3 * len(placed)


def test_planes(archive: Archive, tmp_path: Path) -> None:
    heights = (0.0, 0.002, 0.004)
    placed = [Placed(f.left, f.top, z) for f in grid(60, 44) for z in heights]
    written = write_scattered(tmp_path, [placed])
    pacs = archive(written)
    for number, z_mm in enumerate(heights, 1):
        settings = SlideSettings(focal_plane=number)
        slide = open_slide(pacs, written.study_uid, written.series_uid, settings=settings)
        (tiles,) = read_tiles(pacs, slide, np.array([[0, 0, *SIZE_PX]]), UM_PER_PX)
        assert np.array_equal(tiles.rgb[0], pasted(*written.paths, z_mm=z_mm)[0])
    region = Regions(np.array([[100, 100, 200, 200.0]]), np.ones(1, np.float32), "test")
    focused = in_focus(pacs, slide, region, SlideSettings(focal_plane="sharpest"))
    assert focused.focal_plane.startswith("of 3 the sharpest")
    (tiles,) = read_tiles(pacs, focused, np.array([[0, 0, *SIZE_PX]]), UM_PER_PX)
    planes = [pasted(*written.paths, z_mm=z_mm)[0] for z_mm in heights]
    assert any(np.array_equal(tiles.rgb[0], plane) for plane in planes)  # one block, one plane


REFUSED = {
    "the same place twice": (
        [*grid(60, 44), Placed(60, 44)],
        SlideGeometryInvalid,
        "The tile at pixel column 61, row 45 is stored twice in instance",
    ),
    "outside the matrix": (
        [Placed(3, 3), Placed(SIZE_PX[0], 3)],
        SlideGeometryInvalid,
        "has a frame outside its total pixel matrix",
    ),
    "a heap": (
        [Placed(100 + i % 10, 100 + i // 10) for i in range(65)],
        SlideTooLarge,
        "65 tiles over one another",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(archive: Archive, tmp_path: Path, name: str) -> None:
    placed, error, said = REFUSED[name]
    written = write_scattered(tmp_path, [placed])
    with pytest.raises(error, match=said) as caught:
        open_slide(archive(written), written.study_uid, written.series_uid)
    assert str(caught.value).endswith(".")


def test_forty_thousand_frames_open_as_fast_and_as_small_as_on_the_grid() -> None:
    peaks = []
    for shift_px in (0, 100):
        with (
            large_slide(200, 200, "TILED_SPARSE", shift_px) as url,
            open_pacs(url, PacsSettings()) as pacs,
        ):
            begun = time.monotonic()
            slide = open_slide(pacs, STUDY, SERIES)
            assert time.monotonic() - begun < 5
            tracemalloc.start()
            try:
                open_slide(pacs, STUDY, SERIES)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    layout = slide.base.frames.layout
    assert isinstance(layout, Scattered)
    assert layout.tiles == 40_000
    assert sum(array.nbytes for array in (layout.corner, layout.first, layout.of_cell)) < 3e6
    assert peaks[1] < peaks[0] + 10e6
    assert len(list(slide.base.frames.places((0, 0, TILE_PX, 2 * TILE_PX)))) == 2


def test_padding_of_the_last_frame_is_not_slide(tmp_path: Path) -> None:
    written = write_scattered(tmp_path, [grid(64, 48)])
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        box_px = np.array([[SIZE_PX[0] + 2, 10, SIZE_PX[0] + 52, 60.0]])
        (tiles,) = read_tiles(pacs, slide, box_px, UM_PER_PX)
    assert not tiles.valid.any()
    assert (tiles.rgb == 255).all()
