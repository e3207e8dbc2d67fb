"""Foreign errors of the PACS side → the tree in :mod:`dicom_io.errors`.

dicomweb-client raises ``ValueError`` for most of what a server can do wrong, so everything that a
call to it can raise is listed here, once.
"""

from __future__ import annotations

import json
import re
import struct
import time
import zlib
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import requests
import urllib3
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_io.deadline import body_timeout
from dicom_io.errors import (
    PacsAnswerInvalid,
    PacsBusy,
    PacsError,
    PacsNotFound,
    PacsRefused,
    PacsTimeout,
    PacsUnauthorized,
    PacsUnreachable,
)
from dicom_io.multipart import AnswerTooLarge, MultipartTruncated

FOREIGN_ERRORS = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    InvalidDicomError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)

DUPLICATE = 0x0111
OUT_OF_RESOURCES = 0xA7  # A7xx
IS_THERE = "the archive says that it had the instance already (0x0111)"
# Failure Reason (0008,1197) of a STOW answer, PS3.4 table B.2-1 and PS3.18 §10.5.3 (I.2.2).
FAILURE_REASONS = {
    0x0110: "processing failure",
    DUPLICATE: "duplicate SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0131: "SOP class and instance do not belong together",
    0x0117: "invalid SOP instance UID",
    0xC122: "transfer syntax not supported",
}
# Of those given as A7xx, A9xx, Cxxx: by their first two digits.
FAILURE_CLASSES = {
    OUT_OF_RESOURCES: "out of resources",
    0xA9: "dataset does not match SOP class",
    **dict.fromkeys(range(0xC0, 0xD0), "cannot understand"),
}
# An object was stored, but: Warning Reason (0008,1196) and C-STORE status, PS3.4 table B.2-1.
STORE_WARNINGS = {
    0xB000: "it coerced data elements",
    0xB006: "it discarded data elements",
    0xB007: "it says that the data set does not match its SOP class",
}

# Read from the top: a later line is for what the lines before it left.
SENTENCES: tuple[tuple[type[Exception], type[PacsError], str], ...] = (
    (
        requests.exceptions.ConnectTimeout,
        PacsTimeout,
        "{name} could not be connected to for {what} in time: check that it runs and that the URL"
        " is right.",
    ),
    (
        requests.Timeout,
        PacsTimeout,
        "{name} did not answer {what} in time: try again later or raise the PACS timeout.",
    ),
    (
        requests.exceptions.SSLError,
        PacsError,
        "{name} could not prove who it is when asked for {what}: give the certificate of its"
        " authority in the settings (ca_bundle).",
    ),
    (
        requests.exceptions.InvalidSchema,
        PacsRefused,
        "{name} led {what} to {elsewhere}, which is not configured, so it was not followed: add its"
        " origin to further_hosts in the settings if it belongs to the archive.",
    ),
    (
        requests.exceptions.TooManyRedirects,
        PacsAnswerInvalid,
        "{name} redirected {what} in a circle: check that the URL is that of a DICOMweb service.",
    ),
    (
        urllib3.exceptions.TimeoutError,
        PacsTimeout,
        "{name} sent {what} too slowly and was cut off: try again later or raise"
        " request_deadline_s.",
    ),
    (
        MultipartTruncated,
        PacsUnreachable,
        "{name} cut off {what} in the middle: check that it runs and what lies between.",
    ),
    (
        AnswerTooLarge,
        PacsAnswerInvalid,
        "{name} sent more for {what} than such an object can have, and was cut off: store the"
        " object again and check what lies between.",
    ),
    (
        json.JSONDecodeError,  # that of requests is one too
        PacsAnswerInvalid,
        "{name} answered {what} with something that is not JSON: check that the URL is that of a"
        " DICOMweb service.",
    ),
    (
        requests.RequestException,
        PacsUnreachable,
        "{name} could not be reached or cut the connection during {what}: check that it runs and"
        " that the URL is right.",
    ),
    (
        urllib3.exceptions.HTTPError,
        PacsUnreachable,
        "{name} cut the connection during {what}: check that it runs.",
    ),
    (
        OSError,
        PacsUnreachable,
        "{name} could not be read or written during {what} ({kind}): check its path, space and"
        " access rights.",
    ),
    (
        Exception,
        PacsAnswerInvalid,
        "{name} answered {what} with something that is not DICOMweb ({kind}): check that the URL"
        " is that of a DICOMweb service and that its files are whole.",
    ),
)


