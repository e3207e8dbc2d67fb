"""Geometry of many axis-parallel boxes at once: (N, 4) arrays of x0, y0, x1, y1 in any frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from models.records import Bool, Float64, Int64

Boxes = NDArray[np.floating[Any]]
# A cell of which an image shows less than this share is not asked for in it.
VISIBLE_SHARE = 0.3


def centres(box: Boxes) -> Float64:
    """Return the centre points, (N, 2) as x, y."""
    box = np.asarray(box, dtype=np.float64)
    return (box[:, :2] + box[:, 2:]) / 2


def areas(box: Boxes) -> Float64:
    """Return the areas (N,); a box turned inside out has none."""
    side = np.clip(np.asarray(box, dtype=np.float64)[:, 2:] - box[:, :2], 0, None)
    return np.asarray(side[:, 0] * side[:, 1], dtype=np.float64)


def covered(box: Boxes, by: Boxes) -> Float64:
    """Return the share of each box (N, 4) that the box `by` (4,) covers."""
    low, high = np.maximum(box[:, :2], by[:2]), np.minimum(box[:, 2:], by[2:])
    shared = np.clip(high - low, 0, None).astype(np.float64).prod(1)
    return np.asarray(shared / np.maximum(areas(box), 1e-9), dtype=np.float64)


def iou(first: Boxes, second: Boxes) -> Float64:
    """Return intersection over union of row i with row i, (N,); 0 where the union is empty."""
    low = np.maximum(first[:, :2], second[:, :2]).astype(np.float64)
    high = np.minimum(first[:, 2:], second[:, 2:]).astype(np.float64)
    side = np.clip(high - low, 0, None)
    shared = side[:, 0] * side[:, 1]
    union = areas(first) + areas(second) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _reach(box: Boxes, threshold: float) -> float:
    """Return how far apart centres may lie, per axis, where IoU still reaches `threshold`.

    IoU ≥ t makes the shared width at least t times the wider box, and the shared width is at most
    half the sum of both widths less the distance; so the distance is at most (1 − t) · widest side.
    """
    sides = np.asarray(box, dtype=np.float64)[:, 2:] - box[:, :2]
    return float((1 - threshold) * sides.max(initial=0.0)) + 1e-6


def overlapping(box: Boxes, threshold: float) -> tuple[Int64, Int64]:
    """Return all pairs i < j of `box` whose IoU is greater than `threshold`."""
    if len(box) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    tree = cKDTree(centres(box))
    pairs = tree.query_pairs(_reach(box, threshold), p=np.inf, output_type="ndarray")
    pairs = pairs.astype(np.int64)
    pairs = pairs[iou(box[pairs[:, 0]], box[pairs[:, 1]]) > threshold]
    return pairs[:, 0], pairs[:, 1]


def overlapping_between(
    first: Boxes, second: Boxes, threshold: float
) -> tuple[Int64, Int64, Float64]:
    """Return all pairs (i of `first`, j of `second`) of IoU ≥ `threshold` > 0, and their IoU."""
    if not len(first) or not len(second):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    reach = max(_reach(first, threshold), _reach(second, threshold))
    found = cKDTree(centres(first)).sparse_distance_matrix(
        cKDTree(centres(second)), reach, p=np.inf, output_type="ndarray"
    )
    i, j = found["i"].astype(np.int64), found["j"].astype(np.int64)
    overlap = iou(first[i], second[j])
    near = overlap >= threshold
    return i[near], j[near], overlap[near]


def first_box_holding(point: Float64, box: Boxes) -> Int64:
    """Return for each point (N, 2) the lowest row of `box` that holds it, (N,); −1 where none does.

    A box holds its low edges and not its high ones, so that boxes side by side share no point.
    """
    held_by = np.full(len(point), -1, dtype=np.int64)
    if not len(point) or not len(box):
        return held_by
    reach = float((box[:, 2:] - box[:, :2]).max() / 2) + 1e-6
    near = cKDTree(point).sparse_distance_matrix(
        cKDTree(centres(box)), reach, p=np.inf, output_type="ndarray"
    )
    i, j = near["i"].astype(np.int64), near["j"].astype(np.int64)
    inside = ((point[i] >= box[j, :2]) & (point[i] < box[j, 2:])).all(axis=1)
    i, j = i[inside], j[inside]
    order = np.lexsort((-j, i))  # the lowest box is written last and stays
    held_by[i[order]] = j[order]
    return held_by


def suppressed(better: Int64, worse: Int64, count: int) -> Bool:
    """Return who yields in a greedy suppression, (count,).

    Parameters
    ----------
    better, worse : (P,) int64
        Pairs of rivals as *ranks*: the lower rank is the better candidate of the two.
    count
        Number of candidates.

    Notes
    -----
    From the best rank down, a candidate that has not itself yielded makes its rivals yield.
    """
    yields = np.zeros(count, dtype=np.bool_)
    order = np.lexsort((worse, better))
    for winner, loser in zip(better[order].tolist(), worse[order].tolist(), strict=True):
        if not yields[winner]:
            yields[loser] = True
    return yields
