"""The small demonstration slide that most tests look at, composed once in a test process."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from dicom_io.demonstration import DemonstrationSlide, compose_demonstration_slide


def write_small_slide(folder: Path) -> DemonstrationSlide:
    """Write the slide into `folder` and ``truth.json`` beside it, as the composer does."""
    made = _composed()[0]
    shutil.copytree(made.paths[0].parent, folder, dirs_exist_ok=True)
    truth = shutil.copy(made.truth_path, folder.parent)
    return replace(
        made, paths=tuple(folder / path.name for path in made.paths), truth_path=Path(truth)
    )


@cache
def _composed() -> tuple[DemonstrationSlide, TemporaryDirectory[str]]:
    """The slide, and the folder, which goes when the process ends."""
    folder = TemporaryDirectory(prefix="marrow-node-small-slide-")
    made = compose_demonstration_slide(
        Path(folder.name) / "slide", seed=3, size_px=(2048, 1536), cells=20
    )
    return made, folder
