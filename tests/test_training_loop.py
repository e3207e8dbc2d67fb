"""A training: its recipe, its loop, and that it goes on after SIGKILL as if nothing had been."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

torch = pytest.importorskip("torch")

from models.cell_types import CELL_TYPES  # noqa: E402
from models.errors import TrainingInvalid  # noqa: E402
from models.package import load_package  # noqa: E402
from models.training.annotated import AnnotatedImage, only_kind  # noqa: E402
from models.training.loop import (  # noqa: E402
    _identity,
    _MetricsFile,
    begin_with,
    learning_rate,
    train,
)
from models.training.packing import _fields, lent_stages, pack, without_package  # noqa: E402
from models.training.recipe import (  # noqa: E402
    PAPERS,
    Optimisation,
    load_recipe,
    optimisation_of,
)
from models.training.sources import split_images  # noqa: E402
from models.training.tasks import task_of  # noqa: E402
from models.training.tile_task import _accepting, as_accepted, tile_measures  # noqa: E402
from models.training.yolov4 import YoloV4  # noqa: E402
from tests.tiny_package import CLASSES, tiny_package  # noqa: E402

RECIPES = Path(__file__).parent.parent / "models" / "training" / "recipes"

RECIPE = """
system = "tayebi2021"
name = "tiny"
out = "run"
types = ["WBC", "RBC"]
um_per_px = 0.25
size_px = 64
batch = 2
steps = 12
checkpoint_every = 2
evaluate_every = 6
threads = 1
workers = {workers}
folds = 3

[network]
width = 0.125
depth = 0.2

[optimisation]
kind = "adamw"
learning_rate = 1e-3

[[data]]
format = "yolo"
folder = "fields"
types = ["WBC", "RBC"]
um_per_px = 0.25
"""

TRAIN = """
import sys
from pathlib import Path
from rich.console import Console
from models.training.loop import train
from models.training.recipe import load_recipe
from models.training.sources import split_images
from models.training.tasks import task_of
if __name__ == "__main__":
    recipe = load_recipe(Path(sys.argv[1]))
    images = split_images(recipe)
    print(train(task_of(recipe, images), recipe, images, Console(file=sys.stderr)))
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    fields = tmp_path / "fields"
    fields.mkdir()
    for number in range(12):
        rgb = np.full((70, 80, 3), 220, np.uint8)
        x, y = rng.integers(0, 40, 2)
        rgb[y : y + 24, x : x + 24] = (110, 60, 150)
        Image.fromarray(rgb).save(fields / f"{number}.png")
        (fields / f"{number}.txt").write_text(
            f"{number % 2} {(x + 12) / 80} {(y + 12) / 70} {24 / 80} {24 / 70}\n"
        )
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(workers=0))
    return path


def started(recipe: Path) -> subprocess.Popen[bytes]:
    script = recipe.with_suffix(".py")
    script.write_text(TRAIN)
    return subprocess.Popen(
        [sys.executable, str(script), str(recipe)], cwd=Path(__file__).parent.parent
    )


