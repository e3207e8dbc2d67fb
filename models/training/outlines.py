"""Outline of a cell in a published image: nucleus and cytoplasm.

``python -m models.training.outlines`` makes the ``.png`` beside every image of
``models/assets/cells`` again. A colour segmentation (GrabCut: Rother et al. 2004) decides where the
pale cytoplasm ends; neighbours and glass are kept out. What it starts from stands in ``cells.csv``,
column ``outline``, as all outlines were looked at on a contact sheet:

``nucleus``
    the dark nucleus in the middle is enough;
``box``
    it led to the nucleus alone, or to a neighbour: a box of the whole cell, ``box_px``, leads. The
    boxes are those of a cell finder that learnt pale cytoplasm from blood fields (its first
    training, on the nuclei's outlines), 20 of them set by hand;
``none``
    the cell cannot be told from its neighbours: an empty outline, and nothing uses the image.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage import filters, measure, morphology, segmentation

from models.composing import ASSETS, GLASS
from models.records import UInt8

Mask = NDArray[np.bool_]
Plane = NDArray[np.floating[Any]]

_DIRECTIONS = 72


def outline_around_nucleus(rgb: UInt8) -> Mask:
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
    found = _grab_cut(_lab(rgb), labels)
    if found is None:
        return nucleus
    return _smoothed(found, nucleus)


def outline_in_box(rgb: UInt8, box_px: Sequence[float]) -> Mask:
    """Outline of the cell that fills a box.

    Parameters
    ----------
    rgb : (S, S, 3) uint8
    box_px
        x0, y0, x1, y1; may reach over the image.

    Returns
    -------
    (S, S) bool
        One body, seen whole from the box's middle, that keeps to the ellipse in the box.
    """
    x0, y0, x1, y1 = box_px
    middle, half = np.array([x0 + x1, y0 + y1]) / 2, np.array([x1 - x0, y1 - y0]) / 2
    y, x = np.mgrid[: len(rgb), : len(rgb)] + 0.5
    right, down = (x - middle[0]) / half[0], (y - middle[1]) / half[1]
    away = np.hypot(right, down)  # 1 on the ellipse
    cell = _cut_in_ellipse(rgb, away)
    direction = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    reach = _reach(cell, middle, half, direction)
    angle = np.mod(np.arctan2(down, right), 2 * np.pi)
    inside: Mask = away <= np.interp(
        angle, np.append(direction, 2 * np.pi), np.append(reach, reach[0])
    )
    return inside


def _cut_in_ellipse(rgb: UInt8, away: Plane) -> Mask:
    """GrabCut between the middle of an ellipse, which is cell, and what lies outside of it."""
    balanced = np.clip(rgb / np.percentile(rgb.reshape(-1, 3), 95, axis=0) * GLASS, 0, 255)
    soft = _blurred(balanced.astype(np.uint8), len(rgb) / 110)
    density = -np.log((soft.astype(float) + 1) / (GLASS + 1))
    glass = morphology.opening(density.sum(-1) < 0.12, morphology.disk(2))
    labels = np.full(away.shape, cv2.GC_PR_FGD, np.uint8)
    labels[away > 0.93] = cv2.GC_PR_BGD
    labels[away > 1.02] = cv2.GC_BGD
    labels[away < 0.6] = cv2.GC_FGD
    labels[glass & (away > 0.6)] = cv2.GC_BGD
    found = _grab_cut(_wide_lab(soft), labels)
    return away < 0.9 if found is None else found


def _grab_cut(image: UInt8, labels: UInt8) -> Mask | None:
    """What is cell, certainly or probably; None where there is nothing to decide."""
    cv2.setRNGSeed(0)  # its colour models start at random
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(image, labels, (), *models, 4, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # no pixel of one kind
        return None
    found: Mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found


def _reach(cell: Mask, middle: Plane, half: Plane, direction: Plane) -> Plane:
    """How far the cell reaches in each direction, in radii of the ellipse, smoothed."""
    radius = np.linspace(0.5, 1.05, 56)
    x = middle[0] + np.outer(np.cos(direction), radius) * half[0]
    y = middle[1] + np.outer(np.sin(direction), radius) * half[1]
    along = ndimage.map_coordinates(cell.astype(float), [y - 0.5, x - 0.5], order=1)
    inside = np.cumsum(along - 0.5, 1)  # highest where inside and outside part best
    reach = np.where(inside.max(1) <= 0, 0.6, radius[inside.argmax(1)])
    reach = ndimage.median_filter(reach, 9, mode="wrap")
    reach = ndimage.gaussian_filter1d(reach, 1.5, mode="wrap")
    smooth: Plane = np.clip(reach, 0.8 * np.median(reach), 1.12 * np.median(reach))
    return smooth


def _density(rgb: UInt8) -> Plane:
    """Optical density against the image's own glass."""
    soft = _blurred(rgb, len(rgb) / 100).astype(float) + 1
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
    """The same with the glass made neutral."""
    glass = np.percentile(rgb.reshape(-1, 3), 95, axis=0)
    balanced = np.clip(rgb / glass * 235, 0, 255).astype(np.uint8)
    return _wide_lab(_blurred(balanced, len(rgb) / 140))


def _blurred(rgb: UInt8, sigma_px: float) -> UInt8:
    blurred: UInt8 = cv2.GaussianBlur(rgb, (0, 0), sigma_px).astype(np.uint8)
    return blurred


def _wide_lab(rgb: UInt8) -> UInt8:
    """CIELAB with colour weighing double."""
    wide = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(int)
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
        rows = list(csv.DictReader(table))
    for row in rows:
        file = folder / row["file"]
        mask = _outline(np.asarray(Image.open(file).convert("RGB")), row)
        Image.fromarray((mask * 255).astype(np.uint8)).convert("1").save(
            file.with_suffix(".png"), optimize=True
        )


def _outline(rgb: UInt8, row: Mapping[str, str]) -> Mask:
    if row["outline"] == "none":
        return np.zeros(rgb.shape[:2], np.bool_)
    if row["outline"] == "box":
        return outline_in_box(rgb, [float(value) for value in row["box_px"].split()])
    return outline_around_nucleus(rgb)


if __name__ == "__main__":
    main()
