"""Slides of several focal planes and optical paths, written with pydicom, every pixel known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.slides import (
    Change,
    UInt8,
    WrittenSlide,
    cut_tiles,
    image_dataset,
    picture,
    place_frames,
)

SIZE_PX = (300, 200)
TILE_PX = (64, 48)
BRIGHTFIELD, FLUORESCENCE = ("111744", "Brightfield illumination"), ("111743", "Epifluorescence")


@dataclass(frozen=True)
class Layer:
    """One plane of one path: `rgb` is what must be read.

    Attributes
    ----------
    path
        OpticalPathIdentifier.
    z_mm
        Height above the glass; DICOM writes it in µm (PS3.3 C.8.12.2).
    rgb : (H, W, 3) uint8
    """

    path: str
    z_mm: float
    rgb: UInt8


def layers(paths: Sequence[str], planes: int) -> list[Layer]:
    """Pictures that differ by plane and path, in the order of TILED_FULL."""
    rgb = picture(*SIZE_PX)
    return [
        Layer(path, 0.002 * plane, np.roll(rgb, 40 * (planes * number + plane), axis=1))
        for number, path in enumerate(paths)
        for plane in range(planes)
    ]


def write_layers(
    folder: Path,
    instances: Sequence[Sequence[Layer]],
    *,
    organization: str = "TILED_FULL",
    illumination: Sequence[tuple[str, str]] = (BRIGHTFIELD,),
    concatenated: int = 1,
    leave_out: Sequence[tuple[int, int, int]] = (),
    change: Change | None = None,
) -> WrittenSlide:
    """Write one level.

    Parameters
    ----------
    instances
        The layers that each instance holds.
    organization
        TILED_FULL in the order of `layers`; TILED_SPARSE in a random one.
    illumination
        Of each path, in the order of their names.
    concatenated
        Parts into which each instance is split.
    leave_out
        (layer, column, row) that TILED_SPARSE does not store.
    change
        Called with each dataset and its level, 0, before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame_of_reference = (generate_uid() for _ in range(3))
    names = sorted({layer.path for held in instances for layer in held})
    light = dict(zip(names, list(illumination) * len(names), strict=False))
    paths: list[Path] = []
    for held in instances:
        tiles = [
            (number, place, tile)
            for number, layer in enumerate(held)
            for tile, place in zip(*cut_tiles(layer.rgb, TILE_PX), strict=True)
            if (number, *place) not in leave_out
        ]
        if organization == "TILED_SPARSE":
            order = np.random.default_rng(5).permutation(len(tiles))
            tiles = [tiles[i] for i in order]
        bounds = np.linspace(0, len(tiles), concatenated + 1).astype(int)
        concatenation = generate_uid()
        size_px = held[0].rgb.shape[1::-1]
        for part in range(concatenated):
            some = tiles[bounds[part] : bounds[part + 1]]
            ds = image_dataset([tile for _, _, tile in some], "raw", TILE_PX, size_px)
            ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
            ds.FrameOfReferenceUID = frame_of_reference
            ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
            place_frames(ds, organization, [place for _, place, _ in some], 0.25, (20, 40))
            _name_layers(ds, held, light, [number for number, _, _ in some])
            if concatenated > 1:
                ds.ConcatenationUID = concatenation
                ds.InConcatenationNumber = part + 1
                ds.ConcatenationFrameOffsetNumber = int(bounds[part])
            if change is not None:
                change(ds, 0)
            paths.append(folder / f"{len(paths)}.dcm")
            ds.save_as(paths[-1], enforce_file_format=True)
    return WrittenSlide(study, series, tuple(paths))


def _name_layers(
    ds: Dataset, held: Sequence[Layer], light: dict[str, tuple[str, str]], numbers: Sequence[int]
) -> None:
    names = list(dict.fromkeys(layer.path for layer in held))
    ds.OpticalPathSequence = [_optical_path(name, *light[name]) for name in names]
    ds.NumberOfOpticalPaths = len(names)
    heights = sorted({layer.z_mm for layer in held})
    ds.TotalPixelMatrixFocalPlanes = len(heights)
    ds.TotalPixelMatrixOriginSequence[0].ZOffsetInSlideCoordinateSystem = _um(heights[0])
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = 0.002
    for item, number in zip(ds.get("PerFrameFunctionalGroupsSequence", []), numbers, strict=False):
        (position,) = item.PlanePositionSlideSequence
        position.ZOffsetInSlideCoordinateSystem = _um(held[number].z_mm)
        path = Dataset()
        path.OpticalPathIdentifier = held[number].path
        item.OpticalPathIdentificationSequence = [path]


def _um(height_mm: float) -> float:
    return round(1000 * height_mm, 6)


def _optical_path(identifier: str, code: str, meaning: str) -> Dataset:
    concept = Dataset()
    concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = code, "DCM", meaning
    path = Dataset()
    path.OpticalPathIdentifier = identifier
    path.IlluminationTypeCodeSequence = [concept]
    return path
