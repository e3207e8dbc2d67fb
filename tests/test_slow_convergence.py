"""A slide of ten thousand cells, read in twenty orders of its tiles: when reading would stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from dicom_io.demonstration import compose_demonstration_slide
from models.differential import count_differential
from models.manifest import DifferentialRules
from models.package import find_package
from models.records import Cells
from node import stages
from node.config import load_settings
from node.workplace import Workplace
from tests.test_convergence import in_order

pytestmark = pytest.mark.slow
ORDERS = 20


def found_cells(folder: Path) -> tuple[Cells, int]:
    """Compose the slide, and find its cells with the shipped model: cells and number of tiles."""
    slide = compose_demonstration_slide(folder / "pacs", 7, (36_000, 30_000), 10_500)
    settings = replace(
        load_settings(None, {}),
        pacs_url=(folder / "pacs").as_uri(),
        work_folder=folder / "work",
    )
    place = Workplace.open(settings, lambda progress: None)
    opened = stages.open_(place, slide.study_uid, slide.series_uid)
    detected = stages.detect(place, opened, stages.localise(place, opened))
    return place.work.get_record(detected["cells"]), detected["tiles"]


def stops(cells: Cells, tiles: int, rules: DifferentialRules) -> tuple[list[int], list[float]]:
    """After how many tiles each order stops, and the largest error of a percentage then."""
    whole = count_differential(cells, tiles, rules)
    after, errors = [], []
    for seed in range(ORDERS):
        order = np.random.default_rng(seed).permutation(tiles)
        reached = count_differential(in_order(cells, order, tiles), tiles, rules).converged_after
        after.append(tiles if reached is None else reached)
        seen = count_differential(in_order(cells, order, after[-1]), after[-1], rules)
        errors.append(float(100 * np.abs(seen.share - whole.share).max()))
    return after, errors


def draw(cells: Cells, tiles: int, rules: DifferentialRules, path: Path) -> None:
    """Largest error of a percentage as tiles come in, for every order, and where it stops."""
    after, errors = stops(cells, tiles, rules)
    whole = count_differential(cells, tiles, rules)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for seed in range(ORDERS):
        order = np.random.default_rng(seed).permutation(tiles)
        at = np.unique(np.linspace(20, tiles, 60).astype(int))
        way = [
            100
            * np.abs(
                count_differential(in_order(cells, order, n), n, rules).share - whole.share
            ).max()
            for n in at.tolist()
        ]
        axes.plot(at, way, color="0.75", linewidth=0.7)
    axes.plot(after, errors, "o", color="tab:blue", label="χ² says: converged")
    axes.axhline(2, color="tab:red", linewidth=0.8, label="2 points")
    axes.set(
        xlabel=f"tiles read, of {tiles}",
        ylabel="largest error of an NDC percentage",
        title=f"{len(cells)} cells found, {ORDERS} orders of tiles",
        ylim=(0, 8),
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def test_reading_stops_early_and_within_two_points(tmp_path: Path) -> None:
    cells, tiles = found_cells(tmp_path)
    assert len(cells) >= 10_000
    rules = find_package("demo-smear", ()).manifest.differential
    after, errors = stops(cells, tiles, rules)
    print(f"\n{len(cells)} cells; stopped after {sorted(after)} of {tiles} tiles")
    print(f"largest errors {np.round(sorted(errors), 2)}")
    assert max(after) < tiles
    assert np.mean(np.array(errors) <= 2) >= 0.95
    draw(cells, tiles, rules, tmp_path / "convergence.png")
    assert (tmp_path / "convergence.png").stat().st_size > 10_000
