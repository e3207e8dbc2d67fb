"""One training, as a TOML file says it: which system, on which data, how long."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from models.errors import TrainingInvalid
from models.manifest import UNCLASSIFIED

_STRICT = ConfigDict(extra="forbid")
System = Literal["wang2022", "tayebi2021", "liu2022", "choi2017"]
Stage = Literal["cells", "regions", "tiles"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_STRICT)
class Source:
    """A folder of annotated images, or images composed of this repository's cells.

    Attributes
    ----------
    format
        ``pascal_voc``, ``coco``, ``yolo``, ``crops``; ``dicom`` for a slide and its annotations in
        an archive; or ``smear`` for composed images that suit
        the stage that is trained (for choi2017, the repository's single cells as published).
    folder
        Where images (and labels) lie; not for ``smear`` and ``dicom``.
    um_per_px
        Of its images; not for ``smear`` and ``dicom``.
    file
        The COCO file; only with that format.
    types
        Names of YOLO's class numbers, in their order; only with that format.
    group
        Regular expression whose first group, in a file's name, is its slide, patient or
        near-duplicate group. Without one, ``groups.csv`` in `folder` says it (columns file and
        group); without that, each file is a group of its own.
    leave_out
        Parts of file names that are not used.
    names
        What the labels of this source call a type → what the recipe does.
    ignore
        Types of this source's labels that are left out, as if nothing were marked there.
    pacs_url
        Archive of a ``dicom`` source; empty for that of the node's settings.
    study_uid, series_uid, annotation_series_uid
        Of a ``dicom`` source: the slide, and the ANN series in the same study.
    images
        How many are composed; only for ``smear``.
    held_out
        Compose of the cells that no shipped model has seen; only for ``smear``.
    """

    format: Literal["pascal_voc", "coco", "yolo", "crops", "dicom", "smear"]
    folder: Path | None = None
    um_per_px: Positive | None = None
    file: Path | None = None
    types: tuple[str, ...] = ()
    group: str = ""
    leave_out: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    pacs_url: str = ""
    study_uid: str = ""
    series_uid: str = ""
    annotation_series_uid: str = ""
    images: Annotated[int, Field(ge=0)] = 0
    held_out: bool = False


@dataclass(frozen=True, config=_STRICT)
class Optimisation:
    """How weights are moved.

    Attributes
    ----------
    kind
        ``sgd`` with momentum, or ``adamw``.
    learning_rate, weight_decay, momentum
    schedule
        ``steps`` multiplies by `factor` at each of `milestones`; ``cosine`` falls to 0.
    warm_up_steps
        Steps over which the learning rate rises.
    milestones
        Shares of all steps.
    factor
    clip_norm
        Longest gradient; 0 for any.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.001
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Share = 0.9
    schedule: Literal["steps", "cosine"] = "steps"
    warm_up_steps: Annotated[int, Field(ge=0)] = 0
    milestones: tuple[Share, ...] = (0.8, 0.9)
    factor: Share = 0.1
    clip_norm: Annotated[float, Field(ge=0)] = 10.0


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """A training.

    Attributes
    ----------
    system
        ``wang2022``, ``tayebi2021``, ``liu2022`` or ``choi2017``.
    name
        Of the model package.
    out
        Folder for checkpoint, metrics and package.
    types
        In the order of the outputs.
    data
        What is trained on, and split unless `validation` is given.
    steps
        Batches.
    stage
        ``cells``; ``regions`` for the low-magnification network of wang2022; ``tiles`` for the tile
        classifier of tayebi2021.
    validation
        Images to choose with, instead of a split; measured on as well where `test` is empty.
    test
        Images to measure on, beside `validation`.
    folds, held_out
        Of the split by group; the held-out fold is divided 70 to 30 into validation and test.
        ``each`` leaves out one group (slide) at a time, by name, and tests on all of it; as nothing
        is left to choose with, the last step's weights are kept.
    batch
        Images of a batch.
    mini_batches
        Parts that a batch is run in, one after the other, where memory does not hold it; weights
        are moved once for all of them, and each counts alike. Tayebi et al. (2021), §4.4: 16 of 64.
    size_px
        Side of training images, in pixels of the network's scale.
    um_per_px
        The network's scale.
    sampled_grid
        Rows and columns of a grid over the slide, only with the stage ``tiles``: the node then
        looks at the tile in the middle of each of its cells, and at no other. Tayebi et al. (2021),
        §4.3: 15 and 20. None to look at all tiles.
    together_with
        What gives the other stages of the package: the name of a package, or the folder `out` of
        another training.
    keep
        ``best``: the weights that are best by the paper's measure on the validation images;
        ``last``: those of the last step.
    init
        ``scratch``, or a safetensors file with weights to begin with: of an earlier training, or
        of torchvision's ResNet (wang2022, liu2022), DenseNet-121 (tiles of tayebi2021) or VGG-16
        (choi2017) for ImageNet.
    seed
    evaluate_every
        Steps between measurements on the validation images; 0 for ten times in all.
    checkpoint_every
        Steps.
    workers
        Processes that read and augment images.
    threads
        Of PyTorch on a CPU; 0 for all cores.
    network
        Settings of the network, as its constructor names them.
    optimisation
        What a file leaves out of it is the paper's; None for all of it.
    """

    system: System
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    out: Path
    types: Annotated[tuple[str, ...], Field(min_length=1)]
    data: Annotated[tuple[Source, ...], Field(min_length=1)]
    steps: Count
    stage: Stage = "cells"
    validation: tuple[Source, ...] = ()
    test: tuple[Source, ...] = ()
    folds: Annotated[int, Field(ge=2)] | Literal["each"] = 5
    held_out: Annotated[int, Field(ge=0)] = 0
    batch: Count = 4
    mini_batches: Count = 1
    size_px: Annotated[int, Field(ge=32)] = 512
    um_per_px: Positive = 0.25
    sampled_grid: tuple[Count, Count] | None = None
    together_with: str = ""
    keep: Literal["best", "last"] = "best"
    init: str = "scratch"
    seed: Annotated[int, Field(ge=0)] = 0
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Count = 100
    workers: Annotated[int, Field(ge=0)] = 1
    threads: Annotated[int, Field(ge=0)] = 0
    network: Mapping[str, float | int | bool] = field(default_factory=dict)
    optimisation: Optimisation | None = None

    @property
    def mini_batch(self) -> int:
        """Images that are run at a time."""
        return self.batch // self.mini_batches


# What the papers say; where one is silent, the value is ours and said so in models/training.
PAPERS: Mapping[str, Optimisation] = {
    # §3.2: "learning rate of 5e-4 and the weight decay of 1e-4". It falls every "10 times of the
    # number of patches": the milestones of a training of 30 times as many steps, which is ours, as
    # are the factor (the paper's "10%" reads as 0.1 or 0.9) and momentum.
    "wang2022": Optimisation(learning_rate=5e-4, weight_decay=1e-4, milestones=(1 / 3, 2 / 3)),
    # §4.4: momentum 0.949, 0.001, steps at 0.8 and 0.9 of the schedule, warm-up.
    "tayebi2021": Optimisation(momentum=0.949, weight_decay=5e-4, warm_up_steps=1000),
    # "Training details": momentum 0.9, 0.001, 0.0001, × 0.3 every 4 of 20 rounds.
    "liu2022": Optimisation(milestones=(0.2, 0.4, 0.6, 0.8), factor=0.3),
    # The paper names stochastic gradient descent alone; the rest is ours.
    "choi2017": Optimisation(
        learning_rate=0.02, weight_decay=5e-4, schedule="cosine", warm_up_steps=50
    ),
}
# Tayebi et al. (2021), §4.3: AdamW, 1e-4, 5e-4. The paper names no schedule: the cosine is ours.
TILE_CLASSIFIER = Optimisation(
    kind="adamw", learning_rate=1e-4, weight_decay=5e-4, schedule="cosine"
)


def load_recipe(path: Path) -> Recipe:
    """Read a training's TOML file; relative paths in it are relative to it.

    Raises
    ------
    TrainingInvalid
        Naming the file and the field.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrainingInvalid(f"{path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingInvalid(f"{path} is not TOML: {error}.") from error
    placed = _completed(_placed(values, path.parent))
    try:
        recipe = TypeAdapter(Recipe).validate_python(placed)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TrainingInvalid(f"{path}: field {where}: {first['msg']}; correct it.") from error
    _check(recipe, path)
    if recipe.folds == "each" and not recipe.validation:
        return replace(recipe, keep="last")
    return recipe


def optimisation_of(recipe: Recipe) -> Optimisation:
    """The recipe's own, or the paper's."""
    return recipe.optimisation or _of_paper(recipe.system, recipe.stage)


def _of_paper(system: str, stage: str) -> Optimisation:
    return TILE_CLASSIFIER if stage == "tiles" else PAPERS[system]


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """What a file says of the optimisation, and the paper's where it says nothing."""
    own, system = values.get("optimisation"), str(values.get("system"))
    if not isinstance(own, dict) or system not in PAPERS:
        return values
    paper = asdict(_of_paper(system, values.get("stage", "cells")))
    return {**values, "optimisation": {**paper, **own}}


def _placed(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Every path of the file, relative to its folder."""

    def moved(table: dict[str, Any], *names: str) -> dict[str, Any]:
        return {
            key: folder / value if key in names and isinstance(value, str) else value
            for key, value in table.items()
        }

    placed = moved(values, "out")
    for key in ("init", "together_with"):  # a path, or a word
        named = placed.get(key)
        if isinstance(named, str) and named != "scratch" and (folder / named).exists():
            placed[key] = str(folder / named)
    for key in ("data", "validation", "test"):
        if isinstance(placed.get(key), list):
            placed[key] = [
                moved(each, "folder", "file") if isinstance(each, dict) else each
                for each in placed[key]
            ]
    return placed


def _check(recipe: Recipe, path: Path) -> None:
    stages = {"wang2022": ("cells", "regions"), "tayebi2021": ("cells", "tiles")}
    allowed = stages.get(recipe.system, ("cells",))
    if recipe.stage not in allowed:
        raise TrainingInvalid(f"{path}: {recipe.system} has no stage {recipe.stage!r}: {allowed}.")
    if len(set(recipe.types)) != len(recipe.types):
        raise TrainingInvalid(f"{path}: field types names a type twice; correct it.")
    if UNCLASSIFIED in recipe.types:
        raise TrainingInvalid(
            f"{path}: field types names {UNCLASSIFIED!r}, which is what a package says of a cell"
            " that is like no type: leave it out, and name it in the source's 'ignore'."
        )
    if recipe.folds != "each" and recipe.held_out >= recipe.folds:
        raise TrainingInvalid(f"{path}: field held_out must be less than folds, {recipe.folds}.")
    if recipe.sampled_grid is not None and recipe.stage != "tiles":
        raise TrainingInvalid(f"{path}: field sampled_grid goes with the stage tiles only.")
    if recipe.batch % recipe.mini_batches:
        raise TrainingInvalid(
            f"{path}: field batch must be a multiple of mini_batches, {recipe.mini_batches}."
        )
    if recipe.system == "choi2017" and recipe.mini_batch < 2:
        raise TrainingInvalid(
            f"{path}: field batch must hold 2 cells or more for choi2017, whose batch norms take"
            " their means over them."
        )
    if recipe.test and not recipe.validation:
        raise TrainingInvalid(
            f"{path}: field test goes with validation: without both, the data are split."
        )
    for number, source in enumerate((*recipe.data, *recipe.validation, *recipe.test)):
        _check_source(
            source, f"{path}: data source {number + 1} ({source.folder or source.format})"
        )
    _check_composed(recipe, path)


def _check_source(source: Source, where: str) -> None:
    composed = source.format == "smear"
    if composed != (source.images > 0):
        raise TrainingInvalid(f"{where}: 'images' goes with the format smear, and only with it.")
    archived = source.format == "dicom"
    in_folder = not composed and not archived
    if in_folder in (source.folder is None, source.um_per_px is None):
        raise TrainingInvalid(
            f"{where}: 'folder' and 'um_per_px' go with every format but smear and dicom."
        )
    named = (source.study_uid, source.series_uid, source.annotation_series_uid)
    if archived != all(named) or archived != any(named):
        raise TrainingInvalid(
            f"{where}: 'study_uid', 'series_uid' and 'annotation_series_uid' go together, with"
            " the format dicom, and only with it."
        )
    if (source.format == "coco") != (source.file is not None):
        raise TrainingInvalid(f"{where}: 'file' goes with the format coco, and only with it.")
    if (source.format == "yolo") != bool(source.types):
        raise TrainingInvalid(f"{where}: 'types' goes with the format yolo, and only with it.")


def _check_composed(recipe: Recipe, path: Path) -> None:
    # Single cells as published have their groups; images composed of them do not.
    composed = any(source.format == "smear" for source in recipe.data)
    if composed and not recipe.validation and recipe.system != "choi2017":
        raise TrainingInvalid(
            f"{path}: composed images share cells, so no split of them is fair: give a"
            " [[validation]] with held_out = true."
        )
    if any(source.format == "smear" for source in recipe.test):
        raise TrainingInvalid(
            f"{path}: composed images in [[test]] would be of the cells of [[validation]]: name"
            " images of other cells."
        )
    seen = {source.held_out for source in recipe.data if source.format == "smear"}
    again = {source.held_out for source in recipe.validation if source.format == "smear"}
    if seen & again:
        raise TrainingInvalid(
            f"{path}: [[data]] and [[validation]] are composed of the same cells: let held_out be"
            " true in the one and false in the other."
        )
