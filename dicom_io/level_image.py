"""One instance of a level: its metadata, checked and with DICOM's orders undone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dicom_io.dicom_json import Json, nested, value, values
from dicom_io.errors import PixelsUnsupported, SlideGeometryInvalid


@dataclass(frozen=True, slots=True)
class LevelImage:
    """What one instance says about itself.

    Attributes
    ----------
    sop_uid
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
        DICOM JSON.
    """

    sop_uid: str
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

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles over the matrix: (columns, rows)."""
        (width, height), (tile_width, tile_height) = self.size_px, self.tile_size_px
        return -(-width // tile_width), -(-height // tile_height)

    def tile_positions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tile row and tile column of each frame."""
        if self.tiled_full:
            columns, rows = self.grid
            number = np.arange(self.frame_offset, self.frame_offset + self.frames)
            if len(number) and number[-1] >= columns * rows:
                raise SlideGeometryInvalid(
                    f"Instance {self.sop_uid} says {self.frames} frames, but its matrix has only"
                    f" {columns} × {rows} tiles: store the instance again with the right number."
                )
            return np.divmod(number, columns)
        return self._sparse_positions()

    def _sparse_positions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        items = values(self.metadata, "PerFrameFunctionalGroupsSequence")
        if len(items) != self.frames:
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} says {self.frames} frames but places {len(items)}:"
                " store the instance again with PerFrameFunctionalGroupsSequence complete."
            )
        places = [nested(item, "PlanePositionSlideSequence") for item in items]
        wanted = ("RowPositionInTotalImagePixelMatrix", "ColumnPositionInTotalImagePixelMatrix")
        found = [[value(place, keyword) for keyword in wanted] for place in places]
        if not all(isinstance(number, int) and abs(number) < 2**31 for p in found for number in p):
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} has a frame without a position in the total pixel"
                " matrix: store the instance again with PlanePositionSlideSequence complete."
            )
        corner = np.array(found, np.int64).reshape(-1, 2) - 1  # DICOM counts pixels from 1
        position, remainder = np.divmod(corner, self.tile_size_px[::-1])
        columns, rows = self.grid
        if remainder.any() or (position < 0).any() or (position >= (rows, columns)).any():
            raise SlideGeometryInvalid(
                f"Instance {self.sop_uid} has a frame outside its tile grid: convert the slide to"
                " a regular grid of tiles."
            )
        return position[:, 0], position[:, 1]


def checked_image(item: Json) -> LevelImage:
    """Read the metadata of one VOLUME instance.

    Raises
    ------
    PixelsUnsupported
        Not 8 bit, not three samples, several focal planes or optical paths.
    SlideGeometryInvalid
        Spacing, matrix or tile size is missing or not positive.
    """
    sop_uid = str(value(item, "SOPInstanceUID"))
    _check_pixels(item, sop_uid)
    organization = value(item, "DimensionOrganizationType")
    placed = bool(values(item, "PerFrameFunctionalGroupsSequence"))
    available = values(item, "AvailableTransferSyntaxUID")
    return LevelImage(
        sop_uid=sop_uid,
        size_px=(
            _positive(item, "TotalPixelMatrixColumns", sop_uid),
            _positive(item, "TotalPixelMatrixRows", sop_uid),
        ),
        tile_size_px=(_positive(item, "Columns", sop_uid), _positive(item, "Rows", sop_uid)),
        spacing_mm=_spacing_mm(item, sop_uid),
        photometric_interpretation=str(value(item, "PhotometricInterpretation")),
        frames=_positive(item, "NumberOfFrames", sop_uid),
        frame_offset=int(value(item, "ConcatenationFrameOffsetNumber") or 0),
        # The attribute may be absent; then frames that are placed are read by their places.
        tiled_full=organization == "TILED_FULL" or (organization is None and not placed),
        planar=value(item, "PlanarConfiguration") == 1,
        # Only a single one says how the frames are stored; several say what could be sent.
        available_transfer_syntax=str(available[0]) if len(available) == 1 else None,
        metadata=item,
    )


def _check_pixels(item: Json, sop_uid: str) -> None:
    bits, samples = value(item, "BitsAllocated"), value(item, "SamplesPerPixel")
    if (bits, samples) != (8, 3):
        raise PixelsUnsupported(
            f"Instance {sop_uid} has {samples} sample(s) of {bits} bit per pixel: only 8-bit"
            " colour (3 samples) can be analysed; choose a brightfield colour slide."
        )
    planes = value(item, "TotalPixelMatrixFocalPlanes") or 1
    paths = value(item, "NumberOfOpticalPaths") or 1
    if (planes, paths) != (1, 1):
        raise PixelsUnsupported(
            f"Instance {sop_uid} has {planes} focal planes and {paths} optical paths: only slides"
            " with one of each can be analysed; export one plane."
        )


def _positive(item: Json, keyword: str, sop_uid: str) -> int:
    number = value(item, keyword)
    if not isinstance(number, int | float | str) or not str(number).isdigit() or int(number) < 1:
        raise SlideGeometryInvalid(
            f"Instance {sop_uid} has no valid {keyword}: correct the attribute."
        )
    return int(number)


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
