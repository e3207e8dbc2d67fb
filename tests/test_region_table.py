"""Regions by object and by slide, against areas drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.records import Bool
from models.region_table import boxes_as_places, region_table


def drawn(*box: tuple[int, int, int, int]) -> Bool:
    places = np.zeros((6, 10), bool)
    for x0, y0, x1, y1 in box:
        places[y0:y1, x0:x1] = True
    return places


def test_figures_by_hand() -> None:
    """Slide A has two images: 4 of 8 + 6 right in the one, a region of 4 missed in the other."""
    truth = [drawn((1, 1, 4, 3)), drawn((6, 4, 8, 6)), drawn((0, 0, 2, 2)), drawn()]
    found = [drawn((2, 1, 6, 3)), drawn(), drawn((0, 0, 2, 2), (8, 0, 9, 1)), drawn()]
    table = region_table(found, truth, ["a", "a", "b", "empty"], seed=0)
    assert table["slides"] == 3
    assert table["regions"] == 3
    # a: 4 of 6 + 8 − 4 + 4; b: 4 of 5; the empty one has no value.
    assert table["roi_iou_slide"] == pytest.approx((4 / 14 + 4 / 5) / 2, abs=1e-4)
    assert table["roi_recall_slide"] == 0.5
    assert table["roi_iou_object"] == pytest.approx((4 / 10 + 0 + 1) / 3, abs=1e-4)
    assert table["roi_recall_object"] == pytest.approx(1 / 3, abs=1e-4)
    assert table["roi_precision_object"] == pytest.approx(1 / 3, abs=1e-4)
    assert table["roi_precision_slide"] == table["roi_accuracy_slide"] == 0.5
    assert table["roi_accuracy_object"] == 1 / 5  # three true ones, two found in vain
    assert table["confusion"] == [[4 * 60 - 14 - 5, 5], [6, 8]]
    low, high = table["roi_iou_slide_interval"]
    assert low == pytest.approx(4 / 14, abs=1e-4)
    assert high == pytest.approx(4 / 5, abs=1e-4)


def test_a_slide_on_which_regions_are_invented_does_not_count_as_missed() -> None:
    table = region_table([drawn((0, 0, 3, 3))], [drawn()], ["a"], seed=0)
    assert table["roi_iou_slide"] == 0
    assert table["roi_recall_slide"] is None
    assert table["roi_iou_object"] is None
    assert table["roi_precision_object"] == table["roi_accuracy_object"] == 0
    assert table["roi_precision_slide"] == table["roi_accuracy_slide"] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_is_found_as_it_is_has_no_fault(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = [rng.random((5, 7)) < 0.3 for _ in range(4)]
    truth[0][0, 0] = True
    table = region_table(truth, truth, ["a", "b", "b", "c"], seed)
    names = ("roi_iou_slide", "roi_recall_slide", "roi_iou_object", "roi_precision_object")
    names += ("roi_accuracy_object", "roi_precision_slide", "roi_accuracy_slide")
    assert [table[name] for name in names] == [1] * 7
    assert table["roi_iou_object_interval"] == [1, 1]


def test_a_place_belongs_to_a_box_that_holds_its_middle() -> None:
    box = np.array([[4.0, 0, 12, 7.9], [31, 7, 33, 9]])
    places = boxes_as_places(box, (2, 5), 8.0)
    expected = np.zeros((2, 5), bool)
    expected[0, 0] = False  # its middle is the box's very edge
    expected[0, 1] = False  # (12, 4) is the other edge
    np.testing.assert_array_equal(places, expected)
    wide = boxes_as_places(box + np.array([-0.1, 0, 0.1, 0]), (2, 5), 8.0)
    assert np.argwhere(wide).tolist() == [[0, 0], [0, 1]]
