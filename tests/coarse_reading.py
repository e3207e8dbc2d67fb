"""``python -m tests.coarse_reading URL TIMES TILES THREADS``: memory that coarse tiles take.

Reads tiles of 640 px so many times coarser than the slide of :mod:`tests.large_slides`, and prints
by how many MB the process has grown at most.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np

from dicom_io.frames import read_tiles
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import open_slide
from dicom_io.slide_settings import ReadSettings
from node.summary import peak_rss_mb
from tests.large_slides import SERIES, STUDY

TILE_PX, BATCH_TILES, OFF_CORNER_PX = 640, 4, 33


def measured(url: str, times: int, tiles: int, threads: int) -> float:
    with open_pacs(url, PacsSettings()) as pacs:
        slide = open_slide(pacs, STUDY, SERIES)
        um_per_px = slide.base.um_per_px
        list(read_tiles(pacs, slide, np.array([[0, 0, 64, 64.0]]), 2 * um_per_px))  # all imported
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        before_mb = pages * resource.getpagesize() / 1e6
        side = times * TILE_PX
        # Not at the frames' corners, and all of them on the slide.
        columns = (slide.base.size_px[0] - OFF_CORNER_PX) // side
        row, column = np.divmod(np.arange(tiles), columns)
        corner = np.stack([column, row], axis=1) * float(side) + OFF_CORNER_PX
        seen = 0
        for batch in read_tiles(
            pacs,
            slide,
            np.hstack([corner, corner + side]),
            times * um_per_px,
            batch_size=BATCH_TILES,
            settings=ReadSettings(threads=threads),
        ):
            seen += len(batch.rgb)
            if not batch.valid.all():
                raise AssertionError("pixels are missing")
        if seen != tiles:
            raise AssertionError(f"{seen} of {tiles} tiles came")
    return peak_rss_mb() - before_mb


if __name__ == "__main__":
    print(measured(sys.argv[1], *map(int, sys.argv[2:])))
