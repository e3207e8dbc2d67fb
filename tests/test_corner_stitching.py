"""The paper's stitching: what it must join, what it must leave, and how fast it is."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.corner_stitching import EPSILON_PX, rejoin, stitch_by_corners
from models.records import Detections, Float64, Int64, Regions
from models.stitching import TileGeometry

PATCH_PX = 640


def cut(box: Float64) -> tuple[Float64, Int64]:
    """Boxes (N, 4) cut at the borders of patches: pieces and their patches."""
    pieces, patches = [], []
    for x0, y0, x1, y1 in box.tolist():
        for column in range(int(x0 // PATCH_PX), int(-(-x1 // PATCH_PX))):
            for row in range(int(y0 // PATCH_PX), int(-(-y1 // PATCH_PX))):
                left, top = column * PATCH_PX, row * PATCH_PX
                pieces.append(
                    (
                        max(x0, left),
                        max(y0, top),
                        min(x1, left + PATCH_PX),
                        min(y1, top + PATCH_PX),
                    )
                )
                patches.append((column, row))
    return np.array(pieces, np.float64), np.array(patches, np.int64)


def sorted_rows(box: Float64) -> Float64:
    return box[np.lexsort(box.T[::-1])]


sides = st.floats(21, 212)


@settings(deadline=None)
@given(st.floats(0, 1), sides, sides, st.floats(10, PATCH_PX - 230), st.booleans())
def test_a_box_over_one_border_comes_back(
    share: float, width: float, height: float, along: float, upright: bool
) -> None:
    side = width if upright else height
    start = PATCH_PX - np.clip(share * side, 2, side - 2)
    x, y = (start, along) if upright else (along, start)
    box = np.array([[x, y, x + width, y + height]])
    pieces, patches = cut(box)
    assert len(pieces) == 2
    joined, best = rejoin(pieces, np.array([0.6, 0.9]), patches)
    np.testing.assert_allclose(joined, box)
    assert best.tolist() == [1]


@settings(deadline=None)
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), sides, sides)
def test_a_box_over_two_borders_comes_back(
    right: float, low: float, width: float, height: float
) -> None:
    box = np.array([[PATCH_PX - right * width, PATCH_PX - low * height] * 2])
    box[:, 2:] += (width, height)
    pieces, patches = cut(box)
    assert len(pieces) == 4
    joined, best = rejoin(pieces, np.array([0.3, 0.8, 0.7, 0.2]), patches)
    np.testing.assert_allclose(joined, box)
    assert best.tolist() == [1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), unique=True, max_size=40))
def test_neighbours_30_px_apart_stay_apart(places: list[tuple[int, int]]) -> None:
    # Whole cells of 80 px on a grid of 110 px: some lie on either side of a border.
    box = np.array([[110 * x, 110 * y, 110 * x + 80, 110 * y + 80] for x, y in places], np.float64)
    box = box.reshape(-1, 4)
    patches = ((box[:, :2] + 40) // PATCH_PX).astype(np.int64)
    joined, best = rejoin(box, np.ones(len(box)), patches)
    np.testing.assert_array_equal(joined, box)
    assert best.tolist() == list(range(len(box)))


def test_pieces_of_unequal_height_are_joined_up_to_epsilon() -> None:
    # A cap whose corners lie d above and below those of the rest: both distances are d.
    for apart, cells in ((EPSILON_PX - 1, 1), (EPSILON_PX + 1, 2)):
        rest = (PATCH_PX - 90.0, 100.0, PATCH_PX, 220.0)
        cap = (PATCH_PX, 100.0 + apart, PATCH_PX + 20.0, 220.0 - apart)
        joined, _ = rejoin(np.array([rest, cap]), np.ones(2), np.array([[0, 0], [1, 0]]))
        assert len(joined) == cells


def test_pieces_of_one_patch_or_of_diagonal_patches_are_not_joined() -> None:
    box = np.array([[600.0, 600, 640, 640], [640.0, 640, 700, 700]])
    for patches in ([[0, 0], [0, 0]], [[0, 0], [1, 1]]):
        assert len(rejoin(box, np.ones(2), np.array(patches))[0]) == 2


def test_what_scores_at_most_lambda_is_left_out() -> None:
    box = np.array([[600.0, 100, 640, 160], [640.0, 100, 680, 160], [0.0, 0, 50, 50]])
    joined, best = rejoin(box, np.array([0.9, 0.1, 0.11]), np.array([[0, 0], [1, 0], [0, 0]]))
    np.testing.assert_array_equal(joined, box[[0, 2]])
    assert best.tolist() == [0, 2]
    assert len(rejoin(np.empty((0, 4)), np.empty(0), np.empty((0, 2), int))[0]) == 0


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_detections_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 3 * PATCH_PX, (60, 2))
    pieces, patches = cut(np.hstack((corner, corner + rng.uniform(21, 212, (60, 2)))))
    score = rng.uniform(0.2, 1, len(pieces))
    shuffled = rng.permutation(len(pieces))
    one, _ = rejoin(pieces, score, patches)
    two, _ = rejoin(pieces[shuffled], score[shuffled], patches[shuffled])
    np.testing.assert_array_equal(sorted_rows(one), sorted_rows(two))


def test_rows_and_columns_of_patches_have_sizes_of_their_own() -> None:
    """Where px are not square, patches of 640 px are not either; over every border pieces join."""
    wide, high = 640.0, 640 * 0.25 / 0.26
    place = np.stack(np.meshgrid(np.arange(2), np.arange(20), indexing="ij"), -1).reshape(-1, 2)
    core = np.concatenate([place * (wide, high), (place + 1) * (wide, high)], 1)
    border = (np.arange(19) + 1) * high
    above = np.stack([np.full(19, 100.0), border - 40, np.full(19, 180.0), border], 1)
    below = np.stack([np.full(19, 100.0), border, np.full(19, 180.0), border + 40], 1)
    classes = ("myeloblast", "unclassified")
    found = [
        (
            Detections(
                tile=np.zeros(len(box), np.int32),
                box_tile_px=(box - np.tile(core[row, :2], 2)).astype(np.float32),
                score=np.full(len(box), 0.9, np.float32),
                probability=np.tile(np.array([1, 0], np.float32), (len(box), 1)),
                label=np.zeros(len(box), np.int32),
                classes=classes,
            ),
            TileGeometry(
                np.array([row], np.int32), core[row : row + 1, :2], np.ones(2), (640, 616)
            ),
        )
        for row in range(20)
        for box in (np.concatenate([above[row : row + 1], below[max(row - 1, 0) : row]]),)
    ]
    regions = Regions(np.array([[0, 0, 2 * wide, 20 * high]]), np.ones(1, np.float32), "all")
    cells = stitch_by_corners(found, core, regions, classes, "")
    assert len(cells) == 19
    np.testing.assert_allclose(cells.box_px[:, 3] - cells.box_px[:, 1], 80, atol=1e-3)
