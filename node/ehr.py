"""The EHR: a FHIR server or a folder, addressed by URL.

Delivery asks first: what is there with the same content is not sent again. A transaction is tried
first; where the server refuses it, each resource is searched by its identifier and sent by itself,
the DiagnosticReport and its Provenance last.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import requests
import stamina

from dicom_io.errors import (
    ConfigurationInvalid,
    EhrAnswerInvalid,
    EhrError,
    EhrRefused,
    EhrUnauthorized,
    EhrUnreachable,
)
from dicom_io.pacs import secret
from node.work_files import write_atomically

Resource = dict[str, Any]

FHIR_JSON = "application/fhir+json"
# What the server adds to a resource by itself.
_SERVER_FIELDS = ("id", "meta")


@dataclass(frozen=True, slots=True)
class EhrSettings:
    """How the EHR is spoken to.

    Attributes
    ----------
    timeout_s
        Seconds to connect, and seconds without a byte, after which a request counts as lost.
    retries
        Attempts after the first one, for transient failures only.
    retry_wait_s
        Seconds before the second attempt; doubled for each further one.
    username
        For HTTP basic authentication, with `password`.
    password, bearer_token
        Where the secret lies: ``env:NAME`` or ``file:/path``; never the secret itself.
    ca_bundle
        PEM file of the certificate authority of a server inside the hospital.
    """

    timeout_s: float = 30.0
    retries: int = 3
    retry_wait_s: float = 0.5
    username: str | None = None
    password: str | None = None
    bearer_token: str | None = None
    ca_bundle: Path | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one resource: ``created``, ``updated`` or ``already there``."""

    resource_type: str
    identifier: str
    status: str


class Ehr(Protocol):
    """Where reports go."""

    def deliver(self, bundle: Mapping[str, Any]) -> list[Delivered]:
        """Bring a transaction bundle in, once."""

    def read_report(self, identifier: str) -> list[Resource]:
        """The DiagnosticReport with an identifier, its Observations and its Device."""


def open_ehr(url: str, settings: EhrSettings) -> Ehr:
    """Open an EHR.

    Parameters
    ----------
    url
        ``https://…/fhir``, ``http://…`` or ``file:///folder``.
    settings

    Raises
    ------
    ConfigurationInvalid
        When the URL has another scheme, or a secret is not where the settings say.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FolderEhr(Path(url2pathname(parts.path)))
    if parts.scheme in ("http", "https") and parts.netloc:
        return FhirServer(url.rstrip("/"), settings)
    raise ConfigurationInvalid(
        f"The EHR address {url!r} is neither https://…/fhir nor file:///folder: "
        "set ehr_url or --ehr."
    )


def _key(entry: Mapping[str, Any]) -> str:
    """What tells one resource from others: type and identifier; of Provenance, its target."""
    resource = entry["resource"]
    identifiers = resource.get("identifier")
    if identifiers:
        return f"{resource['resourceType']}|{identifiers[0]['system']}|{identifiers[0]['value']}"
    return f"{resource['resourceType']}|{entry['fullUrl']}|{resource.get('recorded', '')}"


def _identifier_of(resource: Mapping[str, Any]) -> str:
    identifiers = resource.get("identifier")
    return str(identifiers[0]["value"]) if identifiers else ""


def _rewritten(resource: Any, addresses: Mapping[str, str]) -> Any:
    """A resource with references replaced as `addresses` say."""
    if isinstance(resource, dict):
        return {
            name: addresses.get(value, value)
            if name == "reference" and isinstance(value, str)
            else _rewritten(value, addresses)
            for name, value in resource.items()
        }
    if isinstance(resource, list):
        return [_rewritten(each, addresses) for each in resource]
    return resource


def _content(resource: Mapping[str, Any]) -> str:
    """Canonical JSON of what we said, without what the server adds."""
    kept = {name: value for name, value in resource.items() if name not in _SERVER_FIELDS}
    text = kept.get("text")
    if isinstance(text, dict):  # servers may reformat the narrative
        kept["text"] = {"status": text.get("status")}
    return json.dumps(json.loads(json.dumps(kept), parse_float=_number), sort_keys=True)


def _number(text: str) -> float | int:
    """One way to write a number: servers answer 4.0 as 4."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _references_of(report: Mapping[str, Any], results: list[Resource]) -> Iterator[str]:
    for observation in results:
        reference = observation.get("device", {}).get("reference")
        if reference:
            yield reference


