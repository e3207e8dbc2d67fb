"""How reading grows with the slide: opening it, and reading a part of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from dicom_io.demonstration import TILE_PX
from dicom_io.frames import read_tiles
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from models.records import Float64
from tests.bench.stored_slides import StoredSlide

TILE_SIDE_PX = 2 * TILE_PX
# Sides of the part that is read: as a share of the slide's, or always the smallest slide's quarter.
SHARE_OF_SIDE = 0.5


def open_and_read(dicomweb_url: str, slide: StoredSlide, side_px: int) -> dict[str, float]:
    """Open the slide and read a square part of it.

    Returns
    -------
    dict
        Seconds to open and to read, tiles, bytes.
    """
    with open_pacs(dicomweb_url, PacsSettings()) as pacs:
        begun = time.monotonic()
        opened = open_slide(pacs, slide.study_uid, slide.series_uid)
        open_s = time.monotonic() - begun
        begun = time.monotonic()
        count = 0
        for tiles in read_tiles(pacs, opened, _square(side_px), opened.base.um_per_px):
            count += len(tiles.rgb)
        return {
            "open_s": open_s,
            "read_s": time.monotonic() - begun,
            "tiles": count,
            "bytes_read": pacs.bytes_read,
        }


def _square(side_px: int) -> Float64:
    corner = np.arange(0, side_px, TILE_SIDE_PX, dtype=np.float64)
    x, y = (axis.ravel() for axis in np.meshgrid(corner, corner))
    return np.stack([x, y, x + TILE_SIDE_PX, y + TILE_SIDE_PX], axis=1)


# What is measured → side of the part that is read, of a slide of so many frames a side.
PARTS: dict[str, Callable[[int, int], int]] = {
    "equal share": lambda columns, smallest: int(columns * TILE_PX * SHARE_OF_SIDE),
    "equal area": lambda columns, smallest: int(smallest * TILE_PX * SHARE_OF_SIDE),
}
