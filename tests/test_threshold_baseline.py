"""The baseline without a network, on blobs that it must find and name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch")

from models.detection_table import detection_table, look_at
from models.records import UInt8
from models.training.annotated import AnnotatedImage
from models.training.threshold_baseline import threshold_baseline


def drawn(seed: int) -> AnnotatedImage:
    """Large purple and small red squares, apart from each other."""
    rng = np.random.default_rng(seed)
    rgb = np.full((200, 300, 3), 235, np.uint8)
    boxes, kinds = [], []
    for column in range(5):
        kind = int(rng.integers(2))
        side, colour = ((40, (110, 50, 150)), (16, (210, 120, 120)))[kind]
        left, top = 20 + 55 * column, int(rng.integers(20, 120))
        rgb[top : top + side, left : left + side] = colour
        boxes.append((left, top, left + side, top + side))
        kinds.append(kind)
    return AnnotatedImage(
        f"{seed}",
        f"{seed}",
        (300, 200),
        partial(_same, rgb),
        np.array(boxes, np.float32),
        np.array(kinds, np.int64),
    )


def _same(rgb: UInt8) -> UInt8:
    return rgb


def test_pieces_are_found_and_named() -> None:
    detect = threshold_baseline([drawn(seed) for seed in range(4)], 2)
    findings = look_at([drawn(seed) for seed in range(10, 16)], detect)
    table = detection_table(findings, ("large", "small"), 0.0)
    assert table["map_50"] == 1
    assert table["mean_precision"] == 1


def test_an_empty_field_has_nothing() -> None:
    detect = threshold_baseline([drawn(seed) for seed in range(4)], 2)
    box, score, share = detect(np.full((1, 50, 50, 3), 235, np.uint8))
    assert box.shape == (1, 0, 4)
    assert score.shape == (1, 0)
    assert share.shape == (1, 0, 2)


def test_a_type_without_a_cell_and_a_sliver_at_the_edge_leave_the_others_alone() -> None:
    images = [drawn(seed) for seed in range(4)]
    sliver = np.array([[299.6, 0, 300, 9]], np.float32)
    images[0] = replace(
        images[0],
        box_px=np.concatenate((images[0].box_px, sliver)),
        kind=np.append(images[0].kind, 1),
    )
    findings = look_at([drawn(10)], threshold_baseline(images, 3))
    assert len(findings.found.score) == 5
    assert set(findings.found.label) <= {0, 1}
