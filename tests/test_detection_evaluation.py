"""The whole report of a detector, and what a package gives on the test images of a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.average_precision import ScoredBoxes
from models.detection_evaluation import RATES, evaluation_table, image_counts
from models.detection_table import Findings, detection_table
from models.evaluation import match
from node.cli import main
from tests.tiny_package import CLASSES, blob_side_px, draw_blob, tiny_package

TYPES = ("myelocyte", "lymphocyte", "monocyte")


def cells(rows: list[tuple[int, float, int, float]]) -> ScoredBoxes:
    """Image, x of a 10 px box, type and score of each."""
    image, x, kind, score = (np.array(column) for column in zip(*rows, strict=True))
    box = np.stack([x, np.zeros(len(x)), x + 10.0, np.full(len(x), 10.0)], 1)
    return ScoredBoxes(image, box, kind, score.astype(float))


@pytest.fixture
def findings() -> Findings:
    """By hand: two images; a lymphocyte missed, a monocyte called myelocyte, and one invented."""
    truth = cells([(0, 0, 0, 1), (0, 20, 1, 1), (0, 40, 2, 1), (1, 0, 0, 1), (1, 20, 1, 1)])
    found = cells(
        [(0, 0, 0, 0.9), (0, 40, 0, 0.8), (1, 0, 0, 0.9), (1, 20, 1, 0.9), (1, 60, 1, 0.7)]
    )
    return Findings(found, truth, 2)


def test_recall_and_accuracy_are_the_papers(findings: Findings) -> None:
    """Wang et al. 2022, eq. 17 and 18, with TP, FN, FP and TN counted on the fingers."""
    rows = detection_table(findings, TYPES, 0.5)["types"]
    by_hand = {"myelocyte": (2, 0, 1, 2), "lymphocyte": (1, 1, 1, 3), "monocyte": (0, 1, 0, 4)}
    for name, (tp, fn, fp, tn) in by_hand.items():
        assert rows[name]["recall"] == pytest.approx(tp / (tp + fn), abs=1e-4)
        assert rows[name]["accuracy"] == pytest.approx((tp + tn) / (tp + tn + fp + fn), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_accuracy_is_that_of_the_slow_twin(seed: int) -> None:
    """Every true cell and every box that finds none is one decision, type by type."""
    rng = np.random.default_rng(seed)
    truth = cells([(0, 20.0 * n, int(rng.integers(3)), 1) for n in range(12)])
    found = cells(
        [(0, 20.0 * n, int(rng.integers(3)), 0.9) for n in range(15) if rng.random() < 0.8]
        or [(0, 900.0, 0, 0.9)]
    )
    pairs = match(found.box_px, truth.box_px)
    called = dict(zip(pairs.truth.tolist(), found.label[pairs.found].tolist(), strict=True))
    invented = np.delete(found.label, pairs.found)
    rows = detection_table(Findings(found, truth, 1), TYPES, 0.5)["types"]
    for kind, name in enumerate(TYPES):
        if name not in rows:
            continue
        decisions = [
            (true == kind) == (called.get(row) == kind) for row, true in enumerate(truth.label)
        ] + [False] * int((invented == kind).sum())
        # A cell of another type that is called this one is one false positive, not two faults.
        assert rows[name]["accuracy"] == pytest.approx(np.mean(decisions), abs=1e-4)


def test_rates_have_intervals_and_the_count_its_error(findings: Findings) -> None:
    table = evaluation_table(findings, TYPES, 0.5, 0, ("a", "b"))
    for rate in RATES:
        low, high = table[f"mean_{rate}_interval"]
        assert low <= table[f"mean_{rate}"] <= high
        assert low < high
    # The two images drawn alike: recalls of lymphocytes are 0 of 1 and 1 of 1.
    assert table["types"]["lymphocyte"]["recall_interval"] == [0, 1]
    assert table["types"]["monocyte"]["recall_interval"] == [0, 0]
    # 3, 2, 0 counted; 2, 2, 1 true.
    assert table["ndc_reference"] == "true cells"
    assert table["ndc_mse"] == pytest.approx((0.2**2 + 0 + 0.2**2) / 3, abs=1e-6)
    assert table["ndc_largest_error_points"] == 20
    manual = evaluation_table(
        findings, TYPES, 0.5, 0, ("a", "b"), {"": {"myelocyte": 60, "lymphocyte": 40}}
    )
    assert manual["ndc_reference"] == "manual count"
    assert manual["ndc_mse"] == 0
    assert evaluation_table(findings, TYPES, 0.5, 0, ("a", "b")) == table


def test_counts_of_images_are_those_of_the_table(findings: Findings) -> None:
    counts = image_counts(findings, 3, 0.5)
    assert counts.right.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert counts.called.tolist() == [[2, 0, 0], [1, 2, 0]]
    assert counts.true.tolist() == [[1, 1, 1], [1, 1, 0]]


RECIPE = """
system = "{system}"
stage = "{stage}"
name = "blobs"
out = "run"
types = {types}
steps = 1
size_px = 256
um_per_px = {scale}

