"""What the command line calls of the training code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.classify import Sessions
from models.detection_evaluation import evaluation_table
from models.detection_report import write_report
from models.detection_table import look_at
from models.errors import TrainingInvalid
from models.fields import accepted_places, find_in_field
from models.package import ModelPackage
from models.records import Float32, UInt8
from models.region_table import boxes_as_places, region_table
from models.training.annotated import AnnotatedImage
from models.training.learning_curve import learning_curve
from models.training.recipe import Recipe, load_recipe
from models.training.run import run
from models.training.sources import ReadDicom, no_archive, split_images

__all__ = ["AnnotatedImage", "evaluate_package", "learning_curve", "load_recipe", "run"]


def evaluate_package(
    recipe: Recipe,
    package: ModelPackage,
    sessions: Sessions,
    folder: Path,
    read_dicom: ReadDicom = no_archive,
    manual: Mapping[str, float] | None = None,
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
        A manual differential of the same slides, by type.

    Returns
    -------
    tuple
        The figures, and the files written into `folder`.

    Raises
    ------
    TrainingInvalid
        The recipe's types are not all known to the package.
    """
    test = split_images(recipe, read_dicom).test
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
    images = [_renamed(image, recipe.types, types) for image in test]

    def detect(rgb: UInt8) -> tuple[Float32, Float32, Float32]:
        cells = find_in_field(rgb[0], recipe.um_per_px, package, sessions)
        probability = cells.probability[:, : len(types)]
        return cells.box_px[None].astype(np.float32), cells.score[None], probability[None]

    findings = look_at(images, detect)
    threshold = package.manifest.detector.score_threshold
    table = {
        **identity,
        **evaluation_table(findings, types, threshold, recipe.seed, manual),
    }
    return table, write_report(folder, title, table, types, findings)


def _regions(
    recipe: Recipe, test: Sequence[AnnotatedImage], package: ModelPackage, sessions: Sessions
) -> dict[str, Any]:
    """Where the localiser accepts the test images, against their regions or accepted tiles."""
    found, truth = [], []
    for image in test:
        places, side_px = accepted_places(image.read(), recipe.um_per_px, package, sessions)
        # Of two types of tiles the second is the appropriate one; regions are of one type.
        inside = image.box_px[image.kind == len(recipe.types) - 1]
        found.append(places)
        truth.append(boxes_as_places(inside, (places.shape[0], places.shape[1]), side_px))
    return region_table(found, truth, [image.group for image in test], recipe.seed)


def _renamed(image: AnnotatedImage, names: Sequence[str], types: Sequence[str]) -> AnnotatedImage:
    order = np.array([list(types).index(name) for name in names], np.int64)
    return replace(image, kind=order[image.kind])
