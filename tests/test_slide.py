"""Opening slides from a folder and from a real Orthanc, sound ones and unsound ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

from dicom_io.errors import (
    MarrowNodeError,
    NotWholeSlideImage,
    PixelsUnsupported,
    SeriesNotFound,
    SlideGeometryInvalid,
    SlideTooLarge,
)
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.slide import Level, open_slide
from tests.conftest import QUICK
from tests.slides import Change, WrittenSlide, write_slide

Archive = Callable[[WrittenSlide | None], Pacs]


def frame(level: Level, column: int, row: int) -> tuple[int, int] | None:
    """Instance and 0-based frame of a tile of the grid, None where nothing is stored."""
    width, height = level.tile_size_px
    x, y = column * width, row * height
    found = list(level.frames.places((x, y, x + width, y + height)))
    assert [place[1:] for place in found] in ([], [(x, y)])
    return found[0][0] if found else None


def test_levels_and_geometry(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, size_px=(500, 380), levels=3)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert [level.size_px for level in slide.levels] == [(500, 380), (250, 190), (125, 95)]
    assert [round(level.um_per_px, 6) for level in slide.levels] == [0.25, 0.5, 1.0]
    assert slide.base.tile_size_px == (64, 64)
    assert slide.base.transfer_syntax_uids == ("1.2.840.10008.1.2.4.50",)
    assert frame(slide.base, 0, 0) == (0, 0)
    assert frame(slide.base, 7, 5) == (0, 47)
    assert slide.origin_mm.tolist() == [20.0, 40.0, 0.0]
    assert slide.orientation.tolist() == [0, -1, 0, -1, 0, 0]
    assert slide.header.PatientID == "TEST-1"
    assert "PixelData" not in slide.header
    assert len(slide.source_instances) == 3


def test_spacing_is_given_as_x_then_y(archive: Archive, tmp_path: Path) -> None:
    def stretch(ds: Dataset, level: int) -> None:
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = [0.0003, 0.0002]  # between rows, between columns

    written = write_slide(tmp_path, levels=1, change=stretch)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert slide.base.spacing_mm == (0.0002, 0.0003)


def test_height_of_the_origin_is_written_in_micrometres(archive: Archive, tmp_path: Path) -> None:
    def lift(ds: Dataset, level: int) -> None:
        ds.TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = 12.5

    written = write_slide(tmp_path, levels=1, change=lift)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert slide.origin_mm.tolist() == [20.0, 40.0, 0.0125]


def test_sparse_level_knows_what_is_stored(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(
        tmp_path, organization="TILED_SPARSE", parts=3, leave_out=lambda c, r: (c + r) % 3 == 0
    )
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert len(slide.base.instance_uids) == 3
    stored = {(c, r) for c in range(8) for r in range(6) if frame(slide.base, c, r) is not None}
    assert stored == {(c, r) for c in range(8) for r in range(6) if (c + r) % 3}
    assert "PerFrameFunctionalGroupsSequence" not in slide.header


def test_concatenation_is_one_level(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, parts=3)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert len(slide.base.instance_uids) == 3
    assert [frame(slide.base, n % 8, n // 8) for n in (0, 15, 16, 47)] == [
        (0, 0),
        (0, 15),
        (1, 0),
        (2, 15),
    ]


def test_other_images_of_the_series_are_no_levels(archive: Archive, tmp_path: Path) -> None:
    def label(ds: Dataset, level: int) -> None:
        if level > 0:
            ds.ImageType = ["ORIGINAL", "PRIMARY", ("LABEL", "OVERVIEW")[level - 1], "NONE"]

    written = write_slide(tmp_path, change=label)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert [level.size_px for level in slide.levels] == [(500, 380)]


def test_missing_origin_is_said_and_counts_from_zero(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_slide(tmp_path, levels=1, origin_mm=None)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert slide.origin_mm.tolist() == [0, 0, 0]
    assert written.series_uid in caplog.text


def _attribute(keyword: str, value: object) -> Change:
    def change(ds: Dataset, level: int) -> None:
        setattr(ds, keyword, value)

    return change


def _without(keyword: str) -> Change:
    def change(ds: Dataset, level: int) -> None:
        delattr(ds, keyword)

    return change


def _without_spacing(ds: Dataset, level: int) -> None:
    del ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence


def _grey(ds: Dataset, level: int) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    del ds.PlanarConfiguration


def _sixteen_bit(ds: Dataset, level: int) -> None:
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15


def _lossless_jpeg(ds: Dataset, level: int) -> None:
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    # The lossless JPEG process: told by its SOF3 marker.
    frame = b"\xff\xd8\xff\xc3\x00\x11\x08\x00\x40\x00\x40\x03" + bytes(52)
    ds.PixelData = encapsulate([frame] * int(ds.NumberOfFrames))


def _other_class(ds: Dataset, level: int) -> None:
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"  # VL Photographic Image
    ds.Modality = "XC"


BAD_SLIDES: dict[str, tuple[Change, type[MarrowNodeError], str]] = {
    "modality is not SM": (_other_class, NotWholeSlideImage, "{series}"),
    "SOP class is not WSI": (
        _attribute("SOPClassUID", "1.2.840.10008.5.1.4.1.1.77.1.4"),
        NotWholeSlideImage,
        "{series}",
    ),
    "no VOLUME level": (
        _attribute("ImageType", ["ORIGINAL", "PRIMARY", "OVERVIEW", "NONE"]),
        NotWholeSlideImage,
        "{series}",
    ),
    "no pixel spacing": (_without_spacing, SlideGeometryInvalid, "PixelSpacing"),
    "no matrix": (_without("TotalPixelMatrixRows"), SlideGeometryInvalid, "TotalPixelMatrixRows"),
    "no orientation": (
        _without("ImageOrientationSlide"),
        SlideGeometryInvalid,
        "ImageOrientationSlide",
    ),
    "skewed orientation": (
        _attribute("ImageOrientationSlide", [1, 0, 0, 1, 0, 0]),
        SlideGeometryInvalid,
        "ImageOrientationSlide",
    ),
    "16 bit": (_sixteen_bit, PixelsUnsupported, "16 bit"),
    "monochrome": (_grey, PixelsUnsupported, "1 sample"),
    "focal planes that are not stored": (
        _attribute("TotalPixelMatrixFocalPlanes", 3),
        SlideGeometryInvalid,
        "48 frames where its matrix, focal planes and optical paths make 144",
    ),
    "optical paths without end": (
        _attribute("NumberOfOpticalPaths", 2**31),
        SlideGeometryInvalid,
        "NumberOfOpticalPaths above 200",
    ),
    "focal planes without end": (
        _attribute("TotalPixelMatrixFocalPlanes", 2**31),
        SlideGeometryInvalid,
        "TotalPixelMatrixFocalPlanes above 200",
    ),
    "transfer syntax": (_lossless_jpeg, PixelsUnsupported, "transcode"),
    "matrix is larger than the frames": (
        _attribute("TotalPixelMatrixRows", 5000),
        SlideGeometryInvalid,
        "frames",
    ),
    "matrix is smaller than the frames": (
        _attribute("TotalPixelMatrixRows", 70),
        SlideGeometryInvalid,
        "frames",
    ),
}


@pytest.mark.parametrize("name", BAD_SLIDES)
def test_bad_slide_is_refused_in_one_sentence(archive: Archive, tmp_path: Path, name: str) -> None:
    change, error, named = BAD_SLIDES[name]
    written = write_slide(tmp_path, levels=1, encoding="jpeg", change=change)
    with pytest.raises(error) as caught:
        open_slide(archive(written), written.study_uid, written.series_uid)
    message = str(caught.value)
    assert type(caught.value) is error
    assert named.format(series=written.series_uid) in message
    assert message.endswith(".")
    assert "TEST-1" not in message
    assert "Test^" not in message


def test_unknown_series_is_named(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1)
    unknown = generate_uid()
    with pytest.raises(SeriesNotFound, match=unknown):
        open_slide(archive(written), written.study_uid, unknown)
    with pytest.raises(SeriesNotFound, match=written.series_uid):
        open_slide(archive(written), unknown, written.series_uid)


@pytest.mark.parametrize("uid", ["", "abc", "1.2/../3", "1." * 40])
def test_malformed_uid_is_named(archive: Archive, tmp_path: Path, uid: str) -> None:
    written = write_slide(tmp_path, levels=1)
    with pytest.raises(SeriesNotFound, match="is not a DICOM UID"):
        open_slide(archive(written), written.study_uid, uid)


def test_matrix_above_the_budget(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, size_px=(500, 380), levels=1)
    pacs = archive(written)
    open_slide(pacs, written.study_uid, written.series_uid, max_matrix_px=500 * 380)
    with pytest.raises(SlideTooLarge, match="500 × 380"):
        open_slide(pacs, written.study_uid, written.series_uid, max_matrix_px=500 * 380 - 1)


def test_sparse_frame_count_must_match_its_places(archive: Archive, tmp_path: Path) -> None:
    def forget(ds: Dataset, level: int) -> None:
        ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:-1]

    written = write_slide(tmp_path, levels=1, organization="TILED_SPARSE", change=forget)
    with pytest.raises(SlideGeometryInvalid, match="48 frames but places 47"):
        open_slide(archive(written), written.study_uid, written.series_uid)


def test_level_of_another_extent(archive: Archive, tmp_path: Path) -> None:
    def shift(ds: Dataset, level: int) -> None:
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = [0.00025 * 3**level] * 2

    written = write_slide(tmp_path, levels=2, change=shift)
    with pytest.raises(SlideGeometryInvalid, match="extent"):
        open_slide(archive(written), written.study_uid, written.series_uid)


def test_level_that_is_turned(archive: Archive, tmp_path: Path) -> None:
    def turn(ds: Dataset, level: int) -> None:
        if level:
            ds.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]

    written = write_slide(tmp_path, levels=2, change=turn)
    with pytest.raises(SlideGeometryInvalid, match="turned"):
        open_slide(archive(written), written.study_uid, written.series_uid)


def test_level_that_says_no_orientation(archive: Archive, tmp_path: Path) -> None:
    def forget(ds: Dataset, level: int) -> None:
        if level:
            del ds.ImageOrientationSlide

    written = write_slide(tmp_path, levels=2, change=forget)
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    assert len(slide.levels) == 2


def test_numbers_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON allows DS and IS as text (PS3.18 F.2.2), which archives pass on with its padding."""

    def as_text(element: dict[str, Any]) -> None:
        for value in element.get("Value", []):
            for inner in value.values() if isinstance(value, dict) else ():
                if isinstance(inner, dict):
                    as_text(inner)
        if element.get("vr") in ("DS", "IS"):
            element["Value"] = [f"{value} " for value in element.get("Value", [])]

    def thumbnail(ds: Dataset, level: int) -> None:
        if level:
            ds.ImageType = ["DERIVED", "PRIMARY", "THUMBNAIL", "RESAMPLED"]

    written = write_slide(tmp_path, scales=(1, 8), change=thumbnail)
    with open_pacs(tmp_path.as_uri(), QUICK) as pacs:
        told = json.loads(pacs.series_metadata_bytes(written.study_uid, written.series_uid))
        for instance in told:
            for element in instance.values():
                as_text(element)
        monkeypatch.setattr(
            pacs, "series_metadata_bytes", lambda study_uid, series_uid: json.dumps(told).encode()
        )
        slide = open_slide(pacs, written.study_uid, written.series_uid)
    assert len(slide.levels) == 2


