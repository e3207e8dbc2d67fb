"""A million cells into an ANN instance and out again, with highdicom's own time beside it.

Each contestant runs in a process of its own, so that peaks of memory do not add up.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.ann import MicroscopyBulkSimpleAnnotations
from pydicom import dcmread

from dicom_io.analysis import Analysis
from dicom_io.annotation import decode_annotation, encode_annotation
from node.outputs import to_bytes
from node.summary import peak_rss_mb
from tests.analyses import small_slide, some_analysis

CELLS = 1_000_000
CONTESTANTS = ("this writer and reader", "highdicom, one group per type, no measurements")


def annotate() -> list[dict[str, Any]]:
    """Measure every contestant."""
    measured = []
    for number, name in enumerate(CONTESTANTS):
        command = [sys.executable, "-m", "tests.bench.annotating", str(number)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured.append({"name": name, "cells": CELLS, **json.loads(ended.stdout)})
    return measured


def _ours(analysis: Analysis) -> tuple[Callable[[], bytes], Callable[[bytes], int]]:
    def read(content: bytes) -> int:
        return len(decode_annotation(dcmread(io.BytesIO(content)), analysis.slide))

    return lambda: to_bytes(encode_annotation(analysis)), read


def _highdicoms(analysis: Analysis) -> tuple[Callable[[], bytes], Callable[[bytes], int]]:
    """The same boxes through the library alone."""
    groups = [
        analysis.cells.box_px[analysis.cells.label == label]
        for label in range(len(analysis.cells.classes))
    ]
    template = encode_annotation(some_analysis(analysis.slide, 50))

    def build() -> bytes:
        made = []
        for number, box in enumerate((each for each in groups if len(each)), start=1):
            x0, y0, x1, y1 = box.astype(np.float32).T
            points = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], 1).reshape(-1, 4, 2)
            first = template.AnnotationGroupSequence[0]
            made.append(
                type(first)(
                    number=number,
                    uid=f"2.25.{number}",
                    label="cells",
                    annotated_property_category=first.annotated_property_category,
                    annotated_property_type=first.annotated_property_type,
                    graphic_type="RECTANGLE",
                    graphic_data=list(points),
                    algorithm_type="AUTOMATIC",
                    algorithm_identification=first.algorithm_identification,
                )
            )
        template.AnnotationGroupSequence = made
        return to_bytes(template)

    def read(content: bytes) -> int:
        document = MicroscopyBulkSimpleAnnotations.from_dataset(dcmread(io.BytesIO(content)))
        return sum(len(each.get_graphic_data("2D")) for each in document.get_annotation_groups())

    return build, read


def measured(number: int) -> dict[str, Any]:
    """Seconds to build and to read, bytes, and the peak of memory."""
    with tempfile.TemporaryDirectory() as folder:
        slide = small_slide(Path(folder))
    # Tables that libraries read once in a process are not what is measured.
    to_bytes(encode_annotation(some_analysis(slide, 10)))
    build, read = (_ours, _highdicoms)[number](some_analysis(slide, CELLS))
    started = time.perf_counter()
    content = build()
    built = time.perf_counter()
    cells = read(content)
    ended = time.perf_counter()
    if cells != CELLS:
        raise RuntimeError(f"{cells} of {CELLS} cells came back.")
    return {
        "built_s": round(built - started, 2),
        "read_s": round(ended - built, 2),
        "mb": round(len(content) / 1e6, 1),
        "peak_rss_mb": peak_rss_mb(),
    }


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]))))
