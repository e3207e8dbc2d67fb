"""Foreign errors of the PACS side → the tree in :mod:`dicom_io.errors`.

dicomweb-client raises ``ValueError`` for most of what a server can do wrong, so everything that a
call to it can raise is listed here, once.
"""

from __future__ import annotations

import json
import re
import struct
from http import HTTPStatus

import requests
import urllib3
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from dicom_io.errors import (
    InputError,
    PacsAnswerInvalid,
    PacsBusy,
    PacsError,
    PacsNotFound,
    PacsRefused,
    PacsTimeout,
    PacsUnauthorized,
    PacsUnreachable,
    PixelsUnsupported,
)

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
)

# Failure Reason (0008,1197) of a STOW answer, PS3.4 table B.2-1 and PS3.18 §10.5.3 (I.2.2).
FAILURE_REASONS = {
    0x0110: "processing failure",
    0x0111: "duplicate SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0131: "SOP class and instance do not belong together",
    0x0117: "invalid SOP instance UID",
    0xA700: "out of resources",
    0xA900: "dataset does not match SOP class",
    0xC000: "cannot understand",
    0xC122: "transfer syntax not supported",
}

# DICOMfileClient looks a transfer syntax up in a dict and reports the KeyError as a status 500.
UNKNOWN_TRANSFER_SYNTAX = re.compile(r"'(1\.2\.840\.10008\.1\.2[0-9.]*)'")


def pacs_error(name: str, what: str, error: Exception) -> PacsError | InputError:
    """Say in one sentence what happened when `what` was asked of the archive `name`."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _by_status(name, what, error.response)
    if isinstance(error, requests.Timeout):
        return PacsTimeout(
            f"{name} did not answer {what} in time: try again later or raise the PACS timeout."
        )
    if isinstance(error, requests.exceptions.SSLError):
        return PacsError(
            f"{name} could not prove who it is when asked for {what}: give the certificate of its"
            " authority in the settings (ca_bundle)."
        )
    if isinstance(error, requests.JSONDecodeError | json.JSONDecodeError):
        return PacsAnswerInvalid(
            f"{name} answered {what} with something that is not JSON:"
            " check that the URL is that of a DICOMweb service."
        )
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return PacsUnreachable(
            f"{name} could not be reached or cut the connection during {what}:"
            " check that it runs and that the URL is right."
        )
    if isinstance(error, requests.RequestException | OSError):
        return PacsUnreachable(
            f"{name} could not be read during {what} ({type(error).__name__}): check the URL and"
            " the access rights."
        )
    return PacsAnswerInvalid(
        f"{name} answered {what} with something that is not DICOMweb ({type(error).__name__}):"
        " check that the URL is that of a DICOMweb service and that its files are whole."
    )


def _by_status(name: str, what: str, response: requests.Response) -> PacsError | InputError:
    status = response.status_code
    unknown = UNKNOWN_TRANSFER_SYNTAX.fullmatch(response.reason or "")
    if unknown:
        return PixelsUnsupported(
            f"{name} holds {what} in transfer syntax {unknown[1]}, which cannot be read from a"
            " folder: transcode it to JPEG baseline or read it from a DICOMweb server."
        )
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
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
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
    except (ValueError, TypeError, KeyError, AttributeError):
        return Dataset()


def refusal_in(name: str, answer: Dataset) -> PacsRefused | None:
    """First failed instance of a STOW answer, if any."""
    for item in answer.get("FailedSOPSequence", None) or []:
        code = int(item.get("FailureReason", 0))
        meaning = FAILURE_REASONS.get(code & 0xFF00 if code >= 0xA900 else code)
        meaning = meaning or FAILURE_REASONS.get(code, "reason not given by the standard")
        return PacsRefused(
            f"{name} did not store instance {item.get('ReferencedSOPInstanceUID', 'unknown')}:"
            f" {meaning} (0x{code:04X}); check what the archive accepts."
        )
    return None
