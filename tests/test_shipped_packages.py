"""Every package of the repository takes a slide all the way, under its own name and digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_io.annotation import decode_annotation
from models.package import SHIPPED_PACKAGES, find_package, installed_packages, stages_of
from tests.forked import marrow_node
from tests.smears import small_smear
from tests.validators import dciodvfy

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
