"""One instance of a level: its metadata, checked and with DICOM's orders undone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dicom_io.dicom_json import Json, nested, value, values
from dicom_io.errors import PixelsUnsupported, SlideGeometryInvalid, SlideTooLarge
from dicom_io.series_metadata import FramePlaces, InstanceMetadata
from dicom_io.z_offset import z_offset_mm

# 40 Gpx in tiles of 128 px are 2.4 million; numbers far above are damage, not slides.
MAX_FRAMES = 5_000_000
# Optical paths or focal planes: scanners have some tens.
MAX_LAYERS = 200
# Where focal planes are said but not their distance, only their order matters.
ASSUMED_PLANE_DISTANCE_MM = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class StoredFrames:
    """Where the N frames of an instance lie, in the order in which they are stored.

    Attributes
    ----------
    corner : (N, 2) int64
        Column and row of the frame's first pixel in the total pixel matrix, from 0.
    z_mm : (N,) float64
        Height above the glass.
    path : (N,) int64
        Index into `path_identifiers`.
    path_identifiers
    """

    corner: NDArray[np.int64]
    z_mm: NDArray[np.float64]
    path: NDArray[np.int64]
    path_identifiers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LevelImage:
    """What one instance says about itself.

    Attributes
    ----------
    series_uid, sop_uid
    kind
        ImageType value 3: VOLUME, THUMBNAIL, ….
    pyramid_uid
        None where it is not said.
    size_px : (width, height)
        Total pixel matrix.
    tile_size_px : (width, height)
    spacing_mm : (x, y)
    photometric_interpretation
    frames
        NumberOfFrames.
    frame_offset
        Frames of the concatenation that lie in earlier instances.
    tiled_full
        Frames lie row by row over the whole matrix; otherwise each says where it lies.
    planar
        Uncompressed samples are stored plane by plane.
    available_transfer_syntax
        As the archive says it, None if it does not.
    metadata
        DICOM JSON, without per-frame items.
    places
        Those of the per-frame items, None if there are none.
    """

    series_uid: str
    sop_uid: str
    kind: str
    pyramid_uid: str | None
    size_px: tuple[int, int]
    tile_size_px: tuple[int, int]
    spacing_mm: tuple[float, float]
    photometric_interpretation: str
    frames: int
    frame_offset: int
    tiled_full: bool
    planar: bool
    available_transfer_syntax: str | None
    metadata: Json = field(repr=False)
    places: FramePlaces | None = field(repr=False)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles over the matrix: (columns, rows)."""
        (width, height), (tile_width, tile_height) = self.size_px, self.tile_size_px
        return -(-width // tile_width), -(-height // tile_height)

    @property
    def optical_paths(self) -> tuple[Json, ...]:
        """Items of OpticalPathSequence, in the order in which TILED_FULL frames follow it."""
        return tuple(item or {} for item in values(self.metadata, "OpticalPathSequence"))

    @property
    def path_identifiers(self) -> tuple[str, ...]:
        """OpticalPathIdentifier of each path; numbers from 1 where the sequence is missing."""
        said = tuple(str(value(p, "OpticalPathIdentifier") or "") for p in self.optical_paths)
        count = _count(self.metadata, "NumberOfOpticalPaths", self.sop_uid)
        return said or tuple(str(number + 1) for number in range(count))

    @property
    def focal_planes(self) -> int:
        """TotalPixelMatrixFocalPlanes."""
        return _count(self.metadata, "TotalPixelMatrixFocalPlanes", self.sop_uid)

    @property
    def frames_promised(self) -> int:
        """Frames of a complete TILED_FULL concatenation."""
        columns, rows = self.grid
        return columns * rows * self.focal_planes * len(self.path_identifiers)

    @property
    def instance_number(self) -> float:
        """InstanceNumber; 0 where it is not said."""
        return _number(value(self.metadata, "InstanceNumber"), 0.0)

    @property
    def concatenation(self) -> str:
        """ConcatenationUID; the instance alone where it is not part of one (C.7.6.16.2.2.4)."""
        return str(value(self.metadata, "ConcatenationUID") or self.sop_uid)

    def stored_frames(self) -> StoredFrames:
        """Undo how the frames are ordered (PS3.3 C.7.6.17.3).

        Raises
        ------
        SlideGeometryInvalid
            Frames are missing, too many, or lie outside the total pixel matrix.
        """
        return self._full() if self.tiled_full else self._sparse()

    def _full(self) -> StoredFrames:
        """Frames vary along rows, then columns, then planes from the glass, then paths."""
        columns, rows = self.grid
        planes, paths = self.focal_planes, self.path_identifiers
        if self.frame_offset + self.frames > self.frames_promised:
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} says {self.frames} frames after {self.frame_offset}, but"
                f" its matrix has only {columns} × {rows} tiles, {planes} focal plane(s) and"
                f" {len(paths)} optical path(s): store the instance again with the right number."
            )
        number = np.arange(self.frame_offset, self.frame_offset + self.frames)
        number, column = np.divmod(number, columns)
        number, row = np.divmod(number, rows)
        path, plane = np.divmod(number, planes)
        z_mm = self._first_z_mm() + plane * self._plane_distance_mm()
        width, height = self.tile_size_px
        corner = np.stack([column * width, row * height], axis=1)
        return StoredFrames(corner, z_mm, path, paths)

    def _first_z_mm(self) -> float:
        """Of the matrix' origin; where that says none, or zero as if unknown, of all frames."""
        return self._origin_z_mm() or self._shared_z_mm() or 0.0

    def _origin_z_mm(self) -> float | None:
        return z_offset_mm(nested(self.metadata, "TotalPixelMatrixOriginSequence"))

    def _shared_z_mm(self) -> float | None:
        return z_offset_mm(self._shared_position())

    def _shared_position(self) -> Json:
        """What all frames share of their positions: of a single frame, usually all of it."""
        return nested(self.metadata, "SharedFunctionalGroupsSequence", "PlanePositionSlideSequence")

    def _plane_distance_mm(self) -> float:
        measures = nested(self.metadata, "SharedFunctionalGroupsSequence", "PixelMeasuresSequence")
        return _number(value(measures, "SpacingBetweenSlices"), 0.0) or ASSUMED_PLANE_DISTANCE_MM

    def _sparse(self) -> StoredFrames:
        places = self._completed_places()
        if len(places) != self.frames:
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} says {self.frames} frames but places {len(places)}:"
                " store the instance again with PerFrameFunctionalGroupsSequence complete."
            )
        if (places.corner < 1).any():
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} has a frame without a position in the total pixel"
                " matrix: store the instance again with PlanePositionSlideSequence complete."
            )
        corner = places.corner - 1  # counted from 1
        if (corner >= self.size_px).any():
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} has a frame outside its total pixel matrix: correct"
                " TotalPixelMatrixColumns and TotalPixelMatrixRows, or the frame's place."
            )
        path, identifiers = self._paths(places)
        return StoredFrames(corner, places.z_mm, path, identifiers)

    def _paths(self, places: FramePlaces) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        if places.path_identifiers and (places.path >= 0).all():
            return places.path.astype(np.int64), places.path_identifiers
        shared = nested(
            self.metadata, "SharedFunctionalGroupsSequence", "OpticalPathIdentificationSequence"
        )
        identifier = value(shared, "OpticalPathIdentifier")
        identifiers = (str(identifier),) if identifier else self.path_identifiers
        if len(identifiers) != 1:
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} has {len(identifiers)} optical paths and a frame without"
                " OpticalPathIdentifier: store the instance again with"
                " OpticalPathIdentificationSequence complete."
            )
        return np.zeros(len(places), np.int64), identifiers

    def _completed_places(self) -> FramePlaces:
        """Places of the frames, where items say nothing by what all of them share.

        A functional group stands with each frame or with what all share (PS3.3 C.7.6.16.1.1): the
        instance of one plane may say its height once, that of a single frame all of its place.
        """
        position = self._shared_position()
        corner = [
            int(_number(value(position, f"{axis}PositionInTotalImagePixelMatrix"), 0))
            for axis in ("Column", "Row")
        ]
        own = _unsaid(1 if any(corner) else 0) if self.places is None else self.places
        shared_z_mm = self._shared_z_mm()
        z_mm = self._origin_z_mm() if shared_z_mm is None else shared_z_mm
        return replace(
            own,
            corner=np.where((own.corner == 0).all(axis=1, keepdims=True), corner, own.corner),
            z_mm=np.where(np.isnan(own.z_mm), z_mm or 0.0, own.z_mm),
        )


