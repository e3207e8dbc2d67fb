"""What lies in docker/ parses, and names only what there is: images, rules, the threat model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from dicom_io.dimse_settings import ReceiveSettings
from node.cli import COMMANDS, main
from node.config import Settings
from node.job_database import open_job_database, prepare_database
from node.web.access import ENDPOINTS
from node.web.app import create_app
from tests.docker_files import DOCKER, PORT, PROJECT, ROOT, VERSION_TAG, read
from tests.loopback_host import Host

DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
DICOM_PORT = ReceiveSettings().port


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
    with open_job_database(settings) as database:
        rules = list(create_app(settings, database).url_map.iter_rules())
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
