"""What lies in docker/ parses, and names only what there is."""

from __future__ import annotations

import json
import os
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

import kubernetes_validate
import pytest
import requests
import yaml

from dicom_io.dimse_settings import ReceiveSettings
from node.cli import COMMANDS, main
from node.config import Settings, load_settings
from node.job_database import prepare_database
from node.job_queue import open_job_queue
from node.serve import check_servable
from node.web.access import ENDPOINTS, digest_of
from node.web.app import create_app
from node.web.settings import ServeSettings
from tests.fhir_fixture import FhirServer
from tests.loopback_host import Host
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

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PORT, DICOM_PORT = ServeSettings().port, ReceiveSettings().port
VERSION_TAG = re.compile(r"^[\w./-]+:v?\d+\.\d+(\.\d+)?(-[\w.-]+)?$")
SECRETS = re.compile(r"^\./(secrets/\w+(?:\.json)?)$")
VARIABLE = re.compile(r"\$\{(\w+):\?[^}]*\}")
METRIC = re.compile(r"\bmarrow_node_\w+")


def read(name: str) -> str:
    return (DOCKER / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(read("compose.yaml"))
    return loaded


def test_every_file_parses() -> None:
    files = [each for each in DOCKER.rglob("*") if each.is_file() and "secrets" not in each.parts]
    seen = set()
    for path in files:
        text = path.read_text(encoding="utf-8")
        seen.add(path.suffix)
        if path.suffix in {".yml", ".yaml"}:
            assert list(yaml.safe_load_all(text)), path
        elif path.suffix == ".json":
            json.loads(text)
        elif path.suffix == ".toml":
            tomllib.loads(text)
        elif path.suffix == ".py":
            compile(text, path, "exec")
        elif path.suffix == ".sh":
            subprocess.run(["sh", "-n", path], check=True)
            assert os.access(path, os.X_OK), path
    assert seen >= {".yml", ".yaml", ".json", ".toml", ".py", ".sh", ".md", ".lua", ".ldif"}


def test_the_readme_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"^\| (`[^|]+) \|", read("README.md"), re.M))
    named = {name.strip("/") for cell in named for name in re.findall(r"`([^`]+)`", cell)}
    there = {path.name for path in DOCKER.iterdir()} - {"README.md", "secrets", ".env"}
    assert named == there


