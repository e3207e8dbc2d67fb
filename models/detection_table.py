"""What a detector finds in annotated images, measured in every way that the four papers do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from models.agreement_statistics import bootstrap_by_slide, cohens_kappa
from models.average_precision import (
    ScoredBoxes,
    curve,
    eleven_point,
    hundred_and_one_point,
    log_average_miss_rate,
    mean_average_precision,
)
from models.evaluation import confusion, f1, match, rounded
from models.records import Float32, Float64, Int32, Int64, UInt8

# Below this, nothing counts as found, whatever the curve.
LEAST_SCORE = 0.01

# Images (1, H, W, 3) uint8 → box (1, A, 4), score (1, A), type probability (1, A, K).
Detect = Callable[[UInt8], tuple[Float32, Float32, Float32]]


class KnownImage(Protocol):
    """An image whose cells are known, as :class:`models.training.annotated.AnnotatedImage`."""

    @property
    def read(self) -> Callable[[], UInt8]: ...
    @property
    def box_px(self) -> Float32: ...
    @property
    def kind(self) -> Int64: ...


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """Everything found and everything true.

    Attributes
    ----------
    found, truth
    images
        Number of images looked at.
    """

    found: ScoredBoxes
    truth: ScoredBoxes
    images: int

    def drawn(self, chosen: Int64) -> Findings:
        """Return the findings of some images, each as often as it is chosen."""
        return Findings(_drawn(self.found, chosen), _drawn(self.truth, chosen), len(chosen))


def look_at(images: Iterable[KnownImage], detect: Detect) -> Findings:
    """Run a detector over images, one at a time."""
    found, truth = [_nothing()], [_nothing()]
    number = -1
    for number, image in enumerate(images):
        box, score, probability = (each[0] for each in detect(image.read()[None]))
        kept = score >= LEAST_SCORE
        found.append(
            ScoredBoxes(
                np.full(int(kept.sum()), number),
                box[kept],
                probability[kept].argmax(1) if kept.any() else np.empty(0, np.int64),
                score[kept],
            )
        )
        truth.append(
            ScoredBoxes(
                np.full(len(image.kind), number), image.box_px, image.kind, np.ones(len(image.kind))
            )
        )
    return Findings(_joined(found), _joined(truth), number + 1)


def detection_table(
    findings: Findings, types: Sequence[str], score_threshold: float
) -> dict[str, Any]:
    """Every figure that the papers report, as JSON.

    Parameters
    ----------
    findings
    types
        Names, in the order of the labels.
    score_threshold
        From which score on a cell counts as found, where a threshold is needed.

    Returns
    -------
    dict
        Over all types and for each: average precision at IoU 0.5 by 11 points (Tayebi et al. 2021,
        §4.5) and COCO's, log-average miss rate, recall and accuracy (Wang et al. 2022, eq. 17 and
        18), precision, F1, Cohen's kappa, and the confusion matrix (rows true,
        columns reported).
    """
    table = _confusion(findings, len(types), score_threshold)
    rows = {
        name: _type_row(findings, table, kind, score_threshold)
        for kind, name in enumerate(types)
        if (findings.truth.label == kind).any()
    }
    return {
        "images": findings.images,
        "cells": len(findings.truth.label),
        "score_threshold": score_threshold,
        "map_50": _mean([row["ap_50"] for row in rows.values()]),
        "map_coco": rounded(mean_average_precision(findings.found, findings.truth, len(types))),
        "mean_recall": _mean([row["recall"] for row in rows.values()]),
        "mean_precision": _mean([row["precision"] for row in rows.values()]),
        "mean_f1": _mean([row["f1"] for row in rows.values()]),
        "kappa": rounded(cohens_kappa(table)),
        "types": rows,
        "confusion": table.tolist(),
    }


def best_threshold(findings: Findings, types: int) -> float:
    """Score from which on F1, over the cells of all types together, is highest.

    A network that learns by ranking gives scores whose order alone means something.
    """
    hits, scores = [np.empty(0, np.bool_)], [np.empty(0)]
    for kind in range(types):
        found = findings.found.of(kind)
        points = curve(found, findings.truth.of(kind), 0.5)
        hits.append(np.diff(points.recall, prepend=0.0) > 0)
        scores.append(-np.sort(-found.score))
    score, hit = np.concatenate(scores), np.concatenate(hits)
    order = np.argsort(-score, kind="stable")
    right = np.cumsum(hit[order])
    f1_of = 2 * right / (np.arange(len(order)) + 1 + (findings.truth.label >= 0).sum())
    # What has the same score is reported together.
    last = np.append(np.diff(score[order]) != 0, True)
    return float(score[order][last][f1_of[last].argmax()]) if len(order) else 0.5


def curve_figures(
    findings: Findings, types: Sequence[str], seed: int, slides: Sequence[str]
) -> dict[str, Any]:
    """What needs all that was found, whatever its score: mean average precisions.

    Parameters
    ----------
    findings
    types
        Names, in the order of the labels.
    seed
        Of the bootstrap over slides.
    slides
        Slide of each image.
    """
    return {
        "map_50": rounded(mean_ap_50(findings, len(types))),
        "map_50_interval": map_interval(findings, len(types), seed, slides),
        "map_coco": rounded(mean_average_precision(findings.found, findings.truth, len(types))),
    }


def type_curve_figures(findings: Findings, kind: int) -> dict[str, float]:
    """The same of one type, and its log-average miss rate."""
    points = curve(findings.found.of(kind), findings.truth.of(kind), 0.5)
    return {
        "ap_50": round(eleven_point(points), 4),
        # Eleven points give at most 10/11 to a type of which one cell is never found.
        "ap_50_coco": round(hundred_and_one_point(points), 4),
        "log_average_miss_rate": round(log_average_miss_rate(points, findings.images), 4),
    }


def mean_ap_50(findings: Findings, types: int) -> float | None:
    """Mean over the types that occur of the average precision at IoU 0.5, by 11 points.

    None where none occurs.
    """
    values = [
        eleven_point(curve(findings.found.of(kind), findings.truth.of(kind), 0.5))
        for kind in range(types)
        if (findings.truth.label == kind).any()
    ]
    return float(np.mean(values)) if values else None


def _type_row(
    findings: Findings, table: Int64, kind: int, score_threshold: float
) -> dict[str, Any]:
    found, truth = findings.found.of(kind), findings.truth.of(kind)
    sure = curve(above(found, score_threshold), truth, 0.5)
    called = len(sure.recall)
    right = round(float(sure.recall[-1]) * sure.truth) if called else 0
    # Of Wang et al. 2022, eq. 17 and 18: a cell of another type that nothing calls this one.
    others = int((findings.truth.label >= 0).sum()) - sure.truth
    spared = others - int(table[:, kind].sum() - table[kind, kind])
    wrong = called - right + sure.truth - right
    return {
        "cells": sure.truth,
        **type_curve_figures(findings, kind),
        "recall": round(right / sure.truth, 4),
        "precision": round(right / called, 4) if called else 0.0,
        "f1": round(f1(right, called, sure.truth), 4),
        "accuracy": round((right + spared) / (right + spared + wrong), 4),
    }


def _confusion(findings: Findings, types: int, score_threshold: float) -> Int64:
    """Cells found, whatever they were called: (K, K)."""
    sure = above(findings.found, score_threshold)
    table = np.zeros((types, types), np.int64)
    for image in range(findings.images):
        mine, true = sure.image == image, findings.truth.image == image
        known = findings.truth.label[true] >= 0
        pairs = match(sure.box_px[mine], findings.truth.box_px[true])
        typed = known[pairs.truth]
        table += confusion(
            findings.truth.label[true][pairs.truth[typed]].astype(np.int32),
            sure.label[mine][pairs.found[typed]].astype(np.int32),
            types,
        )
    return table


def map_interval(
    findings: Findings, types: int, seed: int, slides: Sequence[str]
) -> list[float] | None:
    """95 % of the mean average precisions of as many slides drawn with replacement.

    None where nothing is true.
    """
    return bootstrap_by_slide(
        lambda chosen: mean_ap_50(findings.drawn(chosen), types),
        slides,
        np.random.default_rng(seed),
    )


def above(boxes: ScoredBoxes, score: float) -> ScoredBoxes:
    kept = boxes.score >= score
    return ScoredBoxes(boxes.image[kept], boxes.box_px[kept], boxes.label[kept], boxes.score[kept])


def _drawn(boxes: ScoredBoxes, chosen: Int64) -> ScoredBoxes:
    order = np.argsort(boxes.image, kind="stable")
    starts = np.searchsorted(boxes.image[order], chosen, "left")
    ends = np.searchsorted(boxes.image[order], chosen, "right")
    rows = np.concatenate([order[a:b] for a, b in zip(starts, ends, strict=True)] or [order[:0]])
    image = np.repeat(np.arange(len(chosen)), ends - starts)
    return ScoredBoxes(image, boxes.box_px[rows], boxes.label[rows], boxes.score[rows])


def _joined(parts: Sequence[ScoredBoxes]) -> ScoredBoxes:
    return ScoredBoxes(
        np.concatenate([part.image for part in parts]),
        np.concatenate([part.box_px for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.score for part in parts]),
    )


def _nothing() -> ScoredBoxes:
    nothing: Float64 = np.empty(0)
    label: Int32 = np.empty(0, np.int32)
    return ScoredBoxes(label, np.empty((0, 4), np.float32), label, nothing)


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 4) if values else None
