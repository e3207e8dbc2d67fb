"""What the node makes of each status that it is answered, and which ones it answers itself.

What the code does with a status is asked of the code itself, so that the statement cannot say
anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

import requests
from pydicom.dataset import Dataset

from dicom_io.commitment import NO_SUCH_TRANSACTION, NOT_TAKEN, TAKEN
from dicom_io.dimse_errors import COMMITMENT_FAILURES, SUCCESS, answer_error
from dicom_io.pacs_errors import (
    DUPLICATE,
    FAILURE_CLASSES,
    FAILURE_REASONS,
    STORE_WARNINGS,
    pacs_error,
    refusal_in,
)
from dicom_io.receiver import CANNOT_UNDERSTAND, CLASS_MISMATCH, OUT_OF_RESOURCES, STORED
from dicom_io.receiver import DUPLICATE as ANOTHER_CONTENT
from models.errors import MarrowNodeError

# HTTP statuses of a DICOMweb origin server that the node tells apart (PS3.18 section 8.5).
HTTP_STATUSES = (400, 401, 403, 404, 406, 408, 409, 413, 415, 429, 500, 501, 502, 503)
WORKER_ENDINGS = (
    (74, "worker: the job database cannot be written; started again, it goes on"),
    (75, "worker: silent for longer than jobs.lease_s, others have its jobs; start it again"),
    (76, "worker: it can start no process for a slide; started again, it goes on"),
)


@dataclass(frozen=True, slots=True)
class Status:
    """A status and what the node does with it, or when it gives it.

    Attributes
    ----------
    code
        As it is written in statements: ``0xA700``, or ``409``.
    meaning
    behaviour
    """

    code: str
    meaning: str
    behaviour: str


# HTTP statuses that the node itself answers as an origin server of DICOMweb.
SERVED_STATUSES: tuple[tuple[int, str], ...] = (
    (200, "success; also of a search without results"),
    (206, "part of one instance or value, as Range asks"),
    (304, "the client has it already (ETag)"),
    (400, "a search by what cannot be matched, or malformed"),
    (401, "credentials are missing or not known"),
    (403, "the role `read` is missing"),
    (404, "no such study, series, instance or bulk data among the results"),
    (405, "any method but GET and HEAD: nothing can be stored or deleted"),
    (406, "another media type or transfer syntax than those above"),
    (416, "the range lies outside"),
    (429, "too many requests in a second"),
    (503, "a result was purged while it was read"),
)
# Warnings of PS3.18 sections 11.6.3.2 and 11.7.3.2.
_UPS_STATE = "The submitted request is inconsistent with the state of the UPS Instance."
_UPS_CLAIM = "The target URI did not reference a claimed Workitem."
_UPS_CURRENT = "The submitted request is inconsistent with the current state of the Workitem."
# What the origin server answers when it refuses; PS3.4 annex CC → status and warning of PS3.18.
UPS_STATUSES: tuple[Status, ...] = (
    Status("400", "", "a value, a UID or the dataset is not what the standard has"),
    Status("400", "", "C309: created in another state than SCHEDULED"),
    Status("400", "", "C314: suspension of what is no worklist's subscription"),
    Status("400", "The Transaction UID is missing.", "C301"),
    Status("400", "The Transaction UID is incorrect.", "C301"),
    Status("400", _UPS_STATE, "C303: to SCHEDULED"),
    Status("404", "", "C307: workitem or subscription unknown"),
    Status("406", "", "another media type than DICOM JSON and XML is asked for"),
    Status("409", "", "0111: the workitem exists"),
    Status("409", _UPS_STATE, "C300, C302, C304, C310, C311, C312"),
    Status("410", "", "C307: the workitem was deleted after its end"),
    Status("415", "", "the body is neither DICOM JSON nor DICOM XML"),
    Status("400", _UPS_CLAIM, "an update: C301"),
    Status("400", _UPS_CURRENT, "an update: C300, or an attribute that it may not set"),
    Status("409", _UPS_CLAIM, "an update: C310"),
)


def storage_scu_statuses() -> Iterator[Status]:
    """What becomes of a result by the status of its C-STORE response."""
    yield Status(_hex(SUCCESS), "success", "The result counts as stored.")
    for code, meaning in STORE_WARNINGS.items():
        yield Status(
            _hex(code), f"warning: {meaning}", f"{_stored(code)} The receipt tells the warning."
        )
    for code, meaning in FAILURE_REASONS.items():
        if code == DUPLICATE:
            yield Status(_hex(code), meaning, "The result counts as stored; the receipt tells it.")
            continue
        yield Status(_hex(code), meaning, _after_failure(code))
    for high, meaning in _failure_classes():
        yield Status(high, meaning, _after_failure(int(high[2:4], 16) << 8))
    yield Status("no response", "time-out or broken association", _after_failure(None))


def _failure_classes() -> Iterator[tuple[str, str]]:
    """``0xA7xx``; those of one meaning in a row told once, as ``0xC0xx`` to ``0xCFxx``."""
    told: set[str] = set()
    for high, meaning in FAILURE_CLASSES.items():
        if meaning not in told:
            told.add(meaning)
            same = [each for each, other in FAILURE_CLASSES.items() if other == meaning]
            last = f" to 0x{same[-1]:02X}xx" if len(same) > 1 else ""
            yield f"0x{high:02X}xx{last}", meaning


def _after_failure(code: int | None) -> str:
    """What the code makes of a status."""
    answer = Dataset()
    if code is not None:
        answer.Status = code
    error = answer_error("the archive", "storing", answer)
    return _stored(code) if error is None else after_error(error)


def _stored(code: int | None) -> str:
    answer = Dataset()
    answer.Status = code
    error = answer_error("the archive", "storing", answer)
    return "The result counts as stored." if error is None else after_error(error)


def after_error(error: MarrowNodeError) -> str:
    """In words: whether it is tried again, and how the job ends."""
    again = "Tried again; if it stays so, the" if error.transient else "Not tried again; the"
    return f"{again} job ends with code {error.exit_code} ({type(error).__name__})."


def storage_scp_statuses() -> tuple[Status, ...]:
    """When `marrow-node receive` answers what."""
    return (
        Status(_hex(STORED), "success", "The object is whole, in the archive and on the disk."),
        Status(
            _hex(ANOTHER_CONTENT),
            "duplicate SOP instance",
            "An object of this UID with other content is here; the first is kept. The same "
            "content again is a success.",
        ),
        Status(_hex(OUT_OF_RESOURCES), "out of resources", "The disk cannot be written."),
        Status(
            _hex(CLASS_MISMATCH),
            "data set does not match SOP class",
            "The UIDs of command and data set differ.",
        ),
        Status(
            _hex(CANNOT_UNDERSTAND),
            "cannot understand",
            "The data set, or one of its UIDs, cannot be read.",
        ),
    )


def commitment_statuses() -> Iterator[Status]:
    """Failure Reason (0008,1197) of a storage commitment report, then the node's own answers."""
    for code, meaning in COMMITMENT_FAILURES.items():
        yield Status(
            _hex(code), f"in the report: {meaning}", "The job ends with code 35 (PacsRefused)."
        )
    yield Status(_hex(TAKEN), "answer to a report", "The outcome is noted.")
    yield Status(
        _hex(NO_SUCH_TRANSACTION), "answer to a report", "No such transaction was asked for."
    )
    yield Status(_hex(NOT_TAKEN), "answer to a report", "The outcome could not be noted.")


