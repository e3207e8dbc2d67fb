"""The audit trail: what is recorded, how it reads, and that nothing of it is lost."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import requests
import trustme
from fhir.resources.R4B.auditevent import AuditEvent

from dicom_io.errors import ConfigurationInvalid
from node.audit import AuditTrail, forwarding
from node.audit_messages import AuditRecord, audit_event, audit_message, syslog_line
from node.audit_settings import AuditSettings
from node.audited import MOST_ADDRESSES, RefusedLogins
from tests.fhir_fixture import FhirServer
from tests.served import served
from tests.service import running_service
from tests.smears import small_smear

TRANSFER = AuditRecord(
    event="110104",
    action="C",
    at="2026-11-26T12:00:00.123+00:00",
    users=[
        {"id": "marrow-node", "role": "110153", "requestor": True},
        {"id": "pacs.example", "role": "110152", "requestor": False, "address": "192.0.2.7"},
    ],
    study_uid="1.2.3",
    sop_classes={"1.2.840.10008.5.1.4.1.1.91.1": 1},
    patient_id="P<1>&",
)


def test_a_dicom_message_reads_as_the_standard_has_it() -> None:
    root = ElementTree.fromstring(audit_message(TRANSFER, "node 1", "Hospital"))  # noqa: S314
    assert [child.tag for child in root] == [
        "EventIdentification",
        "ActiveParticipant",
        "ActiveParticipant",
        "AuditSourceIdentification",
        "ParticipantObjectIdentification",
        "ParticipantObjectIdentification",
    ]
    event = root.find("EventIdentification/EventID")
    assert event is not None
    assert event.attrib == {
        "csd-code": "110104",
        "codeSystemName": "DCM",
        "originalText": "DICOM Instances Transferred",
    }
    roles = [role.get("csd-code") for role in root.iter("RoleIDCode")]
    assert roles == ["110153", "110152"]
    objects = [
        each.get("ParticipantObjectID") for each in root.iter("ParticipantObjectIdentification")
    ]
    assert objects == ["1.2.3", "P<1>&"]
    sop_class = next(root.iter("SOPClass"))
    assert sop_class.attrib == {"UID": "1.2.840.10008.5.1.4.1.1.91.1", "NumberOfInstances": "1"}


def test_a_search_is_recorded_with_its_keys() -> None:
    record = AuditRecord("110112", "E", TRANSFER.at, TRANSFER.users, query="/series?PatientID=7")
    root = ElementTree.fromstring(audit_message(record, "node 1", ""))  # noqa: S314
    asked = root.find("ParticipantObjectIdentification/ParticipantObjectQuery")
    assert asked is not None
    assert b64decode(asked.text or "") == b"/series?PatientID=7"
    AuditEvent.model_validate(audit_event(record, "node 1", ""))


def test_a_syslog_line_is_rfc_5424() -> None:
    line = syslog_line(TRANSFER, b"<AuditMessage/>", "host")
    head, _, message = line.partition(b"\xef\xbb\xbf")
    priority, stamp, host, application, process, identifier, data, _ = head.split(b" ")
    assert (priority, host, application, identifier, data) == (
        b"<85>1",
        b"host",
        b"marrow-node",
        b"DICOM+RFC3881",
        b"-",
    )
    assert stamp == b"2026-11-26T12:00:00.123Z"
    assert process.isdigit()
    assert message == b"<AuditMessage/>"


def test_an_audit_event_is_fhir(fhir_server: FhirServer) -> None:
    event = audit_event(TRANSFER, "node 1", "Hospital")
    AuditEvent.model_validate(event)
    answer = requests.post(f"{fhir_server.url}/AuditEvent", json=event, timeout=30)
    assert answer.status_code == 201, answer.text


class Collector:
    """A syslog collector over TLS that can be turned off and on (RFC 5425)."""

    def __init__(self, authority: trustme.CA) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self._context)
        self.messages: list[bytes] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator[None]:
        listener = socket.create_server(("127.0.0.1", self.port))
        thread = threading.Thread(target=self._accept, args=(listener,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join(5)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with self._context.wrap_socket(plain, server_side=True) as connection:
                stream = connection.makefile("rb")
                while True:
                    length = b""
                    while (digit := stream.read(1)).isdigit():
                        length += digit
                    if not length:
                        break
                    self.messages.append(stream.read(int(length)))


def test_records_wait_while_the_collector_is_down(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    collector = Collector(authority)
    settings = AuditSettings(
        syslog_url=f"tls://localhost:{collector.port}", ca_bundle=tmp_path / "ca.pem"
    )
    trail = AuditTrail(settings, tmp_path / "audit")
    for _ in range(5):
        trail.record(TRANSFER)
    with forwarding(settings, tmp_path / "audit"):
        time.sleep(0.5)
        assert trail.waiting() == 5
    with collector.running(), forwarding(settings, tmp_path / "audit"):
        _until(lambda: trail.waiting() == 0)
    _until(lambda: len(collector.messages) == 5)
    assert all(message.startswith(b"<85>1 ") for message in collector.messages)


def test_two_processes_send_each_record_once(tmp_path: Path, fhir_server: FhirServer) -> None:
    settings = AuditSettings(fhir_url=fhir_server.url)
    trail = AuditTrail(settings, tmp_path)
    for _ in range(10):
        trail.record(TRANSFER)
    with forwarding(settings, tmp_path), forwarding(settings, tmp_path):
        _until(lambda: trail.waiting() == 0)
    assert len(events_in(fhir_server)) == 10


def test_without_a_repository_nothing_is_written(tmp_path: Path) -> None:
    AuditTrail(AuditSettings(), tmp_path).record(TRANSFER)
    assert not list(tmp_path.iterdir())


def test_syslog_travels_over_tls_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="tls://"):
        AuditTrail(AuditSettings(syslog_url="udp://host:514"), tmp_path)


def test_the_service_leaves_a_trail(tmp_path: Path, fhir_server: FhirServer) -> None:
    smear = small_smear(tmp_path)
    with running_service(smear, {"audit": {"fhir_url": fhir_server.url}}) as service:
        job = service.submit_slide()
        done = service.ended(job)
        assert done["status"] == "completed", done
        assert service.ask("GET", done["result"]["files"]["overview"], "read").ok
        service.ask("GET", "/jobs", None, headers={"Authorization": "Bearer mnk_wrong"})
        assert service.ask("GET", "/dicom-web/series?Modality=SR", "read").ok
        lost = service.submit(study_uid="1.2.3", series_uid="1.2.3.4")["job"]
        service.ended(lost)
        assert service.ask("POST", f"/jobs/{lost}/retry", "operate").ok
        service.ended(lost)
        wanted = {"110100", "110103", "110104", "110106", "110111", "110112", "110114"}
        _until(lambda: {code for code, _ in events_of(fhir_server)} >= wanted, 40)
        _until(lambda: "tried again" in json.dumps(events_in(fhir_server)))
        events = events_of(fhir_server)
    assert {("110104", "C"), ("110104", "R"), ("110111", "C"), ("110111", "U")} <= set(events)
    assert events["110111", "C"]["agent"][0]["who"]["identifier"]["value"] == "submit"
    assert events["110111", "U"]["agent"][0]["who"]["identifier"]["value"] == "operate"
    (asked,) = events["110112", "E"]["entity"]
    assert b64decode(asked["query"]) == b"/dicom-web/series?Modality=SR"
    assert events["110114", "E"]["outcome"] == "4"
    assert "mnk_wrong" not in json.dumps(events_in(fhir_server))


def events_of(server: FhirServer) -> dict[tuple[str, str], dict[str, Any]]:
    """One of each kind of event and action."""
    return {(each["type"]["code"], each["action"]): each for each in events_in(server)}


def events_in(server: FhirServer) -> list[dict[str, Any]]:
    found = requests.get(f"{server.url}/AuditEvent?_count=200", timeout=30).json()
    return [entry["resource"] for entry in found.get("entry", [])]


def _until(holds: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


class Repository:
    """A FHIR repository that answers as told; `seen` are the records that it took."""

    def __init__(self, status_of: Callable[[bytes], int]) -> None:
        self.status_of = status_of
        self.seen: list[bytes] = []

    @contextmanager
    def running(self) -> Iterator[AuditSettings]:
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = repository.status_of(body)
                if status == 201:
                    repository.seen.append(body)
                self.send_response(status)
                self.send_header("Content-Type", "application/fhir+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
            yield AuditSettings(fhir_url=url)


@pytest.mark.parametrize("status", [404, 503])
def test_what_a_repository_has_acknowledged_is_not_sent_again(tmp_path: Path, status: int) -> None:
    """It takes nothing from its third record on, for a while: those before it are there once."""
    repository = Repository(lambda _: 201 if len(repository.seen) < 2 else status)
    with repository.running() as settings:
        trail = AuditTrail(settings, tmp_path)
        for number in range(5):
            trail.record(replace(TRANSFER, study_uid=f"1.2.{number}"))
        with forwarding(settings, tmp_path):
            _until(lambda: trail.waiting() == 3)
            time.sleep(0.5)
        repository.status_of = lambda _: 201
        with forwarding(settings, tmp_path):
            _until(lambda: trail.waiting() == 0)
    assert len(repository.seen) == len(set(repository.seen)) == 5
    assert trail.refused() == 0


@pytest.mark.parametrize("status", [400, 422])
def test_a_record_that_is_refused_holds_up_no_other(tmp_path: Path, status: int) -> None:
    repository = Repository(lambda body: status if b"1.2.1" in body else 201)
    with repository.running() as settings:
        trail = AuditTrail(settings, tmp_path)
        for number in range(3):
            trail.record(replace(TRANSFER, study_uid=f"1.2.{number}"))
        with forwarding(settings, tmp_path):
            _until(lambda: trail.waiting() == 0)
        assert (len(repository.seen), trail.refused()) == (2, 1)
        (aside,) = (tmp_path / "fhir" / "refused").iterdir()
        assert "1.2.1" in aside.read_text()
        # Put back when the repository was mended, it is sent like any other.
        repository.status_of = lambda _: 201
        aside.rename(tmp_path / "fhir" / aside.name)
        with forwarding(settings, tmp_path):
            _until(lambda: trail.waiting() == 0)
    assert (len(repository.seen), trail.refused()) == (3, 0)


def test_a_file_that_is_no_record_holds_up_no_other(tmp_path: Path) -> None:
    repository = Repository(lambda _: 201)
    with repository.running() as settings:
        trail = AuditTrail(settings, tmp_path)
        trail.record(TRANSFER)
        (tmp_path / "fhir" / "0.json").write_text('{"event": ')
        (tmp_path / "fhir" / "1.json").write_text('{"of": "another version"}')
        with forwarding(settings, tmp_path):
            _until(lambda: trail.waiting() == 0)
    assert (len(repository.seen), trail.refused()) == (1, 2)


def test_refused_credentials_are_recorded_together(tmp_path: Path) -> None:
    settings = AuditSettings(fhir_url="http://127.0.0.1:9")
    refusals = RefusedLogins(AuditTrail(settings, tmp_path), together_s=2)
    for _ in range(50):
        refusals.saw("192.0.2.7")
    refusals.saw("192.0.2.8")
    records = tmp_path / "fhir"
    assert len(list(records.iterdir())) == 2
    _until(lambda: len(list(records.iterdir())) == 3)
    kept = [AuditRecord(**json.loads(path.read_bytes())) for path in records.iterdir()]
    (last,) = (record for record in kept if "further" in record.outcome_description)
    assert last.users[0]["address"] == "192.0.2.7"
    assert last.outcome_description == "49 further within 2 s"
    AuditEvent.model_validate(audit_event(last, "node 1", ""))
    message = ElementTree.fromstring(audit_message(last, "node 1", ""))  # noqa: S314
    described = message.find("EventIdentification/EventOutcomeDescription")
    assert described is not None
    assert described.text == last.outcome_description
    refusals.saw("192.0.2.7")
    assert len(list(records.iterdir())) == 4


def test_refused_credentials_from_everywhere_are_a_bounded_number_of_records(
    tmp_path: Path,
) -> None:
    refusals = RefusedLogins(AuditTrail(AuditSettings(fhir_url="http://127.0.0.1:9"), tmp_path))
    for number in range(MOST_ADDRESSES + 100):
        refusals.saw(f"2001:db8::{number:x}")
    assert len(list((tmp_path / "fhir").iterdir())) == MOST_ADDRESSES + 1
