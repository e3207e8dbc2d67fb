"""The service over TLS: its own certificate, and clients that have to show theirs."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import trustme

from tests.servers import free_port
from tests.service import key_of, service_settings
from tests.smears import Smear, write_small_slide

AUTHORIZED = {"Authorization": f"Bearer {key_of('read')}"}


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "node.pem"
    )
    authority.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "client.pem"
    )
    return authority


@contextmanager
def web_process(tmp_path: Path, **serve: object) -> Iterator[str]:
    """The web process alone, with a certificate; its address."""
    port = free_port()
    smear = Smear(write_small_slide(tmp_path / "pacs"), tmp_path)
    tables = {"serve": {"host": "localhost", "certificate": str(tmp_path / "node.pem"), **serve}}
    config = service_settings(smear, port, tables)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "node", "--config", str(config), "web"], stderr=log
        )
        try:
            end = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("localhost", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < end, (tmp_path / "log").read_text()
                    time.sleep(0.1)
            yield f"https://localhost:{port}"
        finally:
            process.terminate()
            process.wait(40)


@pytest.mark.usefixtures("authority")
def test_the_service_speaks_tls_and_nothing_else(tmp_path: Path) -> None:
    with web_process(tmp_path) as url:
        answer = requests.get(
            f"{url}/jobs", headers=AUTHORIZED, verify=tmp_path / "ca.pem", timeout=10
        )
        assert answer.ok, answer.text
        assert "max-age" in answer.headers["Strict-Transport-Security"]
        with pytest.raises(requests.ConnectionError):
            requests.get(url.replace("https", "http"), timeout=10).raise_for_status()
        assert shakes_hands(url, tmp_path, ssl.TLSVersion.TLSv1_2)
        assert not shakes_hands(url, tmp_path, ssl.TLSVersion.TLSv1_1)


def shakes_hands(url: str, tmp_path: Path, version: ssl.TLSVersion) -> bool:
    """Whether the service takes a client that speaks this version alone."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(tmp_path / "ca.pem")
    client.set_ciphers("DEFAULT@SECLEVEL=0")  # so that it is the server who decides
    client.minimum_version = client.maximum_version = version
    host, port = url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        try:
            client.wrap_socket(plain, server_hostname=host).close()
        except (ssl.SSLError, ConnectionResetError):
            return False
    return True


@pytest.mark.usefixtures("authority")
def test_clients_have_to_show_a_certificate(tmp_path: Path) -> None:
    with web_process(tmp_path, ca_bundle=str(tmp_path / "ca.pem")) as url:
        known = requests.get(
            f"{url}/jobs",
            headers=AUTHORIZED,
            verify=tmp_path / "ca.pem",
            cert=str(tmp_path / "client.pem"),
            timeout=10,
        )
        assert known.ok, known.text
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}/jobs", headers=AUTHORIZED, verify=tmp_path / "ca.pem", timeout=10)
        stranger = trustme.CA().issue_cert("client.example")
        stranger.private_key_and_cert_chain_pem.write_to_path(tmp_path / "stranger.pem")
        with pytest.raises(requests.ConnectionError):
            requests.get(
                f"{url}/jobs",
                headers=AUTHORIZED,
                verify=tmp_path / "ca.pem",
                cert=str(tmp_path / "stranger.pem"),
                timeout=10,
            )
