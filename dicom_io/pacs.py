"""The PACS: a DICOMweb server or a folder of DICOM files, behind one interface.

Everything foreign ends here. Errors of requests, dicomweb-client, JSON and the file system leave
this module as the classes of :mod:`dicom_io.errors`; only transient ones are tried again.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import requests
import stamina
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from dicom_io.dicom_json import is_dicom_json
from dicom_io.errors import (
    ConfigurationInvalid,
    FrameInvalid,
    PacsAnswerInvalid,
    PacsError,
    PacsNotFound,
    PacsRefused,
)
from dicom_io.folder import FolderClient
from dicom_io.pacs_errors import FOREIGN_ERRORS, pacs_error, refusal_in

T = TypeVar("T")

# Media type in which a server gives the stored bytes of a transfer syntax (PS3.18 table 8.7.3-5).
# Asked for by name, because a media type without transfer syntax makes some archives re-encode.
# Only those that the stream itself tells for sure: a lossless JPEG 2000 stream may be stored under
# .90 or .91 (JPEG-LS: .80 or .81; HTJ2K and JPEG XL: three), and an archive that is asked for the
# other one transcodes or fails. Those are asked for as they are stored.
MEDIA_TYPES = {
    "1.2.840.10008.1.2.1": "application/octet-stream",
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
AS_STORED = ("application/octet-stream", "*")


class InstanceReference(NamedTuple):
    """Where an instance lies."""

    study_uid: str
    series_uid: str
    sop_uid: str


@dataclass(frozen=True, slots=True)
class PacsSettings:
    """How the archive is spoken to.

    Attributes
    ----------
    timeout_s
        Seconds to connect, and seconds without a byte, after which a request counts as lost.
    retries
        Attempts after the first one, for transient failures only.
    retry_wait_s
        Seconds before the second attempt; doubled for each further one.
    connections
        Requests in flight at a time.
    frames_per_request
        Frames asked for in one request: archives that read the whole stored file for every
        request want many; the URL grows by up to seven characters a frame.
    username
        For HTTP basic authentication, with `password`.
    password, bearer_token
        Where the secret lies: ``env:NAME`` or ``file:/path``; never the secret itself.
    headers
        Further request headers; a value may be ``env:NAME`` or ``file:/path`` too.
    ca_bundle
        PEM file of the certificate authority of an archive inside the hospital.
    """

    timeout_s: float = 30.0
    retries: int = 3
    retry_wait_s: float = 0.5
    connections: int = 4
    frames_per_request: int = 200
    username: str | None = None
    password: str | None = None
    bearer_token: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_bundle: Path | None = None


class Pacs:
    """One archive: search, read, store.

    Made by :func:`open_pacs`; a context manager. May be used from several threads. Every method
    raises :class:`dicom_io.errors.PacsError` and its subclasses, and nothing foreign.
    """

    def __init__(
        self, name: str, client: DICOMwebClient | FolderClient, settings: PacsSettings
    ) -> None:
        self.name = name
        self._client = client
        self._settings = settings
        self._pool = ThreadPoolExecutor(settings.connections, thread_name_prefix="pacs")
        self._lock = threading.Lock()
        self._bytes_read = 0
        self._frames_read = 0

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
        self._pool.shutdown(cancel_futures=True)
        if isinstance(self._client, FolderClient):
            self._client.close()

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
        return self._settings.frames_per_request

    @property
    def connections(self) -> int:
        return self._settings.connections

    def search_instances(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """QIDO-RS: one DICOM JSON object per instance of the series; empty if there is none."""
        what = f"the search for series {series_uid}"
        return self._datasets(
            what, lambda: self._client.search_for_instances(study_uid, series_uid)
        )

    def series_metadata(self, study_uid: str, series_uid: str) -> list[dict[str, Any]]:
        """WADO-RS: metadata of every instance of the series as DICOM JSON objects."""
        what = f"the metadata of series {series_uid}"
        return self._datasets(
            what, lambda: self._client.retrieve_series_metadata(study_uid, series_uid)
        )

    def has_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> bool:
        """Whether the archive lists the instance."""
        try:
            found = self._datasets(
                f"the search for instance {sop_uid}",
                lambda: self._client.search_for_instances(
                    study_uid, series_uid, search_filters={"SOPInstanceUID": sop_uid}
                ),
            )
        except PacsNotFound:
            return False
        # Compared here too: an archive that ignores a filter answers with everything.
        return any(sop_uid in item.get("00080018", {}).get("Value", []) for item in found)

    def retrieve_instance(self, study_uid: str, series_uid: str, sop_uid: str) -> Dataset:
        """Read an instance back as it is stored."""
        dataset = self._asked(
            f"instance {sop_uid}",
            lambda: self._client.retrieve_instance(study_uid, series_uid, sop_uid),
        )
        if dataset.get("SOPInstanceUID") != sop_uid:
            raise PacsAnswerInvalid(
                f"{self.name} answered the request for instance {sop_uid} with another object:"
                " check the archive."
            )
        return dataset

    def store(self, datasets: Sequence[Dataset]) -> None:
        """STOW-RS; raises PacsRefused naming the first instance that was not taken.

        Sent once: whether to send again is for the caller to ask with :meth:`has_instance`,
        because some archives duplicate or refuse what they are sent twice.
        """
        wanted = {str(dataset.SOPInstanceUID) for dataset in datasets}
        what = f"storing instance {', '.join(sorted(wanted))}"
        answer = self._once(what, lambda: self._client.store_instances(datasets))
        refused = refusal_in(self.name, answer)
        if refused is not None:
            raise refused
        taken = {str(i.ReferencedSOPInstanceUID) for i in answer.get("ReferencedSOPSequence", [])}
        if not wanted <= taken:
            raise PacsAnswerInvalid(
                f"{self.name} did not say that it stored instance {min(wanted - taken)}:"
                " look for it in the archive and check that its STOW-RS answers as PS3.18 §10.5."
            )

    def frames(
        self,
        instance: InstanceReference,
        numbers: Sequence[int],
        transfer_syntax_uid: str | None = None,
    ) -> Iterator[bytes]:
        """Stored bytes of frames, in the order of `numbers`.

        Parameters
        ----------
        instance
        numbers
            0-based frame numbers.
        transfer_syntax_uid
            Of the stored frames; None asks for whatever is stored.

        Raises
        ------
        FrameInvalid
            A frame is missing from the answer, or empty.
        """
        size = self._settings.frames_per_request
        parts = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        pending: deque[Future[list[bytes]]] = deque()
        try:
            for part in parts:
                pending.append(self._pool.submit(self._part, instance, part, transfer_syntax_uid))
                if len(pending) > self._settings.connections:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def bulk_data(self, uri: str) -> bytes:
        """What lies behind a BulkDataURI of this archive.

        Only its path is used, under the configured address: data never send the node elsewhere,
        and archives behind a proxy write hosts and ports that cannot be reached (Orthanc leaves
        out its port).

        Raises
        ------
        PacsRefused
            The path is not one under the archive's own.
        """
        client, path = self._client, urlsplit(uri).path
        own = urlsplit("" if isinstance(client, FolderClient) else str(client.base_url))
        if isinstance(client, FolderClient) or not path.startswith(own.path) or ".." in path:
            raise PacsRefused(
                f"{self.name} gives bulk data under another address than its own: correct the"
                " BulkDataURI that the archive writes."
            )
        address = f"{own.scheme}://{own.netloc}{path}"
        kind = ("application/octet-stream",)
        return b"".join(
            self._asked("bulk data", lambda: list(client.retrieve_bulkdata(address, kind)))
        )

    def _part(
        self, instance: InstanceReference, numbers: Sequence[int], transfer_syntax_uid: str | None
    ) -> list[bytes]:
        one_based = [number + 1 for number in numbers]  # DICOM counts frames from 1
        what = f"frames {one_based[0]} to {one_based[-1]} of instance {instance.sop_uid}"
        frames = self._asked(what, lambda: self._request(instance, one_based, transfer_syntax_uid))
        # Orthanc leaves a frame it does not have out of the answer and says 200.
        if len(frames) != len(one_based):
            raise FrameInvalid(
                f"{self.name} gave {len(frames)} of {len(one_based)} frames asked for between"
                f" frame {min(one_based)} and {max(one_based)} of instance {instance.sop_uid}:"
                " store the instance again, complete."
            )
        for number, frame in zip(one_based, frames, strict=True):
            if not frame:
                raise FrameInvalid(
                    f"Frame {number} of instance {instance.sop_uid} is empty:"
                    " store the instance again, complete."
                )
        with self._lock:
            self._bytes_read += sum(len(frame) for frame in frames)
            self._frames_read += len(frames)
        return frames

    def _request(
        self, instance: InstanceReference, one_based: list[int], transfer_syntax_uid: str | None
    ) -> list[bytes]:
        if isinstance(self._client, FolderClient):
            return self._client.retrieve_instance_frames(*instance, one_based)
        media = AS_STORED
        if transfer_syntax_uid in MEDIA_TYPES:
            media = (MEDIA_TYPES[transfer_syntax_uid], transfer_syntax_uid)
        frames: list[bytes] = self._client.retrieve_instance_frames(
            *instance, one_based, media_types=(media,)
        )
        return frames

    def _datasets(self, what: str, call: Callable[[], Any]) -> list[dict[str, Any]]:
        answer = self._asked(what, call)
        if not isinstance(answer, list) or not all(is_dicom_json(item) for item in answer):
            raise PacsAnswerInvalid(
                f"{self.name} answered {what} with JSON that is not a list of DICOM datasets:"
                " check that the URL is that of a DICOMweb service."
            )
        return answer

    def _asked(self, what: str, call: Callable[[], T]) -> T:
        """Make a call that may be repeated."""
        for attempt in stamina.retry_context(
            on=_is_transient,
            attempts=self._settings.retries + 1,
            timeout=None,
            wait_initial=self._settings.retry_wait_s,
            wait_jitter=self._settings.retry_wait_s / 2,
        ):
            with attempt:
                return self._once(what, call)
        raise RuntimeError("stamina made no attempt")

    def _once(self, what: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except FOREIGN_ERRORS as error:
            raise pacs_error(self.name, what, error) from error


def _is_transient(error: Exception) -> bool:
    return isinstance(error, PacsError) and error.transient


def open_pacs(url: str, settings: PacsSettings) -> Pacs:
    """Open the archive at `url`: ``https://…/dicom-web``, ``http://…`` or ``file:///folder``.

    Raises
    ------
    ConfigurationInvalid
        The URL is none of these, or a secret cannot be read.
    PacsUnreachable
        The folder does not exist. A server is first spoken to by the first call.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc:
        name = f"The folder {parts.path}"
        try:
            return Pacs(name, FolderClient(url), settings)
        except FOREIGN_ERRORS as error:
            raise pacs_error(name, "indexing its files", error) from error
    if parts.scheme in {"http", "https"} and parts.hostname and parts.username is None:
        return Pacs(f"The PACS {parts.netloc}", _web_client(url, settings), settings)
    raise ConfigurationInvalid(
        f"The PACS URL with scheme {parts.scheme!r} is not usable: write https://host/dicom-web,"
        " http://host/dicom-web or file:///folder, without a user name in it."
    )


