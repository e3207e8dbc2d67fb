"""Results to an archive without STOW-RS: C-STORE, C-FIND and storage commitment over DIMSE."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import stamina
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_io.commitment import (
    STORAGE_COMMITMENT,
    STORAGE_COMMITMENT_INSTANCE,
    Commitments,
    action_information,
    listening,
    verdict,
)
from dicom_io.dimse_association import DimsePeer, accepts, server_tls
from dicom_io.dimse_errors import PENDING, answer_error
from dicom_io.dimse_settings import DimseSettings
from dicom_io.errors import ConfigurationInvalid, PacsError, PacsRefused
from dicom_io.pacs import Pacs, PacsSettings, open_pacs
from dicom_io.pacs_errors import DUPLICATE, IS_THERE, STORE_WARNINGS
from dicom_io.pacs_http import WAIT_GROWTH

T = TypeVar("T")

LOG = logging.getLogger(__name__)

STUDY_ROOT_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")  # PS3.4 C.6.2
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
# How long the asking association stays open for a report. An archive that reports on a new one may
# wait for its end.
SAME_ASSOCIATION_S = 2.0


class DimseArchive:
    """An archive that takes objects by C-STORE. Made by :func:`open_dimse`; a context manager.

    Every method raises :class:`dicom_io.errors.PacsError` and its subclasses.

    Parameters
    ----------
    peer
    settings
    asked
        Where objects are asked for and read back; None for C-FIND.
    commitments
    """

    def __init__(
        self,
        peer: DimsePeer,
        settings: DimseSettings,
        asked: Pacs | None,
        commitments: Commitments,
    ) -> None:
        self.name = peer.name
        self._peer = peer
        self._settings = settings
        self._asked = asked
        self._commitments = commitments
        self._report_tls = _report_tls(settings)

    def __enter__(self) -> DimseArchive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._asked is not None:
            self._asked.close()

    @property
    def reads_back(self) -> bool:
        """Whether :meth:`retrieve_instance` can be called."""
        return self._asked is not None

    def has_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> bool:
        """Whether the archive lists the instance: over DICOMweb, or by C-FIND at IMAGE level."""
        if self._asked is not None:
            return self._asked.has_instance(study_uid, series_uid, sop_uid)
        return self._retried(lambda attempt: self._find(study_uid, series_uid, sop_uid))

    def retrieve_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Dataset:
        """Read an instance back over DICOMweb."""
        if self._asked is None:
            raise ConfigurationInvalid(
                f"{self.name} is asked by C-FIND alone, which returns no objects: set"
                " dimse.ask_url to a DICOMweb URL to read results back."
            )
        return self._asked.retrieve_instance(study_uid, series_uid, sop_uid)

    def store(self, datasets: Sequence[Dataset]) -> str:
        """C-STORE each dataset; returns what the archive remarked, empty if nothing.

        A transient failure is tried again, after asking whether the object arrived all the same.

        Raises
        ------
        PacsRefused, PacsUnauthorized, PacsBusy, PacsTimeout, PacsUnreachable
            By the status of PS3.4 table B.2-1, or the association's end.
        """
        return "; ".join(filter(None, map(self._stored, datasets)))

    def commitment(self, document: Dataset) -> str:
        """Ask the archive to promise that it keeps an instance; returns words for the receipt.

        Raises
        ------
        PacsRefused
            When it says that it will not keep it.
        """
        if not self._settings.commitment:
            return ""
        transaction = self._commitments.expect()
        try:
            with listening(
                self._commitments,
                self._settings.calling_ae_title,
                self._report_port(),
                self._report_tls,
            ):
                return self._retried(lambda attempt: self._committed(document, transaction))
        except PacsError as error:
            if not error.transient:
                raise
            LOG.warning("%s", error)  # the object is stored all the same
            return "storage commitment could not be asked for"

    def _report_port(self) -> int:
        """Port to hear reports on; none where TLS is spoken, and there is nothing to show."""
        port = self._settings.commitment_port
        if port and self._settings.ca_bundle is not None and self._report_tls is None:
            LOG.warning(
                "Port %d is not opened for storage commitment reports: TLS, as dimse.ca_bundle asks"
                " for it, needs dimse.certificate and dimse.key.",
                port,
            )
            return 0
        return port

    def _committed(self, document: Dataset, transaction: str) -> str:
        sop_uid, wait_s = str(document.SOPInstanceUID), self._settings.commitment_wait_s
        what = f"storage commitment of instance {sop_uid}"
        contexts = [(STORAGE_COMMITMENT, ExplicitVRLittleEndian)]
        with self._peer.association(what, contexts, self._commitments.handlers()) as association:
            if not accepts(association, STORAGE_COMMITMENT):
                self._commitments.forget(transaction)
                return "storage commitment not offered"
            status, _ = association.send_n_action(
                action_information(document, transaction),
                1,
                STORAGE_COMMITMENT,
                STORAGE_COMMITMENT_INSTANCE,
            )
            error = answer_error(self.name, what, status)
            if error is not None and not error.transient:
                LOG.warning("%s", error)
                self._commitments.forget(transaction)
                return f"storage commitment refused (0x{int(status.Status):04X})"
            if error is not None:
                raise error
            report = self._commitments.wait(transaction, min(SAME_ASSOCIATION_S, wait_s))
        if report is None:
            report = self._commitments.wait(transaction, wait_s - SAME_ASSOCIATION_S)
        return verdict(self.name, sop_uid, report, wait_s)

    def _stored(self, dataset: Dataset) -> str:
        return self._retried(lambda attempt: self._sent(dataset, again=attempt > 1))

    def _sent(self, dataset: Dataset, again: bool) -> str:
        sop_uid = str(dataset.SOPInstanceUID)
        what = f"storing instance {sop_uid}"
        if again and self.has_instance(
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID, sop_uid
        ):
            return "taken, though its answer was lost"
        syntax = dataset.file_meta.TransferSyntaxUID
        syntaxes = UNCOMPRESSED if syntax in UNCOMPRESSED else (syntax,)
        contexts = [(str(dataset.SOPClassUID), each) for each in syntaxes]
        with self._peer.association(what, contexts) as association:
            if not accepts(association, dataset.SOPClassUID):
                raise PacsRefused(
                    f"{self.name} does not take objects of SOP class {dataset.SOPClassUID.name}"
                    f" in {syntax.name} (instance {sop_uid}): let the archive accept it."
                )
            status = association.send_c_store(dataset)
        return self._remark(what, status)

    def _remark(self, what: str, status: Dataset) -> str:
        code = status.get("Status")
        if code == DUPLICATE:
            LOG.warning("%s answered %s: it has the instance (0x0111).", self.name, what)
            return IS_THERE
        error = answer_error(self.name, what, status)
        if error is not None:
            raise error
        if code not in STORE_WARNINGS:
            return ""
        LOG.warning("%s answered %s with a warning: %s.", self.name, what, STORE_WARNINGS[code])
        return f"the archive warns: {STORE_WARNINGS[code]} (0x{code:04X})"

    def _find(self, study_uid: str, series_uid: str, sop_uid: str) -> bool:
        what = f"the search for instance {sop_uid}"
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = study_uid
        query.SeriesInstanceUID = series_uid
        query.SOPInstanceUID = sop_uid
        found = False
        with self._peer.association(
            what, [(STUDY_ROOT_FIND, each) for each in UNCOMPRESSED]
        ) as association:
            if not accepts(association, STUDY_ROOT_FIND):
                raise PacsRefused(
                    f"{self.name} offers no C-FIND, so that nothing tells whether it has an"
                    " object: set dimse.ask_url to a DICOMweb URL of the archive."
                )
            for status, match in association.send_c_find(query, STUDY_ROOT_FIND):
                error = answer_error(self.name, what, status)
                if error is not None:
                    raise error
                if status.Status in PENDING and match is not None:
                    # Compared here too: an archive may ignore a key and answer with everything.
                    found = found or match.get("SOPInstanceUID") == sop_uid
        return found

    def _retried(self, call: Callable[[int], T]) -> T:
        for attempt in stamina.retry_context(
            on=_is_transient,
            attempts=self._settings.retries + 1,
            timeout=None,
            wait_initial=self._settings.retry_wait_s,
            wait_jitter=self._settings.retry_wait_s / 2,
            wait_max=WAIT_GROWTH * self._settings.retry_wait_s,
        ):
            with attempt:
                return call(attempt.num)
        raise RuntimeError("stamina made no attempt")


def open_dimse(
    url: str,
    settings: DimseSettings,
    pacs_url: str,
    pacs_settings: PacsSettings,
    commitments: Path,
) -> DimseArchive:
    """Open the archive at ``dimse://CALLED_AE_TITLE@host:port``; nothing is sent yet.

    Parameters
    ----------
    pacs_url, pacs_settings
        Where slides are read from: results are asked for there too when it is a DICOMweb URL and
        ``ask_url`` is empty.
    commitments
        Folder where storage commitment reports are noted.

    Raises
    ------
    ConfigurationInvalid
        The URL, an AE title or a TLS file is not usable.
    """
    ask_url = settings.ask_url or (pacs_url if pacs_url.startswith(("http:", "https:")) else "")
    return DimseArchive(
        DimsePeer(url, settings),
        settings,
        open_pacs(ask_url, pacs_settings) if ask_url else None,
        Commitments(commitments),
    )


def _report_tls(settings: DimseSettings) -> ssl.SSLContext | None:
    """TLS of the port for reports, where DIMSE is spoken over it; None for plain DIMSE."""
    if settings.ca_bundle is None or settings.certificate is None:
        return None
    return server_tls("dimse", settings.certificate, settings.key, settings.ca_bundle)


def _is_transient(error: Exception) -> bool:
    return isinstance(error, PacsError) and error.transient
