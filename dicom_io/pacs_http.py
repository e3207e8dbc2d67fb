"""The archive over HTTP: where requests may go, what they carry, and how often they are tried.

A session knows an adapter for each origin of the archive and none for any other address: wherever a
redirect, a BulkDataURI or a mistake leads, nothing is sent that the settings do not allow.
Credentials are in the adapters of origins that the settings name, so no other host can be sent
them, not even one that a command line, a recipe or a job names as the archive.
"""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import (
    SplitResult,
    parse_qsl,
    quote,
    urlencode,
    urljoin,
    urlsplit,
    urlunsplit,
)

import pybreaker
import requests
import stamina
import urllib3
from dicomweb_client import DICOMwebClient

from dicom_io.authentication import Credentials, credentials
from dicom_io.bounded_body import BoundedBody
from dicom_io.deadline import TimedAdapter
from dicom_io.errors import ConfigurationInvalid, PacsError, PacsUnreachable
from dicom_io.origin import DEFAULT_PORTS, is_named, tell_unnamed
from dicom_io.pacs_errors import FOREIGN_ERRORS, fault_kind, pacs_error
from dicom_io.pacs_settings import PacsSettings, without_credentials
from dicom_io.search import LEVELS

T = TypeVar("T")
log = logging.getLogger(__name__)

MOST_REDIRECTS = 5
# The wait before another attempt grows up to so many times the first one.
WAIT_GROWTH = 16
IN_ONE_PIECE = 2**62
# All that is read of an error is the dataset of a STOW answer, of a few hundred bytes an instance.
MOST_ERROR_BYTES = 2**20
# Searches and results that are read back, of which the largest are the coordinates of all cells.
MOST_ANSWER_BYTES = 2**30
OTHER_MEDIA_MAY_HELP = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_ACCEPTABLE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
}
SECRET_HEADERS = ("Authorization", "Cookie", "Proxy-Authorization")


