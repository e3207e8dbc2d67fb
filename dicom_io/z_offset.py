"""Heights above the glass, which DICOM writes in micrometres where x and y are in millimetres.

Z Offset in Slide Coordinate System (0040,074A) is "in µm from the image substrate reference plane"
(PS3.3 C.8.12.2, with a Note that this is inconsistent with the millimetres of coordinates), in the
origin of a matrix as in Plane Position (Slide), C.8.12.6.1. Spacing Between Slices (0018,0088) and
the points of annotations are in millimetres.
"""

from __future__ import annotations

from dicom_io.dicom_json import Json, numbers

UM_PER_MM = 1000.0


def z_offset_mm(item: Json) -> float | None:
    """Height that an item of a sequence says, in mm; None where it says none."""
    said = numbers(item, "ZOffsetInSlideCoordinateSystem")
    return said[0] / UM_PER_MM if said else None
