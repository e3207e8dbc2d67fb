"""Which score a region needs: where the areas overlap most, however they are divided."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from models.detection_table import best_threshold, look_at
from models.records import Float32, UInt8
from models.training.annotated import AnnotatedImage
from models.training.detection_task import region_threshold

SIDE_PX = 100
TRUE_PX = np.array([[0, 0, 40, 40]], np.float32)
# Two halves of the one region, and a place without any.
FOUND_PX = np.array([[0, 0, 20, 40], [20, 0, 40, 40], [60, 60, 90, 90]], np.float32)
SCORE = np.array([0.8, 0.3, 0.1], np.float32)


def answers(rgb: UInt8) -> tuple[Float32, Float32, Float32]:
    return FOUND_PX[None], SCORE[None], np.ones((1, 3, 1), np.float32)


def test_region_in_two_pieces_is_found_whole() -> None:
    blank = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    image = AnnotatedImage(
        "a", "a", (SIDE_PX, SIDE_PX), lambda: blank, TRUE_PX, np.zeros(1, np.int64)
    )
    findings = look_at([image], answers)
    # 1 600 px of 1 600; with the first half alone 800 of 1 600, with all three 1 600 of 2 500.
    assert 0.1 < region_threshold(findings, [image]) <= 0.3
    # As single objects, none of the pieces overlaps the region by more than a half.
    assert best_threshold(findings, 1) > 0.3
