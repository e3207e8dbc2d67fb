"""What a package finds in annotated images, by the code that the node runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.classify import Sessions
from models.detection_table import LEAST_SCORE, Detect, best_threshold, look_at
from models.fields import find_in_field
from models.package import ModelPackage, load_package
from models.records import Float32, UInt8
from models.session import open_session
from models.training.annotated import AnnotatedImage
from models.training.recipe import Recipe


def node_threshold(recipe: Recipe, folder: Path, images: Sequence[AnnotatedImage]) -> float:
    """Score from which on F1 is highest over the cells that the node finds.

    It is another one than over what the network says of the same images alone: the node looks at
    them in tiles, with ground around them, and stitches.

    Parameters
    ----------
    recipe
    folder
        Of its package, whose detector is of the recipe's types.
    images
        To choose with.
    """
    package = reporting_all(load_package(folder))
    sessions: Sessions = {"detector": open_session(package, "detector", "auto", recipe.threads)}
    return best_threshold(
        look_at(images, finder(recipe.um_per_px, package, sessions)), len(recipe.types)
    )


def finder(um_per_px: float, package: ModelPackage, sessions: Sessions) -> Detect:
    """The cells of an image as the node finds them, but for those that it does not name.

    Parameters
    ----------
    um_per_px
        Of the images.
    package
    sessions
        Detector of `package`, and classifier where it has one.
    """
    types = len(package.manifest.types)

    def detect(rgb: UInt8) -> tuple[Float32, Float32, Float32]:
        cells = find_in_field(rgb[0], um_per_px, package, sessions)
        named = cells.label < types
        box = cells.box_px[named].astype(np.float32)
        return box[None], cells.score[named][None], cells.probability[named, :types][None]

    return detect


def reporting_all(package: ModelPackage) -> ModelPackage:
    """The package, had it no threshold to speak of."""
    manifest = package.manifest
    detector = replace(manifest.detector, score_threshold=LEAST_SCORE)
    return replace(package, manifest=replace(manifest, detector=detector))
