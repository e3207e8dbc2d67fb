"""Slides on which every cell is a plain grey box: a picture of them tells where the cells are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from dicom_io.analysis import Analysis
from dicom_io.demonstration_header import demonstration_headers
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.pyramid_writer import level_size, write_pyramid
from dicom_io.slide import Slide, open_slide
from tests.analyses import some_analysis

UM_PER_PX = 0.25
LEVELS = 4
GREY, WHITE = 205, 255
MARGIN_PX = 4
_STRIP_PX = 256


@dataclass(frozen=True)
class KnownSlide:
    """A slide with its cells.

    Attributes
    ----------
    slide
    paths
    box_px
        (N, 4) whole pixels, x0, y0, x1, y1; no two touch.
    """

    slide: Slide
    paths: tuple[Path, ...]
    box_px: NDArray[np.float64]

    @property
    def analysis(self) -> Analysis:
        """These cells, of all types, with made-up probabilities."""
        made = some_analysis(self.slide, len(self.box_px))
        return replace(made, cells=replace(made.cells, box_px=self.box_px))


def known_slide(
    folder: Path,
    size_px: tuple[int, int],
    cells: tuple[int, int],
    orientation: Sequence[float] | None = None,
) -> KnownSlide:
    """Write a slide with columns × rows of cells.

    Parameters
    ----------
    size_px
        Width and height of the base level.
    cells
        Columns and rows; each cell has a size and a place of its own in its field of the grid.
    orientation
        ImageOrientationSlide, instead of that of the demonstration slide.
    """
    box = _boxes(size_px, cells)
    sizes = [level_size(size_px, level) for level in range(LEVELS)]
    study, series = str(generate_uid()), str(generate_uid())
    headers = demonstration_headers(study, series, sizes, UM_PER_PX, 256)
    for header in headers:
        if orientation is not None:
            header.ImageOrientationSlide = list(orientation)
    folder.mkdir(parents=True)
    paths = tuple(folder / f"level-{level}.dcm" for level in range(LEVELS))
    write_pyramid(paths, headers, _rows(size_px, box), 95, 2)
    with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
        return KnownSlide(open_slide(pacs, study, series), paths, box)


def _boxes(size_px: tuple[int, int], cells: tuple[int, int]) -> NDArray[np.float64]:
    rng = np.random.default_rng(11)
    columns, rows = cells
    room = np.array((size_px[0] // columns, size_px[1] // rows))
    y, x = np.mgrid[:rows, :columns].reshape(2, -1)
    corner = np.stack((x, y), axis=1) * room
    largest = room - 2 * MARGIN_PX
    side = rng.integers(largest // 2, largest, (len(corner), 2))
    low = corner + MARGIN_PX + rng.integers(0, largest - side)
    return np.concatenate((low, low + side), axis=1).astype(np.float64)


def _rows(size_px: tuple[int, int], box_px: NDArray[np.float64]) -> Iterator[NDArray[np.uint8]]:
    """The base level from top to bottom, grey boxes on white."""
    width, height = size_px
    box = box_px.astype(int)
    for top in range(0, height, _STRIP_PX):
        strip = np.full((min(_STRIP_PX, height - top), width, 3), WHITE, np.uint8)
        here = (box[:, 3] > top) & (box[:, 1] < top + len(strip))
        for x0, y0, x1, y1 in box[here]:
            strip[max(y0 - top, 0) : max(y1 - top, 0), x0:x1] = GREY
        yield strip
