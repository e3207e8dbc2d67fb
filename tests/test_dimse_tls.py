"""TLS between a sender and the receiver: both sides prove who they are."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.events import Event

from dicom_io.commitment import STORAGE_COMMITMENT, VERIFICATION, Commitments
from dicom_io.dimse_settings import ReceiveSettings
from dicom_io.errors import PacsUnreachable
from dicom_io.receiver import Receiver
from node.outputs import encode_documents
from tests.analyses import small_slide, some_analysis
from tests.servers import free_port
from tests.test_dimse import QUICK, opened


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    return encode_documents(some_analysis(small_slide(tmp_path_factory.mktemp("slide"))))


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost that is its own authority, and its key."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"),
            *("-out", str(paths[0]), "-keyout", str(paths[1])),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates")
@pytest.mark.parametrize(
    ("trusts", "shows", "works"),
    [
        ("node", "sender", True),
        ("sender", "sender", False),
        ("node", None, False),
    ],
)
def test_tls_proves_both_sides(
    documents: dict[str, Dataset],
    tmp_path: Path,
    trusts: str,
    shows: str | None,
    works: bool,
) -> None:
    made = {name: certificate(tmp_path, name) for name in ("node", "sender")}
    port = free_port()
    receiver = Receiver(
        ReceiveSettings(
            folder=tmp_path / "received",
            port=port,
            certificate=made["node"][0],
            key=made["node"][1],
            ca_bundle=made["sender"][0],
        ),
        Commitments(tmp_path / "commitments"),
        lambda arrival, association: None,
        lambda association: None,
    )
    settings = replace(QUICK, ca_bundle=made[trusts][0], retries=0)
    if shows is not None:
        settings = replace(settings, certificate=made[shows][0], key=made[shows][1])
    pacs = opened(port, tmp_path, settings, title="MARROW_NODE")
    with receiver.listening():
        if works:
            pacs.store([documents["SR"]])
        else:
            with pytest.raises(PacsUnreachable, match="TLS"):
                pacs.store([documents["SR"]])
    kept = [path.name for path in (tmp_path / "received" / "archive").rglob("*") if path.is_file()]
    assert kept == ([documents["SR"].SOPInstanceUID] if works else [])


@contextmanager
def reporting_archive(
    tls: ssl.SSLContext, reports_over: ssl.SSLContext | None, node_port: int
) -> Iterator[int]:
    """Hears over TLS, and reports storage commitment on an association of its own; its port."""
    reporters: list[threading.Thread] = []

    def report(asked: Dataset) -> None:
        ae = AE("ARCHIVE")
        ae.acse_timeout = ae.connection_timeout = 5
        ae.add_requested_context(STORAGE_COMMITMENT)
        association = ae.associate(
            "127.0.0.1",
            node_port,
            ae_title=QUICK.calling_ae_title,
            ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)],
            tls_args=None if reports_over is None else (reports_over, "localhost"),
        )
        if association.is_established:
            association.send_n_event_report(asked, 1, STORAGE_COMMITMENT, "1.2.840.10008.1.20.1.1")
            association.release()

    def act(event: Event) -> tuple[int, None]:
        reporters.append(threading.Thread(target=report, args=(event.action_information,)))
        reporters[-1].start()
        return 0x0000, None

    ae = AE("ARCHIVE")
    ae.add_supported_context(VERIFICATION)
    ae.add_supported_context(STORAGE_COMMITMENT)
    port = free_port()
    ae.start_server(
        ("127.0.0.1", port), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_N_ACTION, act)]
    )
    try:
        yield port
    finally:
        for reporter in reporters:
            reporter.join()
        ae.shutdown()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates")
@pytest.mark.parametrize(
    ("over_tls", "shows", "said"),
    [
        (True, True, "storage committed"),
        (False, True, "no report within 2 s"),
        (False, False, "no report within 2 s"),
    ],
)
def test_reports_are_heard_over_tls_alone_where_the_archive_speaks_it(
    documents: dict[str, Dataset], tmp_path: Path, over_tls: bool, shows: bool, said: str
) -> None:
    made = {name: certificate(tmp_path, name) for name in ("node", "archive")}
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*made["archive"])
    client = ssl.create_default_context(cafile=str(made["node"][0]))
    client.load_cert_chain(*made["archive"])
    node_port = free_port()
    settings = replace(
        QUICK,
        ca_bundle=made["archive"][0],
        certificate=made["node"][0] if shows else None,
        key=made["node"][1] if shows else None,
        commitment_port=node_port,
        commitment_wait_s=2.0,
    )
    with reporting_archive(server, client if over_tls else None, node_port) as port:
        pacs = opened(port, tmp_path, settings, title="ARCHIVE")
        assert said in pacs.commitment(documents["SR"])
