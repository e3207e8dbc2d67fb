"""One request to a FHIR server, and what its answer means: every foreign error ends here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests

from dicom_io.bounded_body import BoundedBody
from dicom_io.deadline import body_timeout, keep_deadlines, whole_timeout
from dicom_io.errors import (
    EhrAnswerInvalid,
    EhrError,
    EhrRefused,
    EhrUnauthorized,
    EhrUnreachable,
)
from dicom_io.multipart import AnswerTooLarge
from dicom_io.pacs_http import MOST_ERROR_BYTES
from node.ehr_authentication import client_certificate, ehr_scheme
from node.ehr_records import EhrSettings, Resource

FHIR_JSON = "application/fhir+json"
# A report with its PDF, and all its Observations, are a hundredth of it.
MOST_ANSWER_BYTES = 64 * 2**20
# Refusals of a transaction after which its resources are tried one by one.
_NOT_AS_TRANSACTION = (400, 404, 405, 409, 412, 413, 422, 501)


class TransactionRefused(Exception):
    """The server takes no transaction, or not this one."""


class FhirHttp:
    """The HTTP side of one FHIR server; one attempt for every call.

    Raises
    ------
    EhrError
        From :meth:`ask`; :class:`EhrUnreachable` where the same request may succeed later.
    TransactionRefused
        From :meth:`ask` for a transaction (`path` is empty).
    """

    def __init__(self, base_url: str, settings: EhrSettings) -> None:
        self.base_url = base_url
        self.host = urlsplit(base_url).hostname or base_url
        self._timeout_s = settings.timeout_s
        self._session = requests.Session()
        keep_deadlines(self._session)
        self._session.headers.update({"Accept": FHIR_JSON, "Content-Type": FHIR_JSON})
        self._session.hooks["response"].append(_bounded)
        self._scheme = ehr_scheme(base_url, settings)
        self._session.cert = client_certificate(settings)
        # Given with each request: requests prefers REQUESTS_CA_BUNDLE to what a session says.
        self._verify = str(settings.ca_bundle) if settings.ca_bundle else True

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        if_none_exist: str | None = None,
        if_match: str | None = None,
    ) -> Resource:
        """Send one request, return the resource answered.

        Parameters
        ----------
        method
        path
            Below the base, with its query; empty for a transaction.
        body
        if_none_exist
            Query of a conditional create (R4 3.1.0.8.1).
        if_match
            Entity tag of the version that an update replaces (R4 3.1.0.5).
        """
        kind = _kind(path)
        headers = {"Prefer": "return=representation"}
        if if_none_exist is not None:
            headers["If-None-Exist"] = if_none_exist
        if if_match is not None:
            headers["If-Match"] = if_match
        response = self._signed(method, path, body, headers)
        if not path and response.status_code in _NOT_AS_TRANSACTION:
            raise TransactionRefused
        _raise_for_status(response, self.host, kind)
        return _fhir_in(response, self.host, kind)

    def _signed(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: dict[str, str]
    ) -> requests.Response:
        """Send with what proves who the node is; once more where that had just ended."""
        shown = self._scheme.value()
        response = self._send(method, path, body, headers | _authorization(shown))
        # A refused request was not obeyed, so it may be sent again.
        if response.status_code == 401 and self._scheme.renewed(shown):
            renewed = _authorization(self._scheme.value())
            response = self._send(method, path, body, headers | renewed)
        return response

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: dict[str, str]
    ) -> requests.Response:
        try:
            return self._session.request(
                method,
                f"{self.base_url}/{path}" if path else self.base_url,
                data=json.dumps(body).encode() if body is not None else None,
                headers=headers,
                timeout=whole_timeout(self._timeout_s),
                verify=self._verify,
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            raise EhrError(
                f"The EHR {self.host} could not prove who it is: give the certificate of its "
                "authority in the settings (ehr.ca_bundle)."
            ) from error
        except AnswerTooLarge as error:
            raise EhrAnswerInvalid(
                f"The EHR {self.host} answered a {_kind(path)} with more than "
                f"{MOST_ANSWER_BYTES // 2**20} MB, which no report has: ehr_url must be the base "
                "of its FHIR interface."
            ) from error
        except requests.RequestException as error:
            if isinstance(error, requests.Timeout) or body_timeout(error):
                raise EhrUnreachable(
                    f"The EHR {self.host} did not answer within {self._timeout_s:g} s: "
                    "try later or raise ehr.timeout_s."
                ) from error
            raise EhrUnreachable(
                f"The EHR {self.host} cannot be reached ({type(error).__name__}): "
                "check that it runs, and ehr_url."
            ) from error


def _kind(path: str) -> str:
    """What a request is about, without what it asks for: that may be a patient's."""
    return path.split("?", maxsplit=1)[0].split("/", maxsplit=1)[0] or "transaction"


