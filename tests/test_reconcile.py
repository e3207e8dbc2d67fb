"""``marrow-node reconcile``: what happens to results after they were delivered is seen."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.misc import is_dicom

from tests.forked import marrow_node
from tests.smears import Smear, small_smear


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    smear = small_smear(tmp_path_factory.mktemp("delivered"))
    code, _, said = smear.analyse()
    assert code == 0, said
    return smear


@pytest.fixture
def smear(delivered: Smear) -> Smear:
    """The folders as they were when all was delivered."""
    for name in ("pacs", "ehr"):
        kept, folder = delivered.folder / f"{name}.kept", delivered.folder / name
        if not kept.exists():
            shutil.copytree(folder, kept)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
    return delivered


def reconciled(smear: Smear, *more: str) -> tuple[int, list[dict[str, Any]]]:
    config = smear.folder / "node.toml"
    ended = marrow_node("--config", str(config), "reconcile", "--json", *more)
    return ended.returncode, json.loads(ended.stdout)


def test_what_is_untouched_agrees(smear: Smear) -> None:
    code, (checked,) = reconciled(smear)
    assert (code, checked["found"], checked["revision"]) == (0, "agrees", 1)
    assert checked["series_uid"] == smear.slide.series_uid


def test_only_what_was_delivered_since(smear: Smear) -> None:
    tomorrow = (datetime.now().astimezone() + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S%z")
    assert reconciled(smear, "--since", tomorrow) == (0, [])
    assert len(reconciled(smear, "--since", "2026-01-01")[1]) == 1


@pytest.mark.parametrize("modality", ["ANN", "SEG", "SR"])
def test_a_deleted_object_is_missed(smear: Smear, modality: str) -> None:
    found = [path for path in stored(smear) if dcmread(path).Modality == modality]
    assert len(found) == 1
    uid = dcmread(found[0]).SOPInstanceUID
    found[0].unlink()
    code, (checked,) = reconciled(smear)
    assert (code, checked["found"]) == (63, "differs")
    assert uid in checked["why"]


def test_altered_coordinates_are_seen(smear: Smear) -> None:
    (path,) = (path for path in stored(smear) if dcmread(path).Modality == "ANN")
    annotation = dcmread(path)
    points = bytearray(annotation.AnnotationGroupSequence[0].PointCoordinatesData)
    points[0] ^= 1
    annotation.AnnotationGroupSequence[0].PointCoordinatesData = bytes(points)
    annotation.save_as(path)
    code, (checked,) = reconciled(smear)
    assert (code, checked["found"]) == (63, "differs")
    assert "other coordinates" in checked["why"]


def test_another_count_in_the_ehr_is_seen(smear: Smear) -> None:
    for path in (smear.folder / "ehr").rglob("Observation/*"):
        text = path.read_text(encoding="utf-8")
        changed = json.loads(text)
        for component in changed.get("component", []):
            if component["code"]["coding"][0]["code"] == "count":
                component["valueQuantity"]["value"] += 1
        path.write_text(json.dumps(changed), encoding="utf-8")
    code, (checked,) = reconciled(smear)
    assert (code, checked["found"]) == (63, "differs")
    assert "do not agree" in checked["why"]


def test_an_archive_that_is_away_is_not_a_difference(smear: Smear) -> None:
    shutil.rmtree(smear.folder / "pacs")
    code, (checked,) = reconciled(smear)
    assert (code, checked["found"]) == (31, "not checked")


def stored(smear: Smear) -> list[Path]:
    """Files that the node has stored beside the slide."""
    own = {path.name for path in smear.slide.paths}
    return [
        path
        for path in (smear.folder / "pacs").rglob("*")
        if path.is_file() and path.name not in own and is_dicom(path)
    ]
