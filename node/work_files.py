"""Work files: what stages hand to each other, kept on disk under the digest of its content.

A step of a durable job returns only a digest; the arrays lie here. Writing is atomic, and the same
content is stored once. Names are digests and fixed words, never values that came with a slide.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_io.errors import DiskFull, WorkFileMissing
from models.records import Cells, Differential, Regions
from node.shared_storage import SharedStorage

if TYPE_CHECKING:
    from node.config import Settings

RECORDS: dict[str, type] = {"Cells": Cells, "Differential": Differential, "Regions": Regions}
# Left free on the disk: a job database that cannot write even why a job failed waits for ever.
RESERVED_BYTES = 512 * 1024
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}


class WorkFiles:
    """A folder of content-addressed files.

    Parameters
    ----------
    folder
        Made when it does not exist.
    shared
        Storage in which they lie too, for other hosts; None for none.

    Raises
    ------
    DiskFull
        From every method, when the folder cannot be made, written or read.
    SharedStorageUnreachable
        From every method but :meth:`path`, when that cannot be read or written.
    WorkFileMissing
        When what is read is not there: another host made it, and keeps its files for itself.
    """

    def __init__(self, folder: Path, shared: SharedStorage | None = None) -> None:
        self.folder, self._shared = folder, shared
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where a file lies, or would lie, in the folder."""
        return self.folder / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether a file is in the folder or in the shared storage."""
        there = self.path(digest).exists()
        return there or (self._shared is not None and self._shared.has(_shared_name(digest)))

    def put(self, content: bytes) -> str:
        """Store bytes, return their SHA-256 (hex)."""
        digest = hashlib.sha256(content).hexdigest()
        target = self.path(digest)
        with disk_errors(self.folder):
            if target.exists():
                os.utime(target)  # as new as its youngest use, for the retention of old files
            else:
                if shutil.disk_usage(self.folder).free < len(content) + RESERVED_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                write_atomically(target, content)
        if self._shared is not None and not self._shared.has(_shared_name(digest)):
            self._shared.put(_shared_name(digest), content)
        return digest

    def get(self, digest: str) -> bytes:
        try:
            with disk_errors(self.folder):
                return self.path(digest).read_bytes()
        except FileNotFoundError as error:
            content = self._fetched(digest)
            if content is not None:
                return content
            raise WorkFileMissing(
                f"Work file {digest[:12]}… is not in {self.folder}: another host has it, or it was "
                "purged. The analysis begins again; hosts with a shared_storage go on instead."
            ) from error

    def _fetched(self, digest: str) -> bytes | None:
        """A file from the shared storage, which is then in the folder too."""
        content = None if self._shared is None else self._shared.get(_shared_name(digest))
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            return None
        with disk_errors(self.folder):
            write_atomically(self.path(digest), content)
        return content

    def put_json(self, value: Any) -> str:
        return self.put(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())

    def get_json(self, digest: str) -> Any:
        return json.loads(self.get(digest))

    def put_record(self, record: Regions | Cells | Differential) -> str:
        """Store a record of :mod:`models.records` as an .npz archive without pickle."""
        values = {field.name: getattr(record, field.name) for field in fields(record)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in values.items() if name not in arrays}
        header = json.dumps({"record": type(record).__name__, "fields": plain}, sort_keys=True)
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, __header__=np.array(header), **arrays)
        return self.put(stream.getvalue())

    def get_record(self, digest: str) -> Any:
        """Read a record back; the type is the one that was stored."""
        with np.load(io.BytesIO(self.get(digest)), allow_pickle=False) as archive:
            header = json.loads(str(archive["__header__"]))
            arrays = {name: archive[name] for name in archive.files if name != "__header__"}
        plain = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in header["fields"].items()
        }
        return RECORDS[header["record"]](**arrays, **plain)


def open_work_files(settings: Settings) -> WorkFiles:
    """The work files of a node."""
    return WorkFiles(settings.work_folder / "files", shared_storage(settings))


def shared_storage(settings: Settings) -> SharedStorage | None:
    """What hosts share beside their work folders."""
    return SharedStorage(settings.shared_storage) if settings.shared_storage else None


def _shared_name(digest: str) -> str:
    return f"files/{digest[:2]}/{digest}"


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise DiskFull for what a disk that is full, gone or read-only does to files in a folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise DiskFull(
            f"The work folder {folder} cannot be used ({os.strerror(error.errno or 0)}): "
            "free space there or set another folder with work_folder."
        ) from error


def write_atomically(target: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    part = _written_beside(target, content)
    try:
        os.replace(part, target)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_once(target: Path, content: bytes) -> bool:
    """Write a file that nobody has written yet; False, and nothing done, where it is there.

    Of several processes that try at the same time one succeeds.
    """
    part = _written_beside(target, content)
    try:
        os.link(part, target)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _written_beside(target: Path, content: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)
