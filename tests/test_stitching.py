"""One cell of the slide is one row, however the tiles came."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.boxes import iou, overlapping
from models.records import Cells, Detections, Float64, Regions
from models.stitching import TileGeometry, stitch

CLASSES = ("myeloblast", "promyelocyte", "unclassified")
CORE = 512.0
HALO = 64.0
SIZE_PX = (int(CORE + 2 * HALO), int(CORE + 2 * HALO))
EVERYWHERE = Regions(np.array([[-1e6, -1e6, 1e6, 1e6]]), np.ones(1, np.float32), "all")


def cores(columns: int, rows: int) -> Float64:
    low = np.array([(x * CORE, y * CORE) for y in range(rows) for x in range(columns)])
    return np.concatenate([low, low + CORE], axis=1)


def detections(box: Float64, score: Float64, label: Float64) -> Detections:
    n = len(box)
    return Detections(
        tile=np.zeros(n, np.int32),
        box_tile_px=box.astype(np.float32),
        score=score.astype(np.float32),
        probability=np.full((n, 3), 1 / 3, np.float32),
        label=label.astype(np.int32),
        classes=CLASSES,
    )


def tile(
    number: int, core: Float64, box_px: Float64, score: Float64, label: Float64 | None = None
) -> tuple[Detections, TileGeometry]:
    """Return what a tile around one core reports for boxes given in slide px."""
    origin = core[number, :2] - HALO
    local = np.asarray(box_px, dtype=np.float64).reshape(-1, 4) - np.tile(origin, 2)
    label = np.zeros(len(local)) if label is None else label
    where = TileGeometry(np.array([number], np.int32), origin[None], np.ones(2), SIZE_PX)
    return detections(local, np.asarray(score, dtype=np.float64), np.asarray(label)), where


def stitched(
    batches: list[tuple[Detections, TileGeometry]], core: Float64, regions: Regions = EVERYWHERE
) -> Cells:
    return stitch(batches, core, regions, CLASSES, "0" * 64)


def around(x: float, y: float, side: float = 48.0) -> list[float]:
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def test_a_cell_seen_by_four_tiles_is_one_cell_of_the_best_score() -> None:
    core = cores(2, 2)
    batches = [
        tile(n, core, np.array([around(512 + d, 512 - d)]), np.array([s]), np.array([1]))
        for n, (d, s) in enumerate([(0, 0.7), (1, 0.9), (2, 0.8), (-1, 0.6)])
    ]
    cells = stitched(batches, core)
    assert cells.box_px.tolist() == [around(513, 511)]
    assert cells.label.tolist() == [1]
    assert cells.score.tolist() == pytest.approx([0.9])
    assert cells.tile.tolist() == [1]


def test_disagreeing_tiles_are_all_heard() -> None:
    """0.7 + 0.6 for a myeloblast against 0.9 for a promyelocyte; the best box stays."""
    core = cores(2, 2)
    batches = [
        tile(n, core, np.array([around(512 + d, 512)]), np.array([s]), np.array([label]))
        for n, (d, s, label) in enumerate([(0, 0.7, 0), (1, 0.9, 1), (2, 0.2, 2), (-1, 0.6, 0)])
    ]
    cells = stitched(batches, core)
    assert cells.label.tolist() == [0]
    assert cells.box_px.tolist() == [around(513, 512)]
    assert cells.score.tolist() == pytest.approx([0.9])


def test_a_piece_is_not_asked_where_the_cell_was_seen_whole() -> None:
    core = cores(2, 1)
    edge = 512 + HALO  # where tile 0 ends
    whole, piece = [edge - 100, 250, edge + 20, 370], [edge - 100, 250, edge, 370]
    for whole_score, piece_score in ((0.6, 0.9), (0.9, 0.6)):
        batches = [
            tile(0, core, np.array([piece]), np.array([piece_score]), np.array([2])),
            tile(1, core, np.array([whole]), np.array([whole_score]), np.array([1])),
        ]
        assert stitched(batches, core).label.tolist() == [1]


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_type_is_that_of_the_slow_twin(seed: int) -> None:
    """Four tiles see one cell: the type with most score times probability, the best one's box."""
    rng = np.random.default_rng(seed)
    core = cores(2, 2)
    score, label = rng.uniform(0.3, 1, 4).astype(np.float32), rng.integers(0, 3, 4)
    probability = rng.dirichlet(np.ones(3), 4).astype(np.float32)
    middle = 512 + rng.uniform(-3, 3, (4, 2))
    batches = []
    for n in range(4):
        box = np.array([around(*middle[n], 60)])
        found, where = tile(n, core, box, score[[n]], label[[n]])
        batches.append((replace(found, probability=probability[[n]]), where))
    weight = dict.fromkeys(label.tolist(), 0.0)
    for n, kind in enumerate(label.tolist()):
        weight[kind] += float(score[n] * probability[n, kind])
    for order in (range(4), rng.permutation(4)):
        cells = stitched([batches[n] for n in order], core)
        (said,) = cells.label.tolist()
        assert weight[said] == pytest.approx(max(weight.values()))
        np.testing.assert_allclose(cells.box_px[0], around(*middle[score.argmax()], 60), atol=1e-3)
        speaker = max(np.flatnonzero(label == said), key=lambda n: score[n])
        np.testing.assert_array_equal(cells.probability[0], probability[speaker])


