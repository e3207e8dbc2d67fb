"""The DICOM objects that lie in a work folder, found again: what the DICOMweb service serves.

Each analysis writes one small file that names its documents by digest (``results/*.json``, see
:func:`node.stages.write`). A result is here from then on, also while the archive that it goes to
is down or refuses it, and as long as the work files are kept.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

from dicom_io.dicom_json import Json
from dicom_io.instance_content import InstanceContent, read_content, read_header
from dicom_io.search import HEADER
from node.outputs import DICOM_MEDIA_TYPE
from node.work_files import WorkFiles

# Of kilobytes each: a content holds offsets, not coordinates.
HEADERS_KEPT = 100_000
CONTENTS_KEPT = 256


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One DICOM object of a result.

    Attributes
    ----------
    study_uid, series_uid, uid
    sha256
        Of its file, which never changes.
    path
    size
        Bytes of its file.
    """

    study_uid: str
    series_uid: str
    uid: str
    sha256: str
    path: Path
    size: int


class ResultStore:
    """The results of one work folder, to read.

    Parameters
    ----------
    work_folder
        Need not exist yet.
    """

    def __init__(self, work_folder: Path) -> None:
        self._results = work_folder / "results"
        self._files = WorkFiles(work_folder / "files")
        self._read: dict[Path, tuple[tuple[int, int], tuple[StoredObject, ...]]] = {}
        self._scanning, self._parsing = Lock(), Lock()
        # By path, which is the digest of the content: what is kept here cannot grow old.
        self._header = lru_cache(HEADERS_KEPT)(lambda path: read_header(path, HEADER))
        self._content = lru_cache(CONTENTS_KEPT)(read_content)

    def objects(
        self,
        study_uids: Collection[str] | None = None,
        series_uid: str | None = None,
        uid: str | None = None,
    ) -> list[StoredObject]:
        """Objects of these studies (None: of all), of this series, of this UID.

        Of several results with the same object the latest counts. A result whose files are purged
        is not there.
        """
        found = {
            each.uid: each
            for result in self._latest_last()
            for each in result
            if (study_uids is None or each.study_uid in study_uids)
            and series_uid in (None, each.series_uid)
            and uid in (None, each.uid)
        }
        return [each for each in found.values() if each.path.exists()]

    def header(self, stored: StoredObject) -> Json:
        """What searches match and return of an object, in DICOM JSON."""
        header: Json = self._header(stored.path)
        return header

    def content(self, stored: StoredObject) -> InstanceContent:
        """Metadata of an object, and where its bulk data lie; parsed once while it is in use."""
        with self._parsing:
            return self._content(stored.path)

    def _latest_last(self) -> list[tuple[StoredObject, ...]]:
        """The objects of each result file; files that have not changed are not read again."""
        with self._scanning:
            states = {path: _state(path) for path in self._results.glob("*.json")}
            self._read = {
                path: known
                if (known := self._read.get(path)) is not None and known[0] == state
                else (state, tuple(self._objects_of(path)))
                for path, state in states.items()
                if state is not None
            }
            return [objects for _, objects in sorted(self._read.values(), key=lambda each: each[0])]

    def _objects_of(self, result: Path) -> Iterator[StoredObject]:
        for artifact in json.loads(result.read_bytes())["artifacts"].values():
            path = self._files.path(artifact["sha256"])
            if artifact["media_type"] == DICOM_MEDIA_TYPE and path.exists():
                yield StoredObject(
                    artifact["study_uid"],
                    artifact["series_uid"],
                    artifact["uid"],
                    artifact["sha256"],
                    path,
                    path.stat().st_size,
                )


def _state(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew; None when it has gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
