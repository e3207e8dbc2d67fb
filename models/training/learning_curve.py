"""Would more annotated images help? What a recipe reaches with a part of its images, and with all.

Where the curve still rises at its end, more images would raise it further; where it is flat, they
would not, and network, scale or labels are the limit.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from models.errors import TrainingInvalid
from models.training.annotated import AnnotatedImage
from models.training.loop import train
from models.training.recipe import Recipe
from models.training.sources import ImageSets, ReadDicom, load_sources, no_archive
from models.training.splits import grouped_folds
from models.training.tasks import task_of

PARTS = 4
CURVE = "learning_curve"


@dataclass(frozen=True, slots=True)
class Point:
    """One training.

    Attributes
    ----------
    fold
        Held out, and measured on as a whole.
    images
        Trained on.
    measured_on
        Images of the fold.
    measure
        What the paper chooses its best model by.
    value
        At the last step: no image that is measured had a say in the weights.
    """

    fold: int
    images: int
    measured_on: int
    measure: str
    value: float


def learning_curve(
    recipe: Recipe, console: Console, read_dicom: ReadDicom = no_archive
) -> tuple[list[Point], list[Path]]:
    """Train on one, two, three and four quarters of the groups outside each fold.

    Quarters hold each type's cells as evenly as folds do, and a larger part holds the smaller ones.
    Each training has a folder of its own under the recipe's, so that the command goes on where it
    was stopped.

    Parameters
    ----------
    recipe
        With `folds` as a number, and without images of its own to validate with.
    console
    read_dicom

    Returns
    -------
    tuple
        The points, by fold and number of images; ``learning_curve.csv`` and ``.png``.

    Raises
    ------
    TrainingInvalid
        The recipe or its images cannot be used so.
    """
    if recipe.folds == "each" or recipe.validation:
        raise TrainingInvalid(
            f"{recipe.name}: a learning curve is measured on every fold: give 'folds' as a number,"
            " and no 'validation'."
        )
    points = []
    for fold, images in parts_of(load_sources(recipe.data, recipe, read_dicom), recipe):
        measure, value = _trained(recipe, images, console)
        trained_on, measured_on = len(images.train), len(images.test)
        points.append(Point(fold, trained_on, measured_on, measure, value))
        console.print(
            f"{recipe.name}: fold {fold}, {trained_on} images: {measure} {value:.3f}",
            highlight=False,
        )
    written = [recipe.out / f"{CURVE}.csv", recipe.out / f"{CURVE}.png"]
    _write(points, written[0])
    draw(points, recipe.name, written[1])
    return points, written


def parts_of(images: Sequence[AnnotatedImage], recipe: Recipe) -> Iterator[tuple[int, ImageSets]]:
    """Fold, and images: for each fold growing parts of the others, which hold the smaller ones."""
    types, seed = len(recipe.types), recipe.seed
    fold_of = grouped_folds(images, types, int(recipe.folds), seed)
    for fold in range(int(recipe.folds)):
        held_out = [images[int(row)] for row in np.flatnonzero(fold_of == fold)]
        others = [images[int(row)] for row in np.flatnonzero(fold_of != fold)]
        part_of = grouped_folds(others, types, PARTS, seed)
        for parts in range(PARTS):
            taken = [others[int(row)] for row in np.flatnonzero(part_of <= parts)]
            yield fold, ImageSets(taken, held_out, held_out)


def _trained(recipe: Recipe, images: ImageSets, console: Console) -> tuple[str, float]:
    """What the paper measures, after the last step.

    The folder is of these very images: with others, nothing is gone on with.
    """
    folder = recipe.out / CURVE / images.digest[:16]
    task = task_of(recipe, images)
    trained = train(task, replace(recipe, out=folder, keep="last"), images, console)
    return task.best_by, task.measure(torch.device(trained.device))[task.best_by]


def _write(points: Sequence[Point], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(points[0])))
        writer.writeheader()
        writer.writerows(map(asdict, points))


def draw(points: Sequence[Point], name: str, path: Path) -> None:
    """Folds thin, their mean (every measured image counts alike) thick."""
    folds = [list(each) for _, each in groupby(points, attrgetter("fold"))]
    images = np.array([[point.images for point in fold] for fold in folds])
    value = np.array([[point.value for point in fold] for fold in folds])
    mean = np.average(value, axis=0, weights=[fold[0].measured_on for fold in folds])
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(images.T, value.T, color="0.75", lw=1)
    axes.plot(images.mean(axis=0), mean, marker="o", lw=2)
    for place in zip(images.mean(axis=0), mean, strict=True):
        axes.annotate(
            f"{place[1]:.3f}", place, xytext=(0, 8), textcoords="offset points", ha="center"
        )
    axes.set(
        xlabel="images trained on",
        ylabel=points[0].measure.replace("_", " "),
        ylim=(0, 1.02),
        title=f"{name}: {len(folds)} folds by group, {sum(f[0].measured_on for f in folds)} images",
    )
    figure.savefig(path, dpi=110, metadata={"Software": None})
