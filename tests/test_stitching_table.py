"""How often a round cell that a patch's border cuts comes back as one: the paper's rule and ours.

Pieces are what a perfect detector would draw: the smallest box around what is seen of a circle.
"""

from __future__ import annotations

import numpy as np
import pytest

from models.corner_stitching import rejoin
from models.detect import detection_grid
from models.manifest import DetectorStage
from models.records import Detections, Float64, Regions
from models.stitching import TileGeometry, stitch

DIAMETERS_PX = tuple(range(20, 201, 20))
CELLS = 400
SIDE_PX = 4096
PATCH_PX = 640
SEEN_PX = 4.0  # a piece thinner than this is no box
STAGE = DetectorStage("d.onnx", "0" * 64, 0.25, 640, 64, 0.5, 0.5, 0.0)
CLASSES = ("blast",)


def seen_of(centre: Float64, radius: float, tile: Float64) -> Float64:
    """Box around the part of each circle (N, 2) that lies in a tile (4,); NaN where there is none.

    The extreme of a circle along x is at the centre's height if that is seen, else where the
    circle meets the nearer border.
    """
    box = np.empty((len(centre), 4))
    for axis in (0, 1):
        other = 1 - axis
        off = np.clip(centre[:, other], tile[other], tile[other + 2]) - centre[:, other]
        half = np.sqrt(np.maximum(radius**2 - off**2, 0))
        box[:, axis] = np.maximum(centre[:, axis] - half, tile[axis])
        box[:, axis + 2] = np.minimum(centre[:, axis] + half, tile[axis + 2])
    thick = (box[:, 2:] - box[:, :2]).min(1) >= SEEN_PX
    box[~thick] = np.nan
    return box


def scattered(rng: np.random.Generator, radius: float) -> Float64:
    """Centres far apart, in rows and columns of cells that never touch."""
    places = np.stack(np.meshgrid(np.arange(14), np.arange(14)), 2).reshape(-1, 2)
    spread = 280 - 2 * radius - 45
    return places * 280 + radius + 20 + rng.uniform(0, spread, (len(places), 2))


def came_back(found: Float64, centre: Float64, radius: float) -> float:
    """Share of cells that are one box of at least half their own, and nothing else."""
    true = np.concatenate((centre - radius, centre + radius), 1)
    low = np.maximum(found[None, :, :2], true[:, None, :2])
    high = np.minimum(found[None, :, 2:], true[:, None, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    area = (found[:, 2:] - found[:, :2]).prod(1)
    union = area[None] + (2 * radius) ** 2 - common
    return float((((common / union) >= 0.5).sum(1) * ((common > 0).sum(1) == 1)).mean())


def by_corners(centre: Float64, radius: float) -> float:
    boxes, patches = [], []
    for column in range(SIDE_PX // PATCH_PX + 1):
        for row in range(SIDE_PX // PATCH_PX + 1):
            tile = np.array([column, row, column + 1, row + 1], np.float64) * PATCH_PX
            box = seen_of(centre, radius, tile)
            kept = np.isfinite(box).all(1)
            boxes.append(box[kept])
            patches.append(np.tile([column, row], (int(kept.sum()), 1)))
    box = np.concatenate(boxes)
    joined, _ = rejoin(box, np.ones(len(box)), np.concatenate(patches))
    return came_back(joined, centre, radius)


def by_overlap(centre: Float64, radius: float) -> float:
    whole = np.array([[0, 0, SIDE_PX, SIDE_PX]], np.float64)
    regions = Regions(whole, np.ones(1, np.float32), "all")
    box_px, core_px = detection_grid(regions, (SIDE_PX, SIDE_PX), (0.25, 0.25), STAGE, seed=0)
    batches = []
    for number, tile in enumerate(box_px):
        box = seen_of(centre, radius, tile)
        kept = np.isfinite(box).all(1)
        n = int(kept.sum())
        origin = tile[None, :2]
        area = (box[kept, 2:] - box[kept, :2]).prod(1) / (4 * radius**2)
        found = Detections(
            tile=np.zeros(n, np.int32),
            box_tile_px=(box[kept] - np.tile(origin, 2)).astype(np.float32),
            score=np.clip(area, 0.01, 1).astype(np.float32),  # a whole cell is the surest
            probability=np.ones((n, 1), np.float32),
            label=np.zeros(n, np.int32),
            classes=CLASSES,
        )
        batches.append(
            (found, TileGeometry(np.array([number], np.int32), origin, np.ones(2), (640, 640)))
        )
    cells = stitch(batches, core_px, regions, CLASSES, "")
    return came_back(cells.box_px, centre, radius)


def test_the_table_of_both_rules() -> None:
    rng = np.random.default_rng(0)
    print("\ndiameter (px)  cut by a border  paper's rule  overlapping patches")
    worst_overlap, all_corners, all_overlap = 1.0, [], []
    for diameter in DIAMETERS_PX:
        radius = diameter / 2
        centre = np.concatenate([scattered(rng, radius) for _ in range(1 + CELLS // 196)])
        parts = np.array_split(centre, 1 + CELLS // 196)
        low, high = np.floor((centre - radius) / PATCH_PX), np.floor((centre + radius) / PATCH_PX)
        cut = float((low != high).any(1).mean())
        corners = float(np.mean([by_corners(part, radius) for part in parts]))
        overlap = float(np.mean([by_overlap(part, radius) for part in parts]))
        print(f"{diameter:>13}  {cut:>15.3f}  {corners:>12.3f}  {overlap:>19.3f}")
        worst_overlap = min(worst_overlap, overlap)
        all_corners.append(corners)
        all_overlap.append(overlap)
    assert np.mean(all_overlap) >= 0.995
    assert worst_overlap >= 0.995
    # The paper's rule cannot rejoin all: caps are narrower than the rest.
    assert 0.7 < np.mean(all_corners) < np.mean(all_overlap)


@pytest.mark.parametrize("diameter", [240, 300, 380, 390, 400, 480])
def test_megakaryocytes_wider_than_what_tiles_share(diameter: int) -> None:
    """60 to 120 µm: over one border, and over the corner of four tiles; the box is around all."""
    border = float(STAGE.tile_px - 2 * STAGE.halo_px)
    rng = np.random.default_rng(1)
    for middle in ((2.5 * border, border), (2 * border, 2 * border), (border, 1.5 * border)):
        for shift in rng.uniform(-90, 90, (20, 2)):
            centre = (np.array(middle) + shift)[None]
            assert by_overlap(centre, diameter / 2) == 1, (middle, shift)


def test_pieces_are_what_is_seen_of_a_circle() -> None:
    """By hand: a circle of radius 5 at (10, 10), seen from x = 13 on: a cap 2 wide and 8 high."""
    box = seen_of(np.array([[10.0, 10.0]]), 5.0, np.array([11.0, 0, 99, 99]))
    np.testing.assert_allclose(box[0], [11, 10 - np.sqrt(24), 15, 10 + np.sqrt(24)])
    assert np.isnan(seen_of(np.array([[10.0, 10.0]]), 5.0, np.array([13.0, 0, 99, 99]))).all()


@pytest.mark.parametrize("radius", [10.0, 100.0])
def test_uncut_cells_stay_as_they_are(radius: float) -> None:
    centre = np.array([[320.0, 320.0]])
    assert by_corners(centre, radius) == 1
    assert by_overlap(centre, radius) == 1
