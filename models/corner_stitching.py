"""The paper's stitching: pieces of a cell that patches cut are joined by their corners.

A package whose detector says ``"stitching": "corners"`` is stitched so.

Wang et al. (2022), §3.1.3, eq. 5 to 11. For patches that lie side by side without overlap. It
cannot join every cell: where a border cuts a small cap off a round cell, the cap's box is narrower
than the rest's, and its corners lie further away than ε. Overlapping patches, with
:func:`models.stitching.stitch`, have no such limit, and there patches that disagree about a type
are all heard.

Shape legend: N detections, D ≤ N cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from models.boxes import Boxes, centres, first_box_holding
from models.records import Cells, Detections, Float64, Int32, Int64, Regions
from models.stitching import TileGeometry, gathered

EPSILON_PX = 25.0
LEAST_SCORE = 0.1


def stitch_by_corners(
    batches: Sequence[tuple[Detections, TileGeometry]],
    core_px: Float64,
    regions: Regions,
    classes: tuple[str, ...],
    package_digest: str,
) -> Cells:
    """Bring the detections of tiles without overlap together; else as :func:`.stitching.stitch`.

    ε is in pixels of the tiles, as in the paper.
    """
    box, score, probability, label, tile, _ = gathered(batches, classes)
    scale = float(batches[0][1].px_per_tile_px.max()) if batches else 1.0
    # Of each axis by itself: px are not always square.
    patch = np.rint(core_px[:, :2] / (core_px[:, 2:] - core_px[:, :2])).astype(np.int64)
    joined, best = rejoin(box, score, patch[tile], EPSILON_PX * scale)
    centre = centres(joined)
    home = first_box_holding(centre, core_px)
    kept = np.flatnonzero((home >= 0) & (first_box_holding(centre, regions.box_px) >= 0))
    speaker: Int32 = best[kept].astype(np.int32)
    return Cells(
        box_px=joined[kept],
        score=score[speaker],
        probability=probability[speaker],
        label=label[speaker],
        tile=home[kept].astype(np.int32),
        classes=classes,
        package_digest=package_digest,
    ).sorted()


def rejoin(
    box_px: Boxes,
    score: NDArray[np.floating],
    patch: NDArray[np.integer],
    epsilon_px: float = EPSILON_PX,
    least_score: float = LEAST_SCORE,
) -> tuple[Float64, Int64]:
    """Join the pieces of cells that lie in neighbouring patches.

    Parameters
    ----------
    box_px : (N, 4) floating
        x0, y0, x1, y1 of detections in base-level pixels (eq. 5).
    score : (N,) floating
        Detection probability ξ; what does not exceed `least_score` (λ) is left out.
    patch : (N, 2) integer
        Column and row (σ, τ) of each detection's patch.
    epsilon_px
        ε: pieces are one cell where the mean of their two smallest corner distances is less.

    Returns
    -------
    box_px : (D, 4) float64
        Smallest box around all pieces of a cell.
    best : (D,) int64
        Row of the piece with the highest score: it gives the cell its type. (The paper does not
        say whose type stays.) Ascending.
    """
    kept = np.flatnonzero(np.asarray(score) > least_score)
    box, rank = np.asarray(box_px, np.float64)[kept], np.asarray(score)[kept]
    if not len(kept):
        return np.empty((0, 4)), np.empty(0, np.int64)
    one, two = _pieces_of_one(box, np.asarray(patch, np.int64)[kept], epsilon_px)
    graph = coo_array((np.ones(len(one)), (one, two)), shape=(len(kept), len(kept)))
    count, cell = connected_components(graph, directed=False)
    joined = np.empty((count, 4))
    for column, farther in enumerate((np.minimum, np.minimum, np.maximum, np.maximum)):
        joined[:, column] = -np.inf if farther is np.maximum else np.inf
        farther.at(joined[:, column], cell, box[:, column])
    # The best piece of each cell is the first of its rows by falling score, then by row.
    order = np.lexsort((kept, -rank, cell))
    first = np.searchsorted(cell[order], np.arange(count))
    best = kept[order[first]]
    by_row = best.argsort()
    return joined[by_row], best[by_row]


def _pieces_of_one(box: Float64, patch: Int64, epsilon_px: float) -> tuple[Int64, Int64]:
    """Pairs of detections in neighbouring patches with ζ < ε (eq. 7 to 11)."""
    corner = box[:, [0, 1, 2, 1, 0, 3, 2, 3]].reshape(-1, 2)  # four of each, (4 N, 2)
    near = cKDTree(corner).query_pairs(epsilon_px, output_type="ndarray") // 4
    pair = np.unique(near[near[:, 0] != near[:, 1]], axis=0)
    pair = pair[np.abs(patch[pair[:, 0]] - patch[pair[:, 1]]).sum(1) == 1]
    if not len(pair):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    each = corner.reshape(-1, 4, 2)
    distance = np.linalg.norm(each[pair[:, 0], :, None] - each[pair[:, 1], None, :], axis=3)
    row = np.arange(len(pair))
    first, second = np.divmod(distance.reshape(-1, 16).argmin(1), 4)  # eq. 9
    smallest = distance[row, first, second].copy()  # eq. 8
    distance[row, first, :] = np.inf  # neither corner serves again
    distance[row, :, second] = np.inf
    mean = (smallest + distance.reshape(-1, 16).min(1)) / 2  # eq. 10
    pair = pair[mean < epsilon_px].astype(np.int64)
    return pair[:, 0], pair[:, 1]
