"""What is measured of ``demo-smear``, with the product's own code where it runs in the product."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.composing import CellImage
from models.detect import detect
from models.evaluation import classification_table, match
from models.package import ModelPackage
from models.records import Float32, Int64, Tiles, UInt8
from models.training.crops import CropMaker
from models.training.data import TYPES, Example, load_field
from models.training.type_branch import TypeBranch

FIELD_PX = 192


def fold_confusion(model: TypeBranch, cells: Sequence[CellImage]) -> Int64:
    """Confusion (K, K) of a fold's own cells, each shown in four quarter turns on red cells.

    Rows are true types. Positions are the true ones: this measures types, not finding.
    """
    crops = CropMaker(cells, TYPES, seed=99)
    index = torch.arange(len(cells))
    confusion = np.zeros((len(TYPES), len(TYPES)), np.int64)
    with torch.no_grad():
        for turns in range(4):
            said = model(crops.plain_batch(index, turns)).argmax(1).numpy()
            np.add.at(confusion, (crops.label.numpy(), said), 1)
    return confusion


def type_table(confusion: Int64, cells: Sequence[CellImage]) -> dict[str, Any]:
    """Accuracies over all folds, and recall, precision and groups of each type."""
    table = classification_table(confusion, TYPES)
    groups = {key: len({cell.group for cell in cells if cell.type == key}) for key in TYPES}
    return {
        "accuracy": table["accuracy"],
        "accuracy_with_neighbouring_stage": table["accuracy_with_neighbouring_stage"],
        "macro_recall": table["mean_recall"],
        "cells": len(cells),
        "views_per_cell": 4,
        "types": {
            key: {
                "groups": groups[key],
                "views": row["cells"],
                "recall": row["recall"],
                "precision": row["precision"],
            }
            for key, row in table["types"].items()
        },
        "confusion": table["confusion"],
    }


def field_table(
    images: Sequence[Path],
    session: Callable[[UInt8], Mapping[str, Float32]],
    package: ModelPackage,
) -> dict[str, Any]:
    """White cells of real blood fields at the model's scale: recall and false positives per field.

    Types are not asked: a blood field's white cells are nucleated cells without a type.
    """
    truth = found = hit = 0
    for image in images:
        field = load_field(image, package.manifest.detector.um_per_px)
        boxes = _found_in(field, session, package)
        matches = match(boxes, field.box_px.astype(np.float64), iou=0.5)
        truth, found = truth + len(field.box_px), found + len(boxes)
        hit += len(matches.truth)
    return {
        "fields": len(images),
        "white_cells": truth,
        "recall": round(hit / max(truth, 1), 4),
        "false_positives_per_field": round((found - hit) / max(len(images), 1), 4),
    }


def _found_in(
    field: Example,
    session: Callable[[UInt8], Mapping[str, Float32]],
    package: ModelPackage,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Boxes found in a field, laid in the corner of a white tile."""
    height, width = field.rgb.shape[:2]
    rgb = np.full((1, FIELD_PX, FIELD_PX, 3), 255, np.uint8)
    rgb[0, :height, :width] = field.rgb
    valid = np.zeros((1, FIELD_PX, FIELD_PX), np.bool_)
    valid[0, :height, :width] = True
    tiles = Tiles(rgb, np.zeros((1, 2)), np.ones(2), valid)
    found = detect(tiles, session, package).box_tile_px.astype(np.float64)
    inside = ((found[:, :2] + found[:, 2:]) / 2 < (width, height)).all(1)
    limits = np.array([width, height, width, height], np.float64)
    return np.asarray(np.clip(found[inside], 0, limits), dtype=np.float64)
