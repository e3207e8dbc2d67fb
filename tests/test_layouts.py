"""Every layout by hand-written slides, and by two independent writers: pixels equal the truth."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from wsidicom import ConcatenationByFrames, WsiDicom

from dicom_io.demonstration import DemonstrationSlide, compose_demonstration_slide
from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.slide import Level, Slide, open_slide
from dicom_io.slide_settings import SlideSettings
from dicom_io.tile_plan import level_scale
from tests.conftest import QUICK
from tests.layered_slides import (
    BRIGHTFIELD,
    FLUORESCENCE,
    SIZE_PX,
    Layer,
    layers,
    write_layers,
)
from tests.servers import Orthanc
from tests.slides import UInt8, WrittenSlide, picture, stored_pixels, write_slide

Archive = Callable[[WrittenSlide | None], Pacs]
ORTHANC_WSI = shutil.which("OrthancWSIDicomizer")


def whole(pacs: Pacs, slide: Slide, level: Level | None = None) -> UInt8:
    """All of a level as the node reads it."""
    level = level or slide.base
    box_px = np.array([[0, 0, *level_scale(slide, level) * level.size_px]])
    um_per_px = 1000 * level.spacing_mm[0]
    (tiles,) = read_tiles(pacs, slide, box_px, um_per_px)
    assert tiles.rgb.shape[2:0:-1] == level.size_px
    return tiles.rgb[0]


def assert_planes_are_read(pacs: Pacs, written: WrittenSlide, every: Sequence[Layer]) -> None:
    for plane, layer in enumerate(every, start=1):
        settings = SlideSettings(focal_plane=plane)
        slide = open_slide(pacs, written.study_uid, written.series_uid, settings=settings)
        assert slide.focal_plane == f"{plane} of {len(every)}"
        assert np.array_equal(whole(pacs, slide), layer.rgb)


@pytest.mark.parametrize("organization", ["TILED_FULL", "TILED_SPARSE"])
@pytest.mark.parametrize(
    "split", ["one instance", "by plane", "by path", "by both", "concatenated"]
)
def test_planes_and_paths(archive: Archive, tmp_path: Path, organization: str, split: str) -> None:
    every = layers(("A", "B"), planes=3)
    keys: dict[str, Callable[[Layer], object]] = {
        "by plane": lambda layer: layer.z_mm,
        "by path": lambda layer: layer.path,
        "by both": lambda layer: (layer.path, layer.z_mm),
    }
    key = keys.get(split, lambda layer: None)
    instances = [
        [layer for layer in every if key(layer) == k] for k in dict.fromkeys(map(key, every))
    ]
    written = write_layers(
        tmp_path,
        instances,
        organization=organization,
        concatenated=4 if split == "concatenated" else 1,
    )
    pacs = archive(written)
    for layer in every:
        plane = round(layer.z_mm / 0.002) + 1
        settings = SlideSettings(optical_path=layer.path, focal_plane=plane)
        slide = open_slide(pacs, written.study_uid, written.series_uid, settings=settings)
        assert np.array_equal(whole(pacs, slide), layer.rgb)
        assert slide.focal_plane == f"{plane} of 3"
        assert slide.optical_path.identifier == layer.path


def test_planes_of_several_instances_lie_at_their_heights(archive: Archive, tmp_path: Path) -> None:
    """Origins are in µm, distances between planes in mm: 1, 3 and 5 µm, and 2 µm between them."""
    rgb = picture(*SIZE_PX)
    every = [
        Layer("1", z_um / 1000, np.roll(rgb, 40 * number, axis=1))
        for number, z_um in enumerate((1, 2, 3, 5))
    ]
    written = write_layers(tmp_path, [[every[0], every[2], every[3]], [every[1]]])
    assert_planes_are_read(archive(written), written, every)


def _share_heights(path: Path, origin_z_um: float | None) -> None:
    """Say the plane's height once, with what all frames share, and another or none elsewhere."""
    ds = dcmread(path)
    (origin,) = ds.TotalPixelMatrixOriginSequence
    position = Dataset()
    position.ZOffsetInSlideCoordinateSystem = origin.ZOffsetInSlideCoordinateSystem
    ds.SharedFunctionalGroupsSequence[0].PlanePositionSlideSequence = [position]
    del origin.ZOffsetInSlideCoordinateSystem
    if origin_z_um is not None:
        origin.ZOffsetInSlideCoordinateSystem = origin_z_um
    for item in ds.get("PerFrameFunctionalGroupsSequence", []):
        del item.PlanePositionSlideSequence[0].ZOffsetInSlideCoordinateSystem
    ds.save_as(path)


