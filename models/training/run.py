"""One training from its recipe to its package: split, train, measure, export, report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from models.agreement_statistics import cohens_kappa
from models.cell_types import CELL_TYPES
from models.detection_report import write_report
from models.detection_table import (
    Findings,
    best_threshold,
    detection_table,
    look_at,
    map_interval,
)
from models.records import Float64, Int64
from models.training.annotated import AnnotatedImage
from models.training.loop import METRICS, Task, train
from models.training.packing import export_stage, pack, stage_of
from models.training.recipe import Recipe
from models.training.sources import ReadDicom, no_archive, split_images
from models.training.tasks import (
    SingleCellTask,
    TileTask,
    detect_with,
    task_of,
    tile_measures,
)


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
    images, validation, test = split_images(recipe, read_dicom)
    console.print(
        f"{recipe.name}: {len(images)} images to train on, {len(validation)} to choose with,"
        f" {len(test)} to test on",
        highlight=False,
    )
    task = task_of(recipe, images, validation)
    trained = train(task, recipe, console)
    metrics, findings = measured(task, recipe, validation, test)
    metrics = {"trained": asdict(trained), **metrics}
    title = f"{recipe.name}: {recipe.system} on {len(test)} test images"
    write_report(recipe.out / "evaluation", title, metrics, recipe.types, findings)
    draw_learning(recipe.out / METRICS, task.best_by, recipe.out / "evaluation" / "learning.png")
    export_stage(recipe, task.network, test, metrics)
    package = pack(recipe)
    return {
        "name": recipe.name,
        "stage": stage_of(recipe),
        "package": None if package is None else str(package),
        "report": str(recipe.out / "evaluation" / "report.md"),
        "metrics": metrics,
    }


def measured(
    task: Task,
    recipe: Recipe,
    validation: Sequence[AnnotatedImage],
    test: Sequence[AnnotatedImage],
) -> tuple[dict[str, Any], Findings | None]:
    """Measure the best network on the test images; thresholds are chosen on the validation's."""
    cpu = torch.device("cpu")
    task.network.cpu().eval()
    if isinstance(task, SingleCellTask):
        return classification_table(*task.said_of(test), recipe.types), None
    if isinstance(task, TileTask):
        chosen = _accepting(*task.probabilities_of(validation, cpu))
        probability, true = task.probabilities_of(test, cpu)
        said = probability >= chosen
        table = classification_table(said.astype(np.int64), true, recipe.types)
        return {"threshold": chosen, **table, **tile_measures(said, true == 1)}, None
    detect = detect_with(task.network, cpu)
    types = len(recipe.types)
    chosen = best_threshold(look_at(validation, detect), types)
    findings = look_at(test, detect)
    interval = map_interval(findings, types, recipe.seed)
    table = detection_table(findings, recipe.types, chosen)
    return {**table, "map_50_interval": list(interval)}, findings


def _accepting(probability: Float64, true: Int64) -> float:
    """Probability from which accepted tiles have the best F1."""
    candidates = np.unique(probability)
    called = probability[None] >= candidates[:, None]
    right = (called & (true == 1)).sum(1)
    f1_of = 2 * right / np.maximum(called.sum(1) + (true == 1).sum(), 1)
    return round(float(candidates[f1_of.argmax()]), 4)


def classification_table(said: Int64, true: Int64, types: Sequence[str]) -> dict[str, Any]:
    """Accuracy, recall and precision of single cells, and with neighbouring stages as right."""
    confusion = np.zeros((len(types), len(types)), np.int64)
    np.add.at(confusion, (true, said), 1)
    near = np.array([[a == b or _neighbours(a, b) for b in types] for a in types])
    shown, called = confusion.sum(1), confusion.sum(0)
    right = np.diag(confusion)
    return {
        "cells": len(true),
        "accuracy": round(float(right.sum() / max(len(true), 1)), 4),
        "accuracy_with_neighbouring_stage": round(
            float(confusion[near].sum() / max(len(true), 1)), 4
        ),
        "mean_recall": round(float((right[shown > 0] / shown[shown > 0]).mean()), 4),
        "kappa": cohens_kappa(confusion),
        "types": {
            name: {
                "cells": int(shown[row]),
                "recall": round(float(right[row] / shown[row]), 4),
                "precision": round(float(right[row] / max(called[row], 1)), 4),
            }
            for row, name in enumerate(types)
            if shown[row]
        },
        "confusion": confusion.tolist(),
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


def _neighbours(first: str, second: str) -> bool:
    return first in CELL_TYPES and second in CELL_TYPES[first].neighbours
