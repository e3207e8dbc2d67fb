"""Found cells against true ones, on cases small enough to see."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from models.boxes import iou
from models.evaluation import _harmonic_mean, classification_table, confusion, evaluate, f1, match
from models.records import Float64, Int64

CLASSES = ("myeloblast", "promyelocyte", "band_neutrophil", "unclassified")


def boxes(*corner: tuple[float, float]) -> Float64:
    low = np.array(corner, dtype=np.float64).reshape(-1, 2)
    return np.concatenate([low, low + 40], axis=1)


def labels(*label: int) -> np.ndarray:
    return np.array(label, dtype=np.int32)


def test_the_best_overlap_is_taken_one_to_one() -> None:
    found = boxes((8, 0), (2, 0), (500, 0))
    truth = boxes((0, 0), (100, 0), (500, 21))  # the last pair has IoU 0.31
    pairs = match(found, truth)
    assert pairs.found.tolist() == [1]
    assert pairs.truth.tolist() == [0]


def test_an_overlap_of_just_the_limit_matches() -> None:
    found = np.array([[0.0, 0.0, 40.0, 20.0]])
    assert match(found, boxes((0, 0))).found.tolist() == [0]
    assert match(found - [0, 0, 0, 0.01], boxes((0, 0))).found.tolist() == []


def test_a_displaced_chain_is_matched_in_order() -> None:
    truth = boxes(*[(60 * k, 0) for k in range(50)])
    found = truth[::-1] + 5
    pairs = match(found, truth)
    assert dict(zip(pairs.found.tolist(), pairs.truth.tolist(), strict=True)) == {
        k: 49 - k for k in range(50)
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_matching_is_that_of_the_slow_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (boxes(*rng.uniform(0, 150, (25, 2))) for _ in range(2))
    table = np.array([[iou(a[None], b[None])[0] for b in second] for a in first])
    expected = set()
    while table.max() >= 0.4:
        i, j = np.unravel_index(table.argmax(), table.shape)
        expected.add((int(i), int(j)))
        table[i], table[:, j] = -1, -1
    pairs = match(first, second, iou=0.4)
    assert set(zip(pairs.found.tolist(), pairs.truth.tolist(), strict=True)) == expected


def test_numbers_by_hand() -> None:
    truth = boxes((0, 0), (100, 0), (200, 0), (300, 0), (400, 0), (500, 0))
    found = boxes((0, 0), (100, 0), (200, 0), (300, 0), (400, 0), (900, 0), (950, 0), (0, 900))
    result = evaluate(
        found, labels(0, 1, 2, 3, 0, 0, 0, 0), truth, labels(0, 0, 0, 1, -1, 2), CLASSES
    )
    assert (result.found, result.truth, result.matched) == (8, 6, 5)
    assert result.recall == pytest.approx(5 / 6)
    assert result.precision == pytest.approx(5 / 8)
    assert result.f1 == pytest.approx(10 / 14)
    # Of four matched cells of known type one is right and one is the neighbouring stage.
    assert result.type_accuracy == pytest.approx(1 / 4)
    assert result.neighbour_accuracy == pytest.approx(2 / 4)
    assert result.confusion.tolist() == [[1, 1, 1, 0], [0, 0, 0, 1], [0] * 4, [0] * 4]
    myeloblast, promyelocyte, band, unclassified = result.types
    assert (myeloblast.truth, myeloblast.matched, myeloblast.right) == (3, 3, 1)
    assert myeloblast.recall == pytest.approx(1 / 3)
    assert myeloblast.precision == 1
    assert promyelocyte.recall == 0
    assert promyelocyte.precision == 0
    assert (band.truth, band.matched, band.recall) == (1, 0, None)
    assert unclassified.called == 1
    assert result.macro_recall == pytest.approx((1 / 3 + 0) / 2)


def test_nothing_found_and_nothing_there() -> None:
    nothing = np.empty((0, 4))
    result = evaluate(nothing, labels(), boxes((0, 0)), labels(1), CLASSES)
    assert (result.recall, result.precision, result.f1) == (0, 0, 0)
    assert result.type_accuracy is None
    assert result.macro_recall is None
    assert evaluate(nothing, labels(), nothing, labels(), CLASSES).f1 == 0


def test_f1_and_confusion() -> None:
    assert f1(8, 10, 8) == pytest.approx(2 * 0.8 * 1 / 1.8)
    assert confusion(labels(0, 0, 1), labels(1, 1, 0), 2).tolist() == [[0, 2], [1, 0]]


def test_a_table_of_named_cells_by_hand() -> None:
    types = ("myeloblast", "promyelocyte", "band_neutrophil", "blast")
    named = np.array([[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]], np.int64)
    table = classification_table(named, types)
    assert set(table["types"]) == set(types[:3])  # no blast was shown
    assert [row["f1"] for row in table["types"].values()] == [0.8571, 0.5, 0.8]
    assert table["mean_recall"] == 0.75
    assert table["mean_precision"] == 0.7222
    assert table["mean_f1"] == 0.719
    assert table["f1_of_means"] == 0.7358
    assert table["accuracy"] == 0.75
    assert table["accuracy_with_neighbouring_stage"] == 0.875  # band is not beside promyelocyte
    for name in ("accuracy", "accuracy_with_neighbouring_stage", "mean_recall"):
        low, high = table[f"{name}_interval"]
        assert 0 <= low < table[name] < high <= 1


def test_a_table_of_no_named_cell_has_no_rates_and_is_json() -> None:
    table = classification_table(np.zeros((2, 2), np.int64), ("myeloblast", "blast"))
    assert table["cells"] == 0
    rates = {name for name, value in table.items() if value is None}
    assert {"accuracy", "mean_recall", "mean_recall_interval", "f1_of_means", "kappa"} <= rates
    json.dumps(table, allow_nan=False)


@pytest.mark.parametrize("seed", range(5))
def test_rates_of_named_cells_are_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types = tuple("abcde")
    named = rng.integers(0, 12, (5, 5)).astype(np.int64)
    named[seed] = 0  # a type that does not occur, and is reported all the same
    named[:, (seed + 1) % 5] = 0  # one that is never reported
    true, said = pairs_of(named)
    labels = [row for row in range(5) if named[row].any()]
    table = classification_table(named, types)
    expected = f1_score(true, said, labels=labels, average=None, zero_division=0)
    for row, value in zip(labels, expected, strict=True):
        assert table["types"][types[row]]["f1"] == pytest.approx(value, abs=1e-4)
    for name, score in (
        ("mean_f1", f1_score),
        ("mean_precision", precision_score),
        ("mean_recall", recall_score),
    ):
        mean = score(true, said, labels=labels, average="macro", zero_division=0)
        assert table[name] == pytest.approx(mean, abs=1e-4)


def pairs_of(named: Int64) -> tuple[list[int], list[int]]:
    """True and reported type of every cell of a confusion."""
    pairs = [pair for pair, times in np.ndenumerate(named) for _ in range(times)]
    return [true for true, _ in pairs], [said for _, said in pairs]


def test_f1_is_that_of_choi_2017() -> None:
    """Table 1 and the dual-stage network: F1 of the mean precision and the mean recall, percent."""
    for precision, recall, expected in (
        *((83.36, 48.69, 61.47), (68.59, 65.61, 67.07), (91.04, 90.57, 90.80)),
        *((85.02, 85.05, 85.04), (95.49, 95.68, 95.58), (97.13, 97.06, 97.10)),
    ):
        assert _harmonic_mean(precision, recall) == pytest.approx(expected, abs=0.006)


def test_intervals_are_as_wide_as_four_hundred_cells_make_them() -> None:
    named = np.array([[150, 50], [50, 150]], np.int64)
    table = classification_table(named, ("a", "b"), seed=3)
    reach = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    for name in ("accuracy", "mean_recall"):
        assert table[f"{name}_interval"] == pytest.approx([0.75 - reach, 0.75 + reach], abs=0.012)
    assert table == classification_table(named, ("a", "b"), seed=3)
    assert (
        table["accuracy_interval"] != classification_table(named, ("a", "b"))["accuracy_interval"]
    )
    sure = classification_table(np.diag([7, 5]).astype(np.int64), ("a", "b"))
    assert sure["accuracy_interval"] == sure["mean_recall_interval"] == [1.0, 1.0]