def _share_position(path: Path) -> None:
    """Say all of a single frame's position with what all frames share."""
    ds = dcmread(path)
    (item,) = ds.PerFrameFunctionalGroupsSequence
    ds.SharedFunctionalGroupsSequence[
        0
    ].PlanePositionSlideSequence = item.PlanePositionSlideSequence
    del item.PlanePositionSlideSequence
    ds.save_as(path)


@pytest.mark.parametrize("origin_z_um", [None, 0.0])
@pytest.mark.parametrize("organization", ["TILED_FULL", "TILED_SPARSE"])
def test_height_that_all_frames_of_an_instance_share(
    archive: Archive, tmp_path: Path, organization: str, origin_z_um: float | None
) -> None:
    every = layers(("1",), planes=3)
    written = write_layers(tmp_path, [[layer] for layer in every], organization=organization)
    for path in written.paths:
        _share_heights(path, origin_z_um)
    assert_planes_are_read(archive(written), written, every)


def test_planes_of_a_single_frame_each(archive: Archive, tmp_path: Path) -> None:
    every = [
        Layer(layer.path, layer.z_mm, layer.rgb[:48, :64]) for layer in layers(("1",), planes=3)
    ]
    written = write_layers(tmp_path, [[layer] for layer in every], organization="TILED_SPARSE")
    for path in written.paths:
        _share_position(path)
    assert_planes_are_read(archive(written), written, every)