def _unsaid(count: int) -> FramePlaces:
    """Places of frames of which nothing is said."""
    return FramePlaces(
        np.zeros((count, 2), np.int64), np.full(count, np.nan), np.full(count, -1, np.int16), ()
    )


def level_image(instance: InstanceMetadata) -> LevelImage:
    """Read the geometry of one instance.

    Raises
    ------
    SlideGeometryInvalid
        Spacing, matrix or tile size is missing or not positive, or frames lie before the first.
    SlideTooLarge
        More frames than can be meant.
    """
    item, places = instance.header, instance.frames
    sop_uid = str(value(item, "SOPInstanceUID"))
    organization = value(item, "DimensionOrganizationType")
    available = values(item, "AvailableTransferSyntaxUID")
    pyramid = value(item, "PyramidUID")
    image = LevelImage(
        series_uid=str(value(item, "SeriesInstanceUID")),
        sop_uid=sop_uid,
        kind=image_kind(item),
        pyramid_uid=None if pyramid is None else str(pyramid),
        size_px=(
            _positive(item, "TotalPixelMatrixColumns", sop_uid),
            _positive(item, "TotalPixelMatrixRows", sop_uid),
        ),
        tile_size_px=(_positive(item, "Columns", sop_uid), _positive(item, "Rows", sop_uid)),
        spacing_mm=_spacing_mm(item, sop_uid),
        photometric_interpretation=str(value(item, "PhotometricInterpretation")),
        frames=_positive(item, "NumberOfFrames", sop_uid),
        frame_offset=int(_number(value(item, "ConcatenationFrameOffsetNumber"), 0)),
        # The attribute may be absent; then frames that are placed are read by their places.
        tiled_full=organization == "TILED_FULL" or (organization is None and places is None),
        planar=value(item, "PlanarConfiguration") == 1,
        # Only a single one says how the frames are stored; several say what could be sent.
        available_transfer_syntax=str(available[0]) if len(available) == 1 else None,
        metadata=item,
        places=places,
    )
    if image.frame_offset < 0:
        raise SlideGeometryInvalid(
            f"Instance {sop_uid} has a ConcatenationFrameOffsetNumber below zero: correct the"
            " attribute."
        )
    columns, rows = image.grid
    if max(columns * rows, image.frames + image.frame_offset) > MAX_FRAMES:
        raise SlideTooLarge(
            f"Instance {sop_uid} has {image.frames} frames on {columns} × {rows} tiles, more than"
            f" the {MAX_FRAMES} that can be read: convert the slide to larger tiles."
        )
    return image


