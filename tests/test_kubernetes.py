"""What lies in docker/kubernetes: a cluster takes it, and it names only what there is."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from node.cli import COMMANDS
from node.config import load_settings
from node.serve import check_servable
from tests.docker_files import DOCKER, PORT, PROJECT, read


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
