"""A worklist manager, as a performer speaks to it (UPS-RS user agent, PS3.18 §11).

What a manager refuses is raised as :class:`dicom_io.errors.WorkitemRefused`: it says that a
workitem is not the node's to change. Everything else that can go wrong is a
:class:`dicom_io.errors.PacsError`, as for an archive.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import requests
from simple_websocket import Client, ConnectionClosed, ConnectionError

from dicom_io.authentication import credentials
from dicom_io.dicom_json import Json, attributes, is_dicom_json, value
from dicom_io.errors import (
    ConfigurationInvalid,
    PacsAnswerInvalid,
    PacsNotFound,
    PacsRefused,
    PacsUnreachable,
    Refusal,
    WorkitemRefused,
)
from dicom_io.pacs_http import Faults, Service, archive_session
from dicom_io.pacs_settings import PacsSettings
from dicom_io.workitem import IN_PROGRESS, SCHEDULED, State, checked_uid, workitem_uid

T = TypeVar("T")
# Well-known UID of the worklist, PS3.6 annex A.
WORKLIST = "1.2.840.10008.5.1.4.34.5"
PAGE = 100
PING_S = 25
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT, HTTPStatus.GONE)


class WorklistManager:
    """One manager's worklist.

    Parameters
    ----------
    url
        Base URL of its UPS-RS service.
    settings
        How it is spoken to.
    aetitle
        Of this node, to which the manager sends events.

    Raises
    ------
    ConfigurationInvalid
        The URL is not usable, or a secret cannot be read.
    """

    def __init__(self, url: str, settings: PacsSettings, aetitle: str) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigurationInvalid(
                "ups.manager_url is not an address: write https://host/dicom-web."
            )
        self._settings, self._aetitle = settings, aetitle
        self._service = Service(
            url, archive_session((url,), settings, Faults()), settings, Faults()
        )
        self._service.name = self.name = f"The worklist manager {urlsplit(url).netloc}"
        # Whether an update names its Transaction UID in the address, as PS3.18 has it since 2019,
        # or in the dataset, as before and in DIMSE; found out by the first one.
        self._in_address: bool | None = None

    def scheduled(self) -> Iterator[Json]:
        """What a search tells of each scheduled workitem."""
        offset = 0
        while True:
            query = {"ProcedureStepState": SCHEDULED, "offset": offset, "limit": PAGE}
            found = self._datasets(f"workitems?{urlencode(query)}", "the list of workitems")
            for item in found:
                # Compared here too: a manager that ignores a key answers with everything.
                if value(item, "ProcedureStepState") in (SCHEDULED, None):
                    checked_uid(workitem_uid(item))
                    yield item
            if len(found) < PAGE:
                return
            offset += len(found)

    def retrieve(self, uid: str) -> Json:
        """One workitem.

        Raises
        ------
        WorkitemRefused
            There is none.
        """
        found = self._datasets(f"workitems/{uid}", f"workitem {uid}")
        if len(found) != 1:
            raise PacsAnswerInvalid(
                f"{self.name} answered the request for workitem {uid} with {len(found)} datasets: "
                "check that its URL is that of a UPS-RS service."
            )
        return found[0]

    def claim(self, uid: str, transaction_uid: str) -> None:
        """Become the performer of a workitem.

        Raises
        ------
        WorkitemRefused
            It has one.
        """
        self.change_state(uid, transaction_uid, IN_PROGRESS)

    def update(self, uid: str, transaction_uid: str, changes: Json) -> None:
        """Change attributes of a workitem that the node performs.

        Raises
        ------
        WorkitemRefused
        """
        if self._in_address is not None:
            self._update(uid, transaction_uid, changes, self._in_address)
            return
        try:
            self._update(uid, transaction_uid, changes, in_address=True)
            self._in_address = True
        except WorkitemRefused as error:
            if error.why is Refusal.UNKNOWN:
                raise
            self._update(uid, transaction_uid, changes, in_address=False)
            self._in_address = False

    def change_state(self, uid: str, transaction_uid: str, state: State) -> None:
        """Claim, complete or cancel a workitem.

        Raises
        ------
        WorkitemRefused
        """
        asked = attributes(ProcedureStepState=state, TransactionUID=transaction_uid)
        # Asked once: whether a request that was lost had come there is for the performer to find.
        self._mapped(
            lambda: self._service.once(
                f"the change of workitem {uid} to {state}",
                lambda: self._service.send("PUT", f"workitems/{uid}/state", [asked]),
            )
        )

    def subscribe(self, uid: str = WORKLIST) -> None:
        """Let the manager tell this node of a workitem, or of all.

        Raises
        ------
        WorkitemRefused
        """
        path = f"workitems/{uid}/subscribers/{self._aetitle}?deletionlock=false"
        self._mapped(
            lambda: self._service.ask(
                "the subscription", lambda: self._service.send("POST", path, [])
            )
        )

    def events(self, stopped: Callable[[], bool], wait_s: float) -> Iterator[Json | None]:
        """Event reports as they come, and None whenever none came for a while.

        The connection goes to the manager's own host alone: it shows the node's credentials.

        Raises
        ------
        PacsError
            There is no connection, or it was lost.
        """
        try:
            socket = self._socket()
        except (ConnectionError, ConnectionClosed, OSError, ValueError) as error:
            raise PacsUnreachable(
                f"{self.name} gives no event connection ({type(error).__name__}): its list is "
                "looked at from time to time instead."
            ) from error
        try:
            while not stopped():
                text = socket.receive(timeout=wait_s)
                yield None if text is None else _report(self.name, text)
        except (ConnectionClosed, OSError) as error:
            raise PacsUnreachable(f"{self.name} ended the event connection.") from error
        finally:
            if socket.connected:
                socket.close()

    def _update(self, uid: str, transaction_uid: str, changes: Json, in_address: bool) -> None:
        path = f"workitems/{uid}{f'?{transaction_uid}' if in_address else ''}"
        lock = {} if in_address else attributes(TransactionUID=transaction_uid)
        self._mapped(
            lambda: self._service.ask(
                f"the update of workitem {uid}",
                lambda: self._service.send("POST", path, [changes | lock]),
            )
        )

    def _socket(self) -> Any:
        url = f"{self._service.url}/subscribers/{self._aetitle}"
        signed = requests.Request("GET", url).prepare()
        proof = credentials(self._settings)
        proof.sign(signed)
        secure = url.startswith("https")
        context = ssl.create_default_context(cafile=self._settings.ca_bundle) if secure else None
        if context is not None and proof.certificate is not None:
            files = proof.certificate
            context.load_cert_chain(*([files] if isinstance(files, str) else files))
        headers = dict(signed.headers) | {"User-Agent": self._settings.user_agent}
        address = f"ws{url.removeprefix('http')}"
        return Client(address, headers=headers, ping_interval=PING_S, ssl_context=context)

    def _datasets(self, path: str, what: str) -> list[Json]:
        def read() -> Any:
            with self._service.get(path, "application/dicom+json") as response:
                return [] if response.status_code == HTTPStatus.NO_CONTENT else response.json()

        answer = self._mapped(lambda: self._service.ask(what, read))
        items = [answer] if isinstance(answer, dict) else answer
        if not isinstance(items, list) or not all(is_dicom_json(item) for item in items):
            raise PacsAnswerInvalid(
                f"{self.name} answered {what} with something that is not DICOM JSON: check that "
                "its URL is that of a UPS-RS service."
            )
        return items

    def _mapped(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except PacsNotFound as error:
            raise WorkitemRefused(str(error), Refusal.UNKNOWN) from error
        except PacsRefused as error:
            if error.status in _REFUSED:
                gone = error.status == HTTPStatus.GONE
                why = Refusal.UNKNOWN if gone else Refusal.CLAIMED
                raise WorkitemRefused(str(error), why) from error
            raise


def _report(name: str, text: Any) -> Json:
    try:
        report = json.loads(text)
    except (ValueError, TypeError):
        report = None
    items = report if isinstance(report, list) else [report]
    if len(items) != 1 or not is_dicom_json(items[0]):
        raise PacsAnswerInvalid(f"{name} sent an event report that is not DICOM JSON.")
    item: Json = items[0]
    return item
