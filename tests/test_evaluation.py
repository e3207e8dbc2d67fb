"""Found cells against true ones, on cases small enough to see."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.boxes import iou
from models.evaluation import confusion, evaluate, f1, match
from models.records import Float64

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
