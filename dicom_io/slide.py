"""DICOM metadata of a series, checked → :class:`Slide`: levels, tile grid, geometry."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.derived_uid import derive_uid
from dicom_io.dicom_json import Json, dataset_of, key, nested, numbers, value
from dicom_io.errors import (
    PixelsUnsupported,
    SeriesNotFound,
    SlideGeometryInvalid,
    SlideTooLarge,
)
from dicom_io.level_image import LevelImage
from dicom_io.optical_path import OpticalPath, choose_optical_path
from dicom_io.pacs import InstanceReference, Pacs
from dicom_io.pixel_format import transfer_syntax
from dicom_io.pyramid import Level, by_level, check_extents, read_levels
from dicom_io.slide_images import WHOLE_SLIDE_IMAGE, low_level, volume_images
from dicom_io.slide_settings import SlideSettings
from dicom_io.z_offset import z_offset_mm

__all__ = ["Level", "Slide", "open_slide"]

log = logging.getLogger(__name__)

DEFAULT_MAX_MATRIX_PX = 40_000_000_000
COLOUR_KEYS = {key("OpticalPathSequence"), key("ICCProfile")}


@dataclass(frozen=True, slots=True)
class Slide:
    """A whole slide image as the node works with it.

    Attributes
    ----------
    study_uid, series_uid
    levels
        Finest (base) first.
    optical_path
        The one that the levels hold, and why.
    focal_plane
        Which one is read, in words.
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
    colour_metadata
        DICOM JSON of the base level's attributes that hold its ICC profile, or say where it lies;
        of an instance that holds the optical path that is read.
    """

    study_uid: str
    series_uid: str
    levels: tuple[Level, ...]
    optical_path: OpticalPath
    focal_plane: str
    origin_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    frame_of_reference_uid: str
    header: Dataset
    source_instances: Mapping[str, str]
    colour_metadata: Mapping[str, Any]

    @property
    def base(self) -> Level:
        return self.levels[0]


def open_slide(
    pacs: Pacs,
    study_uid: str,
    series_uid: str,
    max_matrix_px: int = DEFAULT_MAX_MATRIX_PX,
    settings: SlideSettings | None = None,
    instances: Collection[str] | None = None,
) -> Slide:
    """Open a whole slide image; reads metadata, and a frame where only that tells how it is stored.

    Parameters
    ----------
    pacs
    study_uid, series_uid
        This series is analysed. Where it has no low level, coarser ones are taken from other
        series of the study that show the same slide.
    max_matrix_px
        Largest total pixel matrix (width × height) that is accepted.
    settings
    instances
        SOP Instance UIDs: the slide as it was when it had these alone. None for all.

    Raises
    ------
    SeriesNotFound
        Also when some of `instances` are not there.
    NotWholeSlideImage
        No VL Whole Slide Microscopy instance, or none with ImageType value 3 VOLUME.
    SlideGeometryInvalid
        Spacing, orientation, matrix or tile grid is missing or contradicts itself.
    PixelsUnsupported
        Not 8-bit colour, an optical path or focal plane that is not there, or an unknown transfer
        syntax.
    SlideTooLarge
    """
    settings = settings or SlideSettings()
    images, thumbnails = volume_images(pacs, study_uid, series_uid)
    images = _only(images, instances)
    if not images:
        raise _instances_gone(series_uid)
    _check_size(images, max_matrix_px)
    groups = by_level(images)
    check_extents(groups, series_uid)
    groups += low_level(pacs, study_uid, groups, thumbnails, instances)
    path = choose_optical_path(groups[0], settings.optical_path, series_uid)
    log.info("Series %s is read in optical path %r, %s", series_uid, path.identifier, path.reason)
    levels = read_levels(
        groups,
        path,
        lambda image: transfer_syntax(
            pacs, InstanceReference(study_uid, image.series_uid, image.sop_uid), image
        ),
        pacs.connections,
    )
    base = groups[0][0].metadata
    header = dataset_of(base)
    header.FrameOfReferenceUID = _frame_of_reference(base, series_uid)
    used = {uid for level in levels for uid in level.instance_uids}
    if not used.issuperset(instances or ()):
        raise _instances_gone(series_uid)
    slide = Slide(
        study_uid=study_uid,
        series_uid=series_uid,
        levels=tuple(levels),
        optical_path=path,
        focal_plane=_middle(len(levels[0].focal_planes)),
        origin_mm=_origin_mm(base, series_uid),
        orientation=_orientation(base, series_uid),
        frame_of_reference_uid=header.FrameOfReferenceUID,
        header=header,
        source_instances=MappingProxyType(dict.fromkeys(sorted(used), WHOLE_SLIDE_IMAGE)),
        colour_metadata=MappingProxyType(_colours_of(groups[0], levels[0])),
    )
    if isinstance(settings.focal_plane, int):
        return at_plane(slide, settings.focal_plane)
    return slide


def _only(images: list[LevelImage], instances: Collection[str] | None) -> list[LevelImage]:
    return [image for image in images if instances is None or image.sop_uid in instances]


def _instances_gone(series_uid: str) -> SeriesNotFound:
    return SeriesNotFound(
        f"Series {series_uid} no longer has all instances that it was opened with: store them in "
        "the archive again."
    )


def _colours_of(images: Sequence[LevelImage], level: Level) -> Json:
    """Where each instance holds a path of its own, the first one's colours may be another's."""
    read = next(image for image in images if image.sop_uid == level.instance_uids[0])
    return {k: v for k, v in read.metadata.items() if k in COLOUR_KEYS}


def _middle(planes: int) -> str:
    """The plane that a level shows at first (:func:`dicom_io.pyramid.read_levels`)."""
    return "the only one" if planes == 1 else f"{(planes + 1) // 2} of {planes}, the middle"


def at_plane(slide: Slide, number: int) -> Slide:
    """The slide in one focal plane, counted from 1, the one nearest to the glass.

    Levels with fewer planes than the base level show theirs at the same share of the depth.

    Raises
    ------
    PixelsUnsupported
        The base level has no such plane.
    """
    planes = len(slide.base.focal_planes)
    if not 1 <= number <= planes:
        raise PixelsUnsupported(
            f"Series {slide.series_uid} has {planes} focal plane(s), not a plane {number}: set"
            f" slide.focal_plane to a number up to {planes}, middle or sharpest."
        )
    share = (number - 1) / max(planes - 1, 1)
    levels = (
        replace(level, frames=stack[round(share * (len(stack) - 1))])
        for level in slide.levels
        for stack in (level.focal_planes,)
    )
    return replace(slide, levels=tuple(levels), focal_plane=f"{number} of {planes}")


def _check_size(images: list[LevelImage], max_matrix_px: int) -> None:
    for image in images:
        width, height = image.size_px
        if width * height > max_matrix_px:
            raise SlideTooLarge(
                f"The total pixel matrix of instance {image.sop_uid} is {width} × {height},"
                f" more than the budget of {max_matrix_px} pixels: raise max_matrix_px if the"
                " machine suffices."
            )


def _origin_mm(base: Json, series_uid: str) -> NDArray[np.float64]:
    item = nested(base, "TotalPixelMatrixOriginSequence")
    axes = [numbers(item, f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY"]
    x, y = (axis[0] if axis else None for axis in axes)
    if x is None or y is None:
        # Real slides lack it. Pixels and counts do not depend on it, only millimetres do.
        log.warning(
            "Series %s has no TotalPixelMatrixOriginSequence: millimetres count from its first"
            " pixel",
            series_uid,
        )
        return np.zeros(3)
    return np.array([x, y, z_offset_mm(item) or 0.0], np.float64)


def _orientation(base: Json, series_uid: str) -> NDArray[np.float64]:
    cosines = np.array(numbers(base, "ImageOrientationSlide"))
    if cosines.shape == (6,) and (np.abs(cosines) <= 2).all():
        gram = cosines.reshape(2, 3) @ cosines.reshape(2, 3).T
        if np.allclose(gram, np.eye(2), atol=1e-3):
            return cosines
    raise SlideGeometryInvalid(
        f"ImageOrientationSlide of series {series_uid} is missing or not two perpendicular unit"
        " vectors: correct the attribute."
    )


def _frame_of_reference(base: Json, series_uid: str) -> str:
    uid = value(base, "FrameOfReferenceUID")
    if uid:
        return str(uid)
    # Real slides lack it. One derived from the series says what is true: millimetres of its
    # results share a frame with each other, and with nothing else that is known.
    log.warning(
        "Series %s has no FrameOfReferenceUID: its results share one of their own", series_uid
    )
    return str(derive_uid(series_uid, "frame of reference"))
