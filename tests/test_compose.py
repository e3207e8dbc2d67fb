"""The site of docker/compose.yaml: its files name only what there is, and it works as a whole."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from node.cli import COMMANDS
from node.config import load_settings
from node.serve import check_servable
from node.web.access import ENDPOINTS, digest_of
from tests.docker_files import DOCKER, PORT, PROJECT, ROOT, VERSION_TAG, read
from tests.fhir_fixture import FhirServer
from tests.servers import (
    DICOMWEB_PLUGIN,
    MISSING_ORTHANC,
    ORTHANC,
    cannot_run,
    free_port,
    orthanc_missing,
    program,
    wait_for_port,
)
from tests.service import ENDED, Service
from tests.smears import small_smear

VARIABLE = re.compile(r"\$\{(\w+):\?[^}]*\}")
METRIC = re.compile(r"\bmarrow_node_\w+")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("compose.yaml"))
    return loaded


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A copy of docker/ with the keys and passwords that keys.sh makes."""
    folder = tmp_path / "docker"
    shutil.copytree(DOCKER, folder, ignore=shutil.ignore_patterns("secrets", ".env"))
    subprocess.run([folder / "keys.sh"], check=True, capture_output=True)
    return folder


def variables(made: Path) -> dict[str, str]:
    lines = (made / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_keys_are_kept_and_secret(made: Path) -> None:
    before = variables(made)
    subprocess.run([made / "keys.sh"], check=True, capture_output=True)
    assert variables(made) == before
    assert (made / ".env").stat().st_mode & 0o077 == 0
    assert (made / "secrets" / "operator_key").stat().st_mode & 0o077 == 0
    for name in ("orthanc", "operator", "prometheus"):
        key = (made / "secrets" / f"{name}_key").read_text()
        assert before[f"{name.upper()}_KEY_SHA256"] == digest_of(key)
        assert len(key) >= 47  # 256 bits
    ignored = subprocess.run(
        ["git", "check-ignore", "docker/.env", "docker/secrets/orthanc_key"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if ignored.returncode != 128:  # not a Git checkout
        assert len(ignored.stdout.splitlines()) == 2


def test_compose_names_only_what_there_is(made: Path) -> None:
    whole = compose()
    assert set(VARIABLE.findall(read("compose.yaml"))) <= variables(made).keys()
    for name, secret in whole["secrets"].items():
        assert (made / secret["file"]).is_file(), name
    for name, service in whole["services"].items():
        assert VERSION_TAG.match(service["image"]), service["image"]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (made / source).exists() if source.startswith(".") else None
            assert known if known is not None else source in whole["volumes"], (name, volume)
        for secret in service.get("secrets", []):
            assert secret in whole["secrets"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "published on loopback only"
        if service["image"].startswith("marrow-node:"):
            assert service["image"] == f"marrow-node:{PROJECT['version']}"
            assert service["command"][0] in COMMANDS
            assert (service["read_only"], service["user"]) == (True, "10001:10001")
            assert service["cap_drop"] == ["ALL"]
    cuda = yaml.safe_load(read("compose.cuda.yaml"))["services"]
    assert cuda.keys() <= whole["services"].keys()
    assert cuda["node-worker"]["image"] == f"marrow-node:{PROJECT['version']}-cuda"


def node_environment(made: Path, name: str = "node-web") -> dict[str, str]:
    """What compose.yaml sets for the node, with its variables filled in."""
    values = variables(made)
    given = compose()["services"][name]["environment"]
    return {key: VARIABLE.sub(lambda found: values[found[1]], given[key]) for key in given}


@pytest.mark.parametrize("name", ["node-web", "node-worker", "node-performer"])
def test_the_node_of_compose_could_serve(made: Path, name: str) -> None:
    whole = compose()
    service = whole["services"][name]
    settings = load_settings(made / "node.toml", node_environment(made, name))
    check_servable(settings)
    assert settings.database_url.startswith("postgresql://marrow_node:")
    assert len(settings.serve.keys) == 3
    assert all(key.roles for key in settings.serve.keys.values())
    # Where it finds the others: by the names and ports of this file.
    orthanc = json.loads(read("orthanc/orthanc.json"))
    path = orthanc["DicomWeb"]["Root"].rstrip("/")
    assert settings.pacs_url == f"http://orthanc:{orthanc['HttpPort']}{path}"
    assert settings.ehr_url == "http://fhir:8080/fhir"
    assert whole["services"]["fhir"]["ports"] == ["127.0.0.1:8081:8080"]
    assert whole["services"]["node-web"]["ports"] == [f"127.0.0.1:{PORT}:{settings.serve.port}"]
    assert str(settings.work_folder) in service["volumes"][1]
    secrets = json.loads((made / "secrets" / "orthanc.json").read_text())
    password = (made / "secrets" / "orthanc_password").read_text()
    assert secrets["RegisteredUsers"] == {settings.pacs.username: password}
    assert settings.pacs.password in {f"file:/run/secrets/{name}" for name in service["secrets"]}
    assert secrets["MarrowNode"]["Url"] == f"http://node-web:{PORT}"
    assert digest_of(secrets["MarrowNode"]["Key"]) == settings.serve.keys["orthanc"].sha256


def test_compose_itself_reads_its_files(made: Path) -> None:
    compose = program("docker-compose", "docker-compose")
    # Debian's is Compose 1.29: all that it does not know of today's format is the project's name.
    whole = (made / "compose.yaml").read_text()
    (made / "compose.yaml").write_text(re.sub("^name: .*\n", "", whole, flags=re.MULTILINE))
    for files in (["compose.yaml"], ["compose.yaml", "compose.cuda.yaml"]):
        named = [part for file in files for part in ("--file", file)]
        done = subprocess.run(
            [compose, *named, "config", "--quiet"],
            cwd=made,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


# --- metrics


@cache
def exposed() -> dict[str, set[str]]:
    """Metric that the node exposes → its labels, as a service that has done everything once."""
    script = """
import json, sys
from pathlib import Path
from node import metrics
metrics.share_metrics(Path(sys.argv[1]))
from dicom_io.errors import ConfigurationInvalid
with metrics.stage_timed("open"):
    pass
metrics.count_failure(ConfigurationInvalid("no"))
metrics.count_request("jobs.submit", "POST", 202, 0.1)
model = {"name": "m", "version": "1", "digest": "d"}
receipt = {"target": "PACS", "status": "created"}
metrics.count_result({"model": model, "cells": 1, "bytes_read": 1, "receipts": [receipt]})
from node.web.health import _gauges
from node.audited import audit_trail
from node.config import Settings
class Queue:
    def counts(self): return {"waiting": 0, "queued": 0, "running": 0}
    def oldest_active_ms(self): return None
    def put_aside(self): return 0
    paused = False
from prometheus_client.parser import text_string_to_metric_families
settings = Settings(work_folder=Path(sys.argv[1]))
text = metrics.exposition(_gauges(Queue(), audit_trail(settings), lambda: 1)).decode()
families = text_string_to_metric_families(text)
samples = [sample for family in families for sample in family.samples]
print(json.dumps([[sample.name, list(sample.labels)] for sample in samples]))
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", script, folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    labels: dict[str, set[str]] = {}
    for name, given in json.loads(done.stdout):
        labels.setdefault(name, set()).update(given)
    return labels


def expressions() -> list[str]:
    """All PromQL of alert rules and dashboard."""
    groups = yaml.safe_load(read("prometheus/alerts.yml"))["groups"]
    rules = [rule["expr"] for group in groups for rule in group["rules"]]
    panels = json.loads(read("grafana/marrow-node.json"))["panels"]
    return [*rules, *(target["expr"] for panel in panels for target in panel["targets"])]


def test_rules_and_dashboard_ask_for_metrics_that_the_node_has() -> None:
    asked: set[str] = set()
    for expression in expressions():
        metrics = set(METRIC.findall(expression))
        assert metrics <= exposed().keys(), expression
        asked |= metrics
        known = {"le"}.union(*(exposed()[name] for name in metrics))
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        named = {label.strip() for labels in grouped for label in labels.split(",")}
        chosen = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!=|=~)\"", expression)) - {"job"}
        assert named | chosen <= known, expression
    counted = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in exposed()}
    shown = {re.sub(r"_bucket$", "", name) for name in asked}
    assert shown == counted, "every metric is shown or watched"


def test_promtool_takes_rules_and_scraping(made: Path) -> None:
    promtool = program("promtool", "prometheus")
    rules = [promtool, "check", "rules", made / "prometheus" / "alerts.yml"]
    subprocess.run(rules, check=True, capture_output=True)
    config = yaml.safe_load((made / "prometheus" / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    scrape["authorization"]["credentials_file"] = str(made / "secrets" / "prometheus_key")
    path = made / "prometheus" / "here.yml"
    path.write_text(yaml.safe_dump(config))
    subprocess.run([promtool, "check", "config", path], check=True, capture_output=True)


def test_prometheus_and_grafana_find_each_other() -> None:
    services = compose()["services"]
    (scrape,) = yaml.safe_load(read("prometheus/prometheus.yml"))["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"node-web:{PORT}"]}]
    assert (
        ENDPOINTS["health.metrics"]
        in tomllib.loads(read("node.toml"))["serve"]["keys"]["prometheus"]["roles"]
    )
    assert scrape["authorization"]["credentials_file"] == "/run/secrets/prometheus_key"
    (source,) = yaml.safe_load(read("grafana/datasources.yml"))["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    panels = json.loads(read("grafana/marrow-node.json"))["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


# --- all of it together, without containers


@contextmanager
def archive_of_compose(made: Path, folder: Path, node_url: str) -> Iterator[str]:
    """The Orthanc of compose.yaml, which reads its files as there; its address."""
    if orthanc_missing():
        cannot_run(MISSING_ORTHANC)
    here = json.loads((made / "orthanc" / "orthanc.json").read_text())
    assert here["LuaScripts"] == ["/etc/orthanc/marrow-node.lua"]
    storage = str(folder / "storage")
    here |= {
        "HttpPort": free_port(),
        "DicomPort": free_port(),
        "StorageDirectory": storage,
        "IndexDirectory": storage,
        "Plugins": [str(DICOMWEB_PLUGIN)],
        "LuaScripts": [str(made / "rules" / "orthanc.lua")],
        "StableAge": 1,
    }
    secrets = json.loads((made / "secrets" / "orthanc.json").read_text())
    secrets["MarrowNode"]["Url"] = node_url
    folder.mkdir()
    for name, content in (("orthanc", here), ("secrets", secrets)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(ORTHANC), str(folder)], stdout=log, stderr=log)
        try:
            wait_for_port(here["HttpPort"])
            yield f"http://127.0.0.1:{here['HttpPort']}"
        finally:
            process.terminate()
            process.wait(20)


def test_the_settings_of_compose_bring_a_slide_all_the_way(
    made: Path, tmp_path: Path, fhir_server: FhirServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SQLite for PostgreSQL, other ports, and a model that is quick."""
    smear = small_smear(tmp_path / "smear")
    config = tmp_path / "node.toml"
    model = f'name = "tiny"\nfolders = ["{smear.folder / "packages"}"]'
    config.write_text((made / "node.toml").read_text().replace('name = "demo-smear"', model))
    port = free_port()
    service = Service(f"http://127.0.0.1:{port}", smear, config, tmp_path / "service.log")
    with archive_of_compose(made, tmp_path / "etc", service.url) as archive:
        for name, value in {
            **node_environment(made),
            "MARROW_NODE__DATABASE_URL": "",
            "MARROW_NODE__PACS_URL": f"{archive}/dicom-web",
            "MARROW_NODE__EHR_URL": fhir_server.url,
            "MARROW_NODE__PACS__PASSWORD": f"file:{made / 'secrets' / 'orthanc_password'}",
            "MARROW_NODE__WORK_FOLDER": str(tmp_path / "work"),
            "MARROW_NODE__SERVE__PORT": str(port),
            "MARROW_NODE_HEALTH_URL": f"{service.url}/healthz",
            "MARROW_NODE_URL": service.url,
            "MARROW_NODE_KEY": (made / "secrets" / "orthanc_key").read_text(),
        }.items():
            monkeypatch.setenv(name, value)
        service.start()
        try:
            subprocess.run([sys.executable, DOCKER / "healthcheck.py"], check=True)
            login = ("marrow-node", (made / "secrets" / "orthanc_password").read_text())
            for path in smear.slide.paths:
                requests.post(
                    f"{archive}/instances", path.read_bytes(), auth=login, timeout=30
                ).raise_for_status()
            operator = ("operator", (made / "secrets" / "operator_key").read_text())
            job = ended_job(service.url, operator)
            assert job["status"] == "completed", service.log.read_text()
            series = requests.get(f"{archive}/series?expand", auth=login, timeout=10).json()
            kinds = sorted(each["MainDicomTags"]["Modality"] for each in series)
            assert kinds == ["ANN", "SEG", "SM", "SR"]
            submit = [DOCKER / "rules" / "submit.sh", smear.slide.study_uid, smear.slide.series_uid]
            said = subprocess.run(submit, check=True, capture_output=True, text=True).stdout
            assert json.loads(said)["job"] == job["job"], "the same slide is the same job"
            prometheus = (made / "secrets" / "prometheus_key").read_text()
            metrics = requests.get(
                f"{service.url}/metrics",
                headers={"Authorization": f"Bearer {prometheus}"},
                timeout=10,
            ).text
            assert "marrow_node_slides_total{" in metrics
        finally:
            service.stop()


def ended_job(url: str, operator: tuple[str, str]) -> dict[str, Any]:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        jobs = requests.get(f"{url}/jobs", auth=operator, timeout=10).json()["jobs"]
        if jobs and jobs[0]["status"] in ENDED:
            job: dict[str, Any] = jobs[0]
            return job
        time.sleep(0.2)
    raise AssertionError("no job ended in five minutes")
