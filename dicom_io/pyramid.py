"""Instances of a slide → its levels, finest first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from dicom_io.dicom_json import nested, numbers, value
from dicom_io.errors import InputError, SlideGeometryInvalid
from dicom_io.frame_table import TileTable, focal_planes
from dicom_io.level_image import LevelImage, check_pixels
from dicom_io.optical_path import OpticalPath

log = logging.getLogger(__name__)

# Matrix sizes of levels are rounded, some writers pad them: more than this is a contradiction.
EXTENT_TOLERANCE = 0.02
EXTENT_TOLERANCE_PX = 2


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the slide.

    Attributes
    ----------
    instance_uids
        SOP Instance UIDs that hold its frames.
    series_uids
        The series that each of them lies in: a level may come from another series of the slide.
    transfer_syntax_uids
        Transfer syntax of the stored frames, one per instance, as far as it is known before they
        are read (:func:`dicom_io.pixel_format.transfer_syntax`).
    photometric_interpretation
        Of the stored frames, for example ``YBR_FULL_422``.
    size_px : (width, height)
        Total pixel matrix.
    tile_size_px : (width, height)
        Frame size.
    spacing_mm : (x, y)
        Distance between pixel centres along the matrix' columns axis (x) and rows axis (y).
    frames
        Which frames show a part of it, in the focal plane that is read.
    focal_planes
        The same for every focal plane, from the glass upwards.
    planar
        Uncompressed samples are stored plane by plane (PlanarConfiguration 1).
    """

    instance_uids: tuple[str, ...]
    series_uids: tuple[str, ...]
    transfer_syntax_uids: tuple[str, ...]
    photometric_interpretation: str
    size_px: tuple[int, int]
    tile_size_px: tuple[int, int]
    spacing_mm: tuple[float, float]
    frames: TileTable
    focal_planes: tuple[TileTable, ...]
    planar: bool

    @property
    def spacing_um(self) -> tuple[float, float]:
        """As `spacing_mm`: scanners' pixels are not always square."""
        x, y = self.spacing_mm
        return 1000.0 * x, 1000.0 * y

    @property
    def um_per_px(self) -> float:
        """One number for both axes, their geometric mean: to choose a level by."""
        return 1000.0 * float((self.spacing_mm[0] * self.spacing_mm[1]) ** 0.5)


def one_pyramid(images: Iterable[LevelImage], series_uid: str) -> list[LevelImage]:
    """Refuse a series that holds several pyramids, and put the images in order, finest first.

    Raises
    ------
    SlideGeometryInvalid
    """
    ordered = sorted(images, key=_fineness)
    pyramids = sorted({image.pyramid_uid for image in ordered if image.pyramid_uid is not None})
    if len(pyramids) > 1:
        raise SlideGeometryInvalid(
            f"Series {series_uid} holds {len(pyramids)} pyramids (PyramidUID"
            f" {', '.join(pyramids)}): store each in a series of its own."
        )
    return ordered


def _fineness(image: LevelImage) -> tuple[float, int, int, int, float]:
    """Parts of a level by their numbers: archives list them in any order."""
    width, height = image.size_px
    return image.spacing_mm[0], -width, -height, image.frame_offset, image.instance_number


def by_level(images: Iterable[LevelImage]) -> list[list[LevelImage]]:
    """Instances that share a total pixel matrix, in the order of :func:`one_pyramid`."""
    ordered = sorted(images, key=_fineness)
    return [list(group) for _, group in groupby(ordered, key=lambda image: image.size_px)]


def read_levels(
    groups: Sequence[Sequence[LevelImage]],
    path: OpticalPath,
    transfer_syntax: Callable[[LevelImage], str],
    threads: int,
) -> list[Level]:
    """Levels of one optical path; a level that does not hold it is left out.

    Parameters
    ----------
    groups
        Instances of each level, the base level first.
    path
    transfer_syntax
        Asked for each instance, `threads` at a time.
    threads

    Raises
    ------
    SlideGeometryInvalid, PixelsUnsupported, dicom_io.errors.PacsError
    """
    of_path = [images for group in groups if (images := _of_path(group, path))]
    for images in of_path:
        for image in images:
            check_pixels(image)
            _check_same(images[0], image)
    with ThreadPoolExecutor(threads) as asking:
        # Of all levels at a time: an archive that reads whole files does so on all its cores.
        asked = [asking.map(transfer_syntax, images) for images in of_path]
        return [
            _level(images, path, tuple(syntaxes))
            for images, syntaxes in zip(of_path, asked, strict=True)
        ]


def _of_path(images: Sequence[LevelImage], path: OpticalPath) -> list[LevelImage]:
    """Instances that hold frames of the path; names need not agree where there is one path."""
    if path.paths == 1:
        return list(images)
    kept = [image for image in images if path.identifier in image.path_identifiers]
    if not kept:
        log.warning(
            "Level of instance %s does not hold optical path %s: it is left out",
            images[0].sop_uid,
            path.identifier,
        )
    return kept


