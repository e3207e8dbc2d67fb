"""Outline of the cell in the middle of a published image: nucleus and cytoplasm.

``python -m models.training.outlines`` makes the ``.png`` beside every image of
``models/assets/cells`` again. The dark nucleus in the middle seeds a colour segmentation (GrabCut:
Rother et al. 2004) that decides where the pale cytoplasm ends; neighbours and glass are kept out.
"""

from __future__ import annotations

import csv
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import filters, measure, morphology, segmentation

from models.composing import ASSETS
from models.records import UInt8

Mask = NDArray[np.bool_]
Plane = NDArray[np.floating[Any]]


def outline(rgb: UInt8) -> Mask:
    """(S, S, 3) uint8 → (S, S) bool, True inside the cell in the middle.

    All distances below are fractions of the image's side S.
    """
    side = len(rgb)
    density = _density(rgb)
    from_middle = _distance_from_middle(side)
    nucleus, others = _nucleus(density[..., 0], from_middle)
    nucleus &= from_middle < 0.46
    if nucleus.sum() > 8:  # lobes of one nucleus belong together
        nucleus = morphology.convex_hull_image(nucleus) & ~_eroded(others)
    labels = _first_guess(density, nucleus, others, from_middle)
    try:
        cv2.grabCut(
            _lab(rgb), labels, (), np.zeros((1, 65)), np.zeros((1, 65)), 4, cv2.GC_INIT_WITH_MASK
        )
    except cv2.error:  # no pixel of one kind: nothing to decide
        return nucleus
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return _smoothed(found, nucleus)


def _density(rgb: UInt8) -> Plane:
    """Optical density against the image's own glass."""
    soft = cv2.GaussianBlur(rgb, (0, 0), len(rgb) / 100).astype(float) + 1
    glass = np.percentile(soft.reshape(-1, 3), 95, axis=0)
    density: Plane = -np.log(np.clip(soft / glass, 0.02, 1))
    return density


def _distance_from_middle(side: int) -> Plane:
    y, x = np.mgrid[:side, :side]
    distance: Plane = np.hypot(y - side / 2 + 0.5, x - side / 2 + 0.5) / side
    return distance


def _nucleus(red_density: Plane, from_middle: Plane) -> tuple[Mask, Mask]:
    """Dark bodies: those of the cell in the middle, and all others. Red light passes red cells."""
    side = len(red_density)
    dark = morphology.opening(
        red_density > filters.threshold_otsu(red_density), morphology.disk(max(1, side // 48))
    )
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(dark), side / 48)
    seeds = measure.label(morphology.h_maxima(depth, side / 60))
    bodies = segmentation.watershed(-depth, seeds, mask=dark)
    if not bodies.max():
        return from_middle < 0.15, np.zeros_like(dark)
    own = set(np.unique(bodies[(from_middle < 0.13) & (bodies > 0)]))
    own = own or {bodies.flat[np.argmin(np.where(bodies > 0, from_middle, 9))]}
    for body in range(1, bodies.max() + 1):
        distance = from_middle[bodies == body]
        if distance.mean() < 0.20 and distance.max() < 0.34:
            own.add(body)
    nucleus = np.isin(bodies, list(own))
    return nucleus, dark & ~nucleus


def _first_guess(density: Plane, nucleus: Mask, others: Mask, from_middle: Plane) -> UInt8:
    """Labels for GrabCut: certain and probable cell, certain and probable background."""
    side = len(nucleus)
    from_nucleus = ndimage.distance_transform_edt(~nucleus) / side
    total = density.sum(-1)
    glass = morphology.opening(
        total < np.percentile(total, 8) + 0.05, morphology.disk(max(1, side // 70))
    )
    labels = np.full(nucleus.shape, cv2.GC_PR_BGD, np.uint8)
    labels[from_nucleus < 0.10] = cv2.GC_PR_FGD
    labels[(from_nucleus > 0.20) | (from_middle > 0.49) | _eroded(others)] = cv2.GC_BGD
    labels[glass & (from_nucleus > 0.015)] = cv2.GC_BGD
    labels[nucleus] = cv2.GC_FGD
    return labels


def _lab(rgb: UInt8) -> UInt8:
    """CIELAB with the glass made neutral and colour weighing double."""
    glass = np.percentile(rgb.reshape(-1, 3), 95, axis=0)
    balanced = np.clip(rgb / glass * 235, 0, 255).astype(np.uint8)
    lab = cv2.cvtColor(cv2.GaussianBlur(balanced, (0, 0), len(rgb) / 140), cv2.COLOR_RGB2LAB)
    wide = lab.astype(int)
    wide[..., 1:] = (wide[..., 1:] - 128) * 2 + 128
    clipped: UInt8 = np.clip(wide, 0, 255).astype(np.uint8)
    return clipped


def _smoothed(found: Mask, nucleus: Mask) -> Mask:
    """One body without holes, spikes and ragged edges."""
    side = len(found)
    opened = morphology.opening(found, morphology.disk(max(2, side // 24))) | nucleus
    bodies = measure.label(ndimage.binary_fill_holes(opened))
    shares = np.bincount(bodies[nucleus], minlength=bodies.max() + 1)[1:]
    cell = np.pad(bodies == int(np.argmax(shares)) + 1, 8)
    cell = ndimage.binary_fill_holes(morphology.closing(cell, morphology.disk(max(2, side // 14))))
    smooth: Mask = (ndimage.gaussian_filter(cell.astype(float), side / 50) > 0.5)[8:-8, 8:-8]
    return smooth


def _eroded(mask: Mask) -> Mask:
    eroded: Mask = morphology.erosion(mask, morphology.disk(1))
    return eroded


def main() -> None:
    """Outline every cell image of the repository."""
    folder = ASSETS / "cells"
    with (folder / "cells.csv").open(newline="", encoding="utf-8") as table:
        files = [folder / row["file"] for row in csv.DictReader(table)]
    for file in files:
        mask = outline(np.asarray(Image.open(file).convert("RGB")))
        Image.fromarray((mask * 255).astype(np.uint8)).convert("1").save(
            file.with_suffix(".png"), optimize=True
        )


if __name__ == "__main__":
    main()
