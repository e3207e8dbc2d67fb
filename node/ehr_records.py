"""What the two kinds of EHR share: settings, receipts, and how resources are told apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

Resource = dict[str, Any]

# Identifier system of UIDs, whose values are ``urn:oid:`` or ``urn:uuid:``.
UID_SYSTEM = "urn:ietf:rfc:3986"
# Provenance has no identifier in R4, so it is told apart in another way than the rest.
PROVENANCE = "Provenance"
# What the node does there, as SMART scopes (create, read, update, search).
SMART_SCOPE = (
    "system/DiagnosticReport.crus system/Observation.crus system/Device.crus "
    "system/Provenance.crs system/Patient.rs"
)
# What the server adds to a resource by itself.
_SERVER_FIELDS = ("id", "meta")
# DiagnosticReport.status that nobody has verified yet; all others a person has decided on.
_UNREVIEWED = ("registered", "partial", "preliminary")
_LOCAL_REFERENCE = re.compile(
    r"[A-Z][A-Za-z]+/[A-Za-z0-9\-.]{1,64}(/_history/[A-Za-z0-9\-.]{1,64})?"
)


@dataclass(frozen=True, slots=True)
class EhrSettings:
    """How the EHR is spoken to.

    Attributes
    ----------
    timeout_s
        Seconds after which a request counts as lost whose answer is not there to its last byte.
    retries
        Attempts after the first one, for transient failures only.
    retry_wait_s
        Seconds before the second attempt; doubled for each further one.
    username
        For HTTP basic authentication, with `password`.
    password, bearer_token
        Where the secret lies: ``env:NAME`` or ``file:/path``; never the secret itself.
    client_id, scope
        OAuth 2 client credentials, as the authorization server knows the node.
    client_key
        For SMART Backend Services: where the private key lies (PEM, RSA or P-384), as for
        `password`. Its public part is registered with the authorization server.
    client_key_id
        Under which the key is registered (kid); empty for its thumbprint (RFC 7638).
    client_secret
        Where the secret of other OAuth 2 servers lies, as for `password`.
    token_url
        Token endpoint; empty where the EHR names it in .well-known/smart-configuration.
    certificate, certificate_key
        PEM files with which the node proves who it is (mutual TLS); the key may be in the first.
    ca_bundle
        PEM file of the certificate authority of a server inside the hospital.
    patient_system
        Identifier system (URI) of patient IDs whose issuer the slide does not give as one. Without
        it the server's Patient is not looked up: the bare number could be another patient's.
    patient_required
        True refuses to deliver a report whose Patient the server does not know; else the report
        carries the patient's identifier alone. Never is a Patient created.
    credentials_for
        Follows from ehr_url and those of rules: URLs to whose scheme, host and port credentials
        are sent; None for whichever is opened.
    """

    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    retries: Annotated[int, Field(ge=0)] = 3
    retry_wait_s: Annotated[float, Field(ge=0)] = 0.5
    username: str | None = None
    password: str | None = None
    bearer_token: str | None = None
    client_id: str | None = None
    scope: str = SMART_SCOPE
    client_key: str | None = None
    client_key_id: str = ""
    client_secret: str | None = None
    token_url: str = ""
    certificate: Path | None = None
    certificate_key: Path | None = None
    ca_bundle: Path | None = None
    patient_system: str = ""
    patient_required: bool = False
    credentials_for: tuple[str, ...] | None = field(
        default=None, compare=False, metadata={"derived": True}
    )


def without_credentials(settings: EhrSettings) -> EhrSettings:
    """The settings for an EHR that is not one of the site's own."""
    return replace(
        settings,
        username=None,
        password=None,
        bearer_token=None,
        client_id=None,
        client_key=None,
        client_secret=None,
        certificate=None,
        certificate_key=None,
    )


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one resource: ``created``, ``updated`` or ``already there``."""

    resource_type: str
    identifier: str
    status: str


def receipt(resource: Mapping[str, Any], status: str) -> Delivered:
    return Delivered(resource["resourceType"], identifier_of(resource), status)


def key_of(entry: Mapping[str, Any]) -> str:
    """What tells one resource from others: type and identifier; of Provenance, its target."""
    resource = entry["resource"]
    identifiers = resource.get("identifier")
    if identifiers:
        return identity_key(
            resource["resourceType"], identifiers[0]["system"], identifiers[0]["value"]
        )
    return identity_key(
        resource["resourceType"], entry["fullUrl"], str(resource.get("recorded", ""))
    )


def identity_key(kind: str, system: str, value: str) -> str:
    return f"{kind}|{system}|{value}"


def identifier_of(resource: Mapping[str, Any]) -> str:
    identifiers = resource.get("identifier")
    return str(identifiers[0]["value"]) if identifiers else ""


def has_identifier(resource: Mapping[str, Any], system: str, value: str) -> bool:
    """Whether a resource carries an identifier, in any spelling of its system.

    Servers pad values with blanks, and write the same system as a URI or as a bare OID, in other
    case or with a slash at its end.
    """
    wanted = (_spelt_alike(system), value.strip())
    return any(
        (_spelt_alike(str(each.get("system", ""))), str(each.get("value", "")).strip()) == wanted
        for each in resource.get("identifier", [])
    )


def _spelt_alike(system: str) -> str:
    return system.strip().casefold().removeprefix("urn:oid:").rstrip("/")


def report_in(bundle: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry of the DiagnosticReport."""
    return next(
        entry
        for entry in bundle["entry"]
        if entry["resource"]["resourceType"] == "DiagnosticReport"
    )


def would_undo_review(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a report would replace one that a person has decided on, or decided on later.

    Of two reviewed ones the later is the one that was issued later: revisions may arrive in
    another order than they were made in.
    """
    if theirs.get("status") in _UNREVIEWED:
        return False
    if ours.get("status") in _UNREVIEWED:
        return True
    mine, other = (_moment(str(each.get("issued", ""))) for each in (ours, theirs))
    return mine is not None and other is not None and mine < other


def _moment(written: str) -> datetime | None:
    """A FHIR instant; None for what is not one."""
    try:
        moment = datetime.fromisoformat(written)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def rewritten(resource: Any, addresses: Mapping[str, str]) -> Any:
    """A resource with references replaced as `addresses` say."""
    if isinstance(resource, dict):
        return {
            name: addresses.get(value, value)
            if name == "reference" and isinstance(value, str)
            else rewritten(value, addresses)
            for name, value in resource.items()
        }
    if isinstance(resource, list):
        return [rewritten(each, addresses) for each in resource]
    return resource


def same_content(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resources say the same, but for what a server adds by itself."""
    return _content(one) == _content(other)


def _content(resource: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in resource.items() if name not in _SERVER_FIELDS}
    text = kept.get("text")
    if isinstance(text, dict):  # servers may reformat the narrative
        kept["text"] = {"status": text.get("status")}
    return json.dumps(json.loads(json.dumps(kept), parse_float=_number), sort_keys=True)


def _number(text: str) -> float | int:
    """One way to write a number: servers answer 4.0 as 4."""
    value = float(text)
    return int(value) if value.is_integer() else value


def is_local(reference: str) -> bool:
    """Whether a reference is ``Type/id`` and nothing else: no address, no path upwards."""
    return _LOCAL_REFERENCE.fullmatch(reference) is not None


def result_references(report: Mapping[str, Any]) -> list[str]:
    return [str(each["reference"]) for each in report.get("result", []) if "reference" in each]


def device_references(results: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """References to the devices of Observations, each once."""
    named = (observation.get("device", {}).get("reference") for observation in results)
    yield from dict.fromkeys(str(reference) for reference in named if reference)
