"""``marrow-node compare``: packages over one slide, against what is known to lie on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forked import marrow_node
from tests.smears import Smear, small_smear
from tests.tiny_package import tiny_package

TRUE_CELLS = 20
MODELS = ("demo-smear", "tiny", "blind")


@pytest.fixture(scope="module")
def smear(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    """With a second package, which takes nothing for a cell."""
    made = small_smear(tmp_path_factory.mktemp("smear"))
    tiny_package(made.folder / "packages" / "blind", detector={"score_threshold": 1.0})
    return made


def compared(smear: Smear, *more: str, slides: int = 1) -> Any:
    named = [word for name in MODELS for word in ("--model", name)]
    uids = [smear.slide.study_uid, smear.slide.series_uid] * slides
    return marrow_node(
        *("--config", str(smear.settings()), "compare", "--pacs", smear.pacs_url),
        *(*named, *more, *uids),
    )


@pytest.fixture(scope="module")
def rows(smear: Smear) -> list[dict[str, Any]]:
    ended = compared(smear, "--truth", str(smear.slide.truth_path), "--json")
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def test_each_package_has_a_row(smear: Smear, rows: list[dict[str, Any]]) -> None:
    assert tuple(row["model"] for row in rows) == MODELS
    assert {row["series_uid"] for row in rows} == {smear.slide.series_uid}
    assert len({row["digest"] for row in rows}) == len(MODELS)
    for row in rows:
        assert 0 < row["tiles"] <= row["tiles_in_regions"]
        assert row["megabytes"] > 0
        assert row["seconds"] > 0


def test_a_row_counts_what_an_analysis_counts(smear: Smear, rows: list[dict[str, Any]]) -> None:
    code, result, said = smear.analyse()
    assert code == 0, said
    assert rows[1]["cells"] == result["cells"] > 0


def test_finding_is_measured_against_the_truth(rows: list[dict[str, Any]]) -> None:
    demo, _, blind = rows
    matched = demo["f1"] * (demo["cells"] + TRUE_CELLS) / 2  # F1 is 2 · matched / (found + true)
    assert matched == pytest.approx(round(matched), abs=0.01)
    assert 0.8 * TRUE_CELLS <= round(matched) <= min(demo["cells"], TRUE_CELLS)
    assert 0.5 < demo["type_accuracy"] <= demo["neighbour_accuracy"] <= 1
    assert demo["largest_error_percent"] > 0
    assert (blind["cells"], blind["f1"]) == (0, 0)
    assert blind["type_accuracy"] is None
    assert blind["largest_error_percent"] is None


def test_without_a_truth_the_table_shows_no_figures_of_it(smear: Smear, tmp_path: Path) -> None:
    before = sorted(path for path in (smear.folder / "pacs").rglob("*") if path.is_file())
    ended = compared(smear)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()]
    shown = {line[0]: line for line in lines if line and line[0] in MODELS}
    assert set(shown) == set(MODELS)
    for line in shown.values():
        assert line[3:7] == ["–"] * 4
    assert sorted(p for p in (smear.folder / "pacs").rglob("*") if p.is_file()) == before


def test_a_truth_belongs_to_one_slide(smear: Smear) -> None:
    ended = compared(smear, "--truth", str(smear.slide.truth_path), slides=2)
    assert ended.returncode != 0
    assert "A truth belongs to one slide" in ended.stderr
