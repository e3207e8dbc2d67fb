"""The threshold of a package is chosen over what the node finds, not over what a network says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("torch")

from models.errors import TrainingInvalid
from models.fields import find_in_field
from models.package import load_package
from models.session import open_session
from models.training.annotated import AnnotatedImage
from models.training.as_the_node import node_threshold, reporting_all
from models.training.packing import lent_stages, pack, set_threshold
from models.training.recipe import Recipe, load_recipe
from tests.tiny_package import CLASSES, blob_side_px, tiny_package

# Larger than a tile, so that some blobs lie in two.
FIELD_PX = (1000, 700)
DARK, PALE = (150, 60, 170), (195, 150, 205)
TRUE = [(100, 100), (300, 500), (600, 330), (880, 120)]
UNTRUE = [(100, 400), (480, 120), (640, 600), (880, 560)]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
system = "wang2022"
name = "tiny"
out = "run"
types = {list(CLASSES[:-1])}
um_per_px = 0.25
steps = 1
threads = 1
together_with = "{tmp_path / "lender"}"
[[data]]
format = "smear"
images = 1
[[validation]]
format = "smear"
images = 1
held_out = true
"""
    )
    return load_recipe(path)


@pytest.fixture
def trained(recipe: Recipe, tmp_path: Path) -> Path:
    """What the export of a training leaves, and a package that lends a localiser."""
    lender = tiny_package(tmp_path / "lender")
    recipe.out.mkdir()
    (recipe.out / "detector.onnx").write_bytes((lender / "detector.onnx").read_bytes())
    fields = json.loads((lender / "manifest.json").read_text())["stages"]["detector"]
    about = {"fields": fields, "training": {}, "metrics": {}}
    (recipe.out / "detector.json").write_text(json.dumps(about))
    return lender


def field() -> AnnotatedImage:
    side = blob_side_px(3)
    page = Image.new("RGB", FIELD_PX, (235, 225, 230))
    pen = ImageDraw.Draw(page)
    boxes = []
    for places, colour in ((TRUE, DARK), (UNTRUE, PALE)):
        for x, y in places:
            box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
            pen.ellipse(box, fill=colour)
            boxes.append(box)
    rgb = np.asarray(page)
    true = np.array(boxes[: len(TRUE)], np.float32)
    return AnnotatedImage("field", "field", FIELD_PX, lambda: rgb, true, np.full(len(true), 3))


def test_threshold_parts_what_is_annotated_from_what_is_not(recipe: Recipe, trained: Path) -> None:
    folder = pack(recipe)
    assert folder is not None
    package = load_package(folder)
    sessions = {"detector": open_session(package, "detector", "cpu", 1)}
    seen = find_in_field(field().read(), 0.25, reporting_all(package), sessions)
    dark = np.abs((seen.box_px[:, :2] + seen.box_px[:, 2:])[:, None] / 2 - TRUE).max(2).min(1) < 5
    assert dark.sum() == len(TRUE)
    assert (~dark).sum() >= len(UNTRUE)
    threshold = node_threshold(recipe, folder, [field()])
    assert seen.score[~dark].max() < threshold <= seen.score[dark].min()

    set_threshold(recipe, threshold)
    again = pack(recipe)
    assert again is not None
    assert len(find_in_field(field().read(), 0.25, load_package(again), sessions)) == len(TRUE)


def test_what_is_missing_is_said_before_a_training(recipe: Recipe, trained: Path) -> None:
    assert set(lent_stages(recipe)) == {"localiser"}
    with pytest.raises(TrainingInvalid, match="nowhere, which has no localiser"):
        lent_stages(replace(recipe, together_with="nowhere"))
    (trained / "localiser.onnx").unlink()
    with pytest.raises(TrainingInvalid, match="has no localiser: train it first"):
        lent_stages(recipe)
    assert lent_stages(replace(recipe, types=("WBC",))) == {}
