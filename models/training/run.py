"""One training from its recipe to its package: split, train, measure, export, report."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from models.detection_report import write_report
from models.training.as_the_node import node_threshold
from models.training.loop import METRICS, Task, train
from models.training.packing import (
    export_stage,
    lent_stages,
    pack,
    set_threshold,
    stage_of,
    without_package,
)
from models.training.recipe import Recipe
from models.training.sources import ImageSets, ReadDicom, no_archive, split_images
from models.training.tasks import task_of

# Which images a training was of: a package is not measured on others by the same recipe.
IMAGES = "images.sha256"


def run(recipe: Recipe, console: Console, read_dicom: ReadDicom = no_archive) -> dict[str, Any]:
    """Train what a recipe says and write everything into its folder.

    Parameters
    ----------
    recipe
    console
        Where progress is shown.
    read_dicom
        Reads sources of the format dicom.

    Returns
    -------
    dict
        What was measured on the test images, and where package and report lie.

    Raises
    ------
    TrainingInvalid
        The data or the recipe cannot be used.
    """
    # What will be missing at the end is said at the beginning.
    lent_stages(recipe)
    images = split_images(recipe, read_dicom)
    for line in (*remarks(recipe, images), *without_package(recipe)):
        console.print(f"{recipe.name}: {line}", highlight=False)
    task, metrics = trained_and_measured(recipe, images, console)
    (recipe.out / IMAGES).write_text(images.digest + "\n")
    export_stage(recipe, task.network.cpu(), images.test, metrics)
    package = pack(recipe)
    if package is not None and stage_of(recipe) == "detector":
        set_threshold(recipe, node_threshold(recipe, package, images.validation))
        package = pack(recipe)
    return {
        "name": recipe.name,
        "stage": stage_of(recipe),
        "package": None if package is None else str(package),
        "report": str(recipe.out / "evaluation" / "report.md"),
        "metrics": metrics,
    }


def trained_and_measured(
    recipe: Recipe, images: ImageSets, console: Console
) -> tuple[Task, dict[str, Any]]:
    """Train on some images and measure on others; the report lies in the recipe's folder.

    Returns
    -------
    tuple
        The task with its trained network, and the figures on the test images.

    Raises
    ------
    TrainingInvalid
        As :func:`.loop.train`.
    """
    task = task_of(recipe, images)
    trained = train(task, recipe, images, console)
    measured, findings = task.report(torch.device(trained.device))
    metrics = {"trained": asdict(trained), **measured}
    title = f"{recipe.name}: {recipe.system} on {len(images.test)} test images"
    write_report(recipe.out / "evaluation", title, metrics, recipe.types, findings)
    draw_learning(recipe.out / METRICS, task.best_by, recipe.out / "evaluation" / "learning.png")
    return task, metrics


def remarks(recipe: Recipe, images: ImageSets) -> Iterator[str]:
    """How many images there are, and what of them a reader of the result has to know."""
    yield (
        f"{len(images.train)} images to train on, {len(images.validation)} to choose with,"
        f" {len(images.test)} to test on"
    )
    absent = [
        name
        for kind, name in enumerate(recipe.types)
        if not any((image.kind == kind).any() for image in images.train)
    ]
    if absent:
        yield f"no image to train on shows {absent}"
    apart = {image.group for image in images.train}
    if not recipe.validation and len(apart) == len(images.train):
        yield "every image counts as a slide of its own: name what belongs together with 'group'"


def draw_learning(metrics: Path, best_by: str, path: Path) -> None:
    """The loss of every step, and the measure that the best model is chosen by."""
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    steps = [int(row["step"]) for row in rows]
    axes.plot(steps, [float(row["loss"]) for row in rows], color="0.6", label="loss")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    right = axes.twinx()
    chosen = [(int(row["step"]), float(row[best_by])) for row in rows if row.get(best_by)]
    right.plot(*zip(*chosen, strict=True), marker="o", label=best_by)
    right.set(ylabel=best_by.replace("_", " "), ylim=(0, 1.02))
    figure.savefig(path, dpi=110, metadata={"Software": None})
