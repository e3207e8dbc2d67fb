"""Analyses for tests of documents: a real slide's header, and cells that were drawn by lot."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dicom_io.analysis import Analysis, Decision, ModelIdentity, Signature, Standing
from dicom_io.pacs import PacsSettings, open_pacs
from dicom_io.slide import Slide, open_slide
from dicom_io.tile_plan import frame_boxes
from models.cell_types import ERYTHROID_STAGES, GRANULOCYTIC_STAGES
from models.differential import count_differential
from models.manifest import UNCLASSIFIED, DifferentialRules
from models.records import Cells, Regions
from tests.small_slides import write_small_slide

CLASSES = (*GRANULOCYTIC_STAGES, *ERYTHROID_STAGES, UNCLASSIFIED)
_SHARES = np.array([2, 4, 8, 10, 16, 25, 1, 4, 12, 15, 3]) / 100
RULES = DifferentialRules(
    chi_square_threshold=1e-4,
    chi_square_tiles=5,
    minimum_cells=500,
    unclassified_share_max=0.10,
    stop_when_converged=False,
)


def small_slide(folder: Path) -> Slide:
    """The small demonstration slide, written into `folder` and opened."""
    made = write_small_slide(folder)
    with open_pacs(folder.as_uri(), PacsSettings()) as pacs:
        return open_slide(pacs, made.study_uid, made.series_uid)


def some_analysis(slide: Slide, cells: int = 600, demonstration: bool = True) -> Analysis:
    """An analysis of `slide` with that many cells, the same every time."""
    rng = np.random.default_rng(5)
    width, height = slide.base.size_px
    corner = rng.uniform(0, (width - 60, height - 60), (cells, 2)).round(2)
    corner = corner[np.lexsort((corner[:, 0], corner[:, 1]))]
    side = rng.uniform(24, 60, (cells, 2)).round(2)
    probability = rng.dirichlet(np.ones(len(CLASSES)), cells).astype(np.float32)
    found = Cells(
        box_px=np.concatenate((corner, corner + side), axis=1).astype(np.float32).astype(float),
        score=rng.uniform(0.5, 1, cells).astype(np.float32),
        probability=probability,
        label=rng.choice(len(CLASSES), cells, p=_SHARES).astype(np.int32),
        tile=rng.integers(0, 12, cells).astype(np.int32),
        classes=CLASSES,
        package_digest="ab" * 32,
    )
    boxes = frame_boxes(slide)[::3]
    return Analysis(
        slide=slide,
        regions=Regions(boxes, np.full(len(boxes), 0.9, np.float32), "accepted frame"),
        cells=found,
        differential=count_differential(found, 12, RULES),
        model=ModelIdentity(
            "demo-smear", "1.0.0", "ab" * 32, "Demonstration, not for clinical use.", demonstration
        ),
        configuration_digest="cd" * 32,
        revision=1,
        started=datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC),
        finished=datetime(2026, 11, 20, 12, 1, 2, 345000, tzinfo=UTC),
    )


def signed(
    analysis: Analysis,
    decision: Decision = "confirmed",
    standing: Standing = "final",
    revision: int = 2,
    name: str = "Lee^Anna^^Dr.",
    reason: str = "",
) -> Analysis:
    """The next revision of `analysis`, a day and more after it."""
    at = datetime(2026, 11, 21, 9, revision, tzinfo=UTC)
    signature = Signature(name, "Haematology", at, decision, standing, reason)
    return replace(
        analysis,
        revision=revision,
        signature=signature,
        finished=at if decision == "corrected" else analysis.finished,
    )
