"""Detection metrics against pycocotools, and against examples counted by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models.average_precision import (
    Curve,
    ScoredBoxes,
    curve,
    eleven_point,
    hundred_and_one_point,
    log_average_miss_rate,
    mean_average_precision,
)

IMAGES, TYPES = 6, 3


def drawn(seed: int, noise_px: float = 6.0) -> tuple[ScoredBoxes, ScoredBoxes]:
    """Truth, and detections that miss some, move all, and invent a few."""
    rng = np.random.default_rng(seed)
    count = 60
    corner = rng.uniform(0, 300, (count, 2))
    box = np.hstack((corner, corner + rng.uniform(20, 60, (count, 2))))
    image, label = rng.integers(0, IMAGES, count), rng.integers(0, TYPES, count)
    truth = ScoredBoxes(image, box, label, np.ones(count))
    kept = rng.random(count) < 0.8
    moved = box[kept] + rng.normal(0, noise_px, (kept.sum(), 4))
    extra = rng.uniform(0, 300, (20, 2))
    found_box = np.vstack((moved, np.hstack((extra, extra + 40))))
    wrong = rng.random(kept.sum()) < 0.1
    found_label = np.append(np.where(wrong, 0, label[kept]), rng.integers(0, TYPES, 20))
    found_image = np.append(image[kept], rng.integers(0, IMAGES, 20))
    return ScoredBoxes(found_image, found_box, found_label, rng.random(len(found_box))), truth


def coco(found: ScoredBoxes, truth: ScoredBoxes) -> COCOeval:
    def xywh(box: np.ndarray) -> list[float]:
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(IMAGES)],
            "categories": [{"id": k + 1} for k in range(TYPES)],
            "annotations": [
                {
                    "id": row + 1,
                    "image_id": int(truth.image[row]) + 1,
                    "category_id": int(truth.label[row]) + 1,
                    "bbox": xywh(truth.box_px[row]),
                    "area": float(np.prod(truth.box_px[row, 2:] - truth.box_px[row, :2])),
                    "iscrowd": 0,
                }
                for row in range(len(truth.label))
            ],
        }
        known.createIndex()
        answers = known.loadRes(
            [
                {
                    "image_id": int(found.image[row]) + 1,
                    "category_id": int(found.label[row]) + 1,
                    "bbox": xywh(found.box_px[row]),
                    "score": float(found.score[row]),
                }
                for row in range(len(found.label))
            ]
        )
        judged = COCOeval(known, answers, "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_that_of_coco(seed: int) -> None:
    found, truth = drawn(seed)
    stats = coco(found, truth).stats
    assert mean_average_precision(found, truth, TYPES) == pytest.approx(stats[0], abs=1e-9)
    for iou, place in ((0.5, 1), (0.75, 2)):
        ours = mean_average_precision(found, truth, TYPES, (iou,))
        assert ours == pytest.approx(stats[place], abs=1e-9)


def by_hand() -> Curve:
    """Four true boxes; hits in the order right, wrong, right, right, wrong."""
    truth_box = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]], float)
    found_box = truth_box[[0, 0, 1, 2, 2]]
    found = ScoredBoxes(np.zeros(5, int), found_box, np.zeros(5, int), np.linspace(0.9, 0.5, 5))
    return curve(found, ScoredBoxes(np.zeros(4, int), truth_box, np.zeros(4, int), np.ones(4)), 0.5)


def test_a_box_found_twice_is_right_once() -> None:
    points = by_hand()
    assert points.recall.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    np.testing.assert_allclose(points.precision, [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert points.false_positives.tolist() == [0, 1, 1, 1, 2]


def test_eleven_points_by_hand() -> None:
    # Recall 0, 0.1, 0.2: precision 1; 0.3 to 0.7: 3/4; 0.8 to 1: 0.
    assert eleven_point(by_hand()) == pytest.approx((3 * 1 + 5 * 0.75) / 11)


def test_hundred_and_one_points_by_hand() -> None:
    # Recalls 0 to 0.25: 26 points of 1; to 0.75: 50 points of 3/4.
    assert hundred_and_one_point(by_hand()) == pytest.approx((26 + 50 * 0.75) / 101)


def test_log_average_miss_rate_by_hand() -> None:
    # One image in ten: at 0.01 to 0.0562 false positives per image the first hit alone, 0.75
    # missed; from 0.1 on three hits, 0.25 missed.
    missed = np.array([0.75] * 4 + [0.25] * 5)
    expected = np.exp(np.log(missed).mean())
    assert log_average_miss_rate(by_hand(), images=10) == pytest.approx(expected)


def test_nothing_found_and_nothing_true() -> None:
    none = ScoredBoxes(np.zeros(0, int), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    _, truth = drawn(0)
    points = curve(none, truth.of(0), 0.5)
    assert eleven_point(points) == hundred_and_one_point(points) == 0
    assert log_average_miss_rate(points, IMAGES) == 1
    assert mean_average_precision(none, truth, TYPES) == 0
    assert mean_average_precision(truth, none, TYPES) is None


def test_a_perfect_detector() -> None:
    _, truth = drawn(1)
    assert mean_average_precision(truth, truth, TYPES) == pytest.approx(1)
    points = curve(truth.of(0), truth.of(0), 0.5)
    assert eleven_point(points) == pytest.approx(1)
    assert log_average_miss_rate(points, IMAGES) == pytest.approx(1e-10)
