"""The whole report of a detector: its table, how sure each rate is, and the count it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models.agreement_statistics import bootstrap_by_slide
from models.average_precision import right_ones
from models.detection_table import Findings, above, detection_table, map_interval
from models.manual_count import differentials_difference
from models.records import Float64, Int64

RATES = ("recall", "precision", "f1")


@dataclass(frozen=True, slots=True, eq=False)
class ImageCounts:
    """Cells of each type in each image, from a score on.

    Attributes
    ----------
    right, called, true : (images, K) int64
        Found and called what they are; called the type; of the type.
    """

    right: Int64
    called: Int64
    true: Int64

    def rates(self, chosen: Int64) -> dict[str, Float64]:
        """Rates of each type (K,) over some images, as often as chosen; NaN for absent types."""
        right, called, true = (
            each[chosen].sum(0).astype(np.float64) for each in (self.right, self.called, self.true)
        )
        there = np.where(true > 0, 1.0, np.nan)
        return {
            "recall": there * right / np.maximum(true, 1),
            "precision": there * right / np.maximum(called, 1),
            "f1": there * 2 * right / np.maximum(called + true, 1),
        }


def evaluation_table(
    findings: Findings,
    types: Sequence[str],
    score_threshold: float,
    seed: int,
    slides: Sequence[str],
    manual: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Everything of :func:`models.detection_table.detection_table`, and more, as JSON.

    Parameters
    ----------
    findings
    types
        Names, in the order of the labels.
    score_threshold
    seed
        Of the bootstraps over slides.
    slides
        Slide of each image.
    manual
        Slide → type → count of a manual differential, an empty slide for all of them together;
        None to compare with the true cells.

    Returns
    -------
    dict
        Also 95 % intervals of the mean average precision, and of recall, precision and F1 over all
        types and of each; and how far the differential of the cells found is from the one of the
        true cells, or from the manual one: of each slide, or over all images together
        (``ndc_of``) where the manual count is of all, or no slide has a second image.
    """
    table = detection_table(findings, types, score_threshold)
    counts = image_counts(findings, len(types), score_threshold)
    for kind, name in enumerate(types):
        if name in table["types"]:
            table["types"][name] |= _intervals(counts, slides, seed, kind)
    together = set(manual) == {""} if manual is not None else len({*slides}) == len(slides)
    compared = [""] * len(slides) if together else slides
    called, true = (_by_slide(each, types, compared) for each in (counts.called, counts.true))
    over_all = _intervals(counts, slides, seed, None)
    return {
        **table,
        "map_50_interval": map_interval(findings, len(types), seed, slides),
        **{f"mean_{name}": interval for name, interval in over_all.items()},
        "ndc_reference": "true cells" if manual is None else "manual count",
        "ndc_of": "all images together" if together else "each slide",
        **differentials_difference(called, true if manual is None else manual),
    }


def _by_slide(
    count: Int64, types: Sequence[str], slides: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Slide → type → number of cells, from those of its images (images, K)."""
    rows = {slide: np.array([each == slide for each in slides]) for slide in slides}
    return {
        slide: dict(zip(types, count[own].sum(0).tolist(), strict=True))
        for slide, own in rows.items()
    }


def image_counts(findings: Findings, types: int, score_threshold: float) -> ImageCounts:
    """Count what was found image by image."""
    right, called, true = (np.zeros((findings.images, types), np.int64) for _ in range(3))
    sure = above(findings.found, score_threshold)
    for kind in range(types):
        found, truth = sure.of(kind), findings.truth.of(kind)
        hit = right_ones(found, truth, 0.5)
        np.add.at(right[:, kind], found.image[hit], 1)
        np.add.at(called[:, kind], found.image, 1)
        np.add.at(true[:, kind], truth.image, 1)
    return ImageCounts(right, called, true)


def _intervals(
    counts: ImageCounts, slides: Sequence[str], seed: int, kind: int | None
) -> dict[str, list[float] | None]:
    """Of the rates of one type, or of their means over those that the drawn images hold."""

    def of(chosen: Int64, rate: str) -> float | None:
        values = counts.rates(chosen)[rate]
        known = values[np.isfinite(values)] if kind is None else values[[kind]]
        return float(known.mean()) if np.isfinite(known).any() else None

    return {
        f"{rate}_interval": bootstrap_by_slide(
            partial(of, rate=rate), slides, np.random.default_rng(seed)
        )
        for rate in RATES
    }
