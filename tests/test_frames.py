"""read_tiles against pydicom and Pillow, from a folder and a real Orthanc."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from dicom_io.errors import FrameInvalid
from dicom_io.frames import bytes_of_regions, bytes_slide, read_tiles
from dicom_io.pacs import InstanceReference, Pacs, open_pacs
from dicom_io.slide import open_slide
from dicom_io.slide_settings import ReadSettings
from dicom_io.tile_plan import choose_level, frame_boxes, frames_touching
from models.records import Regions, Tiles
from tests.conftest import QUICK
from tests.faulty_proxy import Fault, Proxy
from tests.servers import Orthanc
from tests.slides import WrittenSlide, stored_pixels, write_slide

REAL_SLIDE = Path(__file__).parent / "data" / "real_slide_jpeg.dcm"
Archive = Callable[[WrittenSlide | None], Pacs]


def boxes(*corners: tuple[float, float], side: float = 150) -> np.ndarray:
    corner = np.array(corners, np.float64)
    return np.hstack([corner, corner + side])


def regions(*box_px: tuple[float, float, float, float]) -> Regions:
    return Regions(np.array(box_px, np.float64), np.ones(len(box_px), np.float32), "test")


def expected_tile(tiles: Tiles, index: int, rgb: np.ndarray, stored: np.ndarray) -> tuple:
    """The same tile cut out of the whole level, white outside."""
    x, y = tiles.origin_px[index].astype(int)
    height, width = tiles.valid.shape[1:]
    pixels = np.full((height, width, 3), 255, np.uint8)
    valid = np.zeros((height, width), bool)
    for row in range(height):
        for_row = y + row
        if not 0 <= for_row < rgb.shape[0]:
            continue
        columns = np.arange(max(x, 0), min(x + width, rgb.shape[1]))
        pixels[row, columns - x] = rgb[for_row, columns]
        valid[row, columns - x] = stored[for_row, columns]
    return pixels, valid


@pytest.mark.parametrize("encoding", ["jpeg", "jpeg2000", "jpegls", "raw"])
@pytest.mark.parametrize("organization", ["TILED_FULL", "TILED_SPARSE"])
def test_pixels_are_those_of_an_independent_reader(
    archive: Archive, tmp_path: Path, encoding: str, organization: str
) -> None:
    written = write_slide(
        tmp_path,
        encoding=encoding,
        organization=organization,
        parts=2,
        leave_out=lambda c, r: (c + 2 * r) % 5 == 0,
    )
    rgb, stored = stored_pixels(*written.paths[:2])
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    box_px = boxes((10, 20), (-40, 300), (420, 10), (200, 100), (9000, 9000), (30, 40))
    batches = list(read_tiles(pacs, slide, box_px, 0.25, batch_size=4))
    assert [len(batch.valid) for batch in batches] == [4, 2]
    for batch, start in zip(batches, (0, 4), strict=True):
        assert np.array_equal(batch.origin_px, box_px[start : start + 4, :2])
        for index in range(len(batch.valid)):
            pixels, valid = expected_tile(batch, index, rgb, stored)
            assert np.array_equal(batch.rgb[index], pixels)
            assert np.array_equal(batch.valid[index], valid)


def test_run_lengths_from_a_server(orthanc: Orthanc, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1, size_px=(200, 150), encoding="rle")
    orthanc.add(*written.paths)
    rgb, _ = stored_pixels(*written.paths)
    with open_pacs(orthanc.dicomweb_url, QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        assert slide.base.transfer_syntax_uids == ("1.2.840.10008.1.2.5",)
        (tiles,) = read_tiles(pacs, slide, boxes((10, 10), side=130), 0.25)
    assert np.array_equal(tiles.rgb[0], rgb[10:140, 10:140])


def test_real_slide_without_specimen_and_origin(archive: Archive, tmp_path: Path) -> None:
    path = Path(shutil.copy(REAL_SLIDE, tmp_path))
    ds = dcmread(path)
    pacs = archive(WrittenSlide(ds.StudyInstanceUID, ds.SeriesInstanceUID, (path,)))
    slide = open_slide(pacs, ds.StudyInstanceUID, ds.SeriesInstanceUID)
    rgb, stored = stored_pixels(path)
    (tiles,) = read_tiles(pacs, slide, boxes((-20, 200), side=600), slide.base.um_per_px)
    pixels, valid = expected_tile(tiles, 0, rgb, stored)
    assert np.array_equal(tiles.rgb[0], pixels)
    assert np.array_equal(tiles.valid[0], valid)


def test_whole_factor_is_the_mean_of_the_level(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    rgb, _ = stored_pixels(written.paths[0])
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    (tiles,) = read_tiles(pacs, slide, boxes((8, 16), side=200), 1.0)
    assert tiles.rgb.shape == (1, 50, 50, 3)
    assert tiles.px_per_tile_px.tolist() == [4, 4]
    mean = rgb[16:216, 8:208].reshape(50, 4, 50, 4, 3).mean((1, 3))
    assert np.abs(tiles.rgb[0] - mean).max() <= 1
    assert tiles.valid.all()


def test_other_factor_agrees_with_pillow(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    rgb, _ = stored_pixels(written.paths[0])
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    (tiles,) = read_tiles(pacs, slide, boxes((40.5, 60.25), side=120), 0.3)
    box = (40.5, 60.25, 160.5, 180.25)
    reference = Image.fromarray(rgb).resize((100, 100), Image.Resampling.HAMMING, box=box)
    inner = np.s_[2:-2, 2:-2]
    difference = np.abs(tiles.rgb[0][inner].astype(int) - np.array(reference)[inner])
    assert difference.max() <= 1
    assert np.allclose(tiles.px_per_tile_px, 1.2)


def test_coarsest_level_that_is_fine_enough(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=3)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    chosen = [choose_level(slide, um).um_per_px for um in (0.1, 0.25, 0.2476, 0.4, 0.5, 0.995, 5)]
    assert np.allclose(chosen, [0.25, 0.25, 0.25, 0.25, 0.5, 1.0, 1.0])


def test_only_frames_in_the_regions_are_read(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    within = regions((64, 64, 192, 128))
    before = pacs.frames_read
    (tiles,) = read_tiles(pacs, slide, boxes((0, 0), side=256), 0.25, within=within)
    assert pacs.frames_read - before == 2
    expected = np.zeros((256, 256), bool)
    expected[64:128, 64:192] = True
    assert np.array_equal(tiles.valid[0], expected)
    assert (tiles.rgb[0][~expected] == 255).all()


def test_overlapping_tiles_fetch_a_frame_once(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    corner = np.random.default_rng(3).uniform((0, 0), (350, 230), (60, 2))
    corner[7] = (350, 230)  # so that the last frame is among them
    before, bytes_before = pacs.frames_read, pacs.bytes_read
    small_windows = ReadSettings(window_bytes=8000)
    count = sum(
        len(tiles.valid)
        for tiles in read_tiles(
            pacs, slide, np.hstack([corner, corner + 150]), 0.25, settings=small_windows
        )
    )
    assert count == 60
    assert pacs.frames_read - before == 48
    stored = sum(
        len(frame)
        for frame in generate_frames(dcmread(written.paths[0]).PixelData, number_of_frames=48)
    )
    assert abs(pacs.bytes_read - bytes_before - stored) <= 48  # pad bytes


def test_overlapping_tiles_decode_a_frame_once(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    rgb, stored = stored_pixels(written.paths[0])
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    corner = np.stack(np.meshgrid(np.arange(-16, 500, 48), np.arange(-16, 380, 48)), -1)
    box_px = np.hstack([corner.reshape(-1, 2), corner.reshape(-1, 2) + 80])
    for kept_frames, most_decoded in ((48, 48), (20, 100), (0, 48 * 9)):
        settings = ReadSettings(frames_bytes=kept_frames * 3 * 64 * 64)
        before, number = pacs.budget.pixels_decoded, 0
        for tiles in read_tiles(pacs, slide, box_px, 0.25, batch_size=2, settings=settings):
            for index in range(len(tiles.rgb)):
                expected, _ = expected_tile(tiles, index, rgb, stored)
                assert np.array_equal(tiles.rgb[index], expected)
            number += len(tiles.rgb)
        assert number == len(box_px)
        assert 48 <= (pacs.budget.pixels_decoded - before) / 64**2 <= most_decoded


def test_small_cache_reads_again_and_right(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    rgb, stored = stored_pixels(written.paths[0])
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    box_px = boxes((0, 0), (300, 200), (0, 0), (300, 200))
    tiny = ReadSettings(cache_bytes=4000, window_bytes=4000)
    (tiles,) = read_tiles(pacs, slide, box_px, 0.25, settings=tiny)
    for index in range(4):
        assert np.array_equal(tiles.rgb[index], expected_tile(tiles, index, rgb, stored)[0])
    assert pacs.frames_read > 18


def test_stopping_early_leaves_nothing_running(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    tiles = read_tiles(pacs, slide, boxes((0, 0), (300, 200)), 0.25, batch_size=1)
    next(tiles)
    tiles.close()
    reference = InstanceReference(slide.study_uid, slide.series_uid, slide.base.instance_uids[0])
    assert len(list(pacs.frames(reference, [3]))) == 1


def test_no_boxes_no_tiles(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert list(read_tiles(pacs, slide, np.empty((0, 4)), 0.25)) == []


def test_frame_boxes_tile_the_slide(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=2)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    for level in slide.levels:
        box = frame_boxes(slide, level)
        assert ((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).sum() == 500 * 380
    touched = frames_touching(slide, slide.base, regions((64, 0, 128, 65)))
    assert np.argwhere(touched).tolist() == [[0, 1], [1, 1]]


def test_bytes_of_the_slide_are_estimated(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    list(read_tiles(pacs, slide, boxes((0, 0), side=512), 0.25))
    assert bytes_slide(pacs, slide) == pytest.approx(written.paths[0].stat().st_size, rel=0.15)


def test_bytes_of_regions_count_each_frame_once(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    region = regions((64, 0, 128, 65))
    frames_before = pacs.frames_read
    list(read_tiles(pacs, slide, boxes((64, 0), side=64), 0.25, within=region))
    list(read_tiles(pacs, slide, boxes((64, 64), side=64), 0.25, within=region))
    assert pacs.frames_read - frames_before == 2
    mean = pacs.bytes_read / pacs.frames_read
    assert bytes_of_regions(pacs, slide, region, 0.25) == pytest.approx(2 * mean, abs=1)


def _one_frame(number: int, frame: bytes) -> Callable[[Dataset, int], None]:
    def change(ds: Dataset, level: int) -> None:
        frames = list(generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)))
        frames[number] = frame if frame else frames[number][: len(frames[number]) // 2]
        ds.PixelData = encapsulate(frames)

    return change


def _small_jpeg() -> bytes:
    import simplejpeg

    return simplejpeg.encode_jpeg(np.zeros((32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("frame", "said"), [(b"", "truncated or damaged"), (_small_jpeg(), "32 × 32 × 3")]
)
def test_stored_bad_frame_is_named(
    archive: Archive, tmp_path: Path, frame: bytes, said: str
) -> None:
    written = write_slide(tmp_path, levels=1, change=_one_frame(10, frame))
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    with pytest.raises(FrameInvalid, match=said) as caught:
        list(read_tiles(pacs, slide, boxes((0, 0), side=380), 0.25))
    assert f"Frame 11 of instance {slide.base.instance_uids[0]}" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda i, frame: None, "does not give frame 1 of instance"),
        (lambda i, frame: b"" if i == 2 else frame, "Frame 3 of instance .* is empty"),
        (lambda i, frame: frame[:300] if i == 2 else frame, "Frame 3 of instance .* truncated"),
        (lambda i, frame: _small_jpeg() if i == 2 else frame, "Frame 3 of instance .* 32 × 32"),
    ],
)
def test_frame_spoilt_on_the_way(
    proxy: Proxy, orthanc: Orthanc, tmp_path: Path, part: Callable, said: str
) -> None:
    written = write_slide(tmp_path, levels=1)
    orthanc.add(*written.paths)
    with open_pacs(proxy.url, QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
        proxy.fault = Fault(path="/frames/", part=part)
        with pytest.raises(FrameInvalid, match=said) as caught:
            list(read_tiles(pacs, slide, boxes((0, 0), side=192), 0.25))
    assert slide.base.instance_uids[0] in str(caught.value)
