"""Cells in tiles: found, framed, named; and where the tiles lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.boxes import iou
from models.detect import STRIP_TILES, detect, detection_grid, reading_order
from models.errors import InferenceFailed
from models.package import ModelPackage, load_package
from models.records import Detections, Float32, Float64, Regions, Tiles, UInt8
from models.session import Session, open_session
from models.stitching import TileGeometry, stitch
from tests.tiny_package import CLASSES, blob_side_px, draw_blob, tiny_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return load_package(tiny_package(tmp_path_factory.mktemp("packages") / "tiny"))


@pytest.fixture(scope="module")
def session(package: ModelPackage) -> Session:
    return open_session(package, "detector", "cpu", 2)


def blobs() -> tuple[UInt8, list[tuple[float, ...]]]:
    """Return a tile with one blob of each of the ten sizes, and their boxes."""
    rgb = np.full((640, 640, 3), 235, np.uint8)
    boxes = [
        draw_blob(rgb, (80 + 120.3 * (k % 5), 150 + 300.7 * (k // 5)), (blob_side_px(k),) * 2)
        for k in range(10)
    ]
    return rgb, boxes


def tiles_of(*rgb: UInt8) -> Tiles:
    image = np.stack(rgb)
    return Tiles(image, np.zeros((len(image), 2)), np.ones(2), np.ones(image.shape[:3], np.bool_))


def test_every_blob_is_found_framed_and_named(package: ModelPackage, session: Session) -> None:
    rgb, boxes = blobs()
    found = detect(tiles_of(rgb, rgb[::-1].copy()), session, package)
    assert found.classes == CLASSES
    for tile in (0, 1):
        here = np.nonzero(found.tile == tile)[0]
        assert sorted(found.label[here].tolist()) == list(range(10))
        assert (np.diff(found.score[here]) <= 0).all()
        for row in here:
            x0, y0, x1, y1 = boxes[found.label[row]]
            truth = (x0, y0, x1, y1) if tile == 0 else (x0, 640 - y1, x1, 640 - y0)
            assert iou(found.box_tile_px[row : row + 1], np.array([truth]))[0] > 0.85
    assert (found.probability[:, -1] == 0).all()


def test_nothing_on_glass(package: ModelPackage, session: Session) -> None:
    found = detect(tiles_of(np.full((64, 64, 3), 235, np.uint8)), session, package)
    assert len(found.tile) == 0
    assert found.probability.shape == (0, 11)


def test_the_batch_changes_nothing(package: ModelPackage, session: Session) -> None:
    rgb, _ = blobs()
    other = np.roll(rgb, 37, axis=0)
    both = detect(tiles_of(rgb, other), session, package)
    alone = [detect(tiles_of(image), session, package) for image in (rgb, other)]
    for name in ("box_tile_px", "score", "probability", "label"):
        joined = np.concatenate([getattr(found, name) for found in alone])
        assert joined.tobytes() == getattr(both, name).tobytes()


def outputs(box: list[list[float]], score: list[float], best: list[float]):  # type: ignore[no-untyped-def]
    """Return a detector that says one thing of every image."""
    k = len(CLASSES) - 1
    rest = [[p] + [(1 - p) / (k - 1)] * (k - 1) for p in best]

    def session(image: UInt8) -> dict[str, Float32]:
        n = len(image)
        return {
            "box_px": np.array([box] * n, np.float32),
            "score": np.array([score] * n, np.float32),
            "type_probability": np.array([rest] * n, np.float32),
        }

    return session


def one(session, package: ModelPackage, tiles: int = 1) -> Detections:  # type: ignore[no-untyped-def]
    return detect(tiles_of(*[np.zeros((32, 32, 3), np.uint8)] * tiles), session, package)


def test_of_two_that_overlap_the_better_stays_in_each_tile(package: ModelPackage) -> None:
    box = [[0, 0, 40, 40], [4, 0, 44, 40], [100, 0, 140, 40], [130, 0, 170, 40]]
    found = one(outputs(box, [0.7, 0.9, 0.8, 0.6], [0.9] * 4), package, tiles=3)
    assert found.tile.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.box_tile_px[:3, 0].tolist() == [4, 100, 130]


def test_suppression_is_greedy(package: ModelPackage) -> None:
    # The best removes the second; the third overlaps only the second and stays.
    box = [[0, 0, 40, 40], [10, 0, 50, 40], [20, 0, 60, 40]]
    found = one(outputs(box, [0.9, 0.8, 0.7], [0.9] * 3), package)
    assert found.box_tile_px[:, 0].tolist() == [0, 20]


def test_weak_peaks_and_empty_boxes_are_no_cells(package: ModelPackage) -> None:
    box = [[0, 0, 40, 40], [100, 0, 140, 40], [200, 9, 240, 9], [300, 0, 340, 40]]
    found = one(outputs(box, [0.3, 0.29, 0.9, 0.0], [0.9] * 4), package)
    assert found.box_tile_px.tolist() == [[0, 0, 40, 40]]


def test_doubt_is_reported_as_unclassified(tmp_path: Path) -> None:
    folder = tiny_package(tmp_path / "tiny", detector={"unclassified_below": 0.5})
    box = [[0, 0, 40, 40], [100, 0, 140, 40]]
    found = one(outputs(box, [0.9, 0.8], [0.4, 0.5]), load_package(folder))
    assert [CLASSES[k] for k in found.label] == ["unclassified", "myeloblast"]
    assert found.probability[:, -1].tolist() == pytest.approx([0.6, 0.0])
    assert found.probability[:, 0].tolist() == pytest.approx([0.4, 0.5])


def test_a_package_without_unclassified_always_names_a_type(tmp_path: Path) -> None:
    folder = tiny_package(
        tmp_path / "tiny", classes=list(CLASSES[:-1]), detector={"unclassified_below": 0.0}
    )
    found = one(outputs([[0, 0, 40, 40]], [0.9], [0.2]), load_package(folder))
    assert found.probability.shape == (1, 10)
    assert found.label.tolist() == [0]


def test_outputs_of_another_shape_are_refused(package: ModelPackage) -> None:
    with pytest.raises(InferenceFailed, match="outputs have shapes"):
        one(outputs([[0, 0, 40, 40]], [0.9, 0.8], [0.9]), package)


def regions(*box: tuple[float, float, float, float]) -> Regions:
    return Regions(
        np.array(box, dtype=np.float64).reshape(-1, 4), np.ones(len(box), np.float32), "frames"
    )


def test_the_grid_has_the_cores_that_touch_regions(package: ModelPackage) -> None:
    box, core = detection_grid(
        regions((512, 0, 768, 256), (1000, 1000, 1030, 1030), (2000, 1500, 2100, 1600)),
        (2100, 1600),
        (0.25, 0.25),
        package.manifest.detector,
        seed=5,
    )
    corners = {(512, 0), (512, 512), (1024, 512), (512, 1024), (1024, 1024)}
    corners |= {(1536, 1024), (2048, 1024), (1536, 1536), (2048, 1536)}
    assert {tuple(xy) for xy in core[:, :2].tolist()} == corners
    assert (core[:, 2:] - core[:, :2] == 512).all()
    assert (box - core == [-64, -64, 64, 64]).all()


def test_the_grid_is_in_seeded_random_order(package: ModelPackage) -> None:
    stage = package.manifest.detector
    everything = regions((0, 0, 8192, 8192))
    first = detection_grid(everything, (8192, 8192), (0.25, 0.25), stage, seed=1)[1]
    again = detection_grid(everything, (8192, 8192), (0.25, 0.25), stage, seed=1)[1]
    other = detection_grid(everything, (8192, 8192), (0.25, 0.25), stage, seed=2)[1]
    assert len(first) == 256
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()
    assert set(map(tuple, first.tolist())) == set(map(tuple, other.tolist()))
    assert (np.diff(first[:, 1]) < 0).any()


def test_the_grid_is_in_base_px_of_any_scale(package: ModelPackage) -> None:
    stage = package.manifest.detector
    box, core = detection_grid(regions((0, 0, 100, 100)), (4000, 3000), (0.5, 0.25), stage, seed=0)
    assert core.tolist() == [[0, 0, 256, 512]]
    assert box.tolist() == [[-32, -64, 288, 576]]


def test_no_region_needs_no_tile(package: ModelPackage) -> None:
    box, core = detection_grid(
        regions(), (4000, 3000), (0.25, 0.25), package.manifest.detector, seed=0
    )
    assert box.shape == core.shape == (0, 4)


def test_neighbours_are_read_soon_after_each_other(package: ModelPackage) -> None:
    stage = package.manifest.detector
    core = detection_grid(
        regions((0, 0, 30000, 20000)), (30000, 20000), (0.25, 0.25), stage, seed=3
    )[1]
    order = reading_order(core)
    assert sorted(order) == list(range(len(core)))
    place = np.rint(core[order, :2] / 512).astype(int)
    when = {(x, y): position for position, (x, y) in enumerate(place.tolist())}
    apart = [when[x, y + 1] - when[x, y] for x, y in when if (x, y + 1) in when]
    assert set(apart) <= set(range(1, STRIP_TILES + 1))
    beside = [abs(when[x + 1, y] - when[x, y]) == 1 for x, y in when if (x + 1, y) in when]
    assert np.mean(beside) > 0.85


def test_blobs_on_borders_are_each_one_cell_whatever_the_order_and_batch(
    package: ModelPackage, session: Session
) -> None:
    size = 1100
    rgb = np.full((size, size, 3), 235, np.uint8)
    spots = [(x, y) for y in range(112, size, 133) for x in range(112, size, 133)]
    truth = [draw_blob(rgb, spot, (blob_side_px(k % 10),) * 2) for k, spot in enumerate(spots)]
    everything = regions((0, 0, size, size))
    coordinates = set()
    for seed, batch in [(1, 1), (2, 9), (2, 1)]:
        box, core = detection_grid(
            everything, (size, size), (0.25, 0.25), package.manifest.detector, seed
        )
        order = np.arange(len(box)) if seed == 1 else reading_order(core)
        found = []
        for first in range(0, len(box), batch):
            numbers = order[first : first + batch]
            tiles = cut(rgb, box[numbers])
            found.append((detect(tiles, session, package), TileGeometry.of(tiles, numbers)))
        cells = stitch(found, core, everything, package.manifest.classes, package.digest)
        assert len(cells) == len(truth)
        for one_box in np.array(truth):
            assert iou(np.tile(one_box, (len(cells), 1)), cells.box_px).max() > 0.8
        coordinates.add(cells.box_px.tobytes())
    assert len(coordinates) == 1


def cut(rgb: UInt8, box_px: Float64) -> Tiles:
    """Read 640 px tiles, white beyond the image."""
    padded = np.pad(rgb, ((640, 640), (640, 640), (0, 0)), constant_values=255)
    corners = (box_px[:, :2] + 640).astype(int)
    image = np.stack([padded[y : y + 640, x : x + 640] for x, y in corners])
    valid = np.ones(image.shape[:3], np.bool_)
    return Tiles(image, box_px[:, :2].copy(), np.ones(2), valid)
