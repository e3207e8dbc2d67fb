"""What archives do of their own accord with what is stored in them: habits, before a real one."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import requests
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from tests.faulty_proxy import Answer, Forward, Request
from tests.servers import Orthanc

Repeat = Literal[
    "overwrites a repeat",
    "ignores a repeat",
    "refuses a repeat with 409",
    "refuses a repeat in a 202",
    "warns of a repeat",
    "deletes and re-adds a repeat",
]
Change = Literal[
    "",
    "spells names its own way",
    "renames patients",
    "moves objects to another patient",
    "drops ANN",
    "rounds ANN",
    "loses a group of ANN",
]
REPEATS: tuple[Repeat, ...] = Repeat.__args__  # type: ignore[attr-defined]
CHANGES: tuple[Change, ...] = Change.__args__  # type: ignore[attr-defined]
# With these no result may count as delivered.
HARMFUL = CHANGES[2:]
READDED_AFTER_S = 0.2
DUPLICATE, COERCED = 0x0111, 0xB000
# Repeat → what is said of an instance that is there.
REPEATED: dict[str, dict[str, int]] = {
    "ignores a repeat": {},
    "refuses a repeat with 409": {"status": 409, "failure": DUPLICATE},
    "refuses a repeat in a 202": {"status": 202, "failure": DUPLICATE},
    "warns of a repeat": {"status": 202, "warning": COERCED},
}


@dataclass(slots=True)
class ArchiveHabits:
    """An archive's habits; call it with a request and with what passes requests on.

    Attributes
    ----------
    repeat
        What it does with an instance that it has.
    shown_after_s
        Seconds until QIDO-RS and WADO-RS know of an instance.
    change
        What becomes of an instance as it is stored; empty for nothing.
    met
        Those that came about.
    """

    repeat: Repeat = "overwrites a repeat"
    shown_after_s: float = 0.0
    change: Change = ""
    met: set[str] = field(default_factory=set)
    _stored_s: dict[str, float] = field(default_factory=dict, repr=False)

    def over(self, orthanc: Orthanc) -> None:
        """End all habits, and remove what was stored changed, as its administrator would."""
        self.repeat, self.shown_after_s = "overwrites a repeat", 0.0
        if self.change in self.met:
            for uid in self._stored_s:
                _delete(orthanc.rest_url, uid)
        self.change = ""
        self._stored_s.clear()

    def answer(self, request: Request, forward: Forward, orthanc_url: str) -> Answer:
        """Answer a request as this archive does."""
        if request.method == "POST" and re.search(r"/studies(/[\d.]+)?$", request.path):
            return self._stored(request, forward, orthanc_url)
        asked = re.search(r"/instances/([\d.]+)", request.path)
        if asked and self._hides(asked[1]):
            return Answer(404, {"Content-Type": "application/json"}, b"{}")
        answer = forward(request)
        if re.search(r"/instances\?", request.path) and answer.status == 200:
            return self._listed(answer)
        return answer

    def _hides(self, uid: str) -> bool:
        hidden = time.monotonic() < self._stored_s.get(uid, 0.0) + self.shown_after_s
        if hidden:
            self.met.add("shows objects later")
        return hidden

    def _listed(self, answer: Answer) -> Answer:
        found = json.loads(answer.content or b"[]")
        shown = [item for item in found if not self._hides(item["00080018"]["Value"][0])]
        return Answer(answer.status, answer.headers, json.dumps(shown).encode())

    def _stored(self, request: Request, forward: Forward, orthanc_url: str) -> Answer:
        document = document_in(request)
        uid = str(document.SOPInstanceUID)
        if uid in self._stored_s:
            self.met.add(self.repeat)
            if self.repeat in REPEATED:
                return stow_answer(uid, **REPEATED[self.repeat])
        if self.repeat == "deletes and re-adds a repeat" and uid in self._stored_s:
            _delete(orthanc_url, uid)
            time.sleep(READDED_AFTER_S)
        if self.change == "drops ANN" and document.Modality == "ANN":
            self.met.add(self.change)
            return stow_answer(uid)
        changed = _changed(self.change, document)
        answer = forward(_request_of(request, document) if changed else request)
        if answer.status == 200:
            self._stored_s[uid] = time.monotonic()
            if changed:
                self.met.add(self.change)
                return stow_answer(uid, 202, warning=COERCED)
        return answer


def _changed(change: Change, document: Dataset) -> bool:
    """Change a document; whether there was something to change."""
    if change == "spells names its own way":
        document.PatientName = f"{document.get('PatientName') or 'DOE^JANE'}".upper() + "^^"
    elif change == "renames patients":
        document.PatientName = "SOMEBODY^ELSE"
    elif change == "moves objects to another patient":
        document.PatientID = "OF-SOMEBODY-ELSE"
    elif change == "rounds ANN" and document.Modality == "ANN":
        for group in document.AnnotationGroupSequence:
            points = np.frombuffer(group.PointCoordinatesData, np.float32)
            group.PointCoordinatesData = np.round(points, -1).tobytes()
    elif change == "loses a group of ANN" and document.Modality == "ANN":
        del document.AnnotationGroupSequence[-1]
    else:
        return False
    return True


def document_in(request: Request) -> Dataset:
    """The one document of a STOW-RS request: the node stores one at a time."""
    found = re.search(r'boundary="?([^";]+)', request.headers["Content-Type"])
    assert found is not None
    (part,) = request.body.split(b"--" + found[1].encode())[1:-1]
    return dcmread(io.BytesIO(part.split(b"\r\n\r\n", 1)[1][:-2]))


def _request_of(request: Request, document: Dataset) -> Request:
    """A request that stores one document."""
    written = io.BytesIO()
    dcmwrite(written, document)
    media = 'multipart/related; type="application/dicom"; boundary=habit'
    body = b"--habit\r\nContent-Type: application/dicom\r\n\r\n%s\r\n--habit--\r\n"
    return Request(
        request.method,
        request.path,
        body.replace(b"%s", written.getvalue()),
        {**request.headers, "Content-Type": media},
    )


def stow_answer(
    uid: str, status: int = 200, *, failure: int | None = None, warning: int | None = None
) -> Answer:
    """What STOW-RS says of one instance: stored, stored with a warning, or not (PS3.18 10.5.3)."""
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if failure is not None:
        item["00081197"] = {"vr": "US", "Value": [failure]}
    if warning is not None:
        item["00081196"] = {"vr": "US", "Value": [warning]}
    sequence = "00081199" if failure is None else "00081198"
    told = {sequence: {"vr": "SQ", "Value": [item]}}
    return Answer(status, {"Content-Type": "application/dicom+json"}, json.dumps(told).encode())


def _delete(orthanc_url: str, uid: str) -> None:
    found = requests.post(f"{orthanc_url}/tools/lookup", data=uid, timeout=30).json()
    for each in found:
        requests.delete(f"{orthanc_url}{each['Path']}", timeout=30).raise_for_status()