def _bounded(response: requests.Response, **_: Any) -> None:
    """Bound what is read into memory; of errors, the beginning is enough."""
    if response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
        response.raw = BoundedBody(response.raw, MOST_ERROR_BYTES, fails=False)
    else:
        response.raw = BoundedBody(response.raw, MOST_ANSWER_BYTES, fails=True)


def _authorization(value: str | None) -> dict[str, str]:
    return {} if value is None else {"Authorization": value}


def _raise_for_status(response: requests.Response, host: str, kind: str) -> None:
    code = response.status_code
    if code < 300:
        return
    make: type[EhrError] = EhrRefused
    remedy = "correct what it names, or the server's rules"
    if code < 400:
        make, remedy = EhrAnswerInvalid, "ehr_url must be the base of its FHIR interface"
    elif code in (401, 403):
        make, remedy = EhrUnauthorized, "check the credentials in [ehr] and their rights"
    elif code == HTTPStatus.PRECONDITION_FAILED:
        make, remedy = EhrUnreachable, "it was changed meanwhile, so ask for it anew"
    elif code == 429 or code >= 500:
        make, remedy = EhrUnreachable, "look at the server's log and try later"
    error = make(f"The EHR {host} answered {code} to a {kind}{_diagnosis(response)}: {remedy}.")
    if isinstance(error, EhrRefused):
        error.status = code
    raise error


def _diagnosis(response: requests.Response) -> str:
    """Codes and places of an OperationOutcome; its free text may quote the patient: left out."""
    try:
        issues = response.json().get("issue", [])
        named = [
            " ".join(
                [
                    str(issue.get("code", "")),
                    *(str(each.get("code", "")) for each in _codings(issue)),
                    *map(str, issue.get("expression") or issue.get("location") or []),
                ]
            ).strip()
            for issue in issues
        ]
    except (ValueError, AttributeError, TypeError, RecursionError):
        return ""
    return f" ({'; '.join(named[:3])})" if named else ""


def _codings(issue: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(issue.get("details", {}).get("coding", []))


def _fhir_in(response: requests.Response, host: str, kind: str) -> Resource:
    stored_at = response.headers.get("Location", "")
    if not response.content and f"{kind}/" in stored_at:  # servers may ignore Prefer
        resource_id = stored_at.rsplit(f"{kind}/", maxsplit=1)[1].split("/", maxsplit=1)[0]
        return {"resourceType": kind, "id": resource_id}
    try:
        resource = response.json()
    except (ValueError, RecursionError) as error:  # the second where it is nested without end
        raise EhrAnswerInvalid(
            f"The EHR {host} answered a {kind} with {response.headers.get('Content-Type')} that is "
            "not JSON: ehr_url must be the base of its FHIR interface."
        ) from error
    if not isinstance(resource, dict) or "resourceType" not in resource:
        raise EhrAnswerInvalid(
            f"The EHR {host} answered a {kind} with JSON that is no FHIR resource: "
            "ehr_url must be the base of its FHIR interface."
        )
    return resource