def test_a_cell_that_each_tile_places_in_the_others_core_is_not_lost() -> None:
    core = cores(2, 1)
    batches = [
        tile(0, core, np.array([around(512.4, 300)]), np.array([0.8])),
        tile(1, core, np.array([around(511.6, 300)]), np.array([0.9])),
    ]
    cells = stitched(batches, core)
    assert cells.box_px.tolist() == [pytest.approx(around(511.6, 300))]
    assert cells.tile.tolist() == [0]  # where its centre lies, not who found it


def test_what_only_the_halo_sees_is_left_to_the_neighbour() -> None:
    core = cores(2, 1)
    box = np.array([around(540, 300)])
    assert len(stitched([tile(0, core, box, np.array([0.9]))], core)) == 0
    assert len(stitched([tile(1, core, box, np.array([0.9]))], core)) == 1


def test_touching_neighbours_on_both_sides_of_a_border_stay_two() -> None:
    core = cores(2, 1)
    boxes = np.array([around(495, 300), around(529, 300)])  # IoU 0.17
    seen = [tile(n, core, boxes, np.array([0.9, 0.8])) for n in (0, 1)]
    assert len(stitched(seen, core)) == 2


def test_boxes_of_one_tile_are_not_merged() -> None:
    core = cores(1, 1)
    boxes = np.array([around(300, 300), around(303, 300)])
    assert len(stitched([tile(0, core, boxes, np.array([0.9, 0.8]))], core)) == 2


def test_only_centres_in_a_region_count() -> None:
    core = cores(1, 1)
    regions = Regions(
        np.array([[0.0, 0.0, 256.0, 256.0], [256.0, 0.0, 400.0, 256.0]]),
        np.ones(2, np.float32),
        "accepted frame",
    )
    boxes = np.array([around(255, 100), around(256, 200), around(400, 100), around(100, 256)])
    cells = stitched([tile(0, core, boxes, np.full(4, 0.9))], core, regions)
    assert cells.box_px.tolist() == [around(255, 100), around(256, 200)]


def test_tile_pixels_of_another_size_are_scaled() -> None:
    core = np.array([[0.0, 0.0, 256.0, 256.0]])
    where = TileGeometry(
        np.array([0], np.int32), np.array([[-32.0, -32.0]]), np.array([0.5, 0.25]), SIZE_PX
    )
    found = detections(np.array([[100.0, 200, 150, 300]]), np.ones(1), np.zeros(1))
    cells = stitched([(found, where)], core)
    assert cells.box_px.tolist() == [[18.0, 18.0, 43.0, 43.0]]


def test_no_detection_at_all_is_no_cell() -> None:
    cells = stitched([], cores(1, 1))
    assert len(cells) == 0
    assert cells.classes == CLASSES