def pacs_error(name: str, what: str, error: Exception) -> PacsError:
    """Say in one sentence what happened when `what` was asked of the archive `name`."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _with_status(_by_status(name, what, error.response), error.response)
    cause = body_timeout(error) or error
    for foreign, ours, sentence in SENTENCES:
        if isinstance(cause, foreign):
            words = {"kind": type(cause).__name__, "elsewhere": _origin_in(str(cause))}
            return ours(sentence.format(name=name, what=what, **words))
    raise error


def fault_kind(error: PacsError, cause: Exception) -> str:
    """Short name of what went wrong, for counting; `cause` is the foreign error behind it."""
    if error.status is not None:
        return f"status {error.status}"
    if isinstance(cause, TRUNCATED):
        return "truncated answer"
    if isinstance(error, PacsAnswerInvalid) and error.frames_given is not None:
        return "wrong number of frames"
    return KINDS.get(type(error), "answer not understood")


TRUNCATED = (
    MultipartTruncated,
    urllib3.exceptions.ProtocolError,
    requests.exceptions.ChunkedEncodingError,
)
KINDS: dict[type[PacsError], str] = {
    PacsTimeout: "no answer in time",
    PacsUnreachable: "connection lost",
    PacsRefused: "refused",
}


def _origin_in(message: str) -> str:
    """Scheme and host of a URL in a message: its path may hold what nobody should read."""
    found = re.search(r"[a-z][a-z0-9+.-]*://[^/'\"?#\s]*", message, re.IGNORECASE)
    return found[0].rpartition("@")[2] if found else "another address"


def _with_status(ours: PacsError, response: requests.Response) -> PacsError:
    ours.status = response.status_code
    ours.retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""))
    return ours


def _retry_after_s(value: str) -> float | None:
    """Seconds or a date (RFC 9110 §10.2.3); None for neither."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _by_status(name: str, what: str, response: requests.Response) -> PacsError:
    status = response.status_code
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return PacsUnauthorized(
            f"{name} refused {what} with status {status}: check the credentials and what they"
            " may read and store."
        )
    if status == HTTPStatus.NOT_FOUND:
        return PacsNotFound(
            f"{name} answered {what} with status 404: check the URL's path and the UIDs."
        )
    if status == HTTPStatus.REQUEST_TIMEOUT:
        return PacsTimeout(f"{name} gave {what} up with status 408: try again later.")
    failing = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED
    if status == HTTPStatus.TOO_MANY_REQUESTS or failing:
        return PacsBusy(
            f"{name} answered {what} with status {status}: try again later and look into its log."
        )
    refused = refusal_in(name, _dataset_in(response))
    return refused or PacsRefused(
        f"{name} refused {what} with status {status}: check what the archive accepts."
    )


def _dataset_in(response: requests.Response) -> Dataset:
    """STOW answer in an error's body; empty if there is none."""
    try:
        return Dataset.from_json(response.json())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Dataset()


def refusal_in(name: str, answer: Dataset) -> PacsError | None:
    """First failed instance of a STOW answer, if any; one that is there already comes last."""
    failed = [
        (int(item.get("FailureReason", 0)), item)
        for item in answer.get("FailedSOPSequence", None) or []
    ]
    for code, item in sorted(failed, key=lambda each: each[0] == DUPLICATE):
        meaning = FAILURE_REASONS.get(code) or FAILURE_CLASSES.get(code >> 8, "reason not known")
        make = PacsBusy if code >> 8 == OUT_OF_RESOURCES else PacsRefused
        refused = make(
            f"{name} did not store instance {item.get('ReferencedSOPInstanceUID', 'unknown')}:"
            f" {meaning} (0x{code:04X}); check what the archive accepts."
        )
        refused.failure_reason = code
        return refused
    return None


def duplicates_in(answer: Dataset) -> set[str]:
    """UIDs of the instances that an archive refused because it has them."""
    return {
        str(item.get("ReferencedSOPInstanceUID", ""))
        for item in answer.get("FailedSOPSequence", None) or []
        if item.get("FailureReason") == DUPLICATE
    }


def remark_in(answer: Dataset) -> str:
    """What a STOW answer warns of, empty if of nothing."""
    codes = [
        int(item.WarningReason)
        for item in answer.get("ReferencedSOPSequence", None) or []
        if "WarningReason" in item
    ]
    told = (f"{STORE_WARNINGS.get(code, 'reason not known')} (0x{code:04X})" for code in codes)
    return "; ".join(f"the archive warns: {each}" for each in dict.fromkeys(told))
