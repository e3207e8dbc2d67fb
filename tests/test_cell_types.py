"""The table of cell types says what the sources say, and contradicts itself nowhere."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from models.cell_types import (
    CELL_TYPES,
    ERYTHROID_STAGES,
    GRANULOCYTIC_STAGES,
    ME_REFERENCE,
    REFERENCE_SOURCE,
    VERSION,
    reading_order,
)

TAYEBI_HISTOGRAM = {
    "neutrophil",
    "metamyelocyte",
    "myelocyte",
    "promyelocyte",
    "blast",
    "erythroblast",
    "lymphocyte",
    "monocyte",
    "plasma cell",
    "eosinophil",
    "basophil",
    "megakaryocyte",
}
OUTSIDE_NDC = {
    "megakaryocyte",
    "megakaryocyte_nucleus",
    "macrophage",
    "platelet",
    "platelet_clump",
    "smudge_cell",
    "artifact",
    "debris",
    "mitotic_cell",
    "other_cell",
    "unclassified",
}
BLASTS = {"blast", "myeloblast", "lymphoblast", "monoblast"}
GRANULOCYTES = {
    "promyelocyte",
    "abnormal_promyelocyte",
    "myelocyte",
    "metamyelocyte",
    "band_neutrophil",
    "segmented_neutrophil",
    "neutrophil",
    "eosinophil",
}
ERYTHROID = {
    "proerythroblast",
    "basophilic_erythroblast",
    "polychromatic_erythroblast",
    "orthochromatic_erythroblast",
    "erythroblast",
}


def test_what_is_outside_the_differential_count() -> None:
    assert {key for key, row in CELL_TYPES.items() if not row.ndc} == OUTSIDE_NDC


def test_sides_of_the_myeloid_to_erythroid_ratio() -> None:
    sides = {
        side: {key for key, row in CELL_TYPES.items() if row.me == side}
        for side in ("myeloid", "erythroid")
    }
    assert sides == {"myeloid": BLASTS | GRANULOCYTES, "erythroid": ERYTHROID}


def test_histogram_has_the_twelve_types_of_the_paper() -> None:
    assert {row.tayebi for row in CELL_TYPES.values()} - {None} == TAYEBI_HISTOGRAM


def test_every_counted_type_but_mast_cells_is_in_the_histogram() -> None:
    left_out = {key for key, row in CELL_TYPES.items() if row.ndc and row.tayebi is None}
    assert left_out == {"mast_cell"}


@pytest.mark.parametrize("key", CELL_TYPES)
def test_row_is_well_formed(key: str) -> None:
    row = CELL_TYPES[key]
    assert row.key == key
    assert re.fullmatch(r"#[0-9a-f]{6}", row.colour)
    assert bool(row.snomed) == bool(row.snomed_meaning)
    assert set(row.neighbours) <= CELL_TYPES.keys() - {key}
    assert all(key in CELL_TYPES[other].neighbours for other in row.neighbours)
    assert row.snomed or len(row.code) <= 16
    assert row.code == key or row.code not in CELL_TYPES
    if row.reference_percent is not None:
        low, high = row.reference_percent
        assert 0 <= low < high <= 100
        assert row.ndc


def _snomed_check_digit_holds(number: str) -> bool:
    """Verhoeff's check digit, that every SNOMED CT identifier ends with."""
    multiply = [[0] * 10 for _ in range(10)]
    for a in range(10):
        for b in range(10):
            turned = (a + b) % 5 if a < 5 else (a - b) % 5
            multiply[a][b] = turned + (0 if (a < 5) == (b < 5) else 5)
    permute = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for _ in range(6):
        permute.append([permute[-1][digit] for digit in permute[1]])
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = multiply[check][permute[place % 8][int(digit)]]
    return check == 0


def _loinc_check_digit_holds(number: str) -> bool:
    """Modulus 10, that every LOINC number ends with."""
    body, digit = number.split("-")
    total = sum(
        sum(divmod(int(d) * (2 if place % 2 == 0 else 1), 10))
        for place, d in enumerate(reversed(body))
    )
    return (total + int(digit)) % 10 == 0


def test_codes_are_no_misprints() -> None:
    snomed = [row.snomed for row in CELL_TYPES.values() if row.snomed]
    loinc = [row.loinc for row in CELL_TYPES.values() if row.loinc]
    assert [code for code in snomed if not _snomed_check_digit_holds(code)] == []
    assert [code for code in loinc if not _loinc_check_digit_holds(code)] == []


def test_no_two_types_share_a_code_or_a_colour() -> None:
    for field in ("snomed", "loinc", "name", "code", "colour"):
        used = [getattr(row, field) for row in CELL_TYPES.values() if getattr(row, field)]
        assert len(used) == len(set(used)), field


def test_the_table_names_its_version_and_where_ranges_come_from() -> None:
    assert VERSION
    assert "Iowa" in REFERENCE_SOURCE
    assert ME_REFERENCE == (2.0, 4.0)


@pytest.mark.parametrize("stages", [GRANULOCYTIC_STAGES, ERYTHROID_STAGES])
def test_each_stage_matures_into_the_next(stages: tuple[str, ...]) -> None:
    for before, after in pairwise(stages):
        assert after in CELL_TYPES[before].neighbours
        assert before in CELL_TYPES[after].neighbours


def test_reports_list_types_in_the_order_of_the_table() -> None:
    classes = ("unclassified", "plasma_cell", "myeloblast", "proerythroblast", "myelocyte")
    assert [classes[row] for row in reading_order(classes)] == [
        "myeloblast",
        "myelocyte",
        "plasma_cell",
        "proerythroblast",
        "unclassified",
    ]
