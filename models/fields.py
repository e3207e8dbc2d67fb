"""One camera field, instead of a slide: the same detector, stitching and counting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from PIL import Image

from models.classify import Sessions, detect_and_classify
from models.detect import detection_grid
from models.localise import localise, localiser_grid
from models.package import ModelPackage
from models.records import Bool, Cells, Float64, Regions, Tiles, UInt8
from models.stitchers import STITCHERS
from models.stitching import TileGeometry


def find_in_field(rgb: UInt8, um_per_px: float, package: ModelPackage, sessions: Sessions) -> Cells:
    """Find and classify the cells of one image.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
        Of any size; it is brought to the detector's scale and read in overlapping tiles.
    um_per_px
        Its scale.
    package
    sessions
        Detector of `package`, and classifier where it has one.

    Returns
    -------
    cells
        Boxes in pixels of `rgb`.

    Raises
    ------
    InferenceFailed
        A network failed.
    """
    stage = package.manifest.detector
    scaled = _scaled(rgb, um_per_px / stage.um_per_px)
    height, width = scaled.shape[:2]
    whole = np.array([[0, 0, width, height]], np.float64)
    regions = Regions(whole, np.ones(1, np.float32), "camera field")
    box, core = detection_grid(regions, (width, height), (stage.um_per_px,) * 2, stage, seed=0)
    found = []
    for number, tiles in enumerate(_tiles(scaled, box)):
        detections = detect_and_classify(tiles, sessions, package)
        found.append((detections, TileGeometry.of(tiles, np.array([number]))))
    stitch = STITCHERS[stage.stitching]
    cells = stitch(found, core, regions, package.manifest.classes, package.digest)
    shrink = np.tile([rgb.shape[1] / width, rgb.shape[0] / height], 2)
    limit = np.array([rgb.shape[1], rgb.shape[0]] * 2, np.float64)
    return replace(cells, box_px=np.clip(cells.box_px * shrink, 0, limit))


def accepted_places(
    rgb: UInt8, um_per_px: float, package: ModelPackage, sessions: Sessions
) -> tuple[Bool, float]:
    """Where the localiser of a package accepts one image, as it would accept frames of a slide.

    Parameters
    ----------
    rgb : (H, W, 3) uint8
    um_per_px
    package
    sessions
        With the localiser.

    Returns
    -------
    tuple
        A map of places (rows, columns), one for each value of the localiser, dilation included;
        and the side of a place in pixels of `rgb`.
    """
    stage = package.manifest.localiser
    scaled = _scaled(rgb, um_per_px / stage.um_per_px)
    height, width = scaled.shape[:2]
    stride = stage.output_stride_px
    # A localiser that samples a slide looks at all of a single image.
    box = localiser_grid((width, height), (stage.um_per_px,) * 2, replace(stage, sampled_grid=None))
    session = sessions["localiser"]
    found = localise(_tiles(scaled, box), session, package, (width, height), (stride, stride))
    places = np.zeros((-(-height // stride), -(-width // stride)), np.bool_)
    column, row = (found.box_px[:, :2] // stride).astype(np.int64).T
    places[row, column] = True
    return places, stride * rgb.shape[1] / width


def _scaled(rgb: UInt8, factor: float) -> UInt8:
    height, width = rgb.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return rgb
    resample = Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(rgb).resize(size, resample))


def _tiles(rgb: UInt8, box: Float64) -> Iterator[Tiles]:
    """One tile after the other, white beyond the image as beyond a slide."""
    height, width = rgb.shape[:2]
    for x0, y0, x1, y1 in np.round(box).astype(int).tolist():
        tile = np.full((1, y1 - y0, x1 - x0, 3), 255, np.uint8)
        valid = np.zeros(tile.shape[:3], np.bool_)
        top, left = max(-y0, 0), max(-x0, 0)
        seen = rgb[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
        place = np.s_[0, top : top + seen.shape[0], left : left + seen.shape[1]]
        tile[place], valid[place] = seen, True
        yield Tiles(tile, np.array([[x0, y0]], np.float64), np.ones(2), valid)
