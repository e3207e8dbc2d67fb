"""A finished training → ONNX, its parity with PyTorch, and a model package where it can be one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.utils
import torch
from torch import nn

from models.cell_types import CELL_TYPES
from models.errors import TrainingInvalid
from models.manifest import MANIFEST_FILE, UNCLASSIFIED
from models.package import SHIPPED_PACKAGES
from models.records import UInt8
from models.training.annotated import AnnotatedImage
from models.training.cascade_rcnn import CascadeRcnn
from models.training.dual_stage_cnn import CROP_PX
from models.training.export import export, export_fp16, write_manifest
from models.training.exported import ExportedCells, ExportedRegions, ExportedTiles, ExportedTypes
from models.training.faster_rcnn import FasterRcnn
from models.training.parity import PARITY, parity_of
from models.training.recipe import Recipe, Source

REGION_STRIDE_PX = 16
TILE_PX = 640  # of a detector
_MOST_PROPOSALS = 600  # of a tile: a thousand find the same cells, and take twice as long
_PARITY_IMAGES = 4
OUTPUTS = {
    "detector": ("box_px", "score", "type_probability"),
    "localiser": ("probability",),
    "classifier": ("type_probability",),
}
# Tayebi et al. 2021 give no threshold for χ²; how this one was calibrated stands beside the same
# value of demo-smear, in models/training/__main__.py.
_DIFFERENTIAL = {
    "chi_square_threshold": 1e-6,
    "chi_square_tiles": 10,
    "minimum_cells": 500,
    "unclassified_share_max": 0.10,
}


@dataclass(frozen=True, slots=True)
class Lent:
    """A stage of another package or training.

    Attributes
    ----------
    folder
        Where its files lie.
    fields
        Its entry of a manifest.
    """

    folder: Path
    fields: dict[str, Any]


def stage_of(recipe: Recipe) -> str:
    """Stage of a package that the recipe's network fills."""
    if recipe.system == "choi2017":
        return "classifier"
    return "detector" if recipe.stage == "cells" else "localiser"


def export_stage(
    recipe: Recipe,
    network: nn.Module,
    images: Sequence[AnnotatedImage],
    metrics: Mapping[str, Any],
) -> Path:
    """Write ``<stage>.onnx`` and ``<stage>.json`` (what a manifest says of it) into `recipe.out`.

    And ``<stage>.fp16.onnx``, if 16 bits suffice for the same answers.

    Parameters
    ----------
    recipe
    network
        Trained, in evaluation mode.
    images
        Real images to compare PyTorch and ONNX Runtime on.
    metrics
        What was measured of it; ``score_threshold`` among it for a detector.

    Raises
    ------
    TrainingInvalid
        ONNX Runtime does not repeat PyTorch.
    """
    stage = stage_of(recipe)
    module = _exported(recipe, network)
    path = recipe.out / f"{stage}.onnx"
    export(module, OUTPUTS[stage], path)
    samples = _samples(recipe, stage, images)
    parity = parity_of(module, path, OUTPUTS[stage], samples)
    for name, difference in parity.items():
        if not difference <= PARITY[name]:  # or it is no number
            raise TrainingInvalid(
                f"{path}: '{name}' differs from PyTorch's by {difference:.2g}, more than"
                f" {PARITY[name]}: report this with the recipe."
            )
    fp16, parity_fp16 = export_fp16(path, samples)
    described = {
        "stage": stage,
        "system": recipe.system,
        "types": list(recipe.types),
        "fields": {**_fields(recipe, stage, path.name, metrics), **fp16},
        "metrics": {**metrics, "parity_pytorch_onnx": parity, "parity_fp32_fp16": parity_fp16},
        "training": training_of(recipe),
    }
    _describe(recipe, described)
    return path


def lent_stages(recipe: Recipe) -> dict[str, Lent]:
    """What the package of a recipe takes from what ``together_with`` names; nothing is copied yet.

    Raises
    ------
    TrainingInvalid
        It has no such stage.
    """
    stage = stage_of(recipe)
    if not _makes_a_package(recipe):
        return {}
    others = ("localiser",) if stage == "detector" else ("localiser", "detector")
    return {other: _lent(recipe, other) for other in others}


