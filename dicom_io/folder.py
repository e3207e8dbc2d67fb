"""A folder of DICOM files behind the calls of a DICOMweb client.

``dicomweb_client.DICOMfileClient`` would do for JPEG slides, but it knows no frames in RLE, HTJ2K
or JPEG XL, reads deflated files whole into memory, belongs to one thread and sees later files only
in a new client. So index, metadata and frames are read here, with pydicom; files are put there
under a passing name and renamed when they are whole.
"""

from __future__ import annotations

import fcntl
import io
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlparse

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from dicom_io.dicom_json import value
from dicom_io.errors import FrameInvalid, PacsNotFound, PacsRefused, PacsUnreachable
from dicom_io.folder_index import PARTIAL, STUDIES, UID, FolderIndex, IndexedFile, damaged
from dicom_io.stored_frames import (
    FILE_ERRORS,
    PER_FRAME,
    PIXELS,
    FrameTable,
    frame_table,
    header_of,
    identity_of,
    read_frames,
)

# A table holds 16 bytes a frame; a slide has about ten instances.
TABLES_KEPT = 32
PIXEL_GROUP = "7FE0"


def folder_of(url: str) -> Path:
    """Folder that a ``file:///…`` URL names; raises PacsUnreachable if there is none."""
    folder = Path(unquote(urlparse(url).path))
    if not folder.is_dir():
        raise PacsUnreachable(f"The folder {folder} does not exist: create it or correct the URL.")
    return folder


