"""C-STORE receiver: slides that are sent here by DIMSE become files of a folder archive.

An object is streamed to a file beside the archive while it comes, and renamed into the archive
when it is whole and on the disk; only then its sender is told that it was taken. So a sender, a
disk or this process may end at any moment, and no half object is ever seen.
"""

from __future__ import annotations

import fcntl
import filecmp
import ipaddress
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from uuid import uuid4
from weakref import WeakSet

from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MicroscopyBulkSimpleAnnotationsStorage,
    VLWholeSlideMicroscopyImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

from dicom_io.arrival import Arrival, read_arrival
from dicom_io.commitment import VERIFICATION, Commitments, accept_reports
from dicom_io.decoding import ENCODINGS
from dicom_io.dimse_association import check_ae_title, server_tls
from dicom_io.dimse_settings import ReceiveSettings
from dicom_io.errors import ConfigurationInvalid, DiskFull, PacsRefused
from dicom_io.incoming import IncomingFile, streaming

LOG = logging.getLogger(__name__)

# C-STORE statuses, PS3.4 table B.2-1 and PS3.7 annex C.
STORED, DUPLICATE, OUT_OF_RESOURCES = 0x0000, 0x0111, 0xA700
CLASS_MISMATCH, CANNOT_UNDERSTAND = 0xA900, 0xC000
# Rejected permanent, by the service user, calling AE title not recognised (PS3.8 table 9-21).
REJECTION = (1, 1, 3)
# The largest that DCMTK sends; the default of 16 kB costs a third of the speed.
LARGEST_PDU_BYTES = 131_072
DOCUMENTS = (
    MicroscopyBulkSimpleAnnotationsStorage,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
)


