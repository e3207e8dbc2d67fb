"""Objects on their way in: each streams to a file, and pynetdicom is told which."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pynetdicom import _config, dimse_messages

# Stays free on the disk: the archive is there, and a sender may never come to an end.
RESERVED_BYTES = 2**28


class IncomingFile:
    """What pynetdicom writes a data set to, in place of a temporary file.

    A failed write is kept, not raised: it would end pynetdicom's thread before the sender could be
    told. What had come is deleted then, and what comes after it is let go.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)
        self.thread = threading.current_thread()
        self.error: OSError | None = None
        self._file: IO[bytes] | None = None
        self._keep(self._open)

    @property
    def file(self) -> IncomingFile:
        return self

    def write(self, data: bytes) -> int:
        self._keep(lambda: self._write(data))
        return len(data)

    def flush(self) -> None:
        """pynetdicom flushes after every PDU; once at the end suffices."""

    def finish(self) -> None:
        """Bring all of it to the disk; raises the OSError of whatever write failed."""
        if self._file is not None and self.error is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self.close()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        if self._file is not None:
            self._keep(self._file.close)

    def remove(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # of what was not written yet, and is not wanted
                self._file.close()
        self.path.unlink(missing_ok=True)

    def _open(self) -> None:
        self._file = self.path.open("wb")

    def _write(self, data: bytes) -> None:
        if self._file is None:
            return
        disk = os.fstatvfs(self._file.fileno())
        if disk.f_bavail * disk.f_frsize < RESERVED_BYTES + len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.write(data)

    def _keep(self, write: Callable[[], Any]) -> None:
        if self.error is None:
            try:
                write()
            except OSError as error:
                self.error = error
                with suppress(OSError):  # of a disk that takes nothing any more
                    self.remove()


@contextmanager
def streaming(new_file: Callable[..., IncomingFile]) -> Iterator[None]:
    """Let pynetdicom write data sets to files of ours as they come.

    Its setting for that takes temporary files, in a folder that may be another file system or
    memory, and never deletes those of a sender that left. It has no other way to say where.
    """
    temporary_file = dimse_messages.NamedTemporaryFile  # type: ignore[attr-defined]
    dimse_messages.NamedTemporaryFile = new_file  # type: ignore[attr-defined, assignment]
    _config.STORE_RECV_CHUNKED_DATASET = True
    try:
        yield
    finally:
        _config.STORE_RECV_CHUNKED_DATASET = False
        dimse_messages.NamedTemporaryFile = temporary_file  # type: ignore[attr-defined]