class FolderClient:
    """The part of the DICOMweb client's interface that the node uses, over a folder.

    May be used from several threads. Raises :class:`dicom_io.errors.PacsError` and FrameInvalid.
    """

    def __init__(self, url: str) -> None:
        self.folder = folder_of(url)
        _remove_abandoned(self.folder)
        self._index = FolderIndex(self.folder)
        self._tables: dict[Path, FrameTable] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._tables.clear()

    def search_for_instances(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        search_filters: Mapping[str, str] | None = None,
    ) -> list[dict[str, Any]]:
        found = self._index.find(
            StudyInstanceUID=study_instance_uid,
            SeriesInstanceUID=series_instance_uid,
            **(search_filters or {}),
        )
        return [file.attributes for file in found]

    def search_for_studies(self, search_filters: Mapping[str, str]) -> list[dict[str, Any]]:
        """What the first instance of each study says of it."""
        self._index.refresh()
        return _first_of_each("StudyInstanceUID", self._index.find(**search_filters))

    def search_for_series(self, study_instance_uid: str) -> list[dict[str, Any]]:
        """What the first instance of each series says of it."""
        found = self._index.find(StudyInstanceUID=study_instance_uid)
        return _first_of_each("SeriesInstanceUID", found)

    def retrieve_series_metadata(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        found = self._index.find(StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)
        return [_metadata(file.path) for file in found]

    def retrieve_series_headers(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """The same without per-frame items, which are not read."""
        found = self._index.find(StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid)
        return [_metadata(file.path, before=PER_FRAME) for file in found]

    def retrieve_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Dataset:
        path = self._file(study_uid, series_uid, sop_uid)
        try:
            return dcmread(path)
        except FILE_ERRORS as error:
            raise damaged(path) from error

    def retrieve_instance_frames(
        self, study_uid: str, series_uid: str, sop_uid: str, frame_numbers: Sequence[int]
    ) -> list[bytes]:
        """Stored bytes of frames; numbers count from 1."""
        table = self._table(self._file(study_uid, series_uid, sop_uid))
        zero_based = [number - 1 for number in frame_numbers]
        try:
            return read_frames(table, zero_based)
        except FILE_ERRORS as error:
            raise FrameInvalid(
                f"Frame {_unreadable(table, zero_based) + 1} of instance {sop_uid} in the folder"
                f" {self.folder} cannot be read, its file is truncated or damaged: store the"
                " instance again, complete."
            ) from error

    def store_instances(self, datasets: Sequence[Dataset]) -> Dataset:
        """Write each dataset to ``studies/…/series/…/instances/…``; an answer as STOW gives it."""
        stored = []
        for dataset in datasets:
            _write_whole(dataset, self._path(dataset))
            item = Dataset()
            item.ReferencedSOPClassUID = dataset.SOPClassUID
            item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
            stored.append(item)
        for study_uid in {str(dataset.StudyInstanceUID) for dataset in datasets}:
            self._index.refresh(study_uid)
        answer = Dataset()
        answer.ReferencedSOPSequence = stored
        return answer

    def _path(self, dataset: Dataset) -> Path:
        keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        uids = [str(dataset[keyword].value) for keyword in keywords]
        for uid in uids:
            if not UID.fullmatch(uid) or len(uid) > 64:
                raise PacsRefused(
                    f"The folder {self.folder} cannot take an instance with the malformed UID"
                    f" {uid!r}: correct the UID."
                )
        study, series, sop = uids
        # The layout of DICOMweb's own addresses.
        return self.folder / STUDIES / study / "series" / series / "instances" / sop

    def _file(self, study_uid: str, series_uid: str, sop_uid: str) -> Path:
        found = self._index.find(
            StudyInstanceUID=study_uid, SeriesInstanceUID=series_uid, SOPInstanceUID=sop_uid
        )
        if not found:
            raise PacsNotFound(
                f"The folder {self.folder} holds no instance {sop_uid}: check the UIDs and that"
                " the slide has arrived."
            )
        return found[0].path

    def _table(self, path: Path) -> FrameTable:
        """Frame table of a file, kept until the file is replaced."""
        with self._lock:
            try:
                table = self._tables.pop(path, None)
                if table is None or table.identity != identity_of(path):
                    table = frame_table(path)
            except FILE_ERRORS as error:
                raise damaged(path) from error
            self._tables[path] = table  # the most recently used one stands last
            if len(self._tables) > TABLES_KEPT:
                del self._tables[next(iter(self._tables))]
            return table


def _first_of_each(uid: str, files: Iterable[IndexedFile]) -> list[dict[str, Any]]:
    first: dict[Any, dict[str, Any]] = {}
    for file in files:
        first.setdefault(value(file.attributes, uid), file.attributes)
    return list(first.values())


def _metadata(path: Path, before: int = PIXELS) -> dict[str, Any]:
    """DICOM JSON of all but the pixels and their offset tables, which grow with the frames."""
    try:
        attributes = header_of(path, before=before).to_json_dict()
    except FILE_ERRORS as error:
        raise damaged(path) from error
    return {tag: e for tag, e in attributes.items() if not tag.startswith(PIXEL_GROUP)}


def _unreadable(table: FrameTable, zero_based: Sequence[int]) -> int:
    """First of the frames that cannot be read."""
    for number in zero_based:
        try:
            read_frames(table, [number])
        except FILE_ERRORS:
            return number
    return zero_based[0]


def _write_whole(dataset: Dataset, path: Path) -> None:
    """Write a file that is either whole or not there, whenever the process ends."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    while not _written_as(partial, buffer.getbuffer(), path):
        pass


def _written_as(partial: Path, content: memoryview, path: Path) -> bool:
    """Write and rename; false where somebody took the file for abandoned before it was locked."""
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _lies_at(file, partial):
            return False
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)
    return True


def _remove_abandoned(folder: Path) -> None:
    """Delete what a killed writer left; one at work holds a lock and is waited for."""
    for partial in folder.glob(f"studies/*/series/*/instances/*{PARTIAL}"):
        with suppress(FileNotFoundError), partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _lies_at(file, partial):  # and is not another writer's by now
                partial.unlink()


def _lies_at(file: BinaryIO, path: Path) -> bool:
    """Whether a file that is locked is still the one under its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
