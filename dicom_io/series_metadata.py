"""Metadata of a series as the archive sent it → headers, and where each frame lies.

A sparse level places every frame in an item of its own: 40 000 frames are 17 MB of DICOM JSON
(PS3.18 annex F), of which four numbers a frame are wanted. The bytes are walked with msgspec,
which checks all of the JSON and builds only what is asked for; no list of items is ever held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dicom_io.dicom_json import PER_FRAME, Json, value
from dicom_io.errors import PacsAnswerInvalid, SlideGeometryInvalid
from dicom_io.z_offset import UM_PER_MM

MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True, eq=False)
class FramePlaces:
    """What the items of PerFrameFunctionalGroupsSequence say of N frames.

    Attributes
    ----------
    corner : (N, 2) int64
        Column and row of the frame's first pixel in the total pixel matrix, as DICOM counts them,
        from 1; 0 where an item does not say.
    z_mm : (N,) float64
        Height above the glass, NaN where an item does not say.
    path : (N,) int16
        Index into `path_identifiers`, −1 where an item does not say.
    path_identifiers
    """

    corner: NDArray[np.int64]
    z_mm: NDArray[np.float64]
    path: NDArray[np.int16]
    path_identifiers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.corner)


@dataclass(frozen=True, slots=True)
class InstanceMetadata:
    """Metadata of one instance.

    Attributes
    ----------
    header
        DICOM JSON without per-frame items.
    frames
        None where the instance has no PerFrameFunctionalGroupsSequence.
    """

    header: Json
    frames: FramePlaces | None


class _Integers(msgspec.Struct):
    values: list[int] = msgspec.field(name="Value", default_factory=list)


class _Reals(msgspec.Struct):
    values: list[float] = msgspec.field(name="Value", default_factory=list)


class _Texts(msgspec.Struct):
    values: list[str] = msgspec.field(name="Value", default_factory=list)


class _Position(msgspec.Struct):
    """An item of PlanePositionSlideSequence."""

    column: _Integers = msgspec.field(name="0048021E", default_factory=_Integers)
    row: _Integers = msgspec.field(name="0048021F", default_factory=_Integers)
    z_um: _Reals = msgspec.field(name="0040074A", default_factory=_Reals)


class _Positions(msgspec.Struct):
    items: list[_Position] = msgspec.field(name="Value", default_factory=list)


class _OpticalPath(msgspec.Struct):
    """An item of OpticalPathIdentificationSequence."""

    identifier: _Texts = msgspec.field(name="00480106", default_factory=_Texts)


class _OpticalPaths(msgspec.Struct):
    items: list[_OpticalPath] = msgspec.field(name="Value", default_factory=list)


class _Frame(msgspec.Struct):
    """An item of PerFrameFunctionalGroupsSequence."""

    positions: _Positions = msgspec.field(name="0048021A", default_factory=_Positions)
    paths: _OpticalPaths = msgspec.field(name="00480207", default_factory=_OpticalPaths)


class _Frames(msgspec.Struct):
    items: list[msgspec.Raw] = msgspec.field(name="Value", default_factory=list)


# Not strict: a number may stand as text (PS3.18 table F.2.3-1).
_SERIES = msgspec.json.Decoder(list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw])
_ELEMENT = msgspec.json.Decoder(dict[str, Any])
_FRAMES = msgspec.json.Decoder(_Frames)
_FRAME = msgspec.json.Decoder(_Frame, strict=False)


def read_series_metadata(raw: bytes, archive: str, series_uid: str) -> list[InstanceMetadata]:
    """Read what ``/metadata`` of a series answered.

    Parameters
    ----------
    raw
        JSON: a list of datasets, or one alone as some archives send it; empty for none.
    archive, series_uid
        Named where the answer is malformed.

    Raises
    ------
    PacsAnswerInvalid
        Not JSON, or not datasets.
    SlideGeometryInvalid
        A frame's place is malformed.
    """
    items, headers = _decoded(raw, archive, series_uid)
    return [
        InstanceMetadata(header, _frame_places(item[PER_FRAME], header))
        if PER_FRAME in item
        else InstanceMetadata(header, None)
        for item, header in zip(items, headers, strict=True)
    ]


def read_series_headers(raw: bytes, archive: str, series_uid: str) -> list[Json]:
    """The headers alone: per-frame items are passed over, whatever they hold."""
    return _decoded(raw, archive, series_uid)[1]


def _decoded(
    raw: bytes, archive: str, series_uid: str
) -> tuple[list[dict[str, msgspec.Raw]], list[Json]]:
    try:
        found = _SERIES.decode(raw or b"[]")
        items = [found] if isinstance(found, dict) else found
        headers = [
            {tag: _ELEMENT.decode(element) for tag, element in item.items() if tag != PER_FRAME}
            for item in items
        ]
    except MALFORMED as error:
        raise PacsAnswerInvalid(
            f"{archive} answered the metadata of series {series_uid} with JSON that is not a list"
            " of DICOM datasets: check that the URL is that of a DICOMweb service."
        ) from error
    return items, headers


def _frame_places(raw: msgspec.Raw, header: Json) -> FramePlaces | None:
    number = 0
    try:
        items = _FRAMES.decode(raw).items
        corner = np.zeros((len(items), 2), np.int64)
        z_mm = np.full(len(items), np.nan)
        path = np.full(len(items), -1, np.int16)
        identifiers: dict[str, int] = {}
        for number, item in enumerate(items):
            frame = _FRAME.decode(item)
            for position in frame.positions.items[:1]:
                corner[number] = (
                    (*position.column.values[:1], 0)[0],
                    (*position.row.values[:1], 0)[0],
                )
                z_mm[number] = (*position.z_um.values[:1], np.nan)[0] / UM_PER_MM
            for optical_path in frame.paths.items[:1]:
                for identifier in optical_path.identifier.values[:1]:
                    path[number] = identifiers.setdefault(identifier, len(identifiers))
    except (*MALFORMED, OverflowError) as error:
        raise SlideGeometryInvalid(
            f"Instance {value(header, 'SOPInstanceUID')} says the place of frame {number + 1} in a"
            " way that is not DICOM JSON: store the instance again with"
            " PerFrameFunctionalGroupsSequence complete."
        ) from error
    return FramePlaces(corner, z_mm, path, tuple(identifiers)) if items else None