def _web_client(url: str, settings: PacsSettings) -> DICOMwebClient:
    session = requests.Session()
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=settings.connections, pool_block=True)
    session.mount(f"{urlsplit(url).scheme}://", adapter)
    session.headers["User-Agent"] = "marrow-node"
    # Only STOW-RS sends no Accept of its own; some archives would answer it in XML.
    session.headers["Accept"] = "application/dicom+json"
    session.headers.update({name: secret(value) for name, value in settings.headers.items()})
    if settings.bearer_token is not None:
        session.headers["Authorization"] = f"Bearer {_hidden(settings.bearer_token)}"
    if settings.username is not None and settings.password is not None:
        session.auth = (settings.username, _hidden(settings.password))
    if settings.ca_bundle is not None:
        session.verify = str(settings.ca_bundle)
    session.hooks["response"].append(_plain_media_type)
    client = DICOMwebClient(url.rstrip("/"), session=session, timeout=settings.timeout_s)
    client.set_http_retry_params(retry=False)  # retried here, with one policy
    return client


def _plain_media_type(response: requests.Response, **_: Any) -> requests.Response:
    """Cut ``; charset=…`` off a JSON media type: the client compares it as a whole."""
    media_type = response.headers.get("Content-Type", "")
    if media_type.startswith(("application/dicom+json", "application/json")):
        response.headers["Content-Type"] = media_type.split(";")[0].strip()
    return response


def _hidden(reference: str) -> str:
    """Read a secret that must not stand in the settings themselves."""
    if not reference.startswith(("env:", "file:")):
        raise ConfigurationInvalid(
            "A password or bearer token stands in the PACS settings: put it into an environment"
            " variable or a file and write env:NAME or file:/path."
        )
    return secret(reference)


def secret(reference: str) -> str:
    """Read a secret from where `reference` says: ``env:NAME`` or ``file:/path``, else itself."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        if where not in os.environ:
            raise ConfigurationInvalid(f"The environment variable {where} is not set: set it.")
        return os.environ[where]
    if kind == "file":
        try:
            return Path(where).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigurationInvalid(
                f"The secret file {where} cannot be read ({error.strerror}): check path and rights."
            ) from error
    return reference
