"""Places that hold cells become whole frames of the base level."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from models.boxes import first_box_holding
from models.errors import InferenceFailed
from models.localise import localise, localiser_grid
from models.package import ModelPackage, load_package
from models.records import Float64, Tiles, UInt8
from models.session import Session, open_session
from tests.tiny_package import tiny_package

SIZE_PX = (9000, 5000)  # base level, 0.25 µm/px
FRAME_PX = (256, 256)
SCALE = 8  # base px per px at 2 µm/px
CELLS = np.array([[100.0, 80.0], [3583.0, 900.0], [3590.0, 2500.0], [8980.0, 4980.0]])


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    return load_package(tiny_package(tmp_path_factory.mktemp("packages") / "tiny"))


@pytest.fixture(scope="module")
def session(package: ModelPackage) -> Session:
    return open_session(package, "localiser", "cpu", 1)


def slide_at_2_um(cells: Float64) -> UInt8:
    """Return the slide at 2 µm/px with a purple square of 6 px (12 µm) for each cell."""
    rgb = np.full((SIZE_PX[1] // SCALE, SIZE_PX[0] // SCALE, 3), 235, np.uint8)
    for x, y in (cells / SCALE).astype(int):
        rgb[max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = (110, 50, 150)
    return rgb


def read(rgb: UInt8, box_px: Float64) -> Tiles:
    """Cut tiles out of `rgb`; white and not valid beyond it."""
    side = round((box_px[0, 2] - box_px[0, 0]) / SCALE)
    tiles = np.full((len(box_px), side, side, 3), 255, np.uint8)
    valid = np.zeros((len(box_px), side, side), np.bool_)
    for k, (x, y) in enumerate((box_px[:, :2] / SCALE).astype(int)):
        part = rgb[max(y, 0) : y + side, max(x, 0) : x + side]
        rows = slice(max(-y, 0), max(-y, 0) + part.shape[0])
        columns = slice(max(-x, 0), max(-x, 0) + part.shape[1])
        tiles[k, rows, columns] = part
        valid[k, rows, columns] = True
    return Tiles(tiles, box_px[:, :2].copy(), np.array([SCALE, SCALE], float), valid)


def test_tiles_without_their_outer_rings_cover_the_slide_once(package: ModelPackage) -> None:
    box = localiser_grid(SIZE_PX, (0.25, 0.25), package.manifest.localiser)
    assert set((box[:, 2:] - box[:, :2]).ravel()) == {4096.0}
    ring = 2 * 16 * SCALE
    covered = np.zeros((SIZE_PX[1] // 8, SIZE_PX[0] // 8), int)
    for x0, y0, x1, y1 in ((box + np.array([ring, ring, -ring, -ring])) // 8).astype(int):
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all()


def test_a_sampled_grid_takes_the_tile_in_the_middle_of_each_cell(package: ModelPackage) -> None:
    """Counted by hand: 42 columns and 30 rows of tiles of 100 px, four and three to a side."""
    stage = dataclasses.replace(
        package.manifest.localiser,
        um_per_px=0.25,
        tile_px=100,
        context_px=0,
        sampled_grid=(3, 4),
    )
    box = localiser_grid((4150, 3000), (0.25, 0.25), stage)
    columns, rows = [5, 15, 26, 36], [5, 15, 25]  # halves of cells of 10.5 and of 10 tiles
    low = [(100.0 * column, 100.0 * row) for row in rows for column in columns]
    assert box.tolist() == [[x, y, x + 100, y + 100] for x, y in low]
    papers = dataclasses.replace(stage, sampled_grid=(15, 20))
    assert len(localiser_grid((4150, 3000), (0.25, 0.25), papers)) == 15 * 20
    few = localiser_grid((300, 200), (0.25, 0.25), papers)  # three by two tiles: each once
    assert few[:, :2].tolist() == [[x, y] for y in (0, 100) for x in (0, 100, 200)]


def test_every_cell_lies_in_a_region_and_empty_glass_does_not(
    package: ModelPackage, session: Session
) -> None:
    box = localiser_grid(SIZE_PX, (0.25, 0.25), package.manifest.localiser)
    rgb = slide_at_2_um(CELLS)
    tiles = [read(rgb, box[k : k + 2]) for k in range(0, len(box), 2)]
    regions = localise(tiles, session, package, SIZE_PX, FRAME_PX)
    assert regions.kind == "accepted frame"
    assert (first_box_holding(CELLS, regions.box_px) >= 0).all()
    assert len(regions.box_px) <= 9 * len(CELLS)  # of 700 frames
    x0, y0, x1, y1 = regions.box_px.T
    assert (x0 % 256 == 0).all()
    assert (y0 % 256 == 0).all()
    assert ((x1 - x0 == 256) | (x1 == 9000)).all()
    assert ((y1 - y0 == 256) | (y1 == 5000)).all()
    assert len(set(zip(x0, y0, strict=True))) == len(x0)
    assert (regions.score >= package.manifest.localiser.threshold).all()
    again = localise(tiles[::-1], session, package, SIZE_PX, FRAME_PX)
    assert again.box_px.tobytes() == regions.box_px.tobytes()
    assert again.score.tobytes() == regions.score.tobytes()


def test_a_slide_without_cells_has_no_region(package: ModelPackage, session: Session) -> None:
    box = localiser_grid(SIZE_PX, (0.25, 0.25), package.manifest.localiser)
    tiles = read(slide_at_2_um(np.empty((0, 2))), box)
    regions = localise([tiles], session, package, SIZE_PX, FRAME_PX)
    assert regions.box_px.shape == (0, 4)


def test_pixels_that_were_not_read_are_not_believed(
    package: ModelPackage, session: Session
) -> None:
    box = localiser_grid(SIZE_PX, (0.25, 0.25), package.manifest.localiser)
    tiles = read(slide_at_2_um(CELLS), box)
    blind = dataclasses.replace(tiles, valid=np.zeros_like(tiles.valid))
    regions = localise([blind], session, package, SIZE_PX, FRAME_PX)
    assert len(regions.box_px) == 0


def test_a_network_of_another_stride_is_refused(tmp_path: Path, session: Session) -> None:
    folder = tiny_package(tmp_path / "tiny", localiser={"output_stride_px": 8})
    tiles = read(slide_at_2_um(CELLS), np.array([[0.0, 0, 4096, 4096]]))
    with pytest.raises(InferenceFailed, match="'probability' has shape"):
        localise([tiles], session, load_package(folder), SIZE_PX, FRAME_PX)
