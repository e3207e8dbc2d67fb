"""A real Orthanc's rule fires, and the results are back without a hand on it."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest
import requests

from tests.fhir_fixture import FhirServer
from tests.servers import MISSING_ORTHANC, free_port, orthanc_missing, running_orthanc
from tests.service import Service, key_of, service_settings
from tests.smears import small_smear

RULE = Path(__file__).parents[1] / "docker" / "rules" / "orthanc.lua"


@pytest.mark.skipif(orthanc_missing(), reason=MISSING_ORTHANC)
def test_orthancs_rule_brings_results_into_archive_and_ehr(
    tmp_path: Path, fhir_server: FhirServer
) -> None:
    smear = small_smear(tmp_path)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    rule = {
        "LuaScripts": [str(RULE)],
        "StableAge": 1,
        "MarrowNode": {"Url": url, "Key": key_of("submit")},
    }
    with running_orthanc(tmp_path / "orthanc", further=rule) as orthanc:
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
            assert done["reason"] == "Orthanc OnStableSeries"
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
