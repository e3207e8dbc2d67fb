"""Slides analysed one after the other in a process of their own, as a worker does.

``python -m tests.bench.gpu_slides DEVICE PRECISION PACS_FOLDER STUDY_UID SERIES_UID OUT SLIDES``
analyses the one slide of a folder so many times, each time into an archive of its own, and writes
what took how long, and the cells, into ``OUT``.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.package import Precision
from models.records import Cells
from node.config import ModelSettings, Settings
from node.documents import load_ahead
from node.pipeline import SlideReference, analyse
from node.workplace import Workplace


def analyse_once(settings: Settings, slide: SlideReference) -> tuple[dict[str, Any], Cells]:
    """Seconds of each stage, tiles and cells; ``began`` and ``ended`` on the system's clock."""
    seconds: dict[str, float] = {}
    kept: dict[str, dict[str, Any]] = {}

    def timed(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        begun = time.monotonic()
        kept[name] = stage()
        seconds[name] = round(time.monotonic() - begun, 3)
        return kept[name]

    place = Workplace.open(settings, lambda progress: None)
    began = time.monotonic()
    result = analyse(place, slide, timed)
    row = {
        "began": began,
        "ended": time.monotonic(),
        "tiles": kept["detect"]["tiles"],
        "cells": result["cells"],
        "provider": kept["detect"]["provider"],
        "precision": kept["detect"]["precision"],
        "stages_s": seconds,
    }
    return row, place.work.get_record(kept["detect"]["cells"])


def settings_for(
    device: Literal["cuda", "cpu"], precision: Precision, archive: Path, out: Path
) -> Settings:
    """Archive, EHR and work folder on the disk."""
    (out / "ehr").mkdir(parents=True)
    model = ModelSettings(device=device, precision=precision)
    return replace(
        Settings(),
        pacs_url=archive.as_uri(),
        ehr_url=(out / "ehr").as_uri(),
        work_folder=out / "work",
        model=model,
    )


def main() -> None:
    """Do what the command line says."""
    device, precision, pacs, study_uid, series_uid, out, slides = sys.argv[1:]
    load_ahead()  # as the process that those of slides are forked from
    slide = SlideReference(study_uid, series_uid, "benchmark")
    folder = Path(out)
    rows = []
    for number in range(int(slides)):
        own = folder / str(number)
        shutil.copytree(pacs, own / "pacs")
        row, cells = analyse_once(
            settings_for(device, precision, own / "pacs", own),  # type: ignore[arg-type]
            slide,
        )
        rows.append(row)
    np.savez(folder / "cells.npz", box_px=cells.box_px, label=cells.label)
    (folder / "slides.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
