"""TLS between a sender and the receiver: both sides prove who they are."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from dicom_io.commitment import Commitments
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
