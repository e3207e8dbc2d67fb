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
from node.pictures import Field, draw_differential, draw_overview
from tests.analyses import small_slide, some_analysis


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    folder: Path = tmp_path_factory.mktemp("pictures") / "slide"
    return some_analysis(small_slide(folder))


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def shows(image: NDArray[np.uint8], colour: str) -> int:
    """Pixels of exactly that colour."""
    wanted = np.rint(np.array(to_rgb(colour)) * 255).astype(np.uint8)
    return int((image == wanted).all(axis=-1).sum())


def white(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, np.uint8)


def test_overview_shows_every_type_that_was_found(analysis: Analysis) -> None:
    image = pixels(draw_overview(white(512, 384), analysis))
    assert image.shape[1] == 2010
    for label in np.unique(analysis.cells.label):
        assert shows(image, CELL_TYPES[analysis.cells.classes[label]].colour) > 100


def test_overview_with_a_field_is_taller(analysis: Analysis) -> None:
    plain = pixels(draw_overview(white(512, 384), analysis))
    field = Field(white(800, 500), (100.0, 100.0, 900.0, 600.0))
    with_field = pixels(draw_overview(white(512, 384), analysis, field))
    assert with_field.shape[0] > plain.shape[0] + 900
    frame_colour = "#b3261e"
    assert shows(with_field, frame_colour) > shows(plain, frame_colour) + 1000


def test_overview_of_no_cells(analysis: Analysis) -> None:
    cells = analysis.cells
    none = Cells(
        box_px=cells.box_px[:0],
        score=cells.score[:0],
        probability=cells.probability[:0],
        label=cells.label[:0],
        tile=cells.tile[:0],
        classes=cells.classes,
        package_digest=cells.package_digest,
    )
    field = Field(white(80, 50), (0.0, 0.0, 80.0, 50.0))
    image = pixels(draw_overview(white(512, 384), replace(analysis, cells=none), field))
    assert image.shape[1] == 2010


def test_length_of_a_bar_is_its_percent(analysis: Analysis) -> None:
    """Bars of two types stand in the ratio of their shares."""
    image = pixels(draw_differential(analysis))
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
        assert shows(pixels(draw(analysis)), warning) > 100
        assert shows(pixels(draw(clinical)), warning) == 0


def test_same_analysis_same_bytes(analysis: Analysis) -> None:
    assert draw_differential(analysis) == draw_differential(analysis)
    rgb = white(512, 384)
    assert draw_overview(rgb, analysis) == draw_overview(rgb, analysis)