def image_kind(item: Json) -> str:
    """ImageType value 3 (PS3.3 C.8.12.4.1.1): VOLUME, THUMBNAIL, LABEL or OVERVIEW.

    A converter that leaves ImageType out altogether may still say VolumetricProperties.
    """
    otherwise = None if values(item, "ImageType") else value(item, "VolumetricProperties")
    return str((*values(item, "ImageType")[2:3], otherwise or "")[0])


def check_pixels(image: LevelImage) -> None:
    """Raise PixelsUnsupported unless the image is of 8-bit colour."""
    bits = value(image.metadata, "BitsAllocated")
    samples = value(image.metadata, "SamplesPerPixel")
    if (bits, samples) != (8, 3):
        raise PixelsUnsupported(
            f"Instance {image.sop_uid} has {samples} sample(s) of {bits} bit per pixel: only 8-bit"
            " colour (3 samples) can be analysed; choose a brightfield colour slide."
        )


def _positive(item: Json, keyword: str, sop_uid: str) -> int:
    number = str(value(item, keyword)).strip()  # as text it may be padded (PS3.5 §6.2, IS)
    if not number.isascii() or not number.isdecimal() or len(number) > 10 or int(number) < 1:
        raise SlideGeometryInvalid(
            f"Instance {sop_uid} has no valid {keyword}: correct the attribute."
        )
    return int(number)


def _count(item: Json, keyword: str, sop_uid: str) -> int:
    """A number of planes or paths; one where it is not said."""
    count = 1 if value(item, keyword) is None else _positive(item, keyword, sop_uid)
    if count > MAX_LAYERS:
        raise SlideGeometryInvalid(
            f"Instance {sop_uid} says a {keyword} above {MAX_LAYERS}: correct the attribute."
        )
    return count


def _number(found: object, otherwise: float) -> float:
    try:
        number = float(found) if isinstance(found, int | float | str) else otherwise
    except ValueError:
        return otherwise
    return number if np.isfinite(number) else otherwise


def _spacing_mm(item: Json, sop_uid: str) -> tuple[float, float]:
    measures = nested(item, "SharedFunctionalGroupsSequence", "PixelMeasuresSequence")
    spacing = values(measures, "PixelSpacing")
    try:
        between_rows, between_columns = (float(number) for number in spacing)
    except (TypeError, ValueError):
        between_rows = between_columns = 0.0
    if not (0 < between_rows < np.inf and 0 < between_columns < np.inf):
        raise SlideGeometryInvalid(
            f"Instance {sop_uid} has no PixelSpacing in SharedFunctionalGroupsSequence: add the"
            " distance between pixels."
        )
    return between_columns, between_rows  # PS3.3 §10.7.1.3: row spacing stands first
