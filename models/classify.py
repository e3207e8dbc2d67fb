"""The second stage, where a package has one: each cell found is looked at by itself.

Choi et al. (2017) name cells that somebody else found; here, a detector did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from models.detect import detect, labelled
from models.errors import InferenceFailed
from models.manifest import ClassifierStage
from models.package import ModelPackage, Stage
from models.records import Detections, Float32, Float64, Int64, Tiles, UInt8

_BATCH = 64

Sessions = Mapping[Stage, Callable[[UInt8], Mapping[str, Float32]]]
"""The networks of a package, by stage."""


def detect_and_classify(tiles: Tiles, sessions: Sessions, package: ModelPackage) -> Detections:
    """Cells of a batch of tiles, named by the second stage where the package has one.

    Raises
    ------
    InferenceFailed
        A network failed.
    """
    found = detect(tiles, sessions["detector"], package)
    if "classifier" in sessions:
        return classify(tiles, found, sessions["classifier"], package)
    return found


def classify(
    tiles: Tiles,
    found: Detections,
    session: Callable[[UInt8], Mapping[str, Float32]],
    package: ModelPackage,
) -> Detections:
    """Name the types of cells anew.

    Parameters
    ----------
    tiles
        Where they were found.
    found
    session
        The classifier of `package`.
    package

    Returns
    -------
    Detections
        The same boxes and scores; probabilities and labels as :func:`models.detect.detect` has
        them, from the second network.

    Raises
    ------
    InferenceFailed
        The network failed or its output does not have the declared shape.
    """
    manifest = package.manifest
    stage = manifest.classifier
    if stage is None or not len(found.tile):
        return found
    crops = crops_of(tiles, found, stage, manifest.detector.um_per_px)
    parts = [
        session(crops[first : first + _BATCH])["type_probability"]
        for first in range(0, len(crops), _BATCH)
    ]
    probability = np.concatenate(parts)
    want = (len(crops), len(manifest.types))
    if probability.shape != want:
        raise InferenceFailed(
            f"Model network {stage.file}: output has shape {probability.shape}, expected {want};"
            " the package is defective."
        )
    probability, label = labelled(probability, manifest)
    return replace(found, probability=probability, label=label)


def crops_of(tiles: Tiles, found: Detections, stage: ClassifierStage, um_per_px: float) -> UInt8:
    """Cut each cell out, at the scale of the second network.

    Parameters
    ----------
    tiles
        At `um_per_px`.
    found
    stage
    um_per_px
        Of the tiles.

    Returns
    -------
    (N, crop_px, crop_px, 3) uint8
        The middle of the cell's box in the middle; a tile's border is reflected.
    """
    scale = stage.um_per_px / um_per_px  # tile px per crop px
    offset = (np.arange(stage.crop_px) + 0.5 - stage.crop_px / 2) * scale
    centre = (found.box_tile_px[:, :2] + found.box_tile_px[:, 2:]).astype(np.float64) / 2
    crops = np.empty((len(centre), stage.crop_px, stage.crop_px, 3), np.uint8)
    for row, (tile, (x, y)) in enumerate(zip(found.tile.tolist(), centre.tolist(), strict=True)):
        crops[row] = _interpolated(tiles.rgb[tile], x + offset, y + offset)
    return crops


def _interpolated(rgb: UInt8, x: Float64, y: Float64) -> UInt8:
    """Colours (H, W, 3) where columns `x` (W,) and rows `y` (H,) cross, bilinearly.

    Rows first, then columns: a quarter of the time in which ``scipy.ndimage.map_coordinates``
    (order 1, mode "reflect") gives the same values, as it places every pixel by itself.
    """
    rows, columns = _Neighbours.of(y, rgb.shape[0]), _Neighbours.of(x, rgb.shape[1])
    around = rgb[rows.reach, columns.reach].astype(np.float64)
    colours = columns.between(rows.between(around, 0), 1)
    colours += 0.5
    return colours.astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """Pixels on both sides of coordinates along one axis.

    Attributes
    ----------
    reach
        From the first of all these pixels to the last.
    first, second : (N,) int64
        Of each coordinate, counted from the start of `reach`.
    share : (N,) float64
        Weight of the second, 0 to 1; the first has the rest.
    """

    reach: slice
    first: Int64
    second: Int64
    share: Float64

    @classmethod
    def of(cls, coordinate: Float64, size: int) -> _Neighbours:
        place = coordinate - 0.5  # pixel centres lie at 0.5
        below = np.floor(place)
        pair = np.stack([below, below + 1]).astype(np.int64) % (2 * size)
        pair = np.where(pair < size, pair, 2 * size - 1 - pair)  # the border is reflected
        start = int(pair.min())
        return cls(
            slice(start, int(pair.max()) + 1), pair[0] - start, pair[1] - start, place - below
        )

    def between(self, colours: Float64, axis: int) -> Float64:
        """Interpolate `colours` (h, w, 3), cut to `reach`, along one axis: N values there."""
        before = np.take(colours, self.first, axis)
        after = np.take(colours, self.second, axis)
        after -= before
        after *= np.expand_dims(self.share, tuple(range(1, 3 - axis)))
        after += before
        return after
