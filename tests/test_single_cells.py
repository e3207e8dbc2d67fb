"""Crops that choi2017 learns from: every type alike often, shifted, eight ways round."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from models.training.dual_stage_cnn import CROP_PX  # noqa: E402
from models.training.single_cells import SHIFT_PX, WAYS, batch, crops_of  # noqa: E402

KINDS = (0, *[1] * 20, 2, 2, 2, *[4] * 6)  # uneven, and one type is absent
DRAWN = 800


def images() -> list[np.ndarray]:
    """Every pixel says its row, its column, and which image it is of."""
    side = CROP_PX + 2 * SHIFT_PX
    row, column = np.mgrid[:side, :side]
    return [
        np.stack([row, column, np.full_like(row, number)], 2).astype(np.uint8)
        for number in range(len(KINDS))
    ]


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Crops (n, 3, 96, 96) of whole numbers again, and their kinds."""
    crop, kind = batch(crops_of(images(), KINDS), np.random.default_rng(0), DRAWN)
    assert crop.shape == (DRAWN, 3, CROP_PX, CROP_PX)
    assert float(crop.max()) <= 1
    return (crop * 255).round().int().numpy(), kind.numpy()


def test_every_type_that_there_is_comes_alike_often(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    crop, kind = drawn
    number = crop[:, 2, 0, 0]
    assert (np.array(KINDS)[number] == kind).all()  # each with its own name
    counted = Counter(kind.tolist())
    assert set(counted) == {0, 1, 2, 4}
    spread = np.sqrt(DRAWN * 0.25 * 0.75)
    assert all(abs(times - DRAWN / 4) < 4 * spread for times in counted.values())
    assert set(number.tolist()) == set(range(len(KINDS)))  # and every image of a type


def test_crops_are_shifted_by_up_to_six_px_either_way(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    crop, _ = drawn
    for axis in (0, 1):
        first, last = crop[:, axis].min((1, 2)), crop[:, axis].max((1, 2))
        assert (last - first == CROP_PX - 1).all()
        assert set((first - SHIFT_PX).tolist()) == set(range(-6, 7))


def test_crops_lie_eight_ways(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    """Read off two corners: where the first row and column have gone."""
    crop, _ = drawn
    corner, along = crop[:, :2, 0, 0], crop[:, :2, 0, -1]
    least = crop[:, :2].min((2, 3))
    ways = Counter(map(tuple, np.hstack([corner == least, along == least]).tolist()))
    assert len(ways) == WAYS
    spread = np.sqrt(DRAWN / 8 * 7 / 8)
    assert all(abs(times - DRAWN / 8) < 4 * spread for times in ways.values())


def test_without_a_shift_the_middle_is_taken() -> None:
    centred = crops_of(images()[:1], [0]).centred()
    assert int((centred[0, 0, 0, 0] * 255).round()) == SHIFT_PX
    assert int((centred[0, 1, -1, -1] * 255).round()) == SHIFT_PX + CROP_PX - 1


def test_what_a_small_image_lacks_is_reflected() -> None:
    """96 px as published: 6 px on each side are those within it, in reverse."""
    whole = images()[0][:CROP_PX, :CROP_PX]
    rgb = crops_of([whole], [0]).rgb[0].permute(1, 2, 0).numpy()
    assert rgb.shape == (CROP_PX + 12, CROP_PX + 12, 3)
    np.testing.assert_array_equal(rgb[6:-6, 6:-6], whole)
    np.testing.assert_array_equal(rgb[:6, 6:-6, 0], whole[6:0:-1, :, 0])
    np.testing.assert_array_equal(rgb[6:-6, -6:, 1], whole[:, -2:-8:-1, 1])
