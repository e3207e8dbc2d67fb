"""Requests of the site probe: every answer counts, also a refusal, and each is timed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from dicom_io.errors import PacsUnauthorized
from dicom_io.multipart import Multipart, MultipartInvalid, media_type
from dicom_io.pacs_errors import pacs_error
from dicom_io.pacs_http import Faults, archive_session
from dicom_io.pacs_settings import PacsSettings

Verdict = Literal["yes", "no", "defect", "unknown"]


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
        """Payloads of a multipart body; empty where it is none, or is cut."""
        kind, parameters = media_type(self.headers.get("content-type", ""))
        if not kind.startswith("multipart/"):
            return []
        try:
            body = Multipart(iter([self.body]), parameters.get("boundary", ""), framed=True)
            return [part.content for part in body]
        except MultipartInvalid:
            return []


class Http:
    """One archive's DICOMweb service, asked by hand.

    Parameters
    ----------
    url
    settings
        Credentials, certificates and time-outs.
    """

    def __init__(self, url: str, settings: PacsSettings) -> None:
        self.url = url.rstrip("/")
        self.settings = settings
        self._session: requests.Session = archive_session((url,), settings, Faults())
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
            return self._ask(path, accept, method, headers or {}, body)
        except requests.RequestException:
            return Answer(0)

    def ask_uri(self, uri: str, accept: str) -> Answer | None:
        """Follow a BulkDataURI; None where it leads to another host than the archive's own."""
        target = urljoin(f"{self.url}/", uri)
        if urlsplit(target)[:2] != urlsplit(self.url)[:2]:
            return None
        try:
            return self._request(target, accept, "GET", {}, None)
        except requests.RequestException:
            return Answer(0)

    def reach(self, path: str) -> Answer:
        """Make the first request; raises PacsError where there is no archive."""
        try:
            return self._ask(path, "application/dicom+json", "GET", {}, None)
        except requests.RequestException as error:
            name = f"The PACS {self.url}"
            raise pacs_error(name, "the first search", error) from error

    def _ask(
        self, path: str, accept: str, method: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        return self._request(f"{self.url}/{path}", accept, method, headers, body)

    def _request(
        self, url: str, accept: str, method: str, headers: Mapping[str, str], body: bytes | None
    ) -> Answer:
        begin = time.monotonic()
        answer = self._session.request(
            method,
            url,
            headers={"Accept": accept, **headers},
            data=body,
            allow_redirects=False,
            timeout=self._timeout,  # type: ignore[arg-type]
        )
        seconds = time.monotonic() - begin
        if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise PacsUnauthorized(
                f"The PACS {self.url} refused {method} with status {answer.status_code}: check the"
                " credentials and what they may read and store."
            )
        lower = {name.lower(): value for name, value in answer.headers.items()}
        return Answer(answer.status_code, lower, answer.content, seconds)
