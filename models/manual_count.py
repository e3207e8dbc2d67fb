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


def read_manual_count(path: Path) -> dict[str, float]:
    """Read a manual differential: CSV with the columns type and count (or percent).

    Parameters
    ----------
    path
        A line for each type, by its key in the table of cell types; types without a line were
        not seen.

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
    counts: dict[str, float] = {}
    for line, row in enumerate(rows, start=2):
        key, count = row.get("type"), row.get("count") or row.get("percent")
        if not _in_ndc(key):
            raise TrainingInvalid(
                f"{path}, line {line}: {key!r} is no type of the differential count: use the keys"
                " of models/cell_types.toml."
            )
        if key in counts:
            raise TrainingInvalid(f"{path}, line {line}: {key} is there twice, keep one.")
        counts[str(key)] = _count(count, f"{path}, line {line}")
    if not sum(counts.values()):
        raise TrainingInvalid(f"{path} counts no cell: columns type and count are needed.")
    return counts


def differential_difference(
    counted: Mapping[str, float], reference: Mapping[str, float]
) -> dict[str, Any]:
    """How far one differential is from another (Tayebi et al. 2021, fig. 6b).

    Parameters
    ----------
    counted, reference
        Number of cells of each type; what is outside the differential count is left out.

    Returns
    -------
    dict
        ``ndc_mse``: mean over the types of either of the squared difference of shares (of 1);
        ``ndc_largest_error_points``: largest difference, in percentage points; None for both where
        either counts no cell.
    """
    types = sorted(key for key in {*counted, *reference} if _in_ndc(key))
    mine, theirs = _shares(counted, types), _shares(reference, types)
    if mine is None or theirs is None:
        return {"ndc_mse": None, "ndc_largest_error_points": None}
    return {
        "ndc_mse": round(differential_error(mine, theirs), 6),
        "ndc_largest_error_points": round(100 * float(np.abs(mine - theirs).max()), 2),
    }


def _in_ndc(key: str | None) -> bool:
    kind = CELL_TYPES.get(key or "")
    return kind is not None and kind.ndc and key != UNCLASSIFIED


def _shares(count: Mapping[str, float], types: list[str]) -> Float64 | None:
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
