"""Requests of the site probe: every answer counts, also a refusal, and each is timed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, NamedTuple
from urllib.parse import urljoin

import requests
import urllib3

from dicom_io.errors import PacsUnauthorized
from dicom_io.multipart import (
    AnswerTooLarge,
    Multipart,
    MultipartInvalid,
    joined,
    media_type,
)
from dicom_io.pacs_errors import pacs_error
from dicom_io.pacs_http import Faults, archive_session, service_urls
from dicom_io.pacs_settings import PacsSettings

Verdict = Literal["yes", "no", "defect", "unknown"]

# Of frames, metadata and rendered pictures, which are kept: more is no answer to learn from.
MOST_BODY_BYTES = 2**30
STEP_BYTES = 2**18
# PS3.10 §7.1
PREAMBLE_BYTES, MAGIC = 128, b"DICM"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an archive can or cannot do.

    Attributes
    ----------
    name
        Dotted: what was tried.
    verdict
        ``defect`` for an answer that contradicts the standard, ``unknown`` for what could not be
        tried.
    sentence
        What was seen.
    value
        What was measured; its unit is in the name.
    """

    name: str
    verdict: Verdict
    sentence: str
    value: int | float | str | Sequence[str] | None = None


class SeriesFound(NamedTuple):
    """A series that the archive has."""

    study_uid: str
    series_uid: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes
    ----------
    status
        0 where the connection broke or nothing came in time.
    seconds
        From the request to the last byte.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    @property
    def said(self) -> str:
        return f"status {self.status}" if self.status else "the connection broke"

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    def json(self) -> Any:
        """Parse the body; None where it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def datasets(self) -> list[dict[str, Any]]:
        """DICOM JSON objects of the body; empty where it holds something else."""
        found = self.json() if self.ok and self.body else []
        if not isinstance(found, list):
            return []
        return [each for each in found if isinstance(each, dict)]

    def parts(self) -> list[bytes]:
        """Payloads of a multipart body, or the one that comes without, as the reader takes them.

        Empty where it is neither, or is cut.
        """
        kind, parameters = media_type(self.headers.get("content-type", ""))
        if _is_alone(kind):
            framed = {"content-length", "transfer-encoding"} & set(self.headers)
            return [self.body] if framed else []
        if not kind.startswith("multipart/"):
            return []
        try:
            body = Multipart(iter([self.body]), parameters.get("boundary", ""), framed=True)
            return [part.content for part in body]
        except MultipartInvalid:
            return []


@dataclass(frozen=True, slots=True)
class Weighed:
    """An instance that was read through, of which nothing is kept.

    Attributes
    ----------
    answer
        Without its body.
    n_bytes
        Of the whole body.
    is_dicom
        Whether it is one DICOM file (PS3.10 §7.1).
    """

    answer: Answer
    n_bytes: int = 0
    is_dicom: bool = False


class Http:
    """One of an archive's DICOMweb services, asked by hand.

    Parameters
    ----------
    url
        Of the service.
    session
        Reaches whatever the settings allow.
    settings
        Time-outs.
    """

    def __init__(self, url: str, session: requests.Session, settings: PacsSettings) -> None:
        self.url = url.rstrip("/")
        self._session = session
        self._timeout = urllib3.Timeout(
            connect=settings.timeout_s, read=settings.timeout_s, total=settings.request_deadline_s
        )

    def ask(
        self,
        path: str,
        accept: str = "application/dicom+json",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        """Make one request, never repeated.

        Raises
        ------
        PacsUnauthorized
            On 401 and 403: without rights nothing else can be found out.
        """
        try:
            return self._ask(path, {"Accept": accept, **(headers or {})}, method, body)
        except requests.RequestException:
            return Answer(0)

    def ask_head(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Make one request, and leave the body of its answer where it is."""
        try:
            with self._begun("GET", self._address(path), headers) as answer:
                return self._allowed("GET", _answer(answer, b"", 0.0))
        except requests.RequestException:
            return Answer(0)

    def weigh(self, path: str, accept: str) -> Weighed:
        """Read an instance through: it may be larger than memory."""
        n_bytes, begin = 0, time.monotonic()

        def counted(chunks: Iterator[bytes]) -> Iterator[bytes]:
            nonlocal n_bytes
            for chunk in chunks:
                n_bytes += len(chunk)
                yield chunk

        try:
            with self._begun("GET", self._address(path), {"Accept": accept}) as answer:
                chunks = counted(answer.iter_content(STEP_BYTES))
                is_dicom = answer.ok and _is_dicom(answer, chunks)
                told = _answer(answer, b"", time.monotonic() - begin)
                return Weighed(self._allowed("GET", told), n_bytes, is_dicom)
        except requests.RequestException:
            return Weighed(Answer(0))

    def ask_uri(self, uri: str, accept: str) -> Answer | None:
        """Follow a BulkDataURI; None where it leads to a host that the settings do not name."""
        try:
            return self._read("GET", urljoin(f"{self.url}/", uri), {"Accept": accept}, None)
        except ValueError:  # it is no address, or one to which the session has no way
            return None
        except requests.RequestException:
            return Answer(0)

    def reach(self, path: str) -> Answer:
        """Make the first request; raises PacsError where there is no archive."""
        try:
            return self._ask(path, {"Accept": "application/dicom+json"}, "GET", None)
        except requests.RequestException as error:
            name = f"The PACS {self.url}"
            raise pacs_error(name, "the first search", error) from error

    def _address(self, path: str) -> str:
        return f"{self.url}/{path}"

    def _ask(
        self, path: str, headers: Mapping[str, str], method: str, body: bytes | None
    ) -> Answer:
        return self._allowed(method, self._read(method, self._address(path), headers, body))

    def _allowed(self, method: str, answer: Answer) -> Answer:
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise PacsUnauthorized(
                f"The PACS {self.url} refused {method} with status {answer.status}: check the"
                " credentials and what they may read and store."
            )
        return answer

    def _read(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        begin = time.monotonic()
        with self._begun(method, url, headers, body) as answer:
            try:
                content = joined(answer.iter_content(STEP_BYTES), MOST_BODY_BYTES)
            except AnswerTooLarge:
                content = b""  # nothing to make use of
            return _answer(answer, content, time.monotonic() - begin)

    def _begun(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        return self._session.request(
            method,
            url,
            headers=dict(headers),
            data=body,
            allow_redirects=False,
            stream=True,
            timeout=self._timeout,  # type: ignore[arg-type]
        )


class Archive(NamedTuple):
    """The services of an archive."""

    query: Http
    retrieve: Http
    store: Http


def archive_http(url: str, settings: PacsSettings) -> Archive:
    """The services of the archive at `url`, wherever the settings say that they are."""
    urls = service_urls(url, settings)
    session = archive_session((url, *urls), settings, Faults())
    return Archive(*(Http(own, session, settings) for own in urls))


def _answer(answer: requests.Response, body: bytes, seconds: float) -> Answer:
    lower = {name.lower(): value for name, value in answer.headers.items()}
    return Answer(answer.status_code, lower, body, seconds)


def _is_dicom(answer: requests.Response, chunks: Iterator[bytes]) -> bool:
    """Whether a body is one DICOM file, in multipart or alone; reads it to its end."""
    kind, parameters = media_type(answer.headers.get("content-type", ""))
    if _is_alone(kind):
        return _is_file(map(memoryview, chunks))
    if not kind.startswith("multipart/"):
        return False
    body = Multipart(chunks, parameters.get("boundary", ""), framed=True)
    try:
        files = [_is_file(pieces) for _, pieces in body.streams()]
    except MultipartInvalid:
        return False
    return files == [True]


def _is_alone(kind: str) -> bool:
    """Whether it is the media type of one frame, instance or attribute (PS3.18 §8.7.3)."""
    return kind in {"application/dicom", "application/octet-stream"} or kind.startswith("image/")


def _is_file(pieces: Iterator[memoryview]) -> bool:
    """Whether the magic word follows the preamble; all pieces are used up."""
    begin = b""
    for piece in pieces:
        begin += piece[: PREAMBLE_BYTES + len(MAGIC) - len(begin)]
    return begin[PREAMBLE_BYTES:] == MAGIC
