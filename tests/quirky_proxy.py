"""A quirky archive: a real one behind a proxy with habits, and faults by a seeded schedule.

Habits are what an archive always does (one frame a request, no lengths, parts in another order);
faults come now and then, to the n-th request always the same for one seed.
"""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from tests.served import served

HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}
PAGE = b"<!DOCTYPE html><html><body>Bad gateway</body></html>"

Frame = tuple[int, bytes]
"""1-based number, bytes."""


@dataclass(frozen=True)
class Habits:
    """What the archive always does.

    Attributes
    ----------
    most_frames
        Frames a request; more are answered by `too_many`.
    too_many
        Status for too many frames; 200 gives the first ones in silence.
    refused
        Regular expression; requests whose Accept holds it get 406.
    no_frames
        /frames is 404: only whole instances are given.
    framing
        How the body ends: "length", "chunked", or "close" of the connection.
    boundary
        Delimits parts; the header quotes it.
    content_location
        Each part says which frame it is.
    one_location
        Each part says the first one's.
    shuffled
        Parts come in another order.
    part_lengths
        Parts say how long they are: "right", "wrong" or "none".
    media
        Content-Type of the parts, taken in turn.
    every_frame
        What each frame is, instead of what is stored.
    preamble
        Text before the first part.
    last_line
        How the body ends after the last part.
    alone
        A single frame comes without multipart.
    instance_alone
        A whole instance comes without multipart.
    needed
        Regular expression; searches whose query does not hold it are answered by `too_wide`.
    too_wide
        Status for them; 200 finds nothing.
    """

    most_frames: int | None = None
    too_many: int = 404
    refused: str = "$^"
    no_frames: bool = False
    framing: str = "length"
    boundary: str = "frames of/a slide?"
    content_location: bool = False
    one_location: bool = False
    shuffled: bool = False
    part_lengths: str = "right"
    media: Sequence[str] = ("image/jpeg",)
    every_frame: bytes | None = None
    preamble: bytes = b""
    last_line: bytes = b"\r\n--%s--\r\n"
    alone: bool = False
    instance_alone: bool = False
    needed: str = ""
    too_wide: int = 400


HABITS: dict[str, Habits] = {
    "plain": Habits(),
    "one frame": Habits(most_frames=1),
    "few frames, 400": Habits(most_frames=3, too_many=400),
    "few frames, 414": Habits(most_frames=3, too_many=414),
    "few frames, in silence": Habits(most_frames=3, too_many=200),
    "no name of the syntax": Habits(refused="image/jpeg"),
    "no wildcard either": Habits(refused=r"image/jpeg|syntax=\*"),
    "no frames": Habits(no_frames=True),
    "none of the media types": Habits(refused="."),
    "chunked": Habits(framing="chunked"),
    "ends with the connection": Habits(framing="close", part_lengths="none"),
    "one location": Habits(content_location=True, one_location=True),
    "shuffled": Habits(content_location=True, shuffled=True),
    "mixed": Habits(media=("image/jpeg", "application/octet-stream", "image/jpeg; q=1")),
    "wrong lengths": Habits(part_lengths="wrong"),
    "preamble": Habits(preamble=b"This is a message in several parts."),
    "no last line break": Habits(last_line=b"\r\n--%s--"),
    "nothing before the last line": Habits(last_line=b"--%s--"),
    "no last line": Habits(last_line=b""),
    "no multipart": Habits(most_frames=1, alone=True),
    "all at once": Habits(
        most_frames=4, framing="chunked", content_location=True, shuffled=True, part_lengths="none"
    ),
}

Fault = Callable[["_Handler"], None]


