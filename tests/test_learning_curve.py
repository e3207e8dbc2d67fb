"""What a recipe reaches with parts of its images: which are taken, what is written and kept."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

torch = pytest.importorskip("torch")

from models.errors import TrainingInvalid  # noqa: E402
from models.training.annotated import AnnotatedImage  # noqa: E402
from models.training.learning_curve import learning_curve, parts_of  # noqa: E402
from models.training.recipe import load_recipe  # noqa: E402
from models.training.sources import load_sources, no_archive  # noqa: E402
from node.cli import main  # noqa: E402

TYPES = ("band_neutrophil", "segmented_neutrophil")
RECIPE = """
system = "choi2017"
name = "tiny"
out = "run"
types = ["band_neutrophil", "segmented_neutrophil"]
um_per_px = 0.16
batch = 4
steps = 2
threads = 1
workers = 0
folds = 2

[network]
width = 0.03125

[[data]]
format = "crops"
folder = "crops"
um_per_px = 0.16
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Sixteen cells of two types, told apart by their colour."""
    for shade, name in zip((90, 170), TYPES, strict=True):
        folder = tmp_path / "crops" / name
        folder.mkdir(parents=True)
        for number in range(8):
            rgb = np.full((96, 96, 3), 220, np.uint8)
            rgb[20 + number : 60, 20:60] = (shade, 60, 150)
            Image.fromarray(rgb).save(folder / f"{name}{number}.png")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_parts_grow_and_never_meet_what_is_measured(recipe: Path) -> None:
    told = load_recipe(recipe)
    parts = list(parts_of(load_sources(told.data, told, no_archive), told))
    assert [(fold, len(images.train), len(images.test)) for fold, images in parts] == [
        (fold, images, 8) for fold in (0, 1) for images in (2, 4, 6, 8)
    ]
    for (fold, part), (next_fold, larger) in pairwise(parts):
        assert not names(part.train) & names(part.test)
        assert names(part.train) < names(larger.train) or fold != next_fold
    for _, part in parts:  # every part holds both types alike
        kinds = np.concatenate([image.kind for image in part.train])
        assert np.bincount(kinds).tolist() == [len(kinds) // 2] * 2
    assert len(names([*parts[0][1].test, *parts[-1][1].test])) == 16


def names(images: Sequence[AnnotatedImage]) -> set[str]:
    return {image.name for image in images}


def test_what_was_measured_is_written_and_drawn(recipe: Path) -> None:
    points, written = learning_curve(load_recipe(recipe), Console(file=io.StringIO()))
    assert [(point.fold, point.images, point.measured_on) for point in points] == [
        (fold, images, 8) for fold in (0, 1) for images in (2, 4, 6, 8)
    ]
    assert {point.measure for point in points} == {"accuracy"}
    with written[0].open(newline="") as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == [p.value for p in points]
    with Image.open(written[1]) as picture:
        assert len(set(picture.convert("L").tobytes())) > 50


def test_given_again_it_trains_nothing_and_with_other_images_all_anew(recipe: Path) -> None:
    first = CliRunner().invoke(main, ["train", "curve", "--json", str(recipe)])
    assert first.exit_code == 0, first.output
    folders = sorted((recipe.parent / "run" / "learning_curve").iterdir())
    at = [(folder / "checkpoint.safetensors").stat().st_mtime_ns for folder in folders]
    again = CliRunner().invoke(main, ["train", "curve", "--json", str(recipe)])
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert [(each / "checkpoint.safetensors").stat().st_mtime_ns for each in folders] == at
    assert len(folders) == 8

    for name in TYPES:
        source = recipe.parent / "crops" / name / f"{name}0.png"
        source.with_name(f"{name}8.png").write_bytes(source.read_bytes())
    assert CliRunner().invoke(main, ["train", "curve", str(recipe)]).exit_code == 0
    assert len(list((recipe.parent / "run" / "learning_curve").iterdir())) > 8


def test_a_type_that_is_told_apart_must_be_there(recipe: Path) -> None:
    for path in (recipe.parent / "crops" / TYPES[1]).iterdir():
        path.unlink()
    with pytest.raises(TrainingInvalid, match="no image to train on shows a segmented_neutrophil"):
        learning_curve(load_recipe(recipe), Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("folds = 2", 'folds = "each"'),
        (
            "[network]",
            '[[validation]]\nformat = "crops"\nfolder = "crops"\num_per_px = 0.16\n[network]',
        ),
    ],
)
def test_folds_are_needed(recipe: Path, old: str, new: str) -> None:
    recipe.write_text(recipe.read_text().replace(old, new))
    with pytest.raises(TrainingInvalid, match="give 'folds' as a number"):
        learning_curve(load_recipe(recipe), Console(file=io.StringIO()))