@pytest.mark.parametrize("frames", ["²", "9" * 5000, "1e3", "-4", ""])
def test_number_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: str) -> None:
    written = write_slide(tmp_path, levels=1)
    with open_pacs(tmp_path.as_uri(), QUICK) as pacs:
        told = json.loads(pacs.series_metadata_bytes(written.study_uid, written.series_uid))
        told[0]["00280008"]["Value"] = [frames]
        monkeypatch.setattr(
            pacs, "series_metadata_bytes", lambda study_uid, series_uid: json.dumps(told).encode()
        )
        with pytest.raises(SlideGeometryInvalid, match="no valid NumberOfFrames"):
            open_slide(pacs, written.study_uid, written.series_uid)


def test_table_and_grid_agree(archive: Archive, tmp_path: Path) -> None:
    written = write_slide(tmp_path, levels=1, tile_px=(96, 48))
    slide = open_slide(archive(written), written.study_uid, written.series_uid)
    numbers = [frame(slide.base, c, r) for r in range(8) for c in range(6)]
    assert numbers == [(0, n) for n in range(48)]
    assert np.allclose(slide.base.spacing_mm, 0.00025)


def test_missing_frame_of_reference_is_said_and_derived(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_slide(tmp_path, levels=1, change=_without("FrameOfReferenceUID"))
    pacs = archive(written)
    one, other = (open_slide(pacs, written.study_uid, written.series_uid) for _ in range(2))
    assert one.frame_of_reference_uid == other.frame_of_reference_uid
    assert one.frame_of_reference_uid.startswith("2.25.")
    assert one.header.FrameOfReferenceUID == one.frame_of_reference_uid
    assert "no FrameOfReferenceUID" in caplog.text
