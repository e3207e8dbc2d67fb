"""Every fold held out in turn: what each is trained and tested on, and what is told of all."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

torch = pytest.importorskip("torch")

from models.errors import TrainingInvalid  # noqa: E402
from models.training.cross_validation import cross_validate  # noqa: E402
from models.training.recipe import load_recipe  # noqa: E402
from node.cli import main  # noqa: E402
from tests.test_learning_curve import RECIPE as OF_CROPS  # noqa: E402
from tests.test_learning_curve import TYPES  # noqa: E402

RECIPE = OF_CROPS.replace(
    'format = "crops"\nfolder = "crops"',
    'format = "pascal_voc"\nfolder = "fields"\ngroup = "^(.)"',
)
LABELS = "<annotation><filename>{name}.png</filename>{objects}</annotation>"
OBJECT = (
    "<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
    "<ymax>{y1}</ymax></bndbox></object>"
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Four slides of two fields; in each a cell of either type, and one that the edge cuts."""
    fields = tmp_path / "fields"
    fields.mkdir()
    for slide in "abcd":
        for number in range(2):
            rgb = np.full((200, 240, 3), 220, np.uint8)
            rgb[60:140, 60:140] = (90, 60, 150)
            rgb[148:198, 188:238] = (170, 60, 150)
            rgb[0:40, 0:40] = (170, 60, 150)
            corners = ((61, 61, 140, 140), (189, 149, 238, 198), (1, 1, 40, 40))
            boxes = zip((*TYPES, TYPES[1]), corners, strict=True)
            marked = [
                OBJECT.format(name=name, x0=x0, y0=y0, x1=x1, y1=y1)
                for name, (x0, y0, x1, y1) in boxes
            ]
            name = f"{slide}{number}"
            Image.fromarray(rgb).save(fields / f"{name}.png")
            text = LABELS.format(name=name, objects="".join(marked))
            (fields / f"{name}.xml").write_text(text)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_every_fold_is_held_out_once(recipe: Path) -> None:
    folds, spreads, written = cross_validate(load_recipe(recipe), Console(file=io.StringIO()))
    assert [fold.number for fold in folds] == [0, 1]
    tested = [set(fold.groups) for fold in folds]
    assert tested[0].isdisjoint(tested[1])
    # Of each held-out fold of two slides one validates: two whole cells in each of two fields.
    assert [int(fold.confusion.sum()) for fold in folds] == [4, 4]
    accuracies = [fold.figures["accuracy"] for fold in folds]
    assert spreads["accuracy"].mean == pytest.approx(np.mean(accuracies))
    assert spreads["accuracy"].standard_deviation == pytest.approx(np.std(accuracies, ddof=1))
    with written[0].open(newline="") as file:
        rows = {row["figure"]: row for row in csv.DictReader(file)}
    assert [float(rows["accuracy"][f"fold {fold}"]) for fold in (0, 1)] == accuracies
    with Image.open(written[1]) as picture:
        assert len(set(picture.convert("L").tobytes())) > 50


def test_every_slide_may_be_held_out_and_nothing_is_trained_twice(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("folds = 2", 'folds = "each"'))
    first = CliRunner().invoke(main, ["train", "folds", "--json", str(recipe)])
    assert first.exit_code == 0, first.output
    said = json.loads(first.stdout)
    assert [fold["groups"] for fold in said["folds"]] == [["a"], ["b"], ["c"], ["d"]]
    assert said["figures"]["accuracy"]["folds"] == 4
    checkpoints = sorted((recipe.parent / "run" / "folds").glob("*/checkpoint.safetensors"))
    at = [path.stat().st_mtime_ns for path in checkpoints]
    again = CliRunner().invoke(main, ["train", "folds", str(recipe)])
    assert "accuracy" in again.output
    assert len(at) == 4
    assert [path.stat().st_mtime_ns for path in checkpoints] == at


def test_what_cannot_be_parted_is_said_before_anything_is_trained(recipe: Path) -> None:
    """Of three folds of four slides two hold one slide, which cannot both choose and be tested."""
    recipe.write_text(RECIPE.replace("folds = 2", "folds = 3"))
    with pytest.raises(TrainingInvalid, match="and 0 to test on"):
        cross_validate(load_recipe(recipe), Console(file=io.StringIO()))
    assert not (recipe.parent / "run").exists()


def test_images_of_their_own_leave_nothing_to_hold_out(recipe: Path) -> None:
    source = RECIPE[RECIPE.index("[[data]]") :].replace("[[data]]", "[[validation]]")
    recipe.write_text(RECIPE + source)
    with pytest.raises(TrainingInvalid, match=r"leave \[\[validation\]\] out"):
        cross_validate(load_recipe(recipe), Console(file=io.StringIO()))
