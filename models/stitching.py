"""Detections of overlapping tiles → :class:`Cells`, one per cell of the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.boxes import areas, centres, first_box_holding, iou, overlapping, suppressed
from models.records import Bool, Cells, Detections, Float64, Int32, Int64, Regions, Tiles

# Two boxes of different tiles that overlap more than this are one cell.
DUPLICATE_IOU = 0.5
# A box that its tile's edge cuts is only a piece: one that lies in a better box of another tile by
# more than this share of the smaller of the two is the same cell. Four tiles meet over a cell wider
# than their overlap, and the pieces of opposite tiles have less than DUPLICATE_IOU in common.
PIECE_SHARE = 0.5
_PIECE_IOU = 0.05  # a piece that covers less of a cell is not looked for
# Two boxes that go through each other to the edges of their tiles, across all that both tiles see,
# are one cell that neither saw whole, if along the edge they agree for more than this share.
FACING_SHARE = 0.5
_EDGE_TILE_PX = 2.0  # how near to the edge a cut box ends
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
    size_tile_px
        Width and height of the tiles.
    """

    number: Int32
    origin_px: Float64
    px_per_tile_px: Float64
    size_tile_px: tuple[int, int]

    @classmethod
    def of(cls, tiles: Tiles, number: NDArray[np.integer]) -> TileGeometry:
        """Keep the geometry of `tiles`, which have these numbers (N,), without pixels."""
        height, width = tiles.rgb.shape[1:3]
        return cls(number.astype(np.int32), tiles.origin_px, tiles.px_per_tile_px, (width, height))


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
    the one with the higher score stays. So it does where the worse is a piece that lies for more
    than `PIECE_SHARE` in the better one. A cell wider than what tiles share is seen whole by none:
    its pieces face each other at both tiles' edges, and its box is the one around them, up to the
    width of a core, beyond which a third tile lies between. Boxes of the same tile are never
    merged here: what is one cell within a tile was decided by :func:`models.detect.detect`.

    Tiles may disagree about a cell's type ("the current framework does not integrate mismatching
    classification", Wang et al. 2022, §5): each then speaks for its own with its score times that
    type's probability, and the type with the most is the cell's. A piece is not asked where
    another tile has seen the cell whole.
    """
    box, score, probability, label, tile, cut = gathered(batches, classes)
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
    better, worse, facing = _one_cell(box[kept], cut[kept])
    rivals = tile[kept[better]] != tile[kept[worse]]
    better, worse, facing = better[rivals], worse[rivals], facing[rivals]
    gone = suppressed(better, worse, len(kept))
    cell = _cell_of_each(better, worse, gone)
    certainty = score[kept] * probability[kept, label[kept]]
    is_cut: Bool = np.asarray(cut[kept].any(axis=1))
    speaker = kept[_speaker(cell, label[kept], certainty, is_cut, len(classes))][~gone]
    around = _around(box[kept], is_cut, cell, np.concatenate([better[facing], worse[facing]]))
    around, kept = around[~gone], kept[~gone]
    middle = first_box_holding(centres(around), core_px)
    return Cells(
        box_px=around,
        score=score[kept],
        probability=probability[speaker],
        label=label[speaker],
        tile=np.where(middle >= 0, middle, home[kept]).astype(np.int32),
        classes=classes,
        package_digest=package_digest,
    ).sorted()


def _cell_of_each(better: Int64, worse: Int64, gone: Bool) -> Int64:
    """Row of the box that stays for each of (N,) boxes: its best rival that stays, or itself."""
    cell = np.where(gone, len(gone), np.arange(len(gone)))
    stays = ~gone[better] & gone[worse]
    np.minimum.at(cell, worse[stays], better[stays])
    return cell


def _around(box: Float64, cut: Bool, cell: Int64, facing: Int64) -> Float64:
    """Box of each of (N,) rows; of those that stay, around the rows of their cell that face others.

    Where a tile has seen the cell whole, that box is it.
    """
    around = box.copy()
    seen_whole = np.bincount(cell[~cut], minlength=len(cell)) > 0
    pieces = np.unique(facing)
    pieces = pieces[~seen_whole[cell[pieces]]]
    np.minimum.at(around[:, :2], cell[pieces], box[pieces, :2])
    np.maximum.at(around[:, 2:], cell[pieces], box[pieces, 2:])
    return around


def _speaker(
    cell: Int64, label: Int32, certainty: NDArray[np.floating], cut: Bool, classes: int
) -> Int64:
    """Row of the box that gives each cell its type: the best one of the type with most weight.

    Rows are ranked; between equal weights the type of the box that stays is taken.
    """
    row = np.arange(len(cell))
    seen_whole = np.bincount(cell[~cut], minlength=len(cell)) > 0
    asked = ~cut | ~seen_whole[cell]
    weight = np.zeros((len(cell), classes))
    np.add.at(weight, (cell[asked], label[asked]), certainty[asked])
    own = weight[row, label] >= weight.max(1, initial=0)
    chosen = np.where(own, label, weight.argmax(1))
    says_so = asked & (label == chosen[cell])
    speaker = np.full(len(cell), len(cell))
    np.minimum.at(speaker, cell[says_so], row[says_so])
    return np.where(speaker < len(cell), speaker, row)


def _one_cell(box: Float64, cut: Bool) -> tuple[Int64, Int64, Bool]:
    """Return the pairs i < j of boxes that show one cell, and which of them face each other.

    Parameters
    ----------
    box, cut : (N, 4)
        Boxes, and at which of their sides their tile ends.
    """
    i, j = overlapping(box, min(_PIECE_IOU, DUPLICATE_IOU))
    overlap = iou(box[i], box[j])
    area = areas(box)
    both = area[i] + area[j]
    common = both * overlap / (1 + overlap)
    either = cut[i].any(axis=1) | cut[j].any(axis=1)
    piece = either & (common > PIECE_SHARE * np.minimum(area[i], area[j]))
    facing = _facing(box, cut, i, j)
    same = (overlap > DUPLICATE_IOU) | piece | facing
    return i[same], j[same], facing[same]


def _facing(box: Float64, cut: Bool, i: Int64, j: Int64) -> Bool:
    """Which pairs (P,) end at the edges of their tiles, each within the other: along one axis, and
    agree along the other; or along both, in opposite corners of four tiles.
    """
    one, other = box[i], box[j]
    through, agree = [], []
    for low, high in ((0, 2), (1, 3)):
        before = cut[i, high] & cut[j, low] & (one[:, low] < other[:, low])
        behind = cut[j, high] & cut[i, low] & (other[:, low] < one[:, low])
        before &= one[:, high] < other[:, high]
        behind &= other[:, high] < one[:, high]
        through.append(before | behind)
        shared = np.minimum(one[:, high], other[:, high]) - np.maximum(one[:, low], other[:, low])
        both = np.maximum(one[:, high], other[:, high]) - np.minimum(one[:, low], other[:, low])
        agree.append(shared > FACING_SHARE * both)
    (x_through, y_through), (x_agree, y_agree) = through, agree
    facing: Bool = (x_through & (y_agree | y_through)) | (y_through & x_agree)
    return facing


def gathered(
    batches: Sequence[tuple[Detections, TileGeometry]], classes: tuple[str, ...]
) -> tuple[Float64, np.ndarray, np.ndarray, np.ndarray, np.ndarray, Bool]:
    """Return box_px, score, probability, label, tile number of all detections, and sides (N, 4)
    (left, upper, right, lower) at which their tile ends.

    Raises
    ------
    ValueError
        A batch has other classes.
    """
    for found, _ in batches:
        if found.classes != classes:
            raise ValueError("Detections of different model packages cannot be stitched together.")
    empty = (
        np.empty((0, 4)),
        np.empty(0, np.float32),
        np.empty((0, len(classes)), np.float32),
        np.empty(0, np.int32),
        np.empty(0, np.int32),
        np.empty((0, 4), np.bool_),
    )
    parts = [empty]
    for found, where in batches:
        scale = np.tile(where.px_per_tile_px, 2)
        origin = np.tile(where.origin_px[found.tile], 2)
        box = origin + found.box_tile_px.astype(np.float64) * scale
        number = where.number[found.tile]
        limit = np.array(where.size_tile_px) - _EDGE_TILE_PX
        edges = found.box_tile_px
        cut = np.concatenate([edges[:, :2] < _EDGE_TILE_PX, edges[:, 2:] > limit], axis=1)
        parts.append((box, found.score, found.probability, found.label, number, cut))
    box, score, probability, label, tile, cut = (
        np.concatenate(columns) for columns in zip(*parts, strict=True)
    )
    return box, score, probability, label, tile, cut
