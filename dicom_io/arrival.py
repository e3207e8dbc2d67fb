"""Instances that were sent here one by one, and whether a slide has all of them.

DICOM does not say how many instances a series has. What can be counted is counted: the frames of
each level against the tiles of its matrix, the parts of a concatenation against their total.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from dicom_io.dicom_json import key
from dicom_io.errors import PacsAnswerInvalid, PacsRefused
from dicom_io.folder_index import UID
from dicom_io.pacs_errors import FOREIGN_ERRORS
from dicom_io.stored_frames import FILE_ERRORS, header_of

LONGEST_UID = 64
READ = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "ImageType",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "TotalPixelMatrixRows",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixFocalPlanes",
    "NumberOfOpticalPaths",
    "ConcatenationUID",
    "InConcatenationTotalNumber",
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is counted of one instance.

    Attributes
    ----------
    study_uid, series_uid, sop_uid, sop_class_uid
    is_volume
        Whether it is a level of a whole slide image, not its label, overview or thumbnail.
    matrix_px
        Columns and rows of the total pixel matrix.
    frames
        Number of frames it holds.
    frames_of_level
        Number of frames that a level with every tile has.
    concatenation_uid
        Empty outside a concatenation.
    parts
        Of its concatenation; 0 where that is not said.
    """

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    is_volume: bool = False
    matrix_px: tuple[int, int] = (0, 0)
    frames: int = 0
    frames_of_level: int = 0
    concatenation_uid: str = ""
    parts: int = 0


def read_arrival(path: Path) -> Arrival:
    """Read what is counted from a file; pixel data and per-frame items are passed over.

    Raises
    ------
    PacsRefused
        When the file is no DICOM instance, or a UID is missing or malformed.
    """
    try:
        return _arrival(header_of(path, READ))
    except FILE_ERRORS as error:
        raise PacsRefused(
            f"A received object cannot be read ({type(error).__name__}): check what its sender"
            " makes of it, and send it again."
        ) from error


def arrival_of(metadata: Mapping[str, Any]) -> Arrival:
    """What is counted of an instance that an archive describes (DICOM JSON).

    Raises
    ------
    PacsAnswerInvalid
        When the description is malformed.
    """
    counted = {key(keyword): metadata[key(keyword)] for keyword in READ if key(keyword) in metadata}
    try:
        return _arrival(Dataset.from_json(counted))
    except (*FOREIGN_ERRORS, PacsRefused) as error:
        raise PacsAnswerInvalid(
            f"The archive describes an instance by malformed metadata ({type(error).__name__}): "
            "correct it in the archive."
        ) from error


def is_whole(arrivals: Iterable[Arrival]) -> bool:
    """Whether every level among the instances of a series has all its frames.

    False also where that cannot be told: a TILED_SPARSE level may leave tiles out for good.
    """
    levels: dict[tuple[int, int], list[Arrival]] = defaultdict(list)
    for each in arrivals:
        if each.is_volume:
            levels[each.matrix_px].append(each)
    return bool(levels) and all(_level_is_whole(level) for level in levels.values())


def _level_is_whole(level: Sequence[Arrival]) -> bool:
    parts: dict[str, list[Arrival]] = defaultdict(list)
    for each in level:
        if each.concatenation_uid:
            parts[each.concatenation_uid].append(each)
    if any(len(each) < each[0].parts for each in parts.values()):
        return False
    return sum(each.frames for each in level) >= level[0].frames_of_level


def _arrival(header: Dataset) -> Arrival:
    study, series, sop = (
        _uid(header, keyword)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    sop_class = _uid(header, "SOPClassUID")
    image_type = list(header.get("ImageType", None) or [])
    if sop_class != VLWholeSlideMicroscopyImageStorage or "VOLUME" not in image_type:
        return Arrival(study, series, sop, sop_class)
    columns, rows = (
        _count(header, "TotalPixelMatrixColumns"),
        _count(header, "TotalPixelMatrixRows"),
    )
    tiles = -(-columns // _count(header, "Columns")) * -(-rows // _count(header, "Rows"))
    planes = _count(header, "TotalPixelMatrixFocalPlanes") * _count(header, "NumberOfOpticalPaths")
    return Arrival(
        study,
        series,
        sop,
        sop_class,
        is_volume=True,
        matrix_px=(columns, rows),
        frames=_count(header, "NumberOfFrames"),
        frames_of_level=tiles * planes,
        concatenation_uid=str(header.get("ConcatenationUID", "")),
        parts=int(header.get("InConcatenationTotalNumber", None) or 0),
    )


def _count(header: Dataset, keyword: str) -> int:
    value: Any = header.get(keyword, None)
    return max(1, int(value or 1))


def _uid(header: Dataset, keyword: str) -> str:
    """A UID as PS3.5 §9.1 spells it: it becomes part of a path."""
    uid = str(header.get(keyword, ""))
    if not UID.fullmatch(uid) or len(uid) > LONGEST_UID:
        raise PacsRefused(
            f"A received object has no {keyword}, or a malformed one: correct it where the object"
            " is made."
        )
    return uid
