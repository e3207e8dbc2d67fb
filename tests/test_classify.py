"""A second stage names what the first one found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from models.classify import classify, crops_of
from models.detect import detect
from models.errors import ManifestInvalid
from models.fields import find_in_field
from models.manifest import ClassifierStage
from models.package import ModelPackage, load_package, stages_of
from models.records import Detections, Tiles
from models.session import open_session
from tests.smears import small_smear
from tests.tiny_package import CLASSES, TYPES, blob_side_px, draw_blob, tiny_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    folder = tmp_path_factory.mktemp("packages") / "second"
    return load_package(tiny_package(folder, second_stage=True))


def field() -> tuple[np.ndarray, list[tuple[float, ...]]]:
    rgb = np.full((640, 640, 3), 235, np.uint8)
    boxes = [
        draw_blob(rgb, (80 + 120.3 * (k % 5), 150 + 300.7 * (k // 5)), (blob_side_px(k),) * 2)
        for k in range(TYPES)
    ]
    return rgb, boxes


def test_the_second_stage_decides(package: ModelPackage) -> None:
    """The tiny classifier turns the order of types round, so nothing is left of the first."""
    rgb, _ = field()
    tiles = Tiles(rgb[None], np.zeros((1, 2)), np.ones(2), np.ones((1, 640, 640), np.bool_))
    first = detect(tiles, open_session(package, "detector", "cpu", 1), package)
    assert (first.probability[:, :TYPES] == 0).all()  # until then nothing is known
    named = classify(tiles, first, open_session(package, "classifier", "cpu", 1), package)
    np.testing.assert_array_equal(named.box_tile_px, first.box_tile_px)
    sides = (named.box_tile_px[:, 2:] - named.box_tile_px[:, :2]).mean(1)
    wanted = [TYPES - 1 - round((side - 24) / 5) for side in sides.tolist()]
    assert named.label.tolist() == wanted
    np.testing.assert_allclose(named.probability[:, :TYPES].sum(1), 1, atol=1e-5)


def test_a_field_is_named_in_two_stages_at_any_scale(package: ModelPackage) -> None:
    rgb, boxes = field()
    twice = rgb.repeat(2, 0).repeat(2, 1)
    sessions = {
        stage: open_session(package, stage, "cpu", 1)
        for stage in stages_of(package.manifest)
        if stage != "localiser"
    }
    cells = find_in_field(twice, 0.125, package, sessions)
    assert len(cells) == TYPES
    for box, label in zip(cells.box_px, cells.label.tolist(), strict=True):
        truth = np.array(boxes[TYPES - 1 - label]) * 2
        np.testing.assert_allclose(box, truth, atol=6)


def test_a_crop_has_the_cell_in_its_middle() -> None:
    """One red pixel at tile (20, 30): half a tile px is a quarter of a crop px at 0.5 µm."""
    rgb = np.zeros((1, 64, 64, 3), np.uint8)
    rgb[0, 30, 20, 0] = 200
    tiles = Tiles(rgb, np.zeros((1, 2)), np.ones(2), np.ones((1, 64, 64), np.bool_))
    found = Detections(
        tile=np.zeros(1, np.int32),
        box_tile_px=np.array([[15.5, 25.5, 25.5, 35.5]], np.float32),  # around (20.5, 30.5)
        score=np.ones(1, np.float32),
        probability=np.ones((1, 1), np.float32),
        label=np.zeros(1, np.int32),
        classes=("blast",),
    )
    stage = ClassifierStage("c.onnx", "0" * 64, 0.25, 9)
    crop = crops_of(tiles, found, stage, 0.25)
    assert crop.shape == (1, 9, 9, 3)
    assert crop[0, 4, 4, 0] == 200  # the middle pixel of nine
    assert crop.sum() == 200


def test_the_whole_way_with_a_second_stage(tmp_path: Path) -> None:
    smear = small_smear(tmp_path)
    tiny_package(tmp_path / "packages" / "tiny", second_stage=True)
    code, result, said = smear.analyse()
    assert code == 0, said
    assert result["cells"] > 10
    assert set(result["differential"]) <= set(CLASSES)


def test_a_package_without_one_says_so(tmp_path: Path) -> None:
    plain = load_package(tiny_package(tmp_path / "plain"))
    assert stages_of(plain.manifest) == ("localiser", "detector")
    with pytest.raises(ManifestInvalid, match="has no second stage"):
        open_session(plain, "classifier", "cpu", 1)


@pytest.mark.parametrize("um_per_px", [0.16, 0.25, 0.4])
def test_crops_are_interpolated_as_scipy_does_it(um_per_px: float) -> None:
    draw = np.random.default_rng(4)
    rgb = draw.integers(0, 256, (1, 200, 260, 3), np.uint8)
    tiles = Tiles(rgb, np.zeros((1, 2)), np.ones(2), np.ones((1, 200, 260), np.bool_))
    centre = draw.uniform((-10, -10), (270, 210), (40, 2))  # beyond the border too
    box = np.hstack([centre - 20, centre + 20]).astype(np.float32)
    rows = len(box)
    found = Detections(
        np.zeros(rows, np.int32),
        box,
        np.ones(rows, np.float32),
        np.ones((rows, len(CLASSES)), np.float32),
        np.zeros(rows, np.int32),
        CLASSES,
    )
    stage = ClassifierStage("c.onnx", "0" * 64, um_per_px, 96)
    offset = (np.arange(96) + 0.5 - 48) * um_per_px / 0.25 - 0.5
    middle = (box[:, :2] + box[:, 2:]).astype(np.float64) / 2
    for crop, (x, y) in zip(crops_of(tiles, found, stage, 0.25), middle, strict=True):
        places = np.meshgrid(y + offset, x + offset, indexing="ij")
        for channel in range(3):
            expected = ndimage.map_coordinates(
                rgb[0, ..., channel], places, order=1, mode="reflect"
            )
            np.testing.assert_array_equal(crop[..., channel], expected)