class FolderEhr:
    """Resources as JSON files, each named by the digest of its type and identifier."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def deliver(self, bundle: Mapping[str, Any]) -> list[Delivered]:
        addresses = {
            entry["fullUrl"]: f"{entry['resource']['resourceType']}/{self._id(entry)}"
            for entry in bundle["entry"]
        }
        return [self._deliver(entry, addresses) for entry in bundle["entry"]]

    def _deliver(self, entry: Mapping[str, Any], addresses: Mapping[str, str]) -> Delivered:
        resource = _rewritten(entry["resource"], addresses) | {"id": self._id(entry)}
        path = self._path(f"{resource['resourceType']}/{resource['id']}")
        content = json.dumps(resource, indent=1, sort_keys=True).encode()
        there = path.read_bytes() if path.exists() else None
        status = "already there" if there == content else "updated" if there else "created"
        if there != content:
            try:
                write_atomically(path, content)
            except OSError as error:
                raise EhrUnreachable(
                    f"The EHR folder {self._folder} cannot be written ({error.strerror}): "
                    "free space there or correct its permissions."
                ) from error
        return Delivered(resource["resourceType"], _identifier_of(resource), status)

    def read_report(self, identifier: str) -> list[Resource]:
        reports = [
            report
            for path in sorted((self._folder / "DiagnosticReport").glob("*.json"))
            if _identifier_of(report := self._read(path)) == identifier
        ]
        if not reports:
            raise EhrAnswerInvalid(
                f"The EHR folder {self._folder} has no DiagnosticReport {identifier}: "
                "deliver again."
            )
        results = [self._at(each["reference"]) for each in reports[0]["result"]]
        devices = dict.fromkeys(_references_of(reports[0], results))
        return [reports[0], *results, *(self._at(reference) for reference in devices)]

    def _at(self, reference: str) -> Resource:
        return self._read(self._path(reference))

    def _read(self, path: Path) -> Resource:
        try:
            resource: Resource = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise EhrAnswerInvalid(
                f"The file {path.parent.name}/{path.name} in the EHR folder {self._folder} cannot "
                "be read: remove it and deliver again."
            ) from error
        return resource

    def _path(self, reference: str) -> Path:
        kind, _, resource_id = reference.partition("/")
        return self._folder / kind / f"{resource_id}.json"

    @staticmethod
    def _id(entry: Mapping[str, Any]) -> str:
        return hashlib.sha256(_key(entry).encode()).hexdigest()[:40]


class FhirServer:
    """A FHIR R4 server."""

    def __init__(self, base_url: str, settings: EhrSettings) -> None:
        self._base_url = base_url
        self._host = urlsplit(base_url).hostname or base_url
        self._settings = settings
        self._session = requests.Session()
        self._session.headers.update({"Accept": FHIR_JSON, "Content-Type": FHIR_JSON})
        if settings.bearer_token:
            self._session.headers["Authorization"] = f"Bearer {secret(settings.bearer_token)}"
        elif settings.username and settings.password:
            self._session.auth = (settings.username, secret(settings.password))
        if settings.ca_bundle:
            self._session.verify = str(settings.ca_bundle)

    def deliver(self, bundle: Mapping[str, Any]) -> list[Delivered]:
        bundle = self._with_patient(bundle)
        there = {_key(entry): self._find(entry) for entry in bundle["entry"][:-1]}
        addresses = {
            entry["fullUrl"]: f"{found['resourceType']}/{found['id']}"
            for entry in bundle["entry"][:-1]
            if (found := there[_key(entry)]) is not None
        }
        if self._all_there(bundle, there, addresses):
            return [
                Delivered(
                    entry["resource"]["resourceType"],
                    _identifier_of(entry["resource"]),
                    "already there",
                )
                for entry in bundle["entry"]
            ]
        answer = self._ask("POST", "", bundle, refusals=True)
        if answer is not None:
            return self._receipts(bundle, answer)
        return self._one_by_one(bundle, there, addresses)

    def _all_there(
        self,
        bundle: Mapping[str, Any],
        there: Mapping[str, Resource | None],
        addresses: Mapping[str, str],
    ) -> bool:
        *resources, provenance = bundle["entry"]
        for entry in resources:
            found = there[_key(entry)]
            if found is None or _content(found) != _content(
                _rewritten(entry["resource"], addresses)
            ):
                return False
        return self._find_provenance(provenance, addresses) is not None

    def _one_by_one(
        self,
        bundle: Mapping[str, Any],
        there: Mapping[str, Resource | None],
        addresses: Mapping[str, str],
    ) -> list[Delivered]:
        """Plain PUT and POST, in an order in which every reference is known."""
        known, receipts = dict(addresses), []
        *resources, provenance = bundle["entry"]
        for entry in resources:
            resource = _rewritten(entry["resource"], known)
            kind, found = resource["resourceType"], there[_key(entry)]
            status = "created"
            if found is None:
                answer = self._ask("POST", kind, resource)
            elif _content(found) == _content(resource):
                answer, status = found, "already there"
            else:
                sent = resource | {"id": found["id"]}
                answer, status = self._ask("PUT", f"{kind}/{found['id']}", sent), "updated"
            known[entry["fullUrl"]] = f"{kind}/{self._id_in(answer, kind)}"
            receipts.append(Delivered(kind, _identifier_of(resource), status))
        status = "already there"
        if self._find_provenance(provenance, known) is None:
            self._ask("POST", "Provenance", _rewritten(provenance["resource"], known))
            status = "created"
        return [*receipts, Delivered("Provenance", "", status)]

    def read_report(self, identifier: str) -> list[Resource]:
        reports = self._search("DiagnosticReport", "urn:ietf:rfc:3986", identifier)
        if len(reports) != 1:
            raise EhrAnswerInvalid(
                f"The EHR {self._host} has {len(reports)} DiagnosticReports {identifier} where one "
                "was expected: remove the surplus, or deliver again."
            )
        results = [self._at(each["reference"]) for each in reports[0]["result"]]
        devices = dict.fromkeys(_references_of(reports[0], results))
        return [reports[0], *results, *(self._at(reference) for reference in devices)]

    def _at(self, reference: str) -> Resource:
        """A resource on this server; references to elsewhere are not followed."""
        path = reference.removeprefix(f"{self._base_url}/")
        if "://" in path or path.startswith(("/", "urn:")):
            raise EhrAnswerInvalid(
                f"The EHR {self._host} refers to a resource outside itself: results must be local."
            )
        return self._ask("GET", path) or {}

    def _with_patient(self, bundle: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refer to the server's own Patient where exactly one has the identifier."""
        report = bundle["entry"][-2]["resource"]
        identifier = report.get("subject", {}).get("identifier")
        if identifier is None:
            return bundle
        patients = self._search("Patient", identifier.get("system", ""), identifier["value"])
        if len(patients) != 1:
            return bundle
        subject = report["subject"] | {"reference": f"Patient/{patients[0]['id']}"}
        return {
            **bundle,
            "entry": [
                {**entry, "resource": entry["resource"] | {"subject": subject}}
                if "subject" in entry["resource"]
                else entry
                for entry in bundle["entry"]
            ],
        }

    def _find(self, entry: Mapping[str, Any]) -> Resource | None:
        resource = entry["resource"]
        identifier = resource["identifier"][0]
        found = self._search(resource["resourceType"], identifier["system"], identifier["value"])
        return found[0] if found else None

    def _find_provenance(
        self, entry: Mapping[str, Any], addresses: Mapping[str, str]
    ) -> Resource | None:
        """R4 Provenance has no identifier: one with our target and time is ours."""
        resource = _rewritten(entry["resource"], addresses)
        target = resource["target"][0]["reference"]
        if target.startswith("urn:"):
            return None
        answer = self._ask("GET", f"Provenance?target={quote(target, safe='')}")
        for found in self._resources(answer):
            if found.get("recorded") == resource["recorded"]:
                return found
        return None

    def _search(self, kind: str, system: str, value: str) -> list[Resource]:
        # '\\', '|', ',' and '$' are the search's own signs (R4 3.1.1.4.4); percent-encoded as a
        # whole, because a raw '+' would arrive as a blank.
        value = re.sub(r"([\\|,$])", r"\\\1", value)
        token = quote(f"{system}|{value}" if system else value, safe="")
        return self._resources(self._ask("GET", f"{kind}?identifier={token}"))

    def _resources(self, answer: Resource | None) -> list[Resource]:
        return [entry["resource"] for entry in (answer or {}).get("entry", [])]

    def _receipts(self, bundle: Mapping[str, Any], answer: Resource) -> list[Delivered]:
        entries = answer.get("entry", [])
        if len(entries) != len(bundle["entry"]):
            raise EhrAnswerInvalid(
                f"The EHR {self._host} answered a transaction of {len(bundle['entry'])} entries "
                f"with {len(entries)}: check the server's log, then deliver again."
            )
        receipts = []
        for entry, outcome in zip(bundle["entry"], entries, strict=True):
            code = str(outcome.get("response", {}).get("status", ""))[:3]
            status = "created" if code == "201" else "updated"
            resource = entry["resource"]
            receipts.append(Delivered(resource["resourceType"], _identifier_of(resource), status))
        return receipts

    def _id_in(self, answer: Resource | None, kind: str) -> str:
        if not answer or "id" not in answer:
            raise EhrAnswerInvalid(
                f"The EHR {self._host} stored a {kind} without telling its id: "
                "it must return the resource (Prefer: return=representation)."
            )
        return str(answer["id"])

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, refusals: bool = False
    ) -> Resource | None:
        """One request, repeated while the failure is transient.

        Returns
        -------
        dict or None
            The resource answered; None for a refusal when `refusals` allows it.
        """
        kind = path.split("?", maxsplit=1)[0].split("/", maxsplit=1)[0] or "transaction"
        for attempt in stamina.retry_context(
            on=EhrUnreachable,
            attempts=self._settings.retries + 1,
            wait_initial=self._settings.retry_wait_s,
            timeout=None,
        ):
            with attempt:
                return self._once(method, path, kind, body, refusals)
        return None

    def _once(
        self, method: str, path: str, kind: str, body: Mapping[str, Any] | None, refusals: bool
    ) -> Resource | None:
        try:
            response = self._session.request(
                method,
                f"{self._base_url}/{path}" if path else self._base_url,
                data=json.dumps(body).encode() if body is not None else None,
                headers={"Prefer": "return=representation"},
                timeout=self._settings.timeout_s,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise EhrUnreachable(
                f"The EHR {self._host} cannot be reached ({type(error).__name__}): "
                "check that it runs, and ehr_url."
            ) from error
        if refusals and response.status_code in (400, 404, 405, 409, 412, 413, 422, 501):
            return None
        _raise_for_status(response, self._host, kind)
        return _fhir_in(response, self._host, kind)


def _raise_for_status(response: requests.Response, host: str, kind: str) -> None:
    code = response.status_code
    if code < 300:
        return
    make: Callable[[str], EhrError] = EhrRefused
    remedy = "correct what it names, or the server's rules"
    if code in (401, 403):
        make, remedy = EhrUnauthorized, "check the credentials in [ehr] and their rights"
    elif code == 429 or code >= 500:
        make, remedy = EhrUnreachable, "look at the server's log and try later"
    raise make(f"The EHR {host} answered {code} to a {kind}{_diagnosis(response)}: {remedy}.")


def _diagnosis(response: requests.Response) -> str:
    """Codes and places of an OperationOutcome; its free text may quote the patient: left out."""
    try:
        issues = response.json().get("issue", [])
    except (ValueError, AttributeError):
        return ""
    named = [
        " ".join([str(issue.get("code", "")), *map(str, issue.get("expression", []))]).strip()
        for issue in issues
    ]
    return f" ({'; '.join(named[:3])})" if named else ""


def _fhir_in(response: requests.Response, host: str, kind: str) -> Resource:
    try:
        resource = response.json()
    except ValueError as error:
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
