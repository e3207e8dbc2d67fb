"""What a person changed of a slide's cells: types given, cells taken out, cells put in.

A cell whose type a person gave has probabilities of zero, one that a person put in a score of zero:
the model said nothing of either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from models.boxes import centres, first_box_holding
from models.errors import ReviewInvalid
from models.records import Cells, Float64, Int32, Int64, Regions

# Two boxes with centres this near are the same cell: viewers store coordinates as single floats.
SAME_PLACE_PX = 0.5
# … and sides this near; a box that was drawn anew is another one.
SAME_SIDE_PX = 1.0


@dataclass(frozen=True, slots=True)
class Correction:
    """Changes to the cells of one revision.

    Attributes
    ----------
    retyped : (N,) int64
        Rows of cells that get another type.
    retyped_as
        Its key, one for each.
    deleted : (D,) int64
        Rows of cells that are none.
    added_px : (A, 4) float64
        Boxes x0, y0, x1, y1 of cells that were missed, base-level pixels.
    added_as
        Their types' keys.
    """

    retyped: Int64
    retyped_as: tuple[str, ...]
    deleted: Int64
    added_px: Float64
    added_as: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.retyped) + len(self.deleted) + len(self.added_px)


def corrected(cells: Cells, correction: Correction, counted_px: Float64, regions: Regions) -> Cells:
    """Apply a correction.

    Parameters
    ----------
    cells
    correction
        Of `cells`.
    counted_px : (T, 4) float64
        Cores of the tiles that were counted, in the order of reading.
    regions
        Where cells were counted.

    Returns
    -------
    cells
        Sorted by y, then x. Types that `cells` did not know come after those it knew.

    Raises
    ------
    ReviewInvalid
        When an added cell lies outside of what was counted: the count would no longer be that of
        the regions.
    """
    classes = tuple(dict.fromkeys((*cells.classes, *correction.retyped_as, *correction.added_as)))
    place = {key: row for row, key in enumerate(classes)}
    label, probability = cells.label.copy(), _widened(cells, len(classes))
    label[correction.retyped] = [place[key] for key in correction.retyped_as]
    probability[correction.retyped] = 0.0
    stays = np.ones(len(cells), bool)
    stays[correction.deleted] = False
    added = len(correction.added_px)
    added_label = np.array([place[key] for key in correction.added_as], np.int32)
    home = _tile_of(correction.added_px, counted_px, regions)
    return replace(
        cells,
        box_px=np.concatenate((cells.box_px[stays], correction.added_px)),
        score=np.concatenate((cells.score[stays], np.zeros(added, np.float32))),
        probability=np.concatenate(
            (probability[stays], np.zeros((added, len(classes)), np.float32))
        ),
        label=np.concatenate((label[stays], added_label)),
        tile=np.concatenate((cells.tile[stays], home)),
        classes=classes,
    ).sorted()


def difference(cells: Cells, edited: Cells) -> Correction:
    """What turns `cells` into `edited`.

    Parameters
    ----------
    cells, edited
        A box of `edited` is a cell of `cells` where centre and sides are the same to a pixel. A
        point, whose box has no sides, is one where its place is the same; a point elsewhere is an
        added cell, and gets the median sides of `cells`.

    Raises
    ------
    ReviewInvalid
        When `edited` has one cell twice, or a point where there is no cell to tell a size from.
    """
    _refuse_doubles(edited)
    row = _same_row(cells, edited)
    known = row >= 0
    before, after = (np.array(each.classes, object)[each.label] for each in (cells, edited))
    other = np.flatnonzero(known)[before[row[known]] != after[known]]
    gone = np.ones(len(cells), bool)
    gone[row[known]] = False
    return Correction(
        retyped=row[other],
        retyped_as=tuple(after[other].tolist()),
        deleted=np.flatnonzero(gone).astype(np.int64),
        added_px=_with_sides(edited.box_px[~known], cells),
        added_as=tuple(after[~known].tolist()),
    )


def _widened(cells: Cells, classes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Probabilities (N, K) with columns of zeros for new types."""
    more = classes - len(cells.classes)
    return np.pad(cells.probability, ((0, 0), (0, more)))


def _tile_of(box_px: Float64, counted_px: Float64, regions: Regions) -> Int32:
    """Number of the counted tile that holds the centre of each box, as stitching gives it."""
    centre = centres(box_px)
    home = first_box_holding(centre, counted_px)
    outside = np.flatnonzero((home < 0) | (first_box_holding(centre, regions.box_px) < 0))
    if len(outside):
        x, y = centre[outside[0]]
        raise ReviewInvalid(
            f"{len(outside)} added cells lie outside the regions that were counted, the first at "
            f"({x:.1f}, {y:.1f}) px: take them out of the correction."
        )
    return home.astype(np.int32)


def _same_row(cells: Cells, edited: Cells) -> Int64:
    """Row of `cells` for each cell of `edited`, −1 for a new one."""
    row = np.full(len(edited), -1, np.int64)
    if not len(cells) or not len(edited):
        return row
    distance, nearest = cKDTree(centres(cells.box_px)).query(centres(edited.box_px))
    sides, edited_sides = (each.box_px[:, 2:] - each.box_px[:, :2] for each in (cells, edited))
    # A point without a measured size has a box without sides: its place says which cell it is.
    alike = (np.abs(sides[nearest] - edited_sides) <= SAME_SIDE_PX) | (edited_sides == 0)
    same = (distance <= SAME_PLACE_PX) & alike.all(axis=1)
    row[same] = nearest[same]
    return row


def _with_sides(box_px: Float64, cells: Cells) -> Float64:
    """Boxes, those of points as large as the median cell: a point says where, not how large."""
    point = (box_px[:, 2:] == box_px[:, :2]).any(axis=1)
    if not point.any():
        return box_px
    if not len(cells):
        raise ReviewInvalid(
            "Cells were added as points where no cell tells how large they are: draw boxes."
        )
    half = np.median(cells.box_px[:, 2:] - cells.box_px[:, :2], axis=0) / 2
    middle = centres(box_px)
    drawn = np.concatenate((middle - half, middle + half), axis=1)
    return np.where(point[:, None], drawn, box_px)


def _refuse_doubles(edited: Cells) -> None:
    centre = centres(edited.box_px)
    if len(centre) < 2:
        return
    pairs = cKDTree(centre).query_pairs(SAME_PLACE_PX, output_type="ndarray")
    if len(pairs):
        first, second = (edited.classes[edited.label[row]] for row in pairs[0])
        x, y = centre[pairs[0][0]]
        raise ReviewInvalid(
            f"{len(pairs)} cells are drawn twice, the first at ({x:.1f}, {y:.1f}) px as {first} "
            f"and {second}: leave one of each."
        )
