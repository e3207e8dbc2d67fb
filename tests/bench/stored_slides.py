"""Slides of any number of frames for measuring, made of frames with real cells on them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import simplejpeg
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import generate_uid

from dicom_io.demonstration import TILE_PX, compose_demonstration_slide

POOL_SIDE_PX = 8_192
# As a scanner's 256-px frames with cells have: about 30 MB for 4 000 frames.
MEAN_FRAME_BYTES = 7_500


@dataclass(frozen=True)
class StoredSlide:
    """One level in one file.

    Attributes
    ----------
    study_uid, series_uid, sop_uid
    path
    stored
        Its frames, row by row.
    columns
        Frames in a row.
    """

    study_uid: str
    series_uid: str
    sop_uid: str
    path: Path
    stored: tuple[bytes, ...]
    columns: int


class FramePool:
    """Frames of a composed smear, and the header that fits them."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            slide = compose_demonstration_slide(
                Path(name) / "pool", 1, (POOL_SIDE_PX, POOL_SIDE_PX), 600
            )
            self._header = dcmread(slide.paths[0])
        frames = generate_frames(
            self._header.PixelData, number_of_frames=int(self._header.NumberOfFrames)
        )
        self._frames = _of_mean_bytes([_without_padding(frame) for frame in frames])
        del self._header.PixelData

    def slide(self, folder: Path, columns: int, rows: int) -> StoredSlide:
        """Write a TILED_FULL instance of columns × rows frames."""
        frames = tuple(islice(cycle(self._frames), columns * rows))
        ds: Dataset = self._header
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = (
            generate_uid() for _ in range(3)
        )
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = columns * TILE_PX, rows * TILE_PX
        ds.NumberOfFrames = len(frames)
        ds.add_new("PixelData", "OB", encapsulate(list(frames)))
        ds["PixelData"].is_undefined_length = True
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{columns}x{rows}.dcm"
        ds.save_as(path)
        del ds.PixelData
        return StoredSlide(
            ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, path, frames, columns
        )


def _of_mean_bytes(frames: list[bytes]) -> list[bytes]:
    """All but the largest frames, so many that the mean is that of a scanner's."""
    left = sorted(range(len(frames)), key=lambda number: len(frames[number]))
    while sum(len(frames[number]) for number in left) > MEAN_FRAME_BYTES * len(left):
        left.pop()
    return [frames[number] for number in sorted(left)]


def _without_padding(frame: bytes) -> bytes:
    """A frame that decodes, up to its end marker."""
    simplejpeg.decode_jpeg_header(frame)
    return frame[: frame.rindex(b"\xff\xd9") + 2]
