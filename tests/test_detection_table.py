"""The table of a detector against independent implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from models.average_precision import ScoredBoxes
from models.detection_report import as_markdown, write_report
from models.detection_table import (
    Findings,
    best_threshold,
    detection_table,
    look_at,
    map_interval,
    mean_ap_50,
)

TYPES = ("blast", "band")


class _Known:
    def __init__(self, box: np.ndarray, kind: np.ndarray) -> None:
        self.box_px, self.kind = box, kind

    @property
    def read(self):
        return lambda: np.zeros((10, 10, 3), np.uint8)


@pytest.fixture
def findings() -> Findings:
    return found_with_errors(50)


def found_with_errors(count: int) -> Findings:
    """So many images of cells that are found with errors: moved, missed, called another type."""
    rng = np.random.default_rng(4)
    images, answers = [], []
    for _ in range(count):
        corner = rng.permutation(10)[:5, None] * np.array([40.0, 0.0]) + rng.uniform(0, 5, (5, 2))
        box = np.concatenate((corner, corner + 30), 1).astype(np.float32)
        kind = rng.integers(2, size=5)
        images.append(_Known(box, kind))
        found = box + rng.normal(0, 3, box.shape).astype(np.float32)
        called = np.where(rng.random(5) < 0.8, kind, 1 - kind)
        probability = np.eye(2, dtype=np.float32)[called] * 0.8 + 0.1
        score = rng.uniform(0, 1, 5).astype(np.float32)
        answers.append((found[None], score[None], probability[None]))
    answer = iter(answers)
    return look_at(images, lambda rgb: next(answer))


def test_kappa_and_confusion_are_scikit_learns(findings: Findings) -> None:
    table = detection_table(findings, TYPES, 0.3)
    confusion = np.array(table["confusion"])
    true, said = (np.repeat(np.indices((2, 2))[axis].ravel(), confusion.ravel()) for axis in (0, 1))
    assert table["kappa"] == pytest.approx(cohen_kappa_score(true, said), abs=1e-4)
    assert confusion.sum() <= len(findings.truth.label)


def test_recall_and_precision_by_hand() -> None:
    box = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], np.float32)
    truth = ScoredBoxes(np.zeros(3, int), box, np.array([0, 0, 1]), np.ones(3))
    found = ScoredBoxes(
        np.zeros(4, int), box[[0, 1, 2, 2]], np.array([0, 1, 1, 1]), np.array([0.9, 0.8, 0.7, 0.1])
    )
    table = detection_table(Findings(found, truth, 1), TYPES, 0.5)
    assert table["types"]["blast"]["recall"] == 0.5
    assert table["types"]["blast"]["precision"] == 1.0
    assert table["types"]["band"]["recall"] == 1.0
    assert table["types"]["band"]["precision"] == 0.5
    assert table["confusion"] == [[1, 1], [0, 1]]


def test_the_best_threshold_has_the_best_f1() -> None:
    findings = found_with_errors(12)  # each of their 60 scores is tried
    chosen = best_threshold(findings, 2)
    f1s = {}
    for score in np.unique(findings.found.score):
        table = detection_table(findings, TYPES, float(score))
        right = sum(round(r["recall"] * r["cells"]) for r in table["types"].values())
        called = (findings.found.score >= score).sum()
        f1s[float(score)] = 2 * right / (called + len(findings.truth.label))
    assert f1s[chosen] == pytest.approx(max(f1s.values()))


def test_what_has_the_same_score_is_reported_together() -> None:
    """One cell; a right and a wrong answer of score 1, and a sure one after another two."""
    box = np.array([[0, 0, 10, 10], [50, 0, 60, 10]], np.float32)
    truth = ScoredBoxes(np.zeros(1, int), box[:1], np.zeros(1, int), np.ones(1))
    found = ScoredBoxes(np.zeros(2, int), box, np.zeros(2, int), np.ones(2))
    assert best_threshold(Findings(found, truth, 1), 1) == 1.0
    more = ScoredBoxes(np.zeros(3, int), box[[0, 1, 1]], np.zeros(3, int), np.array([0.5, 1, 1.0]))
    # At 1.0 two wrong ones are reported, however they are sorted; at 0.5 the cell with them.
    assert best_threshold(Findings(more, truth, 1), 1) == 0.5
    two = ScoredBoxes(np.zeros(2, int), box, np.zeros(2, int), np.ones(2))
    tied = ScoredBoxes(
        np.zeros(4, int), box[[0, 1, 0, 0]] + np.array([[0], [0], [90], [180]]), np.zeros(4, int),
        np.array([0.9, 0.8, 0.9, 0.9]),
    )  # fmt: skip
    assert best_threshold(Findings(tied, two, 1), 1) == 0.8


def test_the_bootstrap_holds_the_value(findings: Findings) -> None:
    each = [str(number) for number in range(findings.images)]
    interval = map_interval(findings, 2, 0, each)
    value = mean_ap_50(findings, 2)
    assert interval is not None
    assert value is not None
    assert interval[0] < value < interval[1]
    assert interval == map_interval(findings, 2, 0, each)


def test_images_of_one_slide_are_drawn_together() -> None:
    """Two slides of three images, one found and one missed: a draw has all, half or nothing."""
    box = np.tile(np.array([[0, 0, 10, 10]], np.float32), (6, 1))
    truth = ScoredBoxes(np.arange(6), box, np.zeros(6, int), np.ones(6))
    found = ScoredBoxes(np.arange(3), box[:3], np.zeros(3, int), np.ones(3))
    findings = Findings(found, truth, 6)
    by_slide = map_interval(findings, 1, 0, [*"aaabbb"])
    by_image = map_interval(findings, 1, 0, [*"abcdef"])
    assert by_slide == [0.0, 1.0]
    assert by_image is not None
    assert by_image[1] < 1.0
    assert map_interval(findings, 1, 0, [*"aaaaaa"]) is None  # one slide says nothing of others


def test_images_without_a_cell_are_not_images_where_none_is_found() -> None:
    """A perfect detector, three images, all cells in one: a third of the draws hold none."""
    box = np.array([[0, 0, 10, 10]], np.float32)
    cell = ScoredBoxes(np.zeros(1, int), box, np.zeros(1, int), np.ones(1))
    assert map_interval(Findings(cell, cell, 3), 2, 0, [*"abc"]) == [1.0, 1.0]
    none = ScoredBoxes(np.empty(0, int), np.empty((0, 4)), np.empty(0, int), np.empty(0))
    assert map_interval(Findings(none, none, 3), 2, 0, [*"abc"]) is None
    assert mean_ap_50(Findings(none, none, 3), 2) is None


def test_nothing_found_is_a_table_of_noughts() -> None:
    truth = ScoredBoxes(np.zeros(1, int), np.array([[0, 0, 9, 9.0]]), np.array([1]), np.ones(1))
    nothing = ScoredBoxes(np.empty(0, int), np.empty((0, 4)), np.empty(0, int), np.empty(0))
    table = detection_table(Findings(nothing, truth, 1), TYPES, 0.5)
    assert table["map_50"] == 0
    assert table["types"]["band"]["recall"] == 0
    assert table["kappa"] is not None or table["confusion"] == [[0, 0], [0, 0]]


def test_a_report_has_every_file(findings: Findings, tmp_path: Path) -> None:
    table = detection_table(findings, TYPES, 0.3)
    files = write_report(tmp_path / "r", "tiny", table, TYPES, findings)
    assert [path.name for path in files] == [
        "report.json",
        "report.md",
        "confusion.png",
        "precision_recall.png",
    ]
    assert all(path.stat().st_size > 100 for path in files)
    assert "| blast |" in as_markdown("tiny", table)
