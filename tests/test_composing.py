"""Cells cut out and placed: what is inside the outline shows, and nothing from outside it."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from models.composing import (
    CellImage,
    CutOut,
    load_cells,
    load_red_cells,
    place,
    red_cell_field,
    turned,
)
from models.records import Float64, UInt8

RING_PX = 4
ANGLES = 16
GLASS = (240, 236, 242)
SIDE_PX = 128


@cache
def cells() -> list[CellImage]:
    return load_cells()


@cache
def whole_cells() -> list[CellImage]:
    return [cell for cell in cells() if cell.is_whole]


def middle(cut_out: CutOut) -> tuple[int, int]:
    height, width = cut_out.alpha.shape
    return (SIDE_PX - width) // 2, (SIDE_PX - height) // 2


def inside(cut_out: CutOut) -> np.ndarray:
    """The outline of a cut-out placed in the middle of a canvas."""
    mask = np.zeros((SIDE_PX, SIDE_PX), bool)
    left, top = middle(cut_out)
    height, width = cut_out.alpha.shape
    mask[top : top + height, left : left + width] = cut_out.alpha > 0
    return mask


def test_there_are_479_cells_of_ten_types_and_461_whole_outlines() -> None:
    assert len(cells()) == 479
    assert len({cell.type for cell in cells()}) == 10
    assert all(cell.outline.shape == cell.rgb.shape[:2] for cell in cells())
    assert sum(cell.is_whole for cell in cells()) == 461
    assert not any(cell.outline.all() for cell in cells())


def test_no_near_duplicate_group_lies_in_two_folds() -> None:
    folds = defaultdict(set)
    for cell in cells():
        folds[cell.group].add(cell.fold)
    assert all(len(found) == 1 for found in folds.values())
    assert {cell.fold for cell in cells()} == set(range(5))


def test_every_type_is_in_every_fold() -> None:
    types = {cell.type for cell in cells()}
    assert {(cell.type, cell.fold) for cell in cells()} == {(t, f) for t in types for f in range(5)}


def test_the_box_is_the_outlines() -> None:
    canvas = np.full((40, 60, 3), 255, np.uint8)
    outline = np.zeros((9, 9), bool)
    outline[1:8, 3:6] = True
    cut_out = turned(np.zeros((9, 9, 3), np.uint8), outline, 1.0, 0.0)
    box = place(canvas, cut_out, 20, 10)
    assert np.abs(np.array(box) - (20, 10, 23, 17)).max() <= 1  # half a pixel either way
    rows, columns = np.nonzero((canvas < 255).any(-1))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == box


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_disc_scales_with_its_pixels(scale: float) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    cut_out = turned(np.zeros((64, 64, 3), np.uint8), np.hypot(x, y) < 20, scale, 37.0)
    assert np.abs(np.array(cut_out.alpha.shape) - 40 * scale).max() <= 2


def test_a_quarter_turn_turns_clockwise() -> None:
    outline = np.zeros((32, 32), bool)
    outline[12:20, 4:28] = True
    rgb = np.full((32, 32, 3), 200, np.uint8)
    rgb[:, 16:] = 20  # right half dark; after a clockwise quarter turn the bottom is
    cut_out = turned(rgb, outline, 1.0, 90.0)
    assert cut_out.alpha.shape == (24, 8)
    assert cut_out.rgb[3, 4, 0] == 200
    assert cut_out.rgb[-4, 4, 0] == 20


@settings(max_examples=40, deadline=None)
@given(
    index=st.integers(0, 460),
    angle=st.floats(0, 360),
    scale=st.floats(0.3, 0.8),
    flip=st.booleans(),
)
def test_nothing_outside_the_outline_changes(
    index: int, angle: float, scale: float, flip: bool
) -> None:
    cell = whole_cells()[index]
    cut_out = turned(cell.rgb, cell.outline, scale, angle, flip)
    field = red_cell_field(np.random.default_rng(index), (SIDE_PX, SIDE_PX), 0.7, GLASS)
    canvas = field.copy()
    place(canvas, cut_out, *middle(cut_out))
    outside = ~inside(cut_out)
    assert np.array_equal(canvas[outside], field[outside])
    assert not np.array_equal(canvas, field)


def test_a_cell_over_the_edge_is_cropped_and_its_box_is_not() -> None:
    cell = cells()[0]
    cut_out = turned(cell.rgb, cell.outline, 0.5, 0.0)
    height, width = cut_out.alpha.shape
    whole = np.full((3 * height, 3 * width, 3), 255, np.uint8)
    place(whole, cut_out, width - 5, height - 7)
    corner = np.full((height, width, 3), 255, np.uint8)
    assert place(corner, cut_out, -5, -7) == (-5, -7, width - 5, height - 7)
    assert np.array_equal(corner, whole[height : 2 * height, width : 2 * width])


def test_a_cell_beside_the_canvas_leaves_it_alone() -> None:
    cell = cells()[0]
    canvas = np.full((30, 30, 3), 255, np.uint8)
    place(canvas, turned(cell.rgb, cell.outline, 0.5, 0.0), 30, 0)
    assert (canvas == 255).all()


def test_red_cells_only_take_light_away() -> None:
    red = load_red_cells()
    assert red.shape[1:] == (48, 48, 3)
    assert 0 < red.min() < red.max() <= 1
    glass = red_cell_field(np.random.default_rng(0), (64, 32), 0.0, GLASS)
    assert glass.shape == (32, 64, 3)
    assert (glass == GLASS).all()
    dense = red_cell_field(np.random.default_rng(0), (256, 256), 1.0, GLASS)
    assert (dense <= GLASS).all()
    assert dense[..., 1].mean() < 0.95 * GLASS[1]


def test_the_same_seed_gives_the_same_field() -> None:
    first, second = (
        red_cell_field(np.random.default_rng(5), (90, 70), 0.8, GLASS, shrink=2) for _ in range(2)
    )
    assert np.array_equal(first, second)


# The ring of 4 px around a pasted cell, read by a classifier.


def ring(canvas: UInt8, outline: np.ndarray) -> Float64:
    """Colours 1 to 4 px outside an outline, at 16 angles: (16 · 4 · 3,), blind to its size."""
    centre = np.argwhere(outline).mean(0)
    distance = ndimage.distance_transform_edt(~outline)
    read = []
    for away in range(1, RING_PX + 1):
        places = np.argwhere((distance > away - 1) & (distance <= away))
        angle = np.arctan2(*(places - centre).T)
        for wanted in np.linspace(-np.pi, np.pi, ANGLES, endpoint=False):
            nearest = np.abs(np.angle(np.exp(1j * (angle - wanted)))).argmin()
            read.append(canvas[tuple(places[nearest])])
    return np.array(read, np.float64).ravel()


def leaking(cell: CellImage, angle: float) -> CutOut:
    """The cut-out as it must not be: two source pixels of the surroundings come along."""
    wide = ndimage.binary_dilation(cell.outline, iterations=round(0.5 / cell.um_per_px))
    return turned(cell.rgb, wide, cell.um_per_px / 0.25, angle)


def rings(leak: bool) -> tuple[Float64, Float64]:
    """Rings around every cell, and rings of the same shapes on fields where nothing was pasted."""
    rng = np.random.default_rng(11)
    pasted, empty = [], []
    for cell in whole_cells():
        angle = float(rng.uniform(0, 360))
        clean = turned(cell.rgb, cell.outline, cell.um_per_px / 0.25, angle)
        cut_out = leaking(cell, angle) if leak else clean
        canvas, other = (red_cell_field(rng, (SIDE_PX, SIDE_PX), 0.7, GLASS) for _ in range(2))
        place(canvas, cut_out, *middle(cut_out))
        pasted.append(ring(canvas, inside(clean)))
        empty.append(ring(other, inside(clean)))
    return np.array(pasted), np.array(empty)


def accuracy_and_chance(
    features: Float64, labels: np.ndarray, groups: np.ndarray
) -> tuple[float, float, float]:
    """Group-split accuracy of a random forest, and where 99 % of it lie if labels meant nothing.

    Chance keeps the forest's answers and shuffles the truth, so that it is right for unequal
    classes too.
    """
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=0, n_jobs=1)
    said = cross_val_predict(forest, features, labels, groups=groups, cv=GroupKFold(5))
    rng = np.random.default_rng(0)
    shuffled = [(said == rng.permutation(labels)).mean() for _ in range(2000)]
    low, high = np.percentile(shuffled, [0.5, 99.5])
    return float((said == labels).mean()), float(low), float(high)


def pasted_or_not(leak: bool) -> tuple[float, float, float]:
    pasted, empty = rings(leak)
    groups = np.array([cell.group for cell in whole_cells()])
    return accuracy_and_chance(
        np.concatenate([pasted, empty]), np.repeat([1, 0], len(whole_cells())), np.tile(groups, 2)
    )


def type_of(leak: bool) -> tuple[float, float, float]:
    pasted, _ = rings(leak)
    return accuracy_and_chance(
        pasted,
        np.array([cell.type for cell in whole_cells()]),
        np.array([cell.group for cell in whole_cells()]),
    )


def test_the_ring_does_not_tell_that_a_cell_was_pasted() -> None:
    accuracy, low, high = pasted_or_not(leak=False)
    print(
        f"pasted or not, n = {2 * len(whole_cells())}: {accuracy:.3f}, chance {low:.3f}–{high:.3f}"
    )
    assert accuracy <= high


def test_the_ring_does_not_tell_the_type() -> None:
    accuracy, low, high = type_of(leak=False)
    print(f"type of ten, n = {len(whole_cells())}: {accuracy:.3f}, chance {low:.3f}–{high:.3f}")
    assert accuracy <= high


@pytest.mark.slow
def test_the_same_classifier_sees_a_ring_that_leaks() -> None:
    """Without this, the two tests above would also pass with a classifier that sees nothing."""
    accuracy, _, high = pasted_or_not(leak=True)
    assert accuracy > high + 0.05
    accuracy, _, high = type_of(leak=True)
    assert accuracy > high
