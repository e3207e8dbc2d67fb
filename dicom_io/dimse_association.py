"""Associations with an archive: who calls whom, TLS, timeouts, and why one was not established."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pynetdicom import AE
from pynetdicom.association import Association

from dicom_io.commitment import VERIFICATION
from dicom_io.dimse_errors import association_error
from dicom_io.dimse_settings import DimseSettings
from dicom_io.errors import ConfigurationInvalid, PacsUnreachable

AE_TITLE_CHARACTERS = 16


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
            When the association is not established, or has ended when a message is to be sent.
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
        except RuntimeError as error:  # pynetdicom's, for a message that cannot be sent any more
            if association.is_established:
                raise
            raise PacsUnreachable(
                f"{self.name} broke off the association during {what}: check that it runs."
            ) from error
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


def server_tls(
    table: str, certificate: Path, key: Path | None, ca_bundle: Path | None
) -> ssl.SSLContext:
    """TLS of a port of this node; peers have to show a certificate where `ca_bundle` is given.

    Parameters
    ----------
    table
        Of the settings that name the files.
    certificate, key, ca_bundle
        PEM files.

    Raises
    ------
    ConfigurationInvalid
        A file is not usable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
        if ca_bundle is not None:
            context.load_verify_locations(ca_bundle)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationInvalid(
            f"The TLS files in [{table}] (certificate, key, ca_bundle) cannot be used"
            f" ({type(error).__name__}): check that they exist and are PEM."
        ) from error
    return context


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
