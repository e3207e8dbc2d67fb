"""DICOM metadata of a series, checked → :class:`Slide`: levels, tile grid, geometry."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_io.dicom_json import Json, dataset_of, key, nested, numbers, value, values
from dicom_io.errors import (
    NotWholeSlideImage,
    PacsNotFound,
    SeriesNotFound,
    SlideGeometryInvalid,
    SlideTooLarge,
)
from dicom_io.level_image import LevelImage, checked_image
from dicom_io.pacs import InstanceReference, Pacs
from dicom_io.pixel_format import transfer_syntax

log = logging.getLogger(__name__)


WHOLE_SLIDE_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
DEFAULT_MAX_MATRIX_PX = 40_000_000_000
COLOUR_KEYS = {key("OpticalPathSequence"), key("ICCProfile")}
# Matrix sizes of levels are rounded, some writers pad them: more than this is a contradiction.
EXTENT_TOLERANCE = 0.02
EXTENT_TOLERANCE_PX = 2


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
    planar
        Uncompressed samples are stored plane by plane (PlanarConfiguration 1).
    """

    instance_uids: tuple[str, ...]
    transfer_syntax_uids: tuple[str, ...]
    photometric_interpretation: str
    size_px: tuple[int, int]
    tile_size_px: tuple[int, int]
    spacing_mm: tuple[float, float]
    frame: FrameIndex
    planar: bool = False

    @property
    def um_per_px(self) -> float:
        return 1000.0 * float((self.spacing_mm[0] * self.spacing_mm[1]) ** 0.5)


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
    colour_metadata
        DICOM JSON of the base level's attributes that hold its ICC profile, or say where it lies.
    """

    study_uid: str
    series_uid: str
    levels: tuple[Level, ...]
    origin_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    frame_of_reference_uid: str
    header: Dataset
    source_instances: Mapping[str, str]
    colour_metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def base(self) -> Level:
        return self.levels[0]


@dataclass(frozen=True, slots=True, eq=False)
class TileTable:
    """Frame index from a table.

    Attributes
    ----------
    table : (rows, columns, 2) int32
        Instance and 0-based frame of each tile; −1 where nothing is stored.
    """

    table: NDArray[np.int32]

    def __call__(self, column: int, row: int) -> tuple[int, int] | None:
        instance, frame = self.table[row, column]
        return None if instance < 0 else (int(instance), int(frame))


def open_slide(
    pacs: Pacs, study_uid: str, series_uid: str, max_matrix_px: int = DEFAULT_MAX_MATRIX_PX
) -> Slide:
    """Open a whole slide image; reads metadata and one frame of each instance.

    Parameters
    ----------
    pacs
    study_uid, series_uid
    max_matrix_px
        Largest total pixel matrix (width × height) that is accepted.

    Raises
    ------
    SeriesNotFound
    NotWholeSlideImage
        No VL Whole Slide Microscopy instance, or none with ImageType value 3 VOLUME.
    SlideGeometryInvalid
        Spacing, orientation, matrix or tile grid is missing or contradicts itself.
    PixelsUnsupported
        Not 8-bit colour, several focal planes or optical paths, or an unknown transfer syntax.
    SlideTooLarge
    """
    images = _volume_images(_metadata(pacs, study_uid, series_uid), series_uid)
    too_large = [i for i in images if i.size_px[0] * i.size_px[1] > max_matrix_px]
    if too_large:
        width, height = too_large[0].size_px
        raise SlideTooLarge(
            f"The total pixel matrix of instance {too_large[0].sop_uid} is {width} × {height},"
            f" more than the budget of {max_matrix_px} pixels: raise max_matrix_px if the machine"
            " suffices."
        )
    images.sort(key=lambda image: (image.spacing_mm[0], -image.size_px[0], image.frame_offset))
    levels = tuple(
        _level(pacs, study_uid, series_uid, list(group))
        for _, group in groupby(images, key=lambda image: image.size_px)
    )
    _check_extents(levels, series_uid)
    base = images[0].metadata
    return Slide(
        study_uid=study_uid,
        series_uid=series_uid,
        levels=levels,
        origin_mm=_origin_mm(base, series_uid),
        orientation=_orientation(base, series_uid),
        frame_of_reference_uid=_frame_of_reference(base, series_uid),
        header=dataset_of(base),
        source_instances=MappingProxyType({i.sop_uid: WHOLE_SLIDE_IMAGE for i in images}),
        colour_metadata=MappingProxyType({k: v for k, v in base.items() if k in COLOUR_KEYS}),
    )


def _metadata(pacs: Pacs, study_uid: str, series_uid: str) -> list[Json]:
    absent = SeriesNotFound(
        f"{pacs.name} knows no series {series_uid} in study {study_uid}: check the UIDs and that"
        " the slide has arrived."
    )
    for uid in (study_uid, series_uid):
        if not UID(uid, validation_mode=IGNORE).is_valid:
            raise SeriesNotFound(f"{uid!r} is not a DICOM UID: give study and series UID.")
    found = pacs.search_instances(study_uid, series_uid)
    # An archive that ignores the path of a search answers with other series too.
    found = [i for i in found if value(i, "SeriesInstanceUID") in {series_uid, None}]
    if not found:
        raise absent
    modalities = {str(value(i, "Modality")) for i in found if value(i, "Modality")}
    if modalities and "SM" not in modalities:
        raise NotWholeSlideImage(
            f"Series {series_uid} has modality {', '.join(sorted(modalities))}, not SM: choose a"
            " series of whole slide images."
        )
    try:
        metadata = pacs.series_metadata(study_uid, series_uid)
    except PacsNotFound as error:
        raise absent from error
    if not metadata:
        raise absent
    return metadata


def _volume_images(metadata: Sequence[Json], series_uid: str) -> list[LevelImage]:
    slides = [m for m in metadata if value(m, "SOPClassUID") == WHOLE_SLIDE_IMAGE]
    if not slides:
        raise NotWholeSlideImage(
            f"Series {series_uid} holds no VL Whole Slide Microscopy image: choose a series of"
            " whole slide images."
        )
    volume = [m for m in slides if values(m, "ImageType")[2:3] == ["VOLUME"]]
    if not volume:
        raise NotWholeSlideImage(
            f"Series {series_uid} holds no VOLUME level, only label, overview or thumbnail images:"
            " choose the series with the scanned slide."
        )
    return [checked_image(item) for item in volume]


def _level(pacs: Pacs, study_uid: str, series_uid: str, images: Sequence[LevelImage]) -> Level:
    """Join the instances of one resolution: parts of a concatenation, or sparse parts."""
    first = images[0]
    for image in images[1:]:
        same = (first.tile_size_px, first.photometric_interpretation, first.planar)
        own = (image.tile_size_px, image.photometric_interpretation, image.planar)
        if own != same or not np.allclose(image.spacing_mm, first.spacing_mm, rtol=1e-3):
            raise SlideGeometryInvalid(
                f"Instances {first.sop_uid} and {image.sop_uid} have the same matrix size but"
                " different tiles, spacing or colours: store the series again as one pyramid."
            )
    syntaxes = tuple(
        transfer_syntax(pacs, InstanceReference(study_uid, series_uid, image.sop_uid), image)
        for image in images
    )
    return Level(
        instance_uids=tuple(image.sop_uid for image in images),
        transfer_syntax_uids=syntaxes,
        photometric_interpretation=first.photometric_interpretation,
        size_px=first.size_px,
        tile_size_px=first.tile_size_px,
        spacing_mm=first.spacing_mm,
        frame=TileTable(_table(images)),
        planar=first.planar,
    )


def _table(images: Sequence[LevelImage]) -> NDArray[np.int32]:
    """(rows, columns, 2): instance and frame of each tile, −1 where nothing is stored."""
    columns, rows = images[0].grid
    table = np.full((rows, columns, 2), -1, np.int32)
    for number, image in enumerate(images):
        row, column = image.tile_positions()
        if (table[row, column, 0] >= 0).any() or len(set(zip(row, column, strict=True))) < len(row):
            raise SlideGeometryInvalid(
                f"Instance {image.sop_uid} holds a tile that is stored twice in this level:"
                " store the series again, each tile once."
            )
        table[row, column, 0] = number
        table[row, column, 1] = np.arange(len(row))
    if images[0].tiled_full and (table[..., 0] < 0).any():
        raise SlideGeometryInvalid(
            f"The TILED_FULL level of instance {images[0].sop_uid} has"
            f" {int((table[..., 0] >= 0).sum())} frames for {rows} × {columns} tiles: store the"
            " series again, complete."
        )
    table.flags.writeable = False
    return table


def _check_extents(levels: Sequence[Level], series_uid: str) -> None:
    base = levels[0]
    for level in levels[1:]:
        for axis in (0, 1):
            scale = base.spacing_mm[axis] / level.spacing_mm[axis]
            expected = base.size_px[axis] * scale
            off = abs(level.size_px[axis] - expected)
            if off > max(EXTENT_TOLERANCE * expected, EXTENT_TOLERANCE_PX):
                raise SlideGeometryInvalid(
                    f"The level of instance {level.instance_uids[0]} covers another extent than"
                    f" the base level of series {series_uid}: correct its pixel spacing or matrix"
                    " size."
                )


def _origin_mm(base: Json, series_uid: str) -> NDArray[np.float64]:
    item = nested(base, "TotalPixelMatrixOriginSequence")
    axes = [numbers(item, f"{axis}OffsetInSlideCoordinateSystem") for axis in "XYZ"]
    x, y, z = (axis[0] if axis else None for axis in axes)
    if x is None or y is None:
        # Real slides lack it. Pixels and counts do not depend on it, only millimetres do.
        log.warning(
            "Series %s has no TotalPixelMatrixOriginSequence: millimetres count from its first"
            " pixel",
            series_uid,
        )
        return np.zeros(3)
    z = value(item, "ZOffsetInSlideCoordinateSystem")
    return np.array([x, y, 0.0 if z is None else z], np.float64)


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
    if not uid:
        raise SlideGeometryInvalid(
            f"Series {series_uid} has no FrameOfReferenceUID: correct the attribute."
        )
    return str(uid)
