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
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from models.package import Precision
from models.records import Cells
from models.session import Device
from node.config import ModelSettings, Settings
from node.documents import load_ahead
from node.pipeline import SlideReference
from node.workplace import Workplace
from tests.bench.whole import analyse_timed


def analyse_once(settings: Settings, slide: SlideReference) -> tuple[dict[str, Any], Cells]:
    """Seconds of each stage and tiles; ``began`` and ``ended`` on the system's clock."""
    place = Workplace.open(settings, lambda progress: None)
    began = time.monotonic()
    _, kept, seconds = analyse_timed(place, slide)
    row = {
        "began": began,
        "ended": time.monotonic(),
        "tiles": kept["detect"]["tiles"],
        "provider": kept["detect"]["provider"],
        "stages_s": {name: round(spent, 3) for name, spent in seconds.items()},
    }
    return row, place.work.get_record(kept["detect"]["cells"])


def settings_for(device: Device, precision: Precision, archive: Path, out: Path) -> Settings:
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
        settings = settings_for(cast(Device, device), cast(Precision, precision), own / "pacs", own)
        row, cells = analyse_once(settings, slide)
        rows.append(row)
    np.savez(folder / "cells.npz", box_px=cells.box_px, label=cells.label)
    (folder / "slides.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
