"""``marrow-node check``: files, folders and studies in; findings, JSON, JUnit and a verdict out."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pydicom import dcmwrite

from conformance import check as kit
from node.cli import main
from node.outputs import to_bytes
from tests.kit.bases import Case, base
from tests.kit.faults import all_faults
from tests.loopback_host import running_host
from tests.servers import Orthanc


@pytest.fixture(autouse=True)
def _rules_of_the_kit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others say more than the rules that are looked at here; they have a test of their own."""
    monkeypatch.setattr(kit, "validate", lambda files: iter(()))


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


def _written(case: Case, folder: Path) -> Path:
    folder.mkdir()
    for number, document in enumerate(case.objects):
        path = folder / f"{number}.dcm"
        if document.Modality == "SM":
            document.preamble = bytes(128)
            dcmwrite(path, document, enforce_file_format=False)
        else:
            path.write_bytes(to_bytes(document))
    if case.bundle is not None:
        (folder / "report.json").write_text(json.dumps(case.bundle), encoding="utf-8")
    return folder


def _broken(id: str) -> Case:
    (fault,) = (each for each in all_faults() if each.id == id)
    return fault.broken()


def test_good_results_end_with_0(tmp_path: Path) -> None:
    done = _run("--json", str(_written(base("node"), tmp_path / "results")))
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["verdict"] == "conformant"
    assert told["findings"] == []
    kinds = [each["kind"] for each in told["objects"]]
    assert sorted(kinds) == ["ANN", "FHIR", "SEG", "SM", "SM", "SR"]


def test_an_error_ends_with_3_and_is_in_the_junit_file(tmp_path: Path) -> None:
    folder = _written(_broken("group-number-left-out"), tmp_path / "results")
    done = _run("--junit", str(tmp_path / "junit.xml"), str(folder))
    assert done.exit_code == 3, done.output
    assert "ann-group-numbers" in done.output
    assert "PS3.3 C.37.1.2" in done.output
    suites = ET.parse(tmp_path / "junit.xml").getroot()  # noqa: S314  just written
    failed = {
        (suite.get("name", "").split()[0], case.get("name"))
        for suite in suites
        for case in suite
        if case.find("failure") is not None
    }
    assert failed == {("ANN", "ann-group-numbers")}
    passed = [case for suite in suites for case in suite if case.find("failure") is None]
    assert len(passed) > 100


def test_a_warning_ends_with_1(tmp_path: Path) -> None:
    done = _run(str(_written(_broken("viewer-other-level"), tmp_path / "results")))
    assert done.exit_code == 1, done.output
    assert "view-base-level" in done.output


def test_files_are_one_set(tmp_path: Path) -> None:
    folder = _written(base("node"), tmp_path / "results")
    done = _run(*(str(path) for path in sorted(folder.iterdir())))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("by_setting", [False, True])
def test_a_study_in_an_archive(
    tmp_path: Path, by_setting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = base("node")
    case.bundle = None
    url = f"file://{_written(case, tmp_path / 'archive')}"
    study = str(case.sr.StudyInstanceUID)
    monkeypatch.setenv("MARROW_NODE__PACS_URL", url)
    done = _run("--json", study if by_setting else f"{url}/studies/{study}")
    assert done.exit_code == 0, done.output
    kinds = [each["kind"] for each in json.loads(done.output)["objects"]]
    assert sorted(kinds) == ["ANN", "SEG", "SM", "SM", "SR"]


@pytest.mark.parametrize("name", ["pacs_url", "results_url", "pacs__store_url", ""])
def test_credentials_are_for_the_archives_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SECRET", "top-secret")
    given = {
        "pacs_url": "https://pacs.example/rs",
        "pacs__query_url": "http://127.0.0.1:9/rs",
        "pacs__username": "node",
        "pacs__password": "env:SECRET",
        "pacs__headers__x_api_key": "key",
        "pacs__retries": "0",
    }
    with running_host() as host:
        for key, value in (given | ({name: f"{host.url}/rs"} if name else {})).items():
            monkeypatch.setenv(f"MARROW_NODE__{key.upper()}", value)
        if name == "pacs_url":  # whose searches go elsewhere
            monkeypatch.delenv("MARROW_NODE__PACS__QUERY_URL")
        done = _run(f"{host.url}/rs/studies/1.2.3")
    assert done.exit_code != 0
    assert host.requests, done.output
    shown = {"authorization", "x_api_key"} & set(host.last)
    assert shown == ({"authorization", "x_api_key"} if name else set())


def test_an_archive_that_keeps_coordinates_from_viewers_is_named(
    tmp_path: Path, orthanc: Orthanc
) -> None:
    """This Orthanc tells the first of a group's coordinates, and not where the others are."""
    case = base("node")
    case.bundle = None
    case.objects = [each for each in case.objects if each.Modality != "SM"]
    orthanc.add(*sorted(_written(case, tmp_path / "results").iterdir()))
    done = _run("--json", f"{orthanc.dicomweb_url}/studies/{case.sr.StudyInstanceUID}")
    told = json.loads(done.output)
    groups = len(case.ann.AnnotationGroupSequence)
    assert [each["rule"] for each in told["findings"]] == ["view-bulk-data"] * groups
    assert done.exit_code == 1


def test_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    content = to_bytes(base("node").seg)
    (tmp_path / "cut.dcm").write_bytes(content[: len(content) // 3])
    done = _run("--json", str(tmp_path))
    assert done.exit_code == 3, done.output
    assert json.loads(done.output)["findings"]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no-such-folder", "does not exist"),
        ("https://pacs.example/dicom-web", "not the URL of a study"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(what: str, said: str) -> None:
    done = _run(what)
    assert done.exit_code in {20, 26}
    assert said in done.output


def test_nothing_to_check(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    done = _run(str(tmp_path))
    assert done.exit_code == 20
    assert "no DICOM file" in done.output