def without_package(recipe: Recipe) -> Iterator[str]:
    """Say why a training ends in ONNX and a report alone, where it does."""
    strange = sorted(set(recipe.types) - set(CELL_TYPES))
    if stage_of(recipe) == "localiser":
        yield (
            "ends in ONNX and a report; name its folder 'out' as together_with of a training of"
            " cells for a model package"
        )
    elif strange:
        yield (
            f"{strange} are not in the table of cell types (models/cell_types.toml): it ends in"
            " ONNX and a report, and in no model package"
        )


def pack(recipe: Recipe) -> Path | None:
    """Put the stages of several trainings together as a package, where they make one.

    Returns
    -------
    Path
        Folder of the package under `recipe.out`; None for a localiser, which is no package by
        itself, and where a type is none of the table of cell types.

    Raises
    ------
    TrainingInvalid
        What the recipe's ``together_with`` names has no such stage.
    """
    if not _makes_a_package(recipe):
        return None
    stage = stage_of(recipe)
    folder = recipe.out / "package" / recipe.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own = _described(recipe)
    for file in _files(own["fields"]):
        shutil.copy(recipe.out / file, folder)
    stages: dict[str, Any] = {"localiser": None, "detector": None, "classifier": None}
    stages[stage] = own["fields"]
    for other, lent in lent_stages(recipe).items():
        stages[other] = lent.fields
        for file in _files(lent.fields):
            if other == "detector":  # its own types are not asked for: only what finds is taken
                onnx.utils.extract_model(
                    lent.folder / file, folder / file, ["image"], ["box_px", "score"]
                )
            else:
                shutil.copy(lent.folder / file, folder)
    write_manifest(
        folder,
        {
            "schema": 1,
            "name": recipe.name,
            "version": "1.0.0",
            "intended_use": f"Research with {recipe.system}, not for clinical use.",
            "demonstration": True,
            "licence": "Apache-2.0",
            "classes": [*recipe.types, UNCLASSIFIED],
            "stages": stages,
            "differential": {
                **_DIFFERENTIAL,
                "stop_when_converged": recipe.system == "tayebi2021",
            },
            "training": {"system": recipe.system, **own["training"]},
            "metrics": own["metrics"],
        },
    )
    return folder


def set_threshold(recipe: Recipe, score_threshold: float) -> None:
    """Let the exported detector report from another score on, in packages made from now on."""
    own = _described(recipe)
    own["fields"]["score_threshold"] = _as_written(score_threshold)
    _describe(recipe, own)


def _makes_a_package(recipe: Recipe) -> bool:
    return stage_of(recipe) != "localiser" and set(recipe.types) <= set(CELL_TYPES)


def _described(recipe: Recipe) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((recipe.out / f"{stage_of(recipe)}.json").read_text())
    return described


def _describe(recipe: Recipe, described: Mapping[str, Any]) -> None:
    path = recipe.out / f"{stage_of(recipe)}.json"
    path.write_text(json.dumps(described, indent=2) + "\n")


def training_of(recipe: Recipe) -> dict[str, Any]:
    """What a manifest tells about a training, without paths of this machine."""
    return {
        "data": [_named(source) for source in recipe.data],
        "steps": recipe.steps,
        "batch": recipe.batch,
        "mini_batches": recipe.mini_batches,
        "size_px": recipe.size_px,
        "seed": recipe.seed,
        "init": "scratch" if recipe.init == "scratch" else Path(recipe.init).name,
        "network": dict(recipe.network) or "full size",
        "torch": torch.__version__,
    }


def _named(source: Source) -> str:
    if source.folder is None:
        return f"{source.images} images composed of the repository's cells"
    return f"{source.format}: {source.folder.name}"


def _exported(recipe: Recipe, network: nn.Module) -> nn.Module:
    network = network.cpu().eval()
    if isinstance(network, CascadeRcnn | FasterRcnn) and recipe.stage == "cells":
        # So many for each px as in training: a tile of the node holds more cells.
        proposals = network.pyramid.proposals
        larger = (TILE_PX / recipe.size_px) ** 2
        proposals.proposals = max(
            proposals.proposals, min(_MOST_PROPOSALS, round(proposals.proposals * larger))
        )
    if recipe.system == "choi2017":
        return ExportedTypes(network)
    if recipe.stage == "tiles":
        return ExportedTiles(network)
    if recipe.stage == "regions":
        return ExportedRegions(network, REGION_STRIDE_PX)
    return ExportedCells(network)


