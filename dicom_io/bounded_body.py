"""The body of an HTTP answer that may be larger than anything that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dicom_io.multipart import AnswerTooLarge


class BoundedBody:
    """A body of which so many bytes are read and no more; in all else as `raw` is.

    Parameters
    ----------
    raw
        Body of a :class:`requests.Response`, not read yet.
    most_bytes
    fails
        Whether more raise :class:`dicom_io.multipart.AnswerTooLarge`; else they are left out.
    """

    def __init__(self, raw: Any, most_bytes: int, fails: bool) -> None:
        self._raw, self._most_bytes, self._fails = raw, most_bytes, fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        left = self._most_bytes
        for piece in self._raw.stream(size, decode_content=decode_content):
            left -= len(piece)
            if left < 0:
                self._raw.close()  # and with it the connection, where more would come
                if self._fails:
                    raise AnswerTooLarge(f"more than {self._most_bytes} bytes came")
                return
            yield piece
