"""Single red cells of blood fields → transmittance crops for composing.

``python -m models.training.red_cells DATA`` makes ``models/assets/red_cells/red_cells.npz`` again
from the training fields under ``DATA/blood_fields``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from models.composing import ASSETS, UM_PER_PX
from models.records import UInt8
from models.training.data import FIELD_UM_PER_PX

SIDE_PX = 48
MOST = 400
_RED = 1  # class in the labels
_PER_FIELD = 4

Plane = NDArray[np.floating[Any]]


def red_cells_of(image: Path) -> Iterator[UInt8]:
    """Transmittance crops (48, 48, 3) of the red cells that lie by themselves in a field."""
    picture = Image.open(image).convert("RGB")
    scale = FIELD_UM_PER_PX[image.name.split("_")[0]] / UM_PER_PX
    size = (round(picture.width * scale), round(picture.height * scale))
    field = np.asarray(picture.resize(size, Image.Resampling.BOX)).astype(float)
    glass = np.percentile(field.reshape(-1, 3), 92, axis=0)
    labels = image.parent.parent / "labels" / image.with_suffix(".txt").name
    rows = np.array([[float(v) for v in line.split()] for line in labels.read_text().splitlines()])
    box = np.concatenate((rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2), 1)
    box *= np.tile(size, 2)
    taken = 0
    for index in np.flatnonzero(rows[:, 0] == _RED):
        if taken < _PER_FIELD and _stands_alone(box, int(index), size):
            cell = _transmittance(field / glass, box[index])
            if cell is not None:
                taken += 1
                yield cell


def _stands_alone(box: Plane, index: int, size: tuple[int, int]) -> bool:
    x0, y0, x1, y1 = box[index]
    whole = x0 >= 3 and y0 >= 3 and x1 <= size[0] - 3 and y1 <= size[1] - 3
    usual = min(x1 - x0, y1 - y0) >= 18 and max(x1 - x0, y1 - y0) <= SIDE_PX - 4
    others = np.delete(box, index, axis=0)
    apart = (
        (np.minimum(x1 - 1, others[:, 2]) <= np.maximum(x0 + 1, others[:, 0]))
        | (np.minimum(y1 - 1, others[:, 3]) <= np.maximum(y0 + 1, others[:, 1]))
    ).all()
    return bool(whole and usual and apart)


def _transmittance(field: Plane, box: Plane) -> UInt8 | None:
    """The cell faded to clear glass around it; None where it is not one plain red cell."""
    x0, y0 = (int(v) - 2 for v in box[:2])
    x1, y1 = (int(np.ceil(v)) + 2 for v in box[2:])
    density = -np.log(np.clip(field[max(y0, 0) : y1, max(x0, 0) : x1], 0.02, 1))
    total = density.sum(-1)
    body = total > max(0.12, 0.3 * np.percentile(total, 80))
    bodies, _ = ndimage.label(ndimage.binary_fill_holes(ndimage.binary_opening(body)))
    if not bodies.max():
        return None
    cell = ndimage.binary_fill_holes(bodies == np.argmax(np.bincount(bodies.ravel())[1:]) + 1)
    cut = cell[0].sum() + cell[-1].sum() + cell[:, 0].sum() + cell[:, -1].sum()
    height, width = cell.shape
    roundness = cell.sum() / (np.pi * (height - 4) * (width - 4) / 4)
    if cell.sum() < 200 or cut > 6 or roundness < 0.78 or np.percentile(total[cell], 90) > 2.0:
        return None
    if max(height, width) > SIDE_PX:
        return None
    soft = np.clip(ndimage.gaussian_filter(cell.astype(float), 0.8) * 1.3, 0, 1)
    crop = np.full((SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    top, left = (SIDE_PX - height) // 2, (SIDE_PX - width) // 2
    light = np.exp(-density * soft[..., None])
    crop[top : top + height, left : left + width] = (light * 255).round()
    return crop


def main(data: Path) -> None:
    """Collect red cells from the training fields."""
    images = sorted((data / "blood_fields" / "train" / "images").iterdir())
    np.random.default_rng(0).shuffle(images)
    cells = [cell for image in images for cell in red_cells_of(image)][:MOST]
    target = ASSETS / "red_cells" / "red_cells.npz"
    np.savez_compressed(target, transmittance=np.stack(cells))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
