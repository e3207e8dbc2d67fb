"""A count that has converged stops the reading: fewer tiles, and the same percentages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.cell_types import CELL_TYPES
from models.differential import count_differential
from models.package import find_package
from models.records import Cells
from tests.smears import small_smear
from tests.tiny_package import tiny_package

CLASSES = (
    "myeloblast",
    "promyelocyte",
    "myelocyte",
    "segmented_neutrophil",
    "polychromatic_erythroblast",
    "orthochromatic_erythroblast",
)
SHARES = np.array([0.02, 0.05, 0.13, 0.45, 0.25, 0.10])
RULES = replace(find_package("demo-smear", ()).manifest.differential, stop_when_converged=True)


def some_cells(rng: np.random.Generator, tiles: int, per_tile: float) -> Cells:
    tile = np.sort(rng.integers(tiles, size=round(tiles * per_tile))).astype(np.int32)
    label = rng.choice(len(CLASSES), len(tile), p=SHARES).astype(np.int32)
    return Cells(
        box_px=np.tile(np.array([[0.0, 0, 10, 10]]), (len(tile), 1)),
        score=np.ones(len(tile), np.float32),
        probability=np.eye(len(CLASSES), dtype=np.float32)[label],
        label=label,
        tile=tile,
        classes=CLASSES,
        package_digest="",
    )


def in_order(cells: Cells, order: np.ndarray, tiles: int) -> Cells:
    """The cells of the first `tiles` tiles, when tiles come in another order."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    number = place[cells.tile]
    kept = number < tiles
    return Cells(
        box_px=cells.box_px[kept],
        score=cells.score[kept],
        probability=cells.probability[kept],
        label=cells.label[kept],
        tile=number[kept].astype(np.int32),
        classes=cells.classes,
        package_digest="",
    )


@pytest.mark.parametrize("per_tile", [2.5, 5.0, 10.0])
def test_stopping_keeps_every_percentage_within_two_points(per_tile: float) -> None:
    """Ten thousand cells, 20 orders, the shipped threshold: as the node would stop."""
    rng = np.random.default_rng(0)
    tiles = round(10_000 / per_tile)
    cells = some_cells(rng, tiles, per_tile)
    whole = count_differential(cells, tiles, RULES)
    stopped, errors = [], []
    for _ in range(20):
        order = rng.permutation(tiles)
        after = count_differential(in_order(cells, order, tiles), tiles, RULES).converged_after
        assert after is not None
        seen = count_differential(in_order(cells, order, after), after, RULES)
        assert seen.converged_after == after  # what is read decides, not what is left
        stopped.append(after)
        errors.append(100 * np.abs(seen.share - whole.share).max())
    print(
        f"stopped after {np.median(stopped)} of {tiles} tiles; largest errors {np.round(errors, 2)}"
    )
    assert max(stopped) < tiles
    assert np.mean(np.array(errors) <= 2) >= 0.95
    assert {CELL_TYPES[key].ndc for key in CLASSES} == {True}


def test_the_node_reads_no_more_tiles_once_it_has_converged(tmp_path: Path) -> None:
    """Rules that are content at once: the second run of the same slide reads less of it."""
    smear = small_smear(tmp_path)
    rules = {"chi_square_threshold": 10.0, "chi_square_tiles": 1, "minimum_cells": 1}
    tiny_package(tmp_path / "packages" / "tiny", differential=rules)
    code, patient, said = smear.analyse()
    assert code == 0, said
    tiny_package(
        tmp_path / "packages" / "tiny", differential={**rules, "stop_when_converged": True}
    )
    code, hasty, said = smear.analyse()
    assert code == 0, said
    assert hasty["bytes_read"] < patient["bytes_read"]
    assert hasty["cells"] < patient["cells"]
    assert hasty["converged_after_tiles"] is not None
