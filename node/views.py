"""What the pictures of a result show of the slide: all of it, and its busiest field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dicom_io.analysis import Analysis
from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs
from dicom_io.slide import Slide
from dicom_io.slide_settings import ReadSettings
from models.records import Float64, UInt8

FIELD_PX = (1100, 420)


@dataclass(frozen=True, slots=True)
class Appearance:
    """What documents and pictures show of a slide whatever is found on it.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
        All of it, at most `node.pictures.OVERVIEW_PX` long.
    icc_profile
        Empty where it carries none.
    bytes_read
        Of the frames that the picture took.
    """

    rgb: UInt8
    icc_profile: bytes
    bytes_read: int


def read_field(pacs: Pacs, slide: Slide, field_px: Float64, settings: ReadSettings) -> UInt8:
    """RGB (H, W, 3) of a box of :func:`busiest_field_px`, at full resolution."""
    (tiles,) = read_tiles(pacs, slide, field_px[None], slide.base.um_per_px, settings=settings)
    rgb: UInt8 = tiles.rgb[0]
    return rgb


def busiest_field_px(analysis: Analysis) -> Float64 | None:
    """The box of `FIELD_PX` around a sampled cell that holds most cells, inside the slide.

    Returns
    -------
    (4,) float64
        x0, y0, x1, y1 in base-level pixels; None where no cell was found.
    """
    if not len(analysis.cells):
        return None
    size = np.minimum(np.array(FIELD_PX), np.array(analysis.slide.base.size_px)).astype(np.float64)
    centres = (analysis.cells.box_px[:, :2] + analysis.cells.box_px[:, 2:]) / 2
    sample = centres[:: max(1, len(centres) // 400)]
    inside = (np.abs(sample[:, None] - centres[None]) <= size / 2).all(axis=2).sum(axis=1)
    corner = np.floor(sample[int(inside.argmax())] - size / 2)
    corner = np.clip(corner, 0, np.array(analysis.slide.base.size_px) - size)
    return np.concatenate((corner, corner + size))
