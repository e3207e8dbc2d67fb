"""Levels joined from parts, planes, thumbnails and other series, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from dicom_io.dicom_json import attributes
from dicom_io.errors import PixelsUnsupported, SlideGeometryInvalid, SlideTooLarge
from dicom_io.frames import read_tiles
from dicom_io.level_image import level_image
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.series_metadata import InstanceMetadata
from dicom_io.slide import open_slide
from dicom_io.slide_settings import SlideSettings
from tests.conftest import QUICK
from tests.filed_archive import filed
from tests.layered_slides import layers, write_layers
from tests.slides import Change, WrittenSlide, stored_pixels, write_slide

Archive = Callable[[WrittenSlide | None], Pacs]


def _resend(keep: int) -> Callable[[WrittenSlide], WrittenSlide]:
    """Send the base level again under new UIDs, with all but `keep` of its frames taken away."""

    def again(written: WrittenSlide) -> WrittenSlide:
        ds = dcmread(written.paths[0])
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        frames = list(generate_frames(ds.PixelData, number_of_frames=int(ds.NumberOfFrames)))
        ds.PixelData = encapsulate(frames[:keep])
        ds.NumberOfFrames = keep
        ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:keep]
        path = written.paths[0].with_name("again.dcm")
        ds.save_as(path)
        return WrittenSlide(written.study_uid, written.series_uid, (*written.paths, path))

    return again


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (48, "store the same 48 tiles, as when a slide is sent again: delete one of them"),
        (10, "Tile column 1, row 1 is stored twice, in instances .* parts of the level overlap"),
    ],
)
def test_tiles_stored_by_two_instances(
    archive: Archive, tmp_path: Path, keep: int, said: str
) -> None:
    written = write_slide(tmp_path, levels=1, organization="TILED_SPARSE")
    written = _resend(keep)(written)
    with pytest.raises(SlideGeometryInvalid, match=said) as caught:
        open_slide(archive(written), written.study_uid, written.series_uid)
    for path in written.paths:
        assert dcmread(path).SOPInstanceUID in str(caught.value)


def test_tile_stored_twice_in_one_instance(archive: Archive, tmp_path: Path) -> None:
    def twice(ds: Dataset, level: int) -> None:
        items = ds.PerFrameFunctionalGroupsSequence
        items[5].PlanePositionSlideSequence = items[4].PlanePositionSlideSequence

    written = write_slide(tmp_path, levels=1, organization="TILED_SPARSE", change=twice)
    with pytest.raises(SlideGeometryInvalid, match="column 5, row 1 is stored twice in instance"):
        open_slide(archive(written), written.study_uid, written.series_uid)


def test_concatenation_that_lacks_a_part(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1, parts=3)
    written.paths[1].unlink()
    written = WrittenSlide(
        written.study_uid, written.series_uid, (written.paths[0], written.paths[2])
    )
    with pytest.raises(SlideGeometryInvalid, match=r"32 frames where .* make 48"):
        open_slide(archive(written), written.study_uid, written.series_uid)


def test_two_pyramids_in_one_series(archive: Archive, tmp_path: Path) -> None:
    def name(ds: Dataset, level: int) -> None:
        ds.PyramidUID = f"1.2.{level}"

    written = write_slide(tmp_path, levels=2, change=name)
    with pytest.raises(SlideGeometryInvalid, match=r"2 pyramids \(PyramidUID 1\.2\.0, 1\.2\.1\)"):
        open_slide(archive(written), written.study_uid, written.series_uid)


@pytest.mark.parametrize("plane", [0, 2])
def test_focal_plane_that_is_not_there(archive: Archive, tmp_path: Path, plane: int) -> None:
    written = write_slide(tmp_path, levels=1)
    settings = SlideSettings(focal_plane=plane)
    with pytest.raises(PixelsUnsupported, match=f"1 focal plane.*, not a plane {plane}"):
        open_slide(archive(written), written.study_uid, written.series_uid, settings=settings)


def test_optical_path_that_is_not_there(archive: Archive, tmp_path: Path) -> None:
    written = write_layers(tmp_path, [layers(("1", "2"), planes=1)])
    settings = SlideSettings(optical_path="3")
    with pytest.raises(PixelsUnsupported, match=f"{written.series_uid} has no .* '3' but '1', '2'"):
        open_slide(archive(written), written.study_uid, written.series_uid, settings=settings)


def test_sparse_frame_that_does_not_name_its_path(archive: Archive, tmp_path: Path) -> None:
    def two_paths(ds: Dataset, level: int) -> None:
        ds.NumberOfOpticalPaths = 2

    written = write_slide(tmp_path, levels=1, organization="TILED_SPARSE", change=two_paths)
    with pytest.raises(SlideGeometryInvalid, match="2 optical paths and a frame without"):
        open_slide(archive(written), written.study_uid, written.series_uid)


@pytest.mark.parametrize("consistent", [True, False])
def test_thumbnail_is_a_low_level_if_it_shows_the_same(
    archive: Archive, tmp_path: Path, consistent: bool
) -> None:
    def thumbnail(ds: Dataset, level: int) -> None:
        if level:
            ds.ImageType = ["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"]
            del ds.DimensionOrganizationType
            if not consistent:
                ds.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem = 21

    written = write_slide(tmp_path, scales=(1, 8), change=thumbnail, encoding="raw")
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert [level.size_px for level in slide.levels] == [(500, 380), (62, 47)][: 1 + consistent]
    if consistent:
        (tiles,) = read_tiles(pacs, slide, np.array([[0, 0, 496, 376.0]]), 2.0)
        assert np.array_equal(tiles.rgb[0], stored_pixels(written.paths[1])[0])


@pytest.mark.parametrize(
    ("difference", "joined"),
    [
        (None, True),
        ("FrameOfReferenceUID", False),
        ("ContainerIdentifier", False),
        ("PyramidUID", False),
    ],
)
def test_low_level_in_another_series(
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    difference: str | None,
    joined: bool,
) -> None:
    other = generate_uid()

    def move(ds: Dataset, level: int) -> None:
        ds.PyramidUID = "1.2.3"
        if level:
            ds.SeriesInstanceUID = other
            if difference is not None:
                setattr(ds, difference, "1.2.4")

    monkeypatch.setattr("dicom_io.slide_images.LOW_LEVEL_PX", 200)
    written = write_slide(tmp_path, levels=3, change=move, encoding="raw")
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert len(slide.levels) == (3 if joined else 1)
    assert slide.base.series_uids == (written.series_uid,)
    assert slide.header.SeriesInstanceUID == written.series_uid
    if joined:
        (tiles,) = read_tiles(pacs, slide, np.array([[0, 0, 500, 380.0]]), 1.0)
        assert np.array_equal(tiles.rgb[0], stored_pixels(written.paths[2])[0])


def test_a_thumbnail_that_came_later_is_not_of_the_slide_as_it_was(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened with the low level that another series lends, as long as it had no own one."""
    other = generate_uid()

    def change(ds: Dataset, level: int) -> None:
        if level == 1:
            ds.SeriesInstanceUID = other
        if level == 2:
            ds.ImageType = ["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"]
            del ds.DimensionOrganizationType

    monkeypatch.setattr("dicom_io.slide_images.LOW_LEVEL_PX", 200)
    written = write_slide(tmp_path, scales=(1, 8, 8), change=change, encoding="raw")
    base, lent, thumbnail = (dcmread(path).SOPInstanceUID for path in written.paths)
    pacs, uids = archive(written), (written.study_uid, written.series_uid)
    assert set(open_slide(pacs, *uids).source_instances) == {base, thumbnail}
    then = open_slide(pacs, *uids, instances=[base, lent])
    assert set(then.source_instances) == {base, lent}


