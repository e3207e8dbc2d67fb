"""Pixels of a level → pixels of the wanted size, without aliasing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
Float64 = NDArray[np.float64]


def resampled(
    canvas: UInt8, known: Bool | None, corner: Float64, step: Float64, size: tuple[int, int]
) -> tuple[UInt8, Bool | None]:
    """Cut a box out of `canvas` and bring it to `size`.

    Parameters
    ----------
    canvas : (h, w, 3) uint8
    known : (h, w) bool, optional
        Where `canvas` holds pixels of the slide; None for everywhere.
    corner : (x, y)
        Of the box, in canvas pixels.
    step : (x, y)
        Canvas pixels per pixel of the result.
    size : (width, height)
        Of the result.

    Returns
    -------
    rgb : (H, W, 3) uint8
        White where not valid.
    valid : (H, W) bool, optional
        Whether a pixel's centre lies on known pixels; None where all do.
    """
    if (corner == 0).all() and canvas.shape[1::-1] == size:
        return canvas, known
    box = (*corner, *np.minimum(corner + step * size, canvas.shape[1::-1]))
    image = Image.fromarray(canvas).resize(size, _filter(step), box=box)
    rgb = np.array(image)
    if known is None:
        return rgb, None
    columns = np.floor(corner[0] + (np.arange(size[0]) + 0.5) * step[0]).astype(int)
    rows = np.floor(corner[1] + (np.arange(size[1]) + 0.5) * step[1]).astype(int)
    valid: Bool = known[np.ix_(rows, columns)]
    rgb[~valid] = 255
    return rgb, valid


def filter_reach(step: float) -> int:
    """Pixels beyond the edge of a box, along one axis, that its result depends on."""
    return math.ceil(max(step, 1.0)) + 1


def _filter(step: Float64) -> Image.Resampling:
    """Box mean for whole factors, as pyramids are made; else a filter with a softer edge."""
    if (step < 1).any():
        return Image.Resampling.BILINEAR
    if np.allclose(step, np.rint(step), atol=1e-6):
        return Image.Resampling.BOX
    return Image.Resampling.HAMMING
