"""Which DICOM files lie in a folder, and what a search is told of them."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from dicom_io.dicom_json import Json, value
from dicom_io.errors import PacsAnswerInvalid
from dicom_io.stored_frames import FILE_ERRORS, header_of, identity_of

MAGIC, MAGIC_AT = b"DICM", 128
DIRECTORY = "DICOMDIR"
PARTIAL = ".partial"
STUDIES = "studies"
_LEVELS = ("Study", "Series", "SOP")
# A UID as PS3.5 §9.1 spells it: the only thing from a dataset that may become part of a path.
UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")

# What a search for instances answers with (PS3.18 table 10.6.3-5 and above it).
SEARCHED = (
    "AccessionNumber",
    "BitsAllocated",
    "Columns",
    "InstanceNumber",
    "Modality",
    "NumberOfFrames",
    "PatientID",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyDate",
    "StudyInstanceUID",
)


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One instance.

    Attributes
    ----------
    path
    identity
        Of the file when it was read.
    attributes
        DICOM JSON of what is searched.
    """

    path: Path
    identity: tuple[int, int, int]
    attributes: Json

    def matches(self, **wanted: str) -> bool:
        return all(value(self.attributes, keyword) == uid for keyword, uid in wanted.items())


class FolderIndex:
    """The DICOM files of a folder and the folders in it; may be used from several threads.

    Of a folder in which every study has its own, as the receiver keeps them, only those studies are
    looked at that are asked for: a year of slides would take minutes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, IndexedFile | None] = {}
        self._looked_at: set[Path] = set()
        self._lock = threading.Lock()
        if not _is_filed(folder):
            self.refresh()

    def find(self, **wanted: str) -> list[IndexedFile]:
        """Instances with these attributes; looks into the folder again before it says none."""
        place = self._place_of(wanted.get("StudyInstanceUID", ""))
        found = self._known(**wanted) if self._looked_at & {place, self._folder} else []
        if not found:
            self._look(place)
            found = self._known(**wanted)
        return found

    def refresh(self, study_uid: str = "") -> None:
        """Read what is new or was replaced, forget what is gone: of one study, or of all.

        Raises
        ------
        PacsAnswerInvalid
            A DICOM file is damaged: to leave it out would make a slide silently incomplete.
        """
        self._look(self._place_of(study_uid))

    def _place_of(self, study_uid: str) -> Path:
        """Where files of a study lie, if the folder is filed."""
        is_uid = UID.fullmatch(study_uid) is not None  # and cannot lead elsewhere
        return self._folder / STUDIES / study_uid if is_uid else self._folder

    def _look(self, place: Path) -> None:
        with self._lock:
            if not _is_filed(self._folder):
                place = self._folder
            found = {
                path: self._read(path)
                for path in place.rglob("*")
                if path.is_file() and path.name != DIRECTORY and path.suffix != PARTIAL
            }
            others = {
                path: file
                for path, file in self._files.items()
                if place != self._folder and not path.is_relative_to(place)
            }
            self._files = dict(sorted((others | found).items()))
            self._looked_at.add(place)

    def _known(self, **wanted: str) -> list[IndexedFile]:
        return [file for file in self._files.values() if file and file.matches(**wanted)]

    def _read(self, path: Path) -> IndexedFile | None:
        """None for what is not DICOM; files that are as they were are not read again."""
        try:
            identity, known = identity_of(path), self._files.get(path)
            if known is not None and known.identity == identity:
                return known
            with path.open("rb") as file:
                file.seek(MAGIC_AT)
                if file.read(len(MAGIC)) != MAGIC:
                    return None
            attributes = header_of(path, SEARCHED).to_json_dict()
        except FILE_ERRORS as error:
            raise damaged(path) from error
        if not all(value(attributes, f"{level}InstanceUID") for level in _LEVELS):
            raise damaged(path)
        return IndexedFile(path, identity, attributes)


def _is_filed(folder: Path) -> bool:
    """Whether all that a folder holds are studies, each in its place (:mod:`dicom_io.folder`)."""
    if any(each.name != STUDIES for each in os.scandir(folder)):
        return False
    studies = folder / STUDIES
    return studies.is_dir() and all(
        UID.fullmatch(each.name) and each.is_dir() for each in os.scandir(studies)
    )


def damaged(path: Path) -> PacsAnswerInvalid:
    return PacsAnswerInvalid(
        f"The file {path} is a truncated or damaged DICOM file: put it there again, complete, or"
        " take it out of the folder."
    )
