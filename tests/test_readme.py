"""The README's "Beside my PACS", word by word: only addresses and paths are filled in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.fhir_fixture import FhirServer
from tests.servers import free_port, running_orthanc
from tests.smears import write_small_slide

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(heading: str, language: str, number: int = 0) -> str:
    """Return a fenced block below a heading."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]


def test_put_it_beside_your_pacs(tmp_path: Path, fhir_server: FhirServer) -> None:
    port, orthanc_port = free_port(), free_port()
    home = tmp_path / "home"
    home.mkdir()
    settings = block("Against my PACS", "toml")
    for written, filled in {
        "https://pacs.example/dicom-web": f"http://127.0.0.1:{orthanc_port}/dicom-web",
        "https://ehr.example/fhir": fhir_server.url,
        "/var/lib/marrow-node": str(home / "work"),
    }.items():
        assert written in settings
        settings = settings.replace(written, filled)
    (home / "node.toml").write_text(f"{settings}[serve]\nport = {port}\n")
    *keys, serve = block("Beside my PACS, day and night", "sh").strip().splitlines()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in keys:
        subprocess.run(line, shell=True, cwd=home, env=environment, check=True, timeout=60)  # noqa: S602
    made = dict(re.findall(r"# (\w+): (mnk_\S+)", (home / "node.toml").read_text()))
    rule = json.loads(
        block("Beside my PACS, day and night", "json")
        .replace("docker/rules", str(ROOT / "docker" / "rules"))
        .replace("localhost:8080", f"127.0.0.1:{port}")
        .replace("mnk_…", made["orthanc"])
    )
    slide = write_small_slide(tmp_path / "slide")
    further = rule | {"StableAge": 1, "HttpPort": orthanc_port}
    with running_orthanc(tmp_path / "orthanc", further=further) as orthanc:
        with (tmp_path / "log").open("wb") as log:
            service = subprocess.Popen(
                ["bash", "-c", f"exec {serve}"], cwd=home, env=environment, stderr=log
            )
        try:
            _until_ready(port, tmp_path / "log")
            orthanc.add(*slide.paths)
            job = _ended_job(port, made["anna"], tmp_path / "log")
            assert job["status"] == "completed", job
            reports = requests.get(f"{fhir_server.url}/DiagnosticReport", timeout=10).json()
            assert len(reports["entry"]) == 1
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait(40)


def _until_ready(port: int, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def _ended_job(port: int, key: str, log: Path) -> dict[str, object]:
    end = time.monotonic() + 120
    jobs: list[dict[str, object]] = []
    while time.monotonic() < end:
        answer = requests.get(f"http://127.0.0.1:{port}/jobs", auth=("anna", key), timeout=10)
        jobs = answer.json()["jobs"]
        if jobs and jobs[0]["status"] in ("completed", "failed"):
            return jobs[0]
        time.sleep(0.5)
    raise AssertionError(f"{jobs}; {log.read_text()}")
