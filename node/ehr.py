"""The EHR: a FHIR server, a folder, or a receiver of HL7 v2, addressed by URL.

Delivery asks first: what is there with the same content is not sent again, and a report that a
person has signed, corrected or withdrawn is never replaced by an unreviewed one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dicom_io.errors import ConfigurationInvalid
from dicom_io.origin import is_named, tell_unnamed
from node.ehr_folder import FolderEhr
from node.ehr_mllp import MllpEhr
from node.ehr_records import Delivered, EhrSettings, Resource, without_credentials
from node.ehr_server import FhirServer

__all__ = ["Delivered", "Ehr", "EhrSettings", "open_ehr"]


class Ehr(Protocol):
    """Where reports go; raises :class:`dicom_io.errors.EhrError` and nothing foreign."""

    def deliver(
        self, bundle: Mapping[str, Any], sending: Callable[[], object] = lambda: None
    ) -> list[Delivered]:
        """Bring a transaction bundle in, once; `sending` is called before anything is sent."""

    def read_report(self, identifier: str) -> list[Resource]:
        """The DiagnosticReport with an identifier, its Observations and its Device."""


def open_ehr(url: str, settings: EhrSettings) -> Ehr | MllpEhr:
    """Open an EHR; one that the settings do not name is shown no credentials.

    Parameters
    ----------
    url
        ``https://…/fhir``, ``http://…``, ``file:///folder``, ``mllp://host:port`` or, with TLS,
        ``mllps://host:port``.
    settings

    Raises
    ------
    ConfigurationInvalid
        When the URL has another scheme, or a secret is not where the settings say.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # as where a bracket is missing
        parts = urlsplit("")
    if parts.scheme == "file":
        return FolderEhr(Path(url2pathname(parts.path)))
    if parts.scheme in ("http", "https") and parts.netloc:
        return FhirServer(url.rstrip("/"), _shown_to(url, settings))
    if parts.scheme in ("mllp", "mllps"):
        return MllpEhr(url, _shown_to(url, settings))
    raise ConfigurationInvalid(
        f"The EHR address {url!r} is none of https://…/fhir, mllp://host:port, file:///folder: "
        "set ehr_url or --ehr."
    )


def _shown_to(url: str, settings: EhrSettings) -> EhrSettings:
    """The settings, without credentials where they do not name the EHR."""
    if is_named(url, settings.credentials_for):
        return settings
    shown = without_credentials(settings)
    if shown != settings:
        tell_unnamed(url, "ehr_url")
    return shown
