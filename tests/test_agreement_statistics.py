"""Agreement of readers against scikit-learn, and against regions drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, mean_squared_error

from models.agreement_statistics import cohens_kappa, differential_error, object_ious, slide_iou
from models.evaluation import confusion


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 5, 300).astype(np.int32)
    two = np.where(rng.random(300) < 0.7, one, rng.integers(0, 5, 300)).astype(np.int32)
    expected = cohen_kappa_score(one, two)
    assert cohens_kappa(confusion(one, two, 5)) == pytest.approx(expected)


def test_kappa_at_its_ends() -> None:
    assert cohens_kappa(np.diag([3, 4, 5])) == pytest.approx(1)
    assert cohens_kappa(np.full((2, 2), 10)) == pytest.approx(0)
    assert cohens_kappa(np.array([[7, 0], [0, 0]])) is None


def test_differential_error_is_the_mean_square() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.dirichlet(np.ones(12)), rng.dirichlet(np.ones(12))
    assert differential_error(one, two) == pytest.approx(mean_squared_error(one, two))


def test_regions_by_hand() -> None:
    truth = np.zeros((6, 10), bool)
    truth[1:3, 1:4] = True  # 6 places
    truth[4:6, 6:8] = True  # 4 places
    found = np.zeros_like(truth)
    found[1:3, 2:6] = True  # 8 places, 4 of them right
    found[0, 9] = True  # touches nothing
    assert object_ious(found, truth).tolist() == [4 / 10, 0]
    assert slide_iou(found, truth) == pytest.approx(4 / (8 + 1 + 10 - 4))
    nothing = np.zeros_like(truth)
    assert slide_iou(nothing, nothing) is None
    assert object_ious(found, nothing).tolist() == []
    assert object_ious(truth, truth).tolist() == [1, 1]


def test_nothing_compared_is_no_agreement() -> None:
    assert cohens_kappa(np.zeros((3, 3), np.int64)) is None
