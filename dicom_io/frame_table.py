"""Frames of all instances of a level → which ones show a part of it, for each focal plane."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SlideGeometryInvalid, SlideTooLarge
from dicom_io.level_image import MAX_FRAMES, LevelImage
from dicom_io.tile_layout import Bool, Box, Grid, Scattered, TileLayout, scattered

# Focal planes nearer to each other than this are one plane that was rounded differently. It is
# far below what optics tell apart: planes whose heights a writer took for millimetres lie only
# nanometres apart when read as micrometres, and are still several.
PLANE_RESOLUTION_MM = 1e-7
NOTHING = -1
# Tiles that overlap by three quarters along both sides are 25 on one cell; numbers far above are
# damage, and would make one tile of a model as much to read as a slide.
MOST_TILES_OF_A_CELL = 64

Key = tuple[int, int]
"""Instance of the level, 0-based frame."""

Place = tuple[Key, int, int]
"""Frame, and the level pixel that its top left corner lies on: x, y."""


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """The frames of a level, in one focal plane.

    Attributes
    ----------
    stored : (tiles, 2) int32
        Instance and 0-based frame of each tile; −1 where nothing is stored.
    layout
        Where the tiles lie.
    """

    stored: NDArray[np.int32]
    layout: TileLayout

    def places(self, box: Box, cells: Bool | None = None) -> Iterable[Place]:
        """Frames that show a part of a box of the level.

        Where frames overlap they come in the order in which they are stored: by instance, then by
        frame number. The standard says nothing of which is to be seen; here it is the last one.

        Parameters
        ----------
        box
        cells : (rows, columns) bool, optional
            Only frames that touch one of these cells of a tile's size; None for all.
        """
        found = self._places(box, cells)
        return found if self.layout.disjoint else sorted(found)

    def _places(self, box: Box, cells: Bool | None) -> Iterator[Place]:
        item = self.stored.item
        for tile, left, top in self.layout.touching(box, cells):
            instance = item(tile, 0)
            if instance >= 0:
                yield (instance, item(tile, 1)), left, top

    def count(self, cells: Bool | None = None) -> int:
        """How many frames there are, or touch one of the cells."""
        stored = self.stored[:, 0] >= 0
        if cells is not None:
            stored = stored & self.layout.in_cells(cells)
        return int(np.count_nonzero(stored))


def in_planes(planes: Sequence[TileTable], chosen: NDArray[np.int64]) -> TileTable:
    """A table that takes each tile (tiles,) from the plane chosen for it."""
    stored = planes[0].stored.copy()
    for number, plane in enumerate(planes):
        here = chosen == number
        stored[here] = plane.stored[here]
    return TileTable(stored, planes[0].layout)


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """Frames of one optical path over all instances; arrays of one length.

    Attributes
    ----------
    instance, frame, tile : (N,) int64
    height : (N,) int64
        Above the glass, in units of PLANE_RESOLUTION_MM; later the number of the plane.
    """

    instance: NDArray[np.int64]
    frame: NDArray[np.int64]
    tile: NDArray[np.int64]
    height: NDArray[np.int64]


def focal_planes(
    images: Sequence[LevelImage], path_identifier: str | None
) -> tuple[TileTable, ...]:
    """Which frame shows each tile, plane by plane.

    Parameters
    ----------
    images
        The instances of one level.
    path_identifier
        Frames of this optical path are taken; None takes the only one.

    Returns
    -------
    planes
        The one nearest to the glass first; instances count as `images` do. A tile that lacks a
        plane shows the nearest one that it has.

    Raises
    ------
    SlideGeometryInvalid
        A tile is stored twice, or a TILED_FULL level is not complete.
    SlideTooLarge
    """
    found, layout = _frames(images, path_identifier)
    _refuse_heaps(layout, images[0])
    _refuse_duplicates(found, layout, images)
    _refuse_gaps(images)
    planes, height = _planes(found, layout.tiles)
    if len(planes) * layout.tiles > MAX_FRAMES:
        raise SlideTooLarge(
            f"The level of instance {images[0].sop_uid} has {len(planes)} focal planes of"
            f" {layout.tiles} tiles, more than the {MAX_FRAMES} frames that can be read:"
            " export one plane."
        )
    tables = np.full((len(planes), layout.tiles, 2), NOTHING, np.int32)
    for number, plane in enumerate(planes):
        nearest = np.lexsort((np.abs(height - plane), found.tile))
        tile, first = np.unique(found.tile[nearest], return_index=True)
        tables[number, tile, 0] = found.instance[nearest[first]]
        tables[number, tile, 1] = found.frame[nearest[first]]
    tables.flags.writeable = False
    return tuple(TileTable(table, layout) for table in tables)


def _frames(
    images: Sequence[LevelImage], path_identifier: str | None
) -> tuple[_Frames, TileLayout]:
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
                stored.corner[frame],
                np.rint(stored.z_mm[frame] / PLANE_RESOLUTION_MM).astype(np.int64),
            )
        )
    instance, number_in, corner, height = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    tile, layout = _laid_out(corner, images[0])
    return _Frames(instance, number_in, tile, height), layout


def _laid_out(corner: NDArray[np.int64], image: LevelImage) -> tuple[NDArray[np.int64], TileLayout]:
    """The tile that each frame is of, and where these lie: on the grid if every frame does."""
    columns, _ = image.grid
    cell, off = np.divmod(corner, image.tile_size_px)
    if not off.any():
        return cell[:, 1] * columns + cell[:, 0], Grid(image.tile_size_px, image.grid)
    width, _ = image.size_px
    at, tile = np.unique(corner[:, 1] * width + corner[:, 0], return_inverse=True)
    corners = np.stack([at % width, at // width], axis=1)
    return tile, scattered(corners, image.tile_size_px, image.grid)


def _refuse_heaps(layout: TileLayout, image: LevelImage) -> None:
    if isinstance(layout, Scattered) and layout.depth > MOST_TILES_OF_A_CELL:
        raise SlideTooLarge(
            f"The level of instance {image.sop_uid} has {layout.depth} tiles over one another in"
            f" one place, more than the {MOST_TILES_OF_A_CELL} that can be put together: convert"
            " the slide to a regular grid of tiles."
        )


def _refuse_duplicates(found: _Frames, layout: TileLayout, images: Sequence[LevelImage]) -> None:
    order = np.lexsort((found.instance, found.height, found.tile))
    tile, height = found.tile[order], found.height[order]
    again = np.flatnonzero((tile[1:] == tile[:-1]) & (height[1:] == height[:-1]))
    if not len(again):
        return
    first, second = order[again[0]], order[again[0] + 1]
    one, other = (images[int(found.instance[i])] for i in (first, second))
    where = f"{layout.named(int(found.tile[first]))} is stored twice"
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
