"""The table of cell types: versioned data, read from ``cell_types.toml`` beside this file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

_TABLE = tomllib.loads((Path(__file__).parent / "cell_types.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class CellType:
    """One row of the table.

    Attributes
    ----------
    key
        What records, manifests and settings call it.
    name
        What people read.
    code
        In the node's own coding scheme: the key, or where that is longer than the 16 characters of
        a code (PS3.5 6.2, SH) a shorter one.
    lineage
    ndc
        Whether it counts in the denominator of the nucleated differential count.
    me
        Side of the myeloid to erythroid ratio (Tayebi 2021 eq. 2), None for neither.
    tayebi
        Its type among the twelve of the histogram of cell types (Tayebi 2021 §4.4), if any.
    neighbours
        Keys of the adjacent stages of maturation.
    snomed, snomed_meaning
        SNOMED CT code and meaning; empty where none was verified.
    loinc
        LOINC number of its share of nucleated cells in bone marrow; empty where there is none.
    reference_percent
        (low, high) of the default reference range in percent of the NDC, None where there is none.
    colour
        Display colour, sRGB ``#rrggbb``.
    """

    key: str
    name: str
    code: str
    lineage: str
    ndc: bool
    me: Literal["myeloid", "erythroid"] | None
    tayebi: str | None
    neighbours: tuple[str, ...]
    snomed: str
    snomed_meaning: str
    loinc: str
    reference_percent: tuple[float, float] | None
    colour: str


def _cell_type(key: str, row: Mapping[str, Any]) -> CellType:
    reference = row.get("reference_percent")
    return CellType(
        key=key,
        name=row["name"],
        code=row.get("code", key),
        lineage=row["lineage"],
        ndc=row["ndc"],
        me=row.get("me"),
        tayebi=row.get("tayebi"),
        neighbours=tuple(row["neighbours"]),
        snomed=row.get("snomed", ""),
        snomed_meaning=row.get("snomed_meaning", ""),
        loinc=row.get("loinc", ""),
        reference_percent=(reference[0], reference[1]) if reference else None,
        colour=row["colour"],
    )


VERSION: str = _TABLE["version"]
REFERENCE_SOURCE: str = _TABLE["reference_source"]
ME_REFERENCE: tuple[float, float] = (_TABLE["me_reference"][0], _TABLE["me_reference"][1])
CELL_TYPES: Mapping[str, CellType] = MappingProxyType(
    {key: _cell_type(key, row) for key, row in _TABLE.items() if isinstance(row, dict)}
)


def reading_order(classes: Sequence[str]) -> list[int]:
    """Rows of `classes` in the order of the table, as a marrow report lists them.

    Blasts, the granulocytic line by maturation, monocytes, lymphocytes, plasma cells, the
    erythroid line by maturation, then what stands outside the count (ICSH 2008, §nucleated
    differential cell count).
    """
    place = {key: number for number, key in enumerate(CELL_TYPES)}
    return sorted(range(len(classes)), key=lambda row: place[classes[row]])


# The two lines of maturation whose stages Choi et al. (2017) tell apart, in order.
ERYTHROID_STAGES = (
    "proerythroblast",
    "basophilic_erythroblast",
    "polychromatic_erythroblast",
    "orthochromatic_erythroblast",
)
GRANULOCYTIC_STAGES = (
    "myeloblast",
    "promyelocyte",
    "myelocyte",
    "metamyelocyte",
    "band_neutrophil",
    "segmented_neutrophil",
)
