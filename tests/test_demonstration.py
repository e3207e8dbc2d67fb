"""The demonstration slide: what was written, read back by others, agrees with its truth."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from wsidicom import WsiDicom

from dicom_io.demonstration import (
    LEVELS,
    UM_PER_PX,
    DemonstrationSlide,
    compose_demonstration_slide,
    read_truth,
)
from dicom_io.demonstration_layout import COMPOSITION
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from models.composing import load_cells

SIZE_PX = (4096, 3072)
CELLS = 150


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationSlide:
    folder = tmp_path_factory.mktemp("demonstration") / "dicom"
    return compose_demonstration_slide(folder, seed=7, size_px=SIZE_PX, cells=CELLS)


def test_levels_halve_and_open_with_wsidicom(slide: DemonstrationSlide) -> None:
    with WsiDicom.open(slide.paths[0].parent) as wsi:
        assert len(wsi.pyramid) == LEVELS >= 5
        for level in wsi.pyramid:
            assert level.size.width == -(-SIZE_PX[0] // 2**level.level)
            assert level.mpp.width == pytest.approx(UM_PER_PX * 2**level.level)


def test_levels_show_the_same_place(slide: DemonstrationSlide) -> None:
    with WsiDicom.open(slide.paths[0].parent) as wsi:
        fine = np.asarray(wsi.read_region((1024, 1024), 0, (1024, 1024)), np.float64)
        coarse = np.asarray(wsi.read_region((128, 128), 3, (128, 128)), np.float64)
    halved = fine.reshape(128, 8, 128, 8, 3).mean(axis=(1, 3))
    differ = {
        (dx, dy): np.abs(halved - np.roll(coarse, (dy, dx), (0, 1)))[4:-4, 4:-4].mean()
        for dx in (-1, 0, 1)
        for dy in (-1, 0, 1)
    }
    assert min(differ, key=lambda shift: differ[shift]) == (0, 0)
    assert np.abs(halved.mean(axis=(0, 1)) - coarse.mean(axis=(0, 1))).max() < 1.0


def test_opens_with_the_node(slide: DemonstrationSlide) -> None:
    pacs = open_pacs(f"file://{slide.paths[0].parent}", PacsSettings())
    opened = open_slide(pacs, slide.study_uid, slide.series_uid)
    assert opened.base.size_px == SIZE_PX
    assert len(opened.levels) == LEVELS
    assert opened.base.um_per_px == pytest.approx(UM_PER_PX)
    assert opened.header.PatientName == "DEMONSTRATION^MARROW"


def test_every_frame_can_be_decoded(slide: DemonstrationSlide) -> None:
    for path in slide.paths[2:]:
        dataset = dcmread(path)
        pixels = dataset.pixel_array.reshape(-1, 256, 256, 3)
        assert len(pixels) == dataset.NumberOfFrames


def test_truth_lies_on_cells(slide: DemonstrationSlide) -> None:
    """In each box the pixels are darker than what surrounds it, as nuclei are."""
    truth = slide.truth
    with WsiDicom.open(slide.paths[0].parent) as wsi:
        for x0, y0, x1, y1 in truth.box_px.astype(int):
            box = np.asarray(wsi.read_region((x0, y0), 0, (x1 - x0, y1 - y0)))
            # Red light is what nuclei take away and red cells let through.
            assert np.percentile(box[..., 0], 20) < 185
    assert truth.box_px.min() >= 0
    assert (truth.box_px[:, 2:] <= SIZE_PX).all()


def test_composition_and_trails(slide: DemonstrationSlide) -> None:
    truth = slide.truth
    assert len(truth.box_px) == len(truth.types) == CELLS
    assert sum(COMPOSITION.values()) == pytest.approx(1.0)
    counted = Counter(truth.types)
    for key, share in COMPOSITION.items():
        assert abs(counted[key] - share * CELLS) <= 1
    assert 0.05 <= truth.trail_share <= 0.15


def test_only_cells_the_model_never_saw(slide: DemonstrationSlide) -> None:
    seen = {cell.group for cell in load_cells() if cell.fold != 4}
    assert not seen & set(slide.truth.group.tolist())


def test_truth_file_holds_the_truth(slide: DemonstrationSlide) -> None:
    assert slide.truth_path.parent == slide.paths[0].parent.parent
    again = read_truth(slide.truth_path)
    np.testing.assert_array_equal(again.box_px, slide.truth.box_px)
    assert again.types == slide.truth.types


def test_dciodvfy_finds_no_error(slide: DemonstrationSlide) -> None:
    dciodvfy = Path(sys.executable).with_name("dciodvfy")
    for path in slide.paths:
        said = subprocess.run([dciodvfy, path], capture_output=True, check=False).stderr
        assert b"VLWholeSlideMicroscopyImage" in said
        assert b"Error" not in said


def test_the_same_seed_is_the_same_slide(tmp_path: Path) -> None:
    one, two, other = (
        compose_demonstration_slide(tmp_path / name / "dicom", seed, (1536, 1280), 20)
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert [p.read_bytes() for p in one.paths] == [p.read_bytes() for p in two.paths]
    assert one.truth_path.read_bytes() == two.truth_path.read_bytes()
    assert other.series_uid != one.series_uid


def test_too_many_cells_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="make the slide larger"):
        compose_demonstration_slide(tmp_path / "dicom", 1, (1024, 1024), 400)
