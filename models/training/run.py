"""One training from its recipe to its package: split, train, measure, export, report."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from models.detection_report import write_report
from models.training.as_the_node import node_threshold
from models.training.loop import METRICS, train
from models.training.packing import export_stage, lent_stages, pack, set_threshold, stage_of
from models.training.recipe import Recipe
from models.training.sources import ReadDicom, no_archive, split_images
from models.training.tasks import task_of


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
    lent_stages(recipe)  # what will be missing at the end is said at the beginning
    images = split_images(recipe, read_dicom)
    console.print(
        f"{recipe.name}: {len(images.train)} images to train on, {len(images.validation)} to choose"
        f" with, {len(images.test)} to test on",
        highlight=False,
    )
    absent = [
        name
        for kind, name in enumerate(recipe.types)
        if not any((image.kind == kind).any() for image in images.train)
    ]
    if absent:
        console.print(f"{recipe.name}: no image to train on shows {absent}", highlight=False)
    task = task_of(recipe, images)
    trained = train(task, recipe, console)
    metrics, findings = task.report(torch.device(trained.device))
    metrics = {"trained": asdict(trained), **metrics}
    title = f"{recipe.name}: {recipe.system} on {len(images.test)} test images"
    write_report(recipe.out / "evaluation", title, metrics, recipe.types, findings)
    draw_learning(recipe.out / METRICS, task.best_by, recipe.out / "evaluation" / "learning.png")
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
