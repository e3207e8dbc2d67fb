"""One whole analysis, in a process of its own: wall time beside what it cannot be shorter than.

``python -m tests.bench.whole PACS_URL STUDY_UID SERIES_UID SERVER_PID FOLDER MODEL`` prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from dicom_io.frames import read_tiles
from dicom_io.pacs import open_pacs
from dicom_io.slide import open_slide
from models.detect import detect, detection_grid, reading_order
from models.records import Regions, Tiles
from models.session import open_session
from node.config import ModelSettings, Settings
from node.documents import load_ahead
from node.networks import batch_tiles
from node.pipeline import SlideReference, analyse
from node.progress import Progress
from node.summary import peak_rss_mb
from node.workplace import Workplace

SAMPLE_BATCHES = 24


def measure(settings: Settings, slide: SlideReference, server_pid: int) -> dict[str, Any]:
    """Analyse once, then each of the two large parts alone.

    Returns
    -------
    dict
        Seconds of the stages and in all; to the first cells; of the reading and of the network
        alone; of processors (node and server); bytes; peak memory.
    """
    first_cells_s: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.stage == "detect" and progress.cells and not first_cells_s:
            first_cells_s.append(time.monotonic() - started)

    place = Workplace.open(settings, watch)
    load_ahead()  # as the process that those of slides are forked from
    cpu_before = time.process_time() + process_cpu_s(server_pid)
    started = time.monotonic()
    result, kept, seconds = analyse_timed(place, slide)
    wall_s = time.monotonic() - started
    cpu_s = time.process_time() + process_cpu_s(server_pid) - cpu_before
    peak_mb = peak_rss_mb()
    regions: Regions = place.work.get_record(kept["localise"]["regions"])
    reading_s, network_s = _parts_alone(place, slide, regions)
    limit_s = max(reading_s, network_s, cpu_s / (os.cpu_count() or 1))
    return {
        "model": settings.model.name,
        "wall_s": wall_s,
        "stages_s": seconds,
        "first_cells_s": first_cells_s[0] if first_cells_s else None,
        "reading_alone_s": reading_s,
        "network_alone_s": network_s,
        "processor_s": cpu_s,
        "over_limit": wall_s / limit_s,
        "cells": result["cells"],
        "bytes_read": result["bytes_read"],
        "bytes_slide": result["bytes_slide"],
        "peak_rss_mb": peak_mb,
    }


def analyse_timed(
    place: Workplace, slide: SlideReference
) -> tuple[Mapping[str, Any], dict[str, dict[str, Any]], dict[str, float]]:
    """Analyse in this process: the result, what each stage returned, and its seconds."""
    kept: dict[str, dict[str, Any]] = {}
    seconds: dict[str, float] = {}

    def timed(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        begun = time.monotonic()
        kept[name] = stage()
        seconds[name] = time.monotonic() - begun
        return kept[name]

    return analyse(place, slide, timed), kept, seconds


def process_cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, its children's left out (proc(5), fields 14, 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _parts_alone(
    place: Workplace, reference: SlideReference, regions: Regions
) -> tuple[float, float]:
    """Seconds to read the regions' tiles, and to run the network over so many."""
    settings, manifest = place.settings, place.package.manifest
    session = open_session(place.package, "detector", settings.model.device, settings.model.threads)
    with open_pacs(settings.pacs_url, settings.pacs) as pacs:
        slide = open_slide(pacs, reference.study_uid, reference.series_uid)
        box_px, core_px = detection_grid(
            regions,
            slide.base.size_px,
            slide.base.spacing_um,
            manifest.detector,
            settings.model.tile_seed,
        )

        box_px = box_px[reading_order(core_px)]

        def tiles() -> Generator[Tiles, None, None]:
            return read_tiles(
                pacs,
                slide,
                box_px,
                manifest.detector.um_per_px,
                within=regions,
                batch_size=batch_tiles(settings.model, session),
                settings=settings.read,
            )

        begun = time.monotonic()
        for _ in tiles():
            pass
        reading_s = time.monotonic() - begun
        with closing(tiles()) as stream:
            sample = list(islice(stream, SAMPLE_BATCHES))
    begun = time.monotonic()
    for batch in sample:
        detect(batch, session, place.package)
    looked_at = sum(len(batch.rgb) for batch in sample)
    return reading_s, (time.monotonic() - begun) * len(box_px) / max(looked_at, 1)


def main() -> None:
    """Measure what the command line names."""
    pacs_url, study_uid, series_uid, server_pid, folder, model = sys.argv[1:]
    name = Path(model).name
    settings = replace(
        Settings(),
        pacs_url=pacs_url,
        ehr_url=(Path(folder) / "ehr").as_uri(),
        work_folder=Path(folder) / "work",
        model=replace(ModelSettings(), name=name, folders=(Path(model).parent,)),
    )
    Path(folder, "ehr").mkdir(parents=True, exist_ok=True)
    slide = SlideReference(study_uid, series_uid, "benchmark")
    print(json.dumps(measure(settings, slide, int(server_pid))))


if __name__ == "__main__":
    main()
