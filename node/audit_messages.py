"""What an audit record says, as DICOM audit message (XML) and as FHIR AuditEvent."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from xml.etree import ElementTree

# PS3.16 CID 400 and CID 401.
EVENTS: dict[str, str] = {
    "110100": "Application Activity",
    "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred",
    "110106": "Export",
    "110111": "Procedure Record",
    "110112": "Query",
    "110114": "User Authentication",
}
TYPES: dict[str, str] = {
    "110120": "Application Start",
    "110121": "Application Stop",
    "110122": "Login",
}
# PS3.16 CID 402.
ROLES: dict[str, str] = {
    "110150": "Application",
    "110152": "Destination Role ID",
    "110153": "Source Role ID",
}
STUDY, PATIENT_NUMBER = "110180", "2"
_FHIR = "http://terminology.hl7.org/CodeSystem"
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_LOG_AUDIT, _NOTICE = 10, 5
_MESSAGE_ID = "DICOM+RFC3881"  # PS3.15 A.6

Outcome = Literal["0", "4", "8"]


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One event.

    Attributes
    ----------
    event, kind
        Codes of :data:`EVENTS` and :data:`TYPES`; `kind` may be empty.
    action
        C, R, U, D or E.
    outcome
        0 success, 4 minor failure, 8 serious failure.
    outcome_description
        More about the outcome; may be empty.
    at
        ISO 8601, UTC.
    users
        Who took part: ``id``, ``role`` (a code of :data:`ROLES`, or empty), ``requestor``, and
        ``address`` where it is known.
    study_uid
        Empty where it is about no study.
    sop_classes
        SOP Class UID → number of instances.
    patient_id
        As the study has it; empty where it is not known.
    what
        What it is about otherwise, such as a job.
    query
        What was searched for: path and keys of the request, which may name a patient.
    """

    event: str
    action: str
    at: str
    users: Sequence[Mapping[str, Any]]
    kind: str = ""
    outcome: Outcome = "0"
    study_uid: str = ""
    sop_classes: Mapping[str, int] = field(default_factory=dict)
    patient_id: str = ""
    what: str = ""
    query: str = ""
    outcome_description: str = ""


def audit_message(record: AuditRecord, source_id: str, site_id: str) -> bytes:
    """PS3.15 A.5.1: an AuditMessage."""
    root = ElementTree.Element("AuditMessage")
    event = ElementTree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=record.action,
        EventDateTime=record.at,
        EventOutcomeIndicator=record.outcome,
    )
    _code(event, "EventID", record.event, EVENTS[record.event])
    if record.kind:
        _code(event, "EventTypeCode", record.kind, TYPES[record.kind])
    if record.outcome_description:
        described = ElementTree.SubElement(event, "EventOutcomeDescription")
        described.text = record.outcome_description
    for user in record.users:
        _participant(root, user)
    source = ElementTree.SubElement(root, "AuditSourceIdentification", AuditSourceID=source_id)
    if site_id:
        source.set("AuditEnterpriseSiteID", site_id)
    ElementTree.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    if record.study_uid:
        _study(root, record)
    if record.query:
        _query(root, record.query)
    if record.patient_id:
        patient = ElementTree.SubElement(
            root,
            "ParticipantObjectIdentification",
            ParticipantObjectID=record.patient_id,
            ParticipantObjectTypeCode="1",
            ParticipantObjectTypeCodeRole="1",
        )
        kind = ElementTree.SubElement(patient, "ParticipantObjectIDTypeCode")
        kind.attrib |= {
            "csd-code": PATIENT_NUMBER,
            "codeSystemName": "RFC-3881",
            "originalText": "Patient Number",
        }
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def syslog_line(record: AuditRecord, message: bytes, host: str) -> bytes:
    """RFC 5424, as PS3.15 A.6 fills it in."""
    priority = _LOG_AUDIT * 8 + _NOTICE
    at = datetime.fromisoformat(record.at).astimezone(UTC).isoformat(timespec="milliseconds")
    stamp = at.replace("+00:00", "Z")
    head = f"<{priority}>1 {stamp} {host} marrow-node {os.getpid()} {_MESSAGE_ID} - "
    return head.encode() + b"\xef\xbb\xbf" + message


