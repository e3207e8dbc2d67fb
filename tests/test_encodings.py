"""Encodings × writers × archives: pixels are those of an independent decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wsidicom.codec.settings as codecs
from pydicom import dcmread
from pydicom.dataset import Dataset
from wsidicom import WsiDicom

from dicom_io.errors import PacsAnswerInvalid, PixelsUnsupported
from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs, open_pacs
from dicom_io.slide import open_slide
from tests.conftest import QUICK
from tests.encodings import STORED, seen, write_encoded
from tests.quirky_proxy import Habits, quirky_proxy
from tests.servers import Orthanc
from tests.slides import WrittenSlide, picture, write_slide

Archive = Callable[[WrittenSlide | None], Pacs]
SIZE_PX, TILE_PX = (200, 150), (64, 64)


def read_whole(pacs: Pacs, study_uid: str, series_uid: str) -> np.ndarray:
    """Base level of a slide, edge tiles included."""
    slide = open_slide(pacs, study_uid, series_uid)
    side = max(slide.base.size_px)
    (tiles,) = read_tiles(pacs, slide, np.array([[0.0, 0, side, side]]), slide.base.um_per_px)
    width, height = slide.base.size_px
    assert tiles.valid[0, :height, :width].all()
    return tiles.rgb[0, :height, :width]


def furthest(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("name", STORED)
def test_written_by_hand(
    archive: Archive, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    if "orthanc" in request.node.callspec.id and not STORED[name].served:
        pytest.skip(f"Orthanc 1.10 neither keeps nor serves {STORED[name].transfer_syntax_uid}")
    written = write_encoded(tmp_path, name, size_px=SIZE_PX, tile_px=TILE_PX)
    found = read_whole(archive(written), written.study_uid, written.series_uid)
    assert furthest(found, seen(name, picture(*SIZE_PX), TILE_PX)) <= STORED[name].off


WSIDICOM = {
    "JPEG": codecs.JpegSettings(quality=90),
    "JPEG RGB": codecs.JpegSettings(quality=90, channels=codecs.Channels.RGB),
    "JPEG 4:2:0": codecs.JpegSettings(subsampling=codecs.Subsampling.R420),
    "JPEG 2000": codecs.Jpeg2kSettings(levels=50),
    "JPEG 2000 lossless": codecs.Jpeg2kSettings(levels=0),
    "HTJ2K": codecs.HTJpeg2000Settings(levels=50),
    "HTJ2K lossless": codecs.HTJpeg2000Settings(levels=0),
    "JPEG-LS": codecs.JpegLsSettings(level=0, channels=codecs.Channels.RGB),
    "JPEG XL": codecs.JpegXlSettings(level=None, channels=codecs.Channels.RGB),
    "RLE": codecs.RleSettings(),
    "Explicit": codecs.NumpySettings(),
    "Implicit": codecs.NumpySettings(implicit_vr=True),
}


def with_volume(ds: Dataset, level: int) -> None:
    """What wsidicom asks for beyond what others do."""
    ds.ImagedVolumeWidth, ds.ImagedVolumeHeight, ds.ImagedVolumeDepth = 0.05, 0.0375, 0.001


@pytest.mark.parametrize("name", WSIDICOM)
@pytest.mark.parametrize("table", ["bot", "eot", "empty"])
def test_written_by_wsidicom(tmp_path: Path, name: str, table: str) -> None:
    """Read by wsidicom too: the same decoder for JPEG, others for the rest."""
    write_slide(
        tmp_path / "raw",
        size_px=SIZE_PX,
        tile_px=TILE_PX,
        levels=1,
        encoding="raw",
        change=with_volume,
    )
    out = tmp_path / "out"
    out.mkdir()
    with WsiDicom.open(tmp_path / "raw") as wsi:
        wsi.save(out, transcoding=WSIDICOM[name], force_transcoding=True, offset_table=table)
    with WsiDicom.open(out) as wsi:
        level = wsi.levels.base_level
        expected = np.array(wsi.read_region((0, 0), 0, level.size.to_tuple()).convert("RGB"))
    (path,) = out.rglob("*.dcm")
    ds = dcmread(path, stop_before_pixels=True)
    with open_pacs(f"file://{out}", QUICK) as pacs:
        found = read_whole(pacs, ds.StudyInstanceUID, ds.SeriesInstanceUID)
    assert furthest(found, expected) <= 2


@pytest.mark.parametrize(
    ("photometric", "samples", "said"),
    [("MONOCHROME2", 1, "1 sample"), ("PALETTE COLOR", 3, "PAL")],
)
def test_what_is_no_colour_is_refused(
    tmp_path: Path, photometric: str, samples: int, said: str
) -> None:
    def grey(ds: Dataset, level: int) -> None:
        ds.PhotometricInterpretation, ds.SamplesPerPixel = photometric, samples

    written = write_slide(tmp_path, levels=1, encoding="raw", change=grey)
    with (
        open_pacs(f"file://{tmp_path}", QUICK) as pacs,
        pytest.raises(PixelsUnsupported, match=said),
    ):
        open_slide(pacs, written.study_uid, written.series_uid)


def lossy(ds: Dataset, level: int) -> None:
    ds.LossyImageCompression = "01"


def test_colours_other_than_said_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_encoded(tmp_path, "JPEG RGB called YBR")
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        for _ in range(2):
            read_whole(pacs, written.study_uid, written.series_uid)
    (path,) = written.paths
    said = f"{dcmread(path).SOPInstanceUID} are RGB, not YBR_FULL_422"
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize("name", [n for n in STORED if STORED[n].photometric == "YBR_FULL_422"])
def test_frames_are_believed_where_the_header_says_jpeg(tmp_path: Path, name: str) -> None:
    """Nothing is asked for at opening there; frames may still be something else."""
    written = write_encoded(tmp_path, name, header=lossy, size_px=SIZE_PX, tile_px=TILE_PX)
    with open_pacs(f"file://{tmp_path}", QUICK) as pacs:
        open_slide(pacs, written.study_uid, written.series_uid)
        assert pacs.frames_read == 0
        found = read_whole(pacs, written.study_uid, written.series_uid)
    assert furthest(found, seen(name, picture(*SIZE_PX), TILE_PX)) <= STORED[name].off


def test_frames_of_no_kind_that_is_read_are_refused(tmp_path: Path) -> None:
    """Of JPEG-LS no colours are shared: what the header says is wrong somewhere."""

    def called_shared(ds: Dataset, level: int) -> None:
        lossy(ds, level)
        ds.PhotometricInterpretation = "YBR_FULL_422"

    written = write_encoded(tmp_path, "JPEG-LS", header=called_shared)
    with (
        open_pacs(f"file://{tmp_path}", QUICK) as pacs,
        pytest.raises(PixelsUnsupported, match="YBR_FULL_422 colours in transfer syntax JPEG-LS"),
    ):
        read_whole(pacs, written.study_uid, written.series_uid)


def test_decoded_pixels_of_what_was_shared_chroma_are_refused(tmp_path: Path) -> None:
    """The header was left as it was: whether they are RGB by now cannot be told."""

    def called_shared(ds: Dataset, level: int) -> None:
        ds.PhotometricInterpretation = "YBR_FULL_422"

    written = write_slide(tmp_path, levels=1, encoding="raw", change=called_shared)
    with (
        open_pacs(f"file://{tmp_path}", QUICK) as pacs,
        pytest.raises(PacsAnswerInvalid, match="damaged"),
    ):
        read_whole(pacs, written.study_uid, written.series_uid)


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_FULL"])
def test_an_archive_that_decodes_a_jpeg_is_not_believed(
    orthanc_server: Orthanc, tmp_path: Path, photometric: str
) -> None:
    """Decoded frames carry the JPEG's header, with colours that they no longer have."""

    def by_header(ds: Dataset, level: int) -> None:
        lossy(ds, level)
        ds.LossyImageCompressionMethod = "ISO_10918_1"
        ds.PhotometricInterpretation = photometric

    written = write_slide(tmp_path, levels=1, change=by_header)
    orthanc_server.add(*written.paths)
    ((width, height),) = {(dcmread(path).Columns, dcmread(path).Rows) for path in written.paths}
    habits = Habits(refused="image/jpeg", every_frame=bytes(3 * width * height))
    with (
        quirky_proxy(orthanc_server.dicomweb_url, habits) as proxy,
        open_pacs(proxy.url, QUICK) as pacs,
        pytest.raises(PixelsUnsupported, match="come decoded"),
    ):
        read_whole(pacs, written.study_uid, written.series_uid)