def test_packages_are_not_mixed() -> None:
    found, where = tile(0, cores(1, 1), np.array([around(9, 9)]), np.ones(1))
    with pytest.raises(ValueError, match="packages"):
        stitch([(found, where)], cores(1, 1), EVERYWHERE, ("myeloblast",), "0" * 64)


@st.composite
def smears(draw: st.DrawFn) -> tuple[Float64, list[tuple[Detections, TileGeometry]], int]:
    """Cells apart from each other; each tile reports all it sees, a little displaced."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    core = cores(3, 2)
    spots = np.stack(np.meshgrid(np.arange(30, 1510, 60), np.arange(30, 1000, 60)), axis=-1)
    centre = spots.reshape(-1, 2) + rng.uniform(-5, 5, (spots.size // 2, 2))
    centre = centre[rng.random(len(centre)) < draw(st.floats(0.05, 1.0))]
    batches = []
    for number in range(len(core)):
        low, high = core[number, :2] - HALO, core[number, 2:] + HALO
        seen = centre[((centre > low + 25) & (centre < high - 25)).all(axis=1)]
        moved = seen + rng.uniform(-3, 3, seen.shape)
        side = rng.uniform(44, 54, (len(seen), 2))
        box = np.concatenate([moved - side / 2, moved + side / 2], axis=1)
        score = rng.choice([0.5, 0.7, 0.9], len(seen))  # many equal scores
        batches.append(tile(number, core, box, score, rng.integers(0, 3, len(seen))))
    return core, batches, len(centre)


@settings(max_examples=40, deadline=None)
@given(smears(), st.randoms(use_true_random=False))
def test_every_cell_once_whatever_the_order_of_tiles(smear, random) -> None:  # type: ignore[no-untyped-def]
    core, batches, number = smear
    cells = stitched(batches, core)
    assert len(cells) == number
    assert len(overlapping(cells.box_px, 0.3)[0]) == 0
    assert np.lexsort((cells.box_px[:, 0], cells.box_px[:, 1])).tolist() == list(range(number))

    order = list(range(len(core)))
    random.shuffle(order)
    place = np.argsort(order).astype(np.int32)  # old number → new number
    moved = [
        (found, TileGeometry(place[where.number], where.origin_px, where.px_per_tile_px, SIZE_PX))
        for found, where in (batches[k] for k in order)
    ]
    again = stitched(moved, core[order])
    for name in ("box_px", "score", "probability", "label"):
        assert getattr(again, name).tobytes() == getattr(cells, name).tobytes()
    assert place[cells.tile].tolist() == again.tile.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.5, 0.7]))
def test_overlapping_pairs_are_those_of_the_slow_twin(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 200, (60, 2))
    box = np.concatenate([low, low + rng.uniform(5, 90, (60, 2))], axis=1)
    slow = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if iou(box[i : i + 1], box[j : j + 1])[0] > threshold
    }
    i, j = overlapping(box, threshold)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == slow


def test_a_hundred_thousand_boxes_take_two_seconds() -> None:
    rng = np.random.default_rng(3)
    core = cores(40, 40)
    centre = rng.uniform(0, 40 * CORE, (85_000, 2))
    batches, total = [], 0
    for number in range(len(core)):
        low, high = core[number, :2] - 30, core[number, 2:] + 30
        seen = centre[((centre > low) & (centre < high)).all(axis=1)]
        total += len(seen)
        moved = seen + rng.uniform(-2, 2, seen.shape)
        box = np.concatenate([moved - 24, moved + 24], axis=1)
        batches.append(tile(number, core, box, rng.random(len(seen))))
    frames = np.array([(x * 256.0, y * 256.0) for y in range(80) for x in range(80)])
    regions = Regions(
        np.concatenate([frames, frames + 256], axis=1), np.ones(6400, np.float32), "frames"
    )
    assert total > 100_000
    start = time.process_time()
    cells = stitched(batches, core, regions)
    assert time.process_time() - start < 2
    assert 80_000 < len(cells) <= 85_000
