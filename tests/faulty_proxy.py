"""A real HTTP proxy in front of a real archive, which fails as told."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import requests

from tests.served import served

HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
TRICKLES = 10


@dataclass(frozen=True)
class Request:
    """A request as it reached the proxy."""

    method: str
    path: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What it is answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes


Forward = Callable[[Request], Answer]
Habit = Callable[[Request, Forward], Answer]
"""Answers a request in another way than what stands behind, which it may ask."""

Reset = Literal["before the request", "in the request", "before the answer", "in the answer"]


@dataclass
class Fault:
    """What goes wrong.

    Attributes
    ----------
    path
        Regular expression; only requests whose path holds it are touched.
    method
        Only requests of this method are touched; empty for all.
    skip
        The first requests of that kind that are let through.
    status
        Answer with this status instead of asking the archive.
    html
        Answer with a page, status 200 unless `status` says otherwise.
    delay_s
        Wait before answering.
    cut
        Close the connection in the middle of the body.
    reset
        Reset the connection: before the request is read, in its body, when the archive has obeyed
        and not a byte of its answer was passed on, or in the middle of that.
    twice
        Send the request to the archive twice, as balancers do that try again.
    told_twice
        Send the whole answer twice.
    habit
        Answers instead of the archive.
    trickle_s
        Seconds over which the answer's body is spread.
    met
        Called for each request that is touched.
    asked, obeyed
        Called before a request is passed on, and after the archive has answered it.
    part
        Change the parts of a multipart answer: (index, bytes) → bytes, None to leave it out.
    body
        Answer with these bytes instead of the archive's.
    times
        Only the first requests are touched; None touches all.
    """

    path: str = ""
    method: str = ""
    skip: int = 0
    status: int | None = None
    html: bool = False
    delay_s: float = 0.0
    cut: bool = False
    reset: Reset | None = None
    twice: bool = False
    told_twice: bool = False
    habit: Habit | None = None
    trickle_s: float = 0.0
    met: Callable[[], None] | None = None
    asked: Callable[[], None] | None = None
    obeyed: Callable[[], None] | None = None
    part: Callable[[int, bytes], bytes | None] | None = None
    body: bytes | None = None
    times: int | None = None


@dataclass
class Proxy:
    """The proxy as a test sees it.

    Attributes
    ----------
    url
        Base URL of the archive's DICOMweb service through the proxy.
    fault
        None lets everything through.
    faults
        Further ones; a request meets the first that touches it.
    habit
        What the archive does with every request; None for nothing special.
    allowed
        Whether a request with this Authorization header may pass; else 401.
    requests
        (method, path) of every request so far.
    headers
        Headers of the last request.
    """

    url: str
    fault: Fault | None = None
    faults: list[Fault] = field(default_factory=list)
    habit: Habit | None = None
    allowed: Callable[[str | None], bool] = lambda authorization: True
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def faulty_proxy(dicomweb_url: str, keep_host: bool = False) -> Iterator[Proxy]:
    """Run a proxy in front of `dicomweb_url`.

    Parameters
    ----------
    dicomweb_url
    keep_host
        Whether the server behind is told the proxy's address, so that the addresses that it
        answers lead through the proxy too.
    """
    proxy = Proxy("")
    session = requests.Session()
    counting = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else a body waits 40 ms for the head's acknowledgement

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_PUT(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

        def _serve(self) -> None:
            fault = self._fault()
            if fault.reset == "before the request":
                self._reset()
                return
            if fault.reset == "in the request":
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                self._reset()
                return
            body = self._request_body()
            proxy.requests.append((self.command, self.path))
            proxy.headers = dict(self.headers.items())
            if fault.asked is not None:
                fault.asked()
            time.sleep(fault.delay_s)
            if fault.html or fault.status is not None:
                page = HTML if fault.html else fault.body or b'{"Message": "told to fail"}'
                told = "application/dicom+json" if fault.body else "text/html"
                self._answer(fault.status or 200, {"Content-Type": told}, page, fault)
                return
            if not proxy.allowed(self.headers.get("Authorization")):
                self._answer(401, {"Content-Type": "application/json"}, b"{}", fault)
                return
            request = Request(self.command, self.path, body, dict(self.headers.items()))
            habit = fault.habit or proxy.habit or _none
            try:
                for _ in range(1 + fault.twice):
                    answer = habit(request, self._forwarded)
            except requests.RequestException:
                # What stands behind is down: so is the proxy then, for all that can be seen.
                self._reset()
                return
            if fault.obeyed is not None:
                fault.obeyed()
            if fault.reset == "before the answer":
                self._reset()
                return
            content = answer.content if fault.body is None else fault.body
            if fault.part is not None and answer.status < 400:
                content = _changed(answer.headers["Content-Type"], content, fault.part)
            self._answer(answer.status, answer.headers, content, fault)

        def _forwarded(self, request: Request) -> Answer:
            kept = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
            if keep_host:
                kept["Host"] = request.headers["Host"]
            answer = session.request(
                request.method,
                dicomweb_url + request.path,
                data=request.body,
                headers=kept,
                timeout=60,
            )
            return Answer(answer.status_code, dict(answer.headers), answer.content)

        def _request_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _fault(self) -> Fault:
            with counting:
                for fault in [proxy.fault, *proxy.faults]:
                    if fault is not None and self._is_touched(fault):
                        return fault
            return Fault()

        def _is_touched(self, fault: Fault) -> bool:
            if (
                fault.times == 0
                or fault.method not in ("", self.command)
                or not re.search(fault.path, self.path)
            ):
                return False
            if fault.skip:
                fault.skip -= 1
                return False
            if fault.times is not None:
                fault.times -= 1
            if fault.met is not None:
                fault.met()
            return True

        def _reset(self) -> None:
            """Close so that the other side gets a reset, and nothing that was not yet sent."""
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

        def _answer(
            self, status: int, headers: Mapping[str, str], content: bytes, fault: Fault
        ) -> None:
            half = fault.cut or fault.reset == "in the answer"
            try:
                for _ in range(1 + fault.told_twice):
                    self.send_response(status)
                    for name, value in headers.items():
                        if name.lower() not in HOP_BY_HOP | {"content-encoding"}:
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self._write(content[: len(content) // 2] if half else content, fault.trickle_s)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has given up waiting
            if fault.reset == "in the answer":
                self._reset()
            if fault.cut:
                self.close_connection = True

        def _write(self, content: bytes, seconds: float) -> None:
            if not seconds:
                self.wfile.write(content)
                return
            size = len(content) // TRICKLES + 1
            for start in range(0, len(content), size):
                self.wfile.write(content[start : start + size])
                time.sleep(seconds / TRICKLES)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of clients that are killed; of all else, what is usual."""
            if not isinstance(sys.exc_info()[1], ConnectionError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    with session, served(Server(("127.0.0.1", 0), Handler)) as proxy.url:
        yield proxy


def _none(request: Request, forward: Forward) -> Answer:
    return forward(request)


def _changed(
    content_type: str, content: bytes, change: Callable[[int, bytes], bytes | None]
) -> bytes:
    """Multipart body with each part's payload changed."""
    found = re.search(r'boundary="?([^";]+)', content_type)
    if found is None:
        return content
    delimiter = b"--" + found[1].encode()
    parts = content.split(delimiter)[1:-1]
    body = b""
    for index, part in enumerate(parts):
        head, payload = part.split(b"\r\n\r\n", 1)
        changed = change(index, payload[:-2])
        if changed is not None:
            head = re.sub(rb"(?i)(content-length: )\d+", rb"\g<1>%d" % len(changed), head)
            body += delimiter + head + b"\r\n\r\n" + changed + b"\r\n"
    return body + delimiter + b"--\r\n"