def test_series_found_whose_attributes_are_no_text_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_io.slide_images.LOW_LEVEL_PX", 200)
    written = write_slide(tmp_path, levels=1)
    found = {"00080060": {"vr": "PN", "Value": [{}]}, "0020000E": {"vr": "UI", "Value": ["1.2.3"]}}
    with open_pacs(tmp_path.as_uri(), QUICK) as pacs:
        monkeypatch.setattr(pacs, "search_series", lambda study_uid: [found])
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert len(slide.levels) == 1


def test_low_level_is_not_searched_where_there_is_one(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_slide(tmp_path, levels=2)
    pacs = archive(written)
    monkeypatch.setattr(pacs, "search_series", pytest.fail)
    open_slide(pacs, written.study_uid, written.series_uid)


def _space(ds: Dataset, mm: float) -> None:
    ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [mm, mm]


def _round_low_level(ds: Dataset, level: int) -> None:
    if level:
        _space(ds, 0.00203)


def _round_base_level(ds: Dataset, level: int) -> None:
    if not level:
        _space(ds, 0.000254)


def _pad_low_level(ds: Dataset, level: int) -> None:
    if level:
        ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = 203, 152


@pytest.mark.parametrize("change", [_round_low_level, _round_base_level, _pad_low_level])
def test_cell_lands_right_where_spacing_and_matrix_of_a_low_level_differ(
    archive: Archive, tmp_path: Path, change: Change
) -> None:
    """The level is 8 times coarser; spacings that are rounded say otherwise, or its size does."""
    centre_px = np.array([1500.0, 1100.0])
    rows, columns = np.mgrid[:1200, :1600] + 0.5
    rgb = np.full((1200, 1600, 3), 240, np.uint8)
    rgb[np.hypot(columns - centre_px[0], rows - centre_px[1]) < 40] = (90, 40, 120)
    written = write_slide(tmp_path, rgb=rgb, scales=(1, 8), encoding="raw", change=change)
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    box_px = np.concatenate([centre_px - 96, centre_px + 96])[None]
    (tiles,) = read_tiles(pacs, slide, box_px, slide.levels[1].um_per_px)
    assert tiles.px_per_tile_px.min() > 7
    dark = np.argwhere(tiles.rgb[0, ..., 1] < 140)[:, ::-1] + 0.5
    found_px = tiles.origin_px[0] + dark.mean(axis=0) * tiles.px_per_tile_px
    assert np.abs(found_px - centre_px).max() < 4


def test_part_that_begins_before_the_first_frame_is_refused(tmp_path: Path) -> None:
    """Its frames lay outside the matrix, and were left out in silence."""
    written = write_slide(tmp_path, levels=1, parts=3)
    header = filed(written.paths[0]).metadata | attributes(ConcatenationFrameOffsetNumber=-16)
    with pytest.raises(SlideGeometryInvalid, match="ConcatenationFrameOffsetNumber below zero"):
        level_image(InstanceMetadata(header, None))


def test_numbers_beyond_any_slide(archive: Archive, tmp_path: Path) -> None:
    def damage(ds: Dataset, level: int) -> None:
        ds.TotalPixelMatrixColumns = ds.TotalPixelMatrixRows = 190_000

    written = write_slide(tmp_path, levels=1, tile_px=(16, 16), change=damage)
    with pytest.raises(SlideTooLarge, match="11875 × 11875 tiles"):
        open_slide(archive(written), written.study_uid, written.series_uid)
