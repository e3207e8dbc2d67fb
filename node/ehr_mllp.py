"""An EHR that takes HL7 v2 over MLLP: one message sent, one acknowledgement read.

Such an EHR cannot be asked what it has. A message that may have arrived is sent again under the
same control ID, and its results under the same order number, so that the receiver replaces them.
"""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit

import hl7
import stamina
from hl7.mllp import InvalidBlockError, open_hl7_connection

from dicom_io.errors import (
    ConfigurationInvalid,
    EhrAnswerInvalid,
    EhrError,
    EhrRefused,
    EhrUnreachable,
)
from dicom_io.pacs_http import WAIT_GROWTH
from node.ehr_authentication import client_certificate
from node.ehr_records import Delivered, EhrSettings

ACKNOWLEDGED = "acknowledged"
# HL7 table 0008; the second of each pair is enhanced mode.
_ACCEPTED, _FAILED = ("AA", "CA"), ("AE", "CE")
_FOREIGN = (OSError, EOFError, InvalidBlockError, asyncio.IncompleteReadError)


class MllpEhr:
    """A receiver of ORU^R01 at ``mllp://host:port``, or with TLS at ``mllps://host:port``.

    Raises
    ------
    ConfigurationInvalid
        The address has no port, or a certificate is not there.
    """

    def __init__(self, url: str, settings: EhrSettings) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if not parts.hostname or port is None:
            raise ConfigurationInvalid(
                f"The EHR address {url!r} names no host or no port: write mllp://host:port."
            )
        self._host, self._port, self._settings = parts.hostname, port, settings
        self._tls = _tls(settings) if parts.scheme == "mllps" else None

    def deliver(self, message: str) -> list[Delivered]:
        """Send a message until it is acknowledged.

        Raises
        ------
        EhrUnreachable
            No connection or no acknowledgement in time.
        EhrRefused
            The receiver said that it did not take the message.
        EhrAnswerInvalid
            The answer is not the acknowledgement of this message.
        """
        control_id = _field(message, "MSH", 10)
        for attempt in stamina.retry_context(
            on=EhrUnreachable,
            attempts=self._settings.retries + 1,
            wait_initial=self._settings.retry_wait_s,
            wait_max=WAIT_GROWTH * self._settings.retry_wait_s,
            timeout=None,
        ):
            with attempt:
                self._judge(self._answer(message), control_id)
        return [Delivered("ORU^R01", control_id, ACKNOWLEDGED)]

    def _answer(self, message: str) -> str:
        try:
            return asyncio.run(self._exchange(message))
        except ssl.SSLError as error:
            raise EhrError(
                f"The EHR {self._host} could not prove who it is: give the certificate of its "
                "authority in the settings (ehr.ca_bundle)."
            ) from error
        except TimeoutError as error:
            raise EhrUnreachable(
                f"The EHR {self._host} did not acknowledge within {self._settings.timeout_s:g} s: "
                "try later or raise ehr.timeout_s."
            ) from error
        except _FOREIGN as error:
            raise EhrUnreachable(
                f"The EHR {self._host} cannot be reached by MLLP ({type(error).__name__}): "
                "check that it runs, and ehr_url."
            ) from error
        except UnicodeDecodeError as error:
            raise EhrAnswerInvalid(
                f"The EHR {self._host} acknowledged in letters that are not UTF-8: set its "
                "character set to UNICODE UTF-8."
            ) from error

    async def _exchange(self, message: str) -> str:
        async with asyncio.timeout(self._settings.timeout_s):
            reader, writer = await open_hl7_connection(
                self._host, self._port, encoding="utf-8", ssl=self._tls
            )
            try:
                writer.writeblock(message.encode())
                await writer.drain()
                block: bytes = await reader.readblock()
            finally:
                writer.close()
        return block.decode()

    def _judge(self, answer: str, control_id: str) -> None:
        code, told = _field(answer, "MSA", 1), _field(answer, "MSA", 2)
        if not code or told != control_id:
            raise EhrAnswerInvalid(
                f"The EHR {self._host} answered message {control_id} with something that does not "
                "acknowledge it: check that ehr_url is a receiver of HL7 v2 results."
            )
        if code in _ACCEPTED:
            return
        how = "could not process" if code in _FAILED else "rejected"
        raise EhrRefused(
            f"The EHR {self._host} {how} message {control_id} ({code}): look at the receiver's "
            "log and its rules, then start the job again."
        )


def _field(message: str, segment: str, number: int) -> str:
    """A field; empty where there is none."""
    try:
        return str(hl7.parse(message.strip()).segment(segment)[number])
    except (hl7.ParseException, KeyError, IndexError):
        return ""


def _tls(settings: EhrSettings) -> ssl.SSLContext:
    certificate = client_certificate(settings)
    context = ssl.create_default_context(
        cafile=str(settings.ca_bundle) if settings.ca_bundle else None
    )
    if certificate is not None:
        files = (certificate,) if isinstance(certificate, str) else certificate
        context.load_cert_chain(*files)
    return context
