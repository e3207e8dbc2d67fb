"""The count, against numbers worked out by hand and slow twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from models.cell_types import CELL_TYPES
from models.differential import (
    TAYEBI_TYPES,
    accumulated,
    chi_square_distance,
    converged_after,
    count_differential,
    tile_histograms,
    wilson_interval,
)
from models.manifest import DifferentialRules
from models.records import Cells

CLASSES = (
    "myeloblast",
    "promyelocyte",
    "band_neutrophil",
    "segmented_neutrophil",
    "proerythroblast",
    "orthochromatic_erythroblast",
    "megakaryocyte",
    "unclassified",
)
RULES = DifferentialRules(
    chi_square_threshold=0.01,
    chi_square_tiles=3,
    minimum_cells=10,
    unclassified_share_max=0.10,
    stop_when_converged=False,
)


def cells_of(label: list[int], tile: list[int] | None = None) -> Cells:
    n = len(label)
    return Cells(
        box_px=np.tile(np.array([0.0, 0.0, 9.0, 9.0]), (n, 1)),
        score=np.ones(n, np.float32),
        probability=np.zeros((n, len(CLASSES)), np.float32),
        label=np.array(label, np.int32),
        tile=np.zeros(n, np.int32) if tile is None else np.array(tile, np.int32),
        classes=CLASSES,
        package_digest="0" * 64,
    )


def cells_by_count(*count: int) -> Cells:
    return cells_of([k for k, number in enumerate(count) for _ in range(number)])


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (3, 10, 0.1078, 0.6032),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (50, 500, 0.0767, 0.1294),
        (250, 500, 0.4563, 0.5437),
    ],
)
def test_wilson_interval(count: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(np.array([count]), total)[0] == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_is_that_of_scipy() -> None:
    for total in (1, 7, 500, 4321):
        count = np.unique(np.linspace(0, total, 12).astype(np.int64))
        expected = [
            binomtest(k, total).proportion_ci(0.95, method="wilson") for k in count.tolist()
        ]
        np.testing.assert_allclose(wilson_interval(count, total), expected, atol=1e-12)


def test_wilson_bounds_are_where_the_score_test_just_rejects() -> None:
    for count, total in [(3, 10), (17, 501), (499, 500)]:
        share = count / total
        for bound in wilson_interval(np.array([count]), total)[0]:
            z = abs(share - bound) / math.sqrt(bound * (1 - bound) / total)
            assert z == pytest.approx(1.959964, abs=1e-6)


def test_no_cells_tell_nothing() -> None:
    assert wilson_interval(np.array([0, 0]), 0).tolist() == [[0, 1], [0, 1]]


def test_counts_shares_and_ratio_by_hand() -> None:
    #                          my pm band seg pro orth mega uncl
    count = cells_by_count(2, 3, 10, 15, 4, 16, 7, 5)
    result = count_differential(count, 1, RULES)
    assert result.count.tolist() == [2, 3, 10, 15, 4, 16, 7, 5]
    assert result.in_ndc.tolist() == [True] * 6 + [False] * 2
    assert result.total == 50
    assert result.nucleated == 55
    assert result.share.tolist() == pytest.approx([0.04, 0.06, 0.2, 0.3, 0.08, 0.32, 0, 0])
    assert result.me_ratio == pytest.approx(30 / 20)
    assert result.me_numerator == CLASSES[:4]
    assert result.me_denominator == CLASSES[4:6]
    assert result.interval[2] == pytest.approx(wilson_interval(np.array([10]), 50)[0])
    assert result.interval[6:].tolist() == [[0, 0], [0, 0]]
    assert result.adequate
    assert result.reasons == ()


def test_without_erythroid_cells_there_is_no_ratio() -> None:
    assert count_differential(cells_by_count(20), 1, RULES).me_ratio is None


def test_a_slide_without_cells_is_insufficient_not_an_error() -> None:
    result = count_differential(cells_of([]), 4, RULES)
    assert (result.total, result.nucleated, result.me_ratio) == (0, 0, None)
    assert result.share.tolist() == [0] * 8
    assert result.chi_square.tolist() == [0] * 4
    assert result.converged_after is None
    assert result.reasons == ("insufficient: 0 of 10 nucleated cells",)
    assert not result.adequate
    assert count_differential(cells_of([]), 0, RULES).chi_square.shape == (0,)


@pytest.mark.parametrize(
    ("classified", "unclassified", "reasons"),
    [
        (10, 0, ()),
        (9, 0, ("insufficient: 9 of 10 nucleated cells",)),
        (90, 10, ()),
        (
            90,
            11,
            ("insufficient: unclassified 11 of 101 nucleated cells (10.9%), more than 10%",),
        ),
    ],
)
def test_sufficiency(classified: int, unclassified: int, reasons: tuple[str, ...]) -> None:
    count = cells_by_count(classified, 0, 0, 0, 0, 0, 0, unclassified)
    result = count_differential(count, 1, RULES)
    assert result.reasons == reasons
    assert result.adequate is not bool(reasons)


def test_both_insufficiencies_are_told() -> None:
    result = count_differential(cells_by_count(1, 0, 0, 0, 0, 0, 0, 9), 1, RULES)
    assert len(result.reasons) == 2


def test_the_twelve_types_are_those_of_the_table() -> None:
    assert len(TAYEBI_TYPES) == 12
    assert {row.tayebi for row in CELL_TYPES.values()} == {*TAYEBI_TYPES, None}


def test_the_ratio_has_the_members_of_equation_2() -> None:
    myeloid = {row.tayebi for row in CELL_TYPES.values() if row.me == "myeloid"}
    names = {"blast", "promyelocyte", "myelocyte", "metamyelocyte", "neutrophil", "eosinophil"}
    assert myeloid == names
    assert {row.tayebi for row in CELL_TYPES.values() if row.me == "erythroid"} == {"erythroblast"}


def test_histograms_join_the_types_of_the_paper() -> None:
    # Tile 1 is empty; the unclassified cell of tile 2 belongs to none of the twelve.
    histogram = tile_histograms(cells_of([2, 3, 4, 5, 7], [0, 0, 0, 2, 2]), 3)
    neutrophil, erythroblast = TAYEBI_TYPES.index("neutrophil"), TAYEBI_TYPES.index("erythroblast")
    assert histogram.shape == (3, 12)
    assert histogram[0, neutrophil] == 2
    assert histogram[0, erythroblast] == histogram[2, erythroblast] == 1
    assert histogram.sum(axis=1).tolist() == [3, 0, 1]
    assert accumulated(histogram)[:, erythroblast].tolist() == [1, 1, 2]


def test_chi_square_distance_by_hand() -> None:
    first, second = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.75, 0.0])
    # ½ (0.0625 / 0.75 + 0.0625 / 1.25 + 0/0 as 0)
    assert chi_square_distance(first, second) == pytest.approx(0.5 * (1 / 12 + 0.05))
    assert chi_square_distance(first, first) == 0


def slow_chi_square(label: list[int], tile: list[int], tiles: int) -> list[float]:
    """Follow equations 1 and 2 with loops and dictionaries."""
    distances = []
    state = dict.fromkeys([*TAYEBI_TYPES, "M:E"], 0.0)
    for n in range(1, tiles + 1):
        seen = [CELL_TYPES[CLASSES[k]] for k, t in zip(label, tile, strict=True) if t < n]
        number = {name: sum(row.tayebi == name for row in seen) for name in TAYEBI_TYPES}
        total = sum(number.values())
        new = {name: (number[name] / total if total else 0.0) for name in TAYEBI_TYPES}
        numerator = sum(row.me == "myeloid" for row in seen)
        denominator = sum(row.me == "erythroid" for row in seen)
        new["M:E"] = numerator / denominator if denominator else 0.0
        distance = 0.0
        for name, x in new.items():
            y = state[name]
            if x + y:
                distance += (x - y) ** 2 / (x + y) / 2
        distances.append(distance)
        state = new
    return distances


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda tiles: st.tuples(
            st.just(tiles),
            st.lists(st.tuples(st.integers(0, 7), st.integers(0, tiles - 1)), max_size=60),
        )
    )
)
def test_chi_square_is_that_of_the_slow_twin(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    tiles, pairs = drawn
    label, tile = [k for k, _ in pairs], [t for _, t in pairs]
    result = count_differential(cells_of(label, tile), tiles, RULES)
    assert result.chi_square.tolist() == pytest.approx(slow_chi_square(label, tile, tiles))
    assert result.count.sum() == len(pairs)
    low, high = result.interval[result.in_ndc].T
    assert (low <= result.share[result.in_ndc]).all()
    assert (result.share[result.in_ndc] <= high).all()
    assert result.share.sum() == pytest.approx(1 if result.total else 0)


@pytest.mark.parametrize(
    ("distance", "cells", "after"),
    [
        ([0.5, 0.001, 0.001, 0.001], "1111", 4),
        ([0.5, 0.001, 0.02, 0.001, 0.001, 0.001], "111111", 6),
        ([0.5, 0.001, 0.001], "111", None),
        ([0.01, 0.01, 0.01], "111", None),  # below means below
        ([0, 0, 0, 0.5], "0001", None),  # empty tiles converge on nothing
        ([0.5, 0.001, 0, 0.001, 0.001], "11011", 5),
        ([], "", None),
    ],
)
def test_convergence(distance: list[float], cells: str, after: int | None) -> None:
    informative = np.array([c == "1" for c in cells], dtype=np.bool_)
    assert converged_after(np.array(distance, np.float64), informative, 0.01, 3) == after


def test_a_long_even_slide_converges() -> None:
    tile = [t for t in range(200) for _ in range(20)]
    label = list(np.random.default_rng(0).choice(6, len(tile)))
    result = count_differential(cells_of(label, tile), 200, RULES)
    assert result.converged_after is not None
    assert result.converged_after < 60
    assert result.chi_square[-1] < 1e-4
