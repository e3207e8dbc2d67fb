"""The paper's own protocol: train once for every fold that is held out, and take all together."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from models.detection_report import draw_confusion
from models.errors import TrainingInvalid
from models.records import Int64
from models.training.recipe import Recipe
from models.training.run import remarks, trained_and_measured
from models.training.sources import ReadDicom, load_sources, no_archive, parted
from models.training.splits import leave_one_out

FOLDS = "folds"


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One training.

    Attributes
    ----------
    number
        Of the fold that was held out.
    groups
        Slides, patients or near-duplicate groups that were tested on.
    figures
        What was measured on them, by name.
    confusion : (K, K) int64
        Rows are true types, columns reported ones.
    """

    number: int
    groups: tuple[str, ...]
    figures: Mapping[str, float]
    confusion: Int64


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over all folds, each counting alike.

    Attributes
    ----------
    mean
    standard_deviation
        Of the folds (n - 1); None of a single one.
    folds
        How many of them have the figure.
    """

    mean: float
    standard_deviation: float | None
    folds: int


def cross_validate(
    recipe: Recipe, console: Console, read_dicom: ReadDicom = no_archive
) -> tuple[list[Fold], dict[str, Spread], list[Path]]:
    """Hold out every fold in turn: train on the others, measure on its test images.

    Wang et al. (2022), §4.2: ten folds of patches, and leave-one-out by slide; Tayebi et al.
    (2021), §4.4, and Choi et al. (2017): five folds. Each training has a folder of its own under
    the recipe's, so that the command goes on where it was stopped.

    Parameters
    ----------
    recipe
        Without images of its own to validate with; `held_out` is not looked at.
    console
    read_dicom

    Returns
    -------
    tuple
        The folds; every figure over them; ``folds.csv`` and ``folds.png`` (the confusion of all
        folds together) in the recipe's folder.

    Raises
    ------
    TrainingInvalid
        The recipe or its images cannot be used so.
    """
    if recipe.validation:
        raise TrainingInvalid(
            f"{recipe.name}: every fold is held out in turn, so there is nothing to validate with:"
            " leave [[validation]] out."
        )
    images = load_sources(recipe.data, recipe, read_dicom)
    count = recipe.folds
    if count == "each":
        count = int(leave_one_out(images).max(initial=-1)) + 1
    recipes = [
        replace(recipe, held_out=number, out=recipe.out / FOLDS / str(number))
        for number in range(count)
    ]
    # All of them first: what cannot be parted is said before anything is trained.
    parts = [parted(images, own) for own in recipes]
    folds = []
    for number, (own, sets) in enumerate(zip(recipes, parts, strict=True)):
        for line in remarks(own, sets):
            console.print(f"{recipe.name}, fold {number}: {line}", highlight=False)
        _, metrics = trained_and_measured(own, sets, console)
        groups = tuple(sorted({image.group for image in sets.test}))
        folds.append(Fold(number, groups, _figures(metrics), np.array(metrics["confusion"])))
    spreads = spread(folds)
    written = [recipe.out / "folds.csv", recipe.out / "folds.png"]
    _write(folds, spreads, written[0])
    together = np.sum([fold.confusion for fold in folds], axis=0)
    draw_confusion(together, recipe.types, f"{recipe.name}: {count} folds", written[1])
    return folds, spreads, written


def spread(folds: Sequence[Fold]) -> dict[str, Spread]:
    """Mean and standard deviation of every figure, in the order of the first fold that has it."""
    names = dict.fromkeys(name for fold in folds for name in fold.figures)
    values = {name: [f.figures[name] for f in folds if name in f.figures] for name in names}
    return {
        name: Spread(
            float(np.mean(each)), float(np.std(each, ddof=1)) if len(each) > 1 else None, len(each)
        )
        for name, each in values.items()
    }


def _figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _write(folds: Sequence[Fold], spreads: Mapping[str, Spread], path: Path) -> None:
    """A line for each figure: its mean and standard deviation, then each fold."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["figure", "mean", "sd", *(f"fold {fold.number}" for fold in folds)])
        for name, each in spreads.items():
            sd = "" if each.standard_deviation is None else round(each.standard_deviation, 4)
            own = [fold.figures.get(name, "") for fold in folds]
            writer.writerow([name, round(each.mean, 4), sd, *own])
