"""A real Orthanc's rule fires, and the results are back without a hand on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.fhir_fixture import FhirServer
from tests.servers import (
    DICOMWEB_PLUGIN,
    PYTHON_PLUGIN,
    cannot_run,
    free_port,
    running_orthanc,
)
from tests.service import Service, key_of, service_settings
from tests.smears import small_smear

RULES = Path(__file__).parents[1] / "docker" / "rules"


def lua(node_url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Orthanc's configuration with its Lua rule."""
    return {
        "LuaScripts": [str(RULES / "orthanc.lua")],
        "MarrowNode": {"Url": node_url, "Key": key},
    }


def python(node_url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Orthanc's configuration with its Python rule, which reads its environment."""
    if not PYTHON_PLUGIN.exists():
        cannot_run("Orthanc has no Python here: apt-get install orthanc-python")
    monkeypatch.setenv("MARROW_NODE_URL", node_url)
    monkeypatch.setenv("MARROW_NODE_KEY", key)
    plugins = [str(DICOMWEB_PLUGIN), str(PYTHON_PLUGIN)]
    return {"Plugins": plugins, "PythonScript": str(RULES / "orthanc_rule.py")}


@pytest.mark.parametrize(
    ("rule", "reason"), [(lua, "Orthanc OnStableSeries"), (python, "Orthanc, stable series")]
)
def test_orthancs_rule_brings_results_into_archive_and_ehr(
    rule: Callable[..., dict[str, Any]],
    reason: str,
    tmp_path: Path,
    fhir_server: FhirServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smear = small_smear(tmp_path)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    further = {"StableAge": 1, **rule(url, key_of("submit"), monkeypatch)}
    with running_orthanc(tmp_path / "orthanc", further=further) as orthanc:
        config = service_settings(
            smear, port, pacs_url=orthanc.dicomweb_url, ehr_url=fhir_server.url
        )
        service = Service(url, smear, config, tmp_path / "service.log")
        try:
            service.start()
            orthanc.add(*smear.slide.paths)
            job = _only_job(service)
            done = service.ended(job)
            assert done["status"] == "completed", done
            assert done["reason"] == reason
            modalities = {
                requests.get(f"{orthanc.rest_url}/series/{series}", timeout=10).json()[
                    "MainDicomTags"
                ]["Modality"]
                for series in requests.get(f"{orthanc.rest_url}/series", timeout=10).json()
            }
            assert modalities == {"SM", "ANN", "SEG", "SR"}
            reports = requests.get(f"{fhir_server.url}/DiagnosticReport", timeout=10).json()
            assert [each["resource"]["status"] for each in reports["entry"]] == ["partial"]
            # The results are stable series too, and the slide may be sent again: still one job.
            orthanc.add(*smear.slide.paths)
            time.sleep(4)
            assert len(service.get("/jobs")["jobs"]) == 1
            assert service.get(f"/jobs/{job}")["tries"] == 1
            print(f"from the rule's POST to the first step: {_wait_s(service, job):.2f} s")
        finally:
            service.stop()


def _only_job(service: Service) -> str:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        jobs = service.get("/jobs")["jobs"]
        if jobs:
            return str(jobs[0]["job"])
        time.sleep(0.2)
    raise AssertionError(service.log.read_text())


def _wait_s(service: Service, job: str) -> float:
    """Seconds from the answer to the rule until the slide was opened, as the log has them."""
    lines = service.log.read_text().splitlines()
    submitted = next(line for line in lines if f"job {job} was submitted" in line)
    opened = next(line for line in lines if "is read in optical path" in line)
    first, second = (
        datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in (submitted, opened)
    )
    return (second - first).total_seconds()
