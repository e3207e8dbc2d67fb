"""Cells found against cells known: the same measurement in training and in the demonstration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.agreement_statistics import bootstrap_interval, cohens_kappa
from models.boxes import Boxes, overlapping_between
from models.cell_types import CELL_TYPES
from models.records import Bool, Float64, Int32, Int64


@dataclass(frozen=True, slots=True)
class Matches:
    """Which found cell is which true one, one to one.

    Attributes
    ----------
    found, truth : (P,) int64
        Rows that belong together.
    """

    found: Int64
    truth: Int64


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One line of the per-type table.

    Attributes
    ----------
    key
        Cell type.
    truth
        True cells of the type.
    matched
        Those of them that were found, whatever type was reported.
    called
        Found and matched cells that were reported as the type.
    right
        Those that are found and reported as what they are.
    recall
        ``right / matched``: of found cells of the type, how many are called it; None for none.
    precision
        ``right / called``; None for none.
    """

    key: str
    truth: int
    matched: int
    called: int
    right: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well cells were found and named.

    Attributes
    ----------
    found, truth, matched
        Numbers of cells.
    recall, precision, f1
        Of finding cells, types disregarded; 0 where nothing was there to divide by.
    type_accuracy
        Share of matched cells of known type that are reported as it; None without any.
    neighbour_accuracy
        The same with an adjacent stage of maturation counted as right.
    macro_recall
        Mean of the per-type recalls over the types that occur.
    confusion : (K, K) int64
        Matched cells; rows are true types, columns reported ones.
    classes
        Keys of rows and columns.
    types
        Per-type table, in the order of `classes`.
    """

    found: int
    truth: int
    matched: int
    recall: float
    precision: float
    f1: float
    type_accuracy: float | None
    neighbour_accuracy: float | None
    macro_recall: float | None
    confusion: Int64
    classes: tuple[str, ...]
    types: tuple[TypeRow, ...]


def match(found: Boxes, truth: Boxes, iou: float = 0.5) -> Matches:
    """Pair found boxes with true ones of IoU ≥ `iou`, the best overlap first, one to one.

    Parameters
    ----------
    found, truth : (N, 4), (M, 4)
        In the same frame.
    iou
        Greater than 0.

    Notes
    -----
    Greedy by overlap, not by score: from 0.5 on, cells that do not cover each other leave at
    most one candidate, so the order only matters for boxes that overlap among themselves.
    """
    i, j, overlap = overlapping_between(found, truth, iou)
    order = np.lexsort((j, i, -overlap))
    free_found, free_truth = np.ones(len(found), dtype=bool), np.ones(len(truth), dtype=bool)
    pairs = []
    for a, b in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if free_found[a] and free_truth[b]:
            free_found[a] = free_truth[b] = False
            pairs.append((a, b))
    matched = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Matches(matched[:, 0], matched[:, 1])


def f1(matched: int, found: int, truth: int) -> float:
    """Return the harmonic mean of recall and precision; 0 where there is nothing at all."""
    return 2 * matched / (found + truth) if found + truth else 0.0


def confusion(truth_label: Int32, found_label: Int32, classes: int) -> Int64:
    """Count label pairs of matched cells, (K, K): rows true, columns reported."""
    pairs = truth_label.astype(np.int64) * classes + found_label
    return np.bincount(pairs, minlength=classes * classes).astype(np.int64).reshape(classes, -1)


def evaluate(
    found_box: Boxes,
    found_label: Int32,
    truth_box: Boxes,
    truth_label: Int32,
    classes: tuple[str, ...],
    *,
    iou: float = 0.5,
) -> Evaluation:
    """Compare the cells found with the true ones.

    Parameters
    ----------
    found_box, truth_box : (N, 4), (M, 4)
    found_label, truth_label : (N,), (M,)
        Indices into `classes`; −1 in `truth_label` is a cell whose type nobody knows: it counts
        for finding, not for types.
    classes
    iou
        From which overlap two boxes can be the same cell.
    """
    pairs = match(found_box, truth_box, iou)
    typed = truth_label[pairs.truth] >= 0
    table = confusion(
        truth_label[pairs.truth[typed]], found_label[pairs.found[typed]], len(classes)
    )
    rows = _type_rows(table, truth_label, classes)
    recalls = [row.recall for row in rows if row.recall is not None]
    matched, found, truth = len(pairs.found), len(found_box), len(truth_box)
    return Evaluation(
        found=found,
        truth=truth,
        matched=matched,
        recall=matched / truth if truth else 0.0,
        precision=matched / found if found else 0.0,
        f1=f1(matched, found, truth),
        type_accuracy=_share(int(np.trace(table)), int(table.sum())),
        neighbour_accuracy=_share(int(table[_adjacent(classes)].sum()), int(table.sum())),
        macro_recall=sum(recalls) / len(recalls) if recalls else None,
        confusion=table,
        classes=classes,
        types=rows,
    )


def classification_table(confusion: Int64, types: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Accuracy, recall, precision and F1 of cells that were named, as JSON.

    Parameters
    ----------
    confusion : (K, K) int64
        Rows are true types, columns reported ones.
    types
        Names of both; only those of the table of cell types have neighbouring stages.
    seed
        Of the bootstraps over cells.

    Returns
    -------
    dict
        Means are over the types that occur; all are None where no cell was named. ``f1_of_means``
        is eq. 4 of Choi et al. (2017) of the mean precision and the mean recall: so are the F1
        scores of the paper's table 1. Intervals are 95 % of as many cells drawn with replacement,
        as if no two were of one patient.
    """
    shown, called, right = confusion.sum(1), confusion.sum(0), np.diag(confusion)
    recall, precision = right / np.maximum(shown, 1), right / np.maximum(called, 1)
    f1_of_type = 2 * right / np.maximum(shown + called, 1)
    cells = int(shown.sum())
    beside = int(confusion[_adjacent(tuple(types))].sum())
    means = [_mean_of(values, shown > 0) for values in (recall, precision, f1_of_type)]
    return {
        "cells": cells,
        "accuracy": rounded(_share(int(right.sum()), cells)),
        "accuracy_with_neighbouring_stage": rounded(_share(beside, cells)),
        "mean_recall": rounded(means[0]),
        "mean_precision": rounded(means[1]),
        "mean_f1": rounded(means[2]),
        "f1_of_means": rounded(_harmonic_mean(means[1], means[0])),
        **_classification_intervals(confusion, types, seed),
        "kappa": cohens_kappa(confusion),
        "types": {
            name: {
                "cells": int(shown[row]),
                "recall": round(float(recall[row]), 4),
                "precision": round(float(precision[row]), 4),
                "f1": round(float(f1_of_type[row]), 4),
            }
            for row, name in enumerate(types)
            if shown[row]
        },
        "confusion": confusion.tolist(),
    }


