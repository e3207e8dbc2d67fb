"""Servers of the tests' own process."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import HTTPServer


@contextmanager
def served(server: HTTPServer) -> Iterator[str]:
    """Let a server on loopback answer, on a thread of its own; where it is, without a last slash.

    A server whose socket speaks TLS is at https.
    """
    scheme = "https" if isinstance(server.socket, ssl.SSLSocket) else "http"
    # Whether it shall end it only asks itself so often.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
