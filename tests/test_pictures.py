"""The pictures of a result: readable PNGs that show what they should, the same every time."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from dicom_io.analysis import Analysis
from models.cell_types import CELL_TYPES
from models.records import Cells
from node.pictures import Field, as_png, draw_differential, draw_overview, smaller
from tests.analyses import small_slide, some_analysis


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder: Path = tmp_path_factory.mktemp("pictures") / "slide"
    return some_analysis(small_slide(folder))


def shows(image: NDArray[np.uint8], colour: str) -> int:
    """Pixels of exactly that colour."""
    wanted = np.rint(np.array(to_rgb(colour)) * 255).astype(np.uint8)
    return int((image == wanted).all(axis=-1).sum())


def white(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, np.uint8)


def test_overview_shows_every_type_that_was_found(analysis: Analysis) -> None:
    image = draw_overview(white(512, 384), analysis)
    assert image.shape[1] == 2010
    for label in np.unique(analysis.cells.label):
        assert shows(image, CELL_TYPES[analysis.cells.classes[label]].colour) > 100


def test_overview_with_a_field_is_taller(analysis: Analysis) -> None:
    plain = draw_overview(white(512, 384), analysis)
    field = Field(lambda: white(800, 500), np.array((100.0, 100.0, 900.0, 600.0)))
    with_field = draw_overview(white(512, 384), analysis, field)
    assert with_field.shape[0] > plain.shape[0] + 900
    frame_colour = "#b3261e"
    assert shows(with_field, frame_colour) > shows(plain, frame_colour) + 1000


def no_cells(analysis: Analysis) -> Cells:
    cells = analysis.cells
    return Cells(
        box_px=cells.box_px[:0],
        score=cells.score[:0],
        probability=cells.probability[:0],
        label=cells.label[:0],
        tile=cells.tile[:0],
        classes=cells.classes,
        package_digest=cells.package_digest,
    )


def test_overview_of_no_cells(analysis: Analysis) -> None:
    field = Field(lambda: white(80, 50), np.array((0.0, 0.0, 80.0, 50.0)))
    image = draw_overview(white(512, 384), replace(analysis, cells=no_cells(analysis)), field)
    assert image.shape[1] == 2010


def test_length_of_a_bar_is_its_percent(analysis: Analysis) -> None:
    """Bars of two types stand in the ratio of their shares."""
    image = draw_differential(analysis)
    differential = analysis.differential
    longest = []
    for key in ("segmented_neutrophil", "orthochromatic_erythroblast"):
        wanted = np.rint(np.array(to_rgb(CELL_TYPES[key].colour)) * 255).astype(np.uint8)
        columns = np.flatnonzero((image == wanted).all(axis=-1).any(axis=0))
        longest.append(columns.max() - columns.min())
    share = dict(zip(differential.classes, differential.share, strict=True))
    wanted_ratio = share["segmented_neutrophil"] / share["orthochromatic_erythroblast"]
    assert longest[0] / longest[1] == pytest.approx(wanted_ratio, rel=0.02)


def test_demonstration_models_are_marked(analysis: Analysis) -> None:
    clinical = replace(analysis, model=replace(analysis.model, demonstration=False))
    warning = "#b3261e"
    for draw in (draw_differential, lambda a: draw_overview(white(512, 384), a)):
        assert shows(draw(analysis), warning) > 100
        assert shows(draw(clinical), warning) == 0


def test_same_analysis_same_bytes(analysis: Analysis) -> None:
    assert as_png(draw_differential(analysis)) == as_png(draw_differential(analysis))
    rgb = white(512, 384)
    assert as_png(draw_overview(rgb, analysis)) == as_png(draw_overview(rgb, analysis))


def test_the_slide_lies_below_the_ink(analysis: Analysis) -> None:
    """Each quarter of the slide where it belongs, in its own colour."""
    rgb = np.zeros((60, 80, 3), np.uint8)
    quarters = {(0, 0): (255, 0, 0), (0, 1): (0, 255, 0), (1, 0): (0, 0, 255), (1, 1): (9, 9, 9)}
    for (row, column), colour in quarters.items():
        rgb[row * 30 : row * 30 + 30, column * 40 : column * 40 + 40] = colour
    image = draw_overview(rgb, replace(analysis, cells=no_cells(analysis)))
    width, height = analysis.slide.base.size_px
    slide = image[64 : 64 + round(1600 * height / width), 16 : 16 + 1568]
    for (row, column), colour in quarters.items():
        y, x = (int(slide.shape[axis] * (0.27 + 0.5 * at)) for axis, at in ((0, row), (1, column)))
        part = slide[y - 40 : y + 40, x - 40 : x + 40].reshape(-1, 3)
        assert tuple(np.median(part, axis=0)) == colour


@pytest.mark.parametrize("limits", [(700_000,), (30_000, 700_000), (1,)])
def test_smaller_pictures_stay_below_their_limits(
    analysis: Analysis, limits: tuple[int, ...]
) -> None:
    made = smaller(draw_differential(analysis), limits)
    sides = [Image.open(io.BytesIO(made[limit])).width for limit in limits]
    assert sides == sorted(sides)
    assert all(len(made[limit]) <= limit for limit in limits if limit > 1)
    assert limits != (1,) or sides == [300]
