"""Associations with an archive: who calls whom, TLS, timeouts, and why one was not established."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pynetdicom import AE
from pynetdicom.association import Association

from dicom_io.commitment import VERIFICATION
from dicom_io.dimse_errors import association_error
from dicom_io.errors import ConfigurationInvalid, PacsUnreachable

AE_TITLE_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class DimseSettings:
    """How an archive without STOW-RS is spoken to; its address is results_url.

    Attributes
    ----------
    calling_ae_title
        Name of this node, which the archive has to know.
    timeout_s
        Seconds to connect, and seconds without an answer, after which a message counts as lost.
    retries
        Attempts after the first one, for transient failures only.
    retry_wait_s
        Seconds before the second attempt; doubled for each further one.
    ca_bundle
        PEM file of the authority of the archive's certificate; TLS is used when it is set.
    certificate, key
        PEM files of this node's own certificate, for archives that want one.
    ask_url
        DICOMweb URL where what was sent is asked for and read back. Empty for pacs_url where that
        is a DICOMweb URL; else C-FIND, which says that an object is there but not what it holds.
    commitment
        Whether storage commitment is asked for where the archive offers it.
    commitment_port
        Port of this node to which the archive sends its reports; 0 where it reports on the
        association that asked. May be that of receive.
    commitment_wait_s
        Seconds to wait for a report; without one the receipt says so and the job goes on.
    """

    calling_ae_title: str = "MARROW_NODE"
    timeout_s: float = 30.0
    retries: int = 3
    retry_wait_s: float = 0.5
    ca_bundle: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    ask_url: str = ""
    commitment: bool = True
    commitment_port: int = 0
    commitment_wait_s: float = 30.0


class DimsePeer:
    """An archive's application entity.

    Parameters
    ----------
    url
        ``dimse://CALLED_AE_TITLE@host:port``
    settings

    Raises
    ------
    ConfigurationInvalid
        The URL, an AE title or a TLS file is not usable.
    """

    def __init__(self, url: str, settings: DimseSettings) -> None:
        check_ae_title(settings.calling_ae_title)
        self._called_ae_title, self._host, self._port = _address(url)
        self._settings = settings
        self._tls = _client_tls(settings)
        self.name = f"The archive {self._called_ae_title} at {self._host}:{self._port}"

    @contextmanager
    def association(
        self,
        what: str,
        contexts: Sequence[tuple[str, str]],
        handlers: Sequence[Any] = (),
    ) -> Iterator[Association]:
        """Associate for `what`, proposing one context for each (abstract, transfer) syntax.

        Raises
        ------
        PacsError
            When the association is not established.
        """
        settings = self._settings
        ae = AE(settings.calling_ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.connection_timeout = settings.timeout_s
        ae.network_timeout = settings.timeout_s + settings.commitment_wait_s
        # With it the association stands even where the archive takes none of the others.
        ae.add_requested_context(VERIFICATION)
        for abstract_syntax, transfer_syntax in contexts:
            ae.add_requested_context(abstract_syntax, transfer_syntax)
        association = ae.associate(
            self._resolved(),
            self._port,
            ae_title=self._called_ae_title,
            tls_args=None if self._tls is None else (self._tls, self._host),
            evt_handlers=list(handlers),
        )
        if not association.is_established:
            raise association_error(self.name, what, association)
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _resolved(self) -> str:
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise PacsUnreachable(
                f"{self.name} has a host name that cannot be resolved: correct results_url."
            ) from error
        return str(found[0][4][0])


def _address(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "dimse" or not parts.username or not parts.hostname or not port:
        raise ConfigurationInvalid(
            "The results_url is not usable: write dimse://CALLED_AE_TITLE@host:port."
        )
    check_ae_title(parts.username)
    return parts.username, parts.hostname, port


def check_ae_title(title: str) -> None:
    """Refuse what PS3.5 table 6.2-1 does not allow as AE; raises ConfigurationInvalid."""
    if (
        not title.strip()
        or len(title) > AE_TITLE_CHARACTERS
        or "\\" in title
        or not (title.isascii() and title.isprintable())
    ):
        raise ConfigurationInvalid(
            f"The AE title {title!r} is not usable: take 1 to 16 printable ASCII characters"
            " without a backslash."
        )


def accepts(association: Association, abstract_syntax: str) -> bool:
    """Whether the archive took a context of this SOP class."""
    return any(each.abstract_syntax == abstract_syntax for each in association.accepted_contexts)


def _client_tls(settings: DimseSettings) -> ssl.SSLContext | None:
    if settings.ca_bundle is None:
        return None
    try:
        context = ssl.create_default_context(cafile=str(settings.ca_bundle))
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationInvalid(
            "The TLS files in [dimse] (ca_bundle, certificate, key) cannot be used"
            f" ({type(error).__name__}): check that they exist and are PEM."
        ) from error
    return context
