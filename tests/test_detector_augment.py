"""Augmentation: after every change, the painted rectangle lies where its box says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.training.detector_augment import (
    Sample,
    cropped,
    cutmix,
    liu2022,
    mosaic,
    noisy,
    quarter_turned,
    recoloured_hsv,
    rotated,
    tayebi2021,
    translated,
    wang2022,
)

GROUND, PAINT = (200, 200, 200), (20, 30, 160)


def painted(width: int = 90, height: int = 60, at: tuple[int, ...] = (50, 10, 74, 28)) -> Sample:
    rgb = np.full((height, width, 3), GROUND, np.uint8)
    x0, y0, x1, y1 = at
    rgb[y0:y1, x0:x1] = PAINT
    return Sample(rgb, np.array([at], np.float32), np.array([1], np.int64))


def seen(sample: Sample) -> list[int]:
    """Box of the painted pixels."""
    inside = sample.rgb[..., 0] < 110
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


Change = Callable[[np.random.Generator, Sample], Sample]


@pytest.mark.parametrize(
    "change",
    [
        quarter_turned,
        lambda rng, sample: translated(rng, sample, 0.2),
        lambda rng, sample: cropped(rng, sample, 48),
        lambda rng, sample: cropped(rng, sample, 120),
    ],
)
def test_the_box_follows_the_pixels(change: Change) -> None:
    kept = 0
    for seed in range(60):
        sample = change(np.random.default_rng(seed), painted())
        assert sample.rgb.dtype == np.uint8
        assert len(sample.box_px) == len(sample.kind)
        if len(sample.box_px):
            kept += 1
            np.testing.assert_allclose(sample.box_px[0], seen(sample), atol=1e-4)
    assert kept > 30


def test_a_turned_circle_keeps_its_box() -> None:
    """A cell is round: turned, its box is no larger."""
    y, x = np.mgrid[:80, :80] + 0.5
    rgb = np.full((80, 80, 3), GROUND, np.uint8)
    rgb[np.hypot(x - 50, y - 30) <= 12] = PAINT
    circle = Sample(rgb, np.array([[38, 18, 62, 42]], np.float32), np.array([0]))
    for seed in range(20):
        sample = rotated(np.random.default_rng(seed), circle, 40.0)
        np.testing.assert_allclose(sample.box_px[0], seen(sample), atol=1.6)


def test_mosaic_shows_all_four_where_their_boxes_are() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        whole = painted(50, 50, (0, 0, 50, 50))
        sample = mosaic(rng, [whole] * 4, 64)
        assert sample.rgb.shape == (64, 64, 3)
        inside = np.zeros((64, 64), np.bool_)
        for x0, y0, x1, y1 in np.round(sample.box_px).astype(int).tolist():
            inside[y0:y1, x0:x1] = True
        paint = sample.rgb[..., 0] < 110
        assert (paint[inside]).all()


def test_cutmix_drops_what_it_hides() -> None:
    first = painted(64, 64, (10, 10, 30, 30))
    empty = Sample(
        np.full((64, 64, 3), GROUND, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    )
    for seed in range(40):
        sample = cutmix(np.random.default_rng(seed), first, empty)
        left = (sample.rgb[..., 0] < 110).sum() / 400
        if len(sample.box_px):
            assert left >= 0.69
        else:
            assert left <= 0.71


def test_colour_and_noise_leave_boxes_alone() -> None:
    rng = np.random.default_rng(0)
    for change in (recoloured_hsv, lambda r, s: noisy(r, s, 8.0)):
        sample = change(rng, painted())
        assert sample.box_px.tolist() == painted().box_px.tolist()


@pytest.mark.parametrize("pipeline", [wang2022, liu2022, tayebi2021])
def test_pipelines_are_seeded_and_leave_their_input_alone(
    pipeline: Callable[[np.random.Generator, Callable[[], Sample], int], Sample],
) -> None:
    given = painted()
    before = given.rgb.copy()
    one, two = (pipeline(np.random.default_rng(5), lambda: given, 64) for _ in range(2))
    np.testing.assert_array_equal(one.rgb, two.rgb)
    np.testing.assert_array_equal(one.box_px, two.box_px)
    np.testing.assert_array_equal(given.rgb, before)
    assert one.rgb.shape == (64, 64, 3)
    empty = Sample(before, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert len(pipeline(np.random.default_rng(6), lambda: empty, 64).box_px) == 0
