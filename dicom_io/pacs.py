"""The PACS: a DICOMweb server or a folder of DICOM files, behind one interface.

Everything foreign ends here. Errors of requests, dicomweb-client, JSON and the file system leave
this module as the classes of :mod:`dicom_io.errors`. How a server is spoken to is in
:mod:`dicom_io.pacs_http`, and how its frames are had, in :mod:`dicom_io.frame_requests`.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from pydicom.dataset import Dataset

from dicom_io.bulk_data import read_bulk_data
from dicom_io.dicom_json import is_dicom_json, value
from dicom_io.errors import PacsAnswerInvalid, PacsNotFound, PacsRefused, PacsTimeout
from dicom_io.folder import FolderClient
from dicom_io.frame_requests import FrameRequests, InstanceReference
from dicom_io.multipart import MultipartTruncated, is_framed, joined
from dicom_io.pacs_errors import (
    DUPLICATE,
    FOREIGN_ERRORS,
    IS_THERE,
    duplicates_in,
    pacs_error,
    refusal_in,
    remark_in,
)
from dicom_io.pacs_http import Faults, Service, services, url_parts
from dicom_io.pacs_settings import PacsSettings, secret
from dicom_io.read_budget import MOST_FRAME_BYTES, ReadBudget
from dicom_io.request_size import Bounds, RequestSizes
from dicom_io.search import Search, fits_study
from dicom_io.series_metadata import read_series_headers
from dicom_io.whole_instances import WholeInstances

__all__ = ["InstanceReference", "Pacs", "PacsSettings", "open_pacs", "secret"]

T = TypeVar("T")
log = logging.getLogger(__name__)

STUDIES_PER_PAGE = 200
# 40 000 frames of a sparse level are 17 MB of metadata: no slide has sixty times as many.
MOST_METADATA_BYTES = 2**30
STEP_BYTES = 2**18


class _Archive(Protocol):
    """One service of an archive: its client, and how calls to it are made."""

    name: str
    client: Any

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that may be repeated."""

    def once(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that must not be repeated blindly."""


class _FrameSource(Protocol):
    """Where frames come from."""

    def frames(
        self,
        instance: InstanceReference,
        numbers: Sequence[int],
        transfer_syntax_uid: str | None,
        most_bytes: int,
        arrived: Callable[[list[bytes]], None],
    ) -> None:
        """Give stored bytes of frames, counted from 1, in the order of `numbers`, as they come.

        `most_bytes` is what one frame can have: what a server sends beyond that is not taken.
        `arrived` raises where nobody waits for frames any more, and may be given none to see that.
        """


class _Folder:
    """A folder of files, as a service and as a source of frames."""

    def __init__(self, url: str) -> None:
        self.name = f"The folder {urlsplit(url).path}"
        self.client: FolderClient = self.once("indexing its files", lambda: FolderClient(url))

    def ask(self, what: str, call: Callable[[], T]) -> T:
        return self.once(what, call)

    def once(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except FOREIGN_ERRORS as error:
            raise pacs_error(self.name, what, error) from error

    def frames(
        self,
        instance: InstanceReference,
        numbers: Sequence[int],
        transfer_syntax_uid: str | None,
        most_bytes: int,
        arrived: Callable[[list[bytes]], None],
    ) -> None:
        what = f"frames {numbers[0]} to {numbers[-1]} of instance {instance.sop_uid}"
        arrived(self.once(what, lambda: self.client.retrieve_instance_frames(*instance, numbers)))


class _Answer(NamedTuple):
    """Frames of one request, on their way.

    Attributes
    ----------
    request
    arrived
        Frames as they come, and None when the request has ended, in whichever way.
    """

    request: Future[None]
    arrived: SimpleQueue[list[bytes] | None]


class Pacs:
    """One archive: search, read, store.

    Made by :func:`open_pacs`; a context manager. May be used from several threads. Every method
    raises :class:`dicom_io.errors.PacsError` and its subclasses, and nothing foreign.
    """

    def __init__(
        self,
        archive: tuple[_Archive, _Archive, _Archive],
        source: _FrameSource,
        settings: PacsSettings,
        sizes: RequestSizes,
        faults: Faults,
        budget: ReadBudget,
        close: Callable[[], None],
    ) -> None:
        self.budget = budget
        self._query, self._retrieve, self._store = archive
        self.name = self._retrieve.name
        self._source, self._settings, self._sizes = source, settings, sizes
        self._faults, self._close = faults, close
        self._pool = ThreadPoolExecutor(settings.connections, thread_name_prefix="pacs")
        self._lock = threading.Lock()
        self._closing = False
        self._bytes_read = 0
        self._frames_read = 0
        self._waited_s: defaultdict[str, float] = defaultdict(float)

    def __enter__(self) -> Pacs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what is still asked for with the request that is on its way."""
        self._closing = True
        self._pool.shutdown(cancel_futures=True)
        self._close()
        if self._faults.counts:
            told = ", ".join(f"{kind} {count}" for kind, count in self.faults.most_common())
            log.warning("%s: what went wrong on the way: %s", self.name, told)

    @property
    def faults(self) -> Counter[str]:
        """What went wrong so far, and was overcome or reported: kind → how often."""
        return Counter(self._faults.counts)

    @property
    def bytes_read(self) -> int:
        """Bytes of frames received so far."""
        return self._bytes_read

    @property
    def frames_read(self) -> int:
        """Frames received so far."""
        return self._frames_read

    @property
    def frames_per_request(self) -> int:
        """Most frames of one request."""
        return self._settings.frames_per_request

    @property
    def connections(self) -> int:
        """Most requests in flight."""
        return self._settings.connections

    def search_instances(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """QIDO-RS: one DICOM JSON object per instance of the series; empty if there is none."""
        what = f"the search for series {series_uid}"
        client = self._query.client
        return self._datasets(
            self._query, what, lambda: client.search_for_instances(study_uid, series_uid)
        )

    def series_metadata(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """WADO-RS: metadata of every instance of the series as DICOM JSON objects."""
        what = f"the metadata of series {series_uid}"
        client = self._retrieve.client
        return self._datasets(
            self._retrieve, what, lambda: client.retrieve_series_metadata(study_uid, series_uid)
        )

    def series_headers(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """WADO-RS: the same without per-frame items, which a sparse level has by the thousand."""
        service, what = self._retrieve, f"the metadata of series {series_uid}"
        if not isinstance(service, Service):
            client = service.client
            return self._datasets(
                service, what, lambda: client.retrieve_series_headers(study_uid, series_uid)
            )
        raw = self.series_metadata_bytes(study_uid, series_uid)
        return _checked(service, what, read_series_headers(raw, service.name, series_uid))

    def series_metadata_bytes(self, study_uid: str, series_uid: str) -> bytes:
        """WADO-RS: the same as the archive sent it, for readers that walk it themselves.

        Of a sparse level it is tens of megabytes, of which datasets would make a hundred times
        as many.
        """
        service = self._retrieve
        if not isinstance(service, Service):
            return json.dumps(self.series_metadata(study_uid, series_uid)).encode()

        def read() -> bytes:
            path = f"studies/{study_uid}/series/{series_uid}/metadata"
            with service.get(path, "application/dicom+json") as response:
                told = joined(response.iter_content(STEP_BYTES), MOST_METADATA_BYTES)
                whole = response.status_code == HTTPStatus.NO_CONTENT or is_framed(response)
                if not whole and told.rstrip()[-1:] not in {b"]", b"}"}:
                    raise MultipartTruncated("the metadata ends before their end")
                return told

        return service.ask(f"the metadata of series {series_uid}", read)

    def search_studies(self, filters: Mapping[str, str]) -> list[dict[str, Any]]:
        """QIDO-RS: one DICOM JSON object per study that has these attributes."""
        client = self._query.client
        return self._datasets(
            self._query,
            "the search for studies",
            lambda: client.search_for_studies(search_filters=dict(filters)),
        )

    def search_slide_studies(self, search: Search) -> Iterator[str]:
        """QIDO-RS: UIDs of the studies with slides that are searched for.

        Archives page in their own ways. Some give everything at once or fewer than was asked for:
        they are asked until nothing new comes. Orthanc knows no offset where it is asked for
        modalities: where nothing comes after a full page, all is asked for at once.
        """
        if not isinstance(self._query, Service):  # a folder knows neither ranges nor wild cards
            for study in self.search_studies({}):
                if fits_study(search, study):
                    yield str(value(study, "StudyInstanceUID"))
            return
        wanted = {**search.matches, "ModalitiesInStudy": "SM"}
        told: dict[str, None] = {}
        full = False
        while True:
            page = {"limit": STUDIES_PER_PAGE} | ({"offset": len(told)} if told else {})
            found = dict.fromkeys(self._study_uids(wanted, page))
            fresh = [uid for uid in found if uid not in told]
            yield from fresh
            if not fresh:
                break
            told |= dict.fromkeys(fresh)
            full = len(found) == STUDIES_PER_PAGE
        if full:
            everything = dict.fromkeys(self._study_uids(wanted, {}))
            yield from (uid for uid in everything if uid not in told)

    def _study_uids(self, matches: Mapping[str, str], page: Mapping[str, int]) -> list[str]:
        client, what = self._query.client, "the search for studies with slides"
        studies = self._datasets(
            self._query, what, lambda: client.search_for_studies(search_filters=matches, **page)
        )
        return [str(value(study, "StudyInstanceUID")) for study in studies]

    def search_series(self, study_uid: str) -> list[dict[str, Any]]:
        """QIDO-RS: one DICOM JSON object per series of the study; empty if there is none."""
        what = f"the search for series of study {study_uid}"
        client = self._query.client
        return self._datasets(self._query, what, lambda: client.search_for_series(study_uid))

    def has_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> bool:
        """Whether the archive lists the instance."""
        try:
            found = self._datasets(
                self._query,
                f"the search for instance {sop_uid}",
                lambda: self._query.client.search_for_instances(
                    study_uid, series_uid, search_filters={"SOPInstanceUID": sop_uid}
                ),
            )
        except PacsNotFound:
            return False
        # Compared here too: an archive that ignores a filter answers with everything.
        return any(sop_uid in item.get("00080018", {}).get("Value", []) for item in found)

    def retrieve_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Dataset:
        """Read an instance back as it is stored."""
        client = self._retrieve.client
        dataset: Dataset = self._retrieve.ask(
            f"instance {sop_uid}",
            lambda: client.retrieve_instance(study_uid, series_uid, sop_uid),
        )
        if dataset.get("SOPInstanceUID") != sop_uid:
            raise PacsAnswerInvalid(
                f"{self.name} answered the request for instance {sop_uid} with another object:"
                " check the archive."
            )
        return dataset

    def store(self, datasets: Sequence[Dataset]) -> str:
        """STOW-RS; returns what the archive remarked, empty if nothing.

        Sent once: whether to send again is for the caller to ask with :meth:`has_instance`,
        because some archives duplicate or refuse what they are sent twice. One that says that it
        has an instance already has not failed: whether it is ours, reading it back tells.

        Raises
        ------
        PacsRefused
            Naming the first instance that was not taken.
        PacsBusy
            The same, out of resources.
        """
        wanted = {str(dataset.SOPInstanceUID) for dataset in datasets}
        what = f"storing instance {', '.join(sorted(wanted))}"
        client, name = self._store.client, self._store.name
        try:
            answer: Dataset = self._store.once(what, lambda: client.store_instances(datasets))
        except PacsRefused as refused:
            if refused.failure_reason != DUPLICATE:
                raise
            return IS_THERE
        failed = refusal_in(name, answer)
        if failed is not None and failed.failure_reason != DUPLICATE:
            raise failed
        taken = {str(i.ReferencedSOPInstanceUID) for i in answer.get("ReferencedSOPSequence", [])}
        there = duplicates_in(answer)
        missing = wanted - taken - there
        if missing:
            raise PacsAnswerInvalid(
                f"{name} did not say that it stored instance {min(missing)}:"
                " look for it in the archive and check that its STOW-RS answers as PS3.18 §10.5."
            )
        return "; ".join(filter(None, [remark_in(answer), IS_THERE if there else ""]))

    def bulk_data(self, uri: str) -> bytes:
        """Bytes of an attribute that the metadata name by a BulkDataURI (PS3.18 §8.6.1.2.2).

        Fetched from the archive and from `further_hosts` only, and credentials go to the archive
        alone. A relative URI counts from the retrieve service.
        """
        if not isinstance(self._retrieve, Service):
            raise PacsRefused(
                f"{self.name} gives no bulk data: read the instance whole (retrieve_instance)."
            )
        return read_bulk_data(self._retrieve, uri)

    def frames(
        self,
        instance: InstanceReference,
        numbers: Sequence[int],
        transfer_syntax_uid: str | None = None,
        most_bytes: int = MOST_FRAME_BYTES,
    ) -> Iterator[bytes]:
        """Stored bytes of frames, in the order of `numbers`.

        Parameters
        ----------
        instance
        numbers
            0-based frame numbers.
        transfer_syntax_uid
            Of the stored frames; None asks for whatever is stored.
        most_bytes
            That one frame can have (:func:`dicom_io.read_budget.most_frame_bytes`).

        Raises
        ------
        FrameInvalid
            A frame is missing from the archive, or empty.
        PacsAnswerInvalid
            A frame is longer than `most_bytes`, among others.
        """
        pending: deque[_Answer] = deque()
        start = 0
        left = threading.Event()
        ask = partial(self._part, instance, transfer_syntax_uid, most_bytes, left)
        try:
            while pending or start < len(numbers):
                start = self._submitted(instance, numbers, start, ask, pending)
                for frames in self._arriving(instance, pending[0]):
                    # The next request runs while the last of these frames are used.
                    start = self._submitted(instance, numbers, start, ask, pending)
                    yield from frames
                pending.popleft()
        finally:
            left.set()
            for answer in pending:
                answer.request.cancel()

    def _submitted(
        self,
        instance: InstanceReference,
        numbers: Sequence[int],
        start: int,
        ask: Callable[[Sequence[int], Callable[[list[bytes]], None]], None],
        pending: deque[_Answer],
    ) -> int:
        """Ask from `numbers[start]` on, as much as should be in flight; where it stopped."""
        while (
            start < len(numbers)
            and sum(not answer.request.done() for answer in pending) < self._sizes.connections
        ):
            size = self._sizes.frames(instance.sop_uid, len(numbers) - start)
            part = numbers[start : start + size]
            arrived: SimpleQueue[list[bytes] | None] = SimpleQueue()
            request = self._pool.submit(ask, part, arrived.put)
            request.add_done_callback(partial(_ended, arrived))
            pending.append(_Answer(request, arrived))
            start += len(part)
        return start

    def _arriving(self, instance: InstanceReference, answer: _Answer) -> Iterator[list[bytes]]:
        """Frames as they come, within what the slide has left."""
        while (frames := self._awaited(instance, answer)) is not None:
            yield frames
        answer.request.result()

    def _awaited(self, instance: InstanceReference, answer: _Answer) -> list[bytes] | None:
        waited_s = self._waited_s[instance.series_uid]
        begin = time.monotonic()
        try:
            return answer.arrived.get(timeout=max(0.0, self._settings.slide_deadline_s - waited_s))
        except Empty as error:
            raise PacsTimeout(
                f"{self.name} took more than {self._settings.slide_deadline_s:g} s to give the"
                f" frames of series {instance.series_uid}: try again later or raise"
                " slide_deadline_s."
            ) from error
        finally:
            with self._lock:
                self._waited_s[instance.series_uid] += time.monotonic() - begin

    def _part(
        self,
        instance: InstanceReference,
        transfer_syntax_uid: str | None,
        most_bytes: int,
        left: threading.Event,
        numbers: Sequence[int],
        arrived: Callable[[list[bytes]], None],
    ) -> None:
        one_based = [int(number) + 1 for number in numbers]  # DICOM counts frames from 1

        def counted(frames: list[bytes]) -> None:
            if self._closing or left.is_set():
                raise CancelledError
            n_bytes = sum(map(len, frames))
            with self._lock:
                self._bytes_read += n_bytes
                self._frames_read += len(frames)
            self.budget.fetched(n_bytes)
            arrived(frames)

        self._source.frames(instance, one_based, transfer_syntax_uid, most_bytes, counted)

    def _datasets(
        self, service: _Archive, what: str, call: Callable[[], Any]
    ) -> list[dict[str, Any]]:
        return _checked(service, what, service.ask(what, call))


def _checked(service: _Archive, what: str, answer: Any) -> list[dict[str, Any]]:
    if not isinstance(answer, list) or not all(is_dicom_json(item) for item in answer):
        raise PacsAnswerInvalid(
            f"{service.name} answered {what} with JSON that is not a list of DICOM datasets:"
            " check that the URL is that of a DICOMweb service."
        )
    return answer


def _ended(arrived: SimpleQueue[list[bytes] | None], request: Future[None]) -> None:
    arrived.put(None)


def open_pacs(url: str, settings: PacsSettings, budget: ReadBudget | None = None) -> Pacs:
    """Open the archive at `url`: ``https://…/dicom-web``, ``http://…`` or ``file:///folder``.

    Parameters
    ----------
    url
    settings
    budget
        Of the frames that are read; without it there is no bound.

    Raises
    ------
    ConfigurationInvalid
        The URL is none of these, or a secret cannot be read.
    PacsUnreachable
        The folder does not exist. A server is first spoken to by the first call.
    """
    sizes = RequestSizes(
        Bounds(settings.frames_per_request, settings.connections, settings.bytes_in_flight)
    )
    faults = Faults()
    budget = budget or ReadBudget()
    parts = url_parts(url)
    if parts.scheme == "file" and not parts.netloc:
        folder = _Folder(url)
        archive = (folder, folder, folder)
        return Pacs(archive, folder, settings, sizes, faults, budget, folder.client.close)
    query, retrieve, store = services(url, settings, faults)
    whole = WholeInstances(retrieve, settings.max_instance_bytes, settings.slide_deadline_s)
    source = FrameRequests(retrieve, whole, sizes, faults)
    return Pacs((query, retrieve, store), source, settings, sizes, faults, budget, whole.close)