@dataclass
class QuirkyProxy:
    """The proxy as a test sees it.

    Attributes
    ----------
    url
        Base URL of the archive's DICOMweb service through the proxy.
    faults
        Kind → how often it was done to a request.
    paths
        Path of every request so far.
    accepts
        Accept header of each.
    """

    url: str
    upstream: str
    habits: Habits
    seed: int
    share: float
    allowed: Callable[[str | None], bool]
    expire: Callable[[str | None], bool]
    faults: Counter[str] = field(default_factory=Counter)
    paths: list[str] = field(default_factory=list)
    accepts: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    session: requests.Session = field(default_factory=requests.Session)

    def next_fault(self, path: str, authorization: str | None) -> str | None:
        """Which fault, if any, this request meets."""
        with self.lock:
            self.paths.append(path)
            rng = random.Random(f"{self.seed} {len(self.paths)}")  # noqa: S311
            if rng.random() >= self.share:
                return None
            kinds = FRAME_FAULTS if "/frames/" in path else ANY_FAULTS
            kind = rng.choice(kinds)
            if kind == "expire" and not self.expire(authorization):
                return None
            self.faults[kind] += 1
            return kind


ANY_FAULTS = ("reset", "cut", "delay", "408", "429", "500", "503", "expire")
FRAME_FAULTS = (
    *ANY_FAULTS,
    "cut chunked",
    "trickle",
    "reorder",
    "duplicate",
    "drop",
    "error page",
)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: connections end in every way here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: QuirkyProxy

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        known = self.proxy.allowed(authorization)
        fault = self.proxy.next_fault(self.path, authorization) if known else None
        self.proxy.accepts.append(self.headers.get("Accept", ""))
        if not known or fault == "expire":
            self._answer(401, "application/json", b"{}")
        elif fault == "reset":
            self._reset()
        elif fault in {"408", "429", "500", "503"}:
            self._answer(int(fault), "text/plain", b"not now", retry_after="0")
        elif fault == "error page":
            self._answer(502, "text/html", PAGE)
        else:
            if fault == "delay":
                time.sleep(0.05)
            self._forward(fault)

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)  # close with RST instead of FIN
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def _forward(self, fault: str | None) -> None:
        search = re.search(r"/(?:studies|series|instances)(?:\?(.*))?$", self.path)
        if search is not None and not re.search(self.proxy.habits.needed, search[1] or ""):
            self._answer(self.proxy.habits.too_wide, "application/dicom+json", b"[]")
            return
        frames = re.search(r"/frames/([\d,]+)$", self.path)
        if frames is not None:
            self._frames([int(number) for number in frames[1].split(",")], fault)
            return
        answer = self._upstream(self.path, self.headers.get("Accept", "*/*"))
        content_type, body = answer.headers.get("Content-Type", ""), answer.content
        if self.proxy.habits.instance_alone and re.search(r"/instances/[\d.]+$", self.path):
            content_type, (body,) = "application/dicom", parts_of(answer)
        self._answer(answer.status_code, content_type, body, fault=fault)

    def _upstream(self, path: str, accept: str) -> requests.Response:
        return self.proxy.session.get(
            self.proxy.upstream + path, headers={"Accept": accept}, timeout=60
        )

    def _frames(self, numbers: list[int], fault: str | None) -> None:
        habits = self.proxy.habits
        accept = self.headers.get("Accept", "")
        if re.search(habits.refused, accept):
            self._answer(406, "text/plain", b"not acceptable")
            return
        if habits.no_frames:
            self._answer(404, "text/plain", b"no such thing")
            return
        if habits.most_frames is not None and len(numbers) > habits.most_frames:
            if habits.too_many != 200:
                self._answer(habits.too_many, "text/plain", b"too many")
                return
            numbers = numbers[: habits.most_frames]
        asked = ",".join(map(str, numbers))
        path = re.sub(r"/frames/.*", f"/frames/{asked}", self.path)
        answer = self._upstream(path, accept)
        if not answer.ok:
            self._answer(answer.status_code, "text/plain", b"")
            return
        contents = parts_of(answer)
        if habits.every_frame is not None:
            contents = [habits.every_frame] * len(contents)
        content_type, body = self._body(list(zip(numbers, contents, strict=False)), fault)
        self._answer(200, content_type, body, fault=fault)

    def _body(self, frames: list[Frame], fault: str | None) -> tuple[str, bytes]:
        """The frames as this archive writes them."""
        habits = self.proxy.habits
        if habits.alone and len(frames) == 1:
            return habits.media[0], frames[0][1]
        if fault == "duplicate":
            frames = [*frames[:1], *frames]
        if fault == "drop":
            frames = frames[:-1]
        if habits.shuffled or fault == "reorder":
            frames = random.Random(self.proxy.seed).sample(frames, len(frames))  # noqa: S311
        if fault == "reorder":
            habits = replace(habits, content_location=True)
        body = multipart_body(frames, habits, self.path.split("/frames/")[0])
        return f'multipart/related; boundary="{habits.boundary}"; type="image/jpeg"', body

    def _answer(
        self,
        status: int,
        content_type: str,
        body: bytes,
        *,
        retry_after: str | None = None,
        fault: str | None = None,
    ) -> None:
        framing = "chunked" if fault == "cut chunked" else self.proxy.habits.framing
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        if framing == "length":
            self.send_header("Content-Length", str(len(body)))
        elif framing == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        try:
            self._write(body, framing, fault)
        except OSError:
            self.close_connection = True  # the client has given up

    def _write(self, body: bytes, framing: str, fault: str | None) -> None:
        cut = fault in {"cut", "cut chunked"}
        if cut:
            self.close_connection = True
            body = body[: len(body) * 2 // 3]
        if fault == "trickle":
            self._trickle(body)
            return
        if framing != "chunked":
            self.wfile.write(body)
            return
        for start in range(0, len(body), 1000):
            piece = body[start : start + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if not cut:
            self.wfile.write(b"0\r\n\r\n")

    def _trickle(self, body: bytes) -> None:
        """Half at once, then a byte now and then: no read ever waits long."""
        self.close_connection = True
        half = len(body) // 2
        self.wfile.write(body[:half])
        for value in body[half:]:
            self.wfile.write(bytes([value]))
            time.sleep(0.05)


def multipart_body(frames: Sequence[Frame], habits: Habits, instance_path: str) -> bytes:
    """Frames in this order, as an archive of these habits puts them into parts."""
    boundary = habits.boundary.encode()
    body = habits.preamble
    for index, (number, content) in enumerate(frames):
        head = [f"Content-Type: {habits.media[index % len(habits.media)]}"]
        if habits.content_location:
            said = frames[0][0] if habits.one_location else number
            head.append(f"Content-Location: {instance_path}/frames/{said}")
        if habits.part_lengths != "none":
            wrong = 7 if habits.part_lengths == "wrong" else 0
            head.append(f"Content-Length: {len(content) - wrong}")
        line = b"\r\n" if body else b""
        body += line + b"--" + boundary + b"\r\n" + "\r\n".join(head).encode() + b"\r\n\r\n"
        body += content
    return body + habits.last_line.replace(b"%s", boundary)


def parts_of(answer: requests.Response) -> list[bytes]:
    """Parts of the real archive's multipart answer."""
    found = re.search(r'boundary="?([^";]+)', answer.headers["Content-Type"])
    if found is None:
        raise ValueError("the archive's answer is not multipart")
    parts = answer.content.split(b"--" + found[1].encode())[1:-1]
    return [part.split(b"\r\n\r\n", 1)[1][:-2] for part in parts]


@contextmanager
def quirky_proxy(
    dicomweb_url: str,
    habits: Habits | None = None,
    *,
    seed: int = 0,
    share: float = 0.0,
    allowed: Callable[[str | None], bool] = lambda authorization: True,
    expire: Callable[[str | None], bool] = lambda authorization: False,
) -> Iterator[QuirkyProxy]:
    """Run the proxy in front of `dicomweb_url`.

    Parameters
    ----------
    habits
    seed, share
        Of the schedule: this share of the requests meets a fault.
    allowed
        Whether a request with this Authorization header may pass; else 401.
    expire
        Ends what the header shows before `allowed` is asked; False where it should not.
    """
    proxy = QuirkyProxy("", dicomweb_url, habits or Habits(), seed, share, allowed, expire)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with proxy.session, served(_Server(("127.0.0.1", 0), handler)) as proxy.url:
        yield proxy
