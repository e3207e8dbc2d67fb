"""Tokens of an OpenID Connect provider: whose are they, and what may their holders do?

A token is accepted when the provider's key has signed it, and issuer, audience and time fit
(OpenID Connect Core 1.0 §3.1.3.7, RFC 9068). The provider's public keys are fetched from the
configured issuer alone, and again when a token names a key that is not known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry

from dicom_io.errors import ConfigurationInvalid, ProviderUnreachable
from node.web.settings import OidcSettings

# Asymmetric ones only: a token must not be signed with the public key as a secret (RFC 8725 §3.1).
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
LEEWAY_S = 30
LOOK_AGAIN_S = 10.0
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says.

    Attributes
    ----------
    subject
    roles
        As the node names them.
    person, organization
    """

    subject: str
    roles: frozenset[str]
    person: str
    organization: str


class TokenReader:
    """Reads tokens; may be used from several threads."""

    def __init__(self, settings: OidcSettings) -> None:
        if settings.issuer and not settings.audience:
            raise ConfigurationInvalid(
                "[serve.oidc] names an issuer and no audience: a token made for another service "
                "would be let in; set audience."
            )
        self._settings = settings
        self._registry = JWTClaimsRegistry(
            leeway=LEEWAY_S,
            iss={"essential": True, "value": settings.issuer},
            aud={"essential": True, "value": settings.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched_s = -float("inf")

    def read(self, token: str) -> Claims | None:
        """What a token says, None where it is not to be trusted.

        Raises
        ------
        ProviderUnreachable
            The provider's keys cannot be had.
        """
        if not self._settings.issuer:
            return None
        claims = self._verified(token, self._known_keys(self._settings.keys_kept_s))
        if claims is None:
            # Signed by a key that is new (rotation), or not by the provider at all.
            claims = self._verified(token, self._known_keys(LOOK_AGAIN_S))
        return None if claims is None else claims_in(claims, self._settings)

    def _verified(self, token: str, keys: KeySet) -> Mapping[str, Any] | None:
        try:
            decoded = jwt.decode(token, keys, algorithms=ALGORITHMS)
            self._registry.validate(decoded.claims)
        except (JoseError, ValueError):
            return None
        return decoded.claims

    def _known_keys(self, at_most_s: float) -> KeySet:
        with self._lock:
            if self._keys is None or time.monotonic() - self._fetched_s > at_most_s:
                self._keys = self._fetched()
                self._fetched_s = time.monotonic()
            return self._keys

    def _fetched(self) -> KeySet:
        issuer = self._settings.issuer
        try:
            url = self._settings.jwks_url or self._discovered()
            return KeySet.import_key_set(self._get(url))
        except (requests.RequestException, JoseError, ValueError, KeyError, TypeError) as error:
            raise ProviderUnreachable(
                f"The keys of {urlsplit(issuer).netloc} cannot be had ({type(error).__name__}): "
                "check [serve.oidc] and that the provider runs."
            ) from error

    def _discovered(self) -> str:
        """OpenID Connect Discovery 1.0 §4; another host than the issuer's has to be configured."""
        issuer = self._settings.issuer
        found = self._get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        url = str(found["jwks_uri"])
        if urlsplit(url)[:2] != urlsplit(issuer)[:2]:
            raise ValueError("keys at another host")
        return url

    def _get(self, url: str) -> Any:
        answer = requests.get(
            url,
            timeout=TIMEOUT_S,
            verify=str(self._settings.ca_bundle) if self._settings.ca_bundle else True,
            allow_redirects=False,
        )
        answer.raise_for_status()
        return answer.json()


def claims_in(claims: Mapping[str, Any], settings: OidcSettings) -> Claims:
    """Read a token's claims as the settings say."""
    named: Any = claims
    for part in settings.roles_claim.split("."):
        named = named.get(part, []) if isinstance(named, Mapping) else []
    values = named.split() if isinstance(named, str) else named
    told = [str(value) for value in values] if isinstance(values, list) else []
    roles = [settings.roles[value] for value in told if value in settings.roles]
    return Claims(
        str(claims["sub"]),
        frozenset(roles if settings.roles else told),
        str(claims.get(settings.name_claim, "")),
        str(claims.get(settings.organization_claim, "")),
    )