def losses(recipe: Path) -> list[dict[str, str]]:
    with (recipe.parent / "run" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_killed_and_started_again_it_has_the_same_losses(recipe: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "recipe.toml").write_text(recipe.read_text().replace('"fields"', '"../fields"'))
    assert started(whole / "recipe.toml").wait(timeout=300) == 0

    training = started(recipe)
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    end = time.monotonic() + 200
    while not checkpoint.exists() and time.monotonic() < end:
        time.sleep(0.02)
    training.send_signal(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL
    assert len(losses(recipe)) < 12  # it was in the middle
    assert started(recipe).wait(timeout=300) == 0

    uninterrupted, resumed = losses(whole / "recipe.toml"), losses(recipe)
    assert [row["step"] for row in resumed] == [str(step) for step in range(1, 13)]
    for mine, theirs in zip(uninterrupted, resumed, strict=True):
        assert float(mine["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-5)
        assert mine["map_50"] == theirs["map_50"]


def test_another_recipe_does_not_go_on_from_a_checkpoint(recipe: Path) -> None:
    assert started(recipe).wait(timeout=300) == 0
    written = recipe.read_text()
    recipe.write_text(written.replace("steps = 12", "steps = 14"))
    training = subprocess.run(
        [sys.executable, str(recipe.with_suffix(".py")), str(recipe)],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert b"belongs to another training" in training.stderr


def test_what_moves_weights_is_a_trainings_identity(recipe: Path) -> None:
    written = recipe.read_text()

    images = split_images(load_recipe(recipe))

    def identity(old: str, new: str) -> str:
        assert old in written
        recipe.write_text(written.replace(old, new))
        return _identity(load_recipe(recipe), images)

    same = identity("steps = 12", "steps = 12")
    for old, new in (
        ("learning_rate = ", "learning_rate = 9"),
        ("folds = 3", "folds = 4"),
        ("steps = 12", "steps = 12\nmini_batches = 2"),
        ('format = "yolo"', 'format = "yolo"\nleave_out = ["3"]'),
    ):
        assert identity(old, new) != same, new
    for old, new in (
        ('folder = "fields"', 'folder = "moved"'),
        ("threads = 1", "threads = 2"),
        ("evaluate_every = 6", "evaluate_every = 3"),
    ):
        assert identity(old, new) == same, new


def test_corrected_labels_and_further_images_are_another_training(recipe: Path) -> None:
    """Of a split made anew, images that were learnt from may be those to test on."""
    loaded = load_recipe(recipe)
    before = _identity(loaded, split_images(loaded))
    assert before == _identity(loaded, split_images(loaded))
    fields = recipe.parent / "fields"
    label = (fields / "3.txt").read_text()
    (fields / "3.txt").write_text(label.replace("1", "0", 1))
    assert before != _identity(loaded, split_images(loaded))
    (fields / "3.txt").write_text(label)
    assert before == _identity(loaded, split_images(loaded))
    shutil.copy(fields / "3.png", fields / "12.png")
    assert before != _identity(loaded, split_images(loaded))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_one_sentence(recipe: Path, workers: int) -> None:
    """Also from a process of its own, where torch would raise a page of it."""
    recipe.write_text(RECIPE.format(workers=workers))
    loaded = load_recipe(recipe)
    images = split_images(loaded)
    for path in (recipe.parent / "fields").glob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingInvalid) as error:
        train(task_of(loaded, images), loaded, images, Console(file=sys.stderr))
    assert "cannot be decoded" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.out.name == path.stem


@pytest.mark.parametrize(
    ("system", "types", "size_px", "batch", "falls"),
    [
        ("wang2022", 16, 640, (4, 1), {40_000: 5e-4, 40_001: 5e-5, 80_001: 5e-6}),
        ("tayebi2021", 19, 512, (64, 16), {104_000: 1e-3, 104_001: 1e-4, 117_001: 1e-5}),
        ("liu2022", 20, 800, (1, 1), {4 * 3653: 1e-3, 4 * 3653 + 1: 3e-4, 16 * 3653 + 1: 8.1e-6}),
        ("tayebi2021-tiles", 2, 512, (32, 1), {1: 1e-4}),
        ("wang2022-regions", 1, 512, (4, 1), {10_000: 5e-4, 10_001: 5e-5, 20_001: 5e-6}),
        ("choi2017", 10, 512, (40, 1), {50: 0.02}),
    ],
)
def test_full_recipes_have_what_the_papers_say(
    system: str, types: int, size_px: int, batch: tuple[int, int], falls: dict[int, float]
) -> None:
    recipe = load_recipe(RECIPES / f"{system}-full.toml")
    assert recipe.system == system.partition("-")[0]
    assert (len(recipe.types), recipe.size_px) == (types, size_px)
    assert (recipe.batch, recipe.mini_batches) == batch
    assert not {"width", "depth", "channels", "connected"} & set(recipe.network)
    settings = optimisation_of(recipe)
    rates = [learning_rate(settings, step, recipe.steps) for step in falls]
    assert rates == pytest.approx(list(falls.values()))
    text = (RECIPES / f"{system}-full.toml").read_text(encoding="utf-8")
    said = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    for name in set(recipe.types) - set(CELL_TYPES):
        assert name in said, f"{name} is no row of the table of cell types, and no comment says so"


def test_a_sampled_grid_reaches_the_manifest(recipe: Path, tmp_path: Path) -> None:
    """From the recipe of the tiles over what its training writes into the package of the cells."""
    tiny = tiny_package(tmp_path / "tiny")
    stages = json.loads((tiny / "manifest.json").read_text())["stages"]
    text = recipe.read_text()
    tiles = recipe.with_name("tiles.toml")
    head = "stage = 'tiles'\nsampled_grid = [15, 20]\nsteps = 12"
    tiles.write_text(text.replace("steps = 12", head).replace('"run"', '"tiles"'))
    trained = load_recipe(tiles)
    fields = _fields(trained, "localiser", "localiser.onnx", {"threshold": 0.5})
    described(trained.out, "localiser", tiny, fields)
    recipe.write_text(
        text.replace("steps = 12", 'steps = 12\ntogether_with = "tiles"').replace(
            'types = ["WBC", "RBC"]\num_per_px = 0.25\nsize', f"types = {list(CLASSES[:-1])}\nsize"
        )
    )
    cells = load_recipe(recipe)
    described(cells.out, "detector", tiny, stages["detector"])
    folder = pack(cells)
    assert folder is not None
    assert load_package(folder).manifest.localiser.sampled_grid == (15, 20)
    whole = _fields(cells, "localiser", "localiser.onnx", {"score_threshold": 0.5})
    assert whole["sampled_grid"] is None


def described(out: Path, stage: str, package: Path, fields: dict[str, Any]) -> None:
    """What an export leaves of a stage, its network being the package's."""
    out.mkdir(exist_ok=True)
    shutil.copy(package / f"{stage}.onnx", out)
    about = {"fields": fields, "training": {}, "metrics": {}}
    (out / f"{stage}.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"tayebi2021"', '"yolo"', "field system"),
        ("steps = 12", "steps = 0", "field steps"),
        ("steps = 12", "steps = 12\nstepz = 12", "field stepz"),
        ("steps = 12", "stage = 'regions'\nsteps = 12", "no stage 'regions'"),
        ('["WBC", "RBC"]\num', '["WBC", "WBC"]\num', "names a type twice"),
        ('["WBC", "RBC"]\num', '["WBC", "unclassified"]\num', "name it in the source's 'ignore'"),
        ('"tayebi2021"\nname', '"choi2017"\nmini_batches = 2\nname', "2 cells or more"),
        ("[[data]]", "[[test]]", "field data"),
        ("[[data]]", '[[test]]\nformat = "smear"\nimages = 2\n[[data]]', "goes with validation"),
        ("folds = 3", "folds = 3\nheld_out = 3", "held_out must be less"),
        ("steps = 12", "steps = 12\nmini_batches = 3", "batch must be a multiple of mini_batches"),
        ("steps = 12", "steps = 12\nsampled_grid = [15, 20]", "with the stage tiles only"),
        ("steps = 12", "stage = 'tiles'\nsteps = 12\nsampled_grid = [15]", "sampled_grid"),
        ("size_px = 64", "size_px =", "is not TOML"),
        ('types = ["WBC", "RBC"]\num_per_px = 0.25\n', "um_per_px = 0.25\n", "format yolo"),
        ('folder = "fields"', "", "'folder' and 'um_per_px'"),
        ('format = "yolo"', 'format = "smear"', "'images' goes with the format smear"),
        (
            'format = "yolo"\nfolder = "fields"\ntypes = ["WBC", "RBC"]\num_per_px = 0.25\n',
            'format = "smear"\nimages = 4\n',
            "composed images share cells",
        ),
    ],
)
def test_every_wrong_field_is_named(recipe: Path, old: str, new: str, says: str) -> None:
    text = recipe.read_text()
    assert old in text
    place = text.rindex(old) if "format yolo" in says else text.index(old)
    recipe.write_text(text[:place] + new + text[place + len(old) :])
    with pytest.raises(TrainingInvalid) as error:
        load_recipe(recipe)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_one_slide_at_a_time_may_be_left_out(recipe: Path) -> None:
    text = recipe.read_text().replace("folds = 3", 'folds = "each"\nheld_out = 11')
    recipe.write_text(text)
    images = split_images(load_recipe(recipe))
    assert (len(images.train), len(images.test)) == (11, 1)
    assert [image.name for image in images.test] == ["9.png"]
    # What is tested chooses neither the weights nor a threshold.
    assert load_recipe(recipe).keep == "last"
    assert {image.name for image in images.validation} <= {image.name for image in images.train}
    recipe.write_text(text.replace("held_out = 11", "held_out = 12"))
    with pytest.raises(TrainingInvalid, match="leaves 12 images to train and 0 to test on"):
        split_images(load_recipe(recipe))


def test_a_setting_the_network_does_not_know_is_named(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("depth = 0.2", "dept = 0.2"))
    loaded = load_recipe(recipe)
    images = split_images(loaded)
    with pytest.raises(TrainingInvalid, match=r"field network.*dept"):
        task_of(loaded, images)


def test_a_setting_that_the_network_cannot_have_is_named(recipe: Path) -> None:
    text = recipe.read_text().replace('"tayebi2021"', '"liu2022"').replace("width = 0.125", "")
    recipe.write_text(text.replace("depth = 0.2", "depth = 20"))
    loaded = load_recipe(recipe)
    images = split_images(loaded)
    with pytest.raises(TrainingInvalid, match=r"field network.*20"):
        task_of(loaded, images)


def test_weights_to_begin_with_must_fit(tmp_path: Path) -> None:
    network = YoloV4(2, 0.125, 0.2)
    with pytest.raises(TrainingInvalid, match="not a safetensors file"):
        begin_with(network, str(tmp_path / "missing.safetensors"))
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(3)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(TrainingInvalid, match="holds no weight of this network"):
        begin_with(network, str(tmp_path / "other.safetensors"))
    state = {
        name: tensor.contiguous() for name, tensor in YoloV4(5, 0.125, 0.2).state_dict().items()
    }
    save_file(state, str(tmp_path / "five.safetensors"))
    taken = begin_with(network, str(tmp_path / "five.safetensors"))  # all but the heads fit
    assert taken == len(state) - 2 * len(network.heads)
    torch.testing.assert_close(network.stem[0].weight, state["stem.0.weight"])


def test_the_learning_rate_follows_the_paper() -> None:
    """Tayebi et al. 2021, §4.4: 130 000 steps, ÷ 10 at 104 000 and 117 000, warm-up 1 000."""
    settings = PAPERS["tayebi2021"]
    rates = [
        learning_rate(settings, step, 130_000) for step in (500, 1000, 104_000, 104_001, 117_001)
    ]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-4, 1e-5])
    cosine = Optimisation(schedule="cosine", learning_rate=1.0)
    assert [learning_rate(cosine, step, 100) for step in (50, 100)] == pytest.approx(
        [0.5, 0], abs=1e-6
    )


def test_without_its_own_optimisation_a_recipe_has_the_papers(recipe: Path) -> None:
    text = recipe.read_text()
    start, end = text.index("[optimisation]"), text.index("[[data]]")
    recipe.write_text(text[:start] + text[end:])
    assert optimisation_of(load_recipe(recipe)) is PAPERS["tayebi2021"]


def test_what_a_recipe_leaves_out_of_the_optimisation_is_the_papers(recipe: Path) -> None:
    """A learning rate of one's own is no other optimiser."""
    text = recipe.read_text()
    start, end = text.index("[optimisation]"), text.index("[[data]]")
    recipe.write_text(text[:start] + "[optimisation]\nlearning_rate = 5e-4\n" + text[end:])
    own = optimisation_of(load_recipe(recipe))
    assert own == replace(PAPERS["tayebi2021"], learning_rate=5e-4)
    assert own.momentum == 0.949
    recipe.write_text(recipe.read_text().replace("steps = 12", "stage = 'tiles'\nsteps = 12"))
    own = optimisation_of(load_recipe(recipe))
    assert (own.kind, own.weight_decay, own.schedule) == ("adamw", 5e-4, "cosine")


def test_types_may_be_ignored(recipe: Path) -> None:
    """As if nothing were marked there."""
    text = recipe.read_text().replace('types = ["WBC", "RBC"]\num', 'types = ["WBC"]\num', 1)
    recipe.write_text(text.replace("folds = 3", "folds = 2"))
    with pytest.raises(TrainingInvalid, match=r"\['RBC'\] are none of the types.*'ignore'"):
        split_images(load_recipe(recipe))
    recipe.write_text(recipe.read_text() + 'ignore = ["RBC"]\n')
    images = split_images(load_recipe(recipe))
    every = [*images.train, *images.validation, *images.test]
    assert len(every) == 12
    assert sum(len(image.kind) for image in every) == 6
    assert {int(kind) for image in every for kind in image.kind} == {0}


def test_a_table_says_which_images_are_of_one_slide(recipe: Path) -> None:
    table = recipe.parent / "fields" / "groups.csv"
    rows = [f"{number}.png,{'abcd'[number % 4]}" for number in range(12)]
    table.write_text("\n".join(["file,group", *rows]))
    recipe.write_text(recipe.read_text().replace("folds = 3", "folds = 2"))
    images = split_images(load_recipe(recipe))
    assert {image.group for image in images.train}.isdisjoint(i.group for i in images.test)
    assert {i.group for i in (*images.train, *images.validation, *images.test)} == {*"abcd"}
    table.write_text("\n".join(["file,group", *rows, "other/3.png,a"]))
    with pytest.raises(TrainingInvalid, match=r"files of the name 3 into two groups"):
        split_images(load_recipe(recipe))
    table.write_text("\n".join(["file,group", *rows[1:]]))
    with pytest.raises(TrainingInvalid, match=r"groups.csv has no line for 0: add its group"):
        split_images(load_recipe(recipe))


def test_images_to_report_may_be_others_than_those_to_choose_with(recipe: Path) -> None:
    text = recipe.read_text()
    source = text[text.index("[[data]]") :]
    more = [
        source.replace("[[data]]", f"[[{name}]]").replace('"fields"', f'"{name}"')
        for name in ("validation", "test")
    ]
    recipe.write_text(text + "\n".join(more))
    for name, count in (("validation", 3), ("test", 2)):
        folder = recipe.parent / name
        shutil.copytree(recipe.parent / "fields", folder)
        for path in folder.iterdir():
            if int(path.stem) >= count:
                path.unlink()
    images = split_images(load_recipe(recipe))
    assert [len(each) for each in (images.train, images.validation, images.test)] == [12, 3, 2]
    # Those to report have no say in the weights: they may be corrected, and reported anew.
    identity = _identity(load_recipe(recipe), images)
    corrected = recipe.parent / "test" / "1.txt"
    corrected.write_text(corrected.read_text().replace("1", "0", 1))
    loaded = load_recipe(recipe)
    assert _identity(loaded, split_images(loaded)) == identity


def test_a_training_of_cells_lends_both_stages_of_its_package(recipe: Path, tmp_path: Path) -> None:
    """Its folder holds a detector; the localiser lies in the package alone."""
    own = tmp_path / "cells"
    shutil.copytree(tiny_package(tmp_path / "tiny"), own / "package" / "cells")
    text = (RECIPES / "choi2017.toml").read_text(encoding="utf-8")
    recipe.write_text(text.replace('"demo-smear"', '"cells"'))
    lent = lent_stages(load_recipe(recipe))
    assert {name: each.folder for name, each in lent.items()} == {
        "localiser": own / "package" / "cells",
        "detector": own / "package" / "cells",
    }


def test_what_ends_without_a_package_says_so_before(recipe: Path) -> None:
    """The types of this recipe are no cell types."""
    (line,) = without_package(load_recipe(recipe))
    assert "['RBC', 'WBC'] are not in the table of cell types" in line
    assert list(without_package(load_recipe(RECIPES / "tayebi2021.toml"))) == []
    (line,) = without_package(load_recipe(RECIPES / "wang2022-regions.toml"))
    assert "together_with" in line


@pytest.mark.parametrize("system", ["wang2022", "tayebi2021", "liu2022", "choi2017"])
def test_the_types_of_a_paper_make_a_package(system: str) -> None:
    assert list(without_package(load_recipe(RECIPES / f"{system}-full.toml"))) == []


def test_a_line_that_was_cut_off_is_not_taken_for_another_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,learning_rate,loss\n1,0.1,3.0\n2,0.1,2.5\n1")  # of 12 or so
    log = _MetricsFile(path, 2)
    log.write(3, {"learning_rate": 0.1, "loss": 2.0})
    with path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_tile_measures_by_hand() -> None:
    said, true = np.array([1, 1, 0, 0, 1]) > 0, np.array([1, 0, 0, 1, 1]) > 0
    expected: dict[str, Any] = {
        "precision": 2 / 3,
        "recall": 2 / 3,
        "specificity": 1 / 2,
        "accuracy": 3 / 5,
        "negative_predictive_value": 1 / 2,
    }
    assert tile_measures(said, true) == pytest.approx(expected)


def test_a_threshold_is_one_that_a_tile_has() -> None:
    probability = np.array([0.1, 0.99998, 0.999991])
    assert _accepting(probability, np.array([0, 1, 1])) == 0.99998


def test_tiles_are_measured_as_the_node_would_accept_them() -> None:
    """Of the surest tile alone precision would be 1 for ever: no later epoch could be better."""
    probability = np.array([0.1, 0.1, 0.4, 0.1, 0.3, 0.4, 0.45, 0.45, 0.48, 0.9])
    true = np.array([0] * 4 + [1] * 6)
    assert tile_measures(probability >= 0.5, true == 1)["precision"] == 1
    measured = as_accepted(probability, true)
    assert (measured["precision"], measured["recall"]) == pytest.approx((6 / 7, 1))


def test_composed_images_do_not_validate_themselves(tmp_path: Path) -> None:
    text = (RECIPES / "wang2022.toml").read_text(encoding="utf-8")
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace("held_out = true", "held_out = false"))
    with pytest.raises(TrainingInvalid, match="composed of the same cells"):
        load_recipe(path)


@pytest.mark.parametrize("kinds", [[], [0, 1], [-1]])
def test_a_field_is_not_taken_for_a_single_cell(kinds: list[int]) -> None:
    box = np.array([[0, 0, 9, 9]] * len(kinds), np.float32).reshape(-1, 4)
    image = AnnotatedImage(
        "field.png", "field", (20, 20), lambda: np.zeros((20, 20, 3), np.uint8), box,
        np.array(kinds, np.int64),
    )  # fmt: skip
    with pytest.raises(TrainingInvalid, match=r"field.png: \d objects are marked"):
        only_kind(image)


def test_neighbours_told_apart_by_distance_stay_so(recipe: Path) -> None:
    """Two round cells a third of their width apart overlap by half, and are two."""
    fields = _fields(load_recipe(recipe), "detector", "detector.onnx", {"score_threshold": 0.5})
    assert fields["nms_iou"] == 1.0
