"""What the pictures of a result show of the slide: all of it, and its busiest field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dicom_io.analysis import Analysis
from dicom_io.frames import read_tiles
from dicom_io.overview import read_overview
from dicom_io.pacs import Pacs
from dicom_io.slide import Slide
from dicom_io.slide_settings import ReadSettings
from models.records import Float64, UInt8
from node.pictures import OVERVIEW_PX, Field

FIELD_PX = (1100, 420)


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole slide, small.

    Attributes
    ----------
    rgb : (H, W, 3) uint8
        At most `OVERVIEW_PX` long.
    bytes_read
        What it took.
    """

    rgb: UInt8
    bytes_read: int


def read_whole(pacs: Pacs, slide: Slide, settings: ReadSettings, most_frames: int) -> Overview:
    """Read the whole slide, small. Nobody else may read with `pacs` meanwhile: bytes are counted.

    Parameters
    ----------
    pacs, slide, settings
    most_frames
        That it may take (:func:`dicom_io.overview.read_overview`).
    """
    before = pacs.bytes_read
    rgb = read_overview(pacs, slide, OVERVIEW_PX, most_frames, settings)
    return Overview(rgb, pacs.bytes_read - before)


def read_field(pacs: Pacs, analysis: Analysis, settings: ReadSettings) -> Field | None:
    """Read the field that holds most cells, at full resolution; None where no cell was found."""
    if not len(analysis.cells):
        return None
    slide, box_px = analysis.slide, _busiest_field(analysis)
    (tiles,) = read_tiles(pacs, slide, box_px[None], slide.base.um_per_px, settings=settings)
    return Field(tiles.rgb[0], (box_px[0], box_px[1], box_px[2], box_px[3]))


def _busiest_field(analysis: Analysis) -> Float64:
    """The box of FIELD_PX around a sampled cell that holds most cells, inside the slide."""
    size = np.minimum(np.array(FIELD_PX), np.array(analysis.slide.base.size_px)).astype(np.float64)
    centres = (analysis.cells.box_px[:, :2] + analysis.cells.box_px[:, 2:]) / 2
    sample = centres[:: max(1, len(centres) // 400)]
    inside = (np.abs(sample[:, None] - centres[None]) <= size / 2).all(axis=2).sum(axis=1)
    corner = np.floor(sample[int(inside.argmax())] - size / 2)
    corner = np.clip(corner, 0, np.array(analysis.slide.base.size_px) - size)
    return np.concatenate((corner, corner + size))
