"""A deadline for a whole HTTP answer, head and body.

The timeouts of sockets, urllib3 and requests are for one read at a time, so a server that sends a
byte every few seconds is never cut off by them. Here each read of a response gets what is left of
the seconds that the request has in all: the ``total`` of its :class:`urllib3.Timeout`.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_request = threading.local()


def begin(total_s: float) -> None:
    """Start the clock of the request that this thread is about to send."""
    _request.until = time.monotonic() + total_s


class _TimedReader(io.RawIOBase):
    """Bytes of a socket, until a time."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, until: float) -> None:
        self._sock, self._raw, self._until = sock, raw, until
        self._timeout_s = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request's deadline has passed")
        self._sock.settimeout(left if self._timeout_s is None else min(left, self._timeout_s))
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """A response whose every read ends with the request's deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        until = getattr(_request, "until", None)
        if until is not None:
            self.fp = io.BufferedReader(_TimedReader(sock, self.fp.detach(), until))


class _Connection(HTTPConnection):
    response_class = _TimedResponse


class _SecureConnection(HTTPSConnection):
    response_class = _TimedResponse


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


TIMED_POOLS = {"http": _Pool, "https": _SecurePool}
"""For ``pool_classes_by_scheme`` of a urllib3 pool manager."""
