"""Where pixels of a total pixel matrix lie on the glass (PS3.3 C.8.12.4.1.1, C.7.6.16.2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from conformance.reading import first, numbers, text, whole
from conformance.segmentation_rules import pixel_spacing_mm
from models.records import Float64


@dataclass(frozen=True, slots=True)
class Matrix:
    """A total pixel matrix on the slide.

    Attributes
    ----------
    size_px : (width, height)
    origin_mm : (x, y)
        Slide coordinates of the centre of the top left pixel.
    along_mm : (2, 2)
        Steps on the slide of one column and of one row, as rows.
    """

    size_px: tuple[int, int]
    origin_mm: Float64
    along_mm: Float64

    def to_mm(self, points_px: Float64) -> Float64:
        """Slide coordinates (N, 2) of matrix coordinates, (0, 0) being the outer corner."""
        return self.origin_mm + (points_px - 0.5) @ self.along_mm

    def to_px(self, points_mm: Float64) -> Float64:
        """The inverse of :meth:`to_mm`."""
        return (points_mm - self.origin_mm) @ np.linalg.inv(self.along_mm) + 0.5


def matrix_of(document: Dataset) -> Matrix | None:
    """Matrix of a slide's level or of a segmentation; None where it is not all said."""
    size = (
        whole(document, "TotalPixelMatrixColumns") or 0,
        whole(document, "TotalPixelMatrixRows") or 0,
    )
    origin = first(document, "TotalPixelMatrixOriginSequence")
    corner = [
        value
        for keyword in ("XOffsetInSlideCoordinateSystem", "YOffsetInSlideCoordinateSystem")
        for value in numbers(origin, keyword)
    ]
    orientation = numbers(document, "ImageOrientationSlide") or numbers(
        _shared_orientation(document), "ImageOrientationSlide"
    )
    spacing = pixel_spacing_mm(document)
    if min(size) < 1 or len(corner) != 2 or len(orientation) != 6 or len(spacing) != 2:
        return None
    if min(spacing) <= 0:
        return None
    # DICOM's order is row spacing (down a column), then column spacing (along a row).
    steps = np.reshape(orientation, (2, 3))[:, :2] * np.array([[spacing[1]], [spacing[0]]])
    if abs(float(np.linalg.det(steps))) < np.finfo(np.float64).tiny:
        return None
    return Matrix(size, np.array(corner), steps)


def frame_of_reference(document: Dataset) -> str:
    return text(document, "FrameOfReferenceUID")


def _shared_orientation(document: Dataset) -> Dataset:
    shared = first(document, "SharedFunctionalGroupsSequence")
    return first(shared, "PlaneOrientationSlideSequence") or first(
        shared, "PlaneOrientationSequence"
    )
