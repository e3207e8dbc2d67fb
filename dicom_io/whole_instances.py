"""Whole instances in temporary files, for archives that give no frames."""

from __future__ import annotations

import errno
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import BinaryIO

import requests

from dicom_io.errors import DiskFull, FrameInvalid, PacsAnswerInvalid, SlideTooLarge
from dicom_io.multipart import (
    Multipart,
    MultipartInvalid,
    MultipartTruncated,
    chunks_of,
    is_framed,
    media_type,
)
from dicom_io.pacs_http import Service
from dicom_io.stored_frames import FILE_ERRORS, FrameTable, opened_frame_table, read_frames

# PS3.18 table 10.4.4-1 also allows one instance without multipart; some archives know only that.
ACCEPTS = (
    'multipart/related; type="application/dicom"; transfer-syntax=*',
    "application/dicom; transfer-syntax=*",
)


class WholeInstances:
    """Instances fetched once each; the oldest go when all together hold too many bytes.

    The files have no name, so nothing of them is left behind however the process ends.
    """

    def __init__(self, service: Service, most_bytes: int, deadline_s: float) -> None:
        self._service, self._most_bytes, self._deadline_s = service, most_bytes, deadline_s
        self._kept: dict[str, tuple[BinaryIO, FrameTable]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            for file, _ in self._kept.values():
                file.close()
            self._kept.clear()

    def frames(
        self, path: str, sop_uid: str, one_based: Sequence[int], waiting: Callable[[], None]
    ) -> list[bytes]:
        """Stored frames of the instance at `path` below the service.

        `waiting` is called for every piece, and raises where nobody waits for frames any more.

        Raises
        ------
        FrameInvalid
        SlideTooLarge, DiskFull
        dicom_io.errors.PacsError
        """
        with self._lock:  # one file at a time: several would only share the link
            if sop_uid not in self._kept:
                self._fetch(path, sop_uid, waiting)
            _, stored = self._kept[sop_uid]
            return [self._frame(stored, sop_uid, number) for number in one_based]

    def _frame(self, stored: FrameTable, sop_uid: str, number: int) -> bytes:
        try:
            return read_frames(stored, [number - 1])[0]
        except FILE_ERRORS as error:
            raise FrameInvalid(
                f"Frame {number} of instance {sop_uid} cannot be read from the instance that"
                f" {self._service.name} gave ({error}): store the instance again, complete."
            ) from error

    def _fetch(self, path: str, sop_uid: str, waiting: Callable[[], None]) -> None:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - kept open for as long as it is needed
        try:
            what = f"instance {sop_uid}"
            self._service.ask(what, lambda: self._received(path, sop_uid, file, waiting))
            self._kept[sop_uid] = (file, self._opened(file, sop_uid))
        except BaseException:
            file.close()
            raise

    def _opened(self, file: BinaryIO, sop_uid: str) -> FrameTable:
        try:
            table = opened_frame_table(file)
        except FILE_ERRORS as error:
            raise PacsAnswerInvalid(
                f"{self._service.name} gave an instance {sop_uid} whose frames cannot be found"
                f" ({error}): store the instance again, complete."
            ) from error
        if table.sop_uid != sop_uid:
            raise PacsAnswerInvalid(
                f"{self._service.name} gave another instance than {sop_uid}, which was asked for:"
                " check the archive."
            )
        return table

    def _received(
        self, path: str, sop_uid: str, file: BinaryIO, waiting: Callable[[], None]
    ) -> None:
        waiting()
        file.seek(0)
        file.truncate()
        with closing(self._service.get_any(path, ACCEPTS, self._deadline_s)) as response:
            for piece in _instance(response):
                waiting()
                if file.tell() + len(piece) > self._most_bytes:
                    raise SlideTooLarge(
                        f"Instance {sop_uid} is larger than max_instance_bytes"
                        f" ({self._most_bytes}): raise it in the PACS settings, or have the archive"
                        " give frames."
                    )
                self._room(file, len(piece))
                self._written(file, piece, sop_uid)
            file.flush()
            if _may_be_cut(response) and not _holds_last_frame(file):
                raise MultipartTruncated("the instance ends before its last frame")

    def _room(self, file: BinaryIO, coming: int) -> None:
        """Give up the oldest instances for the one that comes."""
        while self._kept and self._held() + file.tell() + coming > self._most_bytes:
            oldest, _ = self._kept.pop(next(iter(self._kept)))
            oldest.close()

    def _held(self) -> int:
        return sum(file.seek(0, 2) for file, _ in self._kept.values())

    def _written(self, file: BinaryIO, piece: memoryview, sop_uid: str) -> None:
        try:
            while piece:
                piece = piece[file.write(piece) :]  # without a buffer it may take a part only
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            raise DiskFull(
                f"There is no room for instance {sop_uid} in {tempfile.gettempdir()}: make room or"
                " point TMPDIR elsewhere."
            ) from error


def _instance(response: requests.Response) -> Iterator[memoryview]:
    """The only instance of an answer, in pieces."""
    kind, parameters = media_type(response.headers.get("Content-Type", ""))
    chunks = chunks_of(lambda size: response.raw.read1(size, decode_content=True))
    if kind in {"application/dicom", "application/octet-stream"}:
        yield from (memoryview(chunk) for chunk in chunks)
        return
    if not kind.startswith("multipart/"):
        raise MultipartInvalid(f"the answer is {kind}")
    parts = Multipart(chunks, parameters.get("boundary", ""), is_framed(response)).streams()
    _, pieces = next(parts, ({}, iter(())))
    yield from pieces


def _may_be_cut(response: requests.Response) -> bool:
    """Whether a body that was cut looks as if it were whole: alone, up to the connection's end."""
    kind, _ = media_type(response.headers.get("Content-Type", ""))
    return not kind.startswith("multipart/") and not is_framed(response)


def _holds_last_frame(file: BinaryIO) -> bool:
    try:
        table = opened_frame_table(file)
        read_frames(table, [table.frames - 1])
    except FILE_ERRORS:
        return False
    return True
