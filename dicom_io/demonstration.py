"""The demonstration slide: a DICOM whole slide image composed of real cells, its truth beside it.

The nucleated cells are those of fold 4, which the shipped model was not trained on. The same seed
and the same images give the same slide: the same UIDs, the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from dicom_io.demonstration_canvas import paint_strips, place_cells
from dicom_io.demonstration_header import demonstration_headers
from dicom_io.demonstration_layout import COMPOSITION, plan_layout
from dicom_io.derived_uid import derive_uid
from dicom_io.pyramid_writer import level_size, write_pyramid
from models.composing import ASSETS, CellImage, load_cells
from models.records import Float64, Int64

UM_PER_PX: Final = 0.25
TILE_PX: Final = 256
LEVELS: Final = 6
_QUALITY: Final = 88
# Of the five, the one with the most near-duplicate groups of segmented neutrophils, the commonest
# type of the slide: fold 0 has two.
_UNSEEN_FOLD: Final = 4
# Changes whenever the same seed would give other pixels, so that UIDs stay true.
_COMPOSER_REVISION: Final = "2"


@dataclass(frozen=True, slots=True)
class Truth:
    """What lies on the demonstration slide.

    Attributes
    ----------
    box_px : (N, 4) float64
        Boxes of the cells' outlines in base-level pixels, x0, y0, x1, y1.
    types
        Cell type key of each.
    group : (N,) int64
        Near-duplicate group of the image that each was cut from.
    trail_share
        Area of the particle trails as a share of the matrix.
    """

    box_px: Float64
    types: tuple[str, ...]
    group: Int64
    trail_share: float


@dataclass(frozen=True, slots=True)
class DemonstrationSlide:
    """A slide that was composed.

    Attributes
    ----------
    study_uid, series_uid
    paths
        DICOM files, base level first.
    truth
    truth_path
        Where the truth was written.
    """

    study_uid: str
    series_uid: str
    paths: tuple[Path, ...]
    truth: Truth
    truth_path: Path


def compose_demonstration_slide(
    folder: Path, seed: int, size_px: tuple[int, int] = (24_000, 16_000), cells: int = 2_000
) -> DemonstrationSlide:
    """Compose the slide into `folder`; ``truth.json`` is written beside that folder.

    Parameters
    ----------
    folder
        Made if it is missing; files of an earlier run of the same slide are overwritten.
    size_px : (width, height)
        Of the base level.
    cells
        Nucleated cells.

    Raises
    ------
    ValueError
        If the slide is too small for so many cells.
    """
    images = [image for image in load_cells() if image.fold == _UNSEEN_FOLD and image.is_whole]
    layout = plan_layout(seed, size_px, cells, _radii_px(images))
    placed = place_cells(seed, layout, images, UM_PER_PX)
    names = tuple(COMPOSITION)
    types = tuple(names[kind] for kind in layout.cell_type)
    truth = Truth(placed.box_px, types, placed.group, layout.trail_share)
    identity = (_COMPOSER_REVISION, _assets_digest(), str(seed), f"{size_px}", str(cells))
    study_uid = derive_uid("demonstration study", *identity)
    series_uid = derive_uid("demonstration series", *identity)
    sizes = [level_size(size_px, level) for level in range(LEVELS)]
    headers = demonstration_headers(study_uid, series_uid, sizes, UM_PER_PX, TILE_PX)
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"level_{level}.dcm" for level in range(LEVELS))
    threads = min(4, os.cpu_count() or 1)
    write_pyramid(paths, headers, paint_strips(seed, layout, placed), _QUALITY, threads)
    truth_path = folder.parent / "truth.json"
    write_truth(truth_path, truth, series_uid)
    return DemonstrationSlide(study_uid, series_uid, paths, truth, truth_path)


def write_truth(path: Path, truth: Truth, series_uid: str) -> None:
    """Write the truth as JSON: one box, type and group per cell."""
    content = {
        "series_uid": series_uid,
        "um_per_px": UM_PER_PX,
        "trail_share": round(truth.trail_share, 4),
        "composition": dict(COMPOSITION),
        "box_px": truth.box_px.tolist(),
        "type": list(truth.types),
        "group": truth.group.tolist(),
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def read_truth(path: Path) -> Truth:
    """Read what :func:`write_truth` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Truth(
        np.array(content["box_px"], np.float64).reshape(-1, 4),
        tuple(content["type"]),
        np.array(content["group"], np.int64),
        float(content["trail_share"]),
    )


def _radii_px(images: Sequence[CellImage]) -> dict[str, float]:
    """Mean radius per type in base pixels."""
    return {
        name: float(np.mean([_radius_um(i) for i in images if i.type == name])) / UM_PER_PX
        for name in COMPOSITION
    }


def _radius_um(image: CellImage) -> float:
    """Radius of a disc as large as the outline."""
    return float(np.sqrt(image.outline.sum() / np.pi)) * image.um_per_px


def _assets_digest() -> str:
    """SHA-256 over the images that the slide is made of."""
    digest = hashlib.sha256()
    folders = (ASSETS / "cells", ASSETS / "red_cells")
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(ASSETS).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()
