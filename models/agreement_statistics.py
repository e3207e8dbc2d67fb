"""How well two readers of a slide agree: types of cells, percentages, regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.records import Bool, Float64, Int64

BOOTSTRAPS = 200


def bootstrap_interval(
    statistic: Callable[[Int64], float | None], units: int, rng: np.random.Generator
) -> list[float] | None:
    """95 % of what a statistic is of as many units (slides, images) drawn with replacement.

    Parameters
    ----------
    statistic
        Rows of units, (units,) int64 → value; None where they have none.
    units
    rng

    Returns
    -------
    list or None
        Lower and upper end; None where no draw had a value, and of a single unit, which says
        nothing of others.
    """
    if units < 2:
        return None
    drawn = [statistic(rng.integers(units, size=units)) for _ in range(BOOTSTRAPS)]
    values = [value for value in drawn if value is not None]
    if not values:
        return None
    return [round(float(end), 4) for end in np.percentile(values, [2.5, 97.5])]


def bootstrap_by_slide(
    statistic: Callable[[Int64], float | None], slides: Sequence[str], rng: np.random.Generator
) -> list[float] | None:
    """95 % of what a statistic of images is of as many slides drawn with replacement.

    Images of one slide are alike, so a slide is drawn as a whole.

    Parameters
    ----------
    statistic
        Rows of images, (n,) int64, as often as they are drawn → value; None where they have none.
    slides
        Slide of each image.
    rng

    Returns
    -------
    list or None
        As of :func:`bootstrap_interval`.
    """
    names = np.array(slides)
    images = [np.flatnonzero(names == name) for name in dict.fromkeys(slides)]
    return bootstrap_interval(
        lambda drawn: statistic(np.concatenate([images[row] for row in drawn])), len(images), rng
    )


def cohens_kappa(confusion: Int64) -> float | None:
    """Agreement beyond chance (Cohen 1960, eq. 1).

    Parameters
    ----------
    confusion : (K, K) int
        Cells by what the one reader and the other called them.

    Returns
    -------
    float or None
        1 for full agreement, 0 for chance; None where chance alone would agree fully, and where
        nothing was compared.
    """
    if not confusion.sum():
        return None
    shares = confusion / confusion.sum()
    seen = float(np.trace(shares))
    by_chance = float(shares.sum(0) @ shares.sum(1))
    return (seen - by_chance) / (1 - by_chance) if by_chance < 1 else None


def differential_error(share: Float64, manual_share: Float64) -> float:
    """Mean squared difference of two differentials, over types, as shares of 1."""
    return float(np.mean((np.asarray(share) - np.asarray(manual_share)) ** 2))


def slide_iou(found: Bool, truth: Bool) -> float | None:
    """Intersection over union of all regions of a slide; None where there is none at all.

    Parameters
    ----------
    found, truth : (H, W) bool
        Regions on a common grid.
    """
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else None


def object_ious(found: Bool, truth: Bool) -> Float64:
    """Intersection over union of each true region with all found ones that touch it.

    Parameters
    ----------
    found, truth : (H, W) bool
        Regions on a common grid; those that touch by a side are one.

    Returns
    -------
    (R,) float64
        One per true region, in reading order of their first places.
    """
    found_label, _ = ndimage.label(found)
    truth_label, regions = ndimage.label(truth)
    values = np.zeros(regions)
    for region in range(1, regions + 1):
        own: NDArray[np.bool_] = truth_label == region
        touching = np.unique(found_label[own])
        theirs = np.isin(found_label, touching[touching > 0])
        values[region - 1] = (own & theirs).sum() / (own | theirs).sum()
    return values
