"""What needs no network: a baseline that trained detectors are held against.

``python -m models.training.threshold_baseline CONFIG.toml`` measures it on the test images of a
recipe: connected pieces of what Otsu's threshold takes for stained, each named by the type whose
mean size and colour, over the boxes to train on, is nearest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

from models.detection_evaluation import evaluation_table
from models.detection_table import Detect, best_threshold, look_at
from models.records import Float32, Float64, UInt8
from models.training.annotated import AnnotatedImage
from models.training.recipe import load_recipe
from models.training.sources import split_images

LEAST_SIDE_PX = 4


def threshold_baseline(images: Sequence[AnnotatedImage], types: int) -> Detect:
    """A detector in the sense of :func:`models.detection_table.look_at`.

    Parameters
    ----------
    images
        To take the types' mean size and colour from.
    types
        K.
    """
    looks, kinds = [], []
    for image in images:
        rgb = image.read()
        looks += [_look(rgb, box) for box in image.box_px]
        kinds += image.kind.tolist()
    look, kind = np.array(looks), np.array(kinds)
    spread = look.std(axis=0)
    mean = np.full((types, look.shape[1]), np.inf)  # of a type without a cell: never near
    for each in np.unique(kind[kind >= 0]):
        mean[each] = look[kind == each].mean(axis=0)

    def detect(rgb: UInt8) -> tuple[Float32, Float32, Float32]:
        boxes = _pieces(rgb[0])
        seen = np.array([_look(rgb[0], box) for box in boxes]).reshape(-1, mean.shape[1])
        away = np.linalg.norm((seen[:, None] - mean) / spread, axis=2)
        score = np.exp(-away.min(axis=1, initial=np.inf))
        share = np.exp(-away) / np.maximum(np.exp(-away).sum(axis=1, keepdims=True), 1e-12)
        return boxes[None], score[None].astype(np.float32), share[None].astype(np.float32)

    return detect


def _pieces(rgb: UInt8) -> Float32:
    """Boxes (N, 4) of connected stained pieces: what is stained lets less green through."""
    green = ndimage.gaussian_filter(rgb[..., 1].astype(np.float32), 1)
    stained = ndimage.binary_fill_holes(green < threshold_otsu(green))
    boxes = [
        (left, top, right, bottom)
        for top, left, bottom, right in (piece.bbox for piece in regionprops(label(stained)))
        if min(bottom - top, right - left) >= LEAST_SIDE_PX
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def _look(rgb: UInt8, box_px: Float32) -> Float64:
    """Logarithm of the box's area, and its mean colour: (4,)."""
    x0, y0, x1, y1 = np.rint(box_px).astype(int)
    x0, y0 = min(x0, rgb.shape[1] - 1), min(y0, rgb.shape[0] - 1)
    colour = rgb[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].reshape(-1, 3).mean(axis=0)
    area = float(np.prod(np.maximum(box_px[2:] - box_px[:2], 1)))
    return np.array([np.log(area), *colour / 32])


def main() -> None:
    """Measure on the test images of the recipe that the command line names."""
    recipe = load_recipe(Path(sys.argv[1]))
    images, types = split_images(recipe), len(recipe.types)
    detect = threshold_baseline(images.train, types)
    chosen = best_threshold(look_at(images.validation, detect), types)
    findings = look_at(images.test, detect)
    slides = [image.group for image in images.test]
    table = evaluation_table(findings, recipe.types, chosen, recipe.seed, slides)
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
