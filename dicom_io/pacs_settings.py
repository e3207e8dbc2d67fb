"""How the archive is spoken to: its settings, and where their secrets lie."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from dicom_io.errors import ConfigurationInvalid


@dataclass(frozen=True, slots=True)
class PacsSettings:
    """How the archive is spoken to.

    Attributes
    ----------
    query_url, retrieve_url, store_url
        Base URL of QIDO-RS, of WADO-RS and of STOW-RS where the archive at pacs_url has them on
        different hosts or paths; empty for pacs_url. An archive elsewhere, as at results_url, is
        asked at its own.
    further_hosts
        Origins (https://host or https://host:port) beside those of the URLs to which redirects
        and bulk data may lead; they are sent no credentials.
    timeout_s
        Seconds to connect, and seconds without a byte, after which a request counts as lost.
    request_deadline_s
        Seconds after which an answer that still trickles is cut off; frames that came whole are
        kept and only the others are asked for again.
    slide_deadline_s
        Seconds spent waiting for the frames of one series, after which it is given up.
    retries
        Attempts after the first one, for transient failures only; frames count anew whenever
        some of them came.
    retry_wait_s
        Seconds before the second attempt; doubled for each further one, with jitter.
    retry_after_max_s
        Longest Retry-After of an answer that is waited for; a longer one fails the request.
    breaker_failures
        Failures in a row after which a host is left alone: more than one request has attempts on
        all connections.
    breaker_wait_s
        Seconds for which it is left alone.
    shown_within_s
        Seconds that the archive may take to give what it has stored; a job fails whose results it
        does not give by then.
    connections
        Most requests in flight at a time; fewer where more gain nothing.
    frames_per_request
        Most frames asked for in one request; how many are depends on what a request costs. The
        URL grows by up to seven characters a frame.
    bytes_in_flight
        Most bytes of frames to expect from all requests in flight: few large ones, or many small.
    max_instance_bytes
        Most bytes of temporary files for whole instances, where an archive gives no frames.
    username
        For HTTP basic authentication, with `password`.
    password, bearer_token
        Where the secret lies: ``env:NAME`` or ``file:/path``; never the secret itself.
    token_url
        Token endpoint of OAuth 2 client credentials, with `client_id` and `client_secret`.
    client_id, scope
        As the authorization server knows them; `scope` may be left out.
    client_secret
        Where the secret lies, as for `password`.
    certificate, certificate_key
        PEM files with which the node proves who it is (mutual TLS); the key may be in the first.
    headers
        Further request headers; a value may be ``env:NAME`` or ``file:/path`` too.
    search_keys
        What every search asks for besides, where it does not ask for it itself: some archives
        refuse searches without, for example, PatientID = "*".
    user_agent
        Some archives refuse those that they do not know.
    ca_bundle
        PEM file of the certificate authority of an archive inside the hospital.
    services_of
        Follows from the others: base URL of the archive that query_url, retrieve_url and store_url
        belong to; empty for whichever is opened.
    credentials_for
        Follows from the others: URLs to whose scheme, host and port credentials and `headers` are
        sent; None for whichever is opened.
    """

    query_url: str = ""
    retrieve_url: str = ""
    store_url: str = ""
    further_hosts: tuple[str, ...] = ()
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    request_deadline_s: Annotated[float, Field(gt=0)] = 300.0
    slide_deadline_s: Annotated[float, Field(gt=0)] = 4 * 3600.0
    retries: Annotated[int, Field(ge=0)] = 3
    retry_wait_s: Annotated[float, Field(ge=0)] = 0.5
    retry_after_max_s: Annotated[float, Field(ge=0)] = 60.0
    breaker_failures: Annotated[int, Field(ge=1)] = 20
    breaker_wait_s: Annotated[float, Field(ge=0)] = 30.0
    shown_within_s: Annotated[float, Field(ge=0)] = 30.0
    connections: Annotated[int, Field(ge=1)] = 4
    frames_per_request: Annotated[int, Field(ge=1)] = 2000
    bytes_in_flight: Annotated[int, Field(ge=1)] = 64 * 2**20
    max_instance_bytes: Annotated[int, Field(ge=0)] = 4 * 2**30
    username: str | None = None
    password: str | None = None
    bearer_token: str | None = None
    token_url: str | None = None
    client_id: str | None = None
    client_secret: str | None = None
    scope: str | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    search_keys: Mapping[str, str] = field(default_factory=dict)
    user_agent: str = "marrow-node"
    ca_bundle: Path | None = None
    services_of: str = field(default="", metadata={"derived": True})
    credentials_for: tuple[str, ...] | None = field(
        default=None, compare=False, metadata={"derived": True}
    )


def is_setting(entry: dataclasses.Field[Any]) -> bool:
    """Whether a field is for the user to set, and does not follow from other settings."""
    return not entry.metadata.get("derived")


def without_credentials(settings: PacsSettings) -> PacsSettings:
    """The settings for an archive that is not one of the site's own."""
    return replace(
        settings,
        username=None,
        password=None,
        bearer_token=None,
        token_url=None,
        client_id=None,
        client_secret=None,
        certificate=None,
        certificate_key=None,
        headers={},
    )


def hidden(reference: str) -> str:
    """Read a secret that must not stand in the settings themselves."""
    if not reference.startswith(("env:", "file:")):
        raise ConfigurationInvalid(
            "A password, client secret or bearer token stands in the PACS settings: put it into an"
            " environment variable or a file and write env:NAME or file:/path."
        )
    return secret(reference)


def secret(reference: str) -> str:
    """Read a secret from where `reference` says: ``env:NAME`` or ``file:/path``, else itself."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        if where not in os.environ:
            raise ConfigurationInvalid(f"The environment variable {where} is not set: set it.")
        return os.environ[where].strip()
    if kind == "file":
        try:
            return Path(where).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationInvalid(
                f"The secret file {where} cannot be read ({error.strerror}): check path and rights."
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigurationInvalid(
                f"The secret file {where} is not text in UTF-8: write it anew in that."
            ) from error
    return reference
