"""DICOM metadata of a series → :class:`Slide`: levels, tile grid, geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset


class FrameIndex(Protocol):
    """Tile of a level → where its frame is stored."""

    def __call__(self, column: int, row: int) -> tuple[int, int] | None:
        """Index into ``Level.instance_uids`` and 0-based frame; None where nothing is stored."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the slide.

    Attributes
    ----------
    instance_uids
        SOP Instance UIDs that hold its frames.
    transfer_syntax_uids
        Transfer syntax of the stored frames, one per instance.
    photometric_interpretation
        Of the stored frames, for example ``YBR_FULL_422``.
    size_px : (width, height)
        Total pixel matrix.
    tile_size_px : (width, height)
        Frame size.
    spacing_mm : (x, y)
        Distance between pixel centres along the matrix' columns axis (x) and rows axis (y).
    frame
        Tile → stored frame.
    """

    instance_uids: tuple[str, ...]
    transfer_syntax_uids: tuple[str, ...]
    photometric_interpretation: str
    size_px: tuple[int, int]
    tile_size_px: tuple[int, int]
    spacing_mm: tuple[float, float]
    frame: FrameIndex

    @property
    def um_per_px(self) -> float:
        return 1000.0 * (self.spacing_mm[0] * self.spacing_mm[1]) ** 0.5


@dataclass(frozen=True, slots=True)
class Slide:
    """A whole slide image as the node works with it.

    Attributes
    ----------
    study_uid, series_uid
    levels
        Finest (base) first.
    origin_mm : (3,) float64
        Slide coordinates of the *centre* of the base level's top-left pixel (PS3.3 C.8.12.4).
    orientation : (6,) float64
        Direction cosines of increasing column (x) and increasing row (y), ImageOrientationSlide.
    frame_of_reference_uid
    header
        Metadata of the base level's first instance, without pixel data and per-frame items: what
        patient, study, specimen and optical path modules are copied from.
    source_instances
        SOP Instance UID → SOP Class UID of every instance of the levels.
    """

    study_uid: str
    series_uid: str
    levels: tuple[Level, ...]
    origin_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    frame_of_reference_uid: str
    header: Dataset
    source_instances: Mapping[str, str]

    @property
    def base(self) -> Level:
        return self.levels[0]