def _classification_intervals(
    confusion: Int64, types: Sequence[str], seed: int
) -> dict[str, list[float] | None]:
    """95 % intervals over the cells of a confusion (K, K)."""
    true, said = (
        np.repeat(each.ravel(), confusion.ravel()) for each in np.indices(confusion.shape)
    )
    right, beside = true == said, _adjacent(tuple(types))[true, said]

    def mean_recall(chosen: Int64) -> float:
        shown = np.bincount(true[chosen], minlength=len(types))
        hits = np.bincount(true[chosen], right[chosen], minlength=len(types))
        return float((hits[shown > 0] / shown[shown > 0]).mean())

    statistics: dict[str, Callable[[Int64], float]] = {
        "accuracy": lambda chosen: float(right[chosen].mean()),
        "accuracy_with_neighbouring_stage": lambda chosen: float(beside[chosen].mean()),
        "mean_recall": mean_recall,
    }
    return {
        f"{name}_interval": bootstrap_interval(of, len(true), np.random.default_rng(seed))
        for name, of in statistics.items()
    }


def _mean_of(values: Float64, there: Bool) -> float | None:
    return float(values[there].mean()) if there.any() else None


def rounded(value: float | None) -> float | None:
    """To four decimals, as reports have it."""
    return None if value is None else round(value, 4)


def _harmonic_mean(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 2 * first * second / (first + second) if first + second else 0.0


def _type_rows(table: Int64, truth_label: Int32, classes: tuple[str, ...]) -> tuple[TypeRow, ...]:
    rows = []
    for k, key in enumerate(classes):
        matched, called, right = int(table[k].sum()), int(table[:, k].sum()), int(table[k, k])
        rows.append(
            TypeRow(
                key=key,
                truth=int((truth_label == k).sum()),
                matched=matched,
                called=called,
                right=right,
                recall=_share(right, matched),
                precision=_share(right, called),
            )
        )
    return tuple(rows)


def _adjacent(classes: tuple[str, ...]) -> np.ndarray:
    """Return which pairs of types are the same or neighbouring stages, (K, K)."""
    return np.array([[a == b or _neighbours(a, b) for b in classes] for a in classes], dtype=bool)


def _neighbours(first: str, second: str) -> bool:
    return first in CELL_TYPES and second in CELL_TYPES[first].neighbours


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
