"""Sparse levels whose frames lie anywhere, written with pydicom, and what they show together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.slides import UInt8, WrittenSlide, frames_of, image_dataset, picture, place_frames

SIZE_PX = (500, 380)
TILE_PX = (64, 48)
UM_PER_PX = 0.25


@dataclass(frozen=True)
class Placed:
    """A frame: left and top in level pixels, and height above the glass."""

    left: int
    top: int
    z_mm: float = 0.0


def write_scattered(
    folder: Path,
    instances: Sequence[Sequence[Placed]],
    *,
    encoding: str = "raw",
    numbers: Sequence[int] | None = None,
) -> WrittenSlide:
    """Write one level; each frame shows another part of a picture than the one it lies on.

    Parameters
    ----------
    instances
        The frames of each instance, as they are stored.
    numbers
        InstanceNumber of each; 1, 2, … by default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame_of_reference = (generate_uid() for _ in range(3))
    rgb = picture(*SIZE_PX)
    width, height = TILE_PX
    random = np.random.default_rng(11)
    paths = []
    for index, placed in enumerate(instances):
        corner = random.integers(0, np.array(SIZE_PX) - TILE_PX, (len(placed), 2)).tolist()
        frames = [np.ascontiguousarray(rgb[y : y + height, x : x + width]) for x, y in corner]
        ds = image_dataset(frames, encoding, TILE_PX, SIZE_PX)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.FrameOfReferenceUID = frame_of_reference
        ds.InstanceNumber = (numbers or range(1, len(instances) + 1))[index]
        ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        ds.TotalPixelMatrixFocalPlanes = len({frame.z_mm for frame in placed})
        place_frames(ds, "TILED_SPARSE", [(0, 0)] * len(placed), UM_PER_PX, (20, 40))
        for item, frame in zip(ds.PerFrameFunctionalGroupsSequence, placed, strict=True):
            position = item.PlanePositionSlideSequence[0]
            position.ColumnPositionInTotalImagePixelMatrix = frame.left + 1
            position.RowPositionInTotalImagePixelMatrix = frame.top + 1
            position.ZOffsetInSlideCoordinateSystem = frame.z_mm
        paths.append(folder / f"{index}.dcm")
        ds.save_as(paths[-1], enforce_file_format=True)
    return WrittenSlide(study, series, tuple(paths))


def pasted(*paths: Path, z_mm: float = 0.0) -> tuple[UInt8, NDArray[np.bool_]]:
    """The whole level with every frame of one plane pasted in the order of `paths`, slowly.

    Returns
    -------
    rgb : (H, W, 3) uint8
        White where nothing is stored.
    stored : (H, W) bool
    """
    width, height = SIZE_PX
    room = (height + TILE_PX[1], width + TILE_PX[0])
    rgb, stored = np.full((*room, 3), 255, np.uint8), np.zeros(room, np.bool_)
    for path in paths:
        ds = dcmread(path)
        for pixels, item in zip(frames_of(ds), ds.PerFrameFunctionalGroupsSequence, strict=True):
            position: Dataset = item.PlanePositionSlideSequence[0]
            if position.ZOffsetInSlideCoordinateSystem != z_mm:
                continue
            x = position.ColumnPositionInTotalImagePixelMatrix - 1
            y = position.RowPositionInTotalImagePixelMatrix - 1
            target = np.s_[y : y + TILE_PX[1], x : x + TILE_PX[0]]
            rgb[target], stored[target] = pixels, True
    return rgb[:height, :width], stored[:height, :width]