def audit_event(record: AuditRecord, source_id: str, site_id: str) -> dict[str, Any]:
    """FHIR R4 AuditEvent."""
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "type": {"system": _DCM, "code": record.event, "display": EVENTS[record.event]},
        "action": record.action,
        "recorded": record.at,
        "outcome": record.outcome,
        "agent": [_agent(user) for user in record.users],
        "source": {
            "observer": {"display": source_id},
            "type": [
                {
                    "system": f"{_FHIR}/security-source-type",
                    "code": "4",
                    "display": "Application Server",
                }
            ],
        },
    }
    if record.outcome_description:
        event["outcomeDesc"] = record.outcome_description
    if record.kind:
        kind = {"system": _DCM, "code": record.kind, "display": TYPES[record.kind]}
        event["subtype"] = [kind]
    if site_id:
        event["source"]["site"] = site_id
    entities = list(_entities(record))
    return event | ({"entity": entities} if entities else {})


def _code(parent: ElementTree.Element, name: str, code: str, meaning: str) -> None:
    attributes = {"csd-code": code, "codeSystemName": "DCM", "originalText": meaning}
    ElementTree.SubElement(parent, name, attributes)


def _participant(root: ElementTree.Element, user: Mapping[str, Any]) -> None:
    element = ElementTree.SubElement(
        root,
        "ActiveParticipant",
        UserID=str(user["id"]),
        UserIsRequestor="true" if user["requestor"] else "false",
    )
    if user.get("address"):
        element.set("NetworkAccessPointID", str(user["address"]))
        element.set("NetworkAccessPointTypeCode", _network_type(str(user["address"])))
    if user.get("role"):
        _code(element, "RoleIDCode", str(user["role"]), ROLES[str(user["role"])])


def _study(root: ElementTree.Element, record: AuditRecord) -> None:
    study = ElementTree.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=record.study_uid,
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="3",
    )
    _code(study, "ParticipantObjectIDTypeCode", STUDY, "Study Instance UID")
    if record.sop_classes:
        description = ElementTree.SubElement(study, "ParticipantObjectDescription")
        for uid, instances in record.sop_classes.items():
            ElementTree.SubElement(
                description, "SOPClass", UID=uid, NumberOfInstances=str(instances)
            )


def _query(root: ElementTree.Element, query: str) -> None:
    """As IHE RAD TF-2 RAD-129 has it: the request, in Base64."""
    asked = ElementTree.SubElement(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID="QIDO-RS Query",
        ParticipantObjectTypeCode="2",
        ParticipantObjectTypeCodeRole="24",
    )
    kind = ElementTree.SubElement(asked, "ParticipantObjectIDTypeCode")
    kind.attrib |= {
        "csd-code": "RAD-129",
        "codeSystemName": "IHE Transactions",
        "originalText": "QIDO-RS Query",
    }
    ElementTree.SubElement(asked, "ParticipantObjectQuery").text = _base64(query)


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode("ascii")


def _agent(user: Mapping[str, Any]) -> dict[str, Any]:
    agent: dict[str, Any] = {
        "who": {"identifier": {"value": str(user["id"])}},
        "requestor": bool(user["requestor"]),
    }
    if user.get("role"):
        role = str(user["role"])
        agent["type"] = {"coding": [{"system": _DCM, "code": role, "display": ROLES[role]}]}
    if user.get("address"):
        address = str(user["address"])
        agent["network"] = {"address": address, "type": _network_type(address)}
    return agent


def _entities(record: AuditRecord) -> Any:
    if record.study_uid:
        identifier = {"system": "urn:dicom:uid", "value": f"urn:oid:{record.study_uid}"}
        details = [
            {"type": f"SOPClass {uid}", "valueString": str(instances)}
            for uid, instances in record.sop_classes.items()
        ]
        yield {
            "what": {"identifier": identifier},
            "type": {"system": f"{_FHIR}/audit-entity-type", "code": "2"},
            "role": {"system": f"{_FHIR}/object-role", "code": "3"},
            **({"detail": details} if details else {}),
        }
    if record.patient_id:
        yield {
            "what": {"identifier": {"value": record.patient_id}},
            "type": {"system": f"{_FHIR}/audit-entity-type", "code": "1"},
            "role": {"system": f"{_FHIR}/object-role", "code": "1"},
        }
    if record.query:
        yield {
            "type": {"system": f"{_FHIR}/audit-entity-type", "code": "2"},
            "role": {"system": f"{_FHIR}/object-role", "code": "24"},
            "query": _base64(record.query),
        }
    if record.what:
        yield {
            "what": {"display": record.what},
            "type": {"system": f"{_FHIR}/audit-entity-type", "code": "2"},
        }


def _network_type(address: str) -> str:
    """1 machine name, 2 IP address (RFC 3881 §5.3.2)."""
    is_ip = ":" in address or address.replace(".", "").isdigit()
    return "2" if is_ip else "1"
