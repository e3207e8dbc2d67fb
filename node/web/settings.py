"""Settings of the web service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

Role = Literal["submit", "read", "operate", "sign", "admin"]
ROLES: tuple[Role, ...] = ("submit", "read", "operate", "sign", "admin")


@dataclass(frozen=True, slots=True)
class KeySettings:
    """One machine or person that shows a key.

    Attributes
    ----------
    sha256
        Digest (hex) of the key; ``marrow-node key NAME`` makes a key and prints these lines.
    roles
        What its holder may do: submit, read, operate, sign, admin (all of them).
    person
        Of a key that signs: name as DICOM writes it, for example Lee^Anna^^Dr.
    organization
        Of that person.
    """

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    roles: tuple[Role, ...]
    person: str = ""
    organization: str = ""


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """An OpenID Connect provider whose tokens are accepted.

    Attributes
    ----------
    issuer
        As tokens name it (iss); its keys are found from there unless jwks_url is set.
    audience
        What tokens have to be made for (aud).
    jwks_url
        Where the issuer's public keys are.
    roles_claim
        Claim that lists what the holder may do; a dot leads into an object.
    roles
        Value in that claim → role here; empty where the values are the roles.
    name_claim, organization_claim
        Who signs; the name as DICOM writes it, or as the provider does.
    client_id, scope
        With which people sign in to the pages; empty where they use keys.
    client_secret
        Where the secret of that client lies: env:NAME or file:/path.
    ca_bundle
        PEM file of the certificate authority of a provider inside the hospital.
    keys_kept_s
        Seconds for which the public keys are kept; a key that is not known is looked for at once,
        at most every ten seconds.
    """

    issuer: str = ""
    audience: str = ""
    jwks_url: str = ""
    roles_claim: str = "roles"
    roles: Mapping[str, Role] = field(default_factory=dict)
    name_claim: str = "name"
    organization_claim: str = "organization"
    client_id: str = ""
    client_secret: str = ""
    scope: str = "openid profile"
    ca_bundle: Path | None = None
    keys_kept_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The web service: routing rules, pages, results.

    Attributes
    ----------
    host, port
        Where to listen; another host than this machine needs a certificate, or a proxy in front
        that has one.
    public_url
        As people and viewers reach the service, where a proxy stands in front of it.
    workers
        Processes that analyse, each one slide at a time.
    threads
        Requests that are answered at a time.
    certificate, certificate_key
        PEM files; with them the service speaks TLS, and nothing else.
    ca_bundle
        PEM file of the authority whose certificates clients have to show (mutual TLS).
    keys
        Name → a key's digest and roles, in tables of their own: [serve.keys.NAME].
    oidc
        A table of its own: [serve.oidc].
    session_hours
        Hours for which somebody who has signed in stays so.
    session_secret
        Where the secret that signs the pages' cookies lies (env:NAME or file:/path); empty for a
        new one at each start.
    max_body_bytes
        Largest request that is read.
    requests_per_s
        Most requests of one caller in a second.
    callbacks
        Origins (https://host or https://host:port) that jobs may be reported to.
    viewer_origins
        Origins of viewers that may read results from a page of theirs. dicom-microscopy-viewer
        fetches coordinates with what it sends to the archive: both have to take the same token.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = ""
    workers: int = 1
    threads: int = 64
    certificate: Path | None = None
    certificate_key: Path | None = None
    ca_bundle: Path | None = None
    keys: Mapping[str, KeySettings] = field(default_factory=dict)
    oidc: OidcSettings = field(default_factory=OidcSettings)
    session_hours: float = 8.0
    session_secret: str = ""
    max_body_bytes: int = 1 << 20
    requests_per_s: int = 500
    callbacks: tuple[str, ...] = ()
    viewer_origins: tuple[str, ...] = ()
