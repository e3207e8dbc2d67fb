"""What a person changed of the cells: read, resolved, applied, and compared."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest

from dicom_io.analysis import Analysis, Decision, Standing
from dicom_io.annotation import decode_annotation, encode_annotation, rows_of_groups
from dicom_io.slide import Slide
from models.boxes import centres
from models.correction import Correction, corrected, difference
from models.differential import count_differential
from models.errors import ReviewInvalid, ReviewRefused
from models.records import Cells, Regions
from node.review import NEXT_STANDING, Corrections, Review, resolve, review_from
from tests.analyses import CLASSES, RULES, small_slide, some_analysis

SIGNED: dict[str, Any] = {
    "revision": 1,
    "decision": "confirmed",
    "name": "Lee^Anna^^Dr.",
    "organization": "Haematology",
    "at": "2026-11-26T14:00:00.000+00:00",
}
WHOLE = np.array([[0.0, 0.0, 4096.0, 4096.0]])
EVERYWHERE = Regions(WHOLE, np.ones(1, np.float32), "whole slide")


def correction(**values: Any) -> Correction:
    empty = Correction(np.array([], np.int64), (), np.array([], np.int64), np.zeros((0, 4)), ())
    return replace(empty, **values)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return small_slide(tmp_path_factory.mktemp("slide"))


@pytest.fixture(scope="module")
def analysis(slide: Slide) -> Analysis:
    return some_analysis(slide)


@pytest.fixture(scope="module")
def cells(analysis: Analysis) -> Cells:
    return analysis.cells


def types_of(cells: Cells) -> list[str]:
    return [cells.classes[label] for label in cells.label]


def by_place(cells: Cells) -> dict[tuple[float, ...], str]:
    return dict(zip(map(tuple, cells.box_px.round(2).tolist()), types_of(cells), strict=True))


def test_a_correction_is_applied_and_nothing_else_changes(cells: Cells) -> None:
    """Against a slow twin: a dictionary of boxes."""
    change = correction(
        retyped=np.array([3, 10]),
        retyped_as=("plasma_cell", "myelocyte"),
        deleted=np.array([5]),
        added_px=np.array([[100.0, 700.0, 130.0, 731.0]]),
        added_as=("basophil",),
    )
    expected = by_place(cells)
    boxes = [tuple(box) for box in cells.box_px.round(2).tolist()]
    expected[boxes[3]], expected[boxes[10]] = "plasma_cell", "myelocyte"
    del expected[boxes[5]]
    expected[100.0, 700.0, 130.0, 731.0] = "basophil"
    edited = corrected(cells, change, WHOLE, EVERYWHERE)
    assert by_place(edited) == expected
    assert edited.classes == (*CLASSES, "plasma_cell", "basophil")
    assert (np.diff(edited.box_px[:, 1]) >= 0).all()
    judged = edited.probability.any(axis=1)
    assert (~judged).sum() == 3
    assert (edited.score == 0).sum() == 1
    untouched = corrected(cells, correction(), WHOLE, EVERYWHERE)
    for name in ("box_px", "score", "probability", "label", "tile"):
        assert (getattr(untouched, name) == getattr(cells, name)).all()


def test_the_count_is_that_of_the_corrected_cells(cells: Cells) -> None:
    change = correction(retyped=np.arange(20), retyped_as=("eosinophil",) * 20)
    edited = corrected(cells, change, WHOLE, EVERYWHERE)
    counted = count_differential(edited, 12, RULES)
    assert counted.count[counted.classes.index("eosinophil")] == 20
    assert counted.count.sum() == len(cells)
    assert "eosinophil" in counted.me_numerator


def test_a_cell_outside_of_what_was_counted_is_refused(cells: Cells) -> None:
    change = correction(added_px=np.array([[90.0, 90.0, 110.0, 110.0]]), added_as=("blast",))
    half = np.array([[0.0, 0.0, 99.0, 99.0]])
    for counted, regions in ((half, EVERYWHERE), (WHOLE, replace(EVERYWHERE, box_px=half))):
        with pytest.raises(ReviewInvalid, match=r"first at \(100\.0, 100\.0\) px"):
            corrected(cells, change, counted, regions)


def test_an_added_cell_is_in_the_tile_that_holds_its_centre(cells: Cells) -> None:
    tiles = np.array([[0.0, 0, 512, 512], [512, 0, 1024, 512], [0, 512, 4096, 4096]])
    change = correction(added_px=np.array([[500.0, 10.0, 530.0, 41.0]]), added_as=("blast",))
    edited = corrected(cells, change, tiles, EVERYWHERE)
    assert edited.tile[edited.score == 0].tolist() == [1]


@pytest.mark.parametrize("form", ["RECTANGLE", "POLYGON", "POINT"])
def test_edited_annotations_are_compared_cell_by_cell(analysis: Analysis, form: Any) -> None:
    """Written, read back unchanged: nothing; then with one change of each kind: that one."""
    cells, slide = analysis.cells, analysis.slide
    same = decode_annotation(encode_annotation(analysis, form), slide)
    assert len(difference(cells, same)) == 0
    change = correction(
        retyped=np.array([7]),
        retyped_as=("monocyte",),
        deleted=np.array([8, 9]),
        added_px=np.array([[600.0, 601.0, 640.0, 642.0]]),
        added_as=("mast_cell",),
    )
    edited = replace(analysis, cells=corrected(cells, change, WHOLE, EVERYWHERE))
    found = difference(cells, decode_annotation(encode_annotation(edited, form), slide))
    assert found.retyped.tolist() == [7]
    assert found.retyped_as == ("monocyte",)
    assert found.deleted.tolist() == [8, 9]
    assert found.added_px == pytest.approx(change.added_px, abs=0.01)
    assert found.added_as == ("mast_cell",)


def test_what_a_person_decided_has_no_probability_of_the_model(analysis: Analysis) -> None:
    change = correction(retyped=np.array([7]), retyped_as=("monocyte",))
    edited = replace(analysis, cells=corrected(analysis.cells, change, WHOLE, EVERYWHERE))
    groups = {g.AnnotationGroupLabel: g for g in encode_annotation(edited).AnnotationGroupSequence}
    measured = [
        each.ConceptNameCodeSequence[0].CodeValue
        for each in groups["Monocyte"].MeasurementsSequence
    ]
    assert measured == ["cell-probability", "103355008", "121207"]


def test_a_box_drawn_anew_is_another_cell(cells: Cells) -> None:
    box = cells.box_px.copy()
    box[0, 2:] += 6
    found = difference(cells, replace(cells, box_px=box))
    assert (found.deleted.tolist(), len(found.added_px), len(found.retyped)) == ([0], 1, 0)


def test_a_point_is_as_large_as_the_median_cell(cells: Cells) -> None:
    box = np.concatenate((cells.box_px[:-1], [[700.0, 700.0, 700.0, 700.0]]))
    found = difference(cells, replace(cells, box_px=box))
    ((x0, y0, x1, y1),) = found.added_px
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == (700.0, 700.0)
    sides = np.median(cells.box_px[:, 2:] - cells.box_px[:, :2], axis=0)
    assert (x1 - x0, y1 - y0) == pytest.approx(tuple(sides))
    none = replace(
        cells,
        **{
            name: getattr(cells, name)[:0]
            for name in ("box_px", "score", "probability", "label", "tile")
        },
    )
    with pytest.raises(ReviewInvalid, match="draw boxes"):
        difference(none, replace(cells, box_px=box))


def test_a_cell_drawn_twice_is_refused(cells: Cells) -> None:
    doubled = corrected(
        cells,
        correction(added_px=cells.box_px[:1], added_as=("blast",)),
        WHOLE,
        EVERYWHERE,
    )
    with pytest.raises(ReviewInvalid, match="drawn twice"):
        difference(cells, doubled)


@pytest.mark.parametrize("group_size", [20_000, 50])
def test_cells_are_named_by_their_annotation_or_place(analysis: Analysis, group_size: int) -> None:
    cells = analysis.cells
    document = encode_annotation(analysis, group_size=group_size)
    number = len(document.AnnotationGroupSequence)
    group = document.AnnotationGroupSequence[number - 1]
    last = np.frombuffer(group.PointCoordinatesData, np.float32).reshape(-1, 4, 2)[-1]
    index = int(group.NumberOfAnnotations)
    middle = tuple(map(float, last.mean(axis=0)))
    asked = review_from(
        SIGNED
        | {
            "decision": "corrected",
            "corrections": {
                "retyped": [{"group": number, "index": index, "type": "blast"}],
                "deleted": [{"group": 1, "index": 1}],
            },
        }
    ).corrections
    assert asked is not None
    found = resolve(asked, cells, group_size)
    assert cells.box_px[found.retyped[0]] == pytest.approx([*last.min(axis=0), *last.max(axis=0)])
    assert found.deleted[0] == rows_of_groups(cells, group_size)[0][0]
    at = review_from(
        SIGNED
        | {
            "decision": "corrected",
            "corrections": {"retyped": [{"at_px": middle, "type": "blast"}]},
        }
    ).corrections
    assert at is not None
    row = resolve(at, cells, group_size).retyped[0]
    assert np.abs(centres(cells.box_px[row : row + 1])[0] - middle).max() < 0.1


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"group": 99, "index": 1}, "annotation 1 of group 99"),
        ({"group": 1, "index": 9999}, "annotation 9999 of group 1"),
        ({"at_px": [1.0, 1.0]}, r"at \(1, 1\) px, where the revision has none"),
    ],
)
def test_cells_that_are_not_there(cells: Cells, cell: dict[str, Any], said: str) -> None:
    asked = review_from(
        SIGNED | {"decision": "corrected", "corrections": {"deleted": [cell]}}
    ).corrections
    assert asked is not None
    with pytest.raises(ReviewInvalid, match=said):
        resolve(asked, cells, 20_000)


def test_a_cell_is_named_once(cells: Cells) -> None:
    cell = {"group": 1, "index": 1}
    asked = review_from(
        SIGNED
        | {
            "decision": "corrected",
            "corrections": {"deleted": [cell], "retyped": [cell | {"type": "blast"}]},
        }
    ).corrections
    assert asked is not None
    with pytest.raises(ReviewInvalid, match="more than once"):
        resolve(asked, cells, 20_000)


def test_the_type_that_it_has_is_no_change(cells: Cells) -> None:
    first = rows_of_groups(cells)[0][0]
    same = types_of(cells)[first]
    asked = review_from(
        SIGNED
        | {
            "decision": "corrected",
            "corrections": {"retyped": [{"group": 1, "index": 1, "type": same}]},
        }
    ).corrections
    assert asked is not None
    assert len(resolve(asked, cells, 20_000)) == 0


BY_CELLS = {"decision": "corrected"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"revision": 0}, "at revision"),
        ({"revision": "1"}, "at revision"),
        ({"revision": None}, "at revision"),
        ({"decision": "approved"}, "at decision"),
        ({"unknown": 1}, "at unknown"),
        ({"name": " ^ "}, "names nobody"),
        ({"name": "Lee\\Anna"}, "without backslash"),
        ({"name": "L" * 65}, "at most 64"),
        ({"name": "A^B=C^D=E^F=G^H"}, "three groups"),
        ({"organization": ""}, "no organization"),
        ({"at": "2026-11-26T14:00:00"}, "not ISO 8601"),
        ({"at": "yesterday"}, "not ISO 8601"),
        ({"reason": "two\nlines"}, "on one line"),
        ({"decision": "withdrawn"}, "has a reason"),
        ({"decision": "withdrawn", "reason": "  "}, "has a reason"),
        (BY_CELLS, "give one of"),
        (BY_CELLS | {"annotation_uid": "1.2", "corrections": {}}, "give one of"),
        ({"annotation_uid": "1.2"}, "only a correction"),
        (BY_CELLS | {"corrections": {"moved": []}}, "at corrections.moved"),
        (BY_CELLS | {"corrections": {"deleted": [{"group": 1}]}}, r"deleted\[0\] must name a cell"),
        (BY_CELLS | {"corrections": {"deleted": [{}]}}, r"deleted\[0\] must name a cell"),
        (
            BY_CELLS | {"corrections": {"deleted": [{"group": 1, "index": 1, "at_px": [1, 2]}]}},
            r"deleted\[0\] must name a cell",
        ),
        (BY_CELLS | {"corrections": {"deleted": [{"at_px": [1, float("inf")]}]}}, "at_px.1"),
        (BY_CELLS | {"corrections": {"deleted": [{"at_px": [1, 2], "type": "blast"}]}}, "no type"),
        (BY_CELLS | {"corrections": {"retyped": [{"at_px": [1, 2]}]}}, "a type"),
        (
            BY_CELLS | {"corrections": {"retyped": [{"at_px": [1, 2], "type": "unicorn"}]}},
            "not a key of the table",
        ),
        (
            BY_CELLS | {"corrections": {"added": [{"box_px": [5, 0, 1, 1], "type": "blast"}]}},
            "not x0 < x1",
        ),
        (BY_CELLS | {"corrections": {"added": [{"box_px": [5, 0], "type": "blast"}]}}, "box_px"),
    ],
)
def test_what_is_wrong_with_a_review_is_one_sentence(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ReviewInvalid, match=said) as caught:
        review_from(SIGNED | changed)
    assert str(caught.value).count("\n") == 0


def test_a_review_goes_through_json_and_is_told_by_its_content() -> None:
    review = review_from(
        SIGNED
        | BY_CELLS
        | {"corrections": {"deleted": [{"at_px": [1.5, 2]}]}, "reason": "A platelet."}
    )
    assert isinstance(review.corrections, Corrections)
    assert review_from(review.as_json()) == review
    later = replace(review, at="2026-11-27T00:00:00+00:00")
    assert later.digest == review.digest
    assert replace(review, name="Kim^Bo").digest != review.digest
    assert replace(review, revision=2).digest != review.digest


@pytest.mark.parametrize(
    ("before", "decision"), list(product(get_args(Standing), get_args(Decision)))
)
def test_every_pair_of_standing_and_decision(before: Standing, decision: Decision) -> None:
    review = Review(**(SIGNED | {"decision": decision, "reason": "."}))
    if before == "withdrawn":
        with pytest.raises(ReviewRefused, match="is withdrawn and cannot be"):
            review.signature(before)
        return
    standing = review.signature(before).standing
    assert standing == NEXT_STANDING[before, decision]
    assert (standing == "withdrawn") == (decision == "withdrawn")
    if decision != "withdrawn":  # R4: corrected is said of what was final
        is_corrected = before == "corrected" or (before, decision) == ("final", "corrected")
        assert standing == ("corrected" if is_corrected else "final")


@pytest.mark.parametrize(
    ("name", "kept"),
    [("Dr. Anna Lee", "Dr. Anna Lee^"), ("Lee^Anna", "Lee^Anna"), ("=山田", "=山田")],
)
def test_a_name_of_one_part_is_a_family_name(name: str, kept: str) -> None:
    assert review_from(SIGNED | {"name": name}).name == kept