def test_brightfield_is_chosen_and_said(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    every = layers(("1", "2", "3"), planes=1)
    light = (FLUORESCENCE, BRIGHTFIELD, BRIGHTFIELD)
    written = write_layers(tmp_path, [every], illumination=light)
    pacs = archive(written)
    with caplog.at_level("INFO", logger="dicom_io"):
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert np.array_equal(whole(pacs, slide), every[1].rgb)
    path = slide.optical_path
    assert (path.identifier, path.paths, path.reason) == (
        "2",
        3,
        "the first of brightfield illumination",
    )
    assert f"{written.series_uid} is read in optical path '2'" in caplog.text


def test_without_brightfield_the_first_path_is_chosen_and_said(tmp_path: Path) -> None:
    written = write_layers(
        tmp_path, [layers(("1", "2"), planes=1)], illumination=(FLUORESCENCE,) * 2
    )
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert slide.optical_path.identifier == "1"
    assert slide.optical_path.reason == "the first, none says brightfield"


def test_middle_plane_unless_another_is_named(archive: Archive, tmp_path: Path) -> None:
    every = layers(("1",), planes=5)
    written = write_layers(tmp_path, [every])
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert np.array_equal(whole(pacs, slide), every[2].rgb)
    assert slide.focal_plane == "3 of 5, the middle"


def test_tile_that_lacks_a_plane_shows_the_nearest(archive: Archive, tmp_path: Path) -> None:
    every = layers(("1",), planes=3)
    written = write_layers(
        tmp_path, [every], organization="TILED_SPARSE", leave_out=[(2, 1, 1), (1, 1, 1), (1, 2, 0)]
    )
    pacs = archive(written)
    settings = SlideSettings(focal_plane=3)
    slide = open_slide(pacs, written.study_uid, written.series_uid, settings=settings)
    expected = every[2].rgb.copy()
    expected[48:96, 64:128] = every[0].rgb[48:96, 64:128]
    assert np.array_equal(whole(pacs, slide), expected)


@pytest.mark.parametrize(
    ("tile_px", "organization", "encoding"),
    [
        ((128, 128), "TILED_FULL", "raw"),
        ((96, 200), "TILED_FULL", "jpeg"),
        ((96, 200), "TILED_SPARSE", "raw"),
        ((1024, 512), "TILED_SPARSE", "jpeg"),
        ((4096, 4096), "TILED_FULL", "jpeg"),
    ],
)
def test_tiles_of_any_size(
    archive: Archive, tmp_path: Path, tile_px: tuple[int, int], organization: str, encoding: str
) -> None:
    written = write_slide(
        tmp_path, tile_px=tile_px, levels=2, organization=organization, encoding=encoding
    )
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    for level, path in zip(slide.levels, written.paths, strict=True):
        assert np.array_equal(whole(pacs, slide, level), stored_pixels(path)[0])


def test_any_scales_between_levels(archive: Archive, tmp_path: Path) -> None:
    """Not powers of two, levels missing, the last one smaller than a tile."""
    written = write_slide(tmp_path, size_px=(900, 700), scales=(1, 3, 4.5, 27.5), encoding="raw")
    pacs = archive(written)
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert [level.size_px for level in slide.levels] == [
        (900, 700),
        (300, 233),
        (200, 155),
        (32, 25),
    ]
    for level, path in zip(slide.levels, written.paths, strict=True):
        assert np.array_equal(whole(pacs, slide, level), stored_pixels(path)[0])


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationSlide:
    folder = tmp_path_factory.mktemp("demonstration")
    return compose_demonstration_slide(folder, seed=3, size_px=(1200, 900), cells=6)


WSIDICOM_LAYOUTS: dict[str, dict[str, Any]] = {
    "full": {"add_missing_levels": True},
    "concatenated": {"concatenation": ConcatenationByFrames(5)},
    "base alone": {"include_levels": [0]},
    "levels missing": {"include_levels": [0, -1]},
}


@pytest.mark.parametrize("layout", WSIDICOM_LAYOUTS)
def test_written_by_wsidicom(
    archive: Archive, demonstration: DemonstrationSlide, tmp_path: Path, layout: str
) -> None:
    with WsiDicom.open(demonstration.paths[0].parent) as original:
        original.save(tmp_path, **WSIDICOM_LAYOUTS[layout])
    paths = tuple(sorted(tmp_path.glob("*.dcm")))
    ds = dcmread(paths[0], stop_before_pixels=True)
    pacs = archive(WrittenSlide(ds.StudyInstanceUID, ds.SeriesInstanceUID, paths))
    slide = open_slide(pacs, ds.StudyInstanceUID, ds.SeriesInstanceUID)
    with WsiDicom.open(tmp_path) as reference:
        pyramid = list(reference.levels)
        assert len(pyramid) == len(slide.levels)
        for level, theirs in zip(slide.levels, pyramid, strict=True):
            expected = reference.read_region((0, 0), theirs.level, theirs.size.to_tuple())
            assert np.array_equal(whole(pacs, slide, level), np.array(expected))


needs_orthanc_wsi = pytest.mark.skipif(
    ORTHANC_WSI is None, reason="no OrthancWSIDicomizer: apt-get install orthanc-wsi"
)


def dicomized(
    folder: Path, compression: str, size_px: tuple[int, int] = (1500, 1100)
) -> WrittenSlide:
    """Sparse parts, no ImageType, no frame of reference; at most 1500 × 1140 px."""
    rgb = np.tile(picture(500, 380), (3, 3, 1))[: size_px[1], : size_px[0]]
    Image.fromarray(rgb).save(folder / "slide.png")
    (folder / "dicom").mkdir()
    subprocess.run(
        f"{ORTHANC_WSI} {folder}/slide.png --folder {folder}/dicom --tile-width 256"
        f" --tile-height 128 --pyramid 1 --levels 4 --compression {compression} --max-size 1"
        f" --imaged-width {size_px[1] / 4000} --imaged-height {size_px[0] / 4000}".split(),
        check=True,
        capture_output=True,
    )
    paths = tuple(sorted((folder / "dicom").glob("*.dcm")))
    ds = dcmread(paths[0])
    return WrittenSlide(ds.StudyInstanceUID, ds.SeriesInstanceUID, paths)


def assert_all_levels_agree(pacs: Pacs, written: WrittenSlide) -> Slide:
    slide = open_slide(pacs, written.study_uid, written.series_uid)
    sizes = [level.size_px for level in slide.levels]
    assert sizes == [(1500, 1100), (750, 550), (375, 275), (188, 138)]
    for level in slide.levels:
        parts = [p for p in written.paths if dcmread(p).SOPInstanceUID in level.instance_uids]
        assert np.array_equal(whole(pacs, slide, level), stored_pixels(*parts)[0])
    return slide


@needs_orthanc_wsi
def test_written_by_orthanc(archive: Archive, tmp_path: Path) -> None:
    written = dicomized(tmp_path, "jpeg")
    slide = assert_all_levels_agree(archive(written), written)
    assert slide.frame_of_reference_uid.startswith("2.25.")
    assert slide.header.FrameOfReferenceUID == slide.frame_of_reference_uid


@needs_orthanc_wsi
def test_parts_written_by_orthanc(orthanc: Orthanc, tmp_path: Path) -> None:
    written = dicomized(tmp_path, "none")
    orthanc.add(*written.paths)
    with open_pacs(orthanc.dicomweb_url, QUICK) as pacs:
        slide = assert_all_levels_agree(pacs, written)
    assert len(slide.base.instance_uids) > 3
