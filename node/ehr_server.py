"""A FHIR R4 server as EHR.

A transaction is tried first. Where the server refuses it, each resource is searched by its
identifier and sent by itself, the DiagnosticReport and its Provenance last. An answer that got
lost may have been obeyed, so nothing is created a second time without asking again.

Between asking and sending somebody else may have sent: another worker the same report, or a
person's review. So what was not there is created only if it still is not (R4 3.1.0.8.1), and what
was there is replaced only if it is still that version (R4 3.1.0.5); else the server is asked anew.
However late a request arrives, it makes nothing twice and undoes no decision. A Provenance has no
identifier: one that arrives late may be there twice, and says the same both times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import stamina

from dicom_io.errors import EhrAnswerInvalid, EhrRefused, EhrUnreachable
from dicom_io.pacs_http import WAIT_GROWTH
from node.ehr_http import FhirHttp, TransactionRefused
from node.ehr_records import (
    PROVENANCE,
    UID_SYSTEM,
    Delivered,
    EhrSettings,
    Resource,
    device_references,
    has_identifier,
    is_local,
    key_of,
    receipt,
    report_in,
    result_references,
    rewritten,
    same_content,
    would_undo_review,
)

Found = dict[str, Resource | None]


class _AnswerLost(Exception):
    """A creating request failed on its way; whether the server obeyed is not known."""

    def __init__(self, failure: EhrUnreachable) -> None:
        super().__init__()
        self.failure = failure


class FhirServer:
    """A FHIR R4 server."""

    def __init__(self, base_url: str, settings: EhrSettings) -> None:
        self._http = FhirHttp(base_url, settings)
        self._settings = settings

    def deliver(
        self, bundle: Mapping[str, Any], sending: Callable[[], object] = lambda: None
    ) -> list[Delivered]:
        bundle = self._with_patient(bundle)
        try:
            for attempt in self._attempts(_AnswerLost):
                with attempt:
                    return self._deliver(bundle, sending)
        except _AnswerLost as lost:
            raise lost.failure from lost
        return []

    def read_report(self, identifier: str) -> list[Resource]:
        reports = self._ours("DiagnosticReport", UID_SYSTEM, identifier)
        if len(reports) != 1:
            raise EhrAnswerInvalid(
                f"The EHR {self._http.host} has {len(reports)} DiagnosticReports {identifier} "
                "where one was expected: remove the surplus, or deliver again."
            )
        results = [self._at(reference) for reference in result_references(reports[0])]
        devices = [self._at(reference) for reference in device_references(results)]
        return [reports[0], *results, *devices]

    def _deliver(self, bundle: Mapping[str, Any], sending: Callable[[], object]) -> list[Delivered]:
        """Ask what is there, then send what is missing or differs."""
        there = self._ask_for_all(bundle)
        if _decided_on(bundle, there[key_of(report_in(bundle))]):
            return _all_there(bundle)
        addresses = _addresses(bundle, there)
        missing = [
            entry
            for entry in bundle["entry"]
            if not _is_there(entry, there[key_of(entry)], addresses)
        ]
        if not missing:
            return _all_there(bundle)
        entries = [_conditional(entry, there[key_of(entry)], addresses) for entry in missing]
        try:
            answer = self._once(sending, "POST", "", {**bundle, "entry": entries})
        except TransactionRefused:
            return self._one_by_one(bundle, sending)
        sent = dict(zip(map(key_of, missing), self._outcomes(entries, answer), strict=True))
        return [
            receipt(entry["resource"], sent.get(key_of(entry), "already there"))
            for entry in bundle["entry"]
        ]

    def _ask_for_all(self, bundle: Mapping[str, Any]) -> Found:
        """What the server has of each entry, by its key; a Provenance after what it is about."""
        there: Found = {
            key_of(entry): self._find(entry)
            for entry in bundle["entry"]
            if not _is_provenance(entry)
        }
        addresses = _addresses(bundle, there)
        for entry in filter(_is_provenance, bundle["entry"]):
            there[key_of(entry)] = self._find_provenance(entry, addresses)
        return there

    def _one_by_one(
        self, bundle: Mapping[str, Any], sending: Callable[[], object]
    ) -> list[Delivered]:
        """Plain PUT and POST, in an order in which every reference is known.

        Asks anew, because not every server undoes all of a transaction that it refused, and because
        it may have refused what is no longer as it was.
        """
        if _decided_on(bundle, self._find(report_in(bundle))):
            return _all_there(bundle)
        known: dict[str, str] = {}
        receipts = []
        for entry in bundle["entry"]:
            resource = rewritten(entry["resource"], known)
            kind = resource["resourceType"]
            is_provenance = _is_provenance(entry)
            found = self._find_provenance(entry, known) if is_provenance else self._find(entry)
            status = "already there"
            if found is None:
                condition = None if is_provenance else _query_of(entry)
                found = self._once(sending, "POST", kind, resource, if_none_exist=condition)
                status = "created"
            elif not _is_there(entry, found, known):
                sent, path = resource | {"id": found["id"]}, f"{kind}/{found['id']}"
                self._once(sending, "PUT", path, sent, if_match=_version_of(found))
                status = "updated"
            known[entry["fullUrl"]] = f"{kind}/{self._id_in(found, kind)}"
            receipts.append(receipt(resource, status))
        return receipts

    def _at(self, reference: str) -> Resource:
        """A resource on this server; references to elsewhere are not followed."""
        path = reference.removeprefix(f"{self._http.base_url}/")
        if not is_local(path):
            raise EhrAnswerInvalid(
                f"The EHR {self._http.host} refers to a resource outside itself: "
                "results must be local."
            )
        return self._ask("GET", path)

    def _with_patient(self, bundle: Mapping[str, Any]) -> Mapping[str, Any]:
        """Refer to the server's own Patient where exactly one has the identifier."""
        subject = report_in(bundle)["resource"].get("subject")
        system = "" if subject is None else self._patient_system(subject["identifier"])
        patients = (
            self._patients(system, subject["identifier"]["value"])
            if subject is not None and system
            else []
        )
        if subject is None or len(patients) != 1:
            if self._settings.patient_required:
                report = report_in(bundle)["resource"]["identifier"][0]["value"]
                raise EhrRefused(
                    f"The EHR {self._http.host} knows {len(patients)} Patients for the subject of "
                    f"report {report} where one is required: register the patient there, check "
                    "ehr.patient_system, then start the job again."
                )
            return bundle
        subject = {
            **subject,
            "reference": f"Patient/{self._id_in(patients[0], 'Patient')}",
            "identifier": {**subject["identifier"], "system": system},
        }
        return {
            **bundle,
            "entry": [
                {**entry, "resource": entry["resource"] | {"subject": subject}}
                if "subject" in entry["resource"]
                else entry
                for entry in bundle["entry"]
            ],
        }

    def _patients(self, system: str, value: str) -> list[Resource]:
        """Patients that carry the identifier, not whomever the server answers with."""
        answered = self._search("Patient", system, value)
        return [each for each in answered if has_identifier(each, system, value)]

    def _patient_system(self, identifier: Mapping[str, str]) -> str:
        return identifier.get("system", "") or self._settings.patient_system

    def _find(self, entry: Mapping[str, Any]) -> Resource | None:
        resource = entry["resource"]
        identifier = resource["identifier"][0]
        found = self._ours(resource["resourceType"], identifier["system"], identifier["value"])
        return found[0] if found else None

    def _ours(self, kind: str, system: str, value: str) -> list[Resource]:
        """What the server has of a resource of the node's.

        A server may leave out a search parameter that it does not know (R4 3.1.1.3), and what it
        answers then is another patient's: it is neither replaced, nor is another made beside it.
        """
        answered = self._search(kind, system, value)
        found = [each for each in answered if has_identifier(each, system, value)]
        if answered and not found:
            raise EhrAnswerInvalid(
                f"The EHR {self._http.host} answered a search for {kind} {value} with others: it "
                "must search by identifier before reports can be delivered to it."
            )
        return found

    def _find_provenance(
        self, entry: Mapping[str, Any], addresses: Mapping[str, str]
    ) -> Resource | None:
        """R4 Provenance has no identifier: one with our target and time is ours."""
        resource = rewritten(entry["resource"], addresses)
        target = resource["target"][0]["reference"]
        if target.startswith("urn:"):
            return None
        answer = self._ask("GET", f"{PROVENANCE}?target={quote(target, safe='')}")
        for found in _resources(answer, PROVENANCE):
            if found.get("recorded") == resource["recorded"] and _is_about(found, target):
                return found
        return None

    def _search(self, kind: str, system: str, value: str) -> list[Resource]:
        return _resources(self._ask("GET", f"{kind}?{_query(system, value)}"), kind)

    def _outcomes(self, entries: Sequence[Mapping[str, Any]], answer: Resource) -> list[str]:
        """What a transaction's answer says of each entry."""
        outcomes = answer.get("entry", [])
        if len(outcomes) != len(entries):
            raise EhrAnswerInvalid(
                f"The EHR {self._http.host} answered a transaction of {len(entries)} entries "
                f"with {len(outcomes)}: check the server's log, then deliver again."
            )
        codes = [str(each.get("response", {}).get("status", ""))[:3] for each in outcomes]
        for entry, code in zip(entries, codes, strict=True):
            if not code.startswith("2"):
                raise EhrRefused(
                    f"The EHR {self._http.host} answered {code or 'nothing'} to a "
                    f"{entry['resource']['resourceType']} inside a transaction: look at the "
                    "server's log and its rules."
                )
        return [_outcome(entry, code) for entry, code in zip(entries, codes, strict=True)]

    def _id_in(self, answer: Resource, kind: str) -> str:
        if "id" not in answer:
            raise EhrAnswerInvalid(
                f"The EHR {self._http.host} has a {kind} without telling its id: "
                "it must return the resource (Prefer: return=representation)."
            )
        return str(answer["id"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Resource:
        """A request that may be repeated, repeated while its failure is transient."""
        for attempt in self._attempts(EhrUnreachable):
            with attempt:
                return self._http.ask(method, path, body)
        return {}

    def _once(
        self,
        sending: Callable[[], object],
        method: str,
        path: str,
        body: Mapping[str, Any],
        **conditions: str | None,
    ) -> Resource:
        """A request that must not be repeated before asking whether it was obeyed."""
        sending()
        try:
            return self._http.ask(method, path, body, **conditions)
        except EhrUnreachable as failure:
            raise _AnswerLost(failure) from failure

    def _attempts(self, on: type[Exception]) -> Iterable[stamina.Attempt]:
        return stamina.retry_context(
            on=on,
            attempts=self._settings.retries + 1,
            wait_initial=self._settings.retry_wait_s,
            wait_max=WAIT_GROWTH * self._settings.retry_wait_s,
            timeout=None,
        )


def _decided_on(bundle: Mapping[str, Any], on_server: Resource | None) -> bool:
    """Whether a person has decided on the report that the server has, later than on this one."""
    ours = report_in(bundle)["resource"]
    return on_server is not None and would_undo_review(ours, on_server)


def _all_there(bundle: Mapping[str, Any]) -> list[Delivered]:
    return [receipt(entry["resource"], "already there") for entry in bundle["entry"]]


def _conditional(
    entry: Mapping[str, Any], found: Resource | None, addresses: Mapping[str, str]
) -> dict[str, Any]:
    """An entry of a transaction that is obeyed only if all is still as it was found."""
    resource = rewritten(entry["resource"], addresses)
    kind, request = resource["resourceType"], {"method": "POST"}
    if _is_provenance(entry):
        return {**entry, "resource": resource}
    if found is None:
        request |= {"url": kind, "ifNoneExist": _query_of(entry)}
        return {**entry, "resource": resource, "request": request}
    version = _version_of(found)
    request = {"method": "PUT", "url": f"{kind}/{found['id']}"}
    if version is not None:
        request["ifMatch"] = version
    return {**entry, "resource": resource | {"id": found["id"]}, "request": request}


def _version_of(found: Resource) -> str | None:
    """Weak entity tag of a resource (R4 3.1.0.5); None from a server without versions."""
    version = found.get("meta", {}).get("versionId")
    return None if version is None else f'W/"{version}"'


def _outcome(entry: Mapping[str, Any], code: str) -> str:
    if code == "201":
        return "created"
    return "updated" if entry["request"]["method"] == "PUT" else "already there"


def _is_provenance(entry: Mapping[str, Any]) -> bool:
    return bool(entry["resource"]["resourceType"] == PROVENANCE)


def _is_about(provenance: Resource, target: str) -> bool:
    """Whether a Provenance has a target, whatever address and version it names it by."""
    return any(f"{target}/" in f"{each.get('reference')}/" for each in provenance.get("target", []))


def _is_there(
    entry: Mapping[str, Any], found: Resource | None, addresses: Mapping[str, str]
) -> bool:
    if found is None or _is_provenance(entry):
        return found is not None
    resource = rewritten(entry["resource"], addresses)
    return same_content(found, resource) or would_undo_review(resource, found)


def _addresses(bundle: Mapping[str, Any], there: Found) -> dict[str, str]:
    """fullUrl → ``Type/id`` of what is on the server."""
    return {
        entry["fullUrl"]: f"{found['resourceType']}/{found['id']}"
        for entry in bundle["entry"]
        if (found := there.get(key_of(entry))) is not None
    }


def _resources(answer: Resource, kind: str) -> list[Resource]:
    """Matches of a search; a server may put an OperationOutcome beside them (R4 3.1.1.7)."""
    found = (entry.get("resource", {}) for entry in answer.get("entry", []))
    return [resource for resource in found if resource.get("resourceType") == kind]


def _query_of(entry: Mapping[str, Any]) -> str:
    identifier = entry["resource"]["identifier"][0]
    return _query(identifier["system"], identifier["value"])


def _query(system: str, value: str) -> str:
    # '\\', '|', ',' and '$' are the search's own signs (R4 3.1.1.4.4); percent-encoded as a
    # whole, because a raw '+' would arrive as a blank.
    value = re.sub(r"([\\|,$])", r"\\\1", value)
    return f"identifier={quote(f'{system}|{value}', safe='')}"
