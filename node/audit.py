"""The audit trail: who used the node, which slides it read and what it stored.

Records are written to a folder first and sent from there, to a FHIR repository as AuditEvent (as
IHE BALP shapes them) and to a syslog collector over TLS as DICOM audit messages (PS3.15 A.5 and
A.6, RFC 5424, RFC 5425). While a repository is down they wait; one that was not taken is never
dropped. One that a repository refuses for what it says is put aside in ``refused/``, so that the
others are sent. Syslog has no acknowledgement: what was written to the connection counts as sent.
"""

from __future__ import annotations

import fcntl
import json
import logging
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from dicom_io.errors import AuditUnreachable, ConfigurationInvalid, EhrRefused
from models.errors import MarrowNodeError
from node.audit_messages import AuditRecord, audit_event, audit_message, syslog_line
from node.audit_settings import AuditSettings
from node.ehr_http import FhirHttp
from node.work_files import disk_errors, write_atomically

log = logging.getLogger(__name__)

SYSLOG_PORT = 6514
TIMEOUT_S = 10.0
BATCH = 100
FORWARD_EVERY_S = 2.0
LONGEST_PAUSE_S = 60.0
REFUSED = "refused"
# Answers that are about the one record; others, as 404, are about where it was sent.
_RECORD_REFUSED = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)


class AuditTrail:
    """Takes records. Any number of processes may write to one folder.

    Parameters
    ----------
    settings
    folder
        Of records that wait to be sent.
    """

    def __init__(self, settings: AuditSettings, folder: Path) -> None:
        self._targets = _targets(settings)
        self._folder = folder

    def record(self, record: AuditRecord) -> None:
        """Keep a record until every repository has taken it.

        Raises
        ------
        DiskFull
            It cannot be kept: what it is about must not happen unseen.
        """
        # Names sort by time; the record is there whole or not at all.
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex}.json"
        content = json.dumps(asdict(record)).encode()
        with disk_errors(self._folder):
            for target in self._targets:
                write_atomically(self._folder / target / name, content)

    def waiting(self) -> int:
        """Records that a repository has not taken yet."""
        return sum(len(_records(self._folder / target)) for target in self._targets)

    def refused(self) -> int:
        """Records that a repository refused, and that were put aside."""
        return sum(len(_records(self._folder / each / REFUSED)) for each in self._targets)


@contextmanager
def forwarding(settings: AuditSettings, folder: Path) -> Iterator[None]:
    """Send what waits, now and then, from a thread of its own."""
    stopped = threading.Event()
    threads = [
        threading.Thread(target=_forward, args=(name, open_, folder / name, stopped), daemon=True)
        for name, open_ in _targets(settings).items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(TIMEOUT_S)


# Tells whether the record was acknowledged; else it counts as taken when the target is closed.
Send = Callable[[AuditRecord], bool]
OpenTarget = Callable[[], AbstractContextManager[Send]]


def _targets(settings: AuditSettings) -> dict[str, OpenTarget]:
    """Name of each configured repository → how to open it."""
    targets: dict[str, OpenTarget] = {}
    if settings.fhir_url:
        targets["fhir"] = lambda: _to_fhir(settings)
    if settings.syslog_url:
        parts = urlsplit(settings.syslog_url)
        if parts.scheme != "tls" or not parts.hostname:
            raise ConfigurationInvalid(
                "audit.syslog_url is not tls://host or tls://host:port: audit messages travel "
                "over TLS only."
            )
        targets["syslog"] = lambda: _to_syslog(settings)
    return targets


def _forward(name: str, open_target: OpenTarget, folder: Path, stopped: threading.Event) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        pause_s, told = 0.0, False
        while not stopped.wait(pause_s):
            pause_s = FORWARD_EVERY_S
            try:
                # One process of the host sends; the others stand by in case it dies.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _send_all(open_target, folder, stopped)
                if told:
                    log.warning("The audit trail reaches %s again.", name)
                told = False
            except BlockingIOError:
                continue
            except (MarrowNodeError, OSError) as error:
                if not told:
                    log.error("The audit trail waits for %s: %s", name, error)
                told, pause_s = True, min(LONGEST_PAUSE_S, 5 * FORWARD_EVERY_S)


def _send_all(open_target: OpenTarget, folder: Path, stopped: threading.Event) -> None:
    """Send in the order of time, and forget only what was taken."""
    while (batch := _records(folder)[:BATCH]) and not stopped.is_set():
        taken: list[Path] = []
        with open_target() as send:
            for path in batch:
                try:
                    acknowledged = send(_read(path))
                except (EhrRefused, _Unreadable) as error:
                    if isinstance(error, EhrRefused) and error.status not in _RECORD_REFUSED:
                        raise
                    _put_aside(path, error)
                    continue
                if acknowledged:
                    path.unlink()
                else:
                    taken.append(path)
        for path in taken:
            path.unlink()


class _Unreadable(Exception):
    """A file of records is none: it was cut off, or somebody else wrote it."""


def _read(path: Path) -> AuditRecord:
    try:
        return AuditRecord(**json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise _Unreadable("it cannot be read.") from error


def _put_aside(path: Path, error: Exception) -> None:
    """Let the records after one that will never be taken be sent."""
    aside = path.parent / REFUSED / path.name
    aside.parent.mkdir(exist_ok=True)
    path.rename(aside)
    log.error("The audit record %s was put aside: %s Move it back to send it again.", aside, error)


def _records(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


@contextmanager
def _to_fhir(settings: AuditSettings) -> Iterator[Send]:
    http = FhirHttp(settings.fhir_url.rstrip("/"), settings.fhir)

    def send(record: AuditRecord) -> bool:
        event = audit_event(record, settings.source_id, settings.enterprise_site_id)
        http.ask("POST", "AuditEvent", event)
        return True

    yield send


@contextmanager
def _to_syslog(settings: AuditSettings) -> Iterator[Send]:
    parts = urlsplit(settings.syslog_url)
    host, port = str(parts.hostname), parts.port or SYSLOG_PORT
    context = ssl.create_default_context(
        cafile=str(settings.ca_bundle) if settings.ca_bundle else None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate is not None:
        context.load_cert_chain(settings.certificate, settings.certificate_key)
    try:
        plain = socket.create_connection((host, port), TIMEOUT_S)
        connection = context.wrap_socket(plain, server_hostname=host)
    except OSError as error:
        raise AuditUnreachable(
            f"The audit collector {host}:{port} cannot be reached ({type(error).__name__}): check "
            "that it runs, audit.syslog_url and its certificates."
        ) from error

    def send(record: AuditRecord) -> bool:
        message = audit_message(record, settings.source_id, settings.enterprise_site_id)
        line = syslog_line(record, message, socket.gethostname())
        connection.sendall(b"%d %b" % (len(line), line))  # RFC 5425 §4.3: octet counting
        return False

    with connection:
        yield send
        # Without this farewell a closed connection may throw away what the collector has not read.
        with suppress(TimeoutError, ssl.SSLError):
            connection.unwrap()


def audited_now() -> str:
    """The moment of an event, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