# --- images


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a Dockerfile."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", read(name), flags=re.M)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    tool = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([tool, DOCKER / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_made_of_what_there_is(name: str) -> None:
    by_kind: dict[str, list[str]] = {}
    for kind, value in instructions(name):
        by_kind.setdefault(kind, []).append(value)
    bases = {value.split()[0] for value in by_kind["FROM"]}
    assert len(bases) == 1
    assert all(VERSION_TAG.match(base) for base in bases)
    for value in by_kind["COPY"]:
        if not value.startswith("--from"):
            assert (ROOT / value.split()[0]).exists(), value
    (install,) = (value for value in by_kind["RUN"] if "install.sh" in value)
    extras = install.split()[-1].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    assert by_kind["USER"] == ["10001:10001"]
    assert by_kind["EXPOSE"] == [f"{PORT} {DICOM_PORT}"]
    assert "healthcheck.py" in by_kind["HEALTHCHECK"][0]
    assert f"http://127.0.0.1:{PORT}/healthz" in read("healthcheck.py")
    (entry,) = json.loads(by_kind["ENTRYPOINT"][0])
    assert entry in PROJECT["scripts"]
    assert json.loads(by_kind["CMD"][0])[0] in COMMANDS
    config = next(option for option in main.params if option.name == "config")
    assert f"{config.envvar}=/etc/marrow-node/node.toml" in by_kind["ENV"][0]


def test_the_health_check_asks(host: Host) -> None:
    def check(url: str) -> int:
        return subprocess.run(
            [sys.executable, DOCKER / "healthcheck.py"],
            env={"MARROW_NODE_HEALTH_URL": url},
            check=False,
            stderr=subprocess.DEVNULL,
        ).returncode

    assert check(f"{host.url}/healthz") == 0
    host.answer = lambda path: (503, {}, b"")
    assert check(f"{host.url}/healthz") == 1
    assert check("http://127.0.0.1:9/healthz") == 1


def let_in() -> list[str]:
    """What .dockerignore lets into an image's build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    return [line[1:] for line in lines if line.startswith("!")]


def test_an_image_gets_what_it_is_made_of_and_no_secret() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    tops = {name.split(".")[0] for name in tool["packages"]}
    papers = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"}
    assert set(let_in()) == tops | papers | {"docker/install.sh", "docker/healthcheck.py"}
    assert all((ROOT / name).exists() for name in let_in())


def test_install_says_how_it_is_called() -> None:
    done = subprocess.run(
        [DOCKER / "install.sh", "one"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "docker/install.sh [--editable] FOLDER EXTRAS" in done.stderr
    assert "set -eu" not in done.stderr


@pytest.mark.slow
def test_install_on_a_clean_root(tmp_path: Path) -> None:
    """From what an image gets, with nothing of this environment but where packages come from."""
    source = tmp_path / "source"
    for name in let_in():
        there = ROOT / name
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if there.is_dir():
            shutil.copytree(there, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(there, source / name)
    registry = ("PIP_", "SSL_CERT", "REQUESTS_CA", "HTTPS_PROXY", "https_proxy")
    clean = {name: value for name, value in os.environ.items() if name.startswith(registry)}
    clean |= {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    python = Path(sys.base_prefix) / "bin" / "python3"
    subprocess.run(
        ["sh", source / "docker" / "install.sh", tmp_path / "node", "cpu,postgres"],
        env=clean | {"PYTHON": str(python)},
        cwd="/",
        check=True,
    )
    shutil.rmtree(source)  # nothing points back to it
    command = tmp_path / "node" / "bin" / "marrow-node"
    said = subprocess.run(
        [command, "models", "--json"], env=clean, cwd="/", check=True, capture_output=True
    )
    assert {"demo-smear", "wang2022"} <= {each["name"] for each in json.loads(said.stdout)}
    imported = "import sys, node.serve, node.web.app; sys.exit('torch' in sys.modules)"
    python = tmp_path / "node" / "bin" / "python"
    subprocess.run([python, "-c", imported], env=clean, cwd="/", check=True)


# --- compose


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


# --- Kubernetes


@cache
def objects() -> list[dict[str, Any]]:
    """What `kubectl apply --kustomize` would make, and the secret that is filled in by hand."""
    if shutil.which("kubectl") is None:  # Debian's is too old for the file
        pytest.skip("kubectl is not installed, which builds docker/kubernetes")
    done = subprocess.run(
        ["kubectl", "kustomize", DOCKER / "kubernetes"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    secret = yaml.safe_load(read("kubernetes/secret.example.yaml"))
    return [*yaml.safe_load_all(done.stdout), secret]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in objects() if each["kind"] == kind}


def test_the_cluster_takes_every_object() -> None:
    for each in objects():
        kubernetes_validate.validate(each, "1.31", strict=True)
        name = each["metadata"].get("namespace", each["metadata"]["name"])
        assert name == "marrow-node"
    assert len(objects()) >= 9


def test_pods_are_restricted_and_mount_what_there_is() -> None:
    for deployment in of_kind("Deployment").values():
        template = deployment["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["args"][0] in COMMANDS
        assert container["image"].startswith(f"marrow-node:{PROJECT['version']}")
        inside = container["securityContext"]
        assert inside["readOnlyRootFilesystem"] is True
        assert inside["capabilities"] == {"drop": ["ALL"]}
        volumes = {each["name"]: each for each in pod["volumes"]}
        assert {each["name"] for each in container["volumeMounts"]} == volumes.keys()
        assert volumes["settings"]["configMap"]["name"] in of_kind("ConfigMap")
        assert volumes["secrets"]["secret"]["secretName"] in of_kind("Secret")
        claim = volumes["work"]["persistentVolumeClaim"]["claimName"]
        assert claim in of_kind("PersistentVolumeClaim")


def test_probes_service_and_policy_meet_the_web_pod() -> None:
    web = of_kind("Deployment")["marrow-node-web"]["spec"]["template"]
    (container,) = web["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": PORT}]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in {"/healthz", "/readyz"}
        assert asked["port"] == "http"
    labels = web["metadata"]["labels"].items()
    assert of_kind("Service")["marrow-node"]["spec"]["selector"].items() <= labels
    policy = of_kind("NetworkPolicy")["marrow-node-web"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels


def test_the_node_of_the_cluster_could_serve(tmp_path: Path) -> None:
    config, secret = of_kind("ConfigMap")["marrow-node"], of_kind("Secret")["marrow-node"]
    path = tmp_path / "node.toml"
    path.write_text(config["data"]["node.toml"])
    filled = {
        name: value or "0" * 64
        for name, value in secret["stringData"].items()
        if name.startswith("MARROW_NODE__")
    }
    for deployment in of_kind("Deployment").values():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        more = {each["name"]: each["value"] for each in container.get("env", [])}
        settings = load_settings(path, filled | more)
        check_servable(settings)
        assert settings.serve.port == PORT
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert mounts["work"] == str(settings.work_folder)
        assert settings.pacs.password == f"file:{mounts['secrets']}/pacs_password"


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


# --- rules to paste


def test_rules_by_dimse_lead_to_the_receiver() -> None:
    receiver = Settings().receive
    target = json.loads(read("rules/mercure.json"))["targets"]["marrow-node"]
    assert (target["aet_target"], target["port"]) == (receiver.ae_title, str(receiver.port))
    entries = [
        dict(line.split(": ", 1) for line in reversed(entry.splitlines()) if line[:1] not in "# ")
        for entry in read("rules/dcm4chee.ldif").strip().split("\n\n")[1:]
    ]
    assert len(entries) == 6
    for entry in entries:
        name, value = entry["dn"].split(",", 1)[0].split("=")
        assert entry[name] == value  # an entry holds the attribute that it is named by
    assert entries[1]["dicomPort"] == str(receiver.port)
    assert entries[4]["dcmURI"] == f"dicom:{receiver.ae_title}"
    assert entries[5]["dcmExporterID"] == entries[4]["dcmExporterID"]


# --- the threat model


def table(heading: str) -> list[list[str]]:
    """Rows of the first table below a heading of THREATS.md."""
    below = read("THREATS.md").split(f"## {heading}\n", 1)[1]
    rows = re.findall(r"^\|(.+)\|$", below.split("\n## ", 1)[0], re.M)
    return [[cell.strip().strip("`") for cell in row.split("|")] for row in rows[2:]]


def test_the_threat_model_names_the_ports() -> None:
    rows = {row[4]: int(row[0]) for row in table("Ports and data flow")}
    assert rows == {"serve.port": PORT, "receive.port": DICOM_PORT, "database_url": 5432}


def covers(pattern: str, route: str) -> bool:
    return pattern == route or (pattern.endswith("…") and route.startswith(pattern[:-1]))


def test_the_threat_model_names_every_route_and_its_role(tmp_path: Path) -> None:
    settings = Settings(pacs_url="https://pacs.example/dicom-web", work_folder=tmp_path)
    prepare_database(settings)
    with open_job_queue(settings) as queue:
        rules = list(create_app(settings, queue).url_map.iter_rules())
    rows = [
        (pattern, methods, role)
        for patterns, methods, role in table("Routes and roles")
        for pattern in re.findall(r"[^`, ]+", patterns)
    ]
    used = set()
    for rule in rules:
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            fits = [row for row in rows if row[1] == method and covers(row[0], rule.rule)]
            roles = {row[2] for row in fits if row[0] == rule.rule} or {row[2] for row in fits}
            assert roles == {ENDPOINTS[rule.endpoint] or "none"}, f"{method} {rule.rule}"
            used |= set(fits)
    assert used == set(rows), "a row for each route, and no row without one"


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
