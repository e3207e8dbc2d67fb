"""A real HTTP proxy in front of a real archive, which fails as told."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass
class Fault:
    """What goes wrong.

    Attributes
    ----------
    path
        Regular expression; only requests whose path holds it are touched.
    status
        Answer with this status instead of asking the archive.
    html
        Answer with a page, status 200 unless `status` says otherwise.
    delay_s
        Wait before answering.
    cut
        Close the connection in the middle of the body.
    part
        Change the parts of a multipart answer: (index, bytes) → bytes, None to leave it out.
    body
        Answer with these bytes instead of the archive's.
    times
        Only the first requests are touched; None touches all.
    """

    path: str = ""
    status: int | None = None
    html: bool = False
    delay_s: float = 0.0
    cut: bool = False
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
    requests
        (method, path) of every request so far.
    headers
        Headers of the last request.
    """

    url: str
    fault: Fault | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


@contextmanager
def faulty_proxy(dicomweb_url: str) -> Iterator[Proxy]:
    """Run a proxy in front of `dicomweb_url`."""
    proxy = Proxy("")
    session = requests.Session()

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
            body = self._request_body()
            proxy.requests.append((self.command, self.path))
            proxy.headers = dict(self.headers.items())
            fault = self._fault()
            time.sleep(fault.delay_s)
            if fault.html or fault.status is not None:
                page = HTML if fault.html else fault.body or b'{"Message": "told to fail"}'
                self._answer(fault.status or 200, {"Content-Type": "text/html"}, page, fault)
                return
            kept = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
            answer = session.request(
                self.command, dicomweb_url + self.path, data=body, headers=kept, timeout=60
            )
            content = answer.content if fault.body is None else fault.body
            if fault.part is not None and answer.ok:
                content = _changed(answer.headers["Content-Type"], content, fault.part)
            self._answer(answer.status_code, dict(answer.headers), content, fault)

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
            fault = proxy.fault
            if fault is None or not re.search(fault.path, self.path) or fault.times == 0:
                return Fault()
            if fault.times is not None:
                fault.times -= 1
            return fault

        def _answer(
            self, status: int, headers: dict[str, str], content: bytes, fault: Fault
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in HOP_BY_HOP | {"content-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            try:
                self.wfile.write(content[: len(content) // 2] if fault.cut else content)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client has given up waiting
            if fault.cut:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        session.close()


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
