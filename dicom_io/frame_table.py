"""Frames of all instances of a level → which frame shows a tile, for each focal plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SlideGeometryInvalid, SlideTooLarge
from dicom_io.level_image import MAX_FRAMES, LevelImage

# Focal planes nearer to each other than this are one plane that was rounded differently. It is
# far below what optics tell apart: planes whose heights a writer took for millimetres lie only
# nanometres apart when read as micrometres, and are still several.
PLANE_RESOLUTION_MM = 1e-7
NOTHING = -1


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """Frame index from a table.

    Attributes
    ----------
    table : (rows, columns, 2) int32
        Instance and 0-based frame of each tile; −1 where nothing is stored.
    """

    table: NDArray[np.int32]

    def __call__(self, column: int, row: int) -> tuple[int, int] | None:
        instance = self.table.item(row, column, 0)
        return None if instance < 0 else (instance, self.table.item(row, column, 1))


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """Frames of one optical path over all instances; arrays of one length.

    Attributes
    ----------
    instance, frame, tile : (N,) int64
        `tile` counts row by row.
    height : (N,) int64
        Above the glass, in units of PLANE_RESOLUTION_MM; later the number of the plane.
    """

    instance: NDArray[np.int64]
    frame: NDArray[np.int64]
    tile: NDArray[np.int64]
    height: NDArray[np.int64]


def focal_planes(images: Sequence[LevelImage], path_identifier: str | None) -> NDArray[np.int32]:
    """Which frame shows each tile, plane by plane.

    Parameters
    ----------
    images
        The instances of one level.
    path_identifier
        Frames of this optical path are taken; None takes the only one.

    Returns
    -------
    (planes, rows, columns, 2) int32
        Index into `images` and 0-based frame, −1 where nothing is stored; the plane nearest to
        the glass first. A tile that lacks a plane shows the nearest one that it has.

    Raises
    ------
    SlideGeometryInvalid
        A tile is stored twice, or a TILED_FULL level is not complete.
    SlideTooLarge
    """
    columns, rows = images[0].grid
    found = _frames(images, path_identifier)
    _refuse_duplicates(found, images)
    _refuse_gaps(images)
    planes, height = _planes(found, columns * rows)
    if len(planes) * columns * rows > MAX_FRAMES:
        raise SlideTooLarge(
            f"The level of instance {images[0].sop_uid} has {len(planes)} focal planes of"
            f" {columns} × {rows} tiles, more than the {MAX_FRAMES} frames that can be read:"
            " export one plane."
        )
    tables = np.full((len(planes), rows * columns, 2), NOTHING, np.int32)
    for number, plane in enumerate(planes):
        nearest = np.lexsort((np.abs(height - plane), found.tile))
        tile, first = np.unique(found.tile[nearest], return_index=True)
        tables[number, tile, 0] = found.instance[nearest[first]]
        tables[number, tile, 1] = found.frame[nearest[first]]
    tables.flags.writeable = False
    return tables.reshape(len(planes), rows, columns, 2)


def _frames(images: Sequence[LevelImage], path_identifier: str | None) -> _Frames:
    columns, _ = images[0].grid
    parts = []
    for number, image in enumerate(images):
        stored = image.stored_frames()
        wanted = [
            i
            for i, identifier in enumerate(stored.path_identifiers)
            if path_identifier in {None, identifier}
        ]
        frame = np.flatnonzero(np.isin(stored.path, wanted))
        parts.append(
            (
                np.full(len(frame), number),
                frame,
                stored.row[frame] * columns + stored.column[frame],
                np.rint(stored.z_mm[frame] / PLANE_RESOLUTION_MM).astype(np.int64),
            )
        )
    return _Frames(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _refuse_duplicates(found: _Frames, images: Sequence[LevelImage]) -> None:
    order = np.lexsort((found.instance, found.height, found.tile))
    tile, height = found.tile[order], found.height[order]
    again = np.flatnonzero((tile[1:] == tile[:-1]) & (height[1:] == height[:-1]))
    if not len(again):
        return
    first, second = order[again[0]], order[again[0] + 1]
    row, column = divmod(int(found.tile[first]), images[0].grid[0])
    one, other = (images[int(found.instance[i])] for i in (first, second))
    where = f"Tile column {column + 1}, row {row + 1} is stored twice"
    if one is other:
        raise SlideGeometryInvalid(
            f"{where} in instance {one.sop_uid}: store the series again, each tile once."
        )
    if len(again) == one.frames == other.frames:
        raise SlideGeometryInvalid(
            f"Instances {one.sop_uid} and {other.sop_uid} store the same {one.frames} tiles, as"
            " when a slide is sent again: delete one of them."
        )
    raise SlideGeometryInvalid(
        f"{where}, in instances {one.sop_uid} and {other.sop_uid}, whose parts of the level"
        " overlap: store the series again, each tile once."
    )


def _refuse_gaps(images: Sequence[LevelImage]) -> None:
    """TILED_FULL promises every frame, in one instance or over those of a concatenation."""
    stored: dict[str, int] = {}
    for image in images:
        stored[image.concatenation] = stored.get(image.concatenation, 0) + image.frames
    for image in images:
        if image.tiled_full and stored[image.concatenation] != image.frames_promised:
            raise SlideGeometryInvalid(
                f"The TILED_FULL level of instance {image.sop_uid} has"
                f" {stored[image.concatenation]} frames where its matrix, focal planes and optical"
                f" paths make {image.frames_promised}: store the series again, complete."
            )


def _planes(found: _Frames, tiles: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Focal planes of the level, and of each frame.

    Usually they are heights above the glass. Where a scanner's stack follows the specimen there
    are more heights than a tile has planes; then the planes are counted within each tile.
    """
    planes = np.unique(found.height)
    if not len(planes):
        return np.zeros(1, np.int64), found.height
    depth = int(np.bincount(found.tile, minlength=tiles).max())
    if len(planes) <= depth:
        return planes, found.height
    order = np.lexsort((found.height, found.tile))
    tile = found.tile[order]
    start = np.searchsorted(tile, tile, side="left")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - start
    return np.arange(depth), rank
