"""What the command line calls of the training code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.detection_report import write_report
from models.detection_table import Findings, detection_table, look_at, map_interval
from models.errors import TrainingInvalid
from models.fields import Sessions, find_in_field
from models.package import ModelPackage
from models.records import Float32, UInt8
from models.training.annotated import AnnotatedImage
from models.training.recipe import Recipe, load_recipe
from models.training.run import run
from models.training.sources import ReadDicom, no_archive, split_images

__all__ = ["AnnotatedImage", "evaluate_package", "load_recipe", "run"]


def evaluate_package(
    recipe: Recipe,
    package: ModelPackage,
    sessions: Sessions,
    folder: Path,
    read_dicom: ReadDicom = no_archive,
) -> tuple[dict[str, Any], list[Path]]:
    """Measure a package on the test images of a recipe, as the node runs it.

    Returns
    -------
    tuple
        The figures, and the files written into `folder`.

    Raises
    ------
    TrainingInvalid
        The recipe's types are not all known to the package.
    """
    types = package.manifest.types
    missing = sorted(set(recipe.types) - set(types))
    if missing:
        raise TrainingInvalid(
            f"Model package {package.manifest.name} does not know the types {missing} of"
            f" {recipe.name}: evaluate one that does."
        )
    test = split_images(recipe, read_dicom).test
    images = [_renamed(image, recipe.types, types) for image in test]

    def detect(rgb: UInt8) -> tuple[Float32, Float32, Float32]:
        cells = find_in_field(rgb[0], recipe.um_per_px, package, sessions)
        probability = cells.probability[:, : len(types)]
        return cells.box_px[None].astype(np.float32), cells.score[None], probability[None]

    findings: Findings = look_at(images, detect)
    threshold = package.manifest.detector.score_threshold
    table = {
        "model": package.manifest.name,
        "digest": package.digest,
        **detection_table(findings, types, threshold),
        "map_50_interval": list(map_interval(findings, len(types), recipe.seed)),
    }
    title = f"{package.manifest.name} on {len(test)} test images of {recipe.name}"
    return table, write_report(folder, title, table, types, findings)


def _renamed(image: AnnotatedImage, names: Sequence[str], types: Sequence[str]) -> AnnotatedImage:
    order = np.array([list(types).index(name) for name in names], np.int64)
    return replace(image, kind=order[image.kind])
