"""Detections of overlapping tiles → :class:`Cells`, one per cell of the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.boxes import centres, first_box_holding, overlapping, suppressed
from models.records import Cells, Detections, Float64, Int32, Regions, Tiles

# Two boxes of different tiles that overlap more than this are one cell.
DUPLICATE_IOU = 0.5
# How far, as a share of the tile's core, a centre may lie outside of the core that finds it. Two
# tiles place the same cell a little differently; without this, each could leave it to the other.
_CORE_MARGIN = 1 / 64


@dataclass(frozen=True, slots=True)
class TileGeometry:
    """Where the tiles of one batch lie.

    Attributes
    ----------
    number : (N,) int32
        Row of each tile in `core_px` of :func:`models.detect.detection_grid`.
    origin_px : (N, 2) float64
        As in :class:`models.records.Tiles`.
    px_per_tile_px : (2,) float64
    """

    number: Int32
    origin_px: Float64
    px_per_tile_px: Float64

    @classmethod
    def of(cls, tiles: Tiles, first: int) -> TileGeometry:
        """Keep the geometry of `tiles`, the first of which is number `first`, without pixels."""
        number = np.arange(first, first + len(tiles.origin_px), dtype=np.int32)
        return cls(number, tiles.origin_px, tiles.px_per_tile_px)


def stitch(
    batches: Sequence[tuple[Detections, TileGeometry]],
    core_px: Float64,
    regions: Regions,
    classes: tuple[str, ...],
    package_digest: str,
) -> Cells:
    """Bring the detections of all tiles together.

    Parameters
    ----------
    batches
        In any order.
    core_px : (T, 4) float64
        Cores of all tiles, side by side.
    regions
        A cell counts where its centre lies in one of them.
    classes
        Of the package; `batches` may be empty.
    package_digest

    Returns
    -------
    cells
        Sorted by y, then x: the same cells give the same bytes whatever the order of tiles.

    Raises
    ------
    ValueError
        A batch has other classes.

    Notes
    -----
    A tile contributes the cells whose centre lies in its core, or next to it. Where boxes of two
    tiles then overlap by more than `DUPLICATE_IOU` they are one cell whatever their labels, and
    the one with the higher score stays. Boxes of the same tile are never merged here: what is one
    cell within a tile was decided by :func:`models.detect.detect`.
    """
    box, score, probability, label, tile = _gathered(batches, classes)
    centre = centres(box)
    core = core_px[tile]
    margin = (core[:, 2:] - core[:, :2]) * _CORE_MARGIN
    own = (centre >= core[:, :2] - margin) & (centre < core[:, 2:] + margin)
    home = first_box_holding(centre, core_px)
    kept = np.nonzero(
        own.all(axis=1) & (home >= 0) & (first_box_holding(centre, regions.box_px) >= 0)
    )[0]
    # Rank: the best score first. Position and label decide between equal scores, the tile last
    # and by its place on the slide, so that no order of reading can show.
    corner = core_px[tile[kept]]
    keys = (corner[:, 0], corner[:, 1], label[kept], *box[kept].T[::-1], -score[kept])
    kept = kept[np.lexsort(keys)]
    better, worse = overlapping(box[kept], DUPLICATE_IOU)
    rivals = tile[kept[better]] != tile[kept[worse]]
    kept = kept[~suppressed(better[rivals], worse[rivals], len(kept))]
    kept = kept[np.lexsort((box[kept, 3], box[kept, 2], box[kept, 0], box[kept, 1]))]
    return Cells(
        box_px=box[kept],
        score=score[kept],
        probability=probability[kept],
        label=label[kept],
        tile=home[kept].astype(np.int32),
        classes=classes,
        package_digest=package_digest,
    )


def _gathered(
    batches: Sequence[tuple[Detections, TileGeometry]], classes: tuple[str, ...]
) -> tuple[Float64, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return box_px, score, probability, label and tile number of all detections."""
    for found, _ in batches:
        if found.classes != classes:
            raise ValueError("Detections of different model packages cannot be stitched together.")
    empty = (
        np.empty((0, 4)),
        np.empty(0, np.float32),
        np.empty((0, len(classes)), np.float32),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
    )
    parts = [empty]
    for found, where in batches:
        scale = np.tile(where.px_per_tile_px, 2)
        origin = np.tile(where.origin_px[found.tile], 2)
        box = origin + found.box_tile_px.astype(np.float64) * scale
        number = where.number[found.tile]
        parts.append((box, found.score, found.probability, found.label, number))
    box, score, probability, label, tile = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    return box, score, probability, label, tile
