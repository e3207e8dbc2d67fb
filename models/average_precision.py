"""Detection metrics over images: average precision and log-average miss rate.

Shape legend: N detections and M true boxes over all images, K types.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.boxes import areas
from models.records import Bool, Float64

COCO_IOUS = tuple(0.5 + 0.05 * step for step in range(10))
COCO_DETECTIONS = 100  # of an image and type: the best scored ones count
# Dollár et al. (2012), §3.1: nine points evenly spaced in log-space over this range.
_FALSE_POSITIVES_PER_IMAGE = np.logspace(-2, 0, 9)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredBoxes:
    """Boxes over several images: detections, or the truth.

    Attributes
    ----------
    image : (N,) integer
        Number of the image each box lies in.
    box_px : (N, 4) floating
        x0, y0, x1, y1.
    label : (N,) integer
        Type.
    score : (N,) floating
        Of detections; nobody asks for the truth's.
    """

    image: NDArray[np.integer]
    box_px: NDArray[np.floating]
    label: NDArray[np.integer]
    score: NDArray[np.floating]

    def of(self, label: int) -> ScoredBoxes:
        """Return those of one type."""
        kept = self.label == label
        return ScoredBoxes(self.image[kept], self.box_px[kept], self.label[kept], self.score[kept])


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Recall and precision as the score's threshold falls.

    Attributes
    ----------
    recall, precision : (N,) float64
        After each detection, the best scored first.
    false_positives : (N,) float64
        Their number so far.
    truth
        Number of true boxes.
    """

    recall: Float64
    precision: Float64
    false_positives: Float64
    truth: int


def curve(
    found: ScoredBoxes, truth: ScoredBoxes, iou: float, most_per_image: int | None = None
) -> Curve:
    """Match one type's detections with its true boxes, the best scored first.

    Parameters
    ----------
    found, truth
        Of one type.
    iou
        From which overlap a detection can be a true box. Each true box is found once, by the
        detection of the highest score that overlaps no other free one more.
    most_per_image
        Only so many detections of an image count; None for all.
    """
    right, counts = _hits(found, truth, iou, most_per_image)
    order = np.argsort(-found.score, kind="stable")
    hits = right[order[counts[order]]]
    true_positives, false_positives = np.cumsum(hits), np.cumsum(~hits)
    return Curve(
        recall=true_positives / max(len(truth.score), 1),
        precision=true_positives / np.maximum(true_positives + false_positives, 1),
        false_positives=false_positives.astype(np.float64),
        truth=len(truth.score),
    )


def right_ones(found: ScoredBoxes, truth: ScoredBoxes, iou: float) -> Bool:
    """Which detections of one type find a true box, as :func:`curve` matches them, (N,)."""
    right, _ = _hits(found, truth, iou, None)
    return right


def eleven_point(points: Curve) -> float:
    """Mean over recalls 0, 0.1 … 1 of the best precision at that recall or a higher one.

    Everingham et al. (2010), eq. 1 and 2; Tayebi et al. (2021) report this.
    """
    best = [
        points.precision[points.recall >= wanted - 1e-12].max(initial=0.0)
        for wanted in np.linspace(0, 1, 11)
    ]
    return float(np.mean(best))


def hundred_and_one_point(points: Curve) -> float:
    """Return the same over recalls 0, 0.01 … 1: the COCO challenge's."""
    envelope = np.maximum.accumulate(points.precision[::-1])[::-1]
    place = np.searchsorted(points.recall, np.linspace(0, 1, 101), side="left")
    return float(np.append(envelope, 0.0)[np.minimum(place, len(envelope))].mean())


def mean_average_precision(
    found: ScoredBoxes, truth: ScoredBoxes, types: int, ious: tuple[float, ...] = COCO_IOUS
) -> float | None:
    """COCO's AP: mean over types that occur and overlaps; None where nothing is true."""
    values = [
        hundred_and_one_point(curve(found.of(kind), truth.of(kind), iou, COCO_DETECTIONS))
        for kind in range(types)
        if (truth.label == kind).any()
        for iou in ious
    ]
    return float(np.mean(values)) if values else None


def log_average_miss_rate(points: Curve, images: int) -> float:
    """Geometric mean of the miss rate at 0.01 to 1 false positives per image.

    Dollár et al. (2012), §3.1. Where a curve ends before a point, its last miss rate stands; a
    miss rate of 0 counts as 1e-10.
    """
    false_positives = np.concatenate(([-1.0], points.false_positives / images))
    miss_rate = np.concatenate(([1.0], 1 - points.recall))
    place = np.searchsorted(false_positives, _FALSE_POSITIVES_PER_IMAGE, side="right") - 1
    return float(np.exp(np.log(np.maximum(miss_rate[place], 1e-10)).mean()))


def _hits(
    found: ScoredBoxes, truth: ScoredBoxes, iou: float, most_per_image: int | None
) -> tuple[Bool, Bool]:
    """Which detections are right, and which count, (N,) each."""
    right = np.zeros(len(found.score), np.bool_)
    counts = np.zeros(len(found.score), np.bool_)
    for image in np.unique(found.image):
        rows = np.flatnonzero(found.image == image)
        rows = rows[np.argsort(-found.score[rows], kind="stable")][:most_per_image]
        counts[rows] = True
        right[rows] = _found_once(found.box_px[rows], truth.box_px[truth.image == image], iou)
    return right, counts


def _found_once(found: NDArray[np.floating], truth: NDArray[np.floating], iou: float) -> Bool:
    """Which detections (best first) are the first to find a true box."""
    right = np.zeros(len(found), np.bool_)
    overlap = _pairwise_iou(found, truth)
    for row in range(len(found)):
        if len(truth) and overlap[row].max() >= iou - 1e-10:
            best = int(overlap[row].argmax())
            right[row] = True
            overlap[:, best] = -1.0
    return right


def _pairwise_iou(first: NDArray[np.floating], second: NDArray[np.floating]) -> Float64:
    low = np.maximum(first[:, None, :2], second[None, :, :2]).astype(np.float64)
    high = np.minimum(first[:, None, 2:], second[None, :, 2:]).astype(np.float64)
    common = np.clip(high - low, 0, None).prod(2)
    union = areas(first)[:, None] + areas(second)[None] - common
    iou: Float64 = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return iou
