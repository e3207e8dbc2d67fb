"""A deadline for a whole HTTP answer, head and body.

The timeouts of sockets, urllib3 and requests are for one read at a time, so a server that sends a
byte every few seconds is never cut off by them. Here each read of a response gets what is left of
the seconds that the request has in all: the ``total`` of its :class:`urllib3.Timeout`, which each
request through a :class:`TimedAdapter` has to have.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_request = threading.local()


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


_POOLS = {"http": _Pool, "https": _SecurePool}


def whole_timeout(seconds: float) -> Any:
    """A urllib3.Timeout for connection and answer together, which requests takes too."""
    return urllib3.Timeout(connect=seconds, read=seconds, total=seconds)


def body_timeout(error: Exception) -> urllib3.exceptions.ReadTimeoutError | None:
    """What requests wrapped into its ConnectionError as the time for a body had passed, if so."""
    inner = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    return inner if isinstance(inner, urllib3.exceptions.ReadTimeoutError) else None


def keep_deadlines(session: requests.Session) -> None:
    """Let the answers to a session's requests end with their :func:`whole_timeout`."""
    for scheme in ("http://", "https://"):
        session.mount(scheme, TimedAdapter())


class TimedAdapter(HTTPAdapter):
    """Transport of requests whose answers end with their deadline."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> urllib3.ProxyManager:
        manager: urllib3.ProxyManager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        _request.until = time.monotonic() + options["timeout"].total
        return super().send(request, **options)
