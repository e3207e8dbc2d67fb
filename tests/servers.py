"""Real servers for tests, started on free loopback ports and stopped afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests

ORTHANC = shutil.which("Orthanc")
DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING_ORTHANC = "no Orthanc with DICOMweb here: apt-get install orthanc orthanc-dicomweb"
PYTHON_PLUGIN = DICOMWEB_PLUGIN.with_name("libOrthancPython.so")


@dataclass(frozen=True)
class Orthanc:
    """A running archive.

    Attributes
    ----------
    rest_url
        Orthanc's own interface.
    dicomweb_url
    pid
        Of its process.
    dicom_port
        Of its DIMSE side, AE title ORTHANC; None where that is off.
    """

    rest_url: str
    pid: int
    dicom_port: int | None = None

    @property
    def dicomweb_url(self) -> str:
        return f"{self.rest_url}/dicom-web"

    def add(self, *paths: Path) -> None:
        """Put files into the archive, as they are."""
        for path in paths:
            answer = requests.post(f"{self.rest_url}/instances", data=path.read_bytes(), timeout=30)
            answer.raise_for_status()

    def clear(self) -> None:
        """Delete everything."""
        for patient in requests.get(f"{self.rest_url}/patients", timeout=30).json():
            requests.delete(f"{self.rest_url}/patients/{patient}", timeout=30).raise_for_status()


def cannot_run(reason: str) -> NoReturn:
    """Skip with the reason, or fail where all servers are required."""
    if os.environ.get("MARROW_NODE_TESTS_REQUIRE_SERVERS"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """Path of a program that a test runs, which `package` of apt-get brings."""
    found = shutil.which(name)
    if found is None:
        cannot_run(f"{name} is not installed: apt-get install {package}")
    return found


def orthanc_missing() -> bool:
    return ORTHANC is None or not DICOMWEB_PLUGIN.exists()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running_orthanc(
    folder: Path, node_port: int | None = None, further: Mapping[str, Any] | None = None
) -> Iterator[Orthanc]:
    """Start Orthanc with its storage in `folder`; the same folder again is the same archive.

    Without Orthanc the test is skipped.

    Parameters
    ----------
    node_port
        Turns DIMSE on: where Orthanc finds the AE MARROW_NODE, to report storage commitment.
    further
        Configuration beside the usual one.
    """
    if orthanc_missing():
        cannot_run(MISSING_ORTHANC)
    port = (further or {}).get("HttpPort") or free_port()
    dicom_port = None if node_port is None else free_port()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "HttpPort": port,
                "DicomServerEnabled": dicom_port is not None,
                "DicomPort": dicom_port or 4242,
                "DicomAet": "ORTHANC",
                "DicomCheckCalledAet": True,
                "DicomModalities": {
                    "node": {"AET": "MARROW_NODE", "Host": "127.0.0.1", "Port": node_port or 104}
                },
                "AuthenticationEnabled": False,
                "OverwriteInstances": True,
                "Plugins": [str(DICOMWEB_PLUGIN)],
                "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
                **(further or {}),
            }
        )
    )
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([str(ORTHANC), str(configuration)], stdout=log, stderr=log)
        try:
            server = Orthanc(f"http://127.0.0.1:{port}", process.pid, dicom_port)
            _wait_for(f"{server.rest_url}/system", process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_port(port: int, seconds: float = 20) -> None:
    """Wait until something listens on a loopback port."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            if requests.get(url, timeout=2).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise RuntimeError(f"the server did not answer at {url} within {seconds} s")
