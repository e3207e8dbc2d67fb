"""Every package of the repository takes a slide all the way, under its own name and digest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom_io.annotation import decode_annotation
from models.composing import load_cells, place, red_cell_field, turned
from models.detect import detect
from models.package import (
    SHIPPED_PACKAGES,
    find_package,
    installed_packages,
    load_package,
    stages_of,
)
from models.records import Tiles, UInt8
from models.session import open_session
from tests.forked import marrow_node
from tests.smears import small_smear
from tests.validators import dciodvfy

HELD_OUT_FOLD = 4
ASSETS = SHIPPED_PACKAGES.parent / "assets"
NAMES = sorted(path.parent.name for path in SHIPPED_PACKAGES.glob("*/manifest.json"))


def test_the_published_systems_are_there() -> None:
    assert {"demo-smear", "wang2022", "tayebi2021", "liu2022", "choi2017"} <= set(NAMES)
    assert [package.manifest.name for package in installed_packages(())] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_slide_goes_all_the_way(name: str, tmp_path: Path) -> None:
    package = find_package(name, ())
    smear = small_smear(tmp_path)
    code, result, said = smear.analyse("--model", name, "--out", str(tmp_path / "out"))
    assert code == 0, said
    assert result["model"]["name"] == name
    assert result["model"]["digest"] == package.digest
    bundle = (tmp_path / "out" / "report.fhir.json").read_text()
    assert name in bundle
    assert package.digest in bundle
    report = dcmread(tmp_path / "out" / "report.dcm")
    assert name in report.to_json()
    assert package.digest in report.to_json()
    assert dciodvfy(tmp_path / "out" / "report.dcm") == []
    assert result["ann"], "the smear has cells"
    annotations = dcmread(tmp_path / "out" / "annotations.dcm")
    assert decode_annotation(annotations).package_digest == package.digest
    assert len(decode_annotation(annotations)) == result["cells"]
    assert json.loads(bundle)["resourceType"] == "Bundle"


def test_liu2022_answers_for_a_camera_field(tmp_path: Path) -> None:
    """A real field of blood, of which its types do not matter here."""
    source = sorted((ASSETS / "fields").glob("*.jpg"))[0]
    field = tmp_path / source.name
    field.write_bytes(source.read_bytes())
    ended = marrow_node("field", "--model", "liu2022", "--um-per-px", "0.25", "--json", str(field))
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert answer["model"]["digest"] == find_package("liu2022", ()).digest
    assert sum(answer["count"].values()) == len(answer["cells"])
    assert Path(answer["picture"]).stat().st_size > 10_000


def crowded(side_px: int, across: int) -> UInt8:
    """Cells nobody has trained on, side by side in rows and columns."""
    rng = np.random.default_rng(5)
    cells = [cell for cell in load_cells() if cell.is_whole and cell.fold == HELD_OUT_FOLD]
    canvas = red_cell_field(rng, (side_px, side_px), 0.5, (235, 235, 235))
    step = side_px / across
    for row, column in np.ndindex(across, across):
        cell = cells[int(rng.integers(len(cells)))]
        scale = 0.9 * step / max(cell.rgb.shape[:2])
        cut_out = turned(cell.white_balanced(), cell.outline, scale, rng.uniform(0, 360))
        height, width = cut_out.alpha.shape
        x, y = (column + 0.5) * step - width / 2, (row + 0.5) * step - height / 2
        place(canvas, cut_out, round(x), round(y))
    return canvas


@pytest.mark.parametrize("name", ["wang2022", "tayebi2021", "liu2022"])
def test_a_crowded_tile_has_answers_for_all_of_its_cells(name: str) -> None:
    """As many cells as are found in its quarters, whose answers are many times those needed."""
    package = load_package(SHIPPED_PACKAGES / name)
    session = open_session(package, "detector", "cpu", 2)
    side = package.manifest.detector.tile_px
    tile = crowded(side, 12)
    half = side // 2

    def found(*parts: UInt8) -> int:
        rgb = np.stack(parts)
        known = np.ones(rgb.shape[:3], np.bool_)
        tiles = Tiles(rgb, np.zeros((len(rgb), 2)), np.ones(2), known)
        return len(detect(tiles, session, package).tile)

    quarters = [tile[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    assert found(*quarters) > 100
    assert found(tile) > 0.95 * found(*quarters)


def test_patches_of_wang2022_overlap() -> None:
    """The remedy its paper names: where two disagree about a cell, :func:`stitch` hears both."""
    assert find_package("wang2022", ()).manifest.detector.halo_px > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_package_says_what_it_is_not_for(name: str) -> None:
    manifest = find_package(name, ()).manifest
    assert manifest.demonstration
    assert "not for clinical use" in manifest.intended_use
    assert manifest.metrics
    assert stages_of(manifest)[:2] == ("localiser", "detector")
    text = (SHIPPED_PACKAGES / name / "manifest.json").read_text(encoding="utf-8")
    assert "/" not in json.dumps(json.loads(text)["training"])  # no path of any machine
