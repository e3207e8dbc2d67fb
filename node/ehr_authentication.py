"""Who the node is to the EHR: none, basic, a bearer token, or OAuth 2 client credentials.

Client credentials prove themselves with a secret, or as SMART Backend Services asks (HL7 SMART App
Launch 2.2, "Client Authentication: Asymmetric"): with a JWT signed by the node's private key, RS384
or ES384, of its own for every token and valid for minutes.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oauth2.rfc6749 import OAuth2Token
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from dicom_io.authentication import (
    Fixed,
    Renewed,
    Scheme,
    basic,
    bound_answers,
)
from dicom_io.deadline import whole_timeout
from dicom_io.errors import ConfigurationInvalid, EhrUnauthorized, EhrUnreachable
from dicom_io.pacs_settings import secret
from node.ehr_records import EhrSettings

# SMART App Launch 2.2: an assertion may be valid for five minutes at most.
ASSERTION_LIFE_S = 240
_WELL_KNOWN = ".well-known/smart-configuration"


def ehr_scheme(base_url: str, settings: EhrSettings) -> Scheme:
    """The ``Authorization`` header that the settings ask for.

    Raises
    ------
    ConfigurationInvalid
        Two kinds are asked for at a time, one is asked for by halves, or a secret or key cannot
        be read.
    """
    kinds = {
        "username and password": settings.username is not None or settings.password is not None,
        "bearer_token": settings.bearer_token is not None,
        "client_id": settings.client_id is not None,
    }
    asked = [kind for kind, there in kinds.items() if there]
    if len(asked) > 1:
        raise ConfigurationInvalid(
            f"The EHR settings ask for {' and '.join(asked)} at a time: leave one of them."
        )
    if settings.client_id is not None:
        return Renewed(EhrClientCredentials(base_url, settings).token)
    if settings.bearer_token is not None:
        return Fixed(f"Bearer {_hidden(settings.bearer_token)}")
    if not asked:
        return Fixed(None)
    if settings.username is None or settings.password is None:
        raise ConfigurationInvalid(
            "Basic authentication needs username and password in the EHR settings: give both."
        )
    return Fixed(basic(settings.username, _hidden(settings.password)))


def client_certificate(settings: EhrSettings) -> str | tuple[str, str] | None:
    """Certificate for mutual TLS as requests takes it.

    Raises
    ------
    ConfigurationInvalid
        A file is not there.
    """
    for path in (settings.certificate, settings.certificate_key, settings.ca_bundle):
        if path is not None and not path.is_file():
            raise ConfigurationInvalid(
                f"The PEM file {path} of the EHR settings is not there: check its path."
            )
    if settings.certificate is None:
        return None
    if settings.certificate_key is None:
        return str(settings.certificate)
    return str(settings.certificate), str(settings.certificate_key)


class EhrClientCredentials:
    """Fetches tokens by OAuth 2 client credentials (RFC 6749 §4.4)."""

    def __init__(self, base_url: str, settings: EhrSettings) -> None:
        if (settings.client_key is None) == (settings.client_secret is None):
            raise ConfigurationInvalid(
                "OAuth 2 needs client_key (SMART Backend Services) or client_secret beside "
                "client_id in the EHR settings: give one of them."
            )
        self._base_url, self._settings = base_url, settings
        self._key = _private_key(settings.client_key) if settings.client_key else None
        self._secret = _hidden(settings.client_secret) if settings.client_secret else None
        self._options: dict[str, Any] = {
            "timeout": whole_timeout(settings.timeout_s),
            "verify": str(settings.ca_bundle) if settings.ca_bundle else True,
            "cert": client_certificate(settings),
            "allow_redirects": False,  # an assertion goes to the token endpoint alone
        }
        self._token_url = settings.token_url

    def token(self) -> OAuth2Token:
        url = self._token_url or self._discovered()
        self._token_url = url
        name = f"The token endpoint {urlsplit(url).netloc} of the EHR"
        try:
            token = self._session(url).fetch_token(
                url, grant_type="client_credentials", **self._options
            )
        except AuthlibBaseError as error:
            raise EhrUnauthorized(
                f"{name} gave no token ({error.error}): check client_id, client_key or "
                "client_secret, and scope in [ehr]."
            ) from error
        except (requests.RequestException, ValueError) as error:
            raise EhrUnreachable(
                f"{name} gave no answer that can be used ({type(error).__name__}): "
                "check ehr.token_url, and that it runs."
            ) from error
        if not token.get("access_token"):
            raise EhrUnauthorized(f"{name} answered without a token: check token_url and scope.")
        return token

    def _session(self, url: str) -> OAuth2Session:
        """A session for one token, because an assertion may be shown once."""
        settings = self._settings
        if self._key is None:
            session = OAuth2Session(settings.client_id, self._secret, scope=settings.scope)
            bound_answers(session)
            return session
        session = OAuth2Session(
            settings.client_id,
            self._key,
            scope=settings.scope,
            token_endpoint_auth_method=PrivateKeyJWT.name,
        )
        bound_answers(session)
        session.register_client_auth_method(
            PrivateKeyJWT(
                url,
                claims={"exp": int(time.time()) + ASSERTION_LIFE_S},
                headers={"typ": "JWT", "kid": settings.client_key_id or self._key.thumbprint()},
                alg="RS384" if isinstance(self._key, RSAKey) else "ES384",
            )
        )
        return session

    def _discovered(self) -> str:
        """Token endpoint as the FHIR server names it (SMART App Launch 2.2, Discovery)."""
        host = urlsplit(self._base_url).hostname
        session = requests.Session()
        bound_answers(session)
        try:
            answer = session.get(
                f"{self._base_url}/{_WELL_KNOWN}",
                headers={"Accept": "application/json"},
                **self._options,
            )
            url = str(answer.json()["token_endpoint"]) if answer.ok else ""
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise EhrUnreachable(
                f"The EHR {host} does not say where it gives tokens ({type(error).__name__}): "
                "set ehr.token_url."
            ) from error
        if urlsplit(url).scheme not in ("http", "https"):
            raise EhrUnauthorized(
                f"The EHR {host} does not say where it gives tokens: set ehr.token_url."
            )
        return url


def _private_key(reference: str) -> RSAKey | ECKey:
    text = _hidden(reference)
    for kind in (RSAKey, ECKey):
        try:
            key = kind.import_key(text)
        except (JoseError, ValueError, TypeError):
            continue
        fits = not isinstance(key, ECKey) or key.curve_name == "P-384"
        if key.is_private and fits:
            return key
    raise ConfigurationInvalid(
        "ehr.client_key is not the private key (PEM) of RSA or of the curve P-384: SMART Backend "
        "Services signs with RS384 or ES384, so make one of these."
    )


def _hidden(reference: str) -> str:
    """Read a secret that must not stand in the settings themselves."""
    if not reference.startswith(("env:", "file:")):
        raise ConfigurationInvalid(
            "A password, key or token stands in the EHR settings: put it into an environment "
            "variable or a file and write env:NAME or file:/path."
        )
    return secret(reference)
