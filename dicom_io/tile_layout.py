"""Where the tiles of a level lie: side by side on a grid, or anywhere (PS3.3 C.7.6.17.3).

A level is divided into cells of a tile's size, row by row from its top left corner. On a grid each
cell is a tile; elsewhere a tile touches up to four of them, and is found by these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of a level."""

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


class TileLayout(Protocol):
    """Tiles of a level, numbered from 0."""

    @property
    def tiles(self) -> int:
        """How many there are."""

    @property
    def disjoint(self) -> bool:
        """Whether no two can show the same pixel."""

    @property
    def centre_px(self) -> tuple[Float64, Float64]:
        """x and y of each tile's centre, in level pixels; together they have a tile's number."""

    def touching(self, box: Box, cells: Bool | None) -> Iterator[tuple[int, int, int]]:
        """Number, left and top of the tiles that show a part of the box.

        Parameters
        ----------
        box
        cells : (rows, columns) bool, optional
            Only tiles that touch one of these cells; None for all.
        """

    def in_cells(self, cells: Bool) -> Bool:
        """(tiles,): which ones touch one of the cells (rows, columns)."""

    def named(self, tile: int) -> str:
        """Where a tile lies, for a sentence that begins with it."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Each cell is a tile.

    Attributes
    ----------
    tile_size_px : (width, height)
    size : (columns, rows)
    """

    tile_size_px: tuple[int, int]
    size: tuple[int, int]

    @property
    def tiles(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def disjoint(self) -> bool:
        return True

    @property
    def centre_px(self) -> tuple[Float64, Float64]:
        (columns, rows), (width, height) = self.size, self.tile_size_px
        x = (np.arange(columns, dtype=np.float64) + 0.5) * width
        y = (np.arange(rows, dtype=np.float64) + 0.5) * height
        return x[None, :], y[:, None]

    def touching(self, box: Box, cells: Bool | None) -> Iterator[tuple[int, int, int]]:
        (width, height), (columns, rows) = self.tile_size_px, self.size
        across = range(max(box[0] // width, 0), min(-(-box[2] // width), columns))
        for row in range(max(box[1] // height, 0), min(-(-box[3] // height), rows)):
            for column in across:
                if cells is None or cells[row, column]:
                    yield row * columns + column, column * width, row * height

    def in_cells(self, cells: Bool) -> Bool:
        return cells.ravel()

    def named(self, tile: int) -> str:
        row, column = divmod(tile, self.size[0])
        return f"Tile column {column + 1}, row {row + 1}"


@dataclass(frozen=True, slots=True, eq=False)
class Scattered:
    """Tiles lie anywhere, also over one another. Made by :func:`scattered`.

    Attributes
    ----------
    tile_size_px : (width, height)
    size : (columns, rows)
        Of the cells.
    corner : (N, 2) int64
        Left and top of each tile, in level pixels.
    first : (cells + 1,) int64
        Where the tiles of each cell begin in `of_cell`.
    of_cell : (≤ 4 N,) int64
        Tiles that touch the first cell, then those that touch the second, ….
    """

    tile_size_px: tuple[int, int]
    size: tuple[int, int]
    corner: Int64
    first: Int64
    of_cell: Int64

    @property
    def tiles(self) -> int:
        return len(self.corner)

    @property
    def disjoint(self) -> bool:
        return False

    @property
    def depth(self) -> int:
        """Most tiles that touch one cell."""
        return int(np.diff(self.first).max())

    @property
    def centre_px(self) -> tuple[Float64, Float64]:
        x, y = (self.corner + np.array(self.tile_size_px) / 2).T
        return x, y

    def touching(self, box: Box, cells: Bool | None) -> Iterator[tuple[int, int, int]]:
        (width, height), (columns, rows) = self.tile_size_px, self.size
        start, end = max(box[0] // width, 0), min(-(-box[2] // width), columns)
        across = [
            self.of_cell[self.first[row * columns + start] : self.first[row * columns + end]]
            for row in range(max(box[1] // height, 0), min(-(-box[3] // height), rows))
            if start < end
        ]
        if not across:
            return
        near = np.unique(np.concatenate(across))
        corner = self.corner[near]
        shown = (corner < box[2:]) & (corner + self.tile_size_px > box[:2])
        here = shown.all(axis=1)
        if cells is not None:
            here &= self._in_cells(cells, corner)
        left, top = corner[here].T.tolist()
        yield from zip(near[here].tolist(), left, top, strict=True)

    def in_cells(self, cells: Bool) -> Bool:
        return self._in_cells(cells, self.corner)

    def _in_cells(self, cells: Bool, corner: Int64) -> Bool:
        (left, top), (right, bottom) = (
            each.T for each in _outer_cells(corner, self.tile_size_px, self.size)
        )
        touched: Bool = (
            cells[top, left] | cells[top, right] | cells[bottom, left] | cells[bottom, right]
        )
        return touched

    def named(self, tile: int) -> str:
        left, top = self.corner[tile].tolist()
        return f"The tile at pixel column {left + 1}, row {top + 1}"


def scattered(corner: Int64, tile_size_px: tuple[int, int], size: tuple[int, int]) -> Scattered:
    """Index tiles by the cells that they touch.

    Parameters
    ----------
    corner : (N, 2) int64
        Left and top of each tile, within the level.
    tile_size_px : (width, height)
    size : (columns, rows)
        Of the cells.
    """
    low, high = _outer_cells(corner, tile_size_px, size)
    cells, tiles = [], []
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        cell = low + step
        tile = np.flatnonzero((cell <= high).all(axis=1))
        cells.append(cell[tile, 1] * size[0] + cell[tile, 0])
        tiles.append(tile)
    cell, tile = np.concatenate(cells), np.concatenate(tiles)
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], np.arange(size[0] * size[1] + 1))
    return Scattered(tile_size_px, size, corner, first, tile[order])


def _outer_cells(
    corner: Int64, tile_size_px: tuple[int, int], size: tuple[int, int]
) -> tuple[Int64, Int64]:
    """Column and row of the first and of the last cell that each tile touches."""
    last = (corner + tile_size_px - 1) // tile_size_px
    return corner // tile_size_px, np.minimum(last, np.array(size) - 1)