def web_statuses() -> Iterator[Status]:
    """What becomes of a DICOMweb request by its HTTP status."""
    for code in HTTP_STATUSES:
        response = requests.Response()
        response.status_code = code
        error = pacs_error("the archive", "it", requests.HTTPError(response=response))
        yield Status(str(code), HTTPStatus(code).phrase, after_error(error))


def store_reasons() -> Iterator[Status]:
    """Failure Reason (0008,1197), then Warning Reason (0008,1196), in a STOW-RS response."""
    for code, meaning in FAILURE_REASONS.items():
        if code == DUPLICATE:
            yield Status(_hex(code), meaning, "The result counts as stored; the receipt tells it.")
            continue
        yield Status(_hex(code), meaning, _after_refusal(code))
    for high, meaning in _failure_classes():
        yield Status(high, meaning, _after_refusal(int(high[2:4], 16) << 8))
    for code, meaning in STORE_WARNINGS.items():
        yield Status(
            _hex(code),
            f"warning: {meaning}",
            "The result counts as stored. The receipt tells the warning.",
        )


def _after_refusal(code: int) -> str:
    item, answer = Dataset(), Dataset()
    item.FailureReason = code
    answer.FailedSOPSequence = [item]
    refused = refusal_in("the archive", answer)
    if refused is None:
        raise RuntimeError(f"0x{code:04X} is no refusal")
    return after_error(refused)


def exit_codes() -> list[tuple[int, str]]:
    """(code, meaning) of every way a job, or the worker it runs in, can end."""
    known = {(0, "done: everything asked for is delivered and reconciled"), *WORKER_ENDINGS}
    waiting: list[type[MarrowNodeError]] = [MarrowNodeError]
    while waiting:
        error = waiting.pop()
        known.add((error.exit_code, error.meaning))
        waiting.extend(error.__subclasses__())
    return sorted(known)


def _hex(code: int) -> str:
    return f"0x{code:04X}"
