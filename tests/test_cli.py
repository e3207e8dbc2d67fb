"""The command line: help, listing, and how each bad input ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from node.cli import COMMANDS, main
from node.exit_codes import error_classes, exit_code_table
from tests.conftest import Proxy
from tests.faulty_proxy import Fault
from tests.fhir_fixture import FhirServer
from tests.forked import marrow_node
from tests.smears import Smear, small_smear
from tests.tiny_package import tiny_package


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Smear:
    return small_smear(tmp_path_factory.mktemp("smear"))


@pytest.fixture
def smear(made_once: Smear, tmp_path: Path) -> Smear:
    """A copy, so that a test may spoil it."""
    shutil.copytree(made_once.folder, tmp_path / "copy")
    return Smear(made_once.slide, tmp_path / "copy")


def nothing_delivered(smear: Smear) -> bool:
    files = list((smear.folder / "pacs").rglob("*.dcm"))
    ehr = list((smear.folder / "ehr").rglob("*.json"))
    return len(files) == len(smear.slide.paths) and not ehr


def test_help_teaches_and_lists_every_exit_code() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "node", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in ("analyse", "demo", "jobs", "show", "models", "config"):
        assert f"\n  {command} " in said
    for code, meaning in exit_code_table():
        assert f"{code:>3}  {meaning}" in said


def test_the_table_of_commands_says_what_they_say() -> None:
    for name, (_, sentence) in COMMANDS.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert (command.name, command.get_short_help_str(1000)) == (name, sentence)
    assert main.get_command(click.Context(main), "nothing") is None


@pytest.mark.parametrize(
    ("arguments", "not_needed"),
    [
        (["--help"], {"dbos", "sqlalchemy", "pydicom", "numpy", "matplotlib", "requests"}),
        (["config"], {"dbos", "sqlalchemy", "pydicom", "matplotlib", "requests"}),
        (["jobs"], {"pydicom", "highdicom", "scipy", "matplotlib", "onnxruntime", "reportlab"}),
    ],
)
def test_a_command_loads_what_it_needs_only(
    arguments: list[str], not_needed: set[str], tmp_path: Path
) -> None:
    script = (
        "import sys\n"
        "from node.cli import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        f"loaded = {not_needed!r} & sys.modules.keys()\n"
        "sys.exit(f'{loaded} are loaded' if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "MARROW_NODE__WORK_FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_two_errors_share_an_exit_code() -> None:
    codes = [error.exit_code for error in error_classes().values()]
    assert len(codes) == len(set(codes)) > 25


def test_config_and_models_speak_json() -> None:
    settings = json.loads(marrow_node("config", "--json").stdout)
    assert settings["model.name"] == "demo-smear"
    shipped = json.loads(marrow_node("models", "--json").stdout)
    assert "demo-smear" in {package["name"] for package in shipped}
    for package in shipped:
        assert package["demonstration"] is True
        assert "not for clinical use" in package["intended_use"]


def test_jobs_and_show_tell_of_a_job(smear: Smear) -> None:
    _, result, _ = smear.analyse()
    config = str(smear.settings())
    (listed,) = json.loads(marrow_node("--config", config, "jobs", "--json").stdout)
    assert (listed["job"], listed["status"]) == (result["job"], "completed")
    shown = json.loads(marrow_node("--config", config, "show", "--json", result["job"]).stdout)
    assert shown["differential"] == result["differential"]


def test_an_unknown_job_is_named(tmp_path: Path) -> None:
    ended = marrow_node("--work", str(tmp_path), "show", "nothing-1")
    assert ended.returncode == 27
    assert "nothing-1" in ended.stderr


def test_a_series_that_is_not_there(smear: Smear) -> None:
    code, result, said = smear.analyse(uids=(smear.slide.study_uid, "1.2.3.4"))
    assert (code, result["status"]) == (21, "failed")
    assert "1.2.3.4" in said
    assert "Traceback" not in said
    assert nothing_delivered(smear)


def test_a_model_that_is_not_installed(smear: Smear) -> None:
    ended = marrow_node(*smear.arguments("--model", "none"))
    assert ended.returncode == 41
    assert "'none' is not installed" in ended.stderr


def test_a_model_with_a_changed_file(smear: Smear) -> None:
    network = smear.folder / "packages" / "tiny" / "detector.onnx"
    network.write_bytes(network.read_bytes() + b"\0")
    code, _, said = smear.analyse()
    assert code == 43
    assert "detector.onnx" in said
    assert nothing_delivered(smear)


def test_a_manifest_that_contradicts_itself(smear: Smear) -> None:
    tiny_package(smear.folder / "packages" / "tiny", detector={"nms_iou": 7})
    code, _, said = smear.analyse()
    assert code == 42
    assert "nms_iou" in said


def test_an_address_without_a_scheme(smear: Smear) -> None:
    code, _, said = smear.analyse(ehr_url="ehr.example/fhir")
    assert code == 26
    assert "ehr.example/fhir" in said


def test_a_truncated_frame_ends_the_job_and_not_the_node(smear: Smear) -> None:
    path = max((smear.folder / "pacs").rglob("*.dcm"), key=lambda p: p.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    code, result, said = smear.analyse()
    assert (code // 10, result["status"]) in ((2, "failed"), (3, "failed")), said
    assert nothing_delivered(smear)
    path.write_bytes(whole)
    code, result, said = smear.analyse()
    assert (code, result["status"]) == (0, "completed"), said


PACS_FAULTS = [
    (Fault(status=401), 33),
    (Fault(status=403), 33),
    (Fault(status=404), 34),
    (Fault(status=406), 35),
    (Fault(status=429), 36),
    (Fault(status=500), 36),
    (Fault(html=True), 37),
]


@pytest.mark.parametrize(("fault", "expected"), PACS_FAULTS)
def test_an_archive_that_fails(smear: Smear, proxy: Proxy, fault: Fault, expected: int) -> None:
    proxy.fault = fault
    code, result, said = smear.analyse(pacs_url=proxy.url)
    assert (code, result["status"]) in ((expected, "failed"), (21, "failed")), said
    assert "Traceback" not in said
    assert not list((smear.folder / "ehr").rglob("*.json"))


def test_an_archive_that_is_down(smear: Smear) -> None:
    code, _, said = smear.analyse(pacs_url="http://127.0.0.1:9/dicom-web")
    assert code == 31, said


def test_an_ehr_that_is_down_then_up_again(smear: Smear, fhir_server: FhirServer) -> None:
    code, _, said = smear.analyse(ehr_url="http://127.0.0.1:9/fhir")
    assert code == 51, said
    code, result, said = smear.analyse(ehr_url=fhir_server.url)
    assert code == 0, said
    assert "already there" in {r["status"] for r in result["receipts"]}


def test_an_ehr_that_answers_html(smear: Smear, proxy: Proxy) -> None:
    proxy.fault = Fault(html=True)
    code, _, said = smear.analyse(ehr_url=proxy.url)
    assert code == 54, said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that holds the job database and little more."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_work_folder(smear: Smear, small_disk: Path) -> None:
    command = smear.command()
    config = smear.settings(work_folder=str(small_disk / "work"))
    command[command.index("--config") + 1] = str(config)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 62, ended.stderr
    assert nothing_delivered(smear)
