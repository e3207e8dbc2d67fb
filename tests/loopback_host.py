"""A small real server on loopback that answers as told and remembers what it was sent."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.served import served

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Host:
    """A loopback server that answers as told and remembers what it was sent."""

    url: str = ""
    answer: Callable[[str], Answer] = lambda path: (200, {}, b"[]")
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, str]:
        return self.requests[-1][2]


@contextmanager
def running_host(context: ssl.SSLContext | None = None) -> Iterator[Host]:
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            host.requests.append((self.command, self.path, headers))
            self.rfile.read(int(headers.get("content-length", 0)))
            status, more, body = host.answer(self.path)
            self.send_response(status)
            for name, value in {"Content-Type": "application/dicom+json", **more}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Quiet: a client without a certificate is turned away."""

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with served(server) as host.url:
        yield host
