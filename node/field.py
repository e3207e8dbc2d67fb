"""``marrow-node field``: the cells of one camera field, printed and drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dicom_io.errors import ConfigurationInvalid
from dicom_io.field_image import FieldImage, read_field_image
from models.cell_types import CELL_TYPES
from models.differential import count_differential
from models.fields import find_in_field
from models.package import ModelPackage, find_package
from models.records import Cells, Differential
from node.config import Settings
from node.networks import open_sessions


@dataclass(frozen=True, slots=True, eq=False)
class FieldResult:
    """What was found in one field.

    Attributes
    ----------
    image
    um_per_px
        The scale used.
    cells
    differential
        Of this field alone: far too few cells for a diagnosis.
    package
    """

    image: FieldImage
    um_per_px: float
    cells: Cells
    differential: Differential
    package: ModelPackage


def analyse_field(settings: Settings, path: Path, um_per_px: float | None) -> FieldResult:
    """Find and count the cells of one image.

    Raises
    ------
    ConfigurationInvalid
        Neither the file nor the caller says how large a pixel is.
    InputError, ModelError
        The file or the package cannot be used.
    """
    image = read_field_image(path)
    scale = um_per_px or image.um_per_px
    if scale is None:
        raise ConfigurationInvalid(
            f"{path} does not say how large its pixels are: name it with --um-per-px."
        )
    package = find_package(settings.model.name, settings.model.folders)
    cells = find_in_field(image.rgb, scale, package, open_sessions(settings, package))
    tiles = int(cells.tile.max(initial=0)) + 1
    differential = count_differential(cells, tiles, package.manifest.differential)
    return FieldResult(image, scale, cells, differential, package)


def field_as_json(result: FieldResult) -> dict[str, Any]:
    """What ``field --json`` prints; boxes are in pixels of the image."""
    cells, counted = result.cells, result.differential
    manifest = result.package.manifest
    return {
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "digest": result.package.digest,
            "intended_use": manifest.intended_use,
        },
        "um_per_px": result.um_per_px,
        "size_px": [result.image.rgb.shape[1], result.image.rgb.shape[0]],
        "cells": [
            {
                "type": cells.classes[label],
                "box_px": [round(float(edge), 2) for edge in box],
                "score": round(float(score), 4),
                "probability": round(float(probability[label]), 4),
            }
            for label, box, score, probability in zip(
                cells.label.tolist(), cells.box_px, cells.score, cells.probability, strict=True
            )
        ],
        "count": {
            key: int(count) for key, count in zip(counted.classes, counted.count, strict=True)
        },
        "me_ratio": counted.me_ratio,
    }


def draw_field(result: FieldResult, path: Path) -> None:
    """The image with a box around every cell, in its type's colour, and a legend with counts.

    Raises
    ------
    ConfigurationInvalid
        The path's suffix is not PNG's.
    """
    if path.suffix.lower() != ".png":
        raise ConfigurationInvalid(f"{path}: the picture is written as PNG: name it .png.")
    height, width = result.image.rgb.shape[:2]
    figure = Figure(figsize=(10, 10 * height / width + 0.8), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(result.image.rgb)
    cells = result.cells
    for label, (x0, y0, x1, y1) in zip(cells.label.tolist(), cells.box_px, strict=True):
        colour = CELL_TYPES[cells.classes[label]].colour
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5)
        )
    counted = np.bincount(cells.label, minlength=len(cells.classes))
    shown = [row for row in np.argsort(-counted, kind="stable") if counted[row]]
    handles = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=CELL_TYPES[cells.classes[row]].colour)
        for row in shown
    ]
    names = [f"{CELL_TYPES[cells.classes[row]].name} {counted[row]}" for row in shown]
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    axes.set_axis_off()
    manifest = result.package.manifest
    axes.set_title(f"{manifest.name} {manifest.version}: {manifest.intended_use}", fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": None})
