"""``make bench``: seconds of each stage of the demonstration analysis, on this machine.

Machines are noisy: compare ratios of stages, or two runs side by side, not seconds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dicom_io.demonstration import compose_demonstration_slide
from node.config import Settings
from node.demo import SEED
from node.pipeline import SlideReference, analyse
from node.summary import peak_rss_mb
from node.workplace import Workplace


def main() -> None:
    """Compose the slide in a temporary folder, analyse it without a job queue, print the times."""
    seconds: dict[str, float] = {}

    def timed(name: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        started = time.monotonic()
        result = stage()
        seconds[name] = time.monotonic() - started
        return result

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = compose_demonstration_slide(folder / "pacs", SEED)
        settings = replace(
            Settings(),
            pacs_url=(folder / "pacs").as_uri(),
            ehr_url=(folder / "ehr").as_uri(),
            work_folder=folder / "work",
        )
        place = Workplace.open(settings, lambda progress: None)
        reference = SlideReference(slide.study_uid, slide.series_uid, "benchmark")
        result = analyse(place, reference, timed)
    total = sum(seconds.values())
    table = Table("stage", "seconds", "share", box=None)
    for stage, value in seconds.items():
        table.add_row(stage, f"{value:.2f}", f"{value / total:.0%}")
    console = Console(stderr=True)
    console.print(table)
    print(
        json.dumps(
            {
                "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
                "total_seconds": round(total, 3),
                "cells": result["cells"],
                "bytes_read": result["bytes_read"],
                "bytes_slide": result["bytes_slide"],
                "peak_rss_mb": peak_rss_mb(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
