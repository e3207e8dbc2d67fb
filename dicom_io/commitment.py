"""Storage commitment (PS3.4 Annex J): an archive's promise to keep what it was sent.

The promise is an N-EVENT-REPORT, and it may come on the association that asked, on a new one to
this node's port, within a second or days later. So outcomes are noted in a folder: whichever
process of the node hears the report writes it there, and the one that asked reads it. Where nobody
waits any more, what an archive does not keep stands in the log.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid
from pynetdicom import AE, evt
from pynetdicom.events import Event, EventHandlerType

from dicom_io.dimse_errors import COMMITMENT_FAILURES
from dicom_io.errors import ConfigurationInvalid, DiskFull, PacsRefused
from dicom_io.folder_index import UID as SPELLED_UID

LOG = logging.getLogger(__name__)

POLL_S = 0.1
BIND_AGAIN_S = 0.5
# How long a transaction is known of which nothing was heard.
AWAITED_S = 7 * 86_400.0
# PS3.4 Annexes A and J; the push model has one well-known instance.
VERIFICATION = UID("1.2.840.10008.1.1")
STORAGE_COMMITMENT = UID("1.2.840.10008.1.20.1")
STORAGE_COMMITMENT_INSTANCE = UID("1.2.840.10008.1.20.1.1")
# N-EVENT-REPORT statuses, PS3.7 §10.1.1.1.8.
TAKEN, NO_SUCH_TRANSACTION, NOT_TAKEN = 0x0000, 0x0115, 0x0110


@dataclass(frozen=True, slots=True)
class Report:
    """What an archive reports of one transaction (PS3.4 table J.3-2).

    Attributes
    ----------
    kept
        SOP Instance UIDs that it commits itself to keep.
    failed
        SOP Instance UID → failure reason.
    """

    kept: tuple[str, ...]
    failed: Mapping[str, int]


class Commitments:
    """Outcomes of storage commitment, one small file for each transaction that awaits one.

    Parameters
    ----------
    folder
        Shared by all processes of the node; made when it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def expect(self) -> str:
        """Open a transaction; returns its UID.

        Raises
        ------
        DiskFull
            When it cannot be noted.
        """
        transaction = str(generate_uid(prefix=None))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._forget_old()
            self._path(transaction).write_text("", encoding="ascii")
        except OSError as error:
            raise DiskFull(
                f"The folder {self._folder} cannot be written ({error.strerror}): free space"
                " there or set another work_folder."
            ) from error
        return transaction

    def wait(self, transaction: str, seconds: float) -> Report | None:
        """The report, once it has come, and its transaction is forgotten; None while there is none.

        A transaction without one stays known, for a report that comes when nobody waits for it.
        """
        end = time.monotonic() + seconds
        while not (text := self._path(transaction).read_text(encoding="ascii")):
            if time.monotonic() > end:
                return None
            time.sleep(POLL_S)
        self.forget(transaction)
        noted = json.loads(text)
        return Report(tuple(noted["kept"]), noted["failed"])

    def forget(self, transaction: str) -> None:
        self._path(transaction).unlink(missing_ok=True)

    def _forget_old(self) -> None:
        oldest_s = time.time() - AWAITED_S
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process forgets too
                if path.stat().st_mtime < oldest_s:
                    path.unlink()

    def handlers(self) -> list[EventHandlerType]:
        """Of pynetdicom, for whatever association a report may come on."""
        return [(evt.EVT_N_EVENT_REPORT, self._heard)]

    def _heard(self, event: Event) -> tuple[int, Dataset | None]:
        report = event.event_information
        transaction = str(report.get("TransactionUID", ""))
        # A UID from the network becomes a path only if this node made it: the file is there.
        if not SPELLED_UID.fullmatch(transaction) or not self._path(transaction).exists():
            LOG.warning("A storage commitment report came for a transaction that awaits none.")
            return NO_SUCH_TRANSACTION, None
        outcome = _outcome(report)
        try:
            partial = self._path(transaction).with_suffix(".part")
            partial.write_text(json.dumps(asdict(outcome)), encoding="ascii")
            os.replace(partial, self._path(transaction))
        except OSError as error:
            LOG.warning("A storage commitment report could not be noted (%s).", error.strerror)
            return NOT_TAKEN, None
        for sop_uid, code in outcome.failed.items():
            LOG.warning("The archive does not keep instance %s: %s.", sop_uid, _reason(code))
        return TAKEN, None

    def _path(self, transaction: str) -> Path:
        return self._folder / f"{transaction}.json"


