"""The service over HTTP: ways in, sight, roles, and what a routing rule needs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from pydicom import dcmread
from werkzeug.routing import Rule

from node.config import load_settings
from node.job_database import open_job_database
from node.web.access import ENDPOINTS, digest_of
from node.web.app import create_app
from node.web.settings import ROLES
from tests.served import served
from tests.service import Service, key_of, running_service
from tests.smears import small_smear

UNKNOWN = {"study_uid": "1.2.3", "series_uid": "1.2.3.4"}


# What the open endpoints answer to somebody without a key.
OPEN = {
    "health.alive": (200,),
    "health.ready": (200, 503),
    "login.begin": (401,),
    "login.end": (401,),
    "static": (404,),
}


@dataclass
class _Told:
    """Who asked to be called back, and what was told."""

    origin: str = ""
    bodies: list[dict[str, object]] = field(default_factory=list)


@pytest.fixture(scope="module")
def told() -> Iterator[_Told]:
    told = _Told()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as told.origin:
        yield told


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, told: _Told) -> Iterator[Service]:
    smear = small_smear(tmp_path_factory.mktemp("service"))
    with running_service(smear, {"serve": {"callbacks": [told.origin]}}) as running:
        yield running


def rules_of(service: Service) -> list[Rule]:
    """Every route of the application."""
    settings = load_settings(service.config)
    with open_job_database(settings) as database:
        return list(create_app(settings, database).url_map.iter_rules())


@pytest.fixture(scope="module")
def job(service: Service, told: _Told) -> str:
    """A job that was completed, and told of."""
    job = service.submit_slide(callback=f"{told.origin}/done", priority="urgent", reason="rule 7")
    ended = service.ended(job)
    assert ended["status"] == "completed", ended
    return job


def test_a_submitted_slide_is_analysed_and_told_of(service: Service, job: str, told: _Told) -> None:
    seen = service.get(f"/jobs/{job}")
    assert (seen["priority"], seen["reason"]) == ("urgent", "rule 7")
    assert seen["arrival"] == "whole by count"
    assert seen["percent"] == 100
    assert seen["result"]["cells"] == seen["cells"] > 10
    end = time.monotonic() + 20
    while not told.bodies and time.monotonic() < end:
        time.sleep(0.1)
    assert [body["job"] for body in told.bodies] == [job]
    assert told.bodies[0]["status"] == "completed"


def test_the_same_slide_is_one_job(service: Service, job: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: service.submit_slide(), range(100)))
    assert set(said) == {job}
    assert service.get(f"/jobs/{job}")["tries"] == 1
    assert [each["job"] for each in service.listed()].count(job) == 1


def test_files_are_what_was_delivered(service: Service, job: str) -> None:
    files = service.get(f"/jobs/{job}")["result"]["files"]
    assert all(path.startswith(f"/jobs/{job}/files/") for path in files.values())
    answer = service.ask("GET", files["ANN"], "read")
    assert answer.headers["Content-Type"] == "application/dicom"
    path = service.smear.folder / "ann.dcm"
    path.write_bytes(answer.content)
    assert dcmread(path).SOPInstanceUID == service.get(f"/jobs/{job}")["result"]["ann"][0][2]
    again = service.ask("GET", files["ANN"], headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    assert service.ask("GET", f"/jobs/{job}/files/../../jobs.sqlite").status_code == 404
    assert service.ask("GET", f"/jobs/{job}/files/report-pdf.dcm").status_code == 404


def test_events_end_with_the_job(service: Service, job: str) -> None:
    answer = service.ask("GET", f"/jobs/{job}/events")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    told = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    assert json.loads(told[-1].removeprefix("data: "))["status"] == "completed"


def test_a_study_or_an_accession_number_means_its_slides(service: Service, job: str) -> None:
    accession = dcmread(
        next(iter(service.smear.slide.paths)), stop_before_pixels=True
    ).AccessionNumber
    for wanted in ({"study_uid": service.smear.slide.study_uid}, {"accession_number": accession}):
        search = service.submit(**wanted)["search"]
        end = time.monotonic() + 30
        while (found := service.get(f"/searches/{search}"))["status"] not in (
            "completed",
            "failed",
        ) and time.monotonic() < end:
            time.sleep(0.1)
        assert found["jobs"] == [job], found


def test_what_does_not_come_fails_and_can_be_tried_again(service: Service) -> None:
    job = service.submit(**UNKNOWN)["job"]
    failed = service.ended(job)
    assert failed["status"] == "failed"
    assert failed["exit_code"] == 21
    assert "1.2.3.4" in failed["error"]
    assert job in [each["job"] for each in service.listed("?status=failed")]
    assert service.ask("POST", f"/jobs/{job}/retry", "operate").status_code == 202
    assert service.ended(job)["tries"] == 2


def test_a_waiting_job_can_be_cancelled(service: Service) -> None:
    job = service.submit(study_uid="1.2.3", series_uid="1.2.3.5")["job"]
    answer = service.ask("POST", f"/jobs/{job}/cancel", "operate")
    assert answer.status_code == 202, answer.text
    assert service.ended(job)["status"] == "cancelled"
    refused = service.ask("POST", f"/jobs/{job}/cancel", "operate")
    assert refused.status_code == 409
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert "cancelled" in refused.json()["detail"]


def test_another_model_is_another_job(service: Service, job: str) -> None:
    answer = service.ask("POST", f"/jobs/{job}/rerun", "operate", json={"model": "demo-smear"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["job"] != job
    assert answer.json()["model"] == "demo-smear"
    assert service.ended(answer.json()["job"])["status"] == "completed"
    missing = service.ask("POST", f"/jobs/{job}/rerun", "operate", json={"model": "none"})
    assert missing.status_code == 422
    assert "none" in missing.json()["detail"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "names no slide"),
        ({"series_uid": "1.2.3"}, "names no slide"),
        ({**UNKNOWN, "accession_number": "A1"}, "names no slide"),
        ({**UNKNOWN, "study_uid": "1.2.3/../4"}, "study_uid"),
        ({**UNKNOWN, "study_uid": "1." + "2" * 63}, "study_uid"),
        ({**UNKNOWN, "study_uid": 5}, "study_uid"),
        ({**UNKNOWN, "priority": "now"}, "priority"),
        ({**UNKNOWN, "callback": "http://elsewhere.example/x"}, "serve.callbacks"),
        ({**UNKNOWN, "pacs_url": "http://elsewhere.example"}, "pacs_url"),
        ([], "the body"),
    ],
)
def test_bad_bodies_are_named(service: Service, body: object, named: str) -> None:
    before = len(service.listed())
    answer = service.ask("POST", "/jobs", "submit", json=body)
    assert answer.status_code == 400
    assert named in answer.json()["detail"]
    assert len(service.listed()) == before


def test_bad_requests_are_refused(service: Service) -> None:
    def post(**more: object) -> int:
        return service.ask("POST", "/jobs", **more).status_code

    assert post(data="{", headers={"Content-Type": "application/json"}) == 400
    assert post(data="study", headers={"Content-Type": "text/plain"}) == 415
    assert post(json={"reason": "x" * (1 << 20)}) == 413
    assert service.ask("DELETE", "/jobs").status_code == 405
    assert service.ask("GET", "/jobs/none").status_code == 404
    assert service.ask("GET", "/jobs?limit=0").status_code == 400
    assert service.ask("GET", "/jobs?status=lost").status_code == 400
    assert service.ask("POST", "/jobs", json={**UNKNOWN, "model": "none"}).status_code == 422


def test_every_route_needs_its_role(service: Service, job: str) -> None:
    """A matrix: no key, a wrong one, and each role against each endpoint."""
    seen: Counter[str] = Counter()
    for rule in rules_of(service):
        path = rule.rule
        for name in rule.arguments:
            path = path.replace(f"<{name}>", "none").replace(f"<path:{name}>", "none")
        needed = ENDPOINTS[rule.endpoint]
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"}):
            if needed is None:
                assert service.ask(method, path, None).status_code in OPEN[rule.endpoint]
                continue
            assert service.ask(method, path, None).status_code == 401, (method, path)
            wrong = service.ask(method, path, None, headers={"Authorization": "Bearer mnk_x"})
            assert wrong.status_code == 401
            for role in ROLES:
                allowed = role in (needed, "admin")
                status = service.ask(method, path, role).status_code
                assert (status not in (401, 403)) == allowed, (method, path, role, status)
                seen[role] += allowed
    assert all(seen[role] for role in ROLES if role not in ("sign",)), seen


def test_unknown_addresses_tell_strangers_nothing(service: Service) -> None:
    assert service.ask("GET", "/secret", None).status_code == 401
    assert service.ask("GET", "/secret").status_code == 404


def test_metrics_count_all_processes(service: Service, job: str) -> None:
    text = service.ask("GET", "/metrics", "read").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(values["marrow_node_cells_total"]) > 10
    assert float(values["marrow_node_workers"]) == 1
    assert float(values['marrow_node_stage_seconds_count{stage="detect"}']) >= 1
    assert any(name.startswith("marrow_node_http_requests_total") for name in values)
    assert "1.2.3" not in text


def test_readiness_means_a_worker(service: Service) -> None:
    """A worker that dies is replaced; without one the service says that it is not ready."""
    assert service.process is not None
    children = psutil.Process(service.process.pid).children()
    (worker,) = (child for child in children if child.cmdline()[-1] == "work")
    worker.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while service.ask("GET", "/readyz", None).ok and time.monotonic() < end:
        time.sleep(0.02)
    answer = service.ask("GET", "/readyz", None)
    assert answer.status_code == 503
    assert answer.json()["wrong"] == ["worker"]
    assert service.ask("GET", "/healthz", None).ok
    service.wait_until_ready()


def test_log_and_work_files_hold_no_patient(service: Service, job: str) -> None:
    header = dcmread(next(iter(service.smear.slide.paths)), stop_before_pixels=True)
    secret = [str(header.PatientName).split("^")[0], header.PatientID, header.PatientBirthDate]
    told = [service.log.read_text(), service.ask("GET", "/metrics").text]
    told += [str(path) for path in service.smear.work.rglob("*")]
    told.append(json.dumps(service.get("/jobs")) + json.dumps(service.get(f"/jobs/{job}")))
    for word in filter(None, map(str, secret)):
        assert not [text for text in told if word in text]


def test_nothing_is_lost_when_all_is_killed(tmp_path: Path) -> None:
    """Kill every process of a service in the middle; the next one finishes the job, once."""
    smear = small_smear(tmp_path)
    with running_service(smear) as service:
        job = service.submit_slide()
        others = [
            service.submit(study_uid="1.2.3", series_uid=f"1.2.3.{n}")["job"] for n in range(20)
        ]
        end = time.monotonic() + 60
        while service.get(f"/jobs/{job}")["status"] != "running" and time.monotonic() < end:
            time.sleep(0.05)
        assert service.process is not None
        tree = [
            psutil.Process(service.process.pid),
            *psutil.Process(service.process.pid).children(recursive=True),
        ]
        for process in tree:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(tree, 10)
        service.process.wait(10)
        service.start()
        assert service.ended(job)["status"] == "completed"
        assert {service.ended(other)["exit_code"] for other in others} == {21}
        reports = list((smear.folder / "ehr").rglob("DiagnosticReport*"))
        assert len(reports) == 1


def test_serving_needs_a_key(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'pacs_url = "file://{tmp_path}"\nwork_folder = "{tmp_path}/work"\n')
    done = subprocess.run(
        [sys.executable, "-m", "node", "--config", str(config), "serve"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 26
    assert "marrow-node key" in done.stderr


def test_a_key_is_shown_once_with_its_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "node", "key", "orthanc", "--role", "submit"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    key = done.stdout.splitlines()[0].rpartition(" ")[2]
    assert f'sha256 = "{digest_of(key)}"' in done.stdout
    assert "[serve.keys.orthanc]" in done.stdout


def test_the_served_description_is_true(service: Service, job: str) -> None:
    """Schemathesis: no 5xx, no undocumented answer, credentials enforced on every operation."""
    # Whether a correction fits the cells of a result no schema can say: that is what 422 is for.
    (service.smear.folder / "schemathesis.toml").write_text(
        '[[operations]]\ninclude-name = "POST /jobs/{job}/review"\n'
        "[operations.checks.positive_data_acceptance]\n"
        'expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]\n'
    )
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            "run",
            f"{service.url}/openapi.json",
            *("--header", f"Authorization: Bearer {key_of('admin')}"),
            *("--max-examples", "8", "--seed", "2021", "--checks", "all"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=service.smear.folder,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "passed" in done.stdout


def test_every_route_is_described(service: Service) -> None:
    described = service.get("/openapi.json")["paths"].keys()
    for rule in rules_of(service):
        if rule.endpoint.partition(".")[0] in ("jobs", "health", "openapi"):
            assert rule.rule.replace("<", "{").replace(">", "}") in described, rule.endpoint
