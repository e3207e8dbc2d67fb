"""A folder of DICOM files behind the calls of a DICOMweb client.

``dicomweb_client.DICOMfileClient`` does the reading. What it does not do is done here: its SQLite
index belongs to one thread, so every call runs on that thread; it sees files that came later only
in a new client, so a miss is answered by indexing again; and it writes in place, so files are put
there under a passing name and renamed when they are whole.
"""

from __future__ import annotations

import fcntl
import functools
import io
import os
import re
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlparse

import requests
from dicomweb_client import DICOMfileClient
from pydicom import config, dcmwrite
from pydicom.dataset import Dataset

from dicom_io.errors import (
    FrameInvalid,
    PacsAnswerInvalid,
    PacsRefused,
    PacsUnreachable,
    PixelsUnsupported,
)

P = ParamSpec("P")
T = TypeVar("T")

PARTIAL = ".partial"
UNKNOWN_TRANSFER_SYNTAX = re.compile(r"'(1\.2\.840\.10008\.1\.2[0-9.]*)'")
INDEX_ERRORS = (OSError, EOFError, struct.error, ValueError, LookupError, NotImplementedError)
# A UID as PS3.5 §9.1 spells it: the only thing from a dataset that may become part of a path.
UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def folder_of(url: str) -> Path:
    """Folder that a ``file:///…`` URL names; raises PacsUnreachable if there is none."""
    folder = Path(unquote(urlparse(url).path))
    if not folder.is_dir():
        raise PacsUnreachable(f"The folder {folder} does not exist: create it or correct the URL.")
    return folder


class FolderClient:
    """The part of the DICOMweb client's interface that the node uses, over a folder."""

    def __init__(self, url: str) -> None:
        self.folder = folder_of(url)
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="dicom-folder")
        self._client: DICOMfileClient = self._owned(self._index)

    def close(self) -> None:
        self._owner.shutdown()

    def search_for_instances(
        self, study_instance_uid: str, series_instance_uid: str, **filters: Any
    ) -> list[dict[str, Any]]:
        def search() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = self._client.search_for_instances(
                study_instance_uid, series_instance_uid, **filters
            )
            return found

        return self._owned(search) or self._owned(self._after_indexing, search)

    def search_for_series(self, study_instance_uid: str) -> list[dict[str, Any]]:
        def search() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = self._client.search_for_series(study_instance_uid)
            return found

        return self._owned(search) or self._owned(self._after_indexing, search)

    def retrieve_series_metadata(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        def read() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = self._client.retrieve_series_metadata(
                study_uid, series_uid
            )
            return found

        return self._owned(read) or self._owned(self._after_indexing, read)

    def retrieve_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Dataset:
        def read() -> Dataset:
            return self._client.retrieve_instance(study_uid, series_uid, sop_uid)

        return self._owned(read)

    def retrieve_instance_frames(
        self, study_uid: str, series_uid: str, sop_uid: str, frame_numbers: Sequence[int]
    ) -> list[bytes]:
        def read(numbers: Sequence[int]) -> list[bytes]:
            return list(
                self._client.iter_instance_frames(study_uid, series_uid, sop_uid, list(numbers))
            )

        try:
            return self._owned(read, frame_numbers)
        except PacsAnswerInvalid:
            for number in frame_numbers:
                try:
                    self._owned(read, [number])
                except PacsAnswerInvalid as error:
                    raise FrameInvalid(
                        f"Frame {number} of instance {sop_uid} in the folder {self.folder} cannot"
                        " be read, its file is truncated or damaged: store the instance again,"
                        " complete."
                    ) from error
            raise

    def store_instances(self, datasets: Sequence[Dataset]) -> Dataset:
        """Write each dataset to ``studies/…/series/…/instances/…``; an answer as STOW gives it."""
        stored = []
        for dataset in datasets:
            _write_whole(dataset, self._path(dataset))
            item = Dataset()
            item.ReferencedSOPClassUID = dataset.SOPClassUID
            item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
            stored.append(item)
        self._owned(self._renew)
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
        # The layout in which DICOMfileClient itself stores.
        return self.folder / "studies" / study / "series" / series / "instances" / sop

    def _owned(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self._owner.submit(
                _with_own_validation, functools.partial(call, *args, **kwargs)
            ).result()
        except requests.HTTPError as error:
            # DICOMfileClient reports whatever goes wrong as a status 500; a KeyError in its
            # table of transfer syntaxes among it.
            reason = error.response.reason or ""
            unknown = UNKNOWN_TRANSFER_SYNTAX.fullmatch(reason)
            if unknown:
                raise PixelsUnsupported(
                    f"The folder {self.folder} holds frames in transfer syntax {unknown[1]}, which"
                    " cannot be read from a folder: transcode them to JPEG baseline or read them"
                    " from a DICOMweb server."
                ) from error
            raise PacsAnswerInvalid(
                f"The folder {self.folder} cannot give {error.response.url}: its file is missing,"
                " truncated or damaged; put it there again, complete."
            ) from error

    def _index(self) -> DICOMfileClient:
        _remove_abandoned(self.folder)
        try:
            return _indexed(self.folder)
        except INDEX_ERRORS as error:
            raise PacsAnswerInvalid(
                f"The file {_damaged_file(self.folder)} is a truncated or damaged DICOM file: put"
                " it there again, complete, or take it out of the folder."
            ) from error

    def _renew(self) -> None:
        self._client = self._index()

    def _after_indexing(self, call: Callable[[], T]) -> T:
        self._renew()
        return call()


def _indexed(folder: Path) -> DICOMfileClient:
    return DICOMfileClient(f"file://{folder}", in_memory=True)


def _damaged_file(folder: Path) -> Path:
    """First file that cannot be indexed alone; the index itself does not say which."""
    for path in sorted(folder.rglob("*")):
        with TemporaryDirectory() as alone:
            (Path(alone) / "file").symlink_to(path.resolve())
            try:
                _indexed(Path(alone))
            except INDEX_ERRORS:
                return path
    return folder


def _write_whole(dataset: Dataset, path: Path) -> None:
    """Write a file that is either whole or not there, whenever the process ends."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)


def _remove_abandoned(folder: Path) -> None:
    """Delete what a killed writer left; one at work holds a lock and is waited for."""
    for partial in folder.glob(f"studies/*/series/*/instances/*{PARTIAL}"):
        with partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            partial.unlink(missing_ok=True)


def _with_own_validation(call: Callable[[], T]) -> T:
    """Undo what the client does to pydicom: after an exception it leaves strict validation on."""
    reading, writing = (
        config.settings.reading_validation_mode,
        config.settings.writing_validation_mode,
    )
    try:
        return call()
    finally:
        config.settings.reading_validation_mode = reading
        config.settings.writing_validation_mode = writing
