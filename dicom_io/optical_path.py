"""Which optical path of a slide is analysed, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dicom_io.dicom_json import Json, value, values
from dicom_io.errors import PixelsUnsupported
from dicom_io.level_image import LevelImage

BRIGHTFIELD = "111744"
"""CID 8123 Microscopy Illumination Method: Brightfield illumination (DCM)."""


@dataclass(frozen=True, slots=True)
class OpticalPath:
    """The optical path that is read.

    Attributes
    ----------
    identifier
        OpticalPathIdentifier.
    paths
        How many the slide has.
    reason
        Why this one, in words.
    """

    identifier: str
    paths: int
    reason: str


def choose_optical_path(images: Sequence[LevelImage], wanted: str, series_uid: str) -> OpticalPath:
    """Choose among the optical paths of the base level's instances.

    Parameters
    ----------
    images
    wanted
        OpticalPathIdentifier that the settings name; empty for the brightfield one, or else the
        first in OpticalPathSequence.
    series_uid

    Raises
    ------
    PixelsUnsupported
        The slide has several and none is the wanted one.
    """
    paths = _paths(images)
    if len(paths) == 1:
        return OpticalPath(next(iter(paths)), 1, "the only one")
    if wanted:
        if wanted not in paths:
            raise PixelsUnsupported(
                f"Series {series_uid} has no optical path {wanted!r} but"
                f" {', '.join(repr(name) for name in paths)}: name one of them in"
                " slide.optical_path."
            )
        return OpticalPath(wanted, len(paths), "named in the settings")
    for identifier, item in paths.items():
        if _is_brightfield(item):
            return OpticalPath(identifier, len(paths), "the first of brightfield illumination")
    return OpticalPath(next(iter(paths)), len(paths), "the first, none says brightfield")


def _paths(images: Sequence[LevelImage]) -> dict[str, Json]:
    """Identifier → item of OpticalPathSequence, in the order of the instances."""
    paths: dict[str, Json] = {}
    for image in images:
        items = image.optical_paths or ({},) * len(image.path_identifiers)
        for identifier, item in zip(image.path_identifiers, items, strict=True):
            paths.setdefault(identifier, item)
    return paths


def _is_brightfield(item: Json) -> bool:
    codes = values(item, "IlluminationTypeCodeSequence")
    return any(value(code or {}, "CodeValue") == BRIGHTFIELD for code in codes)
