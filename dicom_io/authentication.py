"""Who the node is to the archive: signs requests, and renews what has expired.

A :class:`Credentials` belongs to the origins of the configured URLs alone; the transport
(:mod:`dicom_io.pacs_http`) shows it no request that goes elsewhere.
"""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc6749 import OAuth2Token

from dicom_io.bounded_body import BoundedBody
from dicom_io.deadline import keep_deadlines, whole_timeout
from dicom_io.errors import ConfigurationInvalid, PacsUnauthorized
from dicom_io.pacs_errors import FOREIGN_ERRORS, pacs_error
from dicom_io.pacs_settings import PacsSettings, hidden, secret

EXPIRY_MARGIN_S = 60
"""A token this close to its end is renewed before it is used (at most half its life)."""

MOST_TOKEN_BYTES = 2**20


class Scheme(Protocol):
    """The ``Authorization`` header of one kind of authentication."""

    def value(self) -> str | None:
        """What to send now; None for no such header."""

    def renewed(self, refused: str | None) -> bool:
        """Whether there is something else to send than what was just refused with 401."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """A header that never changes: none, basic, or a bearer token from the settings."""

    header: str | None = field(repr=False)

    def value(self) -> str | None:
        return self.header

    def renewed(self, refused: str | None) -> bool:
        return False


class Renewed:
    """A bearer token that all threads share, fetched anew before it ends or when it is refused."""

    def __init__(self, fetch: Callable[[], OAuth2Token]) -> None:
        self._fetch = fetch
        self._token: OAuth2Token | None = None
        self._lock = threading.Lock()

    def value(self) -> str | None:
        with self._lock:
            if self._token is None or self._token.is_expired(leeway=self._margin_s()):
                self._token = self._fetch()
            return f"Bearer {self._token['access_token']}"

    def renewed(self, refused: str | None) -> bool:
        with self._lock:
            # Several threads are refused with the same token; one of them gets the next.
            if self._token is None or refused == f"Bearer {self._token['access_token']}":
                self._token = self._fetch()
            return True

    def _margin_s(self) -> float:
        assert self._token is not None  # noqa: S101 - asked for a token that is there
        life_s = float(self._token.get("expires_in") or 2 * EXPIRY_MARGIN_S)
        return min(EXPIRY_MARGIN_S, life_s / 2)


def bound_answers(session: requests.Session) -> None:
    """Let no token endpoint send for ever, or more than a token: all threads wait for the one.

    Its requests need a :func:`dicom_io.deadline.whole_timeout`.
    """
    keep_deadlines(session)
    session.hooks["response"].append(_bounded)


def _bounded(response: requests.Response, **_: Any) -> None:
    response.raw = BoundedBody(response.raw, MOST_TOKEN_BYTES, fails=True)
    if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
        # It may be told in JSON, which would be taken for a refusal of the client.
        response.raise_for_status()


class ClientCredentials:
    """Fetches tokens by OAuth 2 client credentials (RFC 6749 §4.4)."""

    def __init__(self, settings: PacsSettings) -> None:
        self._url = settings.token_url or ""
        if urlsplit(self._url).scheme not in {"http", "https"} or settings.client_id is None:
            raise ConfigurationInvalid(
                "OAuth 2 needs token_url (https://…) and client_id in the PACS settings: give both."
            )
        key = hidden(settings.client_secret or "")
        self._session = OAuth2Session(settings.client_id, key, scope=settings.scope)
        self._session.headers["User-Agent"] = settings.user_agent
        bound_answers(self._session)
        self._options = {
            "timeout": whole_timeout(settings.timeout_s),
            "verify": str(settings.ca_bundle) if settings.ca_bundle else True,
            "allow_redirects": False,  # the client's secret goes to this address alone
        }

    def token(self) -> OAuth2Token:
        name = f"The token endpoint {urlsplit(self._url).netloc}"
        try:
            token = self._session.fetch_token(
                self._url, grant_type="client_credentials", **self._options
            )
        except AuthlibBaseError as error:
            raise PacsUnauthorized(
                f"{name} gave no token ({error.error}): check client_id, client_secret and scope."
            ) from error
        except FOREIGN_ERRORS as error:
            raise pacs_error(name, "the request for a token", error) from error
        if not token.get("access_token"):
            raise PacsUnauthorized(f"{name} answered without a token: check token_url and scope.")
        return token


@dataclass(frozen=True, slots=True)
class Credentials:
    """All that proves to the archive who the node is.

    Attributes
    ----------
    scheme
        Of the ``Authorization`` header.
    headers
        Further headers; they may hold keys.
    certificate
        Client certificate for mutual TLS: one PEM file, or certificate and key.
    """

    scheme: Scheme
    headers: Mapping[str, str] = field(repr=False)
    certificate: str | tuple[str, str] | None

    def sign(self, request: requests.PreparedRequest) -> None:
        request.headers.update(self.headers)
        value = self.scheme.value()
        if value is not None:
            request.headers["Authorization"] = value


def credentials(settings: PacsSettings) -> Credentials:
    """Credentials that the settings ask for.

    Raises
    ------
    ConfigurationInvalid
        Two kinds are asked for at a time, one is asked for by halves, or a secret or a certificate
        cannot be read.
    """
    headers = {name: secret(value) for name, value in settings.headers.items()}
    return Credentials(_scheme(settings), headers, _certificate(settings))


def _scheme(settings: PacsSettings) -> Scheme:
    kinds = {
        "username and password": settings.username is not None or settings.password is not None,
        "bearer_token": settings.bearer_token is not None,
        "token_url": settings.token_url is not None,
    }
    asked = [kind for kind, there in kinds.items() if there]
    if len(asked) > 1:
        raise ConfigurationInvalid(
            f"The PACS settings ask for {' and '.join(asked)} at a time: leave one of them."
        )
    if settings.token_url is not None:
        return Renewed(ClientCredentials(settings).token)
    if settings.bearer_token is not None:
        return Fixed(f"Bearer {hidden(settings.bearer_token)}")
    if not asked:
        return Fixed(None)
    if settings.username is None or settings.password is None:
        raise ConfigurationInvalid(
            "Basic authentication needs username and password in the PACS settings: give both."
        )
    return Fixed(basic(settings.username, hidden(settings.password)))


def basic(username: str, password: str) -> str:
    """``Authorization`` of HTTP basic authentication, in the only charset of RFC 7617 §2.1."""
    return "Basic " + b64encode(f"{username}:{password}".encode()).decode("ascii")


def _certificate(settings: PacsSettings) -> str | tuple[str, str] | None:
    for path in (settings.certificate, settings.certificate_key, settings.ca_bundle):
        if path is not None and not path.is_file():
            raise ConfigurationInvalid(
                f"The PEM file {path} of the PACS settings is not there: check its path."
            )
    if settings.certificate is None:
        return None
    if settings.certificate_key is None:
        return str(settings.certificate)
    return str(settings.certificate), str(settings.certificate_key)
