"""Regions found on slides against regions known: by object and by slide (Wang et al. 2022, §4.3).

"For the slide based-detection, when the IoU between the AI prediction and the reference standard on
a WSI greater than 0.5 is counted as successful detection; for the object based-detection, when the
IoU … on a single ROI greater than 0.5".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.agreement_statistics import bootstrap_interval, object_ious
from models.records import Bool, Float64, Int64

FOUND_IOU = 0.5


def region_table(
    found: Sequence[Bool], truth: Sequence[Bool], slides: Sequence[str], seed: int
) -> dict[str, Any]:
    """Every figure that the paper's table 4 has, as JSON.

    Parameters
    ----------
    found, truth : (H, W) bool each
        Regions of an image, on a common grid of its own.
    slides
        What slide each image is of: the slide's area is that of all its images.
    seed
        Of the bootstrap over slides.

    Returns
    -------
    dict
        ``roi_iou_slide`` is the mean over slides with any region, true or found, and
        ``roi_recall_slide``, ``roi_precision_slide``, ``roi_accuracy_slide`` the share of those
        with a true, a found, or either one, whose overlap exceeds 0.5; ``roi_iou_object`` the mean
        over true regions, ``roi_recall_object`` the share of them and ``roi_precision_object`` that
        of found ones that overlap by more than 0.5, ``roi_accuracy_object`` the share of true ones
        and of those found in vain (the paper does not say how it counts). Intervals are
        95 % of as many slides drawn with replacement. ``confusion`` counts places: rows true
        (outside, inside), columns found.
    """
    parts = _by_slide(slides)
    places = _places_of(found, truth, parts)
    true_ious, found_ious = (
        [np.concatenate([object_ious(one[row], two[row]) for row in rows]) for rows in parts]
        for one, two in ((found, truth), (truth, found))
    )
    whole = _slide_ious(places)
    shown, said = places[_any(places), 1].sum(1) > 0, places[_any(places)][:, :, 1].sum(1) > 0
    hit, vain = np.concatenate(true_ious) > FOUND_IOU, np.concatenate(found_ious) <= FOUND_IOU
    rng = np.random.default_rng(seed)
    return {
        "slides": len(parts),
        "regions": sum(len(each) for each in true_ious),
        "roi_iou_slide": _mean(whole),
        "roi_iou_slide_interval": bootstrap_interval(
            lambda chosen: _mean(_slide_ious(places[chosen])), len(parts), rng
        ),
        "roi_recall_slide": _mean(whole[shown] > FOUND_IOU),
        "roi_precision_slide": _mean(whole[said] > FOUND_IOU),
        "roi_accuracy_slide": _mean(whole > FOUND_IOU),
        "roi_iou_object": _mean(np.concatenate(true_ious)),
        "roi_iou_object_interval": bootstrap_interval(
            lambda chosen: _mean(np.concatenate([true_ious[row] for row in chosen])),
            len(parts),
            rng,
        ),
        "roi_recall_object": _mean(hit),
        "roi_precision_object": _mean(~vain),
        "roi_accuracy_object": _mean(np.concatenate((hit, np.zeros(int(vain.sum()), np.bool_)))),
        "confusion": places.sum(0).tolist(),
    }


def mean_slide_iou(found: Sequence[Bool], truth: Sequence[Bool], slides: Sequence[str]) -> float:
    """``roi_iou_slide`` of :func:`region_table`, 0 where no slide has a region."""
    return _mean(_slide_ious(_places_of(found, truth, _by_slide(slides)))) or 0.0


def boxes_as_places(
    box_px: np.ndarray[Any, np.dtype[np.floating]], shape: tuple[int, int], px_per_place: float
) -> Bool:
    """Which places of a grid have their middle in one of the boxes (M, 4): (rows, columns)."""
    y, x = ((np.arange(length) + 0.5) * px_per_place for length in shape)
    down = (y > box_px[:, 1, None]) & (y < box_px[:, 3, None])  # (M, rows)
    across = (x > box_px[:, 0, None]) & (x < box_px[:, 2, None])  # (M, columns)
    return np.asarray((down[:, :, None] & across[:, None]).any(0), dtype=np.bool_)


def _by_slide(slides: Sequence[str]) -> list[list[int]]:
    """Rows of each slide's images."""
    names = sorted(set(slides))
    return [[row for row, slide in enumerate(slides) if slide == name] for name in names]


def _places_of(
    found: Sequence[Bool], truth: Sequence[Bool], parts: Sequence[Sequence[int]]
) -> Int64:
    """Confusion of the places of each slide, (S, 2, 2)."""
    return np.array([_places(found, truth, rows) for rows in parts]).reshape(-1, 2, 2)


def _places(found: Sequence[Bool], truth: Sequence[Bool], rows: Sequence[int]) -> Int64:
    """Confusion of the places of one slide, (2, 2)."""
    said = np.concatenate([found[row].ravel() for row in rows])
    true = np.concatenate([truth[row].ravel() for row in rows])
    return np.bincount(2 * true.astype(np.int64) + said, minlength=4).reshape(2, 2)


def _any(places: Int64) -> Bool:
    """Which slides have a region, true or found."""
    return np.asarray(places.sum((1, 2)) > places[:, 0, 0])


def _slide_ious(places: Int64) -> Float64:
    """Of the slides with a region, as :func:`models.agreement_statistics.slide_iou`."""
    union = places.sum((1, 2)) - places[:, 0, 0]
    return np.asarray(places[union > 0, 1, 1] / union[union > 0], dtype=np.float64)


def _mean(values: Bool | Float64) -> float | None:
    return round(float(values.mean()), 4) if len(values) else None