def _fields(recipe: Recipe, stage: str, file: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's entry of a manifest, but for the digest."""
    scale: dict[str, Any] = {"file": file, "um_per_px": recipe.um_per_px}
    if stage == "classifier":
        return {**scale, "crop_px": CROP_PX}
    if stage == "detector":
        return {
            **scale,
            "tile_px": TILE_PX,
            "halo_px": 64,
            "score_threshold": _as_written(metrics["score_threshold"]),
            # YOLOv4 has told neighbours apart by their distance, which overlap alone would undo.
            "nms_iou": 1.0 if recipe.system == "tayebi2021" else 0.5,
            "unclassified_below": 0.0,
        }
    tiles = recipe.stage == "tiles"
    return {
        **scale,
        "output_stride_px": recipe.size_px if tiles else REGION_STRIDE_PX,
        "tile_px": recipe.size_px if tiles else 512,
        "context_px": 0 if tiles else 2 * REGION_STRIDE_PX,
        "dilation": 0.0 if tiles else 0.5,
        "sampled_grid": recipe.sampled_grid,
        "threshold": _as_written(metrics["threshold" if tiles else "score_threshold"]),
    }


def _as_written(threshold: float) -> float:
    """Four decimals, and never more than it was: it is the score of something to report."""
    return math.floor(threshold * 10_000) / 10_000


def _lent(recipe: Recipe, stage: str) -> Lent:
    name = recipe.together_with
    if not name:
        raise TrainingInvalid(
            f"{recipe.name}: field together_with must name what gives the {stage}: a package, or"
            " the folder of another training."
        )
    folder = _lending(name, stage)
    try:
        if (folder / MANIFEST_FILE).exists():
            fields = dict(json.loads((folder / MANIFEST_FILE).read_text())["stages"][stage])
        else:
            fields = dict(json.loads((folder / f"{stage}.json").read_text())["fields"])
        there = all((folder / file).is_file() for file in _files(fields))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _lends_nothing(recipe, stage) from error
    if not there:
        raise _lends_nothing(recipe, stage)
    return Lent(folder, fields)


def _lending(name: str, stage: str) -> Path:
    """A shipped package's folder, a package's own, a training's, or that of a training's package.

    A training of cells has made the detector alone; its localiser lies in its package.
    """
    trained = sorted(Path(name).glob(f"package/*/{MANIFEST_FILE}"))
    if (SHIPPED_PACKAGES / name / MANIFEST_FILE).exists():
        return SHIPPED_PACKAGES / name
    if trained and not (Path(name) / f"{stage}.json").exists():
        return trained[0].parent
    return Path(name)


def _lends_nothing(recipe: Recipe, stage: str) -> TrainingInvalid:
    return TrainingInvalid(
        f"{recipe.name}: together_with names {recipe.together_with}, which has no {stage}: train"
        " it first."
    )


def _files(fields: Mapping[str, Any]) -> list[str]:
    """Names of the ONNX files of a stage's entry of a manifest."""
    return [each["file"] for each in (fields, fields.get("fp16")) if each]


def _samples(recipe: Recipe, stage: str, images: Sequence[AnnotatedImage]) -> list[UInt8]:
    """Real images of the sizes that the stage is called with."""
    samples = [image.read() for image in images[:_PARITY_IMAGES]]
    if stage == "classifier":
        return [_square(sample, CROP_PX) for sample in samples]
    side = recipe.size_px if recipe.stage == "tiles" else -(-recipe.size_px // 64) * 64
    return [_square(sample, side) for sample in samples]


def _square(rgb: UInt8, side: int) -> UInt8:
    """The image's corner, on white where it is smaller."""
    square = np.full((side, side, 3), 255, np.uint8)
    part = rgb[:side, :side]
    square[: part.shape[0], : part.shape[1]] = part
    return square