[[data]]
format = "pascal_voc"
folder = "fields"
um_per_px = {scale}

[[validation]]
format = "pascal_voc"
folder = "fields"
um_per_px = {scale}
"""


def written(folder: Path, stage: str, types: tuple[str, ...], scale: float) -> Path:
    system = {"cells": "liu2022", "regions": "wang2022"}[stage]
    text = RECIPE.format(system=system, stage=stage, types=json.dumps(list(types)), scale=scale)
    (folder / "recipe.toml").write_text(text)
    return folder / "recipe.toml"


def labelled(path: Path, rgb: np.ndarray, objects: list[tuple[str, tuple[float, ...]]]) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(rgb).save(path)
    marks = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in objects
    )
    path.with_suffix(".xml").write_text(
        f"<annotation><filename>{path.name}</filename>{marks}</annotation>"
    )


def evaluated(
    folder: Path, recipe: Path, *more: str, package: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run ``marrow-node evaluate`` with the tiny package, or one that differs from it."""
    tiny_package(folder / "packages" / "tiny", **(package or {}))
    config = folder / "node.toml"
    config.write_text(f'[model]\nname = "tiny"\nfolders = ["{folder / "packages"}"]\n')
    arguments = ["--config", str(config), "evaluate", "--json", "--model", "tiny", *more]
    ended = CliRunner().invoke(main, [*arguments, str(recipe)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    table: dict[str, Any] = json.loads(ended.stdout)
    assert json.loads((folder / "run/evaluation/tiny/report.json").read_text()) == table
    return table


def test_cells_are_evaluated_with_a_manual_count(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    rgb = np.full((400, 600, 3), 235, np.uint8)
    objects = []
    for number, label in enumerate((0, 4, 4, 8)):
        side = blob_side_px(label)
        box = draw_blob(rgb, (90.0 + 130 * number, 200.0), (side, side))
        objects.append((CLASSES[label], box))
    for name in ("a", "b"):  # one slide alone has no interval
        labelled(tmp_path / "fields" / f"{name}.png", rgb, objects)
    manual = tmp_path / "manual.csv"
    manual.write_text("type,count\nmyeloblast,50\nband_neutrophil,100\n")
    recipe = written(tmp_path, "cells", CLASSES[:-1], 0.25)
    table = evaluated(tmp_path, recipe, "--manual", str(manual))
    assert table["map_50"] == 1
    assert table["mean_recall_interval"] == [1, 1]
    assert table["ndc_reference"] == "manual count"
    assert table["ndc_largest_error_points"] == 25  # the polychromatic one
    assert "ndc mse" in (tmp_path / "run/evaluation/tiny/report.md").read_text()
    assert evaluated(tmp_path, recipe)["ndc_mse"] == 0


def blobs(folder: Path, labels: Sequence[int]) -> Path:
    """A field with blobs of these types, and its recipe."""
    rgb = np.full((400, 150 + 130 * len(labels), 3), 235, np.uint8)
    objects = []
    for number, label in enumerate(labels):
        side = blob_side_px(label)
        box = draw_blob(rgb, (90.0 + 130 * number, 200.0), (side, side))
        objects.append((CLASSES[label], box))
    labelled(folder / "fields" / "a.png", rgb, objects)
    return written(folder, "cells", CLASSES[:-1], 0.25)


def test_a_curve_knows_what_the_threshold_keeps_from_the_report(tmp_path: Path) -> None:
    """Small blobs have lower scores than large ones: the threshold lies between."""
    pytest.importorskip("torch")
    recipe = blobs(tmp_path, (0, 0, 8, 8))
    table = evaluated(tmp_path, recipe, package={"detector": {"score_threshold": 0.9}})
    small, large = (table["types"][CLASSES[label]] for label in (0, 8))
    assert (small["recall"], large["recall"]) == (0, 1)
    assert (small["ap_50"], large["ap_50"], table["map_50"]) == (1, 1, 1)


def test_a_cell_that_the_node_does_not_name_is_of_no_type(tmp_path: Path) -> None:
    """Between two sizes no type has more than half."""
    pytest.importorskip("torch")
    recipe = blobs(tmp_path, (0, 4, 8))
    sure = evaluated(tmp_path, recipe, package={"detector": {"unclassified_below": 0.0}})
    assert sure["mean_recall"] == 1
    doubting = evaluated(tmp_path, recipe, package={"detector": {"unclassified_below": 1.0}})
    assert doubting["mean_recall"] == 0
    assert np.sum(doubting["confusion"]) == 0


def test_single_cells_are_evaluated_with_the_second_stage(tmp_path: Path) -> None:
    """The tiny second stage names blobs the other way round than the first does."""
    pytest.importorskip("torch")
    labels = (0, 3, 8, 9)
    for number, label in enumerate(labels):
        rgb = np.full((150, 150, 3), 235, np.uint8)
        # At 0.16 µm per px, where a type's size is said at 0.25.
        side = blob_side_px(label) * 0.25 / 0.16
        draw_blob(rgb, (75.0, 75.0), (side, side))
        # What it calls a blob of this size.
        folder = tmp_path / "crops" / CLASSES[len(CLASSES) - 2 - label]
        folder.mkdir(parents=True)
        Image.fromarray(rgb).save(folder / f"{number}.png")
    text = (
        RECIPE.format(
            system="choi2017", stage="cells", types=json.dumps(list(CLASSES[:-1])), scale=0.16
        )
        .replace('"pascal_voc"', '"crops"')
        .replace('"fields"', '"crops"')
    )
    (tmp_path / "recipe.toml").write_text(text)
    table = evaluated(tmp_path, tmp_path / "recipe.toml", package={"second_stage": True})
    assert (table["cells"], table["accuracy"], table["unclassified"]) == (4, 1, 0)
    config = tmp_path / "node.toml"
    tiny_package(tmp_path / "packages" / "tiny")
    command = ["--config", str(config), "evaluate", "--model", "tiny"]
    ended = CliRunner().invoke(main, [*command, str(tmp_path / "recipe.toml")])
    assert ended.exit_code != 0
    assert "no second stage" in ended.output + ended.stderr


def test_regions_are_evaluated_with_the_packages_localiser(tmp_path: Path) -> None:
    """Two trails at 4 µm per px, which the tiny localiser sees at 2 µm in places of 16 px."""
    pytest.importorskip("torch")
    rgb = np.full((256, 256, 3), 235, np.uint8)
    boxes = [(32, 32, 96, 96), (160, 128, 224, 224)]
    for x0, y0, x1, y1 in boxes:
        rgb[y0:y1, x0:x1] = (110, 50, 150)
    labelled(tmp_path / "fields" / "a.png", rgb, [("trail", box) for box in boxes])
    table = evaluated(tmp_path, written(tmp_path, "regions", ("trail",), 4.0))
    # Each box is a whole number of places of 8 px, and dilation adds one place around it.
    true, found = 8 * 8 + 8 * 12, 10 * 10 + 10 * 14
    assert table["roi_iou_slide"] == pytest.approx(true / found, abs=1e-4)
    assert table["roi_iou_object"] == pytest.approx((64 / 100 + 96 / 140) / 2, abs=1e-4)
    assert table["roi_recall_object"] == table["roi_recall_slide"] == 1
    assert "roi iou object" in (tmp_path / "run/evaluation/tiny/report.md").read_text()
