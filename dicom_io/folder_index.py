"""Which DICOM files lie in a folder, and what a search is told of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from dicom_io.dicom_json import Json, value
from dicom_io.errors import PacsAnswerInvalid
from dicom_io.stored_frames import FILE_ERRORS, header_of, identity_of

MAGIC, MAGIC_AT = b"DICM", 128
DIRECTORY = "DICOMDIR"
PARTIAL = ".partial"

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
    """The DICOM files of a folder and the folders in it; may be used from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[Path, IndexedFile | None] = {}
        self._lock = threading.Lock()
        self.refresh()

    def find(self, **wanted: str) -> list[IndexedFile]:
        """Instances with these attributes; looks into the folder again before it says none."""
        found = self._known(**wanted)
        if not found:
            self.refresh()
            found = self._known(**wanted)
        return found

    def refresh(self) -> None:
        """Read what is new or was replaced, forget what is gone.

        Raises
        ------
        PacsAnswerInvalid
            A DICOM file is damaged: to leave it out would make a slide silently incomplete.
        """
        with self._lock:
            found = {}
            for path in sorted(self._folder.rglob("*")):
                if path.is_file() and path.name != DIRECTORY and path.suffix != PARTIAL:
                    found[path] = self._read(path)
            self._files = found

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
        if not value(attributes, "SOPInstanceUID"):
            raise damaged(path)
        return IndexedFile(path, identity, attributes)


def damaged(path: Path) -> PacsAnswerInvalid:
    return PacsAnswerInvalid(
        f"The file {path} is a truncated or damaged DICOM file: put it there again, complete, or"
        " take it out of the folder."
    )
