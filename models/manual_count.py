"""A differential that somebody counted, and how far another count of the same cells is from it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.agreement_statistics import differential_error
from models.cell_types import CELL_TYPES
from models.errors import TrainingInvalid
from models.manifest import UNCLASSIFIED
from models.records import Float64

Counts = Mapping[str, float]


def read_manual_count(path: Path) -> dict[str, dict[str, float]]:
    """Read manual differentials: CSV with the columns type and count (or percent), and slide.

    Parameters
    ----------
    path
        A line for each type, by its key in the table of cell types; types without a line were
        not seen. Without the column slide it is one count of all slides.

    Returns
    -------
    dict
        Slide → type → count; the slide is empty where there is no such column.

    Raises
    ------
    TrainingInvalid
        Naming the file and the line.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")))
    except OSError as error:
        raise TrainingInvalid(f"{path} cannot be read ({error.strerror}): check it.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise TrainingInvalid(f"{path} is not CSV in UTF-8: save it again.") from error
    slides: dict[str, dict[str, float]] = {}
    for line, row in enumerate(rows, start=2):
        key, count = row.get("type"), row.get("count") or row.get("percent")
        counts = slides.setdefault((row.get("slide") or "").strip(), {})
        if not _in_ndc(key):
            raise TrainingInvalid(
                f"{path}, line {line}: {key!r} is no type of the differential count: use the keys"
                " of models/cell_types.toml."
            )
        if key in counts:
            raise TrainingInvalid(f"{path}, line {line}: {key} is there twice, keep one.")
        counts[str(key)] = _count(count, f"{path}, line {line}")
    if "" in slides and len(slides) > 1:
        raise TrainingInvalid(f"{path}: name the slide in every line, or in none.")
    for slide, counts in (slides or {"": {}}).items():
        if not sum(counts.values()):
            where = f"{path}, slide {slide}," if slide else path
            raise TrainingInvalid(f"{where} counts no cell: columns type and count are needed.")
    return slides


def differential_difference(counted: Counts, reference: Counts) -> dict[str, Any]:
    """How far one differential is from another.

    Parameters
    ----------
    counted, reference
        Number of cells of each type; what is outside the differential count is left out.

    Returns
    -------
    dict
        As of :func:`differentials_difference` with one slide.
    """
    return differentials_difference({"": counted}, {"": reference})


def differentials_difference(
    counted: Mapping[str, Counts], reference: Mapping[str, Counts]
) -> dict[str, Any]:
    """How far the differentials of slides are from others of the same (Tayebi 2021, fig. 6b).

    Parameters
    ----------
    counted, reference
        Slide → type → number of cells; a slide that only one of them has, or that has no cell in
        one of them, is left out.

    Returns
    -------
    dict
        ``ndc_mse``: mean over slides, and over the types of any, of the squared difference of
        shares (of 1); ``ndc_largest_error_points``: largest difference, in percentage points; None
        for both where no slide is left.
    """
    both = sorted(counted.keys() & reference.keys())
    named = {key for slide in both for key in (*counted[slide], *reference[slide])}
    types = sorted(key for key in named if _in_ndc(key))
    pairs = [(_shares(counted[slide], types), _shares(reference[slide], types)) for slide in both]
    known = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    if not known:
        return {"ndc_mse": None, "ndc_largest_error_points": None}
    errors = [differential_error(mine, theirs) for mine, theirs in known]
    largest = max(float(np.abs(mine - theirs).max()) for mine, theirs in known)
    return {
        "ndc_mse": round(float(np.mean(errors)), 6),
        "ndc_largest_error_points": round(100 * largest, 2),
    }


def _in_ndc(key: str | None) -> bool:
    kind = CELL_TYPES.get(key or "")
    return kind is not None and kind.ndc and key != UNCLASSIFIED


def _shares(count: Counts, types: list[str]) -> Float64 | None:
    values = np.array([count.get(key, 0.0) for key in types], np.float64)
    return values / values.sum() if values.sum() else None


def _count(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError as error:
        raise TrainingInvalid(f"{where}: {text!r} is no number: correct it.") from error
    if not math.isfinite(value) or value < 0:
        raise TrainingInvalid(f"{where}: {text} is no number of cells: correct it.")
    return value