class Faults:
    """What went wrong so far: counted by kind, each kind told once in the log.

    Attributes
    ----------
    counts
        Kind → how often.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def saw(self, kind: str, sentence: object) -> None:
        """Count a fault; `sentence` names the object by its UID, and no patient."""
        with self._lock:
            self.counts[kind] += 1
            first = self.counts[kind] == 1
        log.log(logging.WARNING if first else logging.DEBUG, "%s: %s", kind, sentence)


class _OriginAdapter(TimedAdapter):
    """Transport to the origins that share `credentials`; None for hosts that get none."""

    def __init__(
        self, proof: Credentials | None, settings: PacsSettings, faults: Faults | None = None
    ) -> None:
        self._proof, self._settings, self._faults = proof, settings, faults
        super().__init__(
            pool_connections=4, pool_maxsize=settings.connections + 1, pool_block=False
        )

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        request = request.copy()
        # The client writes it without the port, and that of its own host after a redirect.
        request.headers.pop("Host", None)
        if request.method == "GET":
            request.url = _search_url(request.url or "", self._settings.search_keys)
        for name in SECRET_HEADERS:
            if self._proof is None:
                request.headers.pop(name, None)
        if self._settings.ca_bundle is not None:
            options["verify"] = str(self._settings.ca_bundle)  # else the environment's would win
        if self._proof is None:
            if request.method != "GET":
                raise requests.exceptions.InvalidSchema(f"nothing is sent to {request.url}")
            return super().send(request, **options | {"cert": None})
        options["cert"] = self._proof.certificate
        self._proof.sign(request)
        answer = super().send(request, **options)
        if answer.status_code != HTTPStatus.UNAUTHORIZED:
            return answer
        if not self._proof.scheme.renewed(request.headers.get("Authorization")):
            return answer
        answer.close()
        if self._faults is not None:
            self._faults.saw("token refused", f"{urlsplit(request.url).netloc!s}: renewed")
        self._proof.sign(request)
        return super().send(request, **options)


def archive_session(
    urls: tuple[str, ...], settings: PacsSettings, faults: Faults
) -> requests.Session:
    """A session that reaches the origins of `urls`, and further hosts.

    Credentials go to those of `urls` that the settings name.
    """
    session = requests.Session()
    session.adapters.clear()
    own = functools.cache(lambda named: _own_adapter(named, settings, faults))
    further = _OriginAdapter(None, settings)
    for origin in settings.further_hosts:
        for prefix in _prefixes(origin):
            session.mount(prefix, further)
    for url in urls:
        named = is_named(url, settings.credentials_for)
        for prefix in _prefixes(url):
            session.mount(prefix, own(named))
        if not named and without_credentials(settings) != settings:
            tell_unnamed(url, "pacs_url")
    session.auth = _nothing  # else requests would look for credentials in ~/.netrc
    session.max_redirects = MOST_REDIRECTS
    session.headers["User-Agent"] = settings.user_agent
    # Only STOW-RS sends no Accept of its own; some archives would answer it in XML.
    session.headers["Accept"] = "application/dicom+json"
    session.hooks["response"] += [_plain_media_type, _bounded]
    return session


def _own_adapter(named: bool, settings: PacsSettings, faults: Faults) -> _OriginAdapter:
    """Transport to the archive itself, which may be one that the settings do not name."""
    proof = credentials(settings if named else without_credentials(settings))
    return _OriginAdapter(proof, settings, faults)


def _nothing(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _search_url(url: str, keys: Mapping[str, str]) -> str:
    """A search with the keys that it lacks, and with its wild cards as they are (RFC 3986 §3.4).

    Orthanc takes an encoded one for a character of the value, and finds nothing. Of any other
    request the URL stays as it is.
    """
    parts = urlsplit(url)
    if parts.path.rpartition("/")[2] not in LEVELS:
        return url
    asked = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    lacking = {name: wanted for name, wanted in keys.items() if name not in asked}
    query = "&".join(filter(None, [parts.query, urlencode(lacking, quote_via=quote)]))
    return urlunsplit(parts._replace(query=query.replace("%2A", "*").replace("%3F", "?")))


def url_parts(url: str) -> SplitResult:
    """A URL of the settings, taken apart.

    Raises
    ------
    ConfigurationInvalid
        It cannot be, as where a bracket is missing.
    """
    try:
        return urlsplit(url)
    except ValueError as error:
        raise _unusable(url.partition(":")[0]) from error


def _prefixes(url: str) -> set[str]:
    """Spellings of a URL's origin, up to and with the slash that ends it."""
    parts = url_parts(url)
    try:
        port = parts.port or DEFAULT_PORTS[parts.scheme]
    except (KeyError, ValueError) as error:
        raise _unusable(parts.scheme) from error
    if not parts.hostname or parts.username is not None:
        raise _unusable(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    spelt = {f"{parts.scheme}://{host}:{port}/"}
    if port == DEFAULT_PORTS[parts.scheme]:
        spelt.add(f"{parts.scheme}://{host}/")
    return spelt


def _unusable(scheme: str) -> ConfigurationInvalid:
    return ConfigurationInvalid(
        f"The PACS URL with scheme {scheme!r} is not usable: write https://host/dicom-web,"
        " http://host/dicom-web or file:///folder, without a user name in it."
    )


def _plain_media_type(response: requests.Response, **_: Any) -> requests.Response:
    """Cut ``; charset=…`` off a JSON media type: the client compares it as a whole."""
    media_type = response.headers.get("Content-Type", "")
    if media_type.startswith(("application/dicom+json", "application/json")):
        response.headers["Content-Type"] = media_type.split(";")[0].strip()
    return response


def _bounded(response: requests.Response, **options: Any) -> requests.Response:
    """Bound what requests itself reads into memory: errors, redirects, and what is not streamed."""
    if response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
        response.raw = BoundedBody(response.raw, MOST_ERROR_BYTES, fails=False)
    elif not options.get("stream"):
        response.raw = BoundedBody(response.raw, MOST_ANSWER_BYTES, fails=True)
    return response


class _SteadyStorage(pybreaker.CircuitMemoryStorage):
    """Remembers when a breaker opened by a clock that nobody turns back.

    pybreaker compares times of day: set back by an hour, the host would be left alone for an hour.
    """

    _opened_s: float | None = None

    @property
    def opened_at(self) -> datetime | None:
        if self._opened_s is None:
            return None
        return datetime.now(UTC) - timedelta(seconds=time.monotonic() - self._opened_s)

    @opened_at.setter
    def opened_at(self, now: datetime) -> None:
        self._opened_s = time.monotonic()


@functools.cache
def _breaker(netloc: str, failures: int, wait_s: float) -> pybreaker.CircuitBreaker:
    """The circuit breaker of a host, which every archive opened on it shares."""
    return pybreaker.CircuitBreaker(
        fail_max=failures,
        reset_timeout=wait_s,
        exclude=[lambda error: not (isinstance(error, PacsError) and error.transient)],
        name=netloc,
        throw_new_error_on_trip=False,
        state_storage=_SteadyStorage(pybreaker.STATE_CLOSED),
    )


def _timeout(settings: PacsSettings) -> Any:
    """A urllib3.Timeout, which requests takes too, though its type does not tell."""
    return urllib3.Timeout(
        connect=settings.timeout_s, read=settings.timeout_s, total=settings.request_deadline_s
    )


class Service:
    """One DICOMweb service of the archive.

    Attributes
    ----------
    name
        For sentences: which archive.
    client
        dicomweb-client for search, metadata, instances and storing.
    retries
        Attempts after the first one.
    """

    def __init__(
        self, url: str, session: requests.Session, settings: PacsSettings, faults: Faults
    ) -> None:
        netloc = urlsplit(url).netloc
        self.name = f"The PACS {netloc}"
        self.url = url.rstrip("/")
        self.retries = settings.retries
        self._session, self._settings, self._faults = session, settings, faults
        self._timeout = _timeout(settings)
        self._breaker = _breaker(netloc, settings.breaker_failures, settings.breaker_wait_s)
        self.client = DICOMwebClient(
            self.url, session=session, timeout=self._timeout, chunk_size=IN_ONE_PIECE
        )
        self.client.set_http_retry_params(retry=False)  # retried here, with one policy

    def get(self, path: str, accept: str, deadline_s: float | None = None) -> requests.Response:
        """Begin a GET of a path below the service, or of a URL; raises what requests raises.

        The body is left to be read; use it as a context manager.
        """
        timeout = self._timeout.clone()
        if deadline_s is not None:
            timeout.total = deadline_s
        headers = {"Accept": accept, "Accept-Encoding": "identity"}
        response = self._session.get(
            urljoin(f"{self.url}/", path), headers=headers, stream=True, timeout=timeout
        )
        response.raise_for_status()
        return response

    def get_any(
        self, path: str, accepts: Sequence[str], deadline_s: float | None = None
    ) -> requests.Response:
        """The same in the first of several media types that is not refused."""
        *others, last = accepts
        for accept in others:
            try:
                return self.get(path, accept, deadline_s)
            except requests.HTTPError as error:
                if error.response.status_code not in OTHER_MEDIA_MAY_HELP:
                    raise
        return self.get(path, last, deadline_s)

    def send(self, method: str, path: str, items: list[dict[str, Any]]) -> requests.Response:
        """Send DICOM JSON to a path below the service; raises what requests raises."""
        response = self._session.request(
            method,
            urljoin(f"{self.url}/", path),
            json=items,
            headers={"Content-Type": "application/dicom+json"},
            timeout=self._timeout.clone(),
        )
        response.raise_for_status()
        return response

    def reaches(self, uri: str) -> bool:
        """Whether the settings let requests go where a URI leads."""
        try:
            self._session.get_adapter(urljoin(f"{self.url}/", uri))
        except requests.exceptions.InvalidSchema:
            return False
        return True

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that may be repeated."""
        for attempt in stamina.retry_context(
            on=self._wait_after,
            attempts=self._settings.retries + 1,
            timeout=None,
            wait_initial=self._settings.retry_wait_s,
            wait_jitter=self._settings.retry_wait_s / 2,
            wait_max=WAIT_GROWTH * self._settings.retry_wait_s,
        ):
            with attempt:
                return self.once(what, call)
        raise RuntimeError("stamina made no attempt")

    def once(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that must not be repeated blindly."""
        try:
            with self._breaker.calling():
                return self._mapped(what, call)
        except pybreaker.CircuitBreakerError as error:
            alone = PacsUnreachable(
                f"{self.name} failed {self._settings.breaker_failures} times in a row and was not"
                f" asked for {what}: check that it runs; it is left alone for"
                f" {self._settings.breaker_wait_s:g} s."
            )
            alone.retry_after_s = float("inf")  # this request is not worth waiting for
            raise alone from error

    def _mapped(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except PacsError as error:
            self._faults.saw(fault_kind(error, error), error)
            raise
        except FOREIGN_ERRORS as error:
            ours = pacs_error(self.name, what, error)
            self._faults.saw(fault_kind(ours, error), ours)
            raise ours from error

    def _wait_after(self, error: Exception) -> bool | float:
        """Whether to try again, or after how many seconds (a backoff hook of stamina)."""
        if not (isinstance(error, PacsError) and error.transient):
            return False
        asked_s, least_s = error.retry_after_s, self._settings.retry_wait_s
        if asked_s is None or asked_s < least_s:
            return True
        # Not all at the same moment, as many were turned away together.
        jitter_s = random.uniform(0, least_s / 2)  # noqa: S311 - nothing is to be kept secret by it
        return asked_s <= self._settings.retry_after_max_s and asked_s + jitter_s


def service_urls(url: str, settings: PacsSettings) -> tuple[str, str, str]:
    """Base URL of the query, retrieve and store service of the archive at `url`."""
    if settings.services_of and settings.services_of.rstrip("/") != url.rstrip("/"):
        return url, url, url
    return settings.query_url or url, settings.retrieve_url or url, settings.store_url or url


def services(url: str, settings: PacsSettings, faults: Faults) -> tuple[Service, Service, Service]:
    """Query, retrieve and store service of the archive at `url`, over one session."""
    urls = service_urls(url, settings)
    session = archive_session((url, *urls), settings, faults)
    query, retrieve, store = (Service(own, session, settings, faults) for own in urls)
    return query, retrieve, store
