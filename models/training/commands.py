"""What the command line calls of the training code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.classify import Sessions, classify
from models.detection_evaluation import evaluation_table
from models.detection_report import write_report
from models.detection_table import curve_figures, look_at, type_curve_figures
from models.errors import TrainingInvalid
from models.evaluation import classification_table
from models.fields import accepted_places
from models.package import ModelPackage
from models.records import Detections, Tiles
from models.region_table import boxes_as_places, region_table
from models.training.annotated import AnnotatedImage, uncut
from models.training.as_the_node import finder, reporting_all
from models.training.cross_validation import cross_validate
from models.training.learning_curve import learning_curve
from models.training.recipe import Recipe, load_recipe
from models.training.run import IMAGES, run
from models.training.sources import ImageSets, ReadDicom, no_archive, split_images

__all__ = [
    "AnnotatedImage",
    "cross_validate",
    "evaluate_package",
    "learning_curve",
    "load_recipe",
    "run",
]


def evaluate_package(
    recipe: Recipe,
    package: ModelPackage,
    sessions: Sessions,
    folder: Path,
    read_dicom: ReadDicom = no_archive,
    manual: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Measure a package on the test images of a recipe, as the node runs it.

    Parameters
    ----------
    recipe
        Of cells; or of regions or tiles, which the package's localiser is measured on.
    package
    sessions
        Of the stages that are measured.
    folder
        Where the report goes.
    read_dicom
    manual
        Slide → type → count of a manual differential, an empty slide for all of them together.

    Returns
    -------
    tuple
        The figures, and the files written into `folder`.

    Raises
    ------
    TrainingInvalid
        The recipe's types are not all known to the package.
    """
    images = split_images(recipe, read_dicom)
    _check_unlearnt(recipe, package, images)
    test = images.test
    title = f"{package.manifest.name} on {len(test)} test images of {recipe.name}"
    identity = {"model": package.manifest.name, "digest": package.digest}
    if recipe.stage != "cells":
        table = {**identity, "types": {}, **_regions(recipe, test, package, sessions)}
        return table, write_report(folder, title, table, ("outside", "inside"), None)
    types = package.manifest.types
    missing = sorted(set(recipe.types) - set(types))
    if missing:
        raise TrainingInvalid(
            f"Model package {package.manifest.name} does not know the types {missing} of"
            f" {recipe.name}: evaluate one that does."
        )
    known = [_renamed(image, recipe.types, types) for image in test]
    if recipe.system == "choi2017":
        table = {**identity, **_named(recipe, known, package, sessions)}
        return table, write_report(folder, title, table, types, None)
    slides = [image.group for image in known]
    if manual is not None and (strange := sorted({*manual} - {*slides, ""})):
        raise TrainingInvalid(
            f"The manual count is of {strange[0]}, of which {recipe.name} has no test image: name"
            f" slides as they are grouped ({', '.join(sorted({*slides})[:5])} …)."
        )
    threshold = package.manifest.detector.score_threshold
    reported = look_at(known, finder(recipe.um_per_px, package, sessions))
    # A curve needs what the node would not report, too.
    everything = look_at(known, finder(recipe.um_per_px, reporting_all(package), sessions))
    table = {
        **identity,
        **evaluation_table(reported, types, threshold, recipe.seed, slides, manual),
        **curve_figures(everything, types, recipe.seed, slides),
    }
    for name in table["types"]:
        table["types"][name] |= type_curve_figures(everything, types.index(name))
    return table, write_report(folder, title, table, types, everything)


def _check_unlearnt(recipe: Recipe, package: ModelPackage, images: ImageSets) -> None:
    """Refuse to measure a training's own package by another split than it was trained by."""
    trained_on = recipe.out / IMAGES
    if not package.folder.resolve().is_relative_to(recipe.out.resolve()):
        return
    if trained_on.exists() and trained_on.read_text().strip() != images.digest:
        raise TrainingInvalid(
            f"{recipe.name}: the images or labels to learn from and to choose with are others than"
            f" when {recipe.out} was trained, so test images may be among those it has learnt from:"
            " train again with another 'out', or evaluate by a configuration with another 'out' and"
            " [[validation]] images."
        )


def _named(
    recipe: Recipe,
    images: Sequence[AnnotatedImage],
    package: ModelPackage,
    sessions: Sessions,
) -> dict[str, Any]:
    """What the second stage calls the whole cells of images, each looked at by itself.

    Raises
    ------
    TrainingInvalid
        The package has no second stage.
    """
    if package.manifest.classifier is None or "classifier" not in sessions:
        raise TrainingInvalid(
            f"Model package {package.manifest.name} has no second stage that names single cells:"
            " evaluate one that has."
        )
    types = len(package.manifest.types)
    table = np.zeros((types, types + 1), np.int64)
    scale = replace(package.manifest.detector, um_per_px=recipe.um_per_px)
    as_scaled = replace(package, manifest=replace(package.manifest, detector=scale))
    for image in images:
        rows = uncut(image)
        rgb, cells = image.read()[None], len(rows)
        one = Tiles(rgb, np.zeros((1, 2)), np.ones(2), np.ones(rgb.shape[:3], np.bool_))
        there = Detections(
            tile=np.zeros(cells, np.int32),
            box_tile_px=image.box_px[rows],
            score=np.ones(cells, np.float32),
            probability=np.zeros((cells, len(package.manifest.classes)), np.float32),
            label=np.zeros(cells, np.int32),
            classes=package.manifest.classes,
        )
        named = classify(one, there, sessions["classifier"], as_scaled)
        np.add.at(table, (image.kind[rows], np.minimum(named.label, types)), 1)
    cells = max(int(table.sum()), 1)
    return {
        **classification_table(table[:, :types], package.manifest.types, recipe.seed),
        "unclassified": int(table[:, types].sum()),
        "accuracy_with_unclassified_as_wrong": round(int(np.trace(table)) / cells, 4),
    }


def _regions(
    recipe: Recipe, test: Sequence[AnnotatedImage], package: ModelPackage, sessions: Sessions
) -> dict[str, Any]:
    """Where the localiser accepts the test images, against their regions or accepted tiles."""
    found, truth = [], []
    for image in test:
        places, side_px = accepted_places(image.read(), recipe.um_per_px, package, sessions)
        # Of two types of tiles the second is the appropriate one; regions of any type are inside.
        inside = image.box_px if recipe.stage == "regions" else image.box_px[image.kind == 1]
        found.append(places)
        truth.append(boxes_as_places(inside, (places.shape[0], places.shape[1]), side_px))
    return region_table(found, truth, [image.group for image in test], recipe.seed)


def _renamed(image: AnnotatedImage, names: Sequence[str], types: Sequence[str]) -> AnnotatedImage:
    order = np.array([list(types).index(name) for name in names], np.int64)
    return replace(image, kind=order[image.kind])
