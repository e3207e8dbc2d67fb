"""The numbers of a result, as ``--json`` prints them."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dicom_io.analysis import Analysis


def summary_of(analysis: Analysis) -> dict[str, Any]:
    """Cells, differential, M:E, sufficiency and model; percentages to six decimals."""
    differential = analysis.differential
    rows: dict[str, Any] = {}
    for row, key in enumerate(differential.classes):
        counted = bool(differential.in_ndc[row]) and differential.total > 0
        low, high = (100 * differential.interval[row]).round(6).tolist()
        rows[key] = {
            "count": int(differential.count[row]),
            "percent": round(100 * float(differential.share[row]), 6) if counted else None,
            "low": low if counted else None,
            "high": high if counted else None,
        }
    return {
        "cells": len(analysis.cells),
        "differential": rows,
        "me_ratio": differential.me_ratio,
        "ndc_total": differential.total,
        "adequate": differential.adequate,
        "sufficiency": "; ".join(differential.reasons) or "sufficient",
        "converged_after_tiles": differential.converged_after,
        "tiles": differential.tiles,
        "region_frames": len(analysis.regions.box_px),
        "model": asdict(analysis.model),
    }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB of 10⁶ bytes."""
    return round(peak_rss_bytes() / 1e6, 1)


def peak_rss_bytes(pid: int | None = None) -> int:
    """Largest resident memory of a process so far, None for this one; 0 where nobody can tell.

    From ``VmHWM`` (proc(5)) where there is one: getrusage(2) on Linux counts what the parent had
    held before it started this process.
    """
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text("ascii", "replace")
    except OSError:
        status = ""
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)
    if peak is not None:
        return int(peak[1]) * 1024
    if pid is not None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