def _level(
    images: Sequence[LevelImage],
    path: OpticalPath,
    transfer_syntax_uids: tuple[str, ...],
) -> Level:
    """Join the instances of one resolution: parts of a concatenation, or sparse parts."""
    first = images[0]
    planes = focal_planes(images, path.identifier if path.paths > 1 else None)
    return Level(
        instance_uids=tuple(image.sop_uid for image in images),
        series_uids=tuple(image.series_uid for image in images),
        transfer_syntax_uids=transfer_syntax_uids,
        photometric_interpretation=first.photometric_interpretation,
        size_px=first.size_px,
        tile_size_px=first.tile_size_px,
        spacing_mm=first.spacing_mm,
        frames=planes[(len(planes) - 1) // 2],
        focal_planes=planes,
        planar=first.planar,
    )


def _check_same(first: LevelImage, image: LevelImage) -> None:
    same = (first.tile_size_px, first.photometric_interpretation, first.planar)
    own = (image.tile_size_px, image.photometric_interpretation, image.planar)
    if own != same or not np.allclose(image.spacing_mm, first.spacing_mm, rtol=1e-3):
        raise SlideGeometryInvalid(
            f"Instances {first.sop_uid} and {image.sop_uid} have the same matrix size but"
            " different tiles, spacing or colours: store the series again as one pyramid."
        )


def check_extents(groups: Sequence[Sequence[LevelImage]], series_uid: str) -> None:
    """Raise SlideGeometryInvalid unless all levels show what the base level shows."""
    for group in groups[1:]:
        if _is_turned(groups[0][0], group[0]):
            raise SlideGeometryInvalid(
                f"The level of instance {group[0].sop_uid} is turned against the base level of"
                f" series {series_uid}: correct its ImageOrientationSlide."
            )
        if not same_extent(groups[0][0], group[0]):
            raise SlideGeometryInvalid(
                f"The level of instance {group[0].sop_uid} covers another extent than"
                f" the base level of series {series_uid}: correct its pixel spacing or matrix"
                " size."
            )


def same_extent(base: LevelImage, image: LevelImage) -> bool:
    """Whether matrix size times spacing agree, but for rounding and padding."""
    expected = np.array(base.size_px) * base.spacing_mm / np.array(image.spacing_mm)
    off = np.abs(np.array(image.size_px) - expected)
    return bool((off <= np.maximum(EXTENT_TOLERANCE * expected, EXTENT_TOLERANCE_PX)).all())


def is_coarser_view(base: LevelImage, coarsest: LevelImage, image: LevelImage) -> bool:
    """Whether an image beside the pyramid can serve as a level below its coarsest one.

    That is a THUMBNAIL, whose extent need not be that of the slide (PS3.3 C.7.6.17.3), or a level
    from another series: it must share the slide's frame of reference, container, orientation
    and, to a pixel of its own, origin and extent.
    """
    try:
        check_pixels(image)
    except InputError:
        return False
    return (
        _same_slide(base, image)
        and len({uid for uid in (base.pyramid_uid, image.pyramid_uid) if uid is not None}) <= 1
        and bool((np.array(image.spacing_mm) > coarsest.spacing_mm).all())
        and (image.kind != "THUMBNAIL" or image.grid == (1, 1))
        and _same_orientation(base, image)
        and _same_origin(base, image)
        and same_extent(base, image)
    )


def _same_slide(base: LevelImage, image: LevelImage) -> bool:
    frames = [value(i.metadata, "FrameOfReferenceUID") for i in (base, image)]
    containers = [value(i.metadata, "ContainerIdentifier") for i in (base, image)]
    if image.series_uid != base.series_uid and None in {*frames, *containers}:
        return False
    return bool(frames[0] == frames[1] and containers[0] == containers[1])


def _same_orientation(base: LevelImage, image: LevelImage) -> bool:
    one, other = (numbers(i.metadata, "ImageOrientationSlide") for i in (base, image))
    return len(one) == len(other) == 6 and bool(np.allclose(one, other, atol=1e-3))


def _is_turned(base: LevelImage, image: LevelImage) -> bool:
    """Whether a level says another orientation; many say none."""
    said = len(numbers(image.metadata, "ImageOrientationSlide")) == 6
    return said and not _same_orientation(base, image)


def _same_origin(base: LevelImage, image: LevelImage) -> bool:
    """Origins are centres of first pixels, which differ by half a pixel between levels."""
    origins = [nested(i.metadata, "TotalPixelMatrixOriginSequence") for i in (base, image)]
    for axis in "XY":
        one, other = (numbers(o, f"{axis}OffsetInSlideCoordinateSystem")[:1] for o in origins)
        if len(one) != len(other):
            return False
        if one and abs(one[0] - other[0]) > max(image.spacing_mm):
            return False
    return True