def _outcome(report: Dataset) -> Report:
    return Report(
        tuple(
            str(item.ReferencedSOPInstanceUID)
            for item in report.get("ReferencedSOPSequence", None) or []
        ),
        {
            str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0))
            for item in report.get("FailedSOPSequence", None) or []
        },
    )


def action_information(document: Dataset, transaction: str) -> Dataset:
    """What an N-ACTION asks of the archive for one instance (PS3.4 table J.3-1)."""
    item = Dataset()
    item.ReferencedSOPClassUID = document.SOPClassUID
    item.ReferencedSOPInstanceUID = document.SOPInstanceUID
    information = Dataset()
    information.TransactionUID = transaction
    information.ReferencedSOPSequence = [item]
    return information


def verdict(name: str, sop_uid: str, report: Report | None, seconds: float) -> str:
    """Words for the receipt.

    Raises
    ------
    PacsRefused
        When the archive says that it will not keep the instance.
    """
    if report is None:
        return f"storage commitment asked for, no report within {seconds:g} s"
    if sop_uid in report.failed:
        raise PacsRefused(
            f"{name} does not commit itself to keep instance {sop_uid}:"
            f" {_reason(report.failed[sop_uid])}; look for the object there and ask its"
            " administrator."
        )
    if sop_uid not in report.kept:
        # Committed is what the report lists, and nothing else (PS3.4 J.3.3).
        LOG.warning("%s reports storage commitment without instance %s.", name, sop_uid)
        return "storage commitment asked for, the report does not name the instance"
    return "storage committed"


def _reason(code: int) -> str:
    return f"{COMMITMENT_FAILURES.get(code, 'reason not known')} (0x{code:04X})"


def accept_reports(ae: AE) -> None:
    """Let an archive open an association to report: it proposes itself as SCP (PS3.4 J.3.3)."""
    ae.add_supported_context(STORAGE_COMMITMENT, scu_role=True, scp_role=True)


@contextmanager
def listening(
    commitments: Commitments, ae_title: str, port: int, tls: ssl.SSLContext | None
) -> Iterator[None]:
    """Hear reports on `port` for a while; 0 hears only those on the association that asked.

    Where the port is taken by another process of this node, that one notes them in the same folder;
    as soon as it lets go of the port, this one listens.

    Parameters
    ----------
    commitments, ae_title, port
    tls
        Speak this and nothing else; None for plain DIMSE.
    """
    if not port:
        yield
        return
    ae = AE(ae_title)
    ae.require_called_aet = True
    ae.add_supported_context(VERIFICATION)
    accept_reports(ae)
    handlers, done = commitments.handlers(), threading.Event()

    def listen_later() -> None:
        while not done.wait(BIND_AGAIN_S) and not _listens(ae, port, tls, handlers):
            pass

    later = threading.Thread(target=listen_later, name="commitment port", daemon=True)
    if not _listens(ae, port, tls, handlers):
        LOG.info("Port %d is taken; its owner notes storage commitment reports.", port)
        later.start()
    try:
        yield
    finally:
        done.set()
        if later.is_alive():
            later.join()
        ae.shutdown()


def _listens(
    ae: AE, port: int, tls: ssl.SSLContext | None, handlers: Sequence[EventHandlerType]
) -> bool:
    """Listen on a port; false where it is taken."""
    try:
        ae.start_server(("", port), block=False, ssl_context=tls, evt_handlers=list(handlers))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise ConfigurationInvalid(
            f"Port {port} cannot be listened on ({error.strerror}): set another"
            " dimse.commitment_port."
        ) from error
    return True