class Receiver:
    """Listens from :meth:`start` to :meth:`close`.

    Parameters
    ----------
    settings
    commitments
        Where storage commitment reports that come to this port are noted.
    arrived
        Told of every instance that is new in the archive, and of the association it came on; None
        where that has ended meanwhile.
    ended
        Told of every association that has ended.
    began
        Told of every series, by study and series UID, of which the archive has nothing yet, or
        nothing any more: before its first instance arrives.
    """

    def __init__(
        self,
        settings: ReceiveSettings,
        commitments: Commitments,
        arrived: Callable[[Arrival, int | None], None],
        ended: Callable[[int], None],
        began: Callable[[str, str], None] = lambda study_uid, series_uid: None,
    ) -> None:
        check_ae_title(settings.ae_title)
        self._settings = settings
        self._networks = [_network(each) for each in settings.allowed_addresses]
        self._tls = None
        if settings.certificate is not None:
            self._tls = server_tls(
                "receive", settings.certificate, settings.key, settings.ca_bundle
            )
        self._commitments = commitments
        self._arrived, self._ended, self._began = arrived, ended, began
        self._incoming_folder = settings.folder.absolute() / "incoming"
        self._incoming: list[IncomingFile] = []
        self._left: WeakSet[Association] = WeakSet()
        self._lock = threading.Lock()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive until the end of the block; associations that are still open are then aborted.

        Raises
        ------
        ConfigurationInvalid
            When the port cannot be had, or another receiver works in this folder.
        DiskFull
            When the folder cannot be written.
        """
        with self._folder_taken(), streaming(self._new_file):
            ae = self._application_entity()
            handlers = [
                (evt.EVT_REQUESTED, self._requested),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_CONN_CLOSE, self._closed),
                *self._commitments.handlers(),
            ]
            where = (self._settings.address, self._settings.port)
            try:
                ae.start_server(where, block=False, ssl_context=self._tls, evt_handlers=handlers)
            except OSError as error:
                raise ConfigurationInvalid(
                    f"Port {where[1]} cannot be listened on ({error.strerror}): set receive.port"
                    " or receive.address to another."
                ) from error
            try:
                yield
            finally:
                ae.shutdown()

    def _application_entity(self) -> AE:
        settings = self._settings
        ae = AE(settings.ae_title)
        ae.require_called_aet = True
        ae.require_calling_aet = list(settings.allowed_ae_titles)
        ae.maximum_associations = settings.associations
        ae.maximum_pdu_size = LARGEST_PDU_BYTES
        ae.network_timeout = ae.dimse_timeout = ae.acse_timeout = settings.timeout_s
        ae.add_supported_context(VERIFICATION)
        ae.add_supported_context(VLWholeSlideMicroscopyImageStorage, list(ENCODINGS))
        for sop_class in DOCUMENTS:
            ae.add_supported_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        accept_reports(ae)
        return ae

    @contextmanager
    def _folder_taken(self) -> Iterator[None]:
        folder = self._settings.folder
        try:
            self._incoming_folder.mkdir(parents=True, exist_ok=True)
            self._settings.archive.mkdir(exist_ok=True)
            lock = (folder / "receiver.lock").open("a")
        except OSError as error:
            raise DiskFull(
                f"The folder {folder} cannot be written ({error.strerror}): free space there or"
                " set another receive.folder."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationInvalid(
                    f"Another receiver works in {folder}: stop it or set another receive.folder."
                ) from error
            for left_over in self._incoming_folder.iterdir():
                left_over.unlink()
            yield

    def _new_file(self, **_: Any) -> IncomingFile:
        file = IncomingFile(self._incoming_folder / uuid4().hex)
        with self._lock:
            self._incoming.append(file)
        return file

    def _requested(self, event: Event) -> None:
        requestor = event.assoc.requestor
        address = ipaddress.ip_address(requestor.address)
        address = getattr(address, "ipv4_mapped", None) or address
        if not any(address in network for network in self._networks):
            LOG.warning("Rejected an association from %s: not an allowed address.", address)
            event.assoc.acse.send_reject(*REJECTION)

    def _store(self, event: Event) -> int | Dataset:
        with self._lock:
            (file,) = (each for each in self._incoming if each.path == event.dataset_path)
            self._incoming.remove(file)
        try:
            return self._kept(file, event)
        except OSError as error:
            LOG.error("An object could not be written (%s): free space.", error.strerror)
            return OUT_OF_RESOURCES
        finally:
            file.remove()

    def _kept(self, file: IncomingFile, event: Event) -> int | Dataset:
        file.finish()
        try:
            arrival = read_arrival(file.path)
        except PacsRefused as error:
            LOG.warning("%s", error)
            return _status(CANNOT_UNDERSTAND, "data set or one of its UIDs cannot be read")
        request = cast("C_STORE", event.request)
        said = (request.AffectedSOPClassUID, request.AffectedSOPInstanceUID)
        if said != (arrival.sop_class_uid, arrival.sop_uid):
            return _status(CLASS_MISMATCH, "UIDs of command and data set differ")
        target = instance_path(self._settings.archive, arrival)
        with _published_by_nobody_else(self._settings.folder):
            if target.exists() and not filecmp.cmp(file.path, target, shallow=False):
                LOG.warning("Instance %s came again, changed; the first is kept.", arrival.sop_uid)
                return _status(DUPLICATE, "here with other content, which is kept")
            if not target.parent.exists():
                self._began(arrival.study_uid, arrival.series_uid)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.path.replace(target)
        for folder in target.relative_to(self._settings.archive).parents:
            _to_disk(self._settings.archive / folder)
        LOG.info("Received instance %s of series %s.", arrival.sop_uid, arrival.series_uid)
        with self._lock:
            # A sender may leave while its last object is still written to the disk.
            self._arrived(arrival, None if event.assoc in self._left else id(event.assoc))
        return STORED

    def _closed(self, event: Event) -> None:
        with self._lock:
            self._left.add(event.assoc)
            gone = [
                each
                for each in self._incoming
                if each.thread is event.assoc.dul or not each.thread.is_alive()
            ]
            self._incoming = [each for each in self._incoming if each not in gone]
        for file in gone:
            LOG.warning("A sender left in the middle of an object; what had come is deleted.")
            file.remove()
        self._ended(id(event.assoc))


def instance_path(archive: Path, arrival: Arrival) -> Path:
    """Where :mod:`dicom_io.folder` keeps an instance."""
    series = archive / "studies" / arrival.study_uid / "series" / arrival.series_uid
    return series / "instances" / arrival.sop_uid


def series_in(archive: Path) -> Iterator[tuple[str, str, list[Path]]]:
    """(study UID, series UID, files) of every series that was received."""
    for folder in archive.glob("studies/*/series/*/instances"):
        yield folder.parts[-4], folder.parts[-2], sorted(folder.iterdir())


def is_image(path: Path) -> bool:
    """Whether a file of a series is an image of a slide, and nothing that was made of one."""
    try:
        return read_arrival(path).sop_class_uid == VLWholeSlideMicroscopyImageStorage
    except PacsRefused:
        return False


def remove_slide(folder: Path, study_uid: str, series_uid: str, before_s: float) -> None:
    """Delete the images of a received series, unless any of its files has come since a time.

    No receiver publishes an instance meanwhile: what is told to be stored is not deleted here.

    Parameters
    ----------
    folder
        Of the receiver.
    study_uid, series_uid
    before_s
        Unix time.
    """
    study = folder.absolute() / "archive" / "studies" / study_uid
    instances = study / "series" / series_uid / "instances"
    with _published_by_nobody_else(folder):
        files = list(instances.glob("*"))
        if any(file.stat().st_mtime >= before_s for file in files):
            return
        for file in filter(is_image, files):
            file.unlink()
        for empty in (instances, instances.parent, study / "series", study):
            with suppress(OSError):  # results lie there
                empty.rmdir()


@contextmanager
def _published_by_nobody_else(folder: Path) -> Iterator[None]:
    """Keep all threads and processes but this one from changing what was received."""
    with (folder / "publishing.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _status(code: int, comment: str) -> Dataset:
    status = Dataset()
    status.Status = code
    status.ErrorComment = comment
    return status


def _to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigurationInvalid(
            f"{text!r} in receive.allowed_addresses is neither an address nor a network: write"
            " 192.0.2.7 or 192.0.2.0/24."
        ) from error
