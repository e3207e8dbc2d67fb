"""Differentials compared, and the file that a person's count comes in."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.metrics import mean_squared_error

from models.errors import TrainingInvalid
from models.manual_count import (
    differential_difference,
    differentials_difference,
    read_manual_count,
)


def test_the_error_is_that_of_scikit_learn() -> None:
    """Shares of 0.5, 0.5, 0 against 0.25, 0.5, 0.25; a smudge cell counts in neither."""
    mine = {"myelocyte": 20, "lymphocyte": 20, "smudge_cell": 100}
    theirs = {"myelocyte": 1, "lymphocyte": 2, "monocyte": 1}
    assert differential_difference(mine, theirs) == {
        "ndc_mse": pytest.approx(mean_squared_error([0.5, 0.5, 0], [0.25, 0.5, 0.25]), abs=1e-6),
        "ndc_largest_error_points": 25.0,
    }


def test_percentages_are_counts_too() -> None:
    counts, percent = {"myelocyte": 1, "lymphocyte": 3}, {"myelocyte": 25.0, "lymphocyte": 75.0}
    assert differential_difference(counts, percent)["ndc_mse"] == 0


@pytest.mark.parametrize("nothing", [{}, {"WBC": 3}, {"myelocyte": 0}])
def test_without_cells_nothing_is_known(nothing: dict[str, float]) -> None:
    for pair in ((nothing, {"myelocyte": 1}), ({"myelocyte": 1}, nothing)):
        assert set(differential_difference(*pair).values()) == {None}


def test_a_count_is_read(tmp_path: Path) -> None:
    path = tmp_path / "manual.csv"
    path.write_text("\ufefftype,percent\nmyelocyte,12.5\nlymphocyte,30\n", encoding="utf-8")
    assert read_manual_count(path) == {"": {"myelocyte": 12.5, "lymphocyte": 30}}


def test_counts_of_slides_are_compared_slide_by_slide(tmp_path: Path) -> None:
    """Errors in opposite directions are errors."""
    path = tmp_path / "manual.csv"
    path.write_text("slide,type,count\na,myelocyte,9\nb,lymphocyte,5\nc,lymphocyte,5\n")
    manual = read_manual_count(path)
    counted = {"a": {"myelocyte": 1, "lymphocyte": 1}, "b": {"myelocyte": 2, "lymphocyte": 2}}
    expected = mean_squared_error([[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]])
    assert differentials_difference(counted, manual) == {
        "ndc_mse": pytest.approx(expected, abs=1e-6),
        "ndc_largest_error_points": 50.0,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("type,count\nmyelocite,3\n", "line 2: 'myelocite' is no type"),
        ("type,count\nsmudge_cell,3\n", "line 2: 'smudge_cell' is no type"),
        ("type,count\nmyelocyte,3\nmyelocyte,4\n", "line 3: myelocyte is there twice"),
        ("type,count\nmyelocyte,many\n", "'many' is no number"),
        ("type,count\nmyelocyte,\n", "is no number"),
        ("type,count\nmyelocyte,-1\n", "is no number of cells"),
        ("type,count\nmyelocyte,nan\n", "is no number of cells"),
        ("type,count\n", "counts no cell"),
        ("a,b\n1,2\n", "line 2: None is no type"),
        ("slide,type,count\na,myelocyte,3\n,myelocyte,3\n", "name the slide in every line"),
        ("slide,type,count\na,myelocyte,3\nb,myelocyte,0\n", "slide b, counts no cell"),
    ],
)
def test_what_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "manual.csv"
    path.write_text(text)
    with pytest.raises(TrainingInvalid) as error:
        read_manual_count(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingInvalid, match=r"missing\.csv cannot be read"):
        read_manual_count(tmp_path / "missing.csv")
