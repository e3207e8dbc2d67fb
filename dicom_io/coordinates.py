"""Base-level pixels ↔ millimetres in the slide's frame of reference.

``_px`` counts from the outer corner of the top-left pixel, whose centre is (0.5, 0.5);
TotalPixelMatrixOrigin is that centre in millimetres. With X the direction in which the column
number grows and Y the one in which the row number grows (ImageOrientationSlide), PS3.3 C.8.12.4
and C.7.6.2.1.1 give ``mm = origin + X · spacing_x · (x − 0.5) + Y · spacing_y · (y − 0.5)``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dicom_io.slide import Slide

Float64 = NDArray[np.float64]


def px_to_mm(slide: Slide, points_px: Float64) -> Float64:
    """Slide coordinates of pixels: (N, 2) x, y → (N, 3) x, y, z in mm."""
    return slide.origin_mm + (np.asarray(points_px, np.float64) - 0.5) @ _mm_per_px(slide)


def mm_to_px(slide: Slide, points_mm: Float64) -> Float64:
    """Pixels of slide coordinates: (N, 2 or 3) mm → (N, 2) x, y.

    Without z the points are taken to lie in the plane of the image; what lies off it is projected.
    """
    points = np.asarray(points_mm, np.float64)
    offset = points - slide.origin_mm[: points.shape[1]]
    steps = _mm_per_px(slide)[:, : points.shape[1]]
    return offset @ np.linalg.pinv(steps) + 0.5


def _mm_per_px(slide: Slide) -> Float64:
    """(2, 3): millimetres gone by one pixel along x and along y."""
    spacing = np.array(slide.base.spacing_mm, np.float64)
    steps: Float64 = slide.orientation.reshape(2, 3) * spacing[:, None]
    return steps
