"""Frames of a file that stays open, as of an instance fetched whole, are those pydicom reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_io.stored_frames import FILE_ERRORS, opened_frame_table, read_frames
from tests.slides import write_slide

FRAMES = [bytes([65 + index]) * (2 * index + 2) for index in range(48)]


def frames_of(path: Path) -> list[bytes]:
    with path.open("rb", buffering=0) as file:
        table = opened_frame_table(file)
        return read_frames(table, range(table.frames))


def extended(ds: Dataset) -> None:
    ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(
        FRAMES
    )


ENCAPSULATIONS: dict[str, Callable[[Dataset], None]] = {
    "with offsets": lambda ds: setattr(ds, "PixelData", encapsulate(FRAMES)),
    "without offsets": lambda ds: setattr(ds, "PixelData", encapsulate(FRAMES, has_bot=False)),
    "extended offsets": extended,
}


@pytest.mark.parametrize("name", ENCAPSULATIONS)
def test_encapsulations(tmp_path: Path, name: str) -> None:
    written = write_slide(tmp_path, levels=1, change=lambda ds, level: ENCAPSULATIONS[name](ds))
    assert frames_of(written.paths[0]) == FRAMES


@pytest.mark.parametrize("pieces", [2, 3])
def test_several_fragments_a_frame(tmp_path: Path, pieces: int) -> None:
    long = [frame * 3 for frame in FRAMES]
    written = write_slide(
        tmp_path,
        levels=1,
        change=lambda ds, level: setattr(ds, "PixelData", encapsulate(long, pieces)),
    )
    assert frames_of(written.paths[0]) == long


@pytest.mark.parametrize("encoding", ["jpeg", "rle", "raw"])
def test_slides(tmp_path: Path, encoding: str) -> None:
    path = write_slide(tmp_path, levels=1, encoding=encoding).paths[0]
    ds = dcmread(path)
    if encoding == "raw":
        size = len(ds.PixelData) // 48
        expected = [ds.PixelData[i * size : (i + 1) * size] for i in range(48)]
    else:
        expected = list(generate_frames(ds.PixelData, number_of_frames=48))
    assert frames_of(path) == expected


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_ways_to_write_raw_pixels(tmp_path: Path, syntax: str) -> None:
    path = write_slide(tmp_path, levels=1, encoding="raw").paths[0]
    expected = frames_of(path)
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    dcmwrite(
        path,
        ds,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=True,
        enforce_file_format=True,
    )
    assert frames_of(path) == expected


def test_frame_beyond_the_last(tmp_path: Path) -> None:
    with write_slide(tmp_path, levels=1).paths[0].open("rb", buffering=0) as file:
        table = opened_frame_table(file)
        for number in (-1, 48):
            with pytest.raises(ValueError, match="48 frames"):
                read_frames(table, [number])


def test_fragments_that_belong_to_nobody(tmp_path: Path) -> None:
    def split(ds: Dataset, level: int) -> None:
        ds.PixelData = encapsulate([f * 3 for f in FRAMES], 2, has_bot=False)

    path = write_slide(tmp_path, levels=1, change=split).paths[0]
    with pytest.raises(ValueError, match="which fragments"):
        frames_of(path)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("encoding", ["jpeg", "raw"])
def test_damaged_file(tmp_path: Path, share: float, encoding: str) -> None:
    path = write_slide(tmp_path, levels=1, encoding=encoding).paths[0]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(FILE_ERRORS):
        frames_of(path)
