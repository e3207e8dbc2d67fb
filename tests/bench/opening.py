"""Opening large slides, and the memory that reading one takes.

Each slide is opened in a process of its own, so that peaks do not add up.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.frames import read_tiles
from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from dicom_io.slide import open_slide
from node.summary import peak_rss_mb
from tests.large_slides import SERIES, STUDY, TILE_PX, large_slide

SLIDES = (
    (600, 300, "TILED_FULL"),
    (200, 200, "TILED_SPARSE"),
    (391, 391, "TILED_SPARSE"),
)


def open_large_slides() -> list[dict[str, Any]]:
    """Open and read each slide, from an archive that only hands out what lies ready."""
    rows_measured = []
    for columns, rows, organization in SLIDES:
        with large_slide(columns, rows, organization) as url:
            command = [sys.executable, "-m", "tests.bench.opening", url]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = {"layout": organization, "frames": columns * rows, **json.loads(ended.stdout)}
        rows_measured.append(found)
    return rows_measured


def measured(url: str) -> dict[str, Any]:
    """Open the slide and read 4096 frames along its diagonal."""
    asked_s, sizes = [0.0], [0]
    ask = Pacs.series_metadata_bytes

    def timed(self: Pacs, study_uid: str, series_uid: str) -> bytes:
        started = time.perf_counter()
        raw = ask(self, study_uid, series_uid)
        asked_s.append(time.perf_counter() - started)
        sizes.append(len(raw))
        return raw

    Pacs.series_metadata_bytes = timed  # type: ignore[method-assign]
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before_mb = pages * resource.getpagesize() / 1e6
    with open_pacs(url, PacsSettings(timeout_s=300)) as pacs:
        started, cpu_started = time.perf_counter(), time.process_time()
        slide = open_slide(pacs, STUDY, SERIES)
        opened_s = time.perf_counter() - started
        cpu_s = time.process_time() - cpu_started
        opened_mb = peak_rss_mb()
        corner = np.linspace(0, 1, 256)[:, None] * (np.array(slide.base.size_px) - 4 * TILE_PX)
        box_px = np.rint(np.hstack([corner, corner + 4 * TILE_PX]) / TILE_PX) * TILE_PX
        for _ in read_tiles(pacs, slide, box_px, 0.25):
            pass
        return {
            "size_px": slide.base.size_px,
            "metadata_mb": round(sum(sizes) / 1e6, 1),
            "opened_after_metadata_s": round(opened_s - sum(asked_s), 2),
            "cpu_s": round(cpu_s, 2),
            "frames_read": pacs.frames_read,
            "opening_mb": round(opened_mb - before_mb, 1),
            "opening_and_reading_mb": round(peak_rss_mb() - before_mb, 1),
        }


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
